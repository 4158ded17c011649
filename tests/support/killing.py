"""Kills a command at random moments, as a power cut would, until it has been hit often enough."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import forks


def kill(process: BaseProcess) -> bool:
    """SIGKILL. Returns whether the process was hit before it ended by itself."""
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def wait_until(begun: Callable[[], bool], process: BaseProcess) -> None:
    """Wait for ``begun``, for the end of the process, or for two minutes."""
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline and not begun():
        time.sleep(0.002)


def kill_often(argv: Sequence[str], *, kills: int, begun: Callable[[], bool], span: float, seed: str) -> int:
    """Run ``dfb argv`` ``kills`` times and SIGKILL it within ``span`` seconds after ``begun`` says that work is on disk.

    Each run goes on from the last. Returns how many of the runs were hit before they ended by themselves.
    """
    moments = random.Random(seed)
    hits = 0
    for _ in range(kills):
        process = forks.start_command(argv)
        wait_until(begun, process)
        time.sleep(moments.uniform(0, span))
        hits += kill(process)
    return hits


def kill_after_writing(argv: Sequence[str], file: Path, *, kills: int, span: float, seed: str) -> int:
    """As ``kill_often``, within ``span`` seconds after each run has written to ``file``, which it may find there."""
    moments = random.Random(seed)
    hits = 0
    for _ in range(kills):
        seen = _written(file)
        process = forks.start_command(argv)
        wait_until(lambda seen=seen: _written(file) != seen, process)  # type: ignore[misc]
        time.sleep(moments.uniform(0, span))
        hits += kill(process)
    return hits


def _written(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0
