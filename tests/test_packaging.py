"""The wheel holds the library alone and answers in a fresh environment that has no torch."""

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from florence_jax.demo.bundled_model import held_out_scenes
from tests.random_pipeline import random_image
from tests.shared_data import needs_shared
from tests.small_checkpoint import write_small_checkpoint

ROOT = Path(__file__).resolve().parents[1]


def run(*command, **options):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """The `bin` folder of an environment with the wheel and what it requires, no extras."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=True)
    binaries = folder / "bin"
    run(binaries / "pip", "install", "--quiet", wheel)
    return binaries


def test_the_wheel_holds_florence_jax_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"florence_jax"}
    library = {str(path.relative_to(ROOT)) for path in (ROOT / "florence_jax").rglob("*.py")}
    assert library <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_predicts_without_torch(bare, tmp_path):
    code = "import importlib.util as u; assert u.find_spec('torch') is None"
    run(bare / "python", "-c", code)
    random_image().save(tmp_path / "scene.png")
    done = run(
        bare / "florence-jax",
        "predict",
        "scene.png",
        *("--task", "<OD>", "--model", "shapes", "--max-new-tokens", "12", "--quiet"),
        cwd=tmp_path,
    )
    row = json.loads(done.stdout)
    assert set(row["answers"][0]["result"]["<OD>"]) == {"bboxes", "labels", "scores"}


def test_the_wheel_carries_the_demonstration(bare, tmp_path):
    picture = ROOT / "florence_jax/assets/shapes/scenes/test/000200.png"
    words = next(row["suffix"] for row in held_out_scenes() if row["prefix"] == "<OCR>")
    done = run(
        bare / "florence-jax",
        *("predict", picture, "--task", "<OCR>", "--model", "shapes", "--beams", "1", "--quiet"),
        cwd=tmp_path,
    )
    assert json.loads(done.stdout)["answers"][0]["result"]["<OCR>"] == words


@needs_shared
def test_reads_a_checkpoint_without_torch(bare, tmp_path):
    write_small_checkpoint(tmp_path / "checkpoint")
    random_image().save(tmp_path / "scene.png")
    done = run(
        bare / "florence-jax",
        "predict",
        "scene.png",
        *("--task", "<CAPTION>", "--model", "./checkpoint", "--max-new-tokens", "8", "--quiet"),
        cwd=tmp_path,
    )
    assert isinstance(json.loads(done.stdout)["answers"][0]["result"]["<CAPTION>"], str)
