"""A run of a scorer, a CLIP model, on pairs of images."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ...config.recipe import Recipe
from ...data.cache import TensorCache
from ...data.images import EncodedImage
from ...data.views import CachedViews
from ...folders import expand
from ...likelihoods.similarity import PromptImageSimilarity
from ...models.clip import ClipScorer
from ...records import PairRecord
from ...training.heldout import even_passes
from ...training.judging import JudgingStep, judging_sums
from ...training.run_folder import RunFolder
from .base_model import base_model, make_whole_trainable
from .given import Setup
from .image_pairs import ImagePairs
from .session import Session, step_parts


def scorer_session(setup: Setup) -> Session:
    """Load the model and the pairs. Raises UserError for bad input."""
    recipe, accelerator = setup.recipe, setup.accelerator
    scorer: ClipScorer = base_model(setup)
    base_hash = scorer.model_hash()
    make_whole_trainable(recipe, scorer)
    views = _build_views(recipe, scorer)
    judge = PromptImageSimilarity(scorer.tokenize, views, scorer.normalise, accelerator.device)
    step = JudgingStep(step_parts(setup, judge))
    step.check()

    def cut(record: PairRecord) -> None:
        views([EncodedImage(image, record.source) for image in (record.image_0, record.image_1)])

    def close() -> None:
        if views.cache is not None:
            views.cache.close()

    pairs = ImagePairs.load(
        setup,
        resolution=scorer.resolution,
        count_truncated=scorer.count_truncated,
        on_pair=cut if recipe.data.streaming else None,
    )

    def prepare(folder: RunFolder) -> None:
        if recipe.data.cache and not recipe.data.streaming:
            pairs.encode_ahead(lambda batch: views([*batch.chosen, *batch.rejected]))
        close()
        accelerator.wait_for_everyone()

    def evaluate(step_number: int, network: nn.Module, folder: RunFolder) -> Mapping[str, float]:
        heldout = pairs.heldout
        if heldout is None:
            return {}
        passes = even_passes(len(heldout), recipe.training.train_batch_size)
        sums = judging_sums(step, network, heldout.batch, passes)
        folder.log_heldout(step_number, [pair.example_id for pair in heldout.pairs], sums.of_each(passes))
        return sums.accuracy() | {"loss": sums.means()["loss"]}

    return Session(
        data=pairs,
        network=scorer.network,
        step=step,
        source=pairs.source(),
        identity={"base": base_hash, "pairs": pairs.labels_hash()},
        evaluate=evaluate,
        save=scorer.save,
        written_files=scorer.written_files(),
        card="scorer",
        card_facts=lambda: {"logit_scale": scorer.logit_scale},
        prepare=prepare,
        close=close,
        notes=_notes(setup),
    )


def _build_views(recipe: Recipe, scorer: ClipScorer) -> CachedViews:
    """The pictures that the image tower takes, from the disk where ``data.cache`` says so."""
    if not recipe.data.cache:
        return CachedViews(scorer.cut, None)
    root = expand(recipe.data.cache_dir)
    return CachedViews(scorer.cut, TensorCache(root / "views", {"view": scorer.view_id()}, parts=("pixels",)))


def _notes(setup: Setup) -> list[str]:
    """What the loss of one pair depends on, where that is more than the pair."""
    if not setup.objective.is_coupled:
        return []
    size = setup.recipe.training.train_batch_size
    return [f"batch-coupled    negatives are the other {size - 1} pairs of a pass; accumulation adds none"]
