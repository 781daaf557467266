"""`python -m convert.verify`: what it prints and writes, its exit status, and its arithmetic."""

import json

import numpy as np
import pytest
from PIL import Image

from convert.verify import __main__ as verify
from convert.verify import report
from convert.verify.metrics import (
    Row,
    first_over,
    log_softmax,
    stage_row,
    token_agreement,
)
from tests.checkpoint.generated import tiny_config, tiny_tensors, write_directory
from tests.shared_data import needs_shared, shared_path
from tests.small_checkpoint import write_small_checkpoint

pytest.importorskip("torch", reason="needs the extra 'torch'")

QUICK = ["--dtype", "float32", "--size", "48", "--new-tokens", "0"]


def test_a_checkpoint_on_noise(tmp_path, capsys):
    """The table, the JSON and the picture of an untied original checkpoint with an output bias."""
    tensors = tiny_tensors()
    tensors["language_model.final_logits_bias"] += 1
    tensors["language_model.lm_head.weight"] = 2 * tensors["language_model.model.shared.weight"]
    source = write_directory(tmp_path / "source", tensors, tiny_config())
    report, picture = tmp_path / "report.json", tmp_path / "errors.png"
    pytest.importorskip("matplotlib", reason="--plot needs matplotlib")
    files = ["--json", str(report), "--plot", str(picture)]
    assert verify.main([str(source), *QUICK, *files]) == 0

    printed = capsys.readouterr().out
    assert "float32: all 26 stages are within their tolerances" in printed
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1, "columns are aligned"
    found = json.loads(report.read_text())
    assert found["passed"] is True
    assert found["dtypes"]["float32"]["first_over"] is None
    rows = {row["stage"]: row for row in found["dtypes"]["float32"]["rows"]}
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(rows)
    assert rows["vision/stage2/block1/channel"]["relative"] == rows["vision/stage2"]["relative"]
    assert rows["logits"]["top1"] == 1.0
    assert rows["logits"]["kl"] < 1e-9
    assert rows["decoder/layer1"]["cosine"] == pytest.approx(1)
    with Image.open(picture) as image:
        assert min(image.size) > 400


@needs_shared
def test_a_picture_and_a_prompt(tmp_path, capsys):
    write_small_checkpoint(tmp_path)
    size = {"height": 96, "width": 64}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": size}))
    image = shared_path("images", "chelsea.jpg")
    arguments = [str(tmp_path), *QUICK, "--image", str(image), "--prompt", "<OD>"]
    assert verify.main(arguments) == 0
    assert f"{image.name}, '<OD>'" in capsys.readouterr().out


@needs_shared
def test_stored_outputs_of_the_original(tmp_path, capsys):
    with np.load(shared_path("tiny", "reference_original.npz")) as archive:
        stored = {key: archive[key] for key in archive if key.startswith("s224/")}
    source = str(shared_path("tiny", "original"))

    def run():
        np.savez(tmp_path / "stored.npz", **stored)
        npz = str(tmp_path / "stored.npz")
        return verify.main([source, "--reference", "original-npz", "--npz", npz])

    assert run() == 0
    printed = capsys.readouterr().out
    assert "s224 beam-3 scores" in printed
    assert "float32: all 7 stages are within their tolerances" in printed

    for name in ("greedy", "beam3"):  # tokens were compared above
        del stored[f"s224/{name}"]
    stored["s224/encoder_last_hidden_state"] *= 1.001
    assert run() == 1
    assert "the first is s224 encoder/layer1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["random:huge"], "no preset 'huge'"),
        (["nowhere"], "neither an existing directory nor a Hugging Face id"),
        (["random:tiny", "--reference", "original-npz"], "needs --npz FILE"),
        (["random:tiny", "--npz", "a.npz"], "--npz is for --reference original-npz"),
        (
            ["random:tiny", "--reference", "original-npz", "--npz", "a.npz"],
            "a.npz is not a readable .npz",
        ),
        (
            ["random:tiny", "--reference", "original-npz", "--npz", "a", "--dtype", "float16"],
            "cannot judge halves",
        ),
        (["random:tiny", "--new-tokens", "-1"], "expected 0 or more"),
        (["random:tiny", "--image", "nowhere.png"], "nowhere.png"),
    ],
)
def test_a_wrong_call_exits_with_2_and_says_why(arguments, expected, capsys):
    assert verify.main(arguments) == 2
    assert expected in capsys.readouterr().err


def test_argparse_refuses_with_2():
    with pytest.raises(SystemExit) as caught:
        verify.main(["random:tiny", "--size", "0"])
    assert caught.value.code == 2


def test_a_difference_exits_with_1_and_names_the_first_stage(monkeypatch, capsys):
    rows = [
        Row(stage="a", relative=0.0, error=1e-7, bound=1e-6, own_error=1e-7, own_bound=1e-6),
        Row(stage="b", relative=0.1, error=1e-7, bound=1e-6, own_error=1e-2, own_bound=1e-6),
        Row(stage="c", relative=0.1, error=1e-2, bound=1e-6, own_error=1e-7, own_bound=1e-6),
    ]
    monkeypatch.setattr(verify, "compare_with_native", lambda *_, **__: {"float32": rows})
    assert verify.main(["random:tiny", *QUICK]) == 1
    printed = capsys.readouterr().out
    assert "2 of 3 stages over, the first is b: alone it is 0.01 off the truth" in printed
    marks = [line.split("|")[-2].strip() for line in printed.splitlines() if line[:1] == "|"]
    assert marks[2:] == ["", "FIRST OVER", "over"]


def test_without_matplotlib_the_plot_says_what_to_install(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        report.plot({"float32": []}, "title", tmp_path / "a.png")


def test_a_nan_is_over_unless_pytorchs_own_result_is_none_better():
    right = np.ones((1, 3))
    bad = np.array([[1, np.inf, np.nan]])

    def row(ours, theirs):
        return stage_row(
            "logits", "float16", ours=ours, theirs=theirs, truth=right,
            ours_alone=ours, theirs_alone=theirs,
        )  # fmt: skip

    assert not row(right, right).is_over
    assert row(bad, right).is_over
    assert not row(bad, bad).is_over
    assert first_over([row(right, right), row(bad, right)]) is not None


def test_predictions_are_compared_as_distributions():
    theirs = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]]))
    ours = np.log(np.array([[[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]]]))
    row = stage_row(
        "logits", "float32", ours=ours, theirs=theirs + 3, truth=theirs,
        ours_alone=ours, theirs_alone=theirs,
    )  # fmt: skip
    assert row.top1 == 0.5
    assert row.kl == pytest.approx(0.5 * (0.5 * np.log(2) - 0.25 * np.log(2)))
    assert np.exp(log_softmax(theirs)).sum(-1) == pytest.approx(1)


def test_token_agreement_counts_what_only_one_has_as_different():
    ours, theirs = np.array([[2, 0, 5]]), np.array([[2, 0, 6, 2]])
    assert token_agreement(ours, theirs) == 0.5
    assert token_agreement(ours, ours) == 1.0
