"""A run of a language model on given completions: pairs of them, labelled ones, or demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ...catalog import needs_reference
from ...config.recipe import Recipe
from ...data.token_index import TokenIndex
from ...errors import UserError
from ...likelihoods.tokens import TokenLikelihood
from ...models.causal_lm import CausalLM
from ...training.heldout import Passes, Sums, implicit_sums, step_sums
from ...training.preference import PreferenceStep
from ...training.run_folder import RunFolder
from ...training.steps import PointwiseStep
from ...training.text_heldout import chosen_logps, heldout_metrics, token_metrics
from .base_model import FrozenReference, base_model, frozen_reference, make_trainable
from .given import Setup
from .reference_answers import ReferenceAnswers
from .sample_completions import CompletionSamples
from .session import Session, step_of, step_parts
from .text_examples import examples_hash
from .token_batches import TokenBatches, passes_over
from .tokenization import tokenizer_facts


def language_model_session(setup: Setup) -> Session:
    """Load the model, its reference and the texts. Raises UserError for bad input."""
    recipe, accelerator = setup.recipe, setup.accelerator
    _check_batch(setup)  # before minutes of loading, not after
    model: CausalLM = base_model(setup)
    base_hash = model.model_hash()
    texts = TokenBatches.load(setup, model, share_prompt=recipe.text.share_prompt)
    reference = FrozenReference.none("the objective knows no reference")
    if needs_reference(recipe.objective):  # of a sum, where a term does
        reference = frozen_reference(recipe, model, base_hash, accelerator.device, model.tokenizer)
    adapters = make_trainable(setup, model, base_hash)
    likelihood = TokenLikelihood(
        accelerator.device, share_prompt=recipe.text.share_prompt, tail_weight=recipe.text.tail_weight
    )
    answers = None
    if reference.give is not None and recipe.text.cache_reference:
        answers = ReferenceAnswers.of(setup, reference.give, reference.weights_hash, likelihood, model.network)
    parts = step_parts(
        setup,
        likelihood,
        # Where the reference's answers are kept, the step never asks it, and must not keep it in memory.
        reference.give if answers is None else None,
        reference_logps=None if answers is None else answers.logps,
        starts_at_reference=reference.is_start_of(recipe, base_hash),
        # A sum that counts tails less says nothing a token: what is known of held-out texts is measured apart then.
        pair_metrics_of=token_metrics if recipe.text.tail_weight == 1 else lambda logps: {},
    )
    step = step_of(parts)
    step.check()

    def prepare(folder: RunFolder) -> None:
        if answers is not None:
            answers.fill([texts.data.train, texts.data.heldout])

    samples = CompletionSamples.of(model, texts)
    return Session(
        data=texts,
        network=model.network,
        step=step,
        source=texts.source(),
        identity={"base": base_hash, "examples": examples_hash(texts.data.train.examples), **reference.identity()},
        evaluate=TextEvaluation(step, texts, samples),
        evaluates_first=True,
        num_samples=lambda: len(samples.prompts),
        save=model.save,
        written_files=model.written_files(),
        card="language_model",
        card_facts=lambda: {"is_chat": texts.data.is_conversational, "tokenizer": tokenizer_facts(model)},
        prepare=prepare,
        notes=[*texts.notes(model, adapters), f"reference        {reference.description}", *samples.notes()],
        frozen_bytes={"reference": reference.num_bytes} if step.parts.reference is not None else {},
    )


def _check_batch(setup: Setup) -> None:
    """Raise UserError for steps of one labelled completion: KTO and its like compare it with another of the step."""
    if setup.batch_size < 2 and setup.objective.learns_from == "labels":
        name = setup.recipe.objective["name"]
        problem = f"training.train_batch_size: {name} needs two examples per step, to compare prompts"
        raise UserError(problem, "raise training.train_batch_size or training.gradient_accumulation_steps")


@dataclass(frozen=True, slots=True)
class TextEvaluation:
    """Metrics on the held-out texts, and completions of fixed prompts on fixed seeds."""

    step: PreferenceStep | PointwiseStep
    texts: TokenBatches
    samples: CompletionSamples

    def __call__(self, step: int, network: nn.Module, folder: RunFolder) -> Mapping[str, float]:
        """The metrics; completions are written to ``folder``."""
        self.samples.draw(step, network, folder)
        examples, heldout = self.texts.heldout, self.texts.data.heldout
        if examples is None or heldout is None:
            return {}
        passes = passes_over(self._recipe, heldout, share_prompt=self._recipe.text.share_prompt)
        sums = step_sums(self.step, network, examples.batch, passes, "texts")
        tokens = sum(each.chosen.num_scored for each in heldout.examples if each.label is not False)
        start = next((row for row in folder.read_metrics() if row["step"] == 0 and "validation/nll" in row), None)
        metrics = heldout_metrics(
            sums,
            chosen_logps=self._chosen_logps(sums, network, heldout, passes),
            num_tokens=tokens,
            start=None if start is None else -start["validation/nll"] * tokens,
        )
        of_each = sums.of_each(passes)
        pairs = self.texts.data.heldout_pairs
        if pairs is not None:  # the two sides of pairs are learnt from one at a time
            passes = passes_over(self._recipe, pairs, share_prompt=False)
            sums = implicit_sums(PreferenceStep(self.step.parts), network, pairs.batch, passes)
            metrics, of_each = metrics | sums.accuracy(), sums.of_each(passes)
        folder.log_heldout(step, [each.example_id for each in (pairs or heldout).examples], of_each)
        return metrics

    @property
    def _recipe(self) -> Recipe:
        return self.texts.setup.recipe

    def _chosen_logps(self, sums: Sums, network: nn.Module, heldout: TokenIndex, passes: Passes) -> float:
        """Sum over all chosen completions; the step's own, but where it counts the tails of completions less."""
        if self._recipe.text.tail_weight == 1:
            return sums.totals.get("logps/chosen", 0.0)
        accelerator = self.texts.setup.accelerator
        with accelerator.autocast():
            return chosen_logps(TokenLikelihood(accelerator.device), network, heldout.batch, passes)
