"""The one training loop. It knows steps, batches and weights; it does not know what they are made of."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..config.recipe import TrainingConfig
from ..errors import Interrupted, UserError, within_memory
from ..processes import agreed
from ..runs import RAW
from ..types.training import BatchSource, Coupled, Gated, Observer, Step
from .averages import weighted_means, weighted_sums
from .checkpoints import first_not_finite, forget_shared
from .ema import WeightAverage
from .failures import evaluation_failure
from .finite import MAX_SKIPPED, START_OVER, Watch, culprits_named
from .optimizers import scheduled_rate
from .progress_line import ProgressLine
from .resuming import check_identity, take_over, take_over_optimizer
from .run_folder import PREFIX, RunFolder
from .selection import Evaluations, Selection
from .stopping import StopSignals

Evaluate = Callable[[int, nn.Module], Mapping[str, float]]
_STOP = "stop requested"
_SMALLER = (
    "lower training.train_batch_size and raise training.gradient_accumulation_steps by as much, set"
    " model.gradient_checkpointing: true, or use another device; `resume` takes all of these. A lower data.resolution"
    " or text.max_length wants a run of its own"
)


@dataclass
class Trainer:
    """Everything one run needs; ``fit`` runs it.

    ``source`` gives the batches of each update; ``evaluate(step, network)`` is called every ``evaluate_every`` steps (0: only at the
    end; with ``evaluate_first`` also before the first update) with the averaged weights in place, on the main process, and
    returns metrics for metrics.jsonl. ``metrics_of(number)`` are metrics of update ``number`` that are known without
    running it. ``identity`` names hashes that a continued run must share with its beginning. ``name_of`` tells people
    where the example of an id stands; ``unit`` is what examples are called, in the plural. ``selection``: what is kept
    or ended by evaluations. ``save_weights`` writes a network to a folder as plain libraries load it.
    """

    accelerator: Accelerator
    config: TrainingConfig
    folder: RunFolder
    network: nn.Module
    step: Step[Any]
    source: BatchSource[Any]
    optimizer: torch.optim.Optimizer
    evaluate: Evaluate
    evaluate_every: int = 0
    identity: Mapping[str, str] = field(default_factory=dict)
    evaluate_first: bool = False
    metrics_of: Callable[[int], Mapping[str, float]] = lambda number: {}
    name_of: Callable[[str], str] = lambda example_id: f"pair {example_id}"
    unit: str = "examples"
    selection: Selection = field(default_factory=Selection)
    save_weights: Callable[[nn.Module, Path], None] = lambda network, folder: None

    def __post_init__(self) -> None:
        self.policy, self.optimizer = self.accelerator.prepare(self.network, self.optimizer)
        self.weights = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        self.average = WeightAverage(self.weights, self.config.ema_decay) if self.config.ema_decay else None
        self._saved = -1  # the step of the newest checkpoint
        self._skipped = 0  # updates that the loss scaler has left out, one after the other
        self._stop = StopSignals()
        self._is_stopping = False
        self.evaluations = Evaluations(self.folder, self.selection)
        self.stopped_early: str | None = None  # after which step the run ended before its last one, and why

    @property
    def effective_batch(self) -> int:
        """Examples in one optimizer step, over all processes."""
        return self.source.batch_size

    @property
    def max_steps(self) -> int:
        """Optimizer steps of the whole run; where a recipe says epochs, its caller has counted them."""
        assert self.config.max_train_steps is not None
        return self.config.max_train_steps

    def fit(self) -> None:
        """Train to the end, from the newest checkpoint where there is one.

        SIGTERM, SIGINT, SIGHUP and SIGUSR1 end the run after the step in progress, with a checkpoint: raises Interrupted. Raises
        UserError for NaN and infinity, out of memory, a full disk, and checkpoints that do not fit.
        """
        self.network.train()
        start = self._restore()
        if start == 0:
            self._begin()
        elif self._is_evaluation_due(start):
            self._evaluate(start)  # unless that was done before the run broke off
            if self.evaluations.can_judge(start):
                self._select(start)
        with self._stop:
            self._train(start)

    def _begin(self) -> None:
        """The check before the first update, and the metrics of the model as it came."""
        if isinstance(self.step, Gated):
            batch = next(self.source.micro_batches(0))
            with within_memory("step 1", _SMALLER):
                gate = self._gate(self.step, batch)
            self._log({"step": 0, **{f"gate/{name}": value for name, value in gate.items()}})
        if self.evaluate_first:
            self._evaluate(0)
            self.evaluations.check_first()

    def _gate(self, step: Gated[object], batch: object) -> Mapping[str, float]:
        try:
            return step.gate(self.policy, batch)
        except UserError as error:
            watch = Watch(self.name_of)
            with torch.no_grad():
                watch.note(batch, self.step(self.policy, batch))
            culprits = watch.culprits()
            raise UserError(error.problem + (culprits_named(culprits) if culprits else ""), error.remedy) from error

    def _train(self, start: int) -> None:
        is_hidden = not self.accelerator.is_main_process
        with ProgressLine(start, self.max_steps, self.effective_batch, self.unit, is_hidden=is_hidden) as line:
            for number in range(start, self.max_steps if self.stopped_early is None else start):
                done = number + 1
                with within_memory(f"step {done}", _SMALLER):
                    metrics = self.update(number)
                self._log({"step": done, **metrics, **self.metrics_of(number)})
                line.step(metrics)
                self._after(done)
                if self.stopped_early is not None:
                    break

    def _after(self, done: int) -> None:
        """What follows step ``done``: the checkpoint first, so that nothing that comes after it can lose the step."""
        is_last = done == self.max_steps
        if is_last or self._is_stopping or done % self.config.checkpointing_steps == 0:
            self._save(done)
        if self._is_stopping:
            raise self._interrupted(done, self._stop.received or signal.SIGTERM)
        if self._is_evaluation_due(done):
            self._evaluate(done)
            self._select(done)

    def _select(self, done: int) -> None:
        """Keep step ``done`` where its evaluation is the best, and end the run where it gets no better."""
        is_main = self.accelerator.is_main_process
        try:
            is_best, reason = self.evaluations.is_best(done), self.evaluations.stop()
        except UserError:  # a metric that there is none of: no step is lost by that
            if self._saved != done:
                self._save(done)
            raise
        if (is_best or reason is not None) and self._saved != done:
            self._save(done)
        if is_best:
            self.evaluations.mark(done, writes=is_main, keep=self.config.checkpoints_total_limit)
        if reason is not None and done < self.max_steps:
            self.stopped_early = f"stopped early after step {done} of {self.max_steps}: {reason}"

    def _interrupted(self, done: int, signum: int) -> Interrupted:
        where = f"stopped by {signal.Signals(signum).name} after step {done} of {self.max_steps}"
        if not done:  # before the first step there is nothing to keep
            return Interrupted(signum, f"{where}, before there was a checkpoint")
        checkpoint = self.folder.place_of(done)
        return Interrupted(
            signum, f"{where}; its checkpoint is written: {checkpoint}", step=done, checkpoint=checkpoint
        )

    def _is_evaluation_due(self, done: int) -> bool:
        return done == self.max_steps or bool(self.evaluate_every and done % self.evaluate_every == 0)

    def update(self, number: int) -> dict[str, float]:
        """One optimizer step; returns the metrics averaged over the global batch."""
        rate = scheduled_rate(self.config, number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        watch = Watch(self.name_of)
        sums = self._accumulate(number, watch)
        norm = self._clip(number + 1, watch)
        scaler = self.accelerator.scaler
        scale = scaler.get_scale() if scaler is not None else 0.0
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update()
        metrics = {**self._mean(sums), "grad_norm": norm, "lr": rate}
        if scaler is not None:
            # accelerate's own count misses fused optimizers, which leave an update out themselves.
            metrics = self._scaled(number + 1, metrics, watch, is_skipped=scaler.get_scale() < scale)
        elif not abs(metrics.get("loss", 0.0)) < float("inf"):
            raise self._not_finite(number + 1, f"the loss is {metrics['loss']}", watch)
        for observer in self._observers().values():
            observer.observe(self.network, metrics)
        return metrics

    def _observers(self) -> dict[str, Observer]:
        """What keeps a state of its own: a step, and a source that draws examples from the policy."""
        parts: dict[str, object] = {"step": self.step, "source": self.source}
        return {name: part for name, part in parts.items() if isinstance(part, Observer)}

    def _accumulate(self, number: int, watch: Watch) -> dict[str, Tensor]:
        """Gradients of one update; returns sums of metrics and of their weights, of this process."""
        batches, step = self.source.micro_batches(number), self.step
        if isinstance(step, Coupled) and step.looks_ahead:
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
            watch.note(batch, output)
            for name, value in weighted_sums(output).items():
                sums[name] = sums[name] + value if name in sums else value
            batch = following
        return sums

    def _collect(self, values: Tensor) -> list[Tensor]:
        if self.accelerator.num_processes == 1:  # without a copy to the host, which would wait for the device
            return [values]
        gathered = self._gather(values.tolist())
        return [torch.tensor(each, dtype=values.dtype, device=values.device) for each in gathered]

    def _clip(self, done: int, watch: Watch) -> float:
        limit = self.config.max_grad_norm or float("inf")
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), limit)
        value = float(norm) if norm is not None else float("nan")
        # Under fp16 the loss scaler skips a step that overflowed; otherwise there is no way back from here.
        if self.accelerator.scaler is None and not value < float("inf"):
            raise self._not_finite(done, f"the gradient norm is {value}", watch)
        return value

    def _not_finite(self, done: int, what: str, watch: Watch) -> UserError:
        """The error of step ``done``: weights that broke before it, or the examples that it saw."""
        weight = first_not_finite(self.weights)
        if weight is not None:
            return UserError(
                f"step {done}: {what}, because weight {weight} holds values that are not finite", START_OVER
            )
        culprits = [name for part in self._gather(watch.culprits()) for name in part]
        return UserError(f"step {done}: {what}{culprits_named(culprits)}", START_OVER)

    def _gather(self, value: Sequence[str]) -> list[Sequence[str]]:
        """``value`` of every process, in the order of ranks."""
        return [value] if self.accelerator.num_processes == 1 else list(gather_object([value]))

    def _scaled(self, done: int, metrics: dict[str, float], watch: Watch, *, is_skipped: bool) -> dict[str, float]:
        """``metrics`` of a step under the loss scaler, which leaves out updates that overflowed, but not for ever."""
        self._skipped = self._skipped + 1 if is_skipped else 0
        if self._skipped >= MAX_SKIPPED:
            what = f"the loss scaler has skipped {self._skipped} updates in a row, as gradients overflow in fp16"
            raise self._not_finite(done, what, watch)
        kept = {name: value for name, value in metrics.items() if abs(value) < float("inf")}
        return {**kept, "skipped_updates": float(self._skipped)}

    def _mean(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        # Whether any process was requested to stop travels along, so that all of them stop after the same step.
        is_stopped = next(iter(sums.values())).new_tensor(bool(self._stop.received))
        sums = {**sums, _STOP: is_stopped}
        names = sorted(sums)
        stacked = torch.stack([sums[name] for name in names])
        summed = self.accelerator.reduce(stacked, reduction="sum")
        assert isinstance(summed, Tensor)
        totals = dict(zip(names, summed.tolist(), strict=True))
        self._is_stopping = totals.pop(_STOP) > 0
        return weighted_means(totals)

    @contextmanager
    def result(self) -> Iterator[nn.Module]:
        """The network with the weights that the run gives out: the average where there is one."""
        with self.average.applied() if self.average is not None else nullcontext():
            yield self.network

    def _evaluate(self, done: int) -> None:
        """Evaluate the network, unless metrics.jsonl has the metrics of ``done``; a failure loses no step."""
        self.accelerator.wait_for_everyone()
        failure: BaseException | None = None
        metrics: Mapping[str, float] | None = None
        if self.accelerator.is_main_process and not self._was_evaluated(done):
            try:
                metrics = self._evaluate_alone(done)
            except BaseException as error:
                failure = self._explained(done, error)
        metrics = agreed(self.accelerator, failure, metrics, "evaluation")
        if metrics is not None:
            self.evaluations.note(done, metrics)

    def _evaluate_alone(self, done: int) -> Mapping[str, float]:
        # Other processes wait and cannot be notified: with them, the evaluation is finished first.
        with self.result() as network, self._stop.immediate(applies=self.accelerator.num_processes == 1):
            metrics = self.evaluate(done, network)
        if metrics:
            self._log({"step": done, **{PREFIX + name: value for name, value in metrics.items()}})
        return metrics

    def _was_evaluated(self, done: int) -> bool:
        rows = [row for row in self.folder.read_metrics() if row["step"] == done]
        return any(name.startswith(PREFIX) for row in rows for name in row)

    def _explained(self, done: int, error: BaseException) -> BaseException:
        """What ended the evaluation after step ``done``, as an error that says how to go on; the step itself is kept."""
        if 0 < done != self._saved:
            self._check_weights(done)
            self._write(done)
        if isinstance(error, Interrupted):
            return self._interrupted(done, error.signum)
        return evaluation_failure(done, error)

    def _log(self, row: Mapping[str, object]) -> None:
        if self.accelerator.is_main_process:
            self.folder.log(row)
        self.accelerator.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])

    def _save(self, done: int) -> None:
        """Write the checkpoint of ``done``. Raises UserError in every process where a weight is no number."""
        self._check_weights(done)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._write(done)
        self._saved = done

    def _check_weights(self, done: int) -> None:
        averaged = self.average.average if self.average is not None else {}
        for what, name in (("weight", first_not_finite(self.weights)), ("average of", first_not_finite(averaged))):
            if name is not None:
                problem = f"step {done}: {what} {name} holds values that are not finite; they are not saved"
                raise UserError(problem, START_OVER)

    def _write(self, done: int) -> None:
        tensors: dict[str, Mapping[str, Tensor]] = {"policy": {name: p.detach() for name, p in self.weights.items()}}
        if self.average is not None:
            tensors["average"] = self.average.state_dict()
        states = {name: observer.state_dict() for name, observer in self._observers().items()}
        tensors |= {name: state for name, state in states.items() if state}
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None
        state = {"optimizer": self.optimizer.state_dict(), "scaler": scaler, "identity": self._identity()}
        state["evaluations"] = self.evaluations.metrics
        self.folder.save_checkpoint(done, tensors, state, self._save_results)
        self.folder.prune(self.config.checkpoints_total_limit)
        self._saved = done

    def _save_results(self, folder: Path) -> None:
        """The weights that the run would give out now, and with an average the raw ones beside it."""
        with self.result() as network:
            self.save_weights(network, folder)
        if self.average is not None:
            self.save_weights(self.network, folder / RAW)
            forget_shared(folder, folder / RAW)

    def _identity(self) -> dict[str, str]:
        """What a continued run must share with its beginning, besides the recipe."""
        return {**self.identity, "effective batch": str(self.effective_batch)}

    def _restore(self) -> int:
        saved_state = self.folder.load_checkpoint()
        if saved_state is not None:
            self._saved, tensors, state = saved_state
            checkpoint = self.folder.checkpoints()[-1]
            check_identity(self.folder.path, state.get("identity"), self._identity())
            take_over(checkpoint, tensors, self.weights, self.average, self._observers())
            take_over_optimizer(checkpoint, state, self.optimizer, self.accelerator.scaler)
        is_main = self.accelerator.is_main_process
        if is_main:
            self.folder.go_on()
            if not self._is_evaluation_due(self._saved):
                self.folder.forget_evaluation(self._saved)  # it was that of the end, before the run was lengthened
            self.folder.forget_after(self._saved)
            if self._saved < self.max_steps:
                self.folder.forget_result()  # that of a run which is lengthened
        self.accelerator.wait_for_everyone()
        known = saved_state[2].get("evaluations") if saved_state is not None else None
        self.evaluations.restore(self._saved, known, writes=is_main, is_due=self._is_evaluation_due)
        return max(0, self._saved)
