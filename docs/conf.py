"""Sphinx configuration. `make docs` builds offline, with warnings as errors.

The notebooks are pages of the site. Sphinx reads only what lies below this folder, so they are copied in
before the build; they are never executed here, since their outputs are committed and stamped.
"""

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

project = "minivllm"
author = "the minivllm authors"
copyright = "2026, the minivllm authors"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_design",
    "sphinx-mathjax-offline",
]
# The page of solutions is for teachers, who read it in the repository: on the site, students would find it.
exclude_patterns = ["_build", "_static", "requirements.txt", "instructor/solutions.md"]
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": False, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
# Most literal blocks are pictures: coloured as Python, every number and every "in" would stand out.
highlight_language = "none"
# Modules say "``x``" in single backquotes, as in Markdown.
default_role = "code"
napoleon_google_docstring = True

html_theme = "furo"
html_title = "minivllm"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False


def copy_notebooks() -> None:
    """Put the committed notebooks where Sphinx looks for pages."""
    target = HERE / "notebooks"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        shutil.copy(path, target / path.name)


copy_notebooks()
