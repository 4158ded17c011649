"""Files of folders and hub repositories that hold a scorer: found, downloaded, or named as missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from ..errors import UserError, first_line
from ..foreign import is_hub_id
from ..records import parse_json


def hub_file(repository: str, file: str, remedy: str) -> Path:
    """``file`` of a hub repository, from the local cache or downloaded. Raises UserError where it cannot be had."""
    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # the network's own errors are of many kinds
        raise UserError(f"{repository}/{file} cannot be had from the hub ({first_line(error)})", remedy) from error


def weights_file(weights: str | None, hub_id: str, file: str) -> Path:
    """The file of a scorer's ``weights``: itself, or ``file`` of that folder or hub repository, of ``hub_id`` for None.

    Raises UserError where the hub cannot give it.
    """
    if weights is None or is_hub_id(weights):
        remedy = f"give the path of {file}, or of a folder that holds it (published at the hub as {hub_id})"
        return hub_file(weights or hub_id, file, remedy)
    path = Path(weights).expanduser()
    return path / file if path.is_dir() else path


def optional_file(source: str, name: str) -> Path | None:
    """The file ``name`` of a folder or hub repository; None where there is none.

    Raises UserError where ``source`` is no folder and the hub does not give it either.
    """
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(source, name))
    except EntryNotFoundError:  # not there, or not in the cache of a machine without network
        return None
    except Exception as error:
        problem = f"{source}: no such folder, and cannot be had from the hub ({first_line(error)})"
        raise UserError(problem, "give a local folder: NAME=FOLDER") from error


def optional_json(source: str, name: str) -> dict[str, Any] | None:
    """The object in the JSON file ``name`` of a folder or hub repository; None where there is no such file.

    Raises UserError naming the file where it cannot be read or holds something else.
    """
    path = optional_file(source, name)
    if path is None:
        return None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", "make the file readable") from error
    content = parse_json(data, str(path), "correct the file, or save the model again")
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__}, not an object", "save the model again")
    return content
