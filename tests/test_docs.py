"""README and docs: commands parse, links lead somewhere, and Python blocks run or compile."""

import argparse
import importlib
import inspect
import itertools
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from florence_jax.cli import train
from florence_jax.cli.main import main
from florence_jax.runtime.program_parser import ProgramParser
from train import features
from train.plan import __main__ as plan
from train.shapes import pretrain_vision

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / name
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "train/launch/README.md")
] + sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)
# Pages whose Python runs from top to bottom, in one namespace.
RUN = ("README.md", "docs/guides/one-image.md", "docs/guides/constrained.md")

FOLDERS = "florence_jax|train|convert|tests|notebooks|docs"
IMPORT = r"^from (florence_jax[\w.]*) import ([\w, ]+)"


def blocks(page, language):
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def commands(page):
    """The words of every command of ours in a page's shell blocks."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            # Variables of the environment stand first.
            words = list(itertools.dropwhile(re.compile(r"[A-Z_]+=").match, words))
            words = list(itertools.takewhile(lambda word: word != ">", words))
            if "..." in words or not words:
                continue
            words = words[words.index("&&") + 1 :] if "&&" in words else words
            if words[0] == "florence-jax" or words[:2] == ["python", "-m"]:
                yield words


class Parsed(BaseException):
    """Raised where a command would begin its work."""


def parsing(function):
    def parse(*arguments, **names):
        function(*arguments, **names)
        raise Parsed

    return parse


@pytest.mark.parametrize(
    "words",
    [pytest.param(words, id=" ".join(words)) for page in PAGES for words in commands(page)],
)
def test_a_command_parses(words, tmp_path, monkeypatch):
    (tmp_path / "train").symlink_to(ROOT / "train")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", words[2:] if words[0] == "python" else words)
    for parser in (argparse.ArgumentParser, ProgramParser):
        monkeypatch.setattr(parser, "parse_args", parsing(parser.parse_args))
    for module in (train, features):
        monkeypatch.setattr(module, "parse_program_flags", parsing(module.parse_program_flags))
    monkeypatch.setattr(plan, "_requests", parsing(plan._requests))
    monkeypatch.setattr(pretrain_vision, "load_config", parsing(pretrain_vision.load_config))
    if words[:2] == ["florence-jax", "train"]:
        run, arguments = train.main, words[2:]
    elif words[0] == "florence-jax":
        run, arguments = main, words[1:]
    else:
        name, arguments = words[2], words[3:]
        if name.split(".")[0] not in ("train", "convert", "tests"):
            pytest.skip("a module of another project")
        run = importlib.import_module(_module_of(name)).main
    with pytest.raises(Parsed):
        run(arguments) if inspect.signature(run).parameters else run()


def _module_of(name):
    path = ROOT / name.replace(".", "/")
    return f"{name}.__main__" if path.is_dir() else name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_paths_exist(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not re.match(r"\w+:", target):
            assert (page.parent / target).exists(), f"{name_of(page)} links {target}"
    for path in re.findall(
        r"`((?:florence_jax|train|convert|tests|notebooks|docs)/[\w./-]+)`", text
    ):
        assert (ROOT / path).exists(), f"{name_of(page)} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_compiles_and_its_names_exist(page):
    import florence_jax

    for block in blocks(page, "python"):
        compile(block, name_of(page), "exec")
        for name in re.findall(r"\bfj\.(\w+)", block):
            assert name in florence_jax.__all__, f"{name_of(page)}: fj.{name}"
        for module, names in re.findall(
            r"^from (florence_jax[\w.]*) import ([\w, ]+)", block, re.M
        ):
            for name in names.split(", "):
                assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


@pytest.fixture(scope="module")
def namespace(tmp_path_factory):
    """A folder with the pictures that the pages name, and the names that earlier blocks define."""
    folder = tmp_path_factory.mktemp("docs")
    rng = np.random.default_rng(0)
    text = "".join("".join(blocks(ROOT / page, "python")) for page in RUN)
    for name in set(re.findall(r"\"([\w/-]+\.(?:jpg|png))\"", text)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (240, 320, 3), np.uint8)).save(folder / name)
    return folder, {}


@pytest.mark.parametrize("page", RUN)
def test_python_runs_with_the_bundled_model(page, namespace, monkeypatch):
    folder, names = namespace
    monkeypatch.chdir(folder)
    for number, block in enumerate(blocks(ROOT / page, "python"), start=1):
        block = re.sub(r"\"(?:microsoft|florence-community)/[\w.-]+\"", '"shapes"', block)
        exec(compile(block, f"{page}, Python block {number}", "exec"), names)


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
