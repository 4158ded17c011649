"""The page of a calibration: table, reliability, coverage and agreement of the scorers."""

from __future__ import annotations

from ...evaluation.calibrated import CalibrationResult
from ..content import Report
from ..rendering import plural
from ..results import explanations


def calibration_report(result: CalibrationResult) -> Report:
    """How far each scorer can be trusted, by falling accuracy."""
    counts = result.pairs.counts
    facts = {"Pairs": f"{counts['num']:,}", "Prompts": f"{counts['prompts']:,}", "Labelled ties": f"{counts['ties']:,}"}
    if result.tuning is None:
        facts["Scale and tie threshold"] = "each half of the prompts by the other half"
    else:
        facts["Scale and tie threshold"] = f"from {plural(len(result.tuning), 'pair')} of {result.tuning_source}"
    own = [("On these results", ". ".join(result.notes) + ".")] if result.notes else []
    return Report(
        title="Calibration of scorers",
        summary=f"How far scorers can be trusted to judge as people do, measured on {result.source}.",
        facts=facts,
        calibration=result,
        environment={scorer.name: scorer.recipe_id for scorer in result.scorers},
        notes=[*explanations("calibration", {}), *own],
    )
