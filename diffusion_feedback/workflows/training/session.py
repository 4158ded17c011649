"""What every training run is put together from, whatever is trained: pairs, order, optimizer, accelerator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Protocol, runtime_checkable

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import nn, optim
from tqdm import tqdm

from ...catalog import resolve
from ...config import Recipe
from ...data.index import PairIndex
from ...errors import UserError, first_line
from ...folders import expand
from ...processes import check_joined, num_launched
from ...records import content_hash
from ...training.loop import Trainer
from ...training.order import PairOrder
from ...training.run_folder import RunFolder
from ...training.sources import PairSource, UnpairedSource
from ...types import PreferenceBatch


class Examples(Protocol):
    """What a run learns from, or is measured on."""

    def __len__(self) -> int: ...
    def batch(self, indices: Sequence[int], draw: int) -> Any:
        """The examples at ``indices``; ``draw`` is the epoch."""
        ...


class Session(Protocol):
    """One training run, ready to go: ``fit`` trains, ``finish`` writes the result."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def accelerator(self) -> Accelerator: ...
    @property
    def network(self) -> nn.Module: ...
    @property
    def step(self) -> Any: ...
    @property
    def train(self) -> Examples: ...
    @property
    def heldout(self) -> Examples | None: ...
    @property
    def order(self) -> PairOrder: ...
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        ...

    def frozen_bytes(self) -> Mapping[str, int]:
        """Bytes of the weights that are held besides the trained network, by what they are."""
        ...

    def notes(self) -> list[str]:
        """What one should know of the run before it begins."""
        ...

    def fit(self, folder: RunFolder) -> Trainer: ...
    def finish(self, trainer: Trainer) -> None: ...


@runtime_checkable
class Sampling(Protocol):
    """A session that draws samples while it trains, with the memory that they take."""

    def sampling_bytes(self) -> int:
        """Bytes of one batch of samples at its peak."""
        ...


@runtime_checkable
class Planned(Protocol):
    """A session whose steps are no passes over its examples, and which says itself what they are."""

    def plan(self) -> list[str]:
        """Lines on what is learnt from, and in how many steps."""
        ...


def note_truncated(count: int, accelerator: Accelerator) -> None:
    """Say how many captions are cut, where there are any."""
    if count:
        accelerator.print(f"note: {count} captions are longer than the text encoder reads; their ends are ignored")


def labels_hash(train: PairIndex) -> str:
    """Identity of the pairs and labels that a run learns from."""
    return content_hash(*(f"{pair.pair_id} {pair.label_0}" for pair in train.pairs))


def names_of(train: PairIndex) -> Callable[[str], str]:
    """Where the pair of an id stands, for a message: "pairs.parquet, row 7"."""

    def name(pair_id: str) -> str:
        return next((pair.source for pair in train.pairs if pair.pair_id == pair_id and pair.source), f"pair {pair_id}")

    return name


def build_order(recipe: Recipe, train: PairIndex, accelerator: Accelerator) -> PairOrder:
    """Which pairs each optimizer step sees. Raises UserError where there are fewer pairs than one step takes."""
    size = recipe.training.train_batch_size * recipe.training.gradient_accumulation_steps
    return PairOrder(len(train), size * accelerator.num_processes, recipe.training.seed)


def pair_source(recipe: Recipe, order: PairOrder, train: PairIndex, accelerator: Accelerator) -> PairSource:
    """The passes of each optimizer step."""
    passes = recipe.training.gradient_accumulation_steps
    return PairSource(order, train.batch, passes, accelerator.num_processes, accelerator.process_index)


def mismatched_source(recipe: Recipe, order: PairOrder, train: PairIndex, accelerator: Accelerator) -> UnpairedSource:
    """The passes of each optimizer step, each pair with the prompt of another one, for objectives on single samples."""

    def batches(indices: Sequence[int], partners: Sequence[int], draw: int) -> PreferenceBatch:
        mismatched = [train.pairs[partner].prompt for partner in partners]
        return replace(train.batch(indices, draw), mismatched=mismatched)

    passes = recipe.training.gradient_accumulation_steps
    return UnpairedSource(order, batches, passes, accelerator.num_processes, accelerator.process_index)


def needed_pairs(recipe: Recipe, train: PairIndex, order: PairOrder, accelerator: Accelerator) -> list[int]:
    """This process's share of the pairs that the run will see, in the order of the files."""
    steps = range(recipe.training.max_train_steps)
    is_one_pass = order.epoch(recipe.training.max_train_steps - 1) == 0
    needed = sorted({i for step in steps for i in order.indices(step)}) if is_one_pass else list(range(len(train)))
    share = needed[accelerator.process_index :: accelerator.num_processes]
    return sorted(share, key=lambda index: train.pairs[index].location or ())


def encode_ahead(
    train: PairIndex, share: Sequence[int], encode: Callable[[PreferenceBatch], object], accelerator: Accelerator
) -> None:
    """Hand ``share`` to ``encode``, a part at a time: a batch holds its images as long as it lives."""
    bar = tqdm(total=len(share), desc="encode images", unit="pair", disable=not accelerator.is_main_process)
    for start in range(0, len(share), 64):
        chunk = share[start : start + 64]
        encode(train.batch(chunk, 0))
        bar.update(len(chunk))
    bar.close()


def build_optimizer(recipe: Recipe, parameters: Sequence[nn.Parameter]) -> optim.Optimizer:
    """The recipe's optimizer. Raises UserError for settings out of its range."""
    settings = {key: value for key, value in recipe.optimizer.items() if key != "name"}
    build = resolve("optimizer", recipe.optimizer["name"])
    try:
        optimizer: optim.Optimizer = build(parameters, recipe.training.learning_rate, **settings)
    except ValueError as error:
        raise UserError(f"optimizer: {error}", "change its setting in the recipe") from error
    return optimizer


def check_trackers(recipe: Recipe) -> None:
    """Raise UserError for a tracker that is unknown or not installed: accelerate would leave it out without a word."""
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    installed, known = {str(each) for each in get_available_trackers()}, [str(each) for each in LoggerType.list()]
    for name in recipe.training.trackers:
        if name not in known:
            raise UserError(
                f"training.report_to: unknown tracker {name!r}", f"allowed: {', '.join(known)}; [] for none"
            )
        if name not in installed and (name != "all" or not installed):
            remedy = "pip install it, or leave it out: metrics.jsonl is written in any case"
            raise UserError(f"training.report_to: {name} is not installed", remedy)


def make_accelerator(recipe: Recipe) -> Accelerator:
    """The accelerator of a run. Raises UserError for a tracker that is not installed, and processes that do not meet."""
    check_trackers(recipe)
    try:
        accelerator = Accelerator(
            mixed_precision=recipe.training.mixed_precision,
            log_with=recipe.training.trackers or None,
            project_dir=str(expand(recipe.output_dir)),
            # Losses are divided by the loop, once: ACCELERATE_GRADIENT_ACCUMULATION_STEPS would divide them again.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            # Other processes wait while one encodes or draws samples; the default of ten minutes is too short for that.
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=timedelta(hours=12)),
                # Buffers are constants; sending them would need as many forward passes of every process.
                DistributedDataParallelKwargs(broadcast_buffers=False),
            ],
        )
    except (ValueError, ImportError, RuntimeError, OSError) as error:
        if "mixed precision" in str(error):
            raise UserError(f"training.mixed_precision: {first_line(error)}", "set it to no, or bf16") from error
        problem = f"{num_launched()} processes could not begin together: {first_line(error)}"
        remedy = "check how they are launched (accelerate launch, torchrun): addresses, ports, devices"
        raise UserError(problem, remedy) from error
    check_joined(accelerator.num_processes)
    return accelerator
