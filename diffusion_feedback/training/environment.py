"""What a reader needs to repeat a run: versions, hardware in plain words, the command, and the commit of a clone."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "datasets", "safetensors", "pillow", "numpy")


def environment() -> dict[str, object]:
    """Versions, hardware and command of this process; ``commit`` where the package runs from a clone of its repository."""
    from .. import __version__

    commit = commit_of(Path(__file__).resolve().parents[2])
    return {
        "diffusion-feedback": __version__,
        **({"commit": commit} if commit else {}),
        **{name: metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device_in_words(),
        "threads": torch.get_num_threads(),
        "command": shlex.join(sys.argv),
    }


def commit_of(root: Path) -> str:
    """The commit that the clone in the folder ``root`` stands at, and whether its files differ; empty for no clone."""
    if not (root / ".git").exists():  # a folder within somebody else's clone is none
        return ""

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        changed = git("status", "-s", "-uno")
        return git("rev-parse", "HEAD") + (", with changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def device_in_words() -> str:
    """Such as "NVIDIA H200, 140 GiB", or "CPU: AMD EPYC, 2 cores" where there is no GPU."""
    if torch.cuda.is_available():
        here = torch.cuda.get_device_properties(torch.cuda.current_device())
        count = torch.cuda.device_count()
        return f"{f'{count} x ' if count > 1 else ''}{here.name}, {here.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        return f"Apple GPU: {platform.machine()}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"CPU: {_processor()}, {cores} core{'s' if cores > 1 else ''}"


def _processor() -> str:
    """The processor's name as its maker gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
