"""README's Python runs as printed: with the bundled model instead of published weights."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.S | re.M)
# Need other packages and data, or minutes of compilation.
ELSEWHERE = ("ray.data", "load_exported", "jax.distributed")


def prepared(block):
    """The block with the bundled model in place of a hub id."""
    return re.sub(r"\"(?:microsoft|florence-community)/[\w.-]+\"", '"shapes"', block)


def runnable():
    return [block for block in BLOCKS if not any(name in block for name in ELSEWHERE)]


@pytest.fixture(scope="module")
def namespace(tmp_path_factory):
    """What earlier blocks define, and the pictures that README names."""
    folder = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    pictures = set(re.findall(r"\"([\w/-]+\.(?:jpg|png))\"", "".join(BLOCKS)))
    for name in pictures:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (240, 320, 3), np.uint8)).save(folder / name)
    return folder, {}


def test_there_is_python_to_run():
    assert len(runnable()) >= 3


@pytest.mark.parametrize("number", range(len(runnable())))
def test_a_block_runs(number, namespace, monkeypatch):
    if "fj.Processor" not in "".join(BLOCKS):
        pytest.skip("README does not say yet where pixel_values and input_ids come from")
    folder, names = namespace
    block = prepared(runnable()[number])
    monkeypatch.chdir(folder)
    if number and "import florence_jax" not in block and not names:
        pytest.skip("the block goes on from an earlier one, which was not run")
    exec(compile(block, f"README.md, Python block {number + 1}", "exec"), names)
