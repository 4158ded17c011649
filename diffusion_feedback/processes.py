"""Several processes: what is refused before a model is loaded, and whether they have found each other."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

ValueT = TypeVar("ValueT")
# How launchers tell the number of processes; accelerate asks the same variables.
_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE")
# What accelerate takes from its environment, or `accelerate launch` from its configuration, and this loop cannot do.
_PLUGINS = {
    "ACCELERATE_USE_FSDP": "FSDP: evaluation runs in one process, and the others would wait for ever",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed: it counts every pass as an update, so that accumulated gradients are wrong",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM: the loop does not know its models",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "sharding by a parallelism config: the loop knows whole models alone",
}
_PLAIN = "start plain data parallel processes: `accelerate launch --multi_gpu --num_processes N ...`, or torchrun"


def num_launched() -> int:
    """How many processes a launcher says that it has started; 1 without a launcher."""
    values = (os.environ.get(name, "") for name in _SIZES)
    return next((int(value) for value in values if value.isdigit() and int(value) > 0), 1)


def check_plugins(work: str, *, compiles: bool) -> None:
    """Raise UserError where a launcher asks for what ``work`` cannot do. Asks the environment alone.

    ``compiles``: whether accelerate would compile the networks of this work.
    """
    for name, why in _PLUGINS.items():
        if os.environ.get(name, "").lower() in ("true", "1", "yes", "on"):
            raise UserError(f"{name} is set, but {work} cannot use {why}", _PLAIN)
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if compiles and backend.lower() != "no":
        problem = f"ACCELERATE_DYNAMO_BACKEND is {backend}, but networks that adapters are switched in are not compiled"
        raise UserError(problem, "launch with --dynamo_backend no")


def check_joined(num_processes: int) -> None:
    """Raise UserError unless the processes that were launched have found each other: each would do the whole work."""
    launched = num_launched()
    if num_processes != launched:
        problem = (
            f"{launched} processes were launched, but each of them runs alone: this machine has no device for them"
        )
        raise UserError(problem, "set ACCELERATE_USE_CPU=true to run them on the CPU, or start one process")


def process_state() -> PartialState:
    """accelerate's state of this process: ``process_index``, ``num_processes``, ``is_main_process``, ``device``.

    All processes do the work under ``accelerate launch``; the main one writes the files. It is the smaller of accelerate's
    two states, without a precision: an ``Accelerator`` that is made later in the same program may have any.
    """
    from datetime import timedelta

    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Of itself only accelerate's larger state looks at this variable, which `accelerate launch --cpu` sets.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    # A process that is done waits for the others; the default of ten minutes is too short for that.
    state = PartialState(cpu=cpu, timeout=timedelta(hours=12))
    check_joined(state.num_processes)
    leave_at_exit(state)
    return state


def leave_at_exit(state: PartialState) -> None:
    """See to it that this process leaves its group when the program ends: torch may abort a process that ends as a member.

    "terminate called without an active exception" is what it says then: threads still listen to the others.
    """
    if state.num_processes > 1:
        atexit.register(state.destroy_process_group)


def agreed(accelerator: Accelerator, failure: BaseException | None, value: ValueT, what: str) -> ValueT:
    """The ``value`` of the main process, in every process once that is done with its work.

    Raises the ``failure`` of the main process there, and a UserError that says ``what`` failed in all others.
    """
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        shared: list[Any] = [None if failure is None else str(failure), value]
        broadcast_object_list(shared)
        value = shared[1]
        if failure is None and shared[0] is not None:
            failure = UserError(f"{what} failed in the main process: {shared[0]}")
    if failure is not None:
        raise failure
    return value


def check_alike(accelerator: Accelerator, own: Mapping[str, object]) -> None:
    """Raise UserError in every process unless all of them begin with the same: recipe, checkpoint, flags, by their names."""
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import gather_object

    everyone = gather_object([dict(own)])
    for name, value in everyone[0].items():
        for rank, other in enumerate(everyone):
            if other[name] != value:
                problem = f"process 0 has the {name} {value}, process {rank} has {other[name]}"
                remedy = (
                    "start all with the same recipe and flags; output_dir must lie on a disk that all of them share"
                )
                raise UserError(problem, remedy)
