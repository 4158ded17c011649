"""The site of documents: `make docs` builds it into build/docs/, and a link or a reference that leads nowhere is an error."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from catalog_tables import filled

from diffusion_feedback import __version__

project = "diffusion-feedback"
author = "the maintainers"
version = release = __version__
copyright = "the maintainers, Apache-2.0"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
nb_execution_mode = "off"  # a test executes the notebooks; what they printed is kept in them
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["misc.highlighting_failure"]

# A signature says the types; the text says the rest.
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 100
nitpicky = False

html_theme = "furo"
html_title = "diffusion-feedback"
html_copy_source = False


def setup(app):
    """Fill in the tables of names as pages are read."""

    def fill(app, page, source):
        source[0] = filled(source[0])

    app.connect("source-read", fill)
