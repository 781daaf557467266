"""Functions for autodistill and CVAT, driven by those packages' own code."""

from types import SimpleNamespace

import numpy as np
import pytest

from florence_jax.demo import SHAPES
from florence_jax.inference.pipeline import Florence2Pipeline
from florence_jax.processing import load_image

pytestmark = pytest.mark.optimized

SCENE = SHAPES / "scenes" / "test" / "000200.png"
LABELS = ("orange heart", "red cross", "green star")


@pytest.fixture(scope="module")
def pipeline():
    return Florence2Pipeline.from_pretrained("shapes")


@pytest.fixture(scope="module")
def expected(pipeline):
    """The boxes of each label that the pipeline finds."""
    task = "<OPEN_VOCABULARY_DETECTION>"
    results = pipeline([str(SCENE)] * len(LABELS), task, text=[[label] for label in LABELS])
    return [result[task]["bboxes"] for result in results]


class TestAutodistill:
    @pytest.fixture
    def detector(self, pipeline):
        pytest.importorskip("autodistill.detection", reason="needs `pip install autodistill`")
        from autodistill.detection import CaptionOntology

        from florence_jax.integrations.autodistill_model import Florence2Detector

        ontology = CaptionOntology({label: label.split()[1] for label in LABELS})
        return Florence2Detector(ontology, pipeline)

    def test_boxes_by_prompt(self, detector, expected):
        found = detector.predict(str(SCENE))
        wanted = [box for boxes in expected for box in boxes]
        np.testing.assert_allclose(found.xyxy, wanted, rtol=1e-5)
        numbers = [number for number, boxes in enumerate(expected) for _ in boxes]
        assert found.class_id.tolist() == numbers
        detector.min_score = 1.0
        assert len(detector.predict(str(SCENE))) == 0

    def test_a_folder_is_labelled(self, detector, tmp_path, expected):
        (tmp_path / "in").mkdir()
        load_image(SCENE).save(tmp_path / "in" / "a.png")
        detector.label(str(tmp_path / "in"), ".png", str(tmp_path / "out"))
        (file,) = (tmp_path / "out").rglob("labels/a.txt")
        lines = file.read_text().splitlines()
        assert len(lines) == sum(map(len, expected))


class TestCvat:
    @pytest.fixture
    def function(self, pipeline):
        pytest.importorskip("cvat_sdk", reason="needs `pip install cvat-sdk`")
        from florence_jax.integrations.cvat_function import create

        return create(", ".join(LABELS), pipeline)

    def test_rectangles(self, function, expected):
        image = load_image(SCENE)
        found = function.detect(SimpleNamespace(conf_threshold=None), image)
        wanted = [(number, box) for number, boxes in enumerate(expected) for box in boxes]
        assert [one.label_id for one in found] == [number for number, _ in wanted]
        np.testing.assert_allclose([one.points for one in found], [box for _, box in wanted])
        assert function.detect(SimpleNamespace(conf_threshold=1.0), image) == []
        assert [label.name for label in function.spec.labels] == list(LABELS)

    def test_labels_are_distinct(self, pipeline, function):
        from florence_jax.integrations.cvat_function import create

        for labels in ("", " , ", "a,b,a"):
            with pytest.raises(ValueError, match="expected distinct names"):
                create(labels, pipeline)
