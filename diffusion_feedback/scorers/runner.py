"""Several scorers over one set of images: each image is decoded once, each view cut once, each tower run once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from ..errors import UserError
from ..pixels import WAS_TRANSPARENT
from ..types.images import ImageItem, Scores
from .function import ImageScorer
from .scorer import SharedFeatures

Views = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """Some of the items with what each scorer says of them: ``scores[s]`` are those of scorer s, one row an item."""

    items: Sequence[ImageItem]
    scores: Sequence[Scores]


def score_batches(
    scorers: Sequence[ImageScorer],
    items: Iterable[ImageItem],
    *,
    batch_size: int = 16,
    workers: int = 4,
    on_bad: Callable[[ImageItem, UserError], None] | None = None,
    on_transparent: Callable[[ImageItem], object] | None = None,
) -> Iterator[ScoredBatch]:
    """Score ``items`` by all of ``scorers``, in batches and in order, of any number of images.

    ``workers`` threads decode and cut images while the models work on the batch before. An image that cannot be
    decoded goes to ``on_bad`` and is left out, or raises its UserError where ``on_bad`` is None; ``on_transparent`` is
    called, from those threads, for images that were laid on white. Raises UserError naming image and recipe for a score
    that is not finite.
    """
    shared = SharedFeatures()
    cuts: Mapping[str, ImageScorer] = {scorer.view_key: scorer for scorer in scorers}

    def views_of(item: ImageItem) -> Views:
        image = item.handle.open()
        if on_transparent is not None and image.info.get(WAS_TRANSPARENT):
            on_transparent(item)
        try:
            return {key: scorer.view(image) for key, scorer in cuts.items()}
        except UserError as error:
            raise UserError(f"{item.name}: {error.problem}", error.remedy) from error

    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            for batch in _batches(pool, views_of, items, batch_size, on_bad):
                yield _judge(scorers, batch, shared)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _batches(
    pool: ThreadPoolExecutor,
    views_of: Callable[[ImageItem], Views],
    items: Iterable[ImageItem],
    batch_size: int,
    on_bad: Callable[[ImageItem, UserError], None] | None,
) -> Iterator[list[tuple[ImageItem, Views]]]:
    """Whole batches of decoded items; a batch is decoded while the one before it is judged."""
    rest = iter(items)
    ahead: deque[tuple[ImageItem, Future[Views]]] = deque()
    batch: list[tuple[ImageItem, Views]] = []
    while True:
        ahead.extend((item, pool.submit(views_of, item)) for item in islice(rest, 2 * batch_size - len(ahead)))
        if not ahead:
            break
        item, future = ahead.popleft()
        try:
            batch.append((item, future.result()))
        except UserError as error:
            if on_bad is None:
                raise
            on_bad(item, error)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


@torch.inference_mode()
def _judge(
    scorers: Sequence[ImageScorer], batch: Sequence[tuple[ImageItem, Views]], shared: SharedFeatures
) -> ScoredBatch:
    items = [item for item, _ in batch]
    prompts = [item.prompt for item in items]
    shared.images.clear()
    scores: list[Scores] = []
    for scorer in scorers:
        judged = scorer.judge_views([views[scorer.view_key] for _, views in batch], prompts, shared)
        _check_finite(scorer, items, judged)
        scores.append(judged)
    return ScoredBatch(items, scores)


def _check_finite(scorer: ImageScorer, items: Sequence[ImageItem], scores: Scores) -> None:
    bad = torch.nonzero(~(scores.score.isfinite() & scores.raw.isfinite())).flatten().tolist()
    if bad:
        item, value = items[bad[0]], float(scores.score[bad[0]])
        problem = f"{item.name}: score {value} by {scorer.recipe_id} ({len(bad)} of {len(items)} in this batch)"
        raise UserError(problem, "float16 may overflow: use `dtype` float32 or bfloat16; or the weights are damaged")
