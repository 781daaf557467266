"""Turn exceptions into one sentence for users: what failed, on which input, and the remedy."""

from __future__ import annotations

import errno

MAX_CHARACTERS = 2000

_REMEDIES = {
    errno.ENOSPC: "make room, or name another place",
    errno.EDQUOT: "make room, or name another place",
    errno.EACCES: "change its permissions, or name another place",
    errno.EPERM: "change its permissions, or name another place",
    errno.EROFS: "name another place",
    errno.ENOENT: "check the name, and make the directory first if it is to be written to",
    errno.ENOTDIR: "a file stands where the path needs a directory; name another place",
    errno.EISDIR: "it is a directory; name a file",
}

# Packages whose own exceptions have a sentence for the user as their message.
_OURS = ("florence_jax", "convert", "train")


def error_text(error: BaseException) -> str:
    """One readable message for an exception, whichever library raised it.

    Args:
        error: the exception.

    Returns:
        A message without a traceback, at most `MAX_CHARACTERS` long, that any encoding can write.
    """
    text = _message(error)
    # Half a surrogate pair, as in a file name that is no UTF-8, cannot be encoded as it is.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"


def row_error_text(error: BaseException) -> str:
    """`error_text` for the row of the input that failed.

    The exception's type is added where the message is not about the input, so that a mistake in our
    own code is recognised as one.
    """
    text = error_text(error)
    name = type(error).__name__
    return text if isinstance(error, ValueError | OSError) or name in text else f"{text} ({name})"


def is_of_one_input(error: Exception) -> bool:
    """Whether the current input may be to blame, and not the device, the disk or the process.

    jax raises a RuntimeError for what fails on a device. RecursionError and NotImplementedError are
    subclasses of it: readers raise them for data nested too deeply, or of a kind they do not know.
    """
    if isinstance(error, RecursionError | NotImplementedError):
        return True
    return not isinstance(error, RuntimeError | ImportError)


def _message(error: BaseException) -> str:
    match error:
        case MemoryError():
            return f"not enough memory{_detail(error)}"
        case RecursionError():
            return "nested too deeply to be read"
        case ModuleNotFoundError(name=str(name)):
            return f"the package {name} is not installed{_detail(error)}"
        case ImportError(name=None) if str(error):
            return str(error)  # our own; Python names the module
        case OSError():
            return _os_error(error)
        case KeyError():
            return f"{error} is missing"
        case UnicodeError():
            return f"text that cannot be encoded or decoded: {error}"
    is_ours = type(error).__module__.partition(".")[0] in _OURS
    if (is_ours or isinstance(error, ValueError)) and str(error):
        return str(error)
    return f"{type(error).__name__}{_detail(error)}"


def _os_error(error: OSError) -> str:
    if error.strerror is None:
        return str(error) or type(error).__name__
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    where = f"{' -> '.join(names)}: " if names else ""
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{where}{error.strerror}" + (f": {remedy}" if remedy else "")


def _detail(error: BaseException) -> str:
    text = str(error).strip()
    return f": {text}" if text else ""
