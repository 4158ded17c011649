"""The pieces of work that a round is made of: each is done once, by one process or by all together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState


@dataclass(frozen=True, slots=True)
class Stage:
    """``work(output)`` writes ``output`` whole or not at all; where it is there, the work is done.

    ``is_shared``: every process takes part in the work. Else the main process does it, and the others wait.
    """

    output: Path
    work: Callable[[Path], None]
    is_shared: bool = False

    def run(self, state: PartialState) -> Path:
        """Do the work unless it is done; returns the output once it is there for every process."""
        if (self.is_shared or state.is_main_process) and not self.output.exists():
            self.work(self.output)
        state.wait_for_everyone()
        return self.output
