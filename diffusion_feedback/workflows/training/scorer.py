"""From a recipe to a training run of a scorer: CLIP model, pairs, pictures, step, trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from ...catalog import objective_row, resolve
from ...config import Recipe
from ...data.cache import TensorCache
from ...data.images import EncodedImage
from ...data.views import CachedViews
from ...likelihoods.similarity import PromptImageSimilarity
from ...records import PairRecord
from ...training.loop import Trainer
from ...training.ranking import RankingStep, ranking_accuracy
from ...training.run_folder import RunFolder
from ...types import TrainableScorer
from .card import write_run_card
from .image_pairs import check_apart, load_pairs
from .session import (
    build_optimizer,
    build_order,
    encode_ahead,
    labels_hash,
    names_of,
    needed_pairs,
    note_truncated,
    pair_source,
)


def load_model(recipe: Recipe, device: torch.device) -> tuple[TrainableScorer, str]:
    """The scorer with all of its network trainable, and the hash of the model that training starts from."""
    model = recipe.model
    scorer: TrainableScorer = resolve("family", model.family)(
        model.pretrained_model_name_or_path,
        revision=model.revision,
        variant=model.variant,
        dtype=getattr(torch, model.dtype),
        device=device,
    )
    base_hash = scorer.model_hash()
    scorer.network.requires_grad_(True)
    if model.gradient_checkpointing:
        scorer.enable_gradient_checkpointing()
    return scorer, base_hash


def build_views(recipe: Recipe, scorer: TrainableScorer) -> CachedViews:
    """The pictures that the image tower takes, from the disk where ``data.cache`` says so."""
    if not recipe.data.cache:
        return CachedViews(scorer.cut, None)
    root = Path(recipe.data.cache_dir).expanduser()
    return CachedViews(scorer.cut, TensorCache(root / "views", {"view": scorer.view_id()}, parts=("pixels",)))


def build_step(recipe: Recipe, scorer: TrainableScorer, views: CachedViews, accelerator: Accelerator) -> RankingStep:
    """The step of the recipe's objective."""
    return RankingStep(
        PromptImageSimilarity(scorer.tokenize, views, scorer.normalise, accelerator.device),
        objective_row(recipe.objective["name"]),
        {key: value for key, value in recipe.objective.items() if key != "name"},
        soft_labels=recipe.data.soft_labels,
        weighted=recipe.data.prompt_weights,
        autocast=accelerator.autocast,
    )


class ScorerSession:
    """One training run of a scorer, ready to go: ``fit`` trains, ``finish`` writes the result."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.scorer, self.base_hash = load_model(recipe, accelerator.device)
        self.views = build_views(recipe, self.scorer)
        self.step = build_step(recipe, self.scorer, self.views, accelerator)
        self.step.check()
        self.optimizer = build_optimizer(recipe, self.parameters())
        on_pair = self._cut_streamed() if recipe.data.streaming else None
        resolution = self.scorer.resolution
        train = load_pairs(recipe, accelerator, resolution=resolution, on_pair=on_pair)
        assert train is not None
        self.train = train
        self.heldout = load_pairs(recipe, accelerator, resolution=resolution, heldout=True, on_pair=on_pair)
        check_apart(self.train, self.heldout)
        self.order = build_order(recipe, train, accelerator)
        note_truncated(self.scorer.count_truncated(sorted({pair.prompt for pair in train.pairs})), accelerator)

    def _cut_streamed(self) -> Callable[[PairRecord], None]:
        def cut(record: PairRecord) -> None:
            self.views([EncodedImage(image, record.source) for image in (record.image_0, record.image_1)])

        return cut

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        return self.scorer.network

    def parameters(self) -> list[nn.Parameter]:
        """What is trained: both towers, their projections, and the logit scale."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def frozen_bytes(self) -> dict[str, int]:
        """Nothing is held besides the network: there is no reference."""
        return {}

    def notes(self) -> list[str]:
        """What the loss of one pair depends on, where that is more than the pair."""
        if not objective_row(self.recipe.objective["name"]).is_coupled:
            return []
        size = self.recipe.training.train_batch_size
        return [f"batch-coupled    negatives are the other {size - 1} pairs of a pass; accumulation adds none"]

    def fit(self, folder: RunFolder) -> Trainer:
        """Cut the pictures and train to the end, in ``folder``."""
        recipe, accelerator = self.recipe, self.accelerator
        if recipe.data.cache and not recipe.data.streaming:
            share = needed_pairs(recipe, self.train, self.order, accelerator)
            encode_ahead(self.train, share, lambda batch: self.views([*batch.chosen, *batch.rejected]), accelerator)
        self._flush()
        accelerator.wait_for_everyone()
        trainer = Trainer(
            accelerator,
            recipe.training,
            folder,
            self.network,
            self.step,
            pair_source(recipe, self.order, self.train, accelerator),
            self.optimizer,
            look=self.look,
            look_every=recipe.validation.steps,
            identity={"base": self.base_hash, "pairs": labels_hash(self.train)},
            name_of=names_of(self.train),
        )
        trainer.fit()
        self._flush()
        return trainer

    def _flush(self) -> None:
        if self.views.cache is not None:
            self.views.cache.close()

    def look(self, step: int, network: nn.Module) -> Mapping[str, float]:
        """Accuracy and loss on the held-out pairs."""
        if self.heldout is None:
            return {}
        size = self.recipe.training.train_batch_size
        return ranking_accuracy(self.step, network, self.heldout.batch, num_pairs=len(self.heldout), batch_size=size)

    def finish(self, trainer: Trainer) -> None:
        """Write the CLIPModel folder and the model card, which marks the run as complete."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            with trainer.result() as network:
                self.scorer.save(network, trainer.folder.path)
                scale = self.scorer.logit_scale
            write_run_card("scorer", trainer, self.recipe, logit_scale=scale)
        self.accelerator.wait_for_everyone()
