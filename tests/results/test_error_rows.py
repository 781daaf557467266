"""A picture that failed costs its own sidecar and nothing else."""

import pytest

from florence_jax.results.rows import UnsuitableRowError
from florence_jax.results.voc import voc_xml
from florence_jax.results.yolo import YoloClasses, yolo_lines

ERROR = {"id": "bad.png", "error": "no image"}


@pytest.mark.parametrize("kind", ["yolo", "voc"])
def test_an_error_row_is_left_out(tmp_path, kind):
    with pytest.raises(UnsuitableRowError, match="no image"):
        yolo_lines(ERROR, YoloClasses(tmp_path)) if kind == "yolo" else voc_xml(ERROR)
