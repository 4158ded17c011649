"""``python -m diffusion_feedback`` is ``dfb``."""

import sys

from .cli.main import main

sys.exit(main())
