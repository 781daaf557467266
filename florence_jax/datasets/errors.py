"""The error of a data set that cannot be read."""


class DatasetError(ValueError):
    """A data set that is not what it is said to be; names the file, the entry and the remedy."""
