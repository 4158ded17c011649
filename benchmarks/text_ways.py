"""The two ways that ``text`` times: this package's DPO step and trl's, on the same model, texts and batches."""

from __future__ import annotations

import copy
import logging
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from diffusion_feedback.catalog import objective_row
from diffusion_feedback.likelihoods.tokenization import Tokenization
from diffusion_feedback.likelihoods.tokens import TokenLikelihood
from diffusion_feedback.models.causal_lm import LanguageModel
from diffusion_feedback.models.reference import FrozenModel
from diffusion_feedback.records import TextRecord
from diffusion_feedback.training.optimizers import adamw
from diffusion_feedback.training.preference import PreferenceStep
from diffusion_feedback.training.steps import StepParts
from diffusion_feedback.training.text_heldout import token_metrics
from diffusion_feedback.types.texts import TextBatch

LEARNING_RATE, BETA, MAX_GRAD_NORM = 1e-4, 0.1, 1.0
END = "</s>"


@dataclass(frozen=True)
class Setting:
    """A model like GPT-2's of ``layers`` x ``width``, and texts of about ``prompt`` + ``completion`` tokens."""

    layers: int
    width: int
    vocabulary: int
    prompt: int
    completion: int
    pairs: int
    steps: int
    device: str

    @property
    def window(self) -> int:
        """Longest sequence, in tokens."""
        return 2 * (self.prompt + self.completion)

    def model(self) -> GPT2LMHeadModel:
        """The model with random weights, without dropout, in training mode."""
        torch.manual_seed(0)
        config = GPT2Config(
            n_layer=self.layers,
            n_embd=self.width,
            n_head=max(1, self.width // 32),
            vocab_size=self.vocabulary,
            n_positions=self.window,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
        return GPT2LMHeadModel(config).to(self.device).train()

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token a word: "w7" is token 7; the end token is 0."""
        words = {END: 0} | {f"w{number}": number for number in range(1, self.vocabulary)}
        spelling = Tokenizer(models.WordLevel(words, unk_token=END))
        spelling.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=spelling, eos_token=END, pad_token=END)

    def rows(self) -> list[dict[str, str]]:
        """A pair for each place of each step; lengths vary by a quarter either way."""
        generator = np.random.default_rng(0)

        def text(length: int) -> str:
            count = int(generator.integers(length - length // 4, length + length // 4 + 1))
            return " ".join(f"w{number}" for number in generator.integers(1, self.vocabulary, count))

        return [
            {
                "prompt": text(self.prompt),
                "chosen": " " + text(self.completion),
                "rejected": " " + text(self.completion),
            }
            for _ in range(self.pairs * self.steps)
        ]


def now(device: str) -> float:
    """Seconds, after all that the device was given to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Clock:
    """Seconds of each step on the wall, and of all processor cores."""

    device: str
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    _start: tuple[float, float] = (0.0, 0.0)

    def start(self) -> None:
        """A step begins."""
        self._start = now(self.device), time.process_time()

    def stop(self) -> None:
        """It ends."""
        self.wall.append(now(self.device) - self._start[0])
        self.cpu.append(time.process_time() - self._start[1])


class Ours:
    """This package's step: likelihood of tokens, PreferenceStep, clipped gradients, AdamW, and all metrics read."""

    def __init__(self, setting: Setting, *, cached: bool = False, share_prompt: bool = False) -> None:
        self.setting, self.clock = setting, Clock(setting.device)
        self.network = LanguageModel(setting.model())
        records = [TextRecord(row["prompt"], row["chosen"], row["rejected"]) for row in setting.rows()]
        self.examples = Tokenization(setting.tokenizer(), setting.window).encode(records)
        self.parts = StepParts(
            TokenLikelihood(setting.device, share_prompt=share_prompt),
            FrozenModel.copy_of(self.network),
            objective_row("dpo"),
            {"beta": BETA},
            pair_metrics_of=token_metrics,
            reference_logps=self._look_up if cached else None,
        )
        self.known: dict[str, Tensor] = {}
        self.step = PreferenceStep(self.parts)
        self.optimizer = adamw(self.network.parameters(), LEARNING_RATE, weight_decay=0.0)
        self.losses: list[float] = []
        if cached:
            self._compute_reference()

    def batch(self, number: int) -> TextBatch:
        """The pairs of step ``number``."""
        size = self.setting.pairs
        examples = self.examples[number * size : (number + 1) * size]
        ones = torch.ones(len(examples))
        rejected = [example.rejected for example in examples if example.rejected is not None]
        ids, chosen = [example.example_id for example in examples], [example.chosen for example in examples]
        return TextBatch(ids, chosen, rejected, ones, ones, 0 * ones)

    def _compute_reference(self) -> None:
        for number in range(self.setting.steps):
            batch = self.batch(number)
            with torch.no_grad(), FrozenModel.copy_of(self.network)(self.network) as frozen:
                logps = self.parts.likelihood.logps(frozen, self.parts.likelihood.prepare(batch))
            self.known |= dict(zip(batch.example_ids, logps.view(2, -1).t(), strict=True))

    def _look_up(self, batch: TextBatch) -> Tensor:
        return torch.stack([self.known[example_id] for example_id in batch.example_ids]).t().flatten()

    def take(self, number: int) -> None:
        """One timed optimizer step."""
        self.clock.start()
        batch = self.batch(number)
        output = self.step(self.network, batch)
        (output.loss / len(batch)).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        metrics = torch.stack([values.float().mean() for values in output.metrics.values()]).tolist()
        self.clock.stop()
        self.losses.append(dict(zip(output.metrics, metrics, strict=True))["loss"])


class Theirs:
    """trl's DPOTrainer; ``between(number)`` is called after each of its steps, outside of its time."""

    def __init__(
        self, setting: Setting, *, cached: bool = False, between: Callable[[int], None] = lambda number: None
    ) -> None:
        quiet()
        from datasets import Dataset
        from transformers import PrinterCallback, TrainerCallback
        from trl import DPOConfig, DPOTrainer

        self.clock, losses = Clock(setting.device), list[Tensor]()
        clock = self.clock

        class Recorded(DPOTrainer):  # type: ignore[misc]
            def compute_loss(self, *args: Any, **more: Any) -> Any:
                computed = super().compute_loss(*args, **more)
                losses.append((computed[0] if isinstance(computed, tuple) else computed).detach())
                return computed

        class Between(TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, *args: Any, **more: Any) -> None:
                clock.start()

            def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                clock.stop()
                between(state.global_step - 1)
                clock.start()

        model = setting.model()
        self._losses = losses
        self._folder = tempfile.TemporaryDirectory()
        self.trainer = Recorded(
            model,
            copy.deepcopy(model),
            args=DPOConfig(output_dir=self._folder.name, **trl_settings(setting, cached=cached)),
            train_dataset=Dataset.from_list(setting.rows()),
            processing_class=setting.tokenizer(),
            callbacks=[Between()],
        )
        self.trainer.remove_callback(PrinterCallback)

    def train(self) -> None:
        """All steps."""
        self.trainer.train()
        self._folder.cleanup()

    @property
    def losses(self) -> list[float]:
        """The loss of each step."""
        return [float(loss) for loss in self._losses]

    def tokens(self) -> list[tuple[list[int], list[int], list[int]]]:
        """Prompt, chosen and rejected of each pair."""
        rows = self.trainer.train_dataset
        return [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in rows]


def trl_settings(setting: Setting, *, cached: bool) -> dict[str, Any]:
    """What makes trl do the same work as ours: its defaults are bfloat16, recomputed activations, shuffled pairs."""
    return {
        "beta": BETA,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": MAX_GRAD_NORM,
        "weight_decay": 0.0,
        "optim": "adamw_torch_fused",
        "per_device_train_batch_size": setting.pairs,
        "max_steps": setting.steps,
        "max_length": setting.window,
        "train_sampling_strategy": "sequential",
        "precompute_ref_log_probs": cached,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_dropout": True,
        "use_cpu": not setting.device.startswith("cuda"),
        "dataloader_pin_memory": False,
        "logging_steps": 10**9,
        "logging_first_step": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def quiet() -> None:
    """Let trl and what it stands on write nothing but errors, and no progress bars."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    logging.getLogger("trl").setLevel(logging.ERROR)


def check_tokens(ours: Ours, theirs: Theirs) -> None:
    """Raise SystemExit unless both ways see the same tokens."""
    for number, (example, (prompt, *sides)) in enumerate(zip(ours.examples, theirs.tokens(), strict=True)):
        for sequence, side in zip((example.chosen, example.rejected), sides, strict=True):
            assert sequence is not None
            if sequence.ids.tolist() != [*prompt, *side] or sequence.num_scored != len(side):
                sys.exit(f"pair {number}: the two ways tokenise it differently")


def side_by_side(setting: Setting, *, cached: bool) -> tuple[Ours, Theirs]:
    """One step of ours after each of theirs, in one process."""
    ours = Ours(setting, cached=cached)
    theirs = Theirs(setting, cached=cached, between=ours.take)
    check_tokens(ours, theirs)
    theirs.train()
    return ours, theirs


def shared_and_apart(setting: Setting, *, cached: bool) -> tuple[Ours, Ours]:
    """Our step with shared prompts and without, in turns."""
    shared, apart = (Ours(setting, cached=cached, share_prompt=share) for share in (True, False))
    for number in range(setting.steps):
        for way in (shared, apart) if number % 2 else (apart, shared):
            way.take(number)
    return shared, apart


def memory_of(way: str, setting: Setting) -> dict[str, int]:
    """Bytes at the peak of a run of ``way`` alone, and before it, when the libraries are loaded and a model is built.

    To be called in a process of its own.
    """
    name, *how = way.split()
    build: Callable[..., Any] = Theirs if name == "trl" else Ours
    if name == "trl":
        quiet()
        import trl

        assert trl.DPOTrainer
    model = setting.model()
    if setting.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = _resident()
    del model
    options = {"cached": "cached" in how} | ({} if name == "trl" else {"share_prompt": "shared" in how})
    run = build(setting, **options)
    if isinstance(run, Ours):
        for number in range(setting.steps):
            run.take(number)
    else:
        run.train()
    is_cuda = setting.device.startswith("cuda")
    return {"peak": torch.cuda.max_memory_allocated() if is_cuda else _resident("VmHWM"), "before": before}


def _resident(line: str = "VmRSS") -> int:
    """Bytes of this process in memory, now or (VmHWM) at their peak; the peak where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        # Kilobytes on Linux, bytes on macOS. On Linux a process inherits the number from the one that started it.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    row = next(row for row in status.read_text("utf-8").splitlines() if row.startswith(f"{line}:"))
    return int(row.split()[1]) * 1024


def products(setting: Setting, rows: Sequence[TextBatch], *, cached: bool, everywhere: bool) -> float:
    """Floating point operations of the matrix products of one step, a mean over the batches ``rows``.

    ``everywhere``: all positions are projected to the vocabulary, and once more in the backward pass.
    """
    layer = 24 * setting.width**2
    head = 2 * setting.width * setting.vocabulary
    total = 0.0
    for batch in rows:
        sequences = [*batch.chosen, *batch.rejected]
        padded = len(sequences) * max(map(len, sequences))
        scored = sum(sequence.num_scored for sequence in sequences)
        trunk = padded * setting.layers * layer
        passes = 3.0 if cached else 4.0
        total += passes * trunk + (passes + everywhere) * head * (padded if everywhere else scored)
    return total / len(rows)
