"""The error that every image problem is reported as, and the warning about an assumption."""


class ImageError(ValueError):
    """An image that cannot be used; the message names the image, the fault and the remedy."""


class ImageWarning(UserWarning):
    """An image was read on an assumption; the message says which.

    The message does not name the image: Python then shows each assumption once, not once an image.
    """
