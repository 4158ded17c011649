"""Keeps the remarks and progress bars of libraries of models off the screen; what matters is said by us, once."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """No remarks (cut prompts, absent adapter keys) and no bars from transformers, and from diffusers where it is loaded.

    Nor the warnings that peft and diffusers use what transformers and the hub's library have renamed. Afterwards all is as it was.
    """
    libraries = [logging, *filter(None, [sys.modules.get("diffusers.utils.logging")])]
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument is deprecated", UserWarning)
            yield
    finally:
        for library, level, has_bars in before:
            library.set_verbosity(level)
            if has_bars:
                library.enable_progress_bar()
