"""Keeps the remarks and progress bars of all libraries of models off the screen; what matters is said by us, once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging

from ..quiet import quiet as quiet_transformers


@contextmanager
def quiet() -> Iterator[None]:
    """No remarks (missing safety checker, cut prompts, absent adapter keys) and no bars from diffusers and transformers.

    Nor the warning that peft reads an attribute which transformers has renamed.
    """
    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()
