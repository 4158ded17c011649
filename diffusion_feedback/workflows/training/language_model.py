"""A run of a language model on given completions: pairs of them, labelled ones, or demonstrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ...catalog import needs_reference
from ...config.recipe import Recipe
from ...data.token_index import TokenIndex
from ...errors import UserError
from ...likelihoods.tokens import TokenLikelihood
from ...training.preference import PreferenceStep
from ...training.run_folder import RunFolder
from ...training.steps import PointwiseStep
from ...training.text_heldout import (
    Means,
    chosen_logps,
    heldout_metrics,
    step_means,
    text_accuracy,
    token_metrics,
)
from ...types.models import GenerativeTextModel
from .base_model import FrozenReference, base_model, frozen_reference, make_trainable
from .card import tokenizer_facts
from .given import Setup
from .reference_answers import ReferenceAnswers
from .sample_completions import CompletionSamples
from .session import Session
from .steps import preference_parts, step_of
from .text_examples import examples_hash
from .token_batches import TokenBatches, passes_over


def language_model_session(setup: Setup) -> Session:
    """Load the model, its reference and the texts. Raises UserError for bad input."""
    recipe, accelerator = setup.recipe, setup.accelerator
    _check_batch(setup)  # before minutes of loading, not after
    model: GenerativeTextModel = base_model(setup)
    base_hash = model.model_hash()
    texts = TokenBatches.load(setup, model, share_prompt=recipe.text.share_prompt)
    reference = None
    if needs_reference(recipe.objective):
        reference = frozen_reference(recipe, model, base_hash, accelerator.device, model.tokenizer)
    adapters = make_trainable(recipe, model)
    likelihood = TokenLikelihood(
        accelerator.device, share_prompt=recipe.text.share_prompt, tail_weight=recipe.text.tail_weight
    )
    answers = None
    if reference is not None and recipe.text.cache_reference:
        answers = ReferenceAnswers.of(setup, reference, likelihood, model.network)
    step = _step(setup, likelihood, reference, answers, base_hash)
    step.check()
    described = "none: the objective knows no reference" if reference is None else reference.description
    identity = {"base": base_hash, "examples": examples_hash(texts.data.train.examples)}

    def prepare(folder: RunFolder) -> None:
        if answers is not None:
            answers.fill([texts.data.train, texts.data.heldout])

    return Session(
        recipe=recipe,
        accelerator=accelerator,
        network=model.network,
        step=step,
        train=texts.train,
        heldout=texts.heldout,
        order=texts.order,
        source=texts.source(),
        identity=identity | ({"reference": reference.weights_hash} if reference is not None else {}),
        evaluate=TextEvaluation(setup, step, texts, CompletionSamples.of(recipe, model, texts)),
        evaluates_first=True,
        save=model.save,
        written_files=model.written_files(),
        card="language_model",
        card_facts=lambda: {"is_chat": texts.data.is_conversational, "tokenizer": tokenizer_facts(model)},
        prepare=prepare,
        notes=[*texts.notes(model, adapters), f"reference        {described}"],
        frozen_bytes={} if reference is None or answers is not None else {"reference": reference.num_bytes},
        metrics_of=texts.num_tokens(),
        name_of=texts.name_of,
    )


def _check_batch(setup: Setup) -> None:
    """Raise UserError for steps of one labelled completion: KTO and its like compare it with another of the step."""
    recipe, training = setup.recipe, setup.recipe.training
    size = training.train_batch_size * training.gradient_accumulation_steps * setup.accelerator.num_processes
    if size < 2 and setup.objective.learns_from == "labels":
        problem = f"training.train_batch_size: {recipe.objective['name']} needs two examples a step, to compare prompts"
        raise UserError(problem, "raise training.train_batch_size or training.gradient_accumulation_steps")


def _step(
    setup: Setup,
    likelihood: TokenLikelihood,
    reference: FrozenReference | None,
    answers: ReferenceAnswers | None,
    base_hash: str,
) -> PreferenceStep | PointwiseStep:
    recipe = setup.recipe
    # Where the reference's answers are kept, the step never asks it, and must not keep it in memory.
    kept = reference.released() if reference is not None and answers is not None else reference
    parts = preference_parts(
        setup,
        likelihood,
        None if kept is None else kept.give,
        reference_logps=None if answers is None else answers.logps,
        starts_at_reference=reference is not None and reference.weights_hash == base_hash,
        # A sum that counts tails less says nothing a token: what is known of held-out texts is measured apart then.
        pair_metrics_of=token_metrics if recipe.text.tail_weight == 1 else lambda logps: {},
    )
    return step_of(parts)


@dataclass(frozen=True, slots=True)
class TextEvaluation:
    """Metrics on the held-out texts, and completions of fixed prompts on fixed seeds."""

    setup: Setup
    step: PreferenceStep | PointwiseStep
    texts: TokenBatches
    samples: CompletionSamples

    def __call__(self, step: int, network: nn.Module, folder: RunFolder) -> Mapping[str, float]:
        """The metrics; completions are written to ``folder``."""
        self.samples.draw(step, network, folder)
        heldout = self.texts.data.heldout
        if heldout is None:
            return {}
        passes = passes_over(self._recipe, heldout, share_prompt=self._recipe.text.share_prompt)
        means = step_means(self.step, network, self.texts.examples(heldout).batch, passes)
        tokens = sum(each.chosen.num_scored for each in heldout.examples if each.label is not False)
        start = next((row for row in folder.read_metrics() if row["step"] == 0 and "validation/nll" in row), None)
        metrics = heldout_metrics(
            means,
            chosen_logps=self._chosen_logps(means, network, heldout, passes),
            num_tokens=tokens,
            start=None if start is None else -start["validation/nll"] * tokens,
        )
        return metrics | self._pair_accuracy(network)

    @property
    def _recipe(self) -> Recipe:
        return self.setup.recipe

    def _pair_accuracy(self, network: nn.Module) -> dict[str, float]:
        """Implicit accuracy where the two sides of held-out pairs are learnt from one at a time."""
        pairs = self.texts.data.heldout_pairs
        if pairs is None:
            return {}
        passes = passes_over(self._recipe, pairs, share_prompt=False)
        return text_accuracy(PreferenceStep(self.step.parts), network, pairs.batch, passes)

    def _chosen_logps(
        self, means: Means, network: nn.Module, heldout: TokenIndex, passes: Sequence[Sequence[int]]
    ) -> float:
        """Sum over all chosen completions; the step's own, but where it counts the tails of completions less."""
        if self._recipe.text.tail_weight == 1:
            return means.values.get("logps/chosen", 0.0) * means.weights.get("logps/chosen", 0.0)
        with self.setup.accelerator.autocast():
            plain = TokenLikelihood(self.setup.accelerator.device)
            return chosen_logps(plain, network, heldout.batch, passes)
