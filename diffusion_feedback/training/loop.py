"""The one training loop. It knows steps, batches and weights; it does not know what they are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from ..config import TrainingConfig
from ..errors import UserError
from ..types import PreferenceBatch, Step
from .ema import WeightAverage
from .optimizers import learning_rate_at
from .order import PairOrder, split
from .run_folder import RunFolder

Batches = Callable[[Sequence[int], int], PreferenceBatch]
Look = Callable[[int, nn.Module], Mapping[str, float]]


@dataclass
class Trainer:
    """Everything one run needs; ``fit`` runs it.

    ``batches(indices, draw)`` gives pairs; ``look(step, network)`` is called every ``look_every`` steps (0: only at the
    end) with the averaged weights in place, on the main process, and returns figures for metrics.jsonl. ``identity``
    names hashes that a continued run must share with its beginning.
    """

    accelerator: Accelerator
    config: TrainingConfig
    folder: RunFolder
    network: nn.Module
    step: Step
    batches: Batches
    num_pairs: int
    optimizer: torch.optim.Optimizer
    look: Look
    look_every: int = 0
    identity: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.policy, self.optimizer = self.accelerator.prepare(self.network, self.optimizer)
        self.weights = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        self.average = WeightAverage(self.weights, self.config.ema_decay) if self.config.ema_decay else None
        self.order = PairOrder(self.num_pairs, self.effective_batch, self.config.seed)

    @property
    def effective_batch(self) -> int:
        """Pairs in one optimizer step, over all processes."""
        config = self.config
        processes = int(self.accelerator.num_processes)
        return config.train_batch_size * config.gradient_accumulation_steps * processes

    def micro_batches(self, number: int) -> Iterator[PreferenceBatch]:
        """This process's part of optimizer step ``number``."""
        parts = split(
            self.order.indices(number),
            self.config.gradient_accumulation_steps,
            self.accelerator.num_processes,
            self.accelerator.process_index,
        )
        draw = self.order.epoch(number)
        return (self.batches(indices, draw) for indices in parts)

    def fit(self) -> None:
        """Train to the end, from the newest checkpoint where there is one."""
        self.network.train()
        start = self._restore()
        if start == 0 and hasattr(self.step, "gate"):
            gate = self.step.gate(self.policy, next(self.micro_batches(0)))
            self._log({"step": 0, **{f"gate/{name}": value for name, value in gate.items()}})
        bar = tqdm(
            total=self.config.max_train_steps,
            initial=start,
            desc="train",
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        with bar:
            for number in range(start, self.config.max_train_steps):
                metrics = self.update(number)
                done = number + 1
                self._log({"step": done, **metrics})
                bar.update()
                rate = (bar.format_dict["rate"] or 0.0) * self.effective_batch
                shown = {"loss": f"{metrics['loss']:.4f}", "pairs/s": f"{rate:.1f}"}
                if "rewards/accuracies" in metrics:
                    shown["accuracy"] = f"{metrics['rewards/accuracies']:.3f}"
                bar.set_postfix(shown, refresh=False)
                if done == self.config.max_train_steps or (self.look_every and done % self.look_every == 0):
                    self._look(done)
                # After the look: whatever a checkpoint covers is then already written down.
                if done % self.config.checkpointing_steps == 0 or done == self.config.max_train_steps:
                    self._save(done)

    def update(self, number: int) -> dict[str, float]:
        """One optimizer step; returns the metrics averaged over the global batch."""
        rate = learning_rate_at(
            number,
            peak=self.config.learning_rate,
            scheduler=self.config.lr_scheduler,
            warmup_steps=self.config.lr_warmup_steps,
            max_steps=self.config.max_train_steps,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        totals: dict[str, Tensor] = {}
        last = self.config.gradient_accumulation_steps - 1
        for micro, batch in enumerate(self.micro_batches(number)):
            waiting = self.accelerator.no_sync(self.policy) if micro < last else nullcontext()
            with waiting:
                output = self.step(self.policy, batch)
                # Gradients are averaged over processes, so the sum is scaled to the mean over the global batch.
                scale = self.accelerator.num_processes / self.effective_batch
                self.accelerator.backward(output.loss * scale)
            for name, values in output.metrics.items():
                total = values.float().sum()
                totals[name] = totals[name] + total if name in totals else total
        norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update()
        return {**self._mean(totals), "grad_norm": norm, "lr": rate}

    def _clip(self) -> float:
        limit = self.config.max_grad_norm or float("inf")
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), limit)
        value = float(norm) if norm is not None else float("nan")
        # Under fp16 the loss scaler skips a step that overflowed; otherwise there is no way back from here.
        if self.accelerator.scaler is None and not value < float("inf"):
            raise UserError(
                f"the gradient norm is {value}", "lower training.learning_rate, or train in bf16 or float32"
            )
        return value

    def _mean(self, totals: Mapping[str, Tensor]) -> dict[str, float]:
        names = sorted(totals)
        stacked = torch.stack([totals[name] for name in names])
        summed = self.accelerator.reduce(stacked, reduction="sum")
        assert isinstance(summed, Tensor)
        return dict(zip(names, (summed / self.effective_batch).tolist(), strict=True))

    @contextmanager
    def result(self) -> Iterator[nn.Module]:
        """The network with the weights that the run gives out: the average where there is one."""
        with self.average.applied() if self.average is not None else nullcontext():
            yield self.network

    def _look(self, done: int) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            with self.result() as network:
                figures = self.look(done, network)
            if figures:
                self._log({"step": done, **{f"validation/{name}": value for name, value in figures.items()}})
        self.accelerator.wait_for_everyone()

    def _log(self, row: Mapping[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.folder.log(row)
        self.accelerator.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])

    def _save(self, done: int) -> None:
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        tensors: dict[str, Mapping[str, Tensor]] = {"policy": {name: p.detach() for name, p in self.weights.items()}}
        if self.average is not None:
            tensors["average"] = self.average.state_dict()
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None
        state = {"optimizer": self.optimizer.state_dict(), "scaler": scaler, "identity": self._identity()}
        self.folder.save_checkpoint(done, tensors, state, self.config.checkpoints_total_limit)

    def _identity(self) -> dict[str, str]:
        """What a continued run must share with its beginning, besides the recipe."""
        return {**self.identity, "effective batch": str(self.effective_batch)}

    def _restore(self) -> int:
        found = self.folder.load_checkpoint()
        if found is None:
            start = 0
        else:
            start, tensors, state = found
            for name, value in self._identity().items():
                if state["identity"][name] != value:
                    problem = (
                        f"{self.folder.path}: --resume with another {name}: {state['identity'][name]} became {value}"
                    )
                    raise UserError(problem, "resume with the same model, pairs and number of processes")
            with torch.no_grad():
                for name, parameter in self.weights.items():
                    parameter.copy_(tensors["policy"][name])
            if self.average is not None:
                self.average.load_state_dict(tensors["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.accelerator.is_main_process:
            self.folder.forget_after(start if found is not None else -1)
        self.accelerator.wait_for_everyone()
        return start
