"""The page of a calibration: table, reliability, coverage, mistakes and agreement of the scorers."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import plural
from ...evaluation.calibrated import CalibrationResult
from ...evaluation.statistics import Interval
from ..content import Claim, Group, Mistake, Report
from ..html import percent
from ..results import explanations


def calibration_report(result: CalibrationResult, mistakes: Sequence[Group[Mistake]] = ()) -> Report:
    """How far each scorer can be trusted, by falling accuracy; ``mistakes`` are the pairs that each is surest of and wrong."""
    counts = result.pairs.counts
    facts = {"Pairs": f"{counts['num']:,}", "Prompts": f"{counts['prompts']:,}", "Labelled ties": f"{counts['ties']:,}"}
    if result.tuning is None:
        facts["Scale and tie threshold"] = "each half of the prompts by the other half"
    else:
        facts["Scale and tie threshold"] = f"from {plural(len(result.tuning), 'pair')} of {result.tuning_source}"
    own = [("On these results", ". ".join(result.notes) + ".")] if result.notes else []
    first, *others = [scorer for scorer in result.ranked if scorer.name != result.ceiling] or result.ranked
    return Report(
        title="Calibration of scorers",
        summary=f"How far scorers can be trusted to judge as people do, measured on {result.source}.",
        claim=Claim(
            percent(first.accuracy.value),
            f"of the pairs {first.name} prefers what people prefer",
            calibration_verdict(result),
            {scorer.name: _share(scorer.accuracy) for scorer in others},
            first.accuracy,
        ),
        facts=facts,
        calibration=result,
        mistakes=mistakes,
        environment={scorer.name: scorer.recipe_id for scorer in result.scorers},
        notes=[*explanations("calibration", {}), *own],
    )


def calibration_verdict(result: CalibrationResult) -> str:
    """The best scorer against people, chance and the ceiling, in one sentence that claims no more than the interval."""
    first = next((scorer for scorer in result.ranked if scorer.name != result.ceiling), result.ranked[0])
    verdict = f"{first.name} agrees with people on {_share(first.accuracy)}"
    if first.accuracy.low <= 0.5 <= first.accuracy.high:
        verdict += ", which chance might too"
    elif first.accuracy.high < 0.5:
        verdict += ", less often than chance"
    ceiling = next((scorer for scorer in result.scorers if scorer.name == result.ceiling), None)
    if ceiling is None or ceiling is first:
        return f"{verdict}."
    return f"{verdict}; the ceiling is {percent(ceiling.accuracy.value)}, what {ceiling.name} reaches on these labels."


def _share(accuracy: Interval) -> str:
    return f"{percent(accuracy.value)} ({percent(accuracy.low)} to {percent(accuracy.high)})"
