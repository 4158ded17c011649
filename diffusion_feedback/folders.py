"""Output folders and files: that they can be written, that one command at a time works in them, and what is left behind.

A command holds the lock of what it writes (``hold_folder``, ``hold_file``). The operating system frees the lock of a
process that has died, so nobody has to remove anything by hand.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TypeVar, cast

from .errors import UserError, first_line, shown

Given = TypeVar("Given")

ROUNDS = "identity.json"  # stands in a folder of rounds, and in no other
LOCK, HOLDER = ".dfb.lock", ".dfb.holder"
# What records.atomic_write leaves behind when its process is killed; older versions named it by the process id.
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{12}|\d+)\.tmp", re.DOTALL)
_LONG = 80  # so much of a file's name goes into that of its temporary and its lock, which would be too long else
_ADDRESS = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://")
_OF_THE_HUB = re.compile(r"hf://datasets/[\w.-]+/[\w.-]+")
# How launchers tell a process its number; accelerate asks the same variables.
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def is_main_process() -> bool:
    """Whether this process writes: the only one, or the first of those that a launcher has started together."""
    return next((int(os.environ[name]) for name in _RANKS if os.environ.get(name, "").isdigit()), 0) == 0


def check_no_address(name: str) -> None:
    """Raise UserError, saying how to fetch it, for the address of something that is not on this disk.

    A data set of the hub, as hf://datasets/owner/name, is read by that name.
    """
    match = _ADDRESS.match(name)
    if match is None or _OF_THE_HUB.fullmatch(name):
        return
    scheme, rest = match[1].lower(), name[match.end() :].strip("/")
    page = re.match(r"(?:www\.)?(?:huggingface\.co|hf\.co)/(?:datasets/)?([\w.-]+/[\w.-]+)$", rest)
    of_hub = re.match(r"(?:datasets/|models/|spaces/)?([\w.-]+/[\w.-]+)", rest) if scheme == "hf" else page
    if of_hub is not None:
        remedy = f"give the hub id {of_hub[1]}, or download the file (`hf download {of_hub[1]}`) and give its path"
    else:
        file = rest.partition("?")[0].rpartition("/")[2] or "data"
        fetch = {"s3": f"aws s3 cp {name} .", "gs": f"gcloud storage cp {name} .", "file": f"give /{rest}"}
        fetch |= dict.fromkeys(("http", "https"), f"curl -L -o {file} {name}")
        remedy = f"fetch it first, and give the path: {fetch.get(scheme, f'copy {file} to this disk')}"
    raise UserError(f"{name}: is an address, and files are read from this disk", remedy)


def expand(path: str | Path) -> Path:
    """``path`` with a leading ~ as the home folder. Raises UserError where there is no such home, and for no path at all."""
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"{shown(path)}: is a {type(path).__name__}", "give the path of a file or folder")
    if "\0" in str(path):
        raise UserError(f"{str(path)!r}: no path, as it holds a NUL character", "give the name of a file or folder")
    check_no_address(str(path))
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        remedy = "write the whole path, or ./~NAME for a file of that name"
        raise UserError(f"{path}: there is no such home folder on this machine", remedy) from error


def at_home(given: Given) -> Given:
    """``given`` with a leading ~ as the home folder, where it is a text or a path; hub ids, globs and objects stay as they are.

    Raises UserError as ``expand`` does.
    """
    if isinstance(given, str):
        check_no_address(given)
    if not isinstance(given, str | Path) or not (str(given).startswith("~") or "\0" in str(given)):
        return given
    return cast(Given, type(given)(expand(given)))


def make_folder(folder: Path) -> None:
    """Make ``folder`` and its parents. Raises UserError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be written: {_reason(error)}", "choose another output_dir") from error


def check_outside(folder: Path, inputs: Mapping[str, str | None]) -> None:
    """Raise UserError where one of ``inputs`` (paths by their flags or keys) is ``folder`` or lies in it.

    What is no path on this disk, as hub ids, lies nowhere.
    """
    place = expand(folder).resolve()
    for name, given in inputs.items():
        path = expand(given).resolve() if given else None
        if path is not None and path.exists() and (path == place or place in path.parents):
            raise UserError(f"{name}: {given} lies in {folder}, which this command writes", "choose another output_dir")


@contextmanager
def hold_folder(folder: Path, command: str) -> Iterator[None]:
    """Make ``folder`` and keep every other ``command`` out of it; sweep what killed writers left in it.

    Of several processes of one run the first takes the lock. A folder that was made and stays empty is removed again.
    Raises UserError where the folder cannot be written, another command is at work in it, or it has vanished meanwhile.
    """
    if not is_main_process():
        yield
        return
    with _made(folder), _lock(folder / LOCK, folder / HOLDER, folder, command, "output_dir"):
        sweep_folder(folder)
        yield
        if not (folder / LOCK).exists():
            problem = f"{folder}: was moved or deleted while {command} was at work in it"
            raise UserError(problem, "run the same command again")


@contextmanager
def hold_file(path: Path, command: str) -> Iterator[None]:
    """``hold_folder`` for an output that is one file: its folder may be shared with others.

    Raises UserError where it cannot be written there, or another command is writing it.
    """
    if not is_main_process():
        yield
        return
    lock, holder = (path.with_name(f".{path.name[:_LONG]}.{what}") for what in ("lock", "holder"))
    with _made(path.parent), _lock(lock, holder, path, command, "output"):
        sweep_beside(path)
        yield


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make ``folder``; what was made of it and its parents is removed again where it stays empty."""
    absent = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    make_folder(folder)
    try:
        yield
    finally:
        for place in absent:
            with suppress(OSError):  # not empty: there is something to keep
                place.rmdir()


@contextmanager
def _lock(lock_file: Path, holder_file: Path, what: Path, command: str, other: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(lock_file, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        remedy = f"wait until it has ended, or choose another {other}"
        raise UserError(f"{what}: {_who(holder_file)} is at work here", remedy) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{what}: cannot be written: {_reason(error)}", f"choose another {other}") from error
    try:
        with suppress(OSError):  # a full disk: the next process then learns that another is at work, not which
            since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
            facts = {"command": command, "pid": os.getpid(), "host": socket.gethostname(), "since": since}
            holder_file.write_text(json.dumps(facts), "utf-8")
        yield
    finally:
        # Both files go while the lock is held: who waits for a file that is gone sees so, and makes a new one.
        holder_file.unlink(missing_ok=True)
        lock_file.unlink(missing_ok=True)
        lock.release()


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, FileExistsError):
        return "a file is in the way"
    return getattr(error, "strerror", None) or first_line(error)


def _who(holder_file: Path) -> str:
    try:
        facts = json.loads(holder_file.read_text("utf-8"))
        return f"{facts['command']} (process {facts['pid']} on {facts['host']}, since {facts['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # it has not been written yet, or the disk was full
        return "another command"


def sweep_folder(folder: Path) -> None:
    """Remove what killed writers left in ``folder`` and below, where no other command is at work."""
    for place, subfolders, names in os.walk(folder):
        here = Path(place)
        subfolders[:] = [name for name in subfolders if not (here / name / LOCK).exists()]
        for name in names:
            if _TEMPORARY.fullmatch(name):
                (here / name).unlink(missing_ok=True)


def sweep_beside(path: Path) -> None:
    """Remove what killed writers of the file ``path`` left beside it."""
    for left in path.parent.iterdir():
        if left.name.startswith(f".{path.name[:_LONG]}.") and _TEMPORARY.fullmatch(left.name):
            left.unlink(missing_ok=True)
