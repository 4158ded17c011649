"""The page of a training run: what held-out examples show, samples before and after, curves, and how it was made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from ...config.data_lists import named
from ...config.recipe import DataConfig, ModelConfig, Recipe, to_dict
from ...errors import plural
from ...evaluation.statistics import Interval
from ...evaluation.trained import Change, DrawnSamples, Measure, TrainedRun
from ...output_folders import flat
from ..content import Cell, Claim, Group, Metric, Notice, Report, Strip, Table
from ..html import fixed, percent, significant
from ..results import explanations
from .training_curves import training_curves

_MOST_EVALUATIONS = 30
_JUDGES = ("scorer", "reward_model")  # whose accuracy is their own, and not that of an implicit reward
_OPEN = 8  # evaluations that a page does not fold away


def training_report(run: TrainedRun) -> Report:
    """The page of one run, finished or stopped."""
    base, objective = run.recipe["model"]["pretrained_model_name_or_path"], run.recipe["objective"]["name"]
    return Report(
        title=f"{run.name}: {objective} on {short_name(base)}",
        summary=f"{base} trained with {objective} on {named(run.recipe['data']['train'])}.",
        before_name="before",
        after_name=f"step {run.last or run.last_step}",
        claim=claim_of(run),
        facts=facts_of(run),
        notices=_notices(run),
        metrics=_metrics(run),
        tables=[*_text_samples(run), _evaluations_table(run), *_said(run), changed_settings(run)],
        strips=_image_samples(run),
        curves=training_curves({"": run}),
        code=run.code,
        recipe=yaml.safe_dump(dict(run.recipe), sort_keys=False, allow_unicode=True),
        environment=run.environment,
        notes=explanations(
            "training",
            {
                "Held-out accuracy": run.measure is not None and run.measure.key == "accuracy",
                "Chosen and rejected": bool(run.changes(run.last or 0)),
                "Best step": len(run.evaluations) > 1,
            },
        ),
    )


def short_name(path: str) -> str:
    """The last part of a path or hub id."""
    return Path(path).name if path.strip("/.") else path


# --- what is claimed -------------------------------------------------------------------------------------------------


def claim_of(run: TrainedRun) -> Claim:
    """The figure of the last evaluation, and a sentence that says no more than its interval."""
    measure, last = run.measure, run.last
    estimate = run.estimate(last) if last is not None else None
    if measure is None or last is None or estimate is None:
        said = "Nothing is shown: no examples were held out, and a falling loss says nothing of new ones."
        return Claim("", "no held-out examples", f"{said} Name some with data.validation.")
    label = f"{held_out_name(run, measure)}, step {last}"
    if estimate.num:
        words = {"scores": "prompts", "accuracy": "pairs"}
        unit = words.get(measure.key, run.unit)
        label += f", {plural(estimate.num, unit.removesuffix('s'), unit)}"
    if measure.even is not None:
        sentence = _sentence_of_share(run, estimate) + _cost(run, last)
        return Claim(percent(estimate.value), label, sentence, share=estimate)
    return Claim(
        significant(estimate.value), label, _sentence_of_change(run, measure, last, estimate) + _cost(run, last)
    )


def held_out_name(run: TrainedRun, measure: Measure) -> str:
    """The measure with what it was measured on."""
    recipe = run.recipe
    if measure.key != "scores" or recipe["data"].get("validation"):
        return f"held-out {measure.name}"
    return f"{measure.name} on {'the recipe' if recipe['validation']['prompts'] else 'training'} prompts"


def _cost(run: TrainedRun, last: int) -> str:
    """What a loss on pairs hides: it falls too where the chosen samples become less likely, if the rejected ones do faster."""
    if any(change.side == "chosen" and _got_worse(change) for change in run.changes(last)):
        return " The chosen samples became less likely too: lower the learning rate, or raise the batch."
    return ""


def _sentence_of_share(run: TrainedRun, estimate: Interval) -> str:
    who = "the trained judge" if run.kind in _JUDGES else "the tuned model"
    bounds = f"95 % interval, {percent(estimate.low)} to {percent(estimate.high)},"
    if estimate.low > 0.5:
        return f"On held-out pairs {who} prefers what the labels prefer: the whole {bounds} lies above 50 %."
    if estimate.high < 0.5:
        return f"On held-out pairs {who} prefers what the labels reject: the whole {bounds} lies below 50 %."
    return f"Nothing is shown on held-out pairs: the {bounds} includes 50 %, which is chance."


def _sentence_of_change(run: TrainedRun, measure: Measure, last: int, estimate: Interval) -> str:
    start, name = run.estimate(0), measure.name
    if start is None or last == 0:
        return f"The {name} before training was not measured, so no change is shown."
    moved = f"The {name} went from {significant(start.value)} to {significant(estimate.value)}"
    gain = run.gain(last)
    # The change of a perplexity is that of the log-probabilities which it is made of.
    unit = " nats of log-probability each" if measure.key == "perplexity" else ""
    if gain is None:
        return f"{moved}; how far chance alone may move it is not known."
    bounds = (
        f"the change, {_signed(gain.value)}{unit}, has the 95 % interval {_signed(gain.low)} to {_signed(gain.high)}"
    )
    is_shown = gain.low > 0 or gain.high < 0
    return f"{moved}: {bounds}." if is_shown else f"Nothing is shown. {moved}, but {bounds}, which includes 0."


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + significant(value)


def change_in_words(change: Change) -> str:
    """Such as "chosen error -1.2 %" (the rejected one follows it), or "chosen +3.2 nats"."""
    if change.share is not None:
        return f"{change.side}{' error' if change.side == 'chosen' else ''} {100 * change.share:+.1f} %"
    return f"{change.side} {change.after - change.before:+.3g} nats"


def closing_line(run: TrainedRun) -> str:
    """What the console says at the end: where the run is, its held-out figures, and its page."""
    measure, last = run.measure, run.last
    estimate = run.estimate(last) if last is not None else None
    figures = "no held-out examples: nothing is shown"
    if measure is not None and last is not None and estimate is not None:
        bounds = f" ({estimate.low:.3g} to {estimate.high:.3g})" if estimate.low < estimate.high else ""
        changes = map(change_in_words, run.changes(last))
        figures = ", ".join([f"{held_out_name(run, measure)} {estimate.value:.3g}{bounds}", *changes])
        if run.best not in (None, last):
            figures += f", best after step {run.best}{kept_note(run)}"
    return f"{run.path}, step {run.last_step}: {figures}; report: {run.path / 'report.html'}"


def kept_note(run: TrainedRun) -> str:
    """That the best step may be gone, where it is neither the last evaluation nor one that the run itself has kept."""
    is_there = run.best in (None, run.last, run.marked_best)
    return "" if is_there else " (not kept: set validation.keep_best)"


# --- facts, notices, tables ------------------------------------------------------------------------------------------


def facts_of(run: TrainedRun) -> dict[str, str]:
    """A few words on size, length and time of the run."""
    training, last = run.recipe["training"], run.last_step
    planned = run.planned_steps
    facts = {"Steps": f"{last:,}" if last >= planned else f"{last:,} of {planned:,}"}
    for line in run.plan:
        name, _, said = line.partition("  ")
        if name in ("examples", "prompts", "batch", "iteration"):
            facts[name.capitalize()] = said.strip()
    measure, best = run.measure, run.best
    if measure is not None and best is not None and len([step for step in run.evaluations if step]) > 1:
        value = run.evaluations[best][measure.key]
        shown = percent(value) if measure.is_share else significant(value)
        last_too = " (the last)" if best == run.last else ""
        facts["Best step"] = f"{best:,}{last_too}, {measure.name} {shown}{kept_note(run)}"
    facts["Learning rate"] = f"{training['learning_rate']:g}, {training['lr_scheduler']}"
    if run.seconds is not None:
        facts["Time"] = in_words(run.seconds)
    return facts


def in_words(seconds: float) -> str:
    """A time as people say it: 42 s, 3.5 min, 2 h 10 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def _notices(run: TrainedRun) -> list[Notice]:
    notices = []
    if not run.is_finished:
        text = "Everything below is of the part that was done; training goes on from the last checkpoint."
        notices.append(Notice(f"Stopped after step {run.last_step} of {run.planned_steps}", text))
    return notices


def _said(run: TrainedRun) -> list[Table]:
    """What changed, and what was warned of, a row a line."""
    said = {"Settings changed while it ran": run.history, "Said while it ran": run.warnings}
    return [Table(title, [], [(Cell(line), []) for line in lines], is_text=True) for title, lines in said.items()]


def _got_worse(change: Change) -> bool:
    if change.bounds is None:
        return False
    return change.bounds.low > 0 if change.quantity == "error" else change.bounds.high < 0


def _metrics(run: TrainedRun) -> list[Metric]:
    """Before and after on held-out examples, as far as both are known."""
    last, measure = run.last, run.measure
    if not last or measure is None:
        return []
    rows, start = [], run.evaluations.get(0, {})
    if measure.key in start:
        before, after = start[measure.key], run.evaluations[last][measure.key]
        better = measure.higher_is_better
        bounds = None if measure.key == "perplexity" else run.gain(last)  # which is one of log-probabilities
        rows.append(Metric(held_out_name(run, measure), before, after, bounds, measure.is_share, better))
    for change in run.changes(last):
        is_error, is_chosen = change.quantity == "error", change.side == "chosen"
        detail = f"{100 * change.share:+.1f} %".replace("-", "\N{MINUS SIGN}") if change.share is not None else "nats"
        label = f"{change.side} {change.quantity}"
        better = is_chosen != is_error
        rows.append(Metric(label, change.before, change.after, change.bounds, higher_is_better=better, detail=detail))
    for key, name in (("kl", "KL to the reference"), ("finished", "share that ended"), ("mean_length", "tokens")):
        if key in start and key in run.evaluations[last] and measure.key == "scores":
            rows.append(Metric(name, start[key], run.evaluations[last][key], is_share=key == "finished"))
    return rows


def _evaluations_table(run: TrainedRun) -> Table:
    """Every evaluation, the best one marked; some of them where there are very many."""
    measure = run.measure
    if measure is None:
        return Table("Evaluations", [], [])
    steps = list(run.evaluations)
    stride = -(-len(steps) // _MOST_EVALUATIONS)
    shown = [step for place, step in enumerate(reversed(steps)) if place % stride == 0 or step == run.best][::-1]
    sides = [change.side for change in run.changes(steps[-1])]
    rows = []
    for step in shown:
        by_side = {change.side: change for change in run.changes(step)}
        cells = [change_cell(by_side.get(side)) for side in sides]
        name = Cell(f"step {step}", "best" if step == run.best and len(steps) > 1 else "")
        rows.append((name, [estimate_cell(run, step), *cells]))
    columns = [held_out_name(run, measure), *(f"{side}, change" for side in sides)]
    return Table("Evaluations", columns, rows, "With 95 % intervals.", "step", is_folded=len(rows) > _OPEN)


def estimate_cell(run: TrainedRun, step: int) -> Cell:
    """The measure after ``step`` above its interval; empty where there is none."""
    estimate, measure = run.estimate(step), run.measure
    if estimate is None or measure is None:
        return Cell("")
    show = percent if measure.is_share else significant
    bounds = f"{show(estimate.low)} to {show(estimate.high)}" if estimate.low < estimate.high else ""
    return Cell(show(estimate.value), bounds)


def change_cell(change: Change | None) -> Cell:
    """How far a side has moved, above its interval: an error in per cent, a log-probability in nats."""
    if change is None:
        return Cell("")
    factor = 100 / change.before if change.share is not None else 1.0
    unit, digits = ("\u202f%", 2) if change.share is not None else (" nats", 3)
    text = fixed(factor * (change.after - change.before), digits, signed=True) + unit
    if change.bounds is None:
        return Cell(text)
    low, high = (fixed(factor * bound, digits, signed=True) for bound in (change.bounds.low, change.bounds.high))
    return Cell(text, f"{low} to {high}")


def default_settings() -> dict[tuple[str, ...], object]:
    """What a recipe says that sets nothing, by its keys."""
    return flat(to_dict(Recipe(ModelConfig(""), DataConfig(""), "")))


def changed_settings(run: TrainedRun) -> Table:
    """What the recipe says that is no default."""
    defaults = default_settings()
    shown = {("output_dir",), ("model", "pretrained_model_name_or_path"), ("data", "train"), ("data", "cache_dir")}

    def said(key: tuple[str, ...], value: object) -> str:
        return named(value) if key == ("data", "validation") else str(value)

    rows = [
        (Cell(".".join(key)), [Cell(said(key, value)), Cell(str(defaults.get(key, "-")))])
        for key, value in flat(run.recipe).items()
        if key not in shown and value != defaults.get(key)
    ]
    return Table("Settings that are no defaults", ["here", "default"], rows, corner="setting", is_folded=True)


# --- samples ---------------------------------------------------------------------------------------------------------


def shown_samples(run: TrainedRun) -> list[DrawnSamples]:
    """Those of the best and of the last evaluation, as far as there are some."""
    known = [step for step in sorted(run.samples) if step and run.samples[step].prompts]
    steps = [step for step in (run.best, known[-1] if known else None) if step in known]
    return [run.samples[step] for step in sorted({step for step in steps if step is not None})]


def _named(run: TrainedRun, drawn: DrawnSamples) -> str:
    return f"step {drawn.step}" + (", best" if drawn.step == run.best and len(shown_samples(run)) > 1 else "")


def _image_samples(run: TrainedRun) -> list[Group[Strip]]:
    shown = [drawn for drawn in shown_samples(run) if all(_are_there(drawn.after))]
    if not shown or not all(_are_there(shown[-1].before)):
        return []
    columns = [("before", shown[-1].before), *((_named(run, drawn), drawn.after) for drawn in shown)]
    return [Group("Before and after", strips_of(shown[-1], columns), _source(shown[-1]))]


def strips_of(drawn: DrawnSamples, columns: Sequence[tuple[str, Sequence[str | Path]]]) -> list[Strip]:
    """A strip a prompt of ``drawn``: the image of each of ``columns``, (name, files in the order of the prompts)."""
    return [
        Strip(prompt, [(name, Path(files[place])) for name, files in columns], seed)
        for place, (prompt, seed) in enumerate(zip(drawn.prompts, drawn.seeds, strict=True))
    ]


def _are_there(samples: Iterable[str | Path]) -> list[bool]:
    return [isinstance(each, Path) and each.is_file() for each in samples]


def _source(drawn: DrawnSamples) -> str:
    return f"{drawn.source}, on fixed seeds"


def _text_samples(run: TrainedRun) -> list[Table]:
    shown = shown_samples(run)
    if not shown or isinstance(shown[-1].after[0], Path):
        return []
    columns: dict[str, tuple[Sequence[str | Path], Sequence[float]]] = {}
    start = run.samples.get(0)
    columns["before"] = shown[-1].before, start.scores if start is not None else ()
    columns |= {_named(run, drawn): (drawn.after, drawn.scores) for drawn in shown}
    return [texts_table(shown[-1], columns)]


def texts_table(drawn: DrawnSamples, columns: Mapping[str, tuple[Sequence[str | Path], Sequence[float]]]) -> Table:
    """A row per prompt of ``drawn``: the text of each of ``columns``, (texts, their scores where there are some)."""
    rows = []
    for place, prompt in enumerate(drawn.prompts):
        cells = [
            Cell(str(texts[place]), f"reward {significant(scores[place])}" if place < len(scores) else "")
            for texts, scores in columns.values()
        ]
        rows.append((Cell(prompt), cells))
    return Table("Samples", list(columns), rows, _source(drawn) + ".", "prompt", is_text=True)
