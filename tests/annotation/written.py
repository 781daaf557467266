"""An annotation written by hand: a dog and a ball of 640 x 480 pixels."""

from florence_jax.annotation.schema import Annotation, OCRLine, Phrase, Region, Text

_OUTLINE = ((64.0, 48.0, 320.0, 48.0, 320.0, 336.0),)

EXAMPLE = Annotation(
    id="a.png",
    image="a.png",
    width=640,
    height=480,
    texts=(
        Text(level="brief", text="A dog and a ball.", score=0.8),
        Text(level="more_detailed", text="A brown dog. It sees a ball.", score=0.6),
    ),
    regions=(
        Region(
            box=(64.0, 48.0, 320.0, 336.0),
            score=0.7,
            label="dog",
            label_score=0.9,
            description="a brown dog",
            description_score=0.5,
            polygons=_OUTLINE,
        ),
        Region(
            box=(384.0, 288.0, 448.0, 352.0),
            score=0.6,
            label="ball",
            label_score=0.8,
            description="a red ball",
            description_score=0.4,
        ),
    ),
    ocr=(OCRLine(quad=(0.0, 0.0, 64.0, 0.0, 64.0, 48.0, 0.0, 48.0), text="STOP", score=0.9),),
    phrases=(
        Phrase(
            text=0,
            start=0,
            end=5,
            phrase="A dog",
            box=(64.0, 48.0, 320.0, 336.0),
            score=0.7,
            polygons=_OUTLINE,
        ),
        Phrase(
            text=0, start=10, end=16, phrase="a ball", box=(384.0, 288.0, 448.0, 352.0), score=0.6
        ),
    ),
    rejected={"regions: score": 2},
)
