"""Annotation files that are one JSON value."""

from collections.abc import Collection
from typing import Any

from florence_jax.runtime.text_file import TextFileError, parse_json, read_bytes
from florence_jax.training.data.example import DataError
from florence_jax.training.data.storage import Place, local_copy


def read_value(path: Place) -> Any:
    """Whatever a file holds.

    Raises:
        DataError: no such file, or no JSON.
    """
    try:
        return parse_json(read_bytes(local_copy(path)), str(path))
    except TextFileError as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def read_object(path: Place, *, all_of: Collection[str] = ()) -> dict[str, Any]:
    """The object of a file.

    Args:
        all_of: keys that it must have.

    Raises:
        DataError: no such file, no JSON, no object, or a key is missing.
    """
    content = read_value(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    missing = [key for key in all_of if key not in content]
    if missing:
        raise DataError(
            f"{path} lacks {' and '.join(f'`{key}`' for key in missing)}; it has "
            f"{', '.join(list(content)[:8]) or 'nothing'}"
        )
    return content
