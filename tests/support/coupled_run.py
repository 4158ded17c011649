"""Small real runs of objectives that look beyond their own example; also as a program, for several processes.

python tests/support/coupled_run.py FOLDER PASSES OBJECTIVE ...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import tiny_text
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from diffusion_feedback.catalog.objectives import OBJECTIVES as ROWS
from diffusion_feedback.config.recipe import TrainingConfig
from diffusion_feedback.data.token_index import TokenIndex, unpair
from diffusion_feedback.likelihoods.tokens import TokenLikelihood
from diffusion_feedback.models.causal_lm import LanguageModel
from diffusion_feedback.training.loop import Trainer
from diffusion_feedback.training.order import EpochOrder
from diffusion_feedback.training.preference import PreferenceStep
from diffusion_feedback.training.run_folder import RunFolder
from diffusion_feedback.training.sources import FixedBatchSource, TokenSource, UnpairedSource
from diffusion_feedback.training.steps import StepParts
from diffusion_feedback.types.texts import TokenExample, TokenSequence
from diffusion_feedback.types.training import BatchSource

OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    "kto": {"name": "kto", "beta": 0.5, "desirable_weight": 1.2},
    "aot": {"name": "aot", "beta": 0.5},
    "aot_unpaired": {"name": "aot_unpaired", "beta": 0.5},
    "bco": {"name": "bco", "beta": 0.5},
    "weighted_sum": {"name": "weighted_sum", "terms": [
        {"name": "bco", "weight": 0.5, "beta": 0.5}, {"name": "sft", "weight": 1.0},
    ]},
}  # fmt: skip
STEPS, GLOBAL = 3, 8


def examples(number: int = 16) -> list[TokenExample]:
    """Pairs of random tokens, of unlike lengths."""
    draws = np.random.default_rng(0)

    def side(prompt: np.ndarray) -> TokenSequence:
        completion = draws.integers(5, 60, size=draws.integers(1, 9))
        ids = np.concatenate([prompt, completion]).astype(np.int32)
        return TokenSequence(ids, np.arange(len(ids)) >= len(prompt), len(prompt))

    prompts = [draws.integers(5, 60, size=draws.integers(1, 6)) for _ in range(number)]
    return [TokenExample(f"{row:032x}", side(prompt), side(prompt)) for row, prompt in enumerate(prompts)]


def model(seed: int) -> LanguageModel:
    """A tiny language model."""
    return LanguageModel(tiny_text.language_model(seed=seed, vocab_size=64, positions=32))


def build_parts(objective: Mapping[str, Any], frozen: nn.Module, **changes: Any) -> StepParts:
    """The parts of a step; the reference is another model, so that log-ratios are not 0 from the start."""
    settings = {key: value for key, value in objective.items() if key != "name"}
    values: dict[str, Any] = {
        "reference": lambda policy: nullcontext(frozen.eval()), "starts_at_reference": False,
        "pair_metrics_of": lambda logps: {},
    }  # fmt: skip
    return StepParts(TokenLikelihood(), objective=ROWS[objective["name"]], settings=settings, **(values | changes))


def build_source(
    name: str, order: EpochOrder, passes: int, processes: int = 1, rank: int = 0, max_tokens: int | None = None
) -> BatchSource:
    """Passes of pairs, or of single samples with their partners; under a budget of tokens where there is one."""
    index = TokenIndex(unpair(examples()) if ROWS[name].learns_from == "labels" else examples())
    lengths = [2 * example.length for example in index.examples]
    source: FixedBatchSource | TokenSource = FixedBatchSource(order, index.batch, passes, processes, rank)
    if max_tokens is not None:
        source = TokenSource(order, index.batch, lengths, max_tokens, processes, rank)
    return UnpairedSource(source, index.unpaired) if ROWS[name].learns_from == "labels" else source


def run(name: str, folder: Path, passes: int, max_tokens: int | None = None) -> dict[str, Tensor]:
    """Train a few steps in ``folder``; the trained weights."""
    accelerator = Accelerator()
    network, objective = model(1), OBJECTIVES[name]
    order = EpochOrder(32 if ROWS[name].learns_from == "labels" else 16, GLOBAL, 0)
    config = TrainingConfig(max_train_steps=STEPS, learning_rate=0.05, checkpointing_steps=STEPS, max_grad_norm=0.0)
    trainer = Trainer(
        accelerator,
        config,
        RunFolder(folder),
        network,
        PreferenceStep.of(build_parts(objective, model(2))),
        build_source(name, order, passes, accelerator.num_processes, accelerator.process_index, max_tokens),
        torch.optim.SGD(network.parameters(), lr=config.learning_rate),
        evaluate=lambda step, network: {},
    )
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    trainer.fit()
    return {key: value.detach() for key, value in network.named_parameters()}


def metrics(folder: Path) -> list[dict[str, float]]:
    """The updates of a run, without their time: equal for equal runs."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key not in ("time", "seconds")} for row in rows if row["step"]]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[3:]:
        run(each, Path(sys.argv[1]) / each, int(sys.argv[2]))
