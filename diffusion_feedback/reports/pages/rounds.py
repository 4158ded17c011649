"""What rounds give out: rounds.json, and report.html with reward against divergence."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...config import Recipe, to_yaml
from ...documents import read_object
from ...evaluation.comparison import compare, pick_cases
from ...evaluation.rounds import RoundFigures
from ...evaluation.statistics import Interval, WinRate
from ...folders import ROUNDS
from ...records import Text, atomic_write
from ..content import Case, CaseGroup, CurveFigure, Rate, RateGroup, Report
from ..figures import Point, PointsFigure
from ..html import fixed, percent, write_report
from ..parts import Cell, Table
from .folder import folder_page

Samples = Callable[[Path], list[tuple[Text, str | Path]]]
README = "README.md"
_SHOWN = 12  # prompts whose samples stand on the page
_PICKED = 3  # pictures each of the best, typical and worst cases


def write_page(folder: Path, recipe: Recipe, figures: Sequence[RoundFigures], samples: Samples) -> None:
    """Write rounds.json and report.html into ``folder``, and print where they are."""
    with atomic_write(folder / "rounds.json") as file:
        file.write_text(json.dumps([each.summary() for each in figures], indent=2) + "\n", "utf-8")
    write_report(rounds_report(folder, recipe, figures, samples), folder / "report.html")
    with atomic_write(folder / README) as file:
        file.write_text(_readme(recipe, figures), "utf-8")
    print(f"done: {folder / 'report.html'}")


def _readme(recipe: Recipe, figures: Sequence[RoundFigures]) -> str:
    files = {
        "report.html": "every round's figures, reward against divergence, and samples side by side",
        "rounds.json": "the same figures",
        "recipe.yaml": "the resolved recipe; dfb rounds --config reads it, and goes on with more rounds",
        ROUNDS: "which prompts and which model the rounds began with",
        "round-N/": "a round: its samples, their scores, its pairs, its run, and what was measured of it",
    }
    lines = "\n".join(f"round {each.number}: {each.line()}" for each in figures)
    return folder_page(f"{recipe.rounds.num_rounds} rounds of {recipe.objective['name']}", lines, files)


def rounds_report(folder: Path, recipe: Recipe, figures: Sequence[RoundFigures], samples: Samples) -> Report:
    """The page: the last round against round 0, every round in a table and two figures, and samples side by side."""
    first, last = figures[0], figures[-1]
    before, after = (samples(each.place / "evaluation" / "samples") for each in (first, last))
    is_text = all(isinstance(shown, str) for _, shown in before)
    rounds = recipe.rounds
    return Report(
        title=f"{rounds.num_rounds} rounds of {recipe.objective['name']}",
        summary=(
            f"In every round the model drew {rounds.num_samples} samples of each prompt, a judge ranked them, and the model "
            f"learnt from pairs of them ({rounds.rule}). Each round is measured on {first.reward.num} prompts that none "
            "of them trained on."
        ),
        before_name="round 0",
        after_name=f"round {last.number}",
        medium="a completion" if is_text else "an image",
        headline=_rate(f"round {last.number}", last.against_initial, first.reward.num)
        if last.against_initial
        else None,
        facts={
            "held-out prompts": str(first.reward.num),
            "judged by": _heldout_judge(recipe),
            "reference": _reference(recipe),
            "seed": str(recipe.training.seed),
        },
        rate_groups=[
            RateGroup(
                "By round",
                [_rate(f"round {f.number}", f.against_initial, f.reward.num) for f in figures if f.against_initial],
            )
        ],
        tables=[_table(figures), *([_texts(before, after, first, last)] if is_text else [])],
        cases=[] if is_text else _cases(before, after, first, last),
        score_name="score of the judge",
        curves=_curves(figures),
        curves_title="Rounds",
        recipe=to_yaml(recipe),
        environment=_environment(folder),
        notes=_notes(figures),
    )


def _rate(label: str, won: WinRate, num_prompts: int) -> Rate:
    # The page calls it a sign test, which it is where every prompt was judged once.
    p_value = won.p_value if won.num == num_prompts else None
    return Rate(label, won.win_rate, won.low, won.high, won.num, won.tie_share, p_value)


def _heldout_judge(recipe: Recipe) -> str:
    rounds = recipe.rounds
    return rounds.heldout_judge or rounds.labels_from or recipe.rollouts.reward or rounds.scorer


def _reference(recipe: Recipe) -> str:
    kind = recipe.rounds.reference
    words = {"initial": "the initial model", "previous": "the round before", "ema": "an average of the rounds"}
    return words[kind] + (f", decay {recipe.rounds.reference_decay:g}" if kind == "ema" else "")


def _environment(folder: Path) -> dict[str, str]:
    path = folder / "round-1" / "run" / "environment.json"
    if not path.exists():
        return {}
    found = read_object(path, "remove the file, and run the same command again")
    return {name: str(value) for name, value in found.items()}


def _interval(value: Interval | None, digits: int = 3) -> Cell:
    if value is None:
        return Cell("")
    return Cell(fixed(value.value, digits), f"{fixed(value.low, digits)} to {fixed(value.high, digits)}")


def _win(value: WinRate | None) -> Cell:
    return (
        Cell("") if value is None else Cell(percent(value.win_rate), f"{percent(value.low)} to {percent(value.high)}")
    )


def _table(figures: Sequence[RoundFigures]) -> Table:
    columns: dict[str, Callable[[RoundFigures], Cell]] = {
        "reward": lambda f: _interval(f.reward),
        "KL to round 0": lambda f: _interval(f.kl),
        "exact KL": lambda f: _interval(f.kl_exact),
        "against the round before": lambda f: _win(f.against_previous),
        "against round 0": lambda f: _win(f.against_initial),
    }
    known = {name: cell for name, cell in columns.items() if any(cell(f).text for f in figures)}
    rows = [(Cell(f"round {f.number}"), [cell(f) for cell in known.values()]) for f in figures]
    detail = "Means over held-out prompts with 95 % intervals. KL in nats; a round's own gain is its win rate."
    return Table("Round by round", list(known), rows, detail, corner="round")


def _texts(before: Any, after: Any, first: RoundFigures, last: RoundFigures) -> Table:
    seen: dict[str, tuple[Cell, list[Cell]]] = {}
    for place, ((prompt, old), (_, new)) in enumerate(zip(before, after, strict=True)):
        cells = [Cell(old, fixed(first.scores[place], 3)), Cell(new, fixed(last.scores[place], 3))]
        name = prompt if isinstance(prompt, str) else "\n".join(str(turn["content"]) for turn in prompt)
        seen.setdefault(name, (Cell(name), cells))
    detail = "The first prompts of the file, so that nobody picked them; below each completion the judge's score."
    columns = ["round 0", f"round {last.number}"]
    return Table("Completions", columns, list(seen.values())[:_SHOWN], detail, "prompt", is_text=True)


def _cases(before: Any, after: Any, first: RoundFigures, last: RoundFigures) -> list[CaseGroup]:
    found = compare([prompt for prompt, _ in before], first.scores, last.scores)
    picks = pick_cases(found.rows, _PICKED)
    groups = {"Largest gains": picks.best, "Typical cases": picks.median, "Largest losses": picks.worst}

    def case(row: Any) -> Case:
        return Case(row.prompt, before[row.index][1], after[row.index][1], row.before, row.after)

    return [CaseGroup(title, [case(row) for row in rows]) for title, rows in groups.items() if rows]


def _curves(figures: Sequence[RoundFigures]) -> list[CurveFigure | PointsFigure]:
    reward = {"reward": [(float(f.number), f.reward.value) for f in figures]}
    curves: list[CurveFigure | PointsFigure] = [CurveFigure("Reward", reward, x_label="round", y_label="reward")]
    known = [(f, f.kl) for f in figures if f.kl is not None]
    if known:
        points = [
            Point(kl.value, f.reward.value, (kl.low, kl.high), (f.reward.low, f.reward.high), str(f.number))
            for f, kl in known
        ]
        detail = "Each point is a round, with its 95 % intervals: what the reward costs in distance from round 0."
        curves.insert(0, PointsFigure("Reward against divergence", {"rounds": points}, detail, "KL, nats", "reward"))
    return curves


def _notes(figures: Sequence[RoundFigures]) -> list[tuple[str, str]]:
    notes: Mapping[str, str] = {
        "KL": "Divergence of the round's model from round 0, per completion, in nats: the divergences of the next-token "
        "distributions, exact at each token, summed along the completions that the model drew.",
        "Exact KL": "Summed over all completions that there can be, which only a small world allows.",
    }
    shown = {"KL": any(f.kl is not None for f in figures), "Exact KL": any(f.kl_exact is not None for f in figures)}
    return [(title, text) for title, text in notes.items() if shown[title]]
