"""From a recipe to a training run on texts: a language model on completions, or a reward model on pairs of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from torch import nn

from ...catalog import needs_reference, objective_row
from ...config import Recipe
from ...data.token_index import TokenIndex
from ...errors import UserError, within_memory
from ...likelihoods.rewards import SequenceRewards
from ...likelihoods.tokens import TokenLikelihood
from ...models import lora
from ...training.loop import Trainer
from ...training.order import PairOrder
from ...training.preference import PreferenceStep
from ...training.reward import RewardStep, reward_accuracy
from ...training.run_folder import RunFolder
from ...training.sources import TokenSource, UnpairedSource
from ...training.text_heldout import Means, chosen_logps, heldout_figures, implicit_accuracy, step_means
from .card import tokenizer_facts, write_run_card
from .session import Examples, build_optimizer
from .text_examples import TextData, examples_hash, load_texts
from .text_samples import Samples, sample_prompts
from .text_setup import (
    Rotated,
    budget_of,
    build_likelihood,
    build_reference,
    build_reference_cache,
    build_step,
    build_tokenization,
    describe_tokenizer,
    describe_tokens,
    lengths_of,
    load_judge,
    load_model,
    make_trainable,
    names_of_texts,
    num_tokens,
    passes_of,
)


def _check_step(recipe: Recipe, accelerator: Accelerator) -> None:
    """Raise UserError for steps of one labelled completion: KTO and its like compare it with another of the step."""
    size = recipe.training.train_batch_size * recipe.training.gradient_accumulation_steps * accelerator.num_processes
    if size < 2 and objective_row(recipe.objective["name"]).learns_from == "labels":
        problem = f"training.train_batch_size: {recipe.objective['name']} needs two examples a step, to compare prompts"
        raise UserError(problem, "raise training.train_batch_size or training.gradient_accumulation_steps")


def _build_order(recipe: Recipe, data: TextData, accelerator: Accelerator) -> PairOrder:
    """Raises UserError for a batch larger than the data, saying what became of the rows."""
    size = recipe.training.train_batch_size * recipe.training.gradient_accumulation_steps
    try:
        return PairOrder(len(data.train), size * accelerator.num_processes, recipe.training.seed)
    except UserError as error:
        reasons = [" ".join(note.split()) for note in data.notes]
        raise UserError("; ".join([error.problem, *reasons]), error.remedy) from error


def _token_source(
    recipe: Recipe, order: PairOrder, data: TextData, lengths: list[int], accelerator: Accelerator
) -> TokenSource | UnpairedSource:
    """The passes of each optimizer step, as the objective takes them.

    One on chosen samples alone is a mean over the tokens of the whole step, every other one a mean over its examples.
    """
    learns_from, budget = objective_row(recipe.objective["name"]).learns_from, budget_of(recipe, lengths)
    processes, rank = accelerator.num_processes, accelerator.process_index
    if learns_from == "labels":
        passes = recipe.training.gradient_accumulation_steps
        return UnpairedSource(order, data.train.unpaired, passes, processes, rank, lengths, budget)
    counts = [float(example.chosen.num_scored) for example in data.train.examples] if learns_from == "chosen" else None
    return TokenSource(order, data.train.batch, lengths, budget, processes, rank, counts)


class TextSession:
    """One training run of a language model on completions: ``fit`` trains, ``finish`` writes the result."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        device = accelerator.device
        _check_step(recipe, accelerator)  # before minutes of loading, not after
        self.model = load_model(recipe, recipe.model.pretrained_model_name_or_path, device)
        self.base_hash = self.model.model_hash()
        self.tokenization = build_tokenization(recipe, self.model)
        self.data = load_texts(recipe, self.tokenization, accelerator)
        self.order = _build_order(recipe, self.data, accelerator)
        self.lengths = lengths_of(self.data.train, share_prompt=recipe.text.share_prompt)
        self.reference = build_reference(recipe, self.model, self.base_hash, device)
        self.adapters = make_trainable(recipe, self.model)
        self.likelihood = build_likelihood(recipe, device)
        self.cached = (
            build_reference_cache(recipe, self.reference, self.likelihood, self.network, accelerator)
            if self.reference is not None and recipe.text.cache_reference
            else None
        )
        self.step: Any = build_step(recipe, self.likelihood, self.reference, self.cached, self.base_hash, accelerator)
        self.step.check()
        self.optimizer = build_optimizer(recipe, self.parameters())

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        return self.model.network

    @property
    def _is_unpaired(self) -> bool:
        return objective_row(self.recipe.objective["name"]).learns_from == "labels"

    def _examples(self, index: TokenIndex) -> Examples:
        return Rotated(index) if self._is_unpaired else index

    @property
    def train(self) -> Examples:
        """What is learnt from."""
        return self._examples(self.data.train)

    @property
    def heldout(self) -> Examples | None:
        """What is looked at; None where the recipe names nothing."""
        return None if self.data.heldout is None else self._examples(self.data.heldout)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for _, parameter in lora.trainable(self.network)]

    def frozen_bytes(self) -> dict[str, int]:
        """The reference, where it is a model of its own that stays."""
        if self.reference is None or self.cached is not None:
            return {}
        return {"reference": self.reference.num_bytes}

    def notes(self) -> list[str]:
        """Lengths, what was cut or left out, and where the reference comes from."""
        budget = budget_of(self.recipe, self.lengths)
        lines = describe_tokens(self.data.train, budget, self.lengths, self.tokenization)
        own = [*self.adapters, *describe_tokenizer(self.model)]
        return [*self.data.notes, *own, *lines, f"reference        {self._reference_note()}"]

    def _reference_note(self) -> str:
        model = self.recipe.model
        if not needs_reference(self.recipe.objective):
            return "none: the objective knows no reference"
        name = model.reference_model_name_or_path or "the model as loaded"
        how = "a copy of its own" if self.recipe.model.tuning == "full" else "the adapters switched off"
        if self.cached is not None:
            how = "computed once and looked up"
        elif model.reference_model_name_or_path is not None:
            how = "a model of its own"
        return f"{name}: {how}"

    def fit(self, folder: RunFolder) -> Trainer:
        """Ask the reference where its answers are kept, and train to the end, in ``folder``."""
        recipe, accelerator = self.recipe, self.accelerator
        for line in self.notes():
            accelerator.print(line)
        self._fill_reference()
        seen = num_tokens(self.data.train, self.order, recipe.training.max_train_steps)
        prompts = sample_prompts(recipe, self.tokenization, self.data, self.model.window)
        samples = Samples(recipe, self.model, folder, prompts)
        trainer = Trainer(
            accelerator,
            recipe.training,
            folder,
            self.network,
            self.step,
            _token_source(recipe, self.order, self.data, self.lengths, accelerator),
            self.optimizer,
            look=lambda step, network: self.look(step, network, folder, samples),
            look_every=recipe.validation.steps,
            identity={"base": self.base_hash, "examples": examples_hash(self.data.train.examples)}
            | ({"reference": self.reference.weights_hash} if self.reference is not None else {}),
            look_first=True,
            figures_of=lambda number: {"num_tokens": seen[number]},
            name_of=names_of_texts(self.data.train, self.model.tokenizer),
        )
        trainer.fit()
        return trainer

    def _fill_reference(self) -> None:
        if self.cached is None:
            return
        accelerator, indexes = self.accelerator, [self.data.train, self.data.heldout]
        self.network.train()
        for index in indexes:
            if index is None:
                continue
            lengths = lengths_of(index, share_prompt=self.recipe.text.share_prompt)
            passes = passes_of(range(len(index)), lengths, budget_of(self.recipe, lengths))
            mine = passes[accelerator.process_index :: accelerator.num_processes]
            with within_memory(
                "log-probabilities of the reference", "lower text.max_tokens_per_pass or text.max_length"
            ):
                self.cached.fill(index.batch, mine, show=accelerator.is_main_process)
            if accelerator.num_processes > 1:
                # What others have filled in is taken over while the reference is there to be asked for what is damaged,
                # or lies on a disk that this process does not see.
                accelerator.wait_for_everyone()
                self.cached.cache.refresh()
                self.cached.fill(index.batch, passes, show=False)
        accelerator.wait_for_everyone()
        self.cached.release()
        if self.reference is not None:
            self.reference = self.reference.released()

    def look(self, step: int, network: nn.Module, folder: RunFolder, samples: Samples) -> Mapping[str, float]:
        """Figures on the held-out texts, and completions of fixed prompts on fixed seeds."""
        samples.draw(step, network)
        heldout = self.data.heldout
        if heldout is None:
            return {}
        lengths = lengths_of(heldout, share_prompt=self.recipe.text.share_prompt)
        passes = passes_of(range(len(heldout)), lengths, budget_of(self.recipe, lengths))
        means = step_means(self.step, network, self._examples(heldout).batch, passes)
        examples = [example for example in heldout.examples if example.label is not False]
        tokens = sum(example.chosen.num_scored for example in examples)
        pairs = self.data.heldout_pairs
        own = {} if pairs is None else self._accuracy_on(pairs, network)
        start = next((row for row in folder.read_metrics() if row["step"] == 0 and "validation/nll" in row), None)
        figures = heldout_figures(
            means,
            chosen_logps=self._chosen_logps(means, network, passes),
            num_tokens=tokens,
            start=None if start is None else -start["validation/nll"] * tokens,
        )
        return figures | own

    def _accuracy_on(self, pairs: TokenIndex, network: nn.Module) -> dict[str, float]:
        """Implicit accuracy where the two sides of held-out pairs are learnt from one at a time."""
        lengths = lengths_of(pairs, share_prompt=False)
        passes = passes_of(range(len(pairs)), lengths, budget_of(self.recipe, lengths))
        return implicit_accuracy(PreferenceStep(self.step.parts), network, pairs.batch, passes)

    def _chosen_logps(self, means: Means, network: nn.Module, passes: Sequence[Sequence[int]]) -> float:
        """Sum over all chosen completions; the step's own, but where it counts the tails of completions less."""
        if self.recipe.text.tail_weight == 1:
            return means.values.get("logps/chosen", 0.0) * means.weights.get("logps/chosen", 0.0)
        assert self.data.heldout is not None
        with self.accelerator.autocast():
            plain = TokenLikelihood(self.accelerator.device)
            return chosen_logps(plain, network, self.data.heldout.batch, passes)

    def finish(self, trainer: Trainer) -> None:
        """Write weights (or adapters) and tokenizer, and the model card, which marks the run as complete."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            with trainer.result() as network:
                self.model.save(network, trainer.folder.path)
            facts = {"is_chat": self.data.is_conversational, "tokenizer": tokenizer_facts(self.model)}
            write_run_card("language_model", trainer, self.recipe, **facts)
        self.accelerator.wait_for_everyone()


class RewardSession:
    """One training run of a reward model on pairs of completions: ``fit`` trains, ``finish`` writes the result."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.model = load_judge(recipe, recipe.model.pretrained_model_name_or_path, accelerator.device)
        self.base_hash = self.model.model_hash()
        self.tokenization = build_tokenization(recipe, self.model)
        self.data = load_texts(recipe, self.tokenization, accelerator)
        self.order = _build_order(recipe, self.data, accelerator)
        self.lengths = lengths_of(self.data.train, share_prompt=False)
        self.adapters = make_trainable(recipe, self.model)
        self.step = RewardStep(
            SequenceRewards(accelerator.device),
            objective_row(recipe.objective["name"]),
            {key: value for key, value in recipe.objective.items() if key != "name"},
            soft_labels=recipe.data.soft_labels,
            weighted=recipe.data.prompt_weights,
            autocast=accelerator.autocast,
        )
        self.step.check()
        self.optimizer = build_optimizer(recipe, self.parameters())

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        return self.model.network

    @property
    def train(self) -> TokenIndex:
        """What is learnt from."""
        return self.data.train

    @property
    def heldout(self) -> TokenIndex | None:
        """What is looked at; None where the recipe names nothing."""
        return self.data.heldout

    def parameters(self) -> list[nn.Parameter]:
        """What is trained: the whole network, or its adapters and its head."""
        return [parameter for _, parameter in lora.trainable(self.network)]

    def frozen_bytes(self) -> dict[str, int]:
        """Nothing is held besides the network: there is no reference."""
        return {}

    def notes(self) -> list[str]:
        """Lengths, and what was cut or left out."""
        budget = budget_of(self.recipe, self.lengths)
        lines = describe_tokens(self.data.train, budget, self.lengths, self.tokenization)
        own = [*self.adapters, *describe_tokenizer(self.model)]
        return [*self.data.notes, *own, *lines]

    def fit(self, folder: RunFolder) -> Trainer:
        """Train to the end, in ``folder``."""
        recipe, accelerator = self.recipe, self.accelerator
        for line in self.notes():
            accelerator.print(line)
        seen = num_tokens(self.data.train, self.order, recipe.training.max_train_steps)
        trainer = Trainer(
            accelerator,
            recipe.training,
            folder,
            self.network,
            self.step,
            _token_source(recipe, self.order, self.data, self.lengths, accelerator),
            self.optimizer,
            look=self.look,
            look_every=recipe.validation.steps,
            identity={"base": self.base_hash, "examples": examples_hash(self.data.train.examples)},
            look_first=True,
            figures_of=lambda number: {"num_tokens": seen[number]},
            name_of=names_of_texts(self.data.train, self.model.tokenizer),
        )
        trainer.fit()
        return trainer

    def look(self, step: int, network: nn.Module) -> Mapping[str, float]:
        """Accuracy and loss on the held-out pairs."""
        if self.data.heldout is None:
            return {}
        lengths = lengths_of(self.data.heldout, share_prompt=False)
        passes = passes_of(range(len(lengths)), lengths, budget_of(self.recipe, lengths))
        return reward_accuracy(self.step, network, self.data.heldout.batch, passes)

    def finish(self, trainer: Trainer) -> None:
        """Write the sequence classification folder and the model card, which marks the run as complete."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            with trainer.result() as network:
                self.model.save(network, trainer.folder.path)
            facts = {"is_chat": self.data.is_conversational, "tokenizer": tokenizer_facts(self.model)}
            write_run_card("reward_model", trainer, self.recipe, **facts)
        self.accelerator.wait_for_everyone()
