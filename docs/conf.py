"""How Sphinx builds the site. `make docs` first writes the pages into a folder (`docs.generator`)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(_REPOSITORY))

project = "scaling"
author = "the authors of scaling"
found = re.search(r'^version = "(.+)"$', (_REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
release = found[1] if found else ""

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "docs.generator.extension"]
nitpicky = True  # a reference to a name that does not exist is a warning, and with -W an error
default_role = "code"
smartquotes = False  # what is shown may be typed

myst_heading_anchors = 4  # links to headings are those of GitHub
myst_enable_extensions = ["attrs_block"]

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of PyTorch are written in another markup
autodoc_preserve_defaults = True
autodoc_type_aliases = {"Json": "Json"}  # by its name: it contains itself
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries = False  # each page carries all of the contents: with every method in it, a build takes minutes

html_theme = "furo"
html_title = f"scaling {release}"
html_static_path = [str(_REPOSITORY / "docs/static")]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
