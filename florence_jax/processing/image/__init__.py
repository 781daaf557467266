"""Images: any source to an upright 8-bit RGB image (`load`), and that to pixels (`pixels`)."""


class ImageError(ValueError):
    """An image that cannot be used; the message names the image, the fault and the remedy."""


class ImageWarning(UserWarning):
    """An image was read on an assumption; the message says which.

    The message does not name the image: Python then shows each assumption once, not once an image.
    """
