"""Caches of latents and text embeddings, keyed by content: appendable by many processes, safe to kill at any moment."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import UserError
from ..progress import progress
from ..records import atomic_write, content_hash, write_text
from ..types.images import EncodedImages, ImageHandle, ImageView
from ..types.models import Conditioning
from .images import to_pixels
from .places import sweep_old

Entry = dict[str, Tensor]
Wanted = TypeVar("Wanted")

_OPEN_SHARDS = 64


class TensorCache:
    """Keys to named tensors, in one folder for each ``namespace``: what all of its entries depend on.

    The namespace (hash of the encoder's weights, resolution, precision, ...) is hashed into the name of the folder, and
    stands in it as ``namespace.json``. Entries lie in safetensors shards that are written beside and renamed, and never
    changed after; several processes may append at once. What was not flushed is lost with its process, nothing else.
    A shard is named by the hash of its content, which is checked when it is first read in a process. One that is
    damaged or foreign, lacks one of ``parts`` (the names of the tensors of every entry, where they are known beforehand),
    or holds values that are not finite is set aside with a warning, and its entries are computed again.
    Raises UserError naming the path where the folder cannot be written. Keys must not hold "/".
    """

    def __init__(
        self,
        folder: str | Path,
        namespace: Mapping[str, str | int | float],
        *,
        parts: Collection[str] | None = None,
        flush_every: int = 512,
    ) -> None:
        text = json.dumps(dict(namespace), sort_keys=True, indent=1)
        self.folder = Path(folder).expanduser() / content_hash(text)
        self._flush_every = flush_every
        self._parts = None if parts is None else tuple(sorted(parts))
        self._pending: dict[str, Entry] = {}
        self._shard_of: dict[str, str] = {}
        self._names: dict[str, tuple[str, ...]] = {}  # names of the tensors of an entry; few distinct ones
        self._known: set[str] = set()
        self._verified: set[str] = set()
        self._open: OrderedDict[str, Any] = OrderedDict()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "namespace.json").is_file():
                write_text(self.folder / "namespace.json", text + "\n")
            sweep_old(self.folder)
        except OSError as error:
            raise self._unwritable(error) from error
        self.refresh()

    def _unwritable(self, error: OSError) -> UserError:
        problem = f"{self.folder}: the cache cannot be written ({error.strerror or error})"
        return UserError(
            problem,
            "free the disk or change its rights, give another cache_dir, or do without (data.cache: false for"
            " images, text.cache_reference: false for texts)",
        )

    def __enter__(self) -> TensorCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._shard_of) + len(self._pending)

    def __contains__(self, key: str) -> bool:
        return key in self._pending or (key in self._shard_of and self._is_sound(self.folder / self._shard_of[key]))

    def refresh(self) -> None:
        """Take in shards that other processes have added."""
        for path in sorted(self.folder.glob("[!.]*.safetensors")):
            if path.name not in self._known:
                self._known.add(path.name)
                self._take_in(path)

    def _take_in(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as shard:
                names = list(shard.keys())
        except (SafetensorError, OSError) as error:
            self._drop(path, error)
            return
        entries: dict[str, list[str]] = {}
        for name in names:
            key, _, part = name.partition("/")
            entries.setdefault(key, []).append(part)
        for key, parts in entries.items():
            self._shard_of.setdefault(key, path.name)
            self._names.setdefault(key, tuple(sorted(parts)))

    def _check_parts(self, shard: str) -> None:
        """Raise OSError where an entry of ``shard`` lacks a tensor that the others have."""
        names = {key: self._names[key] for key, name in self._shard_of.items() if name == shard}
        expected = self._parts or next(iter(names.values()), ())
        lacking = next((key for key, parts in names.items() if parts != expected), None)
        if lacking is not None:
            raise OSError(f"{lacking} has {', '.join(names[lacking])}, expected is {', '.join(expected)}")

    def _drop(self, path: Path, error: Exception) -> None:
        # Set aside, not deleted: what looks broken may be a disk that is away for a moment.
        aside = path.with_suffix(".broken")
        with contextlib.suppress(OSError):
            path.rename(aside)
        message = f"{path}: broken cache shard ({error}); set aside as {aside.name}, its entries are computed again"
        warnings.warn(message, stacklevel=4)
        self._known.discard(path.name)
        self._open.pop(path.name, None)
        for key in [key for key, name in self._shard_of.items() if name == path.name]:
            del self._shard_of[key], self._names[key]

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of ``keys`` that have no entry, each once, in order; looks for what other processes have added."""
        absent = [key for key in dict.fromkeys(keys) if key not in self]
        if absent:
            self.refresh()
        return [key for key in absent if key not in self]

    def get(self, key: str) -> Entry | None:
        """The entry of ``key``, or None. The tensors are not to be written to."""
        if key in self._pending:
            return self._pending[key]
        if key not in self._shard_of or not self._is_sound(path := self.folder / self._shard_of[key]):
            return None
        try:
            shard = self._shard(path)
            return {name: shard.get_tensor(f"{key}/{name}") for name in self._names[key]}
        except (SafetensorError, OSError) as error:
            self._drop(path, error)
            return None

    def _is_sound(self, path: Path) -> bool:
        """Whether a shard holds what was written, and numbers alone; checked once a process, and then set aside if not."""
        if path.name in self._verified:
            return True
        try:
            if content_hash(path) != path.stem:
                raise OSError("its content is not what its name, a hash, says")
            with safe_open(path, "pt") as shard:
                broken = next((name for name in shard.keys() if not _is_finite(shard.get_tensor(name))), None)  # noqa: SIM118
            if broken is not None:
                raise OSError(f"{broken} is not finite")
            self._check_parts(path.name)
        except (SafetensorError, OSError) as error:
            self._drop(path, error)
            return False
        self._verified.add(path.name)
        return True

    def _shard(self, path: Path) -> Any:
        if path.name not in self._open:
            self._open[path.name] = safe_open(path, "pt")
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(path.name)
        return self._open[path.name]

    def put(self, key: str, entry: Mapping[str, Tensor]) -> None:
        """Add an entry; one that is there already is kept. Raises UserError where a full shard cannot be written.

        Raises ValueError for values that are not finite: whoever computed them says what they mean.
        """
        if "/" in key:
            raise ValueError(f"a key must not hold '/': {key!r}")
        if key in self:
            return
        if _first_not_finite(entry):
            raise ValueError(f"{_first_not_finite(entry)} of {key} is not finite")
        # Clones: safetensors refuses tensors that share memory, and a view would hold on to its whole batch.
        self._pending[key] = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in entry.items()}
        if len(self._pending) >= self._flush_every:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as one shard. Raises UserError naming the path where that fails."""
        if not self._pending:
            return
        data = save({f"{key}/{name}": value for key, entry in self._pending.items() for name, value in entry.items()})
        path = self.folder / f"{content_hash(data)}.safetensors"
        try:
            with atomic_write(path) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            raise self._unwritable(error) from error
        self._known.add(path.name)
        self._verified.add(path.name)
        for key, entry in self._pending.items():
            self._shard_of[key] = path.name
            self._names[key] = tuple(sorted(entry))
        self._pending = {}

    def close(self) -> None:
        """Flush, and let go of the files."""
        self.flush()
        self._open.clear()


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _first_not_finite(entry: Mapping[str, Tensor]) -> str | None:
    return next((name for name, tensor in entry.items() if not _is_finite(tensor)), None)


def _look_up(
    cache: TensorCache | None,
    wanted: Mapping[str, Wanted],
    encode: Callable[[Mapping[str, Wanted]], dict[str, Entry]],
    batch_size: int,
) -> dict[str, Entry]:
    """The entries of ``wanted``: from the cache, and the absent ones by ``encode``, ``batch_size`` at a time."""
    entries: dict[str, Entry] = {}
    if cache is not None:
        cache.missing(wanted)
        entries = {key: entry for key in wanted if (entry := cache.get(key)) is not None}
    absent = [key for key in wanted if key not in entries]
    for start in range(0, len(absent), batch_size):
        chunk = absent[start : start + batch_size]
        entries.update(encode({key: wanted[key] for key in chunk}))
    return entries


@dataclass(frozen=True, slots=True)
class CachedImageEncoder:
    """An ImageEncoder: latents from the cache, or by ``encode_pixels`` ((N, 3, R, R) in [-1, 1] to (N, C, h, w)).

    Repeated images are encoded once a call, at most ``batch_size`` at a time; without a cache, always. ``dtype`` is the
    precision of cached latents; a latent that was just encoded is rounded as one read back, so a first run equals a
    second. Raises UserError for an image that cannot be decoded or whose latents are not finite.
    """

    encode_pixels: Callable[[Tensor], Tensor]
    resolution: int
    cache: TensorCache | None
    batch_size: int = 8
    dtype: torch.dtype = torch.float32

    def encode(self, images: Sequence[ImageHandle], views: Sequence[ImageView]) -> EncodedImages:
        """Latents (N, C, h, w) and sizes (N, 6), float32 on the CPU."""
        keys = [self._key(image, view) for image, view in zip(images, views, strict=True)]
        wanted = dict(zip(keys, zip(images, views, strict=True), strict=True))
        entries = _look_up(self.cache, wanted, self._encoded, self.batch_size)
        latents = torch.stack([entries[key]["latents"] for key in keys])
        return EncodedImages(latents.float(), torch.stack([entries[key]["sizes"] for key in keys]))

    def _key(self, image: ImageHandle, view: ImageView) -> str:
        return content_hash(image.key, json.dumps([self.resolution, *map(float, view.crop), view.flip]))

    def _encoded(self, wanted: Mapping[str, tuple[ImageHandle, ImageView]]) -> dict[str, Entry]:
        cut = [to_pixels(image.open(), self.resolution, view) for image, view in wanted.values()]
        with torch.no_grad():
            latents = self.encode_pixels(torch.stack([pixels for pixels, _ in cut])).float().cpu()
        entries: dict[str, Entry] = {}
        for (key, (image, _)), latent, (_, sizes) in zip(wanted.items(), latents, cut, strict=True):
            stored = latent if self.cache is None else latent.to(self.dtype)
            if not bool(stored.isfinite().all()):
                problem = f"image {image.key}: its latents are not finite in {str(stored.dtype).removeprefix('torch.')}"
                raise UserError(problem, "run the VAE in float32 (SDXL's overflows in float16), or cache in float32")
            entries[key] = {"latents": stored, "sizes": sizes}
            if self.cache is not None:
                self.cache.put(key, entries[key])
        return entries


@dataclass(frozen=True, slots=True)
class CachedTextEncoder:
    """A TextEncoder: text embeddings from the cache, or by ``encode``; a prompt is encoded once a call.

    ``dtype`` is the precision of cached floating-point tensors. These are given out as float32, others as they are.
    """

    encode_prompts: Callable[[Sequence[str]], Conditioning]
    cache: TensorCache | None
    batch_size: int = 64
    dtype: torch.dtype = torch.float32

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Named tensors, one row a prompt."""
        wanted = {content_hash(prompt): prompt for prompt in prompts}
        entries = _look_up(self.cache, wanted, self._encoded, self.batch_size)
        rows = [entries[content_hash(prompt)] for prompt in prompts]
        return {name: _float32(torch.stack([row[name] for row in rows])) for name in rows[0]}

    def fill(self, prompts: Iterable[str]) -> None:
        """Bring all of ``prompts`` into the cache, with a progress bar. Raises ValueError without a cache."""
        if self.cache is None:
            raise ValueError("there is no cache to fill")
        wanted = {content_hash(prompt): prompt for prompt in prompts}
        absent = self.cache.missing(wanted)
        with progress(
            total=len(wanted), initial=len(wanted) - len(absent), unit="prompt", desc="encode prompts"
        ) as bar:
            for start in range(0, len(absent), self.batch_size):
                chunk = absent[start : start + self.batch_size]
                self._encoded({key: wanted[key] for key in chunk})
                bar.update(len(chunk))
        self.cache.flush()

    def _encoded(self, wanted: Mapping[str, str]) -> dict[str, Entry]:
        with torch.no_grad():
            text = {name: tensor.cpu() for name, tensor in self.encode_prompts(list(wanted.values())).items()}
        if self.cache is not None:
            text = {name: t.to(self.dtype) if t.is_floating_point() else t for name, t in text.items()}
        entries = {key: {name: tensor[row] for name, tensor in text.items()} for row, key in enumerate(wanted)}
        for key, entry in entries.items():
            broken = _first_not_finite(entry)
            if broken:
                kind = str(entry[broken].dtype).removeprefix("torch.")
                problem = f"prompt {wanted[key][:80]!r}: its {broken} from the text encoder are not finite in {kind}"
                raise UserError(
                    problem, "the text encoder's weights are damaged, or cache in float32 (data.cache_dtype)"
                )
            if self.cache is not None:
                self.cache.put(key, entry)
        return entries


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
