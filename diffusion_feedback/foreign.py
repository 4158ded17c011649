"""What a stranger wrote: folders and files that people bring, of which nothing is known before they are read.

Reading them may fail in any way at all. One place turns whatever a library raises into one clear message, and one rule
says which names are requested from the hub.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from .errors import UserError, first_line, is_out_of_memory

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Endings of files: whoever gives one means a file on this disk.
_FILES = (
    ".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow",
    ".txt", ".yaml", ".yml", ".zip", ".tar",
)  # fmt: skip
TIME_LIMIT = 20.0  # s that a chat template may take for one conversation; a usual one takes a thousandth
MOST_CHARACTERS = 2**24  # of a rendered conversation, beyond any model's window
# What the hub's library raises where there is no network, by name: none of it is imported for this.
_UNREACHABLE = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "TransportError", "ConnectionError", "TimeoutError")
_POINTER = b"version https://git-lfs"


@contextmanager
def reading(source: str | Path, what: str, remedy: str) -> Iterator[None]:
    """Turn every failure to read ``source`` as ``what`` into a UserError that ends in ``remedy``.

    Libraries raise nearly anything on damaged, foreign, pickled or hostile files: OSError, ValueError, RuntimeError,
    SafetensorError, ImportError, OverflowError, RecursionError. All of them mean the same to a user. UserErrors pass as
    they are; out of memory stays what it is, since the files are not to blame.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{source}: could not be read as {what}: {_cause(error)}", remedy) from error


def _cause(error: Exception) -> str:
    """What ``error`` says, in our words where a library's would mislead."""
    if any(isinstance(each, UnpicklingError) or "weights_only" in str(each) for each in _chain(error)):
        return "it is a pickle with more in it than tensors, which could run code and is never loaded"
    if is_unreachable(error):
        return "it is not on this machine, and the hub cannot be reached"
    if "ignore_mismatched_sizes" in str(error):
        return "its weights have other shapes than its config asks for"
    return f"it holds no {error}" if isinstance(error, KeyError) else first_line(error)


def is_unreachable(error: BaseException) -> bool:
    """Whether ``error`` comes of a network that is not there, or of a hub that does not answer."""
    kinds = (kind.__name__ for each in _chain(error) for kind in type(each).__mro__)
    return any(kind in _UNREACHABLE for kind in kinds)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error``, and what it was raised on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def apply_template(tokenizer: Any, turns: Sequence[Mapping[str, object]], **how: object) -> Any:
    """What the tokenizer's ``apply_chat_template`` makes of ``turns``: a template is a program of a stranger.

    Raises whatever the template raises, TimeoutError where it has not ended within ``TIME_LIMIT``, and ValueError for a
    text that is far too long to be tokenised.
    """
    with _in_time():
        rendered = tokenizer.apply_chat_template(turns, **how)
    if isinstance(rendered, str) and len(rendered) > MOST_CHARACTERS:
        raise ValueError(f"it makes {len(rendered):,} characters of one conversation")
    return rendered


@contextmanager
def _in_time() -> Iterator[None]:
    """Raise TimeoutError in the block once ``TIME_LIMIT`` has passed.

    By a timer's signal, which interrupts a loop of the template as it runs; signals come to the main thread alone, so in
    another one there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seconds = TIME_LIMIT

    def stop(signum: int, frame: object) -> None:
        raise TimeoutError(f"it was not done after {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def is_hub_id(name: str) -> bool:
    """Whether ``name`` may be requested from the hub: NAME or OWNER/NAME, and nothing on this disk that it could mean.

    A mistyped or moved local path (runs/x beside a folder runs) is never requested: whoever owns that name on the hub would
    serve the weights. Where the first part is a folder here, or the name ends as a file does, a path was meant.
    """
    if not _HUB_ID.fullmatch(name) or ".." in name or "--" in name or name.lower().endswith(_FILES):
        return False
    path = Path(name)
    return not path.exists() and not ("/" in name and path.parent.exists())


def check_exists(name: str, remedy: str) -> None:
    """Raise UserError where ``name`` is neither something on this disk nor a possible hub id."""
    if not is_hub_id(name) and not Path(name).expanduser().exists():
        raise UserError(f"{name}: no such file or folder", remedy)


def check_whole(place: Path) -> None:
    """Raise UserError where file ``place``, or a file of weights in folder ``place``, is a pointer of git-LFS, or empty."""
    weights = (".safetensors", ".bin", ".pt", ".ckpt")
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.suffix in weights)
    for file in files:
        if not file.is_file():
            continue
        with file.open("rb") as opened:
            head = opened.read(len(_POINTER))
        if head == _POINTER:
            remedy = "fetch the files themselves: git lfs install, git lfs pull; or download them from the hub"
            raise UserError(f"{file}: a pointer of git-LFS, not what it stands for", remedy)
        if not head:
            raise UserError(f"{file}: an empty file", "download or copy it again")
