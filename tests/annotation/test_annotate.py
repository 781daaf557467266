"""The engine from pictures to files, with a tiny model: answers mean nothing, but are whole."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from florence_jax.annotation.job import AnnotateJob, find_image_folder
from florence_jax.annotation.noun_phrase_extractors import RuleBasedExtractor
from florence_jax.annotation.schema import from_row, read_annotations
from florence_jax.annotation.settings import AnnotateSettings, FilterSettings
from florence_jax.annotation.to_examples import to_examples
from florence_jax.batch.blocks import RunOptions
from florence_jax.batch.run import run_blocks
from florence_jax.batch.verify import verify_output
from florence_jax.cli import annotate
from florence_jax.cli.annotate_options import annotate_arguments
from florence_jax.cli.main import command_parser, main
from florence_jax.processing import ImageConfig
from tests.inference.counting import counted_images
from tests.random_pipeline import random_pipeline

# Random weights are sure of nothing: everything passes that is not broken.
OPEN = FilterSettings(
    text_score=(0.0, 0.0, 0.0), box_score=0.0, label_score=0.0, line_score=0.0, least_complexity=0
)
ROWS = 4


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    (folder / "sub").mkdir()
    for name, shape in (("a.png", (60, 80)), ("b.png", (48, 48)), ("sub/c.png", (90, 40))):
        Image.fromarray(draw.integers(0, 255, (*shape, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def pipeline():
    return dataclasses.replace(random_pipeline(), image_config=ImageConfig(size=(64, 64)))


@pytest.fixture(scope="module")
def job(pipeline):
    settings = AnnotateSettings(levels=("brief",), polygons="all", filters=OPEN)
    decoding = dataclasses.replace(pipeline.generation, num_beams=1, max_new_tokens=24)
    return AnnotateJob(
        pipeline, settings, RuleBasedExtractor(), generation=decoding, batch_size=ROWS
    )


@pytest.fixture(scope="module")
def output(job, pictures, tmp_path_factory):
    """A run of one block, and how the device was asked."""
    directory = tmp_path_factory.mktemp("output")
    asked = []
    programs = type(job._pipeline.programs)
    real = programs.generate

    def generate(self, image_features, input_ids, *rest):
        asked.append((len(image_features), input_ids.shape))
        return real(self, image_features, input_ids, *rest)

    with counted_images() as encoded, pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "generate", generate)
        run_blocks(
            find_image_folder([pictures]), job, directory, RunOptions(workers=0), progress=False
        )
    return directory, encoded, asked


def test_each_picture_is_encoded_once_and_the_device_gets_full_batches(output):
    _, encoded, asked = output
    assert encoded == [ROWS]  # three pictures, one call
    assert {rows for rows, _ in asked} == {ROWS}
    # Caption, detection, dense captions and written text of 3 pictures, in 16 or 32 tokens:
    # 12 questions are 3 or 4 batches. Grounding, completion and outlines take a few each.
    assert len(asked) < 30


def test_answers_are_whole_and_within_the_picture(output, pictures):
    found = {one.id: one for one in read_annotations(output[0])}
    assert sorted(found) == ["a.png", "b.png", "sub/c.png"]
    for one in found.values():
        with Image.open(pictures / one.image) as picture:
            assert picture.size == one.size
        assert [text.level for text in one.texts] == ["brief"]
        edges = np.array([*one.size, *one.size])
        for part in (*one.regions, *one.phrases):
            box = np.array(part.box)
            assert (box >= 0).all()
            assert (box <= edges).all()
            assert (box[2:] > box[:2]).all()
            assert 0 < part.score <= 1
        assert all(region.label and 0 < region.label_score <= 1 for region in one.regions)
    assert any(one.regions for one in found.values())
    assert any(one.ocr for one in found.values())
    # Random weights leave boxes without a name, which no list may pass over.
    assert any(one.lost for one in found.values())
    named = [dataclasses.replace(one, lost={}) for one in found.values()]
    asked = [question for one in named for question in to_examples(one)]
    assert {"<CAPTION>", "<OD>", "<OCR_WITH_REGION>"} <= {question.task for question in asked}


def test_the_run_is_verified_and_goes_on_where_it_was_stopped(output, job, pictures, tmp_path):
    directory = output[0]
    assert verify_output(directory, progress=False).is_complete
    # Blocks of one picture give, after a stop, what they give at once.
    source = find_image_folder([pictures])
    run_blocks(source, job, tmp_path, RunOptions(block_size=1, workers=0), progress=False)
    blocks = sorted(tmp_path.glob("block-*.jsonl"))
    before = [file.read_bytes() for file in blocks]
    for file in (blocks[1], *tmp_path.glob(f"*{blocks[1].name}*")):
        file.unlink(missing_ok=True)
    summary = run_blocks(source, job, tmp_path, RunOptions(workers=0), progress=False)
    assert summary.rows == 1
    assert [file.read_bytes() for file in blocks] == before


def test_filters_work_between_the_stages(pipeline, pictures):
    """What is taken out is neither asked about nor kept, and is counted."""
    strict = dataclasses.replace(OPEN, box_score=1.0)
    settings = AnnotateSettings(levels=(), ocr=False, polygons="all", filters=strict)
    decoding = dataclasses.replace(pipeline.generation, num_beams=1, max_new_tokens=24)
    job = AnnotateJob(
        pipeline, settings, RuleBasedExtractor(), generation=decoding, batch_size=ROWS
    )
    from florence_jax.batch.job import DecodedItem

    items = find_image_folder([pictures]).read(0, 1)
    pixels = np.zeros((64, 64, 3), np.uint8)
    (row,) = job([DecodedItem(item=item, size=(80, 60), pixels=pixels) for item in items])
    one = from_row(row)
    assert one.regions == ()
    assert one.rejected["regions: score"] > 0
    assert all(reason.startswith("regions: ") for reason in one.rejected)


class TestCommand:
    def test_from_pictures_to_everything(self, pipeline, pictures, tmp_path, capsys, monkeypatch):
        # The model and the sizes whose programs are compiled already.
        monkeypatch.setattr(annotate, "load_pipeline", lambda options, progress: pipeline)
        out = tmp_path / "out"
        words = ["annotate", str(pictures), "--output", str(out), "--model", "random",
                   "--only", "regions", "--no-completion", "--max-new-tokens", "24", "--beams", "1",
                   "--threshold", "label_score=0", "--threshold", "box_score=0",
                   "--workers", "0", "--batch-size", str(ROWS), "--analyser", "rules",
                   "--export", "rows", "--export", "coco", "--gallery", "2", "--quiet"]  # fmt: skip
        assert main([*words, "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert "3 images below" in said
        assert "asked: regions" in said
        assert not out.exists()
        (pictures / "broken.png").write_bytes(b"no picture")
        try:
            assert main(words) == 1
        finally:
            (pictures / "broken.png").unlink()
        names = {file.name for file in out.iterdir()}
        assert {"run.json", "statistics.json", "plots", "gallery", "rows.jsonl",
                "instances.coco.json", "captions.coco.json"} <= names  # fmt: skip
        counted = json.loads((out / "statistics.json").read_text())
        assert counted["images"] == 3
        (call,) = counted["throughput"]
        assert (call["images"], call["annotations"]) == (4, counted["annotations"])
        assert call["annotations"] > 0
        assert call["annotations_per_second"] == pytest.approx(
            call["annotations"] / call["seconds"], rel=0.01
        )
        assert 0 < call["device_busy"] <= 1
        assert (call["device"], call["devices"]) == ("cpu", 1)
        assert main(["verify-output", str(out), "--quiet"]) == 0
        merged = tmp_path / "merged"
        assert main(["annotate", "--merge", str(out), str(out), "--output", str(merged)]) == 0
        assert "of 3 images" in capsys.readouterr().out
        again = [dataclasses.replace(one, rejected={}) for one in read_annotations(out)]
        assert [one.id for one in read_annotations(merged)] == [one.id for one in again]

    def test_a_round_of_a_loop_is_asked_alike(self, pictures):
        """Every option of an annotation reaches the processes of a loop."""
        given = ["annotate", str(pictures), "--output", "x", "--model", "first", "--only", "ocr",
                 "--no-grounding", "--no-completion", "--proposals", "--polygons", "all",
                 "--threshold", "overlap=0.5", "--analyser", "rules", "--dtype", "bfloat16",
                 "--matmul-precision", "high",
                 "--quantize", "int8",
                 "--beams", "2", "--max-new-tokens", "9", "--unconstrained", "--batch-size", "3",
                 "--block-size", "5", "--workers", "1", "--export", "rows", "--gallery", "4",
                 "--mesh", "data=-1", "--rules", "tp",
                 "--image-root", str(pictures), "--quiet"]  # fmt: skip
        options = command_parser().parse_args(given)
        own = {"output", "model", "process_index", "process_count"}
        loop = {"merge", "fusion", "captions", "refine", "rounds", "checkout", "also", "words"}
        refused = {"revision", "processor", "compat", "weights", "dry_run", "extend"}
        unset = [
            name
            for name, value in vars(options).items()
            if name not in own | loop | refused and value in (None, [], False)
        ]
        assert unset == []  # an option that is new belongs into this test
        passed = command_parser().parse_args(
            annotate_arguments(options, "second", pictures / "out")
        )
        assert {name: value for name, value in vars(passed).items() if name not in own} == {
            name: value for name, value in vars(options).items() if name not in own
        }
        assert (passed.model, passed.output) == ("second", pictures / "out")
        assert (passed.process_index, passed.process_count) == (0, 1)

    def test_processes_share_the_blocks_and_one_counts(
        self, pipeline, pictures, tmp_path, capsys, monkeypatch
    ):
        monkeypatch.setattr(annotate, "load_pipeline", lambda options, progress: pipeline)
        out = tmp_path / "out"
        words = ["annotate", str(pictures), "--output", str(out), "--model", "random",
                 "--only", "regions", "--no-completion", "--max-new-tokens", "24", "--beams", "1",
                 "--workers", "0", "--batch-size", str(ROWS), "--analyser", "rules",
                 "--block-size", "1", "--process-count", "2"]  # fmt: skip
        assert main([*words, "--process-index", "1", "--dry-run"]) == 0
        assert "process 1 of 2 begins with 1 blocks, 1 images" in capsys.readouterr().out
        # Alone, it does what is its own, and then what nobody else is at work on.
        assert main([*words, "--process-index", "1"]) == 0
        assert "3 images in" in capsys.readouterr().err
        assert sorted(file.name for file in out.glob("block-*.jsonl")) == [
            f"block-{number:05}-of-00003.jsonl" for number in range(3)
        ]
        assert not (out / "statistics.json").exists()
        assert main([*words, "--process-index", "0"]) == 0
        said = capsys.readouterr()
        assert "nothing was left to do\n3 of 3 blocks are in" in said.err
        assert "of 3 images" in said.out
        counted = json.loads((out / "statistics.json").read_text())
        assert counted["images"] == 3
        assert [call["images"] for call in counted["throughput"]] == [3]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "name the images to annotate"),
            (["x.png", "--merge", "a"], "--merge takes annotations"),
            (["PICTURES", "--threshold", "sharpness=1"], "no threshold 'sharpness'"),
            (["PICTURES", "--threshold", "most_objects=a"], "most_objects=8,16,40"),
            (["PICTURES", "--refine", "none.py"], "there is no recipe"),
            (["--merge", "PICTURES"], "holds no annotations"),
            (["--merge", "PICTURES", "--process-index", "0"], "the work of one process"),
            (["PICTURES", "--process-index", "1"], "belong together"),
            (["PICTURES", "--process-index", "2", "--process-count", "2"], "process 2 of 2"),
            (["PICTURES", "--rules", "tp"], "--rules belongs to --mesh"),
            (["PICTURES", "--block-size", "0"], "a block of 0 items"),
        ],
    )
    def test_what_cannot_be_done_is_said(self, pictures, tmp_path, capsys, arguments, message):
        given = [str(pictures) if word == "PICTURES" else word for word in arguments]
        assert (
            main(["annotate", *given, "--output", str(tmp_path / "out"), "--model", "random"]) == 2
        )
        assert message in capsys.readouterr().err


def test_scores_are_those_of_the_pipeline(output, pipeline, pictures, tmp_path):
    """The boxes and confidences that `pipe(...)` gives for the same pictures."""
    names = ["a.png", "b.png", "sub/c.png"]
    # A fourth, so that the batch has the size that is compiled already.
    shutil.copy(pictures / "a.png", tmp_path / "d.png")
    results = pipeline(
        [*(pictures / name for name in names), tmp_path / "d.png"],
        "<OD>",
        constrained=True,
        num_beams=1,
        max_new_tokens=24,
        batch_size=ROWS,
    )
    found = {one.id: one for one in read_annotations(output[0])}
    compared = 0
    for name, result in zip(names, results, strict=False):
        value = result["<OD>"]
        expected = dict(zip(map(tuple, np.round(value["bboxes"], 3)), value["scores"], strict=True))
        for region in found[name].regions:
            if region.box in expected:
                assert region.score == pytest.approx(expected[region.box], abs=1e-4)
                compared += 1
    assert compared >= 3
