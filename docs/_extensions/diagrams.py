"""Draw the documentation's diagrams: `python docs/_extensions/diagrams.py`.

The shapes come from the config of base, so that a diagram and the code cannot disagree;
tests/test_docs.py draws both again and compares them with `docs/_static/*.svg`.
"""

from pathlib import Path
from xml.sax.saxutils import escape

from florence_jax.config import PRESETS

STATIC = Path(__file__).resolve().parents[1] / "_static"
SIDE, PROMPT, TEXT_BUCKET = 768, "<OD>", 16
_FONT = "font-family='Helvetica, Arial, sans-serif'"
_BLUE, _GREEN, _ORANGE, _GREY = "#dbeafe", "#dcfce7", "#ffedd5", "#f4f4f5"


def main() -> None:
    """Write every diagram."""
    STATIC.mkdir(exist_ok=True)
    for name, drawing in diagrams().items():
        (STATIC / name).write_text(drawing, encoding="utf-8")


def diagrams() -> dict[str, str]:
    """The text of each SVG file by its name."""
    return {"model.svg": model_diagram(), "mesh.svg": mesh_diagram()}


def model_diagram() -> str:
    """The way of one image and one prompt through base, with the shape of every array."""
    config = PRESETS["base"]()
    vision, text = config.vision, config.text
    image_tokens = config.num_image_tokens(SIDE, SIDE)
    both, width = image_tokens + TEXT_BUCKET, text.d_model
    pen = _Pen(1000, 770)
    left, right, wide = 40, 540, 420

    pen.box(left, 30, wide, 62, "image", ["any size and mode, upright by EXIF"], fill=_GREY)
    pen.arrow(left + 60, 92, 122, "resize, normalise")
    pen.box(left, 122, wide, 46, "pixel_values", [], shape=f"float[1, {SIDE}, {SIDE}, 3]")
    top, side = 190, SIDE
    for stage, (dim, depth, stride, size) in enumerate(
        zip(
            vision.embed_dims,
            vision.depths,
            vision.patch_strides,
            vision.patch_sizes,
            strict=True,
        ),
        start=1,
    ):
        side //= stride
        blocks = "1 dual block" if depth == 1 else f"{depth} dual blocks"
        line = f"convolution {size} x {size}, stride {stride}; {blocks}"
        pen.arrow(left + 60, top - 22, top, "")
        shape = f"[1, {side}, {side}, {dim}]"
        pen.box(left, top, wide, 62, f"DaViT stage {stage}", [line], shape=shape, fill=_BLUE)
        top += 84
    pen.arrow(left + 60, top - 22, top, "")
    lines = [
        "adds row and column positions, projects, normalises",
        f"mean over the image (1) and every cell ({side} x {side})",
    ]
    shape = f"[1, {image_tokens}, {width}]"
    pen.box(left, top, wide, 80, "projector: image tokens", lines, shape=shape, fill=_BLUE)

    pen.box(right, 30, wide, 62, f"prompt {PROMPT}", [], fill=_GREY)
    pen.line(right + 14, 76, "“Locate the objects with category name in the image.”")
    pen.arrow(right + 60, 92, 122, "tokenizer, pad to a bucket")
    pen.box(right, 122, wide, 46, "input_ids", [], shape=f"int32[1, {TEXT_BUCKET}]")
    pen.arrow(right + 60, 168, 190, "")
    vocabulary = f"a table of {text.vocab_size} rows, shared with the output"
    shape = f"[1, {TEXT_BUCKET}, {width}]"
    pen.box(right, 190, wide, 62, "token embedding", [vocabulary], shape=shape, fill=_GREEN)
    pen.arrow(right + 60, 252, 282, "image tokens in front of text tokens")
    line = f"{text.encoder_layers} layers, every token attends to every other"
    shape = f"[1, {both}, {width}]"
    pen.box(right, 282, wide, 62, "BART encoder", [line], shape=shape, fill=_GREEN)
    pen.elbow(left + wide, top + 40, right, 313)
    pen.arrow(right + 60, 344, 374, "keys and values of cross-attention, once")
    heads, head = text.decoder_attention_heads, width // text.decoder_attention_heads
    lines = [
        f"{text.decoder_layers} layers, one token a step, in one compiled loop",
        f"cache [1, beams, {heads}, tokens, {head}] for each layer",
    ]
    shape = f"logits [1, beams, {text.vocab_size}]"
    pen.box(right, 374, wide, 80, "BART decoder", lines, shape=shape, fill=_ORANGE)
    pen.arrow(right + 60, 454, 484, "beam search, greedy search or sampling")
    pen.box(right, 484, wide, 62, "tokens", [], shape="int32[1, new tokens]", fill=_ORANGE)
    pen.line(right + 14, 530, "star<loc_132><loc_46><loc_411><loc_315>word…")
    pen.arrow(right + 60, 546, 576, "parser: a location is a thousandth of a side")
    pen.box(right, 576, wide, 106, "result, in pixels of the image", [], fill=_GREY)
    pen.line(right + 14, 622, "{“<OD>”: {“bboxes”: [[25, 10, 80, 60], …],")
    pen.line(right + 14, 644, "“labels”: [“star”, …],")
    pen.line(right + 14, 666, "“scores”: [0.28, …]}}")
    note = "Shapes are those of base for one image of 768 x 768 pixels. "
    pen.line(left, 724, note + "The decoder's loop ends when every beam has ended.")
    pen.line(left, 746, "Blue runs once an image, green once a prompt, orange once a token.")
    return pen.svg()


def mesh_diagram() -> str:
    """Eight devices as data=2, fsdp=2, tensor=2: each one's rows and its part of a weight."""
    pen = _Pen(1000, 410)
    pen.line(
        40, 36, "Mesh data=2, fsdp=2, tensor=2: a batch of 8 rows, fc1/kernel float[768, 3072]"
    )
    colours = (_BLUE, _GREEN, _ORANGE, "#fce7f3")
    for device in range(8):
        data, fsdp, tensor = device >> 2, device >> 1 & 1, device & 1
        left, top = 40 + 230 * (device % 4), 60 + 150 * data
        rows, column = 4 * data + 2 * fsdp, 1536 * tensor
        pen.box(
            left,
            top,
            212,
            106,
            f"device {device}",
            [
                f"data {data}, fsdp {fsdp}, tensor {tensor}",
                f"rows {rows} and {rows + 1}",
                f"fc1[{384 * fsdp}:{384 * fsdp + 384}, {column}:{column + 1536}]",
            ],
            fill=colours[device % 4],
        )
    pen.line(
        40, 366, "data and fsdp divide the rows of a batch, fsdp and tensor divide parameters."
    )
    pen.line(40, 388, "Devices of one colour hold the same part. Gradients are added over both.")
    return pen.svg()


class _Pen:
    """Collects shapes and text of one drawing."""

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height, self._parts = width, height, list[str]()

    def box(self, x, y, width, height, title, lines, *, shape="", fill="#ffffff") -> None:
        self._parts.append(
            f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='6' fill='{fill}' "
            "stroke='#52525b'/>"
        )
        self._text(x + 14, y + 24, title, weight="bold")
        self._text(x + width - 14, y + 24, shape, anchor="end", mono=True)
        for number, line in enumerate(lines):
            self.line(x + 14, y + 48 + 20 * number, line)

    def arrow(self, x, start, end, note) -> None:
        self._parts.append(
            f"<path d='M {x} {start} V {end - 2}' stroke='#18181b' fill='none' "
            "marker-end='url(#head)'/>"
        )
        self._text(x + 12, (start + end) / 2 + 4, note, size=13)

    def elbow(self, x, y, right, end) -> None:
        middle = (x + right) / 2
        self._parts.append(
            f"<path d='M {x} {y} H {middle} V {end} H {right - 2}' stroke='#18181b' fill='none' "
            "marker-end='url(#head)'/>"
        )

    def line(self, x, y, text) -> None:
        self._text(x, y, text, size=14)

    def svg(self) -> str:
        size = f"viewBox='0 0 {self._width} {self._height}'"
        return "\n".join(
            [
                f"<svg xmlns='http://www.w3.org/2000/svg' {size} {_FONT} fill='#18181b'>",
                "<defs><marker id='head' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='7' "
                "markerHeight='7' orient='auto'><path d='M 0 0 L 10 5 L 0 10 z'/></marker></defs>",
                f"<rect width='{self._width}' height='{self._height}' rx='8' fill='#ffffff'/>",
                *self._parts,
                "</svg>\n",
            ]
        )

    def _text(self, x, y, text, *, size=15, weight="normal", anchor="start", mono=False) -> None:
        if text:
            family = " font-family='Menlo, Consolas, monospace'" if mono else ""
            self._parts.append(
                f"<text x='{x}' y='{y}' font-size='{size}' font-weight='{weight}' "
                f"text-anchor='{anchor}'{family}>{escape(text)}</text>"
            )


if __name__ == "__main__":
    main()
