"""Rounds of drawing, judging, pairing and training: what is done in which order, and what is done already."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import yaml
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env

from ...catalog import family_row, needs_reference
from ...config import Recipe, RolloutConfig, RoundsConfig, load_recipe, to_dict
from ...data.scores import read_scores
from ...documents import read_object, read_yaml
from ...errors import UserError
from ...evaluation.rounds import RoundMetrics, measure
from ...folders import ROUNDS, check_outside
from ...processes import check_joined
from ...records import Text, atomic_folder, atomic_write, content_hash
from ...reports.pages.rounds import write_pages
from ...training.run_folder import RunFolder
from ..training.run import inputs_of, run_training

_SCORES, _DRAWN, _MODEL = "scores.parquet", "drawn.json", "model"
# What a later call may change: rounds are added, and speed is nobody's business.
_FREE = {("rounds", "num_rounds"), ("rounds", "batch_size"), ("rollouts", "batch_size"), ("output_dir",)}


class Side(Protocol):
    """What a round does to texts, or to images."""

    @property
    def pairs_name(self) -> str:
        """File name of the pairs of a round."""
        ...

    def prompts(self, path: str) -> list[Text]:
        """The different prompts of a file."""
        ...

    def draw(self, model: str, prompts: Sequence[Text], folder: Path, *, seed: int, num_samples: int) -> int:
        """Draw samples of every prompt into ``folder``; resumable. Returns how many there are."""
        ...

    def judge(self, spec: str, drawn: Path, output: Path, *, is_main: bool) -> None:
        """Write the score of every sample, in order, to the table ``output``; called in every process."""
        ...

    def pair(self, drawn: Path, scores: Path, output: Path) -> str:
        """Write pairs of the samples by the recipe's rule; returns the summary."""
        ...

    def merge(self, run: Path, start: str, folder: Path) -> None:
        """Write the model that ``run`` trained from ``start`` as one of its own, adapters merged in."""
        ...

    def divergence(self, model: str, initial: str, drawn: Path) -> Mapping[str, list[float]]:
        """Estimates of KL(model || initial), one for each sample (or prompt, for ``exact``); empty where there are none."""
        ...

    def samples(self, drawn: Path) -> list[tuple[Text, str | Path]]:
        """Prompt and text, or prompt and picture, of every sample, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Rounds:
    """All rounds of one recipe, in its folder."""

    recipe: Recipe
    side: Side
    prompts: Sequence[Text]
    heldout: Sequence[Text]

    @classmethod
    def open(cls, recipe: Recipe, *, overwrite: bool = False) -> Rounds:
        """Start or continue rounds. Raises UserError for a folder that holds something else, or rounds of another recipe."""
        from .images import ImageSide
        from .texts import TextSide

        side: Side = TextSide(recipe) if family_row(recipe.model.family).reads_text else ImageSide(recipe)
        prompts, heldout = side.prompts(recipe.data.train), side.prompts(recipe.rounds.heldout_prompts)
        shared = {repr(prompt) for prompt in prompts} & {repr(prompt) for prompt in heldout}
        if shared:
            problem = f"rounds.heldout_prompts: {len(shared)} of its {len(heldout)} prompts are trained on"
            raise UserError(problem, "measure on prompts that are not in data.train")
        heldout = heldout[: recipe.rounds.num_heldout_prompts]
        if len(heldout) < 2:
            raise UserError(f"rounds.heldout_prompts: {len(heldout)} prompts", "give two or more")
        state = _process()
        if state.is_main_process:
            _claim(recipe, {"prompts": content_hash(repr((prompts, heldout))), "model": _identity(recipe)}, overwrite)
        state.wait_for_everyone()
        return cls(recipe, side, prompts, heldout)

    @property
    def folder(self) -> Path:
        """Where all rounds lie."""
        return Path(self.recipe.output_dir)

    @property
    def initial(self) -> str:
        """The model that the first round starts from."""
        return self.recipe.model.pretrained_model_name_or_path

    @property
    def state(self) -> PartialState:
        """accelerate's state of this process, and of the group it belongs to."""
        return _process()

    def run(self) -> None:
        """Go through the rounds, then report."""
        measured = [self._measure(0, self.initial, None)]
        models, reference = [self.initial], self.initial
        for number in range(1, self.recipe.rounds.num_rounds + 1):
            place = self.folder / f"round-{number}"
            if number > 1:
                reference = self._reference(place, reference, models[-1])
            start = models[-1] if self.recipe.rounds.start_from == "previous" else self.initial
            pairs = self._pairs(number, place, models[-1])
            models.append(self._train(place, start, reference, pairs))
            measured.append(self._measure(number, models[-1], measured[-1]))
            self._note(f"round {number}: {measured[-1].line()}")
        self._main(lambda: self._report(measured))
        self.state.destroy_process_group()

    def _report(self, measured: Sequence[RoundMetrics]) -> None:
        _write_json(self.folder / "rounds.json", [each.to_json() for each in measured])
        write_pages(self.folder, self.recipe, measured, self.side.samples)
        self._note(f"done: {self.folder / 'report.html'}")

    def _pairs(self, number: int, place: Path, model: str) -> Path:
        """Samples of the round's prompts, judged and paired."""
        rounds, drawn, output = self.recipe.rounds, place / "samples", place / self.side.pairs_name
        if output.exists():
            return output
        self._note(f"\n== round {number}: {rounds.num_samples} samples a prompt")
        self._draw(model, self._prompts_of(number), drawn, seed=self._seed(str(number)), number=rounds.num_samples)
        judge = self._judge(number, place, drawn)
        self._score(judge, drawn, place / _SCORES)
        self._main(lambda: print(self.side.pair(drawn, place / _SCORES, output), flush=True))
        return output

    def _judge(self, number: int, place: Path, drawn: Path) -> str:
        """Who judges the round: the recipe's own judge, or a reward model trained on what was labelled so far."""
        from .texts import join_lines

        rounds = self.recipe.rounds
        if rounds.reward_recipe is None:
            return self.recipe.rollouts.reward or rounds.scorer
        labels, labelled = place / f"labels-{_SCORES}", place / f"labelled-{self.side.pairs_name}"
        self._score(str(rounds.labels_from), drawn, labels)
        self._main(lambda: _once(labelled, lambda: print(self.side.pair(drawn, labels, labelled))))
        joined = place / f"reward-{self.side.pairs_name}"
        parts = [self.folder / f"round-{k}" / labelled.name for k in range(1, number + 1)]
        self._main(lambda: _once(joined, lambda: join_lines(parts, joined)))
        own = {"data.train": joined, "output_dir": place / "reward"}
        self._fit(load_recipe(rounds.reward_recipe, own))
        return f"reward_model={place / 'reward'}"

    def _prompts_of(self, number: int) -> list[Text]:
        """The prompts of a round: the next ones in an order that is drawn anew each time that all were used.

        One that would come twice, as the order was drawn anew within a round, waits for the next round.
        """
        size = min(self.recipe.rounds.num_prompts or len(self.prompts), len(self.prompts))
        stream = self._orders()
        chosen: dict[str, Text] = {}
        waiting: list[Text] = []
        for _ in range(number):
            chosen = {repr(prompt): prompt for prompt in waiting}
            waiting = []
            while len(chosen) < size:
                prompt = next(stream)
                if repr(prompt) in chosen:
                    waiting.append(prompt)
                chosen.setdefault(repr(prompt), prompt)
        return list(chosen.values())

    def _orders(self) -> Iterator[Text]:
        seed = self._seed("prompts")
        for epoch in itertools.count():
            yield from sorted(self.prompts, key=lambda prompt: content_hash(f"{seed}/{epoch}/{prompt!r}"))

    def _reference(self, place: Path, before: str, previous: str) -> str:
        kind, share = self.recipe.rounds.reference, self.recipe.rounds.reference_decay
        if kind == "ema":
            from .texts import average

            folder = place / "reference"
            self._main(lambda: _once(folder, lambda: self._whole(folder, average, before, previous, share)))
            return str(folder)
        return previous if kind == "previous" else self.initial

    def _train(self, place: Path, start: str, reference: str, pairs: Path) -> str:
        """Train on ``pairs``; returns the folder of the model, which stands on its own."""
        model = replace(
            self.recipe.model,
            pretrained_model_name_or_path=start,
            reference_model_name_or_path=reference if reference != start and self._compares() else None,
        )
        text = self.recipe.text
        if family_row(model.family).reads_text and text.max_completion_length is None:
            # A completion that was cut then stays cut: it gets no end token that nobody drew.
            text = replace(text, max_completion_length=self.recipe.rollouts.max_new_tokens)
        recipe = replace(
            self.recipe,
            model=model,
            text=text,
            data=replace(self.recipe.data, train=str(pairs)),
            output_dir=str(place / "run"),
            rounds=RoundsConfig(),
            rollouts=RolloutConfig(),
        )
        self._fit(recipe)
        if model.tuning == "full":
            return recipe.output_dir
        folder = place / _MODEL
        self._main(lambda: _once(folder, lambda: self._whole(folder, self.side.merge, Path(recipe.output_dir), start)))
        return str(folder)

    def _compares(self) -> bool:
        """Whether the objective compares with a reference."""
        return needs_reference(self.recipe.objective)

    def _fit(self, recipe: Recipe) -> None:
        """Train ``recipe`` to its end, from where it stands."""
        folder = RunFolder(Path(recipe.output_dir))
        self.state.wait_for_everyone()
        if folder.is_complete():
            return
        # accelerate keeps one state a process, of one precision: the next run may have another.
        AcceleratorState._reset_state(reset_partial_state=False)
        accelerator = run_training(recipe, resume=(folder.path / "recipe.yaml").exists())
        # Trackers end with their run; the group of processes goes on to the next.
        for tracker in accelerator.trackers if accelerator is not None else ():
            tracker.finish()
        AcceleratorState._reset_state(reset_partial_state=False)

    def _measure(self, number: int, model: str, before: RoundMetrics | None) -> RoundMetrics:
        """Samples of the held-out prompts with their scores and divergence from the initial model."""
        rounds, place = self.recipe.rounds, self.folder / f"round-{number}" / "evaluation"
        drawn, scores, kl = place / "samples", place / _SCORES, place / "divergence.json"
        if not (scores.exists() and kl.exists()):
            self._note(f"\n== round {number}: held-out prompts")
            self._draw(model, self.heldout, drawn, seed=self._seed("heldout"), number=rounds.num_heldout_samples)
        judge = rounds.heldout_judge or rounds.labels_from or self.recipe.rollouts.reward or rounds.scorer
        self._score(judge, drawn, scores)

        def diverge() -> None:
            _write_json(kl, dict(self.side.divergence(model, self.initial, drawn)))

        self._main(lambda: _once(kl, diverge))
        place = self.folder / f"round-{number}"
        metrics = measure(number, read_scores(scores), _read_divergence(kl), place, before)
        self._main(lambda: _write_json(place / "summary.json", metrics.to_json()))
        return metrics

    def _draw(self, model: str, prompts: Sequence[Text], folder: Path, *, seed: int, number: int) -> None:
        def work() -> None:
            count = self.side.draw(model, prompts, folder, seed=seed, num_samples=number)
            _write_json(folder / _DRAWN, {"samples": count})

        self._main(lambda: _once(folder / _DRAWN, work))

    def _score(self, judge: str, drawn: Path, output: Path) -> None:
        is_main = self.state.is_main_process
        _once(output, lambda: self.side.judge(judge, drawn, output, is_main=is_main))
        self.state.wait_for_everyone()

    def _seed(self, what: str) -> int:
        return int(content_hash(f"rounds/{self.recipe.training.seed}/{what}")[:6], 16)

    def _note(self, text: str) -> None:
        if self.state.is_main_process:
            print(text, flush=True)

    def _whole(self, folder: Path, work: Callable[..., None], *inputs: Any) -> None:
        with atomic_folder(folder) as temporary:
            work(*inputs, temporary)

    def _main(self, work: Callable[[], None]) -> None:
        """Let one process do ``work`` while the others wait."""
        if self.state.is_main_process:
            work()
        self.state.wait_for_everyone()


def _once(output: Path, work: Callable[[], None]) -> None:
    """Do ``work``, which writes ``output`` whole, unless it is there."""
    if not output.exists():
        work()


def _process() -> PartialState:
    from datetime import timedelta

    # Of itself only accelerate's larger state looks at this variable, which `accelerate launch --cpu` sets.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    # The others wait while one draws samples; the default of ten minutes is too short for that.
    state = PartialState(cpu=cpu, timeout=timedelta(hours=12))
    check_joined(state.num_processes)
    return state


def _identity(recipe: Recipe) -> str:
    """Hash of the files of the initial model; of its name, where it is on the hub."""
    folder = Path(recipe.model.pretrained_model_name_or_path)
    if not folder.is_dir():
        return content_hash(str(folder), str(recipe.model.revision))
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".safetensors", ".json", ".bin"))
    return content_hash(*(part for file in files for part in (str(file.relative_to(folder)), file.read_bytes())))


def _claim(recipe: Recipe, identity: Mapping[str, str], overwrite: bool) -> None:
    """Make sure that the folder is empty or holds rounds of the same recipe, prompts and model, and write the recipe."""
    folder = Path(recipe.output_dir)
    told = {"recipe": to_dict(recipe), "identity": dict(identity)}
    path, mark = folder / "recipe.yaml", folder / ROUNDS
    if not mark.exists() and any(folder.glob("[!.]*")):
        holds = "a run of dfb train" if path.exists() else "no rounds"
        raise UserError(f"{folder}: is there and holds {holds}", "choose another output_dir")
    if overwrite:
        check_outside(folder, inputs_of(recipe))
        for old in folder.glob("round-*"):
            shutil.rmtree(old)
        for name in ("README.md", "rounds.json", "report.html", "recipe.yaml"):
            (folder / name).unlink(missing_ok=True)
    elif mark.exists() and path.exists():
        remedy = "bring the file back, choose another output_dir, or --overwrite to start over"
        before = {"recipe": read_yaml(path, remedy), "identity": read_object(mark, remedy)}
        if not isinstance(before["recipe"], dict):
            raise UserError(f"{path}: damaged: not a recipe", remedy)
        _check_same(folder, before, told)
        beyond = folder / f"round-{recipe.rounds.num_rounds + 1}"
        if beyond.exists():
            problem = f"rounds.num_rounds: got {recipe.rounds.num_rounds}, and {beyond} is there"
            raise UserError(problem, "ask for all rounds that are there or more, or choose another output_dir")
    # What marks the folder as one of rounds comes first: where the writer is killed, the command goes on.
    _write_json(mark, told["identity"])
    with atomic_write(path) as file:
        file.write_text(yaml.safe_dump(told["recipe"], sort_keys=False, allow_unicode=True), "utf-8")


def _check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    old, new = _flat(before["recipe"]), _flat(now["recipe"])
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key) and key not in _FREE]
    remedy = "choose another output_dir, or --overwrite to start over"
    if changed:
        key = changed[0]
        problem = f"{folder}: holds rounds with {'.'.join(key)} = {old.get(key)!r}, the recipe has {new.get(key)!r}"
        raise UserError(problem, remedy)
    for name, value in now["identity"].items():
        if before["identity"].get(name) != value:
            raise UserError(f"{folder}: holds rounds of another content of the {name}", remedy)


def _flat(value: Any, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(value, Mapping):
        return {key: item for name, inner in value.items() for key, item in _flat(inner, (*prefix, str(name))).items()}
    return {prefix: value}


def _read_divergence(path: Path) -> dict[str, list[float]]:
    remedy = "remove the file, and run the same command again"
    found = read_object(path, remedy)
    for name, values in found.items():
        if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
            raise UserError(f"{path}: damaged: {name!r} is no list of numbers", remedy)
    return found


def _write_json(path: Path, content: Any) -> None:
    with atomic_write(path) as file:
        file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
