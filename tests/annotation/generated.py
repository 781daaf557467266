"""Annotations of every shape, for hypothesis."""

from hypothesis import strategies as st

from florence_jax.annotation.schema import LEVELS, Annotation, OCRLine, Phrase, Region, Text

SIZE = (640, 480)
WORDS = ("a dog", "the red car", "it", "two men", "a sense", "Cat", "STOP", "über")

scores = st.integers(0, 10_000).map(lambda number: number / 10_000)
words = st.sampled_from(WORDS)


def coordinates(extent):
    return st.integers(0, extent * 1000).map(lambda number: number / 1000)


@st.composite
def boxes(draw, least=0.0):
    """Some anywhere, and many of about the same place, which filters and fusion are made for."""
    width, height = SIZE
    if draw(st.booleans()):
        offsets = draw(st.tuples(*[coordinates(20)] * 4))
        return tuple(
            round(edge + off, 3) for edge, off in zip((90, 90, 200, 200), offsets, strict=True)
        )
    x0, y0 = draw(coordinates(width - 20)), draw(coordinates(height - 20))
    right, bottom = draw(coordinates(width)), draw(coordinates(height))
    # Thousandths are exact in a file, and sums of them are rounded to one.
    return (
        x0,
        y0,
        round(max(right, x0 + least), 3),
        round(max(bottom, y0 + least), 3),
    )


@st.composite
def outlines(draw):
    x0, y0, x1, y1 = draw(boxes(least=10.0))
    return (x0, y0, x1, y0, x1, y1)


texts = st.builds(
    Text,
    level=st.sampled_from(LEVELS),
    text=st.sampled_from(
        ("A dog and the red car.", "Two men. It is a cat.", "STOP", "a dog, a dog, a dog")
    ),
    score=scores,
)
regions = st.builds(
    Region,
    box=boxes(least=5.0),
    score=scores,
    label=words,
    label_score=scores,
    description=st.none() | words,
    description_score=scores,
    polygons=st.lists(outlines(), max_size=2).map(tuple),
)
lines = st.builds(
    OCRLine,
    quad=boxes(least=5.0).map(lambda b: (b[0], b[1], b[2], b[1], b[2], b[3], b[0], b[3])),
    text=words,
    score=scores,
)


@st.composite
def annotations(draw, name="a/1.jpg"):
    found = draw(st.lists(texts, max_size=3, unique_by=lambda text: (text.level, text.text)))
    phrases = []
    for number, text in enumerate(found):
        for _ in range(draw(st.integers(0, 3))):
            start = draw(st.integers(0, len(text.text) - 2))
            end = draw(st.integers(start + 1, len(text.text)))
            phrases.append(
                Phrase(
                    text=number,
                    start=start,
                    end=end,
                    phrase=text.text[start:end],
                    box=draw(boxes(least=5.0)),
                    score=draw(scores),
                    polygons=tuple(draw(st.lists(outlines(), max_size=1))),
                )
            )
    return Annotation(
        id=name,
        image=name,
        width=SIZE[0],
        height=SIZE[1],
        texts=tuple(found),
        regions=tuple(draw(st.lists(regions, max_size=5))),
        ocr=tuple(draw(st.lists(lines, max_size=3))),
        phrases=tuple(phrases),
        rejected=draw(st.dictionaries(st.sampled_from(("regions: score", "ocr: tiny")),
                                      st.integers(1, 9))),
        lost=draw(st.dictionaries(st.sampled_from(("regions", "ocr")), st.integers(1, 9))),
    )  # fmt: skip
