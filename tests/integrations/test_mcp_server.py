"""The tools of the MCP server, called by the protocol's own client."""

import asyncio
import io
import sys

import pytest
from PIL import Image

from florence_jax.demo import SHAPES
from florence_jax.processing import load_image
from florence_jax.results.rows import result_to_json
from tests.random_pipeline import random_checkpoint, small_pipeline

pytest.importorskip("mcp", reason='needs `pip install "florence-jax[mcp]"`')

import mcp

from florence_jax.integrations.mcp_server import create_mcp_server

SCENES = SHAPES / "scenes" / "test"
SCENE = SCENES / "000200.png"


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


def called(server, *calls):
    """The results of tool calls, each (name, arguments), in one session."""

    async def call():
        async with mcp.Client(server) as client:
            return [await client.call_tool(name, arguments) for name, arguments in calls]

    return asyncio.run(call())


def test_tools_answer_as_the_pipeline(pipeline):
    server = create_mcp_server(pipeline, SCENES)
    box = [30, 20, 90, 80]
    calls = [
        ("ocr", {}, pipeline(SCENE, "<OCR>")),
        ("ocr", {"boxes": True}, pipeline(SCENE, "<OCR_WITH_REGION>")),
        ("caption", {"detail": 0}, pipeline(SCENE, "<CAPTION>")),
        ("detect", {}, pipeline(SCENE, "<OD>")),
        (
            "detect",
            {"what": ["cat", "dog"]},
            pipeline(SCENE, "<OPEN_VOCABULARY_DETECTION>", text=["cat", "dog"]),
        ),
        (
            "ask",
            {"prompt": "<REGION_TO_OCR>", "region": box},
            pipeline(SCENE, "<REGION_TO_OCR>", region=box),
        ),
    ]
    found = called(server, *((name, {"image": "000200.png", **given}) for name, given, _ in calls))
    for result, (_, _, expected) in zip(found, calls, strict=True):
        assert not result.is_error, result
        with Image.open(SCENE) as image:
            size = {"width": image.width, "height": image.height}
        assert result.structured_content == size | result_to_json(expected)


def test_pages_of_a_pdf(pipeline, tmp_path):
    pytest.importorskip("pypdfium2", reason='needs `pip install "florence-jax[pdf]"`')
    scenes = [load_image(path) for path in sorted(SCENES.glob("*.png"))[:2]]
    scenes[0].save(tmp_path / "two.pdf", save_all=True, append_images=scenes[1:])
    found = called(
        create_mcp_server(pipeline, tmp_path),
        *(("caption", {"image": "two.pdf", "page": page}) for page in (1, 2, 3)),
    )
    assert [one.is_error for one in found] == [False, False, True]
    assert "has no page 3" in found[2].content[0].text


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ocr", {"image": "missing.png"}, "does not exist"),
        ("ocr", {"image": "../../README.md"}, "is outside of"),
        ("ocr", {"image": "/etc/hostname"}, "is outside of"),
        ("ocr", {"image": "http://127.0.0.1/a.png"}, "URLs are not fetched"),
        ("ask", {"image": "000200.png", "prompt": "<ODD>"}, "did you mean '<OD>'?"),
        ("caption", {"image": "000200.png", "detail": 3}, "expected 0, 1 or 2"),
    ],
)
def test_mistakes_are_told(pipeline, name, arguments, message):
    (found,) = called(create_mcp_server(pipeline, SCENES), (name, arguments))
    assert found.is_error
    assert message in found.content[0].text


def test_a_link_does_not_lead_out(pipeline, tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, "png")
    (tmp_path / "outside.png").write_bytes(file.getvalue())
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link.png").symlink_to(tmp_path / "outside.png")
    server = create_mcp_server(pipeline, tmp_path / "root")
    (found,) = called(server, ("ocr", {"image": "link.png"}))
    assert "is outside of" in found.content[0].text


@pytest.mark.slow
def test_the_command_over_standard_input_and_output():
    command = mcp.StdioServerParameters(
        command=sys.executable,
        args=["-m", "florence_jax", "mcp", "--model", str(random_checkpoint()),
              "--root", str(SCENES)],
    )  # fmt: skip

    async def call():
        async with mcp.Client(command, read_timeout_seconds=120) as client:
            tools = await client.list_tools()
            found = await client.call_tool("caption", {"image": "000200.png", "detail": 0})
            return [tool.name for tool in tools.tools], found

    names, found = asyncio.run(call())
    assert names == ["ocr", "caption", "detect", "ask"]
    assert not found.is_error, found
    assert set(found.structured_content) == {"width", "height", "<CAPTION>"}
