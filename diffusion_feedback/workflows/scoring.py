"""Images to scores: cached by content, resumable, in shards under accelerate launch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate.utils import gather_object

from ..data.image_sets import ImageSet
from ..data.scores import SCORE_ENDINGS, score_dataset, write_scores
from ..errors import UserError, plural
from ..folders import is_main_process
from ..processes import process_state
from ..prompts import prompt_file
from ..records import ScoreRecord
from ..reports.console import folder_means, scores_summary
from ..scorers.function import ImageScorer
from ..scorers.loading import AnyScorer
from ..types.images import ImageItem
from .cached_scorers import CachedScorers, Outcome, open_scorers
from .image_inputs import Images, Prompts, open_inputs
from .outputs import check_not_input, output_file
from .settings import ImageSettings, ScoringSettings, as_list, made_of_keywords, shows

if TYPE_CHECKING:
    from ..data.places import Dataset

logger = logging.getLogger(__name__)

Scorers = AnyScorer | Sequence[AnyScorer]
"""One scorer or several."""

_NAMED = 20  # bad images that a message names


_KINDS = (ScoringSettings, ImageSettings)


@shows(*_KINDS)
def score(
    images: Images,
    prompts: Prompts = None,
    *,
    scorers: Scorers,
    output: str | Path | None = None,
    overwrite: bool = False,
    **settings: object,
) -> Dataset:
    """Score ``images`` against their prompts: a ``datasets.Dataset`` with the columns of the table that ``score`` writes.

    ``images``: PIL images, paths of images, folders or pairs, globs, a ``datasets.Dataset``, or a list of these;
    ``prompts``: one for each image, one for all, a file of prompts, or None for those that come with the images.
    ``scorers``: one or several of: a spec ("pickscore", "function=file.py:brightness"), a loaded scorer, a function (see
    ``scorer_from``). ``settings`` are the fields of ScoringSettings and ImageSettings. One row for each image and scorer:
    image, image_key (hash of its bytes), prompt, scorer, recipe_id, score, raw, logit_scale, prompt_cut; larger is better.
    The table is written to ``output`` too, a .parquet, .csv or .jsonl file, which replaces one of before with ``overwrite``
    alone. Scores that the cache holds are not computed again. Raises UserError for bad images, prompts, scorers and
    settings, and for an output that is there already or is read from.
    """
    scoring, inputs = made_of_keywords(settings, *_KINDS)
    with output_file(output, SCORE_ENDINGS, "score", overwrite=overwrite) as path:
        image_set = open_inputs(images, prompts, inputs)
        if path is not None:
            check_not_input(path, image_set.items, prompt_file(prompts))
        records = score_items(image_set.items, as_list(scorers), scoring)
        if path is not None and is_main_process():
            write_scores(records, path)
            logger.info("%s", _summary(records, image_set, path))
    return score_dataset(records)


def _summary(records: Sequence[ScoreRecord], images: ImageSet, output: Path) -> str:
    number = len({(record.sample, record.prompt) for record in records})
    left = len(images.items) - number
    counts = f"{output}: {len(records):,} scores of {number:,} images" + (f"; {left:,} left out" if left else "")
    means = folder_means(records, images.folders)
    return "\n".join([scores_summary(records), *([f"\n{means}"] if means else []), counts])


def score_items(
    items: Sequence[ImageItem], scorers: Sequence[AnyScorer], settings: ScoringSettings
) -> list[ScoreRecord]:
    """Score ``items`` by all of ``scorers``: the records scorer by scorer, item by item.

    What the cache holds is not scored again, so the same call goes on after a kill. Under ``accelerate launch`` each
    process scores its share, and all of them return everything. Images left out by ``on_bad_image="skip"`` are listed.
    Raises UserError for bad specs, weights and images, and where a scorer needs prompts that are not there.
    """
    if not items:
        raise UserError("no images to score", "give a folder of images or preference pairs")
    if not scorers:
        raise UserError("`scorers`: none is given", "name at least one")
    state = process_state()
    with open_scorers(scorers, settings, state) as opened:
        for scorer in opened.scorers:
            _check_prompts(scorer, items)
        cut = {scorer.name: _cut_prompts(scorer, items) for scorer in opened.scorers} if state.is_main_process else {}
        share = items[state.process_index :: state.num_processes]
        outcome = opened.score(share)
        state.wait_for_everyone()
        _report(outcome, len(share), settings, state.num_processes)
        opened.refresh()
        return _records(opened, items, cut)


def _check_prompts(scorer: ImageScorer, items: Sequence[ImageItem]) -> None:
    absent = [item.name for item in items if not item.prompt]
    if scorer.reads_prompts and absent:
        problem = f"{plural(len(absent), 'image has', 'images have')} no prompt, which {scorer.name!r} needs; the first: {absent[0]}"
        raise UserError(problem, "give `prompts` or `prompt`, a .txt beside each image, or a metadata.jsonl")


def _cut_prompts(scorer: ImageScorer, items: Sequence[ImageItem]) -> set[str]:
    """The prompts that are beyond the scorer's limit; they are counted, and the first is named."""
    prompts = sorted({item.prompt for item in items})
    cut = [prompt for prompt, is_cut in zip(prompts, scorer.cuts(prompts), strict=True) if is_cut]
    if cut:
        what = f"{scorer.name} ignores the ends of {len(cut)} of {len(prompts)} prompts"
        first = cut[0] if len(cut[0]) <= 60 else cut[0][:57] + "..."
        logger.warning("note: %s, beyond its token limit; the first: %r", what, first)
    return set(cut)


def _report(own: Outcome, number: int, settings: ScoringSettings, num_processes: int) -> None:
    """Say which images were left out, or laid on white. Raises UserError for those of ``own`` where none may be left out.

    At the end, so that all are reported at once; the others have their scores by then, and keep them.
    """
    outcomes = gather_object([own]) if num_processes > 1 else [own]
    transparent = [name for outcome in outcomes for name in outcome.transparent]
    if transparent:
        total = sum(outcome.num_scored for outcome in outcomes)
        what = f"{len(transparent)} of the {total} images scored now are transparent in part"
        logger.warning("note: %s, and are laid on white; one of them: %s", what, min(transparent))
    failed = [each for outcome in outcomes for each in outcome.failed]
    if settings.on_bad_image == "skip" and failed:
        logger.warning("%d images left out; the first of them:\n%s", len(failed), _named(failed))
    elif own.failed:
        problem = f"{len(own.failed)} of {number} images cannot be read; the first of them:\n{_named(own.failed)}"
        raise UserError(problem, "replace or remove them, or leave them out with `on_bad_image` skip")


def _named(failed: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"  {problem}" for _, problem in failed[:_NAMED])


def _records(opened: CachedScorers, items: Sequence[ImageItem], cut: Mapping[str, set[str]]) -> list[ScoreRecord]:
    """The scores of all ``items``, read back from the caches; an item that one scorer could not judge is left out.

    For all scorers: their means would be of different images else.
    """
    scored: list[tuple[ImageItem, list[tuple[float, float]]]] = []
    for item in items:
        values = opened.values(item)
        if values is not None:
            scored.append((item, values))
        elif opened.settings.on_bad_image == "error":
            raise UserError(f"{item.name}: its score is not in the cache", "score it again")
    if not scored:
        raise UserError("no image could be scored", "replace the images listed above")
    return [
        ScoreRecord(
            item.name,
            item.handle.key,
            item.prompt,
            scorer.name,
            scorer.recipe_id,
            *values[number],
            scorer.logit_scale,
            item.prompt in cut[scorer.name] if scorer.name in cut else None,
        )
        for number, scorer in enumerate(opened.scorers)
        for item, values in scored
    ]
