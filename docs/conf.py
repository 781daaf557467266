"""Settings of the documentation: `sphinx-build -W -n docs docs/_build`."""

import shutil
import sys
from pathlib import Path

import florence_jax

ROOT = Path(__file__).resolve().parents[1]
# `train` is in the checkout alone, and the extension that reads the parsers is beside this file.
sys.path[:0] = [str(ROOT), str(Path(__file__).parent / "_extensions")]

# Sphinx reads what is below docs, and links between notebooks lead to the copies.
NOTEBOOKS = Path(__file__).parent / "notebooks"
shutil.rmtree(NOTEBOOKS, ignore_errors=True)
NOTEBOOKS.mkdir()
for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
    shutil.copy2(notebook, NOTEBOOKS)

project = "florence-jax"
author = "the florence-jax authors"
release = version = florence_jax.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "parsers",
    "modules",
]
# myst-nb leaves jupyter_execute beside the build.
exclude_patterns = ["_build", "_extensions", "jupyter_execute", "**.ipynb_checkpoints"]
html_theme = "sphinx_book_theme"
html_title = "florence-jax"
html_theme_options = {"show_navbar_depth": 1, "home_page_in_toc": True}

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# Notebooks are stored with their outputs, and tests/test_notebooks.py runs them.
nb_execution_mode = "off"

# In docstrings, what stands in backticks is code.
default_role = "code"
# A bare name that two modules define leads to one of them.
suppress_warnings = ["ref.python"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
# Types of other packages have no pages here, and the build needs no network.
nitpick_ignore_regex = [
    # A type alias, and errors that docstrings name without their module.
    ("py:class", r"florence_jax\.sharding\.rules\.Rules"),
    ("py:exc", r"\w+"),
    (
        "py:.*",
        r"(jax|jaxlib|flax|numpy|np|optax|PIL|orbax|grain|collections|pathlib|typing)(\..*)?",
    ),
    ("py:class", r"(?!florence_jax\.).*"),
    ("py:obj", r"(?!florence_jax\.).*"),
]
