"""A Model Context Protocol server: language models read, caption, search and ask about images.

`florence-jax mcp` runs it for a client such as a desktop assistant or an editor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import MCPServer  # pyright: ignore[reportMissingImports]
from mcp.server.mcpserver.exceptions import ToolError  # pyright: ignore[reportMissingImports]

import florence_jax
from florence_jax.inference.base_pipeline import BasePipeline
from florence_jax.processing.image.load import load_image_and_notes
from florence_jax.results.rows import result_to_json
from florence_jax.results.scores import drop_below
from florence_jax.runtime.error_text import error_text, is_of_one_input

_INSTRUCTIONS = (
    "Tools that look at one image each. `image` is the path of an image or PDF file, or a URL; "
    "`page` counts from 1. Coordinates are pixels from the top left corner of the upright image."
)
_CAPTIONS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")

# The content behind a URL.
Fetch = Callable[[str], Any]


def create_mcp_server(pipeline: BasePipeline, root: Path, fetch: Fetch | None = None) -> MCPServer:
    """A server with the tools `ocr`, `caption`, `detect` and `ask`.

    Args:
        pipeline: answers.
        root: the folder below which files may be read.
        fetch: a coroutine function from a URL to bytes; None: URLs are refused.
    """
    tools = _Tools(pipeline, root.resolve(), fetch)
    server = MCPServer("florence-jax", version=florence_jax.__version__, instructions=_INSTRUCTIONS)
    for tool in (tools.ocr, tools.caption, tools.detect, tools.ask):
        server.tool()(tool)
    return server


class _Tools:
    """The tools; their docstrings are what the language model reads."""

    def __init__(self, pipeline: BasePipeline, root: Path, fetch: Fetch | None) -> None:
        self._pipeline, self._root, self._fetch = pipeline, root, fetch
        # One at a time: a client asks for one image after the other.
        self._turn = asyncio.Lock()

    async def ocr(self, image: str, page: int | None = None, boxes: bool = False) -> dict[str, Any]:
        """Read the text in an image or on a page of a PDF; with `boxes`, where each line is."""
        return await self._answer(image, page, "<OCR_WITH_REGION>" if boxes else "<OCR>")

    async def caption(self, image: str, page: int | None = None, detail: int = 1) -> dict[str, Any]:
        """Describe an image: in a sentence (detail 0), in several (1), or in a paragraph (2)."""
        if not 0 <= detail < len(_CAPTIONS):
            raise ToolError(f"detail is {detail}, expected 0, 1 or 2")
        return await self._answer(image, page, _CAPTIONS[detail])

    async def detect(
        self,
        image: str,
        what: list[str] | None = None,
        page: int | None = None,
        min_score: float = 0.0,
    ) -> dict[str, Any]:
        """Find objects in an image: boxes with labels and scores. `what` names what to look for;
        without it, everything that is seen."""
        task = "<OPEN_VOCABULARY_DETECTION>" if what else "<OD>"
        found = await self._answer(image, page, task, text=what or None)
        return drop_below(found, min_score) if min_score > 0 else found

    async def ask(
        self,
        image: str,
        prompt: str,
        page: int | None = None,
        text: str | None = None,
        region: list[float] | None = None,
    ) -> dict[str, Any]:
        """Any of the model's tasks: <CAPTION_TO_PHRASE_GROUNDING> and
        <REFERRING_EXPRESSION_SEGMENTATION> take a `text`; <REGION_TO_CATEGORY>,
        <REGION_TO_DESCRIPTION>, <REGION_TO_OCR> and <REGION_TO_SEGMENTATION> take a `region`
        [x0, y0, x1, y1]; <DENSE_REGION_CAPTION> and <REGION_PROPOSAL> take nothing."""
        return await self._answer(image, page, prompt, text=text, region=region)

    async def _answer(
        self,
        image: str,
        page: int | None,
        prompt: str,
        *,
        text: str | Sequence[str] | None = None,
        region: Sequence[float] | None = None,
    ) -> dict[str, Any]:
        try:
            source = await self._source(image)
            async with self._turn:
                return await asyncio.to_thread(self._look, source, page, prompt, text, region)
        except ToolError:
            raise
        except Exception as error:
            if not is_of_one_input(error):
                raise
            raise ToolError(error_text(error)) from error

    def _look(
        self, source: Path | bytes, page: int | None, prompt: str, text: Any, region: Any
    ) -> dict[str, Any]:
        picture, notes = load_image_and_notes(source, page=page)
        result = result_to_json(self._pipeline(picture, prompt, text=text, region=region))
        width, height = picture.size
        found = {"width": width, "height": height, **result}
        return found | ({"notes": list(notes)} if notes else {})

    async def _source(self, image: str) -> Path | bytes:
        if image.startswith(("http://", "https://")):
            if self._fetch is None:
                raise ToolError("URLs are not fetched: save the image, and pass its path")
            return await self._fetch(image)
        path = (self._root / Path(image).expanduser()).resolve()
        if not path.is_relative_to(self._root):
            raise ToolError(f"{image} is outside of {self._root}, below which files are read")
        return path
