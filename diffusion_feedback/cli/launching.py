"""Which commands share their work among several processes, and which are refused under a launcher."""

from __future__ import annotations

from ..errors import UserError
from ..processes import check_plugins, num_launched

# Commands whose processes do a share each, and write once.
SHARING = ("train", "rounds", "score", "label", "calibrate", "benchmark")
_ONCE = "start it once, without a launcher"
_ALONE = {"generate": "give each process prompts and an --output_dir of its own"}


def check_launch(command: str) -> None:
    """Raise UserError where ``command`` was launched in a way in which it cannot be right. Asks the environment alone."""
    number = num_launched()
    if number > 1 and command not in SHARING:
        raise UserError(
            f"dfb {command} is the work of one process, and {number} were launched", _ALONE.get(command, _ONCE)
        )
    if command in SHARING or command == "demo":
        check_plugins(f"dfb {command}", compiles=command in ("train", "rounds", "demo"))
