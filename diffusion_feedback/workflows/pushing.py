"""A run, a step of one, or an export to the hub: its files in one commit, with a card that loads what stands there."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from ..errors import UserError, first_line
from ..runs import recorded_model, run_of
from .sampling import folder_or_id
from .settings import made_of_keywords, shows
from .sharing_settings import PushSettings
from .training.drawn import SAMPLES

logger = logging.getLogger(__name__)

_CARD = "README.md"
# What only this machine has a use for: states to go on from, trackers' files, what names its folders and hosts.
_LEFT = (
    ".*", "*/.*", "checkpoints/*", "raw/*", "*.pt", "checksums.json", "policy.safetensors", "average.safetensors",
    "environment.json", "notes.json", "heldout.jsonl", "history.jsonl", "best.json", "diffusion-feedback/*", "logs/*",
)  # fmt: skip
_WEIGHTS = ("*.safetensors", "*.bin")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,95}")
_CONTENTS = "## What is in this folder\n"  # of a card
_ROW = re.compile(r"^\| `([^`|]+)` \|.*\n", re.MULTILINE)
_PICTURE = re.compile(r"^!\[[^\]\n]*\]\((samples/[^)\n]+)\)\n\n?", re.MULTILINE)
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
    (of a step those of its run) are sent in one commit; checkpoints and what names this machine stay here. The token is the
    one of ``hf auth login`` or of HF_TOKEN. ``settings`` are the fields of PushSettings. Raises UserError where there is no token, it may not write there,
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
    names = sorted(_names(folder))
    weights = [name for name in names if any(fnmatchcase(name, pattern) for pattern in _WEIGHTS)]
    if not weights:
        raise UserError(f"{folder}: holds no weights that other tools load", "export it first, and give that folder")
    files: dict[str, Path | bytes] = {name: folder / name for name in [*weights, *sorted({*names} - {*weights})]}
    run = run_of(folder)
    if run != folder:  # a step: what explains it lies in its run
        names = ["recipe.yaml", _CARD, "metrics.jsonl", *sorted(_names(run, SAMPLES))]
        files |= {name: run / name for name in names if (run / name).is_file()}
    if _CARD in files:
        step = next((part for part in (folder.name, folder.parent.name) if part.startswith("step-")), "")
        text = _card((run / _CARD).read_text("utf-8"), folder, run, repo, step if run != folder else "")
        files[_CARD] = _of_what_is_there(text, list(files)).encode()
    return files


def _names(folder: Path, below: str = "") -> list[str]:
    """The files of ``folder``, or of a part of it, that others have a use for."""
    paths = (path for path in (folder / below).rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in _LEFT)]


def _of_what_is_there(card: str, sent: Sequence[str]) -> str:
    """``card`` without rows of files and folders, and without pictures, that are not ``sent``."""

    def is_sent(name: str) -> bool:
        return name in sent or (name.endswith("/") and any(each.startswith(name) for each in sent))

    before, heading, rest = card.partition(_CONTENTS)
    table, line_end, after = rest.partition("\n## ")
    table = _ROW.sub(lambda row: row[0] if is_sent(row[1]) else "", table)
    before = _PICTURE.sub(lambda shown: shown[0] if is_sent(shown[1]) else "", before)
    return "".join((before, heading, table, line_end, after))


def _card(text: str, folder: Path, run: Path, repo: str, step: str) -> str:
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
    # A card names its base only where that was a model of the hub when it was written, whatever lies beside us now.
    base = facts.get("base_model")
    if base is None and (model := recorded_model(run, "bring back what the run has written")):
        base = model.get("pretrained_model_name_or_path")
    if isinstance(base, str) and ("base_model" not in facts or not re.fullmatch(r"([\w.-]+/)?[\w.-]+", base)):
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
