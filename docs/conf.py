"""The site: pages in Markdown, notebooks as they were run, the reference from docstrings and parsers. Needs no network."""

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import paretune  # noqa: E402

project = "paretune"
release = version = paretune.__version__
copyright = "the authors of paretune"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "from_code"]
exclude_patterns = ["_build"]
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "dollarmath", "smartquotes"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "special-members": "__call__"}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
nitpicky = True

html_theme = "pydata_sphinx_theme"
html_title = "paretune"
html_show_sourcelink = False
html_copy_source = False
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system
html_sidebars = {"leaderboard/*": []}  # which is one page, with wide tables
html_static_path = ["style"]
html_css_files = ["site.css"]


for notebook in (HERE.parent / "notebooks").glob("*.ipynb"):
    shutil.copy(notebook, HERE / "tutorials")
