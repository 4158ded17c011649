"""What stands on disk: preference pairs, generated images and scores, their hashes, and writing that is never half done."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .documents import unique_keys
from .errors import UserError


def content_hash(*parts: bytes | str | Path) -> str:
    """SHA-256 over the length-prefixed ``parts``, as 32 hexadecimal digits; the key of every cache.

    A Path stands for the bytes of its file, of which a megabyte at a time is in memory.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            digest.update(part.stat().st_size.to_bytes(8, "little"))
            with part.open("rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
            continue
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:32]


def parse_json(text: str | bytes, where: str, remedy: str) -> Any:
    """What the JSON ``text`` holds; bytes are UTF-8, with or without a byte order mark.

    Raises UserError naming ``where`` for what is no JSON, is nested too deep, names a key twice (one value would be
    lost), or holds half of a character: such text could be neither hashed nor written.
    """
    try:
        text = text if isinstance(text, str) else text.decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=unique_keys)
        if "\\ud" in text.lower():
            json.dumps(content, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start})", "save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})", remedy) from error
    return content


@dataclass(frozen=True, slots=True)
class Ballot:
    """One vote's own account: who gave it, "" where nobody is named, and whether it calls both sides bad (a tie)."""

    annotator: str = ""
    is_both_bad: bool = False


NO_BALLOT = Ballot()


@dataclass(frozen=True, slots=True)
class PairRecord:
    """One preference pair as it stands on disk.

    ``image_0`` and ``image_1`` are the encoded image bytes; ``label_0`` in [0, 1] is the share of votes for image 0
    (0.5 is a tie); ``weight`` > 0 is the pair's share in the loss; ``source`` says where the pair was read ("file, row 7").
    """

    prompt: str
    image_0: bytes
    image_1: bytes
    label_0: float
    weight: float = 1.0
    source: str = ""
    ballot: Ballot = NO_BALLOT

    @property
    def is_tie(self) -> bool:
        """Whether neither image is preferred."""
        return self.label_0 == 0.5

    @property
    def chosen(self) -> bytes:
        """The preferred image; image 0 for a tie."""
        return self.image_0 if self.label_0 >= 0.5 else self.image_1

    @property
    def rejected(self) -> bytes:
        """The other image."""
        return self.image_1 if self.label_0 >= 0.5 else self.image_0

    @property
    def chosen_probability(self) -> float:
        """Share of votes for the chosen image, in [0.5, 1]."""
        return max(self.label_0, 1 - self.label_0)

    @property
    def example_id(self) -> str:
        """Identity of the pair by its content, the same whichever image comes first and wherever the row stands."""
        images = sorted((content_hash(self.image_0), content_hash(self.image_1)))
        return content_hash(self.prompt, *images)


Message = Mapping[str, Any]
"""One turn of a conversation: "role" and "content", and what else the chat template reads."""

Text = str | tuple[Message, ...]
"""A plain text, or the turns of a conversation."""


@dataclass(frozen=True, slots=True)
class TextRecord:
    """One example of texts as it stands on disk; what a format does not have is empty or None.

    Preferences have ``prompt``, ``chosen`` and ``rejected``; unpaired feedback and demonstrations have ``prompt`` and
    ``chosen``, the former with a ``label`` (desirable or not); plain text and whole conversations have ``chosen`` alone,
    with an empty prompt. ``margin`` >= 0 says by how much chosen is better; ``chosen_probability`` in [0.5, 1] is the
    share of votes for it; ``template`` goes to the chat template (tools, and its other arguments); ``source`` says where
    the row was read. ``token_ids`` are those of ``chosen`` and ``rejected`` where a model has drawn them, the end token
    included where it was drawn: a tokenizer may read their text as other tokens.
    """

    prompt: Text
    chosen: Text
    rejected: Text | None = None
    label: bool | None = None
    margin: float = 0.0
    chosen_probability: float = 1.0
    weight: float = 1.0
    template: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    token_ids: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    ballot: Ballot = NO_BALLOT

    @property
    def is_conversational(self) -> bool:
        """Whether the example is made of turns."""
        return not isinstance(self.chosen, str)

    @property
    def example_id(self) -> str:
        """Identity by content; the label and its strength do not enter."""
        parts = (self.prompt, self.chosen, self.rejected, dict(self.template))
        return content_hash(json.dumps(parts, ensure_ascii=False, sort_keys=True))


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """One prompt to generate from, with the columns that came with it (style, category, ...) in ``extra``."""

    prompt: str
    extra: Mapping[str, Any]


_ORIGIN = {"model_path": str, "lora_path": str}


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One generated image: a row of an image folder's ``metadata.jsonl``; ``file_name`` is relative to the folder.

    ``origin`` says where the model lay, ``model_path`` and ``lora_path``, as far as it is known: the hash says what it was,
    so a model that has moved is the same.
    """

    file_name: str
    prompt: str
    seed: int
    settings: Mapping[str, Any]
    model_hash: str
    origin: Mapping[str, str] = field(default_factory=dict, compare=False)

    def to_json(self) -> str:
        """One line of JSON."""
        row = {"file_name": self.file_name, "prompt": self.prompt, "seed": self.seed, "model_hash": self.model_hash}
        return json.dumps(
            row | dict(self.origin) | {"settings": dict(self.settings)}, ensure_ascii=False, sort_keys=True
        )

    @classmethod
    def from_json(cls, line: str) -> ImageRecord:
        """Read one line of JSON. Raises KeyError or ValueError for a line that is not such a record."""
        row = _fields(
            line, {"file_name": str, "prompt": str, "seed": int, "settings": dict, "model_hash": str}, _ORIGIN
        )
        origin = {name: row[name] for name in _ORIGIN if name in row}
        if row["file_name"].startswith("/") or ".." in row["file_name"].split("/"):
            raise ValueError(f"file_name {row['file_name']!r} leads out of the folder")
        return cls(row["file_name"], row["prompt"], row["seed"], row["settings"], row["model_hash"], origin)


@dataclass(frozen=True, slots=True)
class CompletionRecord:
    """One completion that a language model drew: a row of ``completions.jsonl``.

    ``prompt_index`` is the place among the different prompts of the file, ``sample`` counts the draws of one prompt under one ``seed``.
    ``token_ids`` are the completion's tokens as drawn, the end token included where it was drawn (``is_finished``);
    ``completion`` is their text without special tokens.
    """

    prompt_index: int
    sample: int
    seed: int
    prompt: Text
    completion: str
    token_ids: tuple[int, ...]
    is_finished: bool
    settings: Mapping[str, Any]
    model_hash: str

    @property
    def identity(self) -> tuple[int, int, int]:
        """Which draw this is, whatever the model: prompt, seed and sample."""
        return self.prompt_index, self.seed, self.sample

    def to_json(self) -> str:
        """One line of JSON."""
        row = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(row | {"settings": dict(self.settings)}, ensure_ascii=False, default=dict, sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> CompletionRecord:
        """Read one line of JSON. Raises KeyError, TypeError or ValueError for a line that is not such a record."""
        kinds: dict[str, type | tuple[type, ...]] = {"prompt_index": int, "sample": int, "seed": int}
        kinds |= {"prompt": (str, list), "completion": str, "token_ids": list, "is_finished": bool}
        kinds |= {"settings": dict, "model_hash": str}
        row = _fields(line, kinds)
        if not isinstance(row["prompt"], str):
            if not all(isinstance(turn, dict) for turn in row["prompt"]):
                raise ValueError("the prompt is neither a text nor a list of turns")
            row["prompt"] = tuple(row["prompt"])
        return cls(**{**row, "token_ids": tuple(map(int, row["token_ids"]))})


def _fields(
    line: str, kinds: Mapping[str, type | tuple[type, ...]], optional: Mapping[str, type] = MappingProxyType({})
) -> dict[str, Any]:
    """The values of ``kinds``, and those of ``optional`` that are there, in a line of JSON.

    Raises KeyError or ValueError where one is not there, or another kind.
    """
    try:
        row = json.loads(line, object_pairs_hook=unique_keys)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}, and no object")
    wanted = {**kinds, **{name: kind for name, kind in optional.items() if name in row}}
    for name, kind in wanted.items():
        if not isinstance(row[name], kind) or (kind is int and isinstance(row[name], bool)):
            raise ValueError(f"{name} is {json.dumps(row[name])[:60]}")
    return {name: row[name] for name in wanted}


@dataclass(frozen=True, slots=True)
class ScoreRecord:
    """One sample judged against one prompt by one scorer: a row of a score table.

    ``sample`` says where the image or completion stands ("images/00012-s3.png", "pairs.parquet, row 7, image 0"),
    ``sample_key`` is the content hash of its bytes. ``recipe_id`` names everything that made the number: scorer version, preprocessing,
    precision, hash of the weights. ``score`` is the number as published; ``raw`` is what the network gave before any
    scale: the cosine of a CLIP scorer. ``logit_scale * raw`` is a Bradley-Terry logit; None where the scorer has none.
    ``prompt_cut`` says whether the scorer read the beginning of the prompt only; None where it was not checked.
    """

    sample: str
    sample_key: str
    prompt: str
    scorer: str
    recipe_id: str
    score: float
    raw: float
    logit_scale: float | None
    prompt_cut: bool | None = None

    @property
    def logit(self) -> float | None:
        """Bradley-Terry strength: P(a preferred to b) = sigmoid(a.logit - b.logit); None without a scale."""
        return None if self.logit_scale is None else self.logit_scale * self.raw


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it into place at the end, remove it on an error.

    A reader therefore sees the whole old file or the whole new one, whenever the writer is killed or the power fails.
    No two writers share a temporary, on whatever host or in whatever container they are.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # folders.py knows this name, and sweeps what was left behind; a long one must not become too long.
    temporary = path.with_name(f".{path.name[:80]}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        permit(temporary)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: Path, content: object, *, allow_nan: bool = True) -> None:
    """Write ``content`` to ``path`` as indented JSON, whole or not at all. Raises ValueError for NaN that is not allowed."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=allow_nan) + "\n")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """``atomic_write`` for a whole folder, of which there may be one writer at a time: an empty one to fill is yielded.

    What stood at ``folder`` is replaced; what a killed writer of it has left is removed.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            permit(path)
            sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk has no room for halves


def permit(path: Path) -> None:
    """Let those read a file whom the user's mask allows it: some writers, as that of safetensors, keep it to its owner."""
    if path.is_file():
        mask = os.umask(0o077)
        os.umask(mask)
        path.chmod(0o666 & ~mask)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk: a rename may otherwise outlive what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks have nothing of the kind
            raise
    finally:
        os.close(descriptor)
