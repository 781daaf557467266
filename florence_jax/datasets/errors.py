"""The error of a data set that cannot be read."""


class DatasetError(ValueError):
    """A data set that does not have its stated form; names the file, the entry and the remedy."""
