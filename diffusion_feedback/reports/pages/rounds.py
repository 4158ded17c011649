"""The page of rounds: reward against divergence, every round in a table, and samples side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ...config.recipe import Recipe, to_yaml
from ...evaluation.comparison import CaseRow, compare
from ...evaluation.leakage import prompt_text
from ...evaluation.rounds import RoundMetrics
from ...records import Text
from ..content import Case, Cell, Group, Rate, Report, Table
from ..figures import CurveFigure, Point, PointsFigure
from ..results import case_groups, completions_table, explanations, interval_cell, judge_name, share_cell
from .folder import read_environment

DrawnSamples = Sequence[tuple[Text, str | Path]]
"""Prompt and text, or prompt and picture, of every sample."""

_SHOWN = 12  # prompts whose samples stand on the page
_REMEDY = "remove the file, and run the same command again"
_PICKED = 3  # pictures each of the best, typical and worst cases


def rounds_report(
    folder: Path, recipe: Recipe, rounds: Sequence[RoundMetrics], samples_of: Callable[[Path], DrawnSamples]
) -> Report:
    """The last round against round 0, every round in a table and two figures, and samples of both.

    ``samples_of`` reads the samples that a folder holds.
    """
    first, last, settings, run = rounds[0], rounds[-1], recipe.rounds, folder / "round-1" / "run"
    before, after = (samples_of(each.place / "evaluation" / "samples") for each in (first, last))
    num_prompts, name = first.reward.num, f"round {last.number}"
    is_text = all(isinstance(shown, str) for _, shown in before)
    by_round = [
        Rate(f"round {each.number}", each.against_initial, num_prompts=num_prompts)
        for each in rounds
        if each.against_initial
    ]
    return Report(
        title=f"{settings.num_rounds} rounds of {recipe.objective['name']}",
        summary=(
            f"In every round the model drew {settings.num_samples} samples of each prompt, a judge ranked them, and the model "
            f"learnt from pairs of them ({settings.rule}). Each round is measured on {num_prompts} prompts that none "
            "of them trained on."
        ),
        before_name="round 0",
        after_name=name,
        medium="a completion" if is_text else "an image",
        headline=Rate(name, last.against_initial, num_prompts=num_prompts) if last.against_initial else None,
        facts={
            "held-out prompts": str(num_prompts),
            "judged by": judge_name(
                settings.heldout_judge or settings.labels_from or recipe.rollouts.reward or settings.scorer
            ),
            "reference": _reference(recipe),
            "seed": str(recipe.training.seed),
        },
        rate_groups=[Group("By round", by_round)],
        tables=[_rounds_table(rounds), *([_texts_table(before, after, first, last)] if is_text else [])],
        cases=[] if is_text else _cases(before, after, first, last),
        score_name="score of the judge",
        curves=_figures(rounds),
        curves_title="Rounds",
        recipe=to_yaml(recipe),
        environment=read_environment(run, _REMEDY) if (run / "environment.json").exists() else {},
        notes=explanations(
            "rounds", {"KL": any(each.kl for each in rounds), "Exact KL": any(each.kl_exact for each in rounds)}
        ),
    )


def _reference(recipe: Recipe) -> str:
    kind = recipe.rounds.reference
    words = {"initial": "the initial model", "previous": "the round before", "ema": "an average of the rounds"}
    return words[kind] + (f", decay {recipe.rounds.reference_decay:g}" if kind == "ema" else "")


def _rounds_table(rounds: Sequence[RoundMetrics]) -> Table:
    columns: dict[str, Callable[[RoundMetrics], Cell]] = {
        "reward": lambda each: interval_cell(each.reward),
        "KL to round 0": lambda each: interval_cell(each.kl),
        "exact KL": lambda each: interval_cell(each.kl_exact),
        "against the round before": lambda each: share_cell(each.against_previous),
        "against round 0": lambda each: share_cell(each.against_initial),
    }
    known = {name: cell for name, cell in columns.items() if any(cell(each).text for each in rounds)}
    rows = [(Cell(f"round {each.number}"), [cell(each) for cell in known.values()]) for each in rounds]
    detail = "Means over held-out prompts with 95 % intervals. KL in nats; a round's own gain is its win rate."
    return Table("Round by round", list(known), rows, detail, corner="round")


def _texts_table(before: DrawnSamples, after: DrawnSamples, first: RoundMetrics, last: RoundMetrics) -> Table:
    rows: dict[str, list[tuple[str, float]]] = {}
    for (prompt, old), (_, new), *scores in zip(before, after, first.scores, last.scores, strict=True):
        rows.setdefault(prompt_text(prompt), list(zip((str(old), str(new)), scores, strict=True)))
    detail = "The first prompts of the file, so that nobody picked them; below each completion the judge's score."
    return completions_table(["round 0", f"round {last.number}"], list(rows.items())[:_SHOWN], detail)


def _cases(before: DrawnSamples, after: DrawnSamples, first: RoundMetrics, last: RoundMetrics) -> list[Group[Case]]:
    compared = compare([prompt_text(prompt) for prompt, _ in before], first.scores, last.scores)

    def case_of(row: CaseRow) -> Case:
        return Case(row.prompt, Path(before[row.index][1]), Path(after[row.index][1]), row.before, row.after)

    return case_groups(compared.rows, _PICKED, case_of)


def _figures(rounds: Sequence[RoundMetrics]) -> list[CurveFigure | PointsFigure]:
    reward = {"reward": [(float(each.number), each.reward.value) for each in rounds]}
    band = {"reward": [(each.reward.low, each.reward.high) for each in rounds]}
    detail = "Mean over held-out prompts, with its 95 % interval."
    figures: list[CurveFigure | PointsFigure] = [CurveFigure("Reward", reward, detail, "round", "reward", bands=band)]
    known = [(each, each.kl) for each in rounds if each.kl is not None]
    if known:
        points = [Point(kl, each.reward, str(each.number)) for each, kl in known]
        detail = "Each point is a round, with its 95 % intervals: what the reward costs in distance from round 0."
        figures.insert(0, PointsFigure("Reward against divergence", {"rounds": points}, detail, "KL, nats", "reward"))
    return figures
