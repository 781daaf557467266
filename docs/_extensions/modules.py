"""The directive `florence-modules`: every public name of a package, module by module."""

import importlib
import inspect
import itertools
import pkgutil
import re
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import florence_jax

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "docs/reference/library"
# What users of the library have no use for, and what other pages describe.
_INTERNAL = {"__init__", "__main__", "__pycache__", "assets", "cli", "datasets", "demo",
             "generation_config", "generation_keys", "hf_config", "integrations", "ops",
             "runtime", "serving"}  # fmt: skip
# These have their entries on the page of `florence_jax`.
_TOP = {id(getattr(florence_jax, name)) for name in florence_jax.__all__}


class Modules(SphinxDirective):
    """A section for each module of a package, or for a module itself, by autodoc.

    Modules are found when the page is built, so that the page is complete wherever code moves.
    Without a name, the packages are shown that no page of the library names.
    """

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        lines = []
        packages = self.arguments or [f"florence_jax.{name}" for name in without_page()]
        for name in itertools.chain.from_iterable(map(modules, packages)):
            names = ", ".join(public_names(name))
            lines += [f"{name}\n{'-' * len(name)}\n", f".. automodule:: {name}"]
            lines += [f"   :members: {names}\n" if names else "   :no-members:\n"]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def without_page() -> list[str]:
    """Packages and modules of the library that no page names."""
    text = "".join(page.read_text(encoding="utf-8") for page in sorted(LIBRARY.glob("*.md")))
    shown = set(re.findall(r"florence-modules:: florence_jax\.(\w+)", text))
    found = {path.stem for path in (ROOT / "florence_jax").iterdir()}
    return sorted(found - shown - _INTERNAL)


def modules(name: str) -> list[str]:
    """The module, and all modules of a package."""
    module = importlib.import_module(name)
    inner = pkgutil.walk_packages(getattr(module, "__path__", []), f"{name}.")
    return [name, *sorted(one.name for one in inner)]


def public_names(name: str) -> list[str]:
    """Public classes and functions that a module defines, but for those of `florence_jax`."""
    module = importlib.import_module(name)
    return [
        member
        for member, value in vars(module).items()
        if not member.startswith("_")
        and id(value) not in _TOP
        and (inspect.isclass(value) or inspect.isroutine(value))
        and getattr(value, "__module__", None) == name
    ]


def unresolved(app, env, node, contnode):
    """The text of a reference to a name that exists in the code and has no entry; else None."""
    del app, env
    target = node.get("reftarget", "")
    if not target.startswith("florence_jax."):
        return None
    try:
        pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError):
        return None
    return contnode


def as_restructured_text(app, what, name, obj, options, lines) -> None:
    """Docstrings are prose with code in backticks: mark up what reStructuredText reads otherwise.

    Of a module's, the first paragraph is shown.
    """
    del app, name, obj, options
    if what == "module" and "" in lines:
        del lines[lines.index("") :]
    for number, line in enumerate(lines):
        line = re.sub(r"(?<![\w`])\*(?=\.)", r"\\*", line)
        line = re.sub(r"(`[^`\s][^`]*`)(?=\w)", r"\1\\ ", line)
        following = lines[number + 1 : number + 3]
        if line.endswith(":") and len(following) == 2 and not following[0]:
            indent = len(line) - len(line.lstrip())
            if following[1].startswith(" " * (indent + 1)):
                line += ":"
        lines[number] = line


def setup(app) -> dict:
    """Register the directive with Sphinx."""
    app.add_directive("florence-modules", Modules)
    # Before napoleon, which knows the sections of Google's style.
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)
    app.connect("missing-reference", unresolved)
    return {"parallel_read_safe": True, "version": "1"}
