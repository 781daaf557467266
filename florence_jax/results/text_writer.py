"""Measure, wrap and write text on images, in a font that has its characters."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

# Pillow's own font holds little beyond ASCII. Other text uses the first of these fonts that the
# system has and that has the characters.
_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
    "PingFang.ttc",
    "msyh.ttc",
    "malgun.ttf",
)
# Longer texts are cut.
MAX_LINES = 60


@dataclass(frozen=True)
class TextWriter:
    """Measures and writes text of one size, in a face that has its characters."""

    size: int
    font: str | None  # None: `best_font` of each text

    @property
    def line_height(self) -> int:
        return round(1.25 * self.size)

    def length(self, text: str) -> float:
        return self._face(text).getlength(text)

    def write(
        self,
        draw: ImageDraw.ImageDraw,
        position: tuple[float, float],
        text: str,
        ink: tuple[int, int, int],
    ) -> None:
        """Write one line whose line box has its top left corner at `position`."""
        baseline = position[1] + round(0.95 * self.size)
        draw.text((position[0], baseline), text, fill=ink, font=self._face(text), anchor="ls")

    def shorten(self, text: str, limit: float) -> str:
        """Shorten the text with "…" to at most `limit` pixels."""
        if self.length(text) <= limit:
            return text
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.length(text[:middle].rstrip() + "…") <= limit
            low, high = (middle, high) if fits else (low, middle - 1)
        return text[:low].rstrip() + "…" if low else ""

    def wrap(self, text: str, limit: float) -> list[str]:
        """Wrap to lines of at most `limit` pixels; a longer word is cut."""
        lines: list[str] = []
        for paragraph in text.splitlines():
            line = ""
            for word in one_line(paragraph).split(" "):
                if self.length(f"{line} {word}".strip()) <= limit:
                    line = f"{line} {word}".strip()
                    continue
                lines += [line] if line else []
                line = word
                while self.length(line) > limit and len(line) > 1:
                    cut = max(1, len(self.shorten(line, limit + self.length("…"))) - 1)
                    lines.append(line[:cut])
                    line = line[cut:]
                if len(lines) > MAX_LINES:
                    return lines
            lines.append(line)
        return lines

    def _face(self, text: str) -> ImageFont.FreeTypeFont:
        return _load_face(best_font(text) if self.font is None else self.font, self.size)


def best_font(text: str) -> str:
    """The first font with all the characters, else the one that lacks fewest."""
    missing, best = len(text) + 1, ""
    for name in ("", *_SYSTEM_FONTS):
        count = sum(not _has_glyph(name, character) for character in set(text))
        if count < missing:
            missing, best = count, name
        if not missing:
            break
    return best


def one_line(text: str) -> str:
    """The text without control characters, lone surrogates, line breaks and runs of blanks."""
    shown = (c if unicodedata.category(c) not in ("Cc", "Cf", "Cs") else " " for c in text)
    return " ".join("".join(shown).split())


@lru_cache(maxsize=64)
def _load_face(name: str, size: int) -> ImageFont.FreeTypeFont:
    """The named or system font; "" is Pillow's own."""
    if name:
        return ImageFont.truetype(name, size)
    own = ImageFont.load_default(size)
    if not isinstance(own, ImageFont.FreeTypeFont):
        raise OSError("drawing text needs a Pillow with FreeType (every wheel on PyPI has it)")
    return own


@lru_cache(maxsize=16384)
def _has_glyph(name: str, character: str) -> bool:
    """Whether a font has the character: its glyph is not the one for "missing" (U+FFFF)."""
    return _is_installed(name) and _glyph(name, character) != _glyph(name, "\uffff")


@lru_cache  # a miss searches every font directory
def _is_installed(name: str) -> bool:
    try:
        return bool(_load_face(name, 16))
    except OSError:
        return False


def _glyph(name: str, character: str) -> bytes:
    image = Image.new("L", (32, 32))
    ImageDraw.Draw(image).text((4, 24), character, fill=255, font=_load_face(name, 16), anchor="ls")
    return image.tobytes()
