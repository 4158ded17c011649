"""Several training runs on one page: held-out figures, what differs in their recipes, curves and samples side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...evaluation.statistics import Interval
from ...evaluation.trained import DrawnSamples, Measure, TrainedRun, difference
from ...output_folders import flat
from ..content import Cell, Claim, Group, Notice, Report, Strip, Table
from ..html import fixed, percent, significant
from ..results import explanations
from .training import change_cell, default_settings, estimate_cell, facts_of, held_out_name, strips_of, texts_table
from .training_curves import training_curves

_PLACES = {("output_dir",), ("data", "cache_dir")}  # where a run lies says nothing of what it is


def training_runs_report(runs: Sequence[TrainedRun], title: str = "") -> Report:
    """The page of ``runs``, which have distinct names; all are compared with the first."""
    names = ", ".join(run.name for run in runs)
    return Report(
        title=title or f"Training runs: {names}",
        summary=f"{len(runs)} runs, compared with {runs[0].name}.",
        before_name=runs[0].name,
        after_name=runs[-1].name,
        claim=_claim(runs),
        notices=_notices(runs),
        tables=[_heldout_table(runs), *_text_samples(runs), _course_table(runs)],
        strips=_image_samples(runs),
        curves=training_curves({run.name: run for run in runs}),
        setup=_differences(runs),
        notes=explanations("training_runs", {"Difference, pair by pair": _measure_of(runs) is not None}),
    )


def _measure_of(runs: Sequence[TrainedRun]) -> Measure | None:
    """What all runs were evaluated by; None where they differ in it."""
    measure = runs[0].measure
    return measure if all(run.measure == measure for run in runs) else None


def _claim(runs: Sequence[TrainedRun]) -> Claim | None:
    """The run with the best figure, and whether it is ahead of the others by more than chance."""
    measure = _measure_of(runs)
    if measure is None:
        return Claim("", "held-out figures", "Nothing is shown: the runs have no held-out figure of one kind.")
    values = [run.estimate(run.last or 0) for run in runs]
    known = [(run, value) for run, value in zip(runs, values, strict=True) if value is not None]
    sign = 1 if measure.higher_is_better else -1
    (best, estimate), *others = sorted(known, key=lambda each: -sign * each[1].value)
    show = percent if measure.is_share else significant
    leads = {other.name: difference(other, best) for other, _ in others}
    behind = [name for name, lead in leads.items() if lead is not None and lead.low > 0]
    unknown = [name for name, lead in leads.items() if lead is None]
    open_ = [name for name in leads if name not in behind and name not in unknown]
    parts = [
        f"It is ahead of {_listed(behind)}: the interval of the difference lies above 0." if behind else "",
        f"No difference to {_listed(open_)} is shown: the interval includes 0." if open_ else "",
        f"It cannot be compared example by example with {_listed(unknown)}." if unknown else "",
    ]
    facts = {f"{best.name} less {name}": _bounds(lead, measure) for name, lead in leads.items() if lead is not None}
    label = f"{held_out_name(best, measure)} of {best.name}, the best of {len(runs)}, step {best.last}"
    return Claim(show(estimate.value), label, " ".join(filter(None, parts)), facts)


def _listed(names: Sequence[str]) -> str:
    return " and ".join([*([", ".join(names[:-1])] if names[:-1] else []), names[-1]])


def _bounds(lead: Interval, measure: Measure) -> str:
    factor, unit, digits = (100, "\u202fpp", 1) if measure.is_share else (1, "", 3)
    if measure.key == "perplexity":
        unit = " nats"
    value, low, high = (fixed(factor * each, digits, signed=True) for each in (lead.value, lead.low, lead.high))
    return f"{value}{unit} ({low} to {high})"


def _notices(runs: Sequence[TrainedRun]) -> list[Notice]:
    notices = []
    if stopped := [run.name for run in runs if not run.is_finished]:
        notices.append(Notice("Not finished", f"{_listed(stopped)}: what is here is of the part that was done."))
    examples = {str(run.heldout.get(run.last or 0, {}).get("examples")) for run in runs if run.last is not None}
    if len(examples) > 1:
        text = "Their figures stand beside each other, but no difference is worked out between them."
        notices.append(Notice("The runs were evaluated on other held-out examples", text))
    return notices


def _heldout_table(runs: Sequence[TrainedRun]) -> Table:
    measure = _measure_of(runs)
    sides = sorted({change.side for run in runs for change in run.changes(run.last or 0)})
    rows = []
    for run in runs:
        by_side = {change.side: change for change in run.changes(run.last or 0)}
        lead = difference(runs[0], run) if run is not runs[0] else None
        cells = [estimate_cell(run, run.last or 0), _lead_cell(lead, measure)]
        rows.append(
            (Cell(run.name, f"step {run.last_step}"), [*cells, *(change_cell(by_side.get(side)) for side in sides)])
        )
    name = held_out_name(runs[0], measure) if measure is not None else "held-out figure"
    columns = [name, f"against {runs[0].name}", *(f"{side}, change" for side in sides)]
    detail = "After the last evaluation of each, with 95 % intervals; differences example by example."
    return Table("Held-out examples", columns, rows, detail, "run")


def _lead_cell(lead: Interval | None, measure: Measure | None) -> Cell:
    if lead is None or measure is None:
        return Cell("")
    value, _, bounds = _bounds(lead, measure).partition(" (")
    return Cell(value, bounds.removesuffix(")"), "better" if lead.low > 0 else "worse" if lead.high < 0 else "")


def _course_table(runs: Sequence[TrainedRun]) -> Table:
    """Length, best step and time of each."""
    facts = {run.name: facts_of(run) for run in runs}
    columns = list(dict.fromkeys(name for own in facts.values() for name in own))
    rows = [(Cell(name), [Cell(own.get(column, "")) for column in columns]) for name, own in facts.items()]
    return Table("Course", columns, rows, corner="run", is_text=True)


def _differences(runs: Sequence[TrainedRun]) -> Table:
    """What the recipes differ in, a row a setting."""
    recipes = [{**default_settings(), **flat(run.recipe)} for run in runs]  # an older recipe lacks newer keys
    keys = [key for key in dict.fromkeys(key for recipe in recipes for key in recipe) if key not in _PLACES]
    rows = [
        (Cell(".".join(key)), [Cell(str(recipe.get(key, "-")), mark="differs") for recipe in recipes])
        for key in keys
        if len({repr(recipe.get(key)) for recipe in recipes}) > 1
    ]
    detail = "Settings of the recipes that differ." if rows else "The recipes differ in nothing but where the runs lie."
    return Table("Recipes", [run.name for run in runs], rows, detail, "setting", is_text=True)


# --- samples ---------------------------------------------------------------------------------------------------------


def _last_samples(runs: Sequence[TrainedRun]) -> dict[str, DrawnSamples]:
    """The last samples of each run, where all have some of the same prompts and seeds; else those of none."""
    drawn = {run.name: run.samples[max(run.samples)] for run in runs if any(run.samples)}
    drawn_from = {(tuple(each.prompts), tuple(each.seeds)) for each in drawn.values()}
    return drawn if len(drawn) == len(runs) and len(drawn_from) == 1 else {}


def _start(drawn: Mapping[str, DrawnSamples]) -> Sequence[str | Path] | None:
    """What was before, where it is the same for all runs."""
    first, *others = [[_content(each) for each in samples.before] for samples in drawn.values()]
    return next(iter(drawn.values())).before if all(each == first for each in others) else None


def _content(sample: str | Path) -> str | bytes:
    return sample if isinstance(sample, str) else sample.read_bytes() if sample.is_file() else b""


def _image_samples(runs: Sequence[TrainedRun]) -> list[Group[Strip]]:
    drawn = _last_samples(runs)
    files = [each for samples in drawn.values() for each in [*samples.before, *samples.after]]
    if not drawn or not all(isinstance(each, Path) and each.is_file() for each in files):
        return []
    before, first = _start(drawn), next(iter(drawn.values()))
    columns = [("before", before)] if before is not None else []
    columns += [(f"{name}, step {samples.step}", samples.after) for name, samples in drawn.items()]
    return [Group("The same prompts and seeds", strips_of(first, columns), first.source)]


def _text_samples(runs: Sequence[TrainedRun]) -> list[Table]:
    drawn = _last_samples(runs)
    if not drawn or any(isinstance(each, Path) for samples in drawn.values() for each in samples.after):
        return []
    before, first = _start(drawn), next(iter(drawn.values()))
    columns: dict[str, tuple[Sequence[str | Path], Sequence[float]]] = {}
    if before is not None:
        columns["before"] = before, ()
    columns |= {f"{name}, step {samples.step}": (samples.after, samples.scores) for name, samples in drawn.items()}
    return [texts_table(first, columns)]
