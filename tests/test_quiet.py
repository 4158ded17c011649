"""Libraries are silent where we speak for them, and as they were afterwards."""

from __future__ import annotations

from typing import Any

import diffusers.utils.logging
import pytest
import transformers.utils.logging

from diffusion_feedback.quiet import quiet

TRANSFORMERS, DIFFUSERS = transformers.utils.logging, diffusers.utils.logging


@pytest.mark.parametrize("has_bars", [True, False])
@pytest.mark.parametrize("library", [TRANSFORMERS, DIFFUSERS])
def test_levels_and_bars_come_back_as_they_were(library: Any, has_bars: bool) -> None:
    level, had_bars = library.get_verbosity(), library.is_progress_bar_enabled()
    (library.enable_progress_bar if has_bars else library.disable_progress_bar)()
    try:
        library.set_verbosity_info()
        with quiet():
            with quiet():
                pass
            assert (library.get_verbosity(), library.is_progress_bar_enabled()) == (library.ERROR, False)
        assert (library.get_verbosity(), library.is_progress_bar_enabled()) == (library.INFO, has_bars)
    finally:
        library.set_verbosity(level)
        (library.enable_progress_bar if had_bars else library.disable_progress_bar)()
