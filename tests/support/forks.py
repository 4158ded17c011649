"""Commands in processes of their own that begin at once: forks of one that has imported the libraries already.

A new interpreter needs seconds for that, which a test of what a process does, or leaves behind, has no use for. Tests of the
start itself, of a launcher, or of what a process prints, start one.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "diffusion_feedback.workflows.training.run",
        "diffusion_feedback.workflows.rounds.run",
        "diffusion_feedback.cli.benchmark",
        "diffusion_feedback.cli.label",
        "diffusers.pipelines.stable_diffusion",
        "transformers.models.clip",
    ]
)


def start(
    function: Callable[..., object],
    *arguments: object,
    output: str | Path = os.devnull,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """A process that calls ``function``, which must be importable by its name, and writes to the file ``output``."""
    process = _SERVER.Process(target=_call, args=(str(output), dict(environment or {}), function, arguments))
    process.start()
    return process


def start_command(argv: Sequence[str]) -> BaseProcess:
    """A process that does ``dfb argv``; its exit code is that of the command."""
    return start(_command, list(argv))


def run_together(argv: Sequence[str], folder: Path, *, processes: int = 2) -> None:
    """Do ``dfb argv`` in processes that work together on the CPU, over gloo, as a launcher starts them; what they print is in ``folder``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {
        "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(processes),
    }
    outputs = [folder / f"rank-{rank}.log" for rank in range(processes)]
    started = [
        start(_command, list(argv), output=output, environment={**group, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank, output in enumerate(outputs)
    ]
    for process, output in zip(started, outputs, strict=True):
        process.join()
        assert process.exitcode == 0, output.read_text()[-3000:]


def _call(
    output: str, environment: Mapping[str, str], function: Callable[..., object], arguments: Sequence[object]
) -> None:
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    function(*arguments)


def _command(argv: Sequence[str]) -> None:
    from diffusion_feedback.cli.main import main

    sys.exit(main(argv))
