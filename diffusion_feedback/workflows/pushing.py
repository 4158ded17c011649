"""A run, a step of one, or an export to the hub: its files in one commit, with a card that loads what stands there."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from ..errors import UserError, first_line
from ..runs import run_of
from .sampling import folder_or_id
from .settings import made_of_keywords, shows
from .sharing_settings import PushSettings

logger = logging.getLogger(__name__)

_CARD = "README.md"
# What only this machine has a use for: states to go on from, trackers' files, what names its folders and hosts.
_LEFT = (
    ".*", "*/.*", "checkpoints/*", "raw/*", "*.pt", "checksums.json", "policy.safetensors", "average.safetensors",
    "environment.json", "notes.json", "heldout.jsonl", "history.jsonl", "best.json", "diffusion-feedback/*", "logs/*",
)  # fmt: skip
_WEIGHTS = ("*.safetensors", "*.bin")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,95}")
_FRONT = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Pushed:
    """What was brought to ``repo`` on the hub, or with ``dry_run`` would be: ``files`` and their bytes; ``url`` of the commit."""

    repo: str
    files: Mapping[str, int]
    url: str | None

    def __str__(self) -> str:
        lines = [f"{size:>14,}  {name}" for name, size in self.files.items()]
        total = f"{sum(self.files.values()):>14,}  bytes in {len(self.files)} files"
        where = self.url or f"not sent: a dry run; they would go to {self.repo}"
        return "\n".join([*lines, total, where])


_KINDS = (PushSettings,)


@shows(*_KINDS)
def push(model: object, repo: str, **settings: object) -> Pushed:
    """Bring the result ``model`` to the repository ``repo`` (OWNER/NAME) of the hub, which is made where it is not there.

    ``model``: a run, its folder, RUN@STEP, RUN@best, or the folder of an export. Weights, card, recipe, metrics and samples
    are sent in one commit; checkpoints and what names this machine stay here. The token is the one of ``hf auth login`` or of
    HF_TOKEN. ``settings`` are the fields of PushSettings. Raises UserError where there is no token, it may not write there,
    the hub cannot be reached, and for a folder without weights.
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
    files = _files(Path(path), repo)
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    if own.dry_run:
        return Pushed(repo, sizes, None)
    if not get_token():
        remedy = "log in once with `hf auth login`, or set HF_TOKEN to a token with the right to write"
        raise UserError("no token of the hub on this machine", remedy)
    logger.info("%s: sending %s files, %.1f MiB", repo, len(files), sum(sizes.values()) / 2**20)
    with _reaching(repo):
        api = HfApi()
        api.create_repo(repo, private=own.private or None, exist_ok=True)
        if own.revision:
            api.create_branch(repo, branch=own.revision, exist_ok=True)
        operations = [CommitOperationAdd(name, file) for name, file in files.items()]
        commit = api.create_commit(
            repo, operations, commit_message=own.message or f"Add {Path(path).name}", revision=own.revision
        )
    return Pushed(repo, sizes, str(commit.commit_url))


def _files(folder: Path, repo: str) -> dict[str, Path | bytes]:
    """What is sent of ``folder``, by its names in the repository: the weights come first. Raises UserError where it has none."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in _LEFT)]
    weights = [name for name in names if any(fnmatchcase(name, pattern) for pattern in _WEIGHTS)]
    if not weights:
        raise UserError(f"{folder}: holds no weights that other tools load", "export it first, and give that folder")
    files: dict[str, Path | bytes] = {name: folder / name for name in [*weights, *sorted({*names} - {*weights})]}
    run = run_of(folder)
    if run != folder:  # a step: what explains it lies in its run
        files |= {name: run / name for name in ("recipe.yaml", _CARD) if (run / name).is_file()}
    if _CARD in files:
        step = folder.name if run != folder else None
        files[_CARD] = _card((run / _CARD).read_text("utf-8"), folder, run, repo, step).encode()
    return files


def _card(text: str, folder: Path, run: Path, repo: str, step: str | None) -> str:
    """The card as others read it: code loads from ``repo``, and no base is named that the hub does not know."""
    for place in dict.fromkeys(str(each.resolve()) for each in (folder, run)):  # the longer one first
        for quote in "'\"":
            text = text.replace(f"{quote}{place}{quote}", f"{quote}{repo}{quote}")
            text = re.sub(
                rf"{quote}{re.escape(place)}/([\w.-]+\.safetensors){quote}",
                rf"{quote}https://huggingface.co/{repo}/blob/main/\1{quote}",
                text,
            )
    front = _FRONT.match(text)
    facts = dict(yaml.safe_load(front[1]) or {}) if front else {}
    body = text[front.end() :] if front else text
    base = facts.get("base_model")
    if (isinstance(base, str) and not re.fullmatch(r"([\w.-]+/)?[\w.-]+", base)) or Path(str(base)).exists():
        logger.warning("note: the base %s is a folder of this machine: who loads the result needs it too", base)
        facts.pop("base_model", None)
    if step:
        body = f"{body.rstrip()}\n\nThese are the weights of {step.replace('-', ' ')} of the run, not of its end.\n"
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---\n{body}" if facts else body


@contextmanager
def _reaching(repo: str) -> Iterator[None]:
    """What goes wrong between here and the hub, in plain words."""
    try:
        yield
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
        raise UserError(f"{repo}: {first_line(error)}", f"correct {_CARD} of the result, and run it again") from error
    except Exception as error:  # the network's own errors are of many kinds
        problem = f"{repo}: the hub cannot be reached: {first_line(error)}"
        raise UserError(problem, "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, and run it again") from error
