"""Several scorers over one set of images: each image is decoded once, each view cut once, each tower run once."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from ..errors import UserError
from ..pixels import WAS_TRANSPARENT
from ..types import ImageItem, Scores
from .scorer import Scorer

_MAX_PROMPTS = 65_536  # prompt features held for each text tower: 256 MB at 1024 float32

Views = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """Some of the items with what each scorer says of them: ``scores[s]`` are those of scorer s, one row an item."""

    items: Sequence[ImageItem]
    scores: Sequence[Scores]


@dataclass
class _PromptFeatures:
    """Features of prompts, encoded once for each text tower; the oldest are forgotten when there are too many."""

    rows: dict[str, OrderedDict[str, Tensor]] = field(default_factory=dict)

    def of(self, scorer: Scorer, prompts: Sequence[str]) -> Tensor:
        known = self.rows.setdefault(scorer.text_key, OrderedDict())
        absent = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        if absent:
            known.update(zip(absent, scorer.encode_prompts(absent), strict=True))
        features = torch.stack([known[prompt] for prompt in prompts])
        while len(known) > _MAX_PROMPTS:
            known.popitem(last=False)
        return features


def run(
    scorers: Sequence[Scorer],
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
    told, from those threads, of images that were laid on white. Raises UserError naming image and recipe for a score
    that is not finite.
    """
    prompts = _PromptFeatures()
    cuts: Mapping[str, Scorer] = {scorer.view_key: scorer for scorer in scorers}

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
                yield _judge(scorers, batch, prompts)
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
    scorers: Sequence[Scorer], batch: Sequence[tuple[ImageItem, Views]], prompts: _PromptFeatures
) -> ScoredBatch:
    items = [item for item, _ in batch]
    stacked = {key: torch.stack([views[key] for _, views in batch]) for key in batch[0][1]}
    features: dict[tuple[str, str], Tensor] = {}
    scores: list[Scores] = []
    for scorer in scorers:
        place = (scorer.view_key, scorer.image_key)
        if place not in features:
            features[place] = scorer.encode_images(stacked[scorer.view_key])
        found = scorer.judge(features[place], prompts.of(scorer, [item.prompt for item in items]))
        _check_finite(scorer, items, found)
        scores.append(found)
    return ScoredBatch(items, scores)


def _check_finite(scorer: Scorer, items: Sequence[ImageItem], scores: Scores) -> None:
    bad = torch.nonzero(~(scores.score.isfinite() & scores.raw.isfinite())).flatten().tolist()
    if bad:
        item, value = items[bad[0]], float(scores.score[bad[0]])
        problem = f"{item.name}: score {value} by {scorer.recipe_id} ({len(bad)} of {len(items)} in this batch)"
        raise UserError(problem, "float16 may overflow: use `dtype` float32 or bfloat16; or the weights are damaged")
