"""The page of a calibration: table, reliability, coverage and agreement of the scorers."""

from __future__ import annotations

from pathlib import Path

from ...evaluation.calibrated import CalibrationResult
from ..content import Report
from ..html import write_report
from .folder import write_readme

_NOTES = (
    (
        "Accuracy",
        "Share of pairs on which the scorer prefers the image that people preferred. Labelled ties are left out; equal "
        "scores count one half, as a coin would (the script that came with ImageReward counts them as wrong).",
    ),
    (
        "Per prompt",
        "The mean over prompts (over rankings, where the labels are rankings) of each one's accuracy, so that a prompt with "
        "many images weighs no more than one with two: what HPSv2 reports. Its own script counts pairs that people ranked "
        "alike as right; here they are left out.",
    ),
    (
        "With ties",
        "The protocol that PickScore's accuracy was published under: a tie is predicted where the two probabilities "
        "differ by t or less; a right prediction counts 1, and one half where exactly one of label and prediction is a tie.",
    ),
    (
        "Logit scale",
        "The one number s for which sigmoid(s × difference of the raw scores) has the least cross entropy against the "
        "labels. A fitted scale below the scorer's own says that it is too sure of itself.",
    ),
    (
        "Log loss and ECE",
        "Log loss is the mean cross entropy in nats; a coin has 0.693. ECE is the mean distance between confidence and "
        "observed agreement over ten bins of equal size; on few pairs it is not zero even for perfect probabilities, so the "
        "figure of chance alone stands below it. An arrow leads from the scorer's own scale to the fitted one.",
    ),
    (
        "95 % interval",
        "What other prompts of the same kind would give: whole prompts are resampled, because pairs of one prompt are alike. "
        "Bins of the reliability curve have Wilson intervals over their pairs.",
    ),
)


def write_calibration_pages(result: CalibrationResult, folder: Path) -> None:
    """Write report.html and README.md into ``folder``."""
    write_report(calibration_report(result), folder / "report.html")
    write_readme("calibration", folder)


def calibration_report(result: CalibrationResult) -> Report:
    """How far each scorer can be trusted, by falling accuracy."""
    counts = result.pairs.counts
    facts = {"Pairs": f"{counts['num']:,}", "Prompts": f"{counts['prompts']:,}", "Labelled ties": f"{counts['ties']:,}"}
    if result.tuning is None:
        facts["Scale and tie threshold"] = "each half of the prompts by the other half"
    else:
        facts["Scale and tie threshold"] = f"from {len(result.tuning):,} pairs of {result.tuning_source}"
    notes = [("On these results", ". ".join(result.notes) + ".")] if result.notes else []
    return Report(
        title="Calibration of scorers",
        summary=f"How far scorers can be trusted to judge as people do, measured on {result.source}.",
        facts=facts,
        calibration=result,
        environment={scorer.name: scorer.recipe_id for scorer in result.scorers},
        notes=[*_NOTES, *notes],
    )
