"""Signals that ask a run to end: the step in progress is finished first, unless one comes again."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from ..errors import Interrupted

# The third comes when a terminal closes, the last from Slurm before a job's time is over (sbatch --signal=USR1@90).
_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
_USUAL = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """While the ``with`` block lasts, the first of ``SIGNALS`` is noted in ``received``; a second one ends at once.

    Where ``at_once`` is set, as between steps, the first does so too, by raising Interrupted. Outside of the main thread,
    where Python handles no signals, nothing is noted. SIGHUP and SIGUSR1 stay with a program that has a handler of its own
    for them, or ignores them, as nohup does.
    """

    def __init__(self) -> None:
        self.received = 0
        self.at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            mine = [signum for signum in SIGNALS if signum in _USUAL or _is_free(signum)]
            self._before = {signum: signal.signal(signum, self._note) for signum in mine}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for signum, before in self._before.items():
            signal.signal(signum, before)

    @contextmanager
    def immediate(self, *, applies: bool) -> Iterator[None]:
        """Within this, where it ``applies``, a signal ends at once, and one that was noted before does too."""
        self.at_once = applies
        try:
            if applies and self.received:
                raise Interrupted(self.received)
            yield
        finally:
            self.at_once = False

    def _note(self, signum: int, frame: FrameType | None) -> None:
        is_second, self.received = bool(self.received), signum
        if is_second or self.at_once:
            raise Interrupted(signum)
        text = f"\n{signal.Signals(signum).name}: stopping after this step; the same again stops at once\n"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())  # print is not safe in a handler


def _is_free(signum: int) -> bool:
    """Whether nobody but this package handles the signal."""
    handler = signal.getsignal(signum)
    return handler is signal.SIG_DFL or getattr(handler, "__module__", "").startswith(__name__.partition(".")[0])
