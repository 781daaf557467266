"""The error that every image problem is reported as."""


class ImageError(ValueError):
    """An image that cannot be used; the message names the image, the fault and the remedy."""
