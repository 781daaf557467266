"""README, docs, notebooks: commands parse, Python compiles, links lead somewhere, and pages name
every public name, every field of the files that are written, and errors as they are raised."""

import argparse
import ast
import importlib.util
import inspect
import itertools
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import florence_jax as fj
from florence_jax.annotation import schema
from florence_jax.cli import train
from florence_jax.cli.main import main
from florence_jax.export.manifest import Encoder, Generator, Manifest
from florence_jax.results.row_writer import COLUMNS
from florence_jax.runtime.program_parser import ProgramParser
from train import features
from train.plan import __main__ as plan
from train.shapes import pretrain_vision

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / name
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "train/launch/README.md")
]
PAGES += sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)
PAGES += sorted((ROOT / "notebooks").glob("*.ipynb"))
# Pages whose Python runs from top to bottom, in one namespace.
RUN = (
    "README.md",
    "docs/start/quickstart.md",
    "docs/guides/one-image.md",
    "docs/guides/constrained.md",
    "docs/guides/encode-once.md",
    "docs/guides/confidences.md",
    "docs/concepts/how-the-model-works.md",
)

FOLDERS = "florence_jax|train|convert|tests|notebooks|docs"
IMPORT = r"^from ((?:florence_jax|train|convert)[\w.]*) import ([\w, ]+)"


def text_of(page):
    """Markdown; code cells of a notebook become blocks."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            language = "sh" if source.startswith("%%bash\n") else "python"
            source = f"```{language}\n{source.removeprefix('%%bash')}\n```"
        parts.append(source)
    return "\n\n".join(parts)


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.S | re.M)


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def commands(page):
    """The words of every command of ours in a page's shell blocks."""
    for block in blocks(page, "sh"):
        for words in lines_of_words(block):
            # Variables of the environment stand first.
            words = list(itertools.dropwhile(re.compile(r"[A-Z_]+=").match, words))
            # What the shell does with the output follows.
            words = list(itertools.takewhile(lambda word: not re.match(r"\d?>|\|", word), words))
            if "..." in words or not words:
                continue
            words = words[words.index("&&") + 1 :] if "&&" in words else words
            if words[0] == "florence-jax" or words[:2] == ["python", "-m"]:
                yield words


def lines_of_words(block):
    """The words of each command of a shell block; a quoted word may hold line ends."""
    begun = ""
    for line in block.replace("\\\n", " ").splitlines():
        begun += line
        try:
            yield shlex.split(begun, comments=True)
            begun = ""
        except ValueError:
            begun += "\n"
    assert not begun, f"a quote is not closed: {begun}"


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
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not re.match(r"\w+:", target):
            assert (page.parent / target).exists(), f"{name_of(page)} links {target}"
    for path in re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", text):
        assert (ROOT / path).exists(), f"{name_of(page)} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_compiles_and_its_names_exist(page):
    for block in blocks(page, "python"):
        compile(block, name_of(page), "exec")
        for name in re.findall(r"\bfj\.([A-Za-z]\w*)", block):
            assert name in fj.__all__, f"{name_of(page)}: fj.{name}"
        for module, names in re.findall(IMPORT, block, re.M):
            for name in re.sub(r" as \w+", "", names).split(", "):
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


def test_the_api_page_has_every_public_name():
    page = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    entries = re.findall(r"^\.\. auto(?:class|function|exception):: (\w+)$", page, re.M)
    assert sorted(entries) == sorted(fj.__all__)


def test_pages_of_the_library_name_what_exists():
    """The page `others` shows packages that no page names, so that none is missing."""
    for page in (ROOT / "docs/reference/library").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"florence-modules:: (florence_jax[\w.]*)", text):
            assert importlib.util.find_spec(name), f"{name_of(page)} names {name}"


def keys(value):
    """The names of the fields of a JSON value, those of a mapping by data left out."""
    if isinstance(value, list):
        yield from itertools.chain.from_iterable(map(keys, value))
    elif isinstance(value, dict):
        for name, inner in value.items():
            if re.fullmatch(r"[a-z_0-9]+", name):
                yield name
                if name not in ("decoding", "image", "software", "files", "parameters"):
                    yield from keys(inner)
            else:
                yield from keys(inner)


def test_the_page_of_file_formats_has_every_field(tmp_path):
    scene = next((ROOT / "florence_jax/assets/shapes/scenes/test").glob("*.png"))
    tasks = ["--task", "<OD>", "--task", "<OPEN_VOCABULARY_DETECTION>circle", "--model", "shapes"]
    limit = ["--max-new-tokens", "60", "--workers", "0", "--quiet"]
    main(["predict", str(scene), *tasks, *limit, "--output-dir", str(tmp_path / "run")])
    main(["convert", str(scene.parents[2]), str(tmp_path / "saved"), "--quiet"])
    written = set(COLUMNS)
    for file in (tmp_path / "run/run.json", tmp_path / "saved/manifest.json"):
        written |= set(keys(json.loads(file.read_text(encoding="utf-8"))))
    for block in (tmp_path / "run").glob("block-*.jsonl"):
        for line in block.read_text(encoding="utf-8").splitlines():
            written |= set(keys(json.loads(line)))
    assert {"bboxes_scores", "ids_sha256", "parameters"} <= written
    for kind in (schema.Text, schema.Region, schema.OCRLine, schema.Phrase, schema.Annotation,
                 Manifest, Encoder, Generator):  # fmt: skip
        written |= set(kind.__dataclass_fields__)
    page = (ROOT / "docs/reference/file-formats.md").read_text(encoding="utf-8")
    code = " ".join(re.findall(r"`([^`\n]+)`", page))
    assert not {name for name in written if not re.search(rf"\b{name}\b", code)}


def test_errors_of_the_troubleshooting_page_are_raised():
    texts = set()
    for folder in ("florence_jax", "train"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.add(node.value)
    quoted = blocks(ROOT / "docs/guides/troubleshooting.md", "text")
    parts = [one.strip() for text in quoted for one in text.split("...")]
    assert len(quoted) > 10
    assert not [one for one in parts if one and not any(one in text for text in texts)]


def test_diagrams_are_of_this_code():
    sys.path.insert(0, str(ROOT / "docs/_extensions"))
    drawings = importlib.import_module("diagrams").diagrams()
    sys.path.pop(0)
    for name, drawing in drawings.items():
        assert (ROOT / "docs/_static" / name).read_text(encoding="utf-8") == drawing, name


def test_the_documentation_is_small():
    files = [file for file in (ROOT / "docs").rglob("*") if file.is_file()]
    size = sum(
        file.stat().st_size
        for file in files
        if not {"_build", "jupyter_execute", "__pycache__"} & {*file.parts}
    )
    assert size < 3 * 2**20
