"""The one training loop. It knows steps, batches and weights; it does not know what they are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from ..config import TrainingConfig
from ..errors import UserError
from ..types import BatchSource, Coupled, Gated, Observer, Step, StepOutput
from .ema import WeightAverage
from .optimizers import learning_rate_at
from .run_folder import RunFolder

Look = Callable[[int, nn.Module], Mapping[str, float]]
_WEIGHT = "weight of "


def _sums(output: StepOutput) -> dict[str, Tensor]:
    """Weighted sums of the metrics of ``output``, and the sums of their weights under names of their own."""
    sums: dict[str, Tensor] = {}
    for name, values in output.metrics.items():
        weights = output.weights.get(name)
        wide = values.float()
        sums[name] = (wide if weights is None else wide * weights.to(wide)).sum()
        sums[_WEIGHT + name] = wide.new_tensor(len(wide)) if weights is None else weights.to(wide).sum()
    return sums


@dataclass
class Trainer:
    """Everything one run needs; ``fit`` runs it.

    ``source`` gives the batches of each update; ``look(step, network)`` is called every ``look_every`` steps (0: only at the
    end; with ``look_first`` also before the first update) with the averaged weights in place, on the main process, and
    returns figures for metrics.jsonl. ``figures_of(number)`` are figures of update ``number`` that are known without
    running it. ``identity`` names hashes that a continued run must share with its beginning.
    """

    accelerator: Accelerator
    config: TrainingConfig
    folder: RunFolder
    network: nn.Module
    step: Step
    source: BatchSource
    optimizer: torch.optim.Optimizer
    look: Look
    look_every: int = 0
    identity: Mapping[str, str] = field(default_factory=dict)
    look_first: bool = False
    figures_of: Callable[[int], Mapping[str, float]] = lambda number: {}

    def __post_init__(self) -> None:
        self.policy, self.optimizer = self.accelerator.prepare(self.network, self.optimizer)
        self.weights = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        self.average = WeightAverage(self.weights, self.config.ema_decay) if self.config.ema_decay else None

    @property
    def effective_batch(self) -> int:
        """Examples in one optimizer step, over all processes."""
        return self.source.batch_size

    def fit(self) -> None:
        """Train to the end, from the newest checkpoint where there is one."""
        self.network.train()
        start = self._restore()
        if start == 0 and isinstance(self.step, Gated):
            gate = self.step.gate(self.policy, next(self.source.micro_batches(0)))
            self._log({"step": 0, **{f"gate/{name}": value for name, value in gate.items()}})
        if start == 0 and self.look_first:
            self._look(0)
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
                self._log({"step": done, **metrics, **self.figures_of(number)})
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
        sums = self._accumulate(number)
        norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update()
        metrics = {**self._mean(sums), "grad_norm": norm, "lr": rate}
        for observer in self._observers().values():
            observer.observe(self.network, metrics)
        return metrics

    def _observers(self) -> dict[str, Observer]:
        """What keeps a state of its own: the step, and a source that draws its examples from the policy."""
        parts: dict[str, object] = {"step": self.step, "source": self.source}
        return {name: part for name, part in parts.items() if isinstance(part, Observer)}

    def _accumulate(self, number: int) -> dict[str, Tensor]:
        """Gradients of one update; returns sums of metrics and of their weights, of this process."""
        batches, step = self.source.micro_batches(number), self.step
        if isinstance(step, Coupled):
            held = list(batches)
            batches, step = iter(held), step.coupled(self.policy, held, self._collect)
        # Gradients are averaged over processes, so the sum is scaled to the mean over the global batch.
        scale = self.accelerator.num_processes / self.source.denominator(number)
        sums: dict[str, Tensor] = {}
        batch = next(batches, None)
        while batch is not None:
            following = next(batches, None)
            with self.accelerator.no_sync(self.policy) if following is not None else nullcontext():
                output = step(self.policy, batch)
                self.accelerator.backward(output.loss * scale)
            for name, value in _sums(output).items():
                sums[name] = sums[name] + value if name in sums else value
            batch = following
        return sums

    def _collect(self, values: Tensor) -> list[Tensor]:
        if self.accelerator.num_processes == 1:
            return [values]
        gathered = gather_object([values.tolist()])
        return [torch.tensor(each, dtype=values.dtype, device=values.device) for each in gathered]

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

    def _mean(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        names = sorted(sums)
        stacked = torch.stack([sums[name] for name in names])
        summed = self.accelerator.reduce(stacked, reduction="sum")
        assert isinstance(summed, Tensor)
        totals = dict(zip(names, summed.tolist(), strict=True))
        return {
            name: total / totals[_WEIGHT + name]
            for name, total in totals.items()
            if not name.startswith(_WEIGHT) and totals[_WEIGHT + name]  # what no example had says nothing
        }

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
        tensors |= {name: observer.state_dict() for name, observer in self._observers().items()}
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
            for name, observer in self._observers().items():
                observer.load_state_dict(tensors[name])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.accelerator.is_main_process:
            self.folder.forget_after(start if found is not None else -1)
        self.accelerator.wait_for_everyone()
        return start
