"""Scorers with what they have said before: one cache for each recipe, one entry for each image and prompt."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from ..data.cache import TensorCache
from ..devices import find_device
from ..errors import UserError
from ..progress import progress
from ..records import content_hash
from ..scorers.function import ImageScorer
from ..scorers.loading import AnyScorer, load_scorers
from ..scorers.runner import ScoredBatch, score_batches
from ..types.images import ImageItem
from .settings import ScoringSettings

if TYPE_CHECKING:
    from accelerate.state import AcceleratorState

_FLUSH_SECONDS = 10.0  # what a killed process may have to score again

OnBad = Callable[[ImageItem, UserError], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of scoring: (name, problem) of bad images, the names of those laid on white, and how many were scored."""

    failed: Sequence[tuple[str, str]]
    transparent: Sequence[str]
    num_scored: int


@dataclass
class CachedScorers:
    """Loaded scorers and their caches. ``state`` is accelerate's state of this process."""

    scorers: Sequence[ImageScorer]
    caches: Mapping[str, TensorCache]
    settings: ScoringSettings
    state: Any

    def key(self, scorer: ImageScorer, item: ImageItem) -> str:
        """Where the score of ``item`` lies in the scorer's cache."""
        return content_hash(item.handle.key, item.prompt if scorer.reads_prompts else "")

    def score(self, items: Sequence[ImageItem]) -> Outcome:
        """Score what no cache holds, each distinct image and prompt once."""
        failed: list[tuple[str, str]] = []

        def on_bad(item: ImageItem, error: UserError) -> None:
            failed.append((item.name, error.problem))

        groups, num_cached = self._missing(items, on_bad)
        transparent: list[str] = []
        total = sum(map(len, groups.values()))
        if total:
            with self._bar(len(items), initial=num_cached, desc="score") as bar:
                for absent, wanted in groups.items():
                    scorers = [s for s in self.scorers if s.name in absent]
                    batches = score_batches(
                        scorers,
                        wanted,
                        batch_size=self.settings.batch_size,
                        workers=self.settings.workers,
                        on_bad=on_bad,
                        on_transparent=lambda item: transparent.append(item.name),
                    )
                    for batch in _flushing(batches, self._flush):
                        self._keep(scorers, batch)
                        bar.update(len(batch.items))
        self._flush()
        return Outcome([*failed, *_copies(items, failed)], transparent, total)

    def refresh(self) -> None:
        """See what other processes have added."""
        for cache in self.caches.values():
            cache.refresh()

    def values(self, item: ImageItem) -> list[tuple[float, float]] | None:
        """(score, raw) of ``item`` by each scorer; None where one has none."""
        if _unreadable(item) is not None:
            return None
        entries = [self.caches[scorer.recipe_id].get(self.key(scorer, item)) for scorer in self.scorers]
        values = [(float(entry["score"]), float(entry["raw"])) for entry in entries if entry is not None]
        return values if len(values) == len(entries) else None

    def _missing(self, items: Sequence[ImageItem], on_bad: OnBad) -> tuple[dict[tuple[str, ...], list[ImageItem]], int]:
        """Items by the scorers that have yet to see them, and how many none has to see."""
        groups: dict[tuple[str, ...], list[ImageItem]] = {}
        seen: set[tuple[str, str]] = set()
        num_known = 0
        with ExitStack() as stack:
            bar = stack.enter_context(self._bar(len(items), desc="hash images"))
            pool = ThreadPoolExecutor(self.settings.workers)
            # Whoever interrupts does not wait for the files that are still to be read.
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            for item, problem in zip(items, pool.map(_unreadable, items), strict=True):
                bar.update()
                if problem is not None:
                    on_bad(item, problem)
                    continue
                absent = tuple(s.name for s in self.scorers if self.key(s, item) not in self.caches[s.recipe_id])
                identity = (item.handle.key, item.prompt)
                if not absent or identity in seen:
                    num_known += 1
                    continue
                seen.add(identity)
                groups.setdefault(absent, []).append(item)
        return groups, num_known

    def _keep(self, scorers: Sequence[ImageScorer], batch: ScoredBatch) -> None:
        for scorer, scores in zip(scorers, batch.scores, strict=True):
            cache = self.caches[scorer.recipe_id]
            for item, score, raw in zip(batch.items, scores.score.double(), scores.raw.double(), strict=True):
                cache.put(self.key(scorer, item), {"score": score, "raw": raw})

    def _flush(self) -> None:
        for cache in self.caches.values():
            cache.flush()

    def _bar(self, total: int, *, desc: str, initial: int = 0) -> tqdm[object]:
        # A thousand hashes take less than a second, and a bar that flickers by says nothing.
        delay = 1.0 if desc == "hash images" else 0.0
        hidden = not self.state.is_main_process
        return progress(total=total, initial=initial, desc=desc, unit="image", disable=hidden, delay=delay)


@contextmanager
def open_scorers(
    scorers: Sequence[AnyScorer], settings: ScoringSettings, state: AcceleratorState
) -> Iterator[CachedScorers]:
    """Load ``scorers`` and open their caches. Raises UserError for bad specs, weights and devices."""
    device = find_device(settings.device) if settings.device else state.device
    loaded = load_scorers(scorers, device=device, dtype=getattr(torch, settings.dtype))
    with ExitStack() as stack:
        folder = settings.cache_dir
        if folder is None and state.num_processes > 1:
            raise UserError("`cache_dir`: is None, and several processes share their scores there", "name a folder")
        root = Path(folder or stack.enter_context(tempfile.TemporaryDirectory())) / "scores"
        caches = {
            s.recipe_id: stack.enter_context(TensorCache(root, {"recipe": s.recipe_id}, parts=("score", "raw")))
            for s in loaded
        }
        yield CachedScorers(loaded, caches, settings, state)


def _copies(items: Sequence[ImageItem], failed: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Images of the same bytes as one that failed: these were decoded once."""
    problems = dict(failed)
    bad = {item.handle.key: item.name for item in items if item.name in problems and _unreadable(item) is None}
    return [
        (item.name, f"{item.name}: the same file as {bad[item.handle.key]}")
        for item in items
        if item.name not in problems and _unreadable(item) is None and item.handle.key in bad
    ]


def _unreadable(item: ImageItem) -> UserError | None:
    """Take the hash of the image's bytes; what is wrong, where it cannot be read."""
    try:
        item.handle.key  # noqa: B018 (the hash is kept by the handle)
    except UserError as error:
        return error
    return None


def _flushing(batches: Iterable[ScoredBatch], flush: Callable[[], None]) -> Iterator[ScoredBatch]:
    """``batches``, with what was scored brought to the disk every few seconds."""
    last = time.monotonic()
    for batch in batches:
        yield batch
        if time.monotonic() - last > _FLUSH_SECONDS:
            flush()
            last = time.monotonic()
