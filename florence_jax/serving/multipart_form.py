"""The parts of a multipart form, in memory: nothing of a request is written to disk."""

from __future__ import annotations

from dataclasses import dataclass

from python_multipart.exceptions import FormParserError  # pyright: ignore[reportMissingImports]
from python_multipart.multipart import (  # pyright: ignore[reportMissingImports]
    MultipartParser,
    parse_options_header,
)

from florence_jax.serving.errors import ServingError

_MAX_PARTS = 200


@dataclass(kw_only=True)
class Part:
    """A field of a form, or a file.

    Attributes:
        name: of the field.
        is_file: whether it has a file name.
        data: its content.
    """

    name: str = ""
    is_file: bool = False
    data: bytes = b""

    def text(self) -> str:
        """The content of a field that is no file.

        Raises:
            ServingError: 400, it is not UTF-8.
        """
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            raise ServingError(400, f"the field {self.name[:100]!r} is not UTF-8") from None


def parse_form(body: bytes, content_type: str) -> list[Part]:
    """The parts of a body, in their order.

    Raises:
        ServingError: 400, it is no multipart form, or has too many parts.
    """
    _, options = parse_options_header(content_type)
    if not options.get(b"boundary"):
        raise ServingError(400, "the form's Content-Type names no boundary")
    collected = _Collected()
    try:
        parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": collected.begin,
                "on_part_data": collected.add,
                "on_part_end": collected.end,
                "on_header_field": collected.add_to_name,
                "on_header_value": collected.add_to_value,
                "on_header_end": collected.end_header,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise ServingError(400, f"the form cannot be read ({error})") from None
    return collected.parts


class _Collected:
    """What the parser has called back with."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._part, self._pieces = Part(), [b""]
        self._name = self._value = b""

    def begin(self) -> None:
        if len(self.parts) == _MAX_PARTS:
            raise ServingError(400, f"the form has more than {_MAX_PARTS} parts")
        self._part, self._pieces = Part(), []

    def add(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])

    def end(self) -> None:
        self._part.data = b"".join(self._pieces)
        self.parts.append(self._part)

    def add_to_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            _, options = parse_options_header(self._value.decode("latin-1"))
            self._part.name = options.get(b"name", b"").decode("utf-8", "replace")
            self._part.is_file = b"filename" in options
        self._name = self._value = b""
