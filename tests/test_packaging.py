"""The wheel holds the library alone and answers in a fresh environment that has no torch."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from florence_jax.demo import held_out_scenes
from florence_jax.model import Model, random_params_with_spread_logits
from tests.random_pipeline import random_image, small_pipeline
from tests.shared_data import needs_shared
from tests.small_checkpoint import write_small_checkpoint
from tests.training.small import CONFIG

ROOT = Path(__file__).resolve().parents[1]

RECIPE = """
from florence_jax.training.config import DataConfig, ModelConfig, TrainConfig
from florence_jax.training.data.sources import JsonlConfig
from florence_jax.training.settings import LoraConfig, OptimizerConfig

config = TrainConfig(
    directory="run",
    steps=1,
    batch_size=1,
    model=ModelConfig(start="base"),
    data=DataConfig(train=(JsonlConfig(path="rows.jsonl"),)),
    lora=LoraConfig(rank=2),
    optimizer=OptimizerConfig(learning_rate=0.1, schedule="constant"),
)
"""
# The adapter of that run, merged and beside the weights, changes the model, and in the same way.
APPLY = """
import numpy as np
import florence_jax as fj

def logits(**adapter):
    model, params = fj.load("base", **adapter)
    ids = np.ones((1, 4), np.int32)
    pixels = np.zeros((1, 16, 16, 3), np.float32)
    return model.logits(params, pixel_values=pixels, input_ids=ids, decoder_input_ids=ids)

plain, merged = logits(), logits(adapter="run/adapter")
beside = logits(adapter="run/adapter", merge_adapter=False)
np.testing.assert_allclose(merged, beside, atol=1e-4)
assert np.abs(merged - plain).max() > 0.01
# The adapter names its base, and is a model by itself.
pipeline = fj.Florence2Pipeline.from_pretrained("run/adapter")
answer = pipeline("scene.png", "<CAPTION>", max_new_tokens=4, num_beams=1)
assert isinstance(answer["<CAPTION>"], str)
"""


def smallest_pipeline():
    """The model of the training tests, whose step compiles in seconds, for 16 x 16 pixels."""
    text = dataclasses.replace(CONFIG.text, vocab_size=1285)
    config = dataclasses.replace(CONFIG, text=text, image_token_id=1284)
    params = random_params_with_spread_logits(config, 0)
    pipeline = small_pipeline(model=Model(config=config), params=params)
    size = dataclasses.replace(pipeline.image_config, size=(16, 16))
    return dataclasses.replace(pipeline, image_config=size)


def run(*command, cwd=None, **variables):
    """Run a command whose Python finds installed packages alone, with environment `variables`."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    words = [str(part) for part in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, env=env)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def install(binaries, requirement):
    # This pip serves the other environment, and leaves modules that no test imports uncompiled.
    pip = [sys.executable, "-m", "pip", "--python", binaries / "python"]
    run(*pip, "install", "--quiet", "--no-compile", requirement)


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
    venv.create(folder)
    binaries = folder / "bin"
    install(binaries, wheel)
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
    # The wheel carries the model and this image.
    picture = ROOT / "florence_jax/assets/shapes/scenes/test/000200.png"
    words = next(row["suffix"] for row in held_out_scenes() if row["prefix"] == "<OCR>")
    done = run(
        bare / "florence-jax",
        *("predict", picture, "--task", "<OCR>", "--model", "shapes", "--beams", "1", "--quiet"),
        cwd=tmp_path,
    )
    assert json.loads(done.stdout)["answers"][0]["result"]["<OCR>"] == words


def test_completion_names_the_extra_that_it_lacks(bare):
    done = run(bare / "florence-jax", "completion", "bash")
    assert "--save-images" in done.stdout
    assert "the script has no flags of train: training needs packages" in done.stderr


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


def test_converts_both_ways(bare, tmp_path):
    convert = functools.partial(run, bare / "florence-jax", "convert", "--quiet", cwd=tmp_path)
    convert("shapes", "ours")
    assert (tmp_path / "ours" / "manifest.json").is_file()
    convert("ours", "torch")
    shapes = load_file(ROOT / "florence_jax/assets/shapes/model.safetensors")
    back = load_file(tmp_path / "torch" / "model.safetensors")
    assert back.keys() == shapes.keys()
    for name, array in shapes.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


@pytest.fixture(scope="module")
def trainer(bare, wheel):
    """`bare` with the extra `train`. What must do without it is tested above."""
    install(bare, f"{wheel}[train]")
    return bare


def test_trains_an_adapter_and_applies_it_merged_or_not(trainer, tmp_path):
    smallest_pipeline().save_pretrained(tmp_path / "base")
    random_image().save(tmp_path / "scene.png")
    row = {"image": "scene.png", "prefix": "<CAPTION>", "suffix": "a red car"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "recipe.py").write_text(RECIPE)
    here = {"cwd": tmp_path, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    run(trainer / "florence-jax", "train", "--config", "recipe.py", **here)
    run(trainer / "python", "-c", APPLY, **here)
