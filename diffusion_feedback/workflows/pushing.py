"""A run, a step of one, or an export to the hub: its files in one commit, with a card that loads what stands there.

What is sent is chosen by name, never left out by name: what else lies in the folder stays here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from ..documents import read_object
from ..errors import UserError, first_line
from ..foreign import is_unreachable
from ..models.saving import TOKENIZER_FILES
from ..runs import run_of
from .public_texts import CARD, EXPORT, RECIPE, public_card, public_text
from .sampling import folder_or_id
from .settings import made_of_keywords, shows
from .sharing_settings import PushSettings
from .training.drawn import SAMPLES

logger = logging.getLogger(__name__)

# What plain libraries load of a part of a pipeline, and of a result; what explains it; and what was drawn meanwhile.
_PART = ("config.json", "*_config.json", "*.safetensors", "*.safetensors.index.json", "vocab.txt", *TOKENIZER_FILES)
_RESULT = (
    "pytorch_lora_weights*.safetensors", "adapter_model*.safetensors", "model*.safetensors", "model*.safetensors.index.json",
    "diffusion_pytorch_model*.safetensors", "value_heads.safetensors", "model_index.json", "config.json",
    "generation_config.json", "adapter_config.json", "preprocessor_config.json", "processor_config.json", *TOKENIZER_FILES,
)  # fmt: skip
_EXPLAINED = (CARD, RECIPE, "metrics.jsonl")
_DRAWN = (".png", ".jpg", ".webp", ".json", ".md")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,95}")
_SHOWN = 8  # names of what stays here


@dataclass(frozen=True, slots=True)
class Pushed:
    """What was brought to ``repo`` on the hub, or with ``dry_run`` would be: ``files`` and their bytes; ``url`` of the commit.

    ``left_out`` are the files of the folder that stay here.
    """

    repo: str
    files: Mapping[str, int]
    url: str | None
    left_out: Sequence[str] = ()

    def __str__(self) -> str:
        lines = [f"{size:>14,}  {name}" for name, size in self.files.items()]
        total = f"{sum(self.files.values()):>14,}  bytes in {len(self.files)} files"
        where = self.url or f"not sent: a dry run; they would go to {self.repo}"
        return "\n".join([*lines, total, *self._left(), where])

    def _left(self) -> list[str]:
        """A line on what stays here, by its first parts."""
        if not self.left_out:
            return []
        tops = list(dict.fromkeys(re.sub("/.*", "/", name) for name in self.left_out))
        more = f" and {len(tops) - _SHOWN} more" if len(tops) > _SHOWN else ""
        return [f"{len(self.left_out):>14,}  files stay here: {', '.join(tops[:_SHOWN])}{more}"]


_KINDS = (PushSettings,)


@shows(*_KINDS)
def push(model: object, repo: str, **settings: object) -> Pushed:
    """Bring the result ``model`` to the repository ``repo`` (OWNER/NAME) of the hub, which is made where it is not there.

    ``model``: a run, its folder, RUN@STEP, RUN@best, or the folder of an export. Weights, card, recipe, metrics and samples
    (of a step those of its run) are sent in one commit; whatever else lies there stays here, and paths of this machine are
    taken out of what is sent. The token is the one of ``hf auth login`` or of HF_TOKEN. ``settings`` are the fields of
    PushSettings. Raises UserError where there is no token, it may not write there, the hub cannot be reached, for a folder
    that is neither a run nor an export or has no weights, and with ``private`` for a repository that is public.
    """
    (own,) = made_of_keywords(settings, *_KINDS)
    path = folder_or_id(model)
    if path is None or not Path(path).is_dir():
        name = type(model).__name__ if path is None else path
        raise UserError(f"{name}: is no folder here", "give the folder of a run or of an export")
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise UserError(
            f"{repo!r}: no repository", "give OWNER/NAME; OWNER is your name on the hub, or an organisation's"
        )
    files, left = _files(Path(path), repo, own.revision)
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    if own.dry_run:
        return Pushed(repo, sizes, None, left)
    if not get_token():
        remedy = "log in once with `hf auth login`, or set HF_TOKEN to a token with the right to write"
        raise UserError("no token of the hub on this machine", remedy)
    logger.info("%s: sending %s files, %.1f MiB", repo, len(files), sum(sizes.values()) / 2**20)
    with _reaching(repo):
        api = HfApi()
        api.create_repo(repo, private=own.private or None, exist_ok=True)
        if own.private and not api.repo_info(repo).private:  # one that was there keeps what it was
            problem = f"`private`: {repo} is there already, and everyone can read it"
            raise UserError(problem, "nothing was sent; make it private on the hub, or take another repository")
        if own.revision:
            api.create_branch(repo, branch=own.revision, exist_ok=True)
        operations = [CommitOperationAdd(name, file) for name, file in files.items()]
        commit = api.create_commit(
            repo, operations, commit_message=own.message or f"Add {Path(path).name}", revision=own.revision
        )
    return Pushed(repo, sizes, str(commit.commit_url), left)


def _files(folder: Path, repo: str, revision: str | None) -> tuple[dict[str, Path | bytes], list[str]]:
    """What is sent of ``folder``, by its names in the repository, the weights first; and the names of what stays here.

    Raises UserError for what is neither a run, a step of one nor an export, and where there are no weights.
    """
    run, is_export = run_of(folder), (folder / EXPORT).is_file()
    if not is_export and not (run / RECIPE).is_file():
        problem = f"{folder}: is neither a run nor an export, so it is not clear what of it others may see"
        raise UserError(problem, "give the folder of a run, RUN@STEP, or the folder of an export")
    known = _inside(folder)
    exported = read_object(folder / EXPORT, "export it again").get("files") if is_export else None
    chosen = _of_export(known, exported) if is_export else _of_run(known, folder)
    weights = [name for name in chosen if name.endswith(".safetensors") and not name.startswith(f"{SAMPLES}/")]
    if not weights:
        raise UserError(f"{folder}: holds no weights that other tools load", "export it first, and give that folder")
    files: dict[str, Path | bytes] = {name: known[name] for name in [*weights, *sorted({*chosen} - {*weights})]}
    if run != folder and not is_export:  # a step: what explains it lies in its run
        files |= {name: path for name, path in _inside(run).items() if name in _EXPLAINED or _is_drawn(name)}
    for name, path in files.items():
        if isinstance(path, Path) and (text := public_text(name, path)) is not None:
            files[name] = text.encode()
    if CARD in files:
        files[CARD] = public_card(folder, repo, revision, list(files)).encode()
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return files, [name for name in there if name not in chosen]


def _inside(folder: Path) -> dict[str, Path]:
    """The files below ``folder`` by their names; links that lead out of it are none of them."""
    place = folder.resolve()
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.resolve().is_relative_to(place))
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _of_export(names: Mapping[str, Path], exported: object) -> list[str]:
    """Which of ``names`` an export has written, that is ``exported`` and what explains it."""
    written: Any = exported if isinstance(exported, Mapping) else {}
    return [name for name in names if name in written or name in (CARD, EXPORT)]


def _of_run(names: Mapping[str, Path], folder: Path) -> list[str]:
    """Which of ``names`` are the result of the run in ``folder``, or of a step of it, and what explains it."""
    index = folder / "model_index.json"
    parts = read_object(index, "copy the run's folder whole") if index.is_file() else {}

    def is_sent(name: str) -> bool:
        part, _, rest = name.rpartition("/")
        if not part:
            return name in _EXPLAINED or any(fnmatchcase(name, pattern) for pattern in _RESULT)
        return _is_drawn(name) or (part in parts and any(fnmatchcase(rest, pattern) for pattern in _PART))

    return [name for name in names if is_sent(name)]


def _is_drawn(name: str) -> bool:
    return name.startswith(f"{SAMPLES}/") and "/." not in name and name.endswith(_DRAWN)


@contextmanager
def _reaching(repo: str) -> Iterator[None]:
    """What goes wrong between here and the hub, in plain words."""
    try:
        yield
    except UserError:
        raise
    except HfHubHTTPError as error:
        status = int(getattr(error.response, "status_code", 0))
        remedies = {
            401: "the token is not valid: log in again with `hf auth login`",
            403: f"the token may not write to {repo}: make one with the right to write, or take a repository of your own",
            404: "there is no such owner or branch, or the token may not see it",
        }
        raise UserError(
            f"{repo}: the hub refused: {first_line(error)}", remedies.get(status, "try again later")
        ) from error
    except ValueError as error:
        raise UserError(f"{repo}: {first_line(error)}", f"correct {CARD} of the result, and run it again") from error
    except Exception as error:  # the network's own errors are of many kinds
        if not is_unreachable(error):
            raise
        problem = f"{repo}: the hub cannot be reached: {first_line(error)}"
        raise UserError(problem, "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, and run it again") from error
