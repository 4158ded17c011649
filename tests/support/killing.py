"""Kills a command at random moments, as a power cut would, until it has been hit often enough."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence


def kill_often(argv: Sequence[str], *, kills: int, begun: Callable[[], bool], span: float, seed: str) -> int:
    """Run ``dfb argv`` ``kills`` times and SIGKILL it within ``span`` seconds after ``begun`` says that work is on disk.

    Each run goes on from the last. Returns how many of the runs were hit before they ended by themselves.
    """
    moments = random.Random(seed)
    hits = 0
    for _ in range(kills):
        command = [sys.executable, "-m", "diffusion_feedback", *argv]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline and not begun():
            time.sleep(0.01)
        time.sleep(moments.uniform(0, span))
        process.send_signal(signal.SIGKILL)
        hits += process.wait() == -signal.SIGKILL
    return hits
