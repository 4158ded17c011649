"""What ``dfb calibrate`` leaves behind: calibration.json, report.html, README.md, and the table on the screen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...evaluation.calibration import LABELS, Agreement, LabelledPairs, Probabilities, ScorerCalibration
from ...evaluation.statistics import Interval
from ...records import atomic_write
from ..calibration import CalibrationPart, CalibrationRow, Estimate, IntervalPoint, ReliabilityFigure
from ..content import Report
from ..html import significant, write_report

FEW_PROMPTS = 20
"""Below this many prompts, intervals that resample prompts are known to be too narrow."""

CONTENTS = """# Calibration of scorers

| | |
|---|---|
| `report.html` | the page to open: table, reliability, margin against accuracy, agreement |
| `calibration.json` | all figures; `dfb label --calibration calibration.json` reads the logit scales |

`calibration.json`: `scorers` is keyed by recipe id (scorer, version, preprocessing, precision, hash of the weights).
`logit_scale` is the fitted one: P(image 0 preferred) = sigmoid(logit_scale * (raw_0 - raw_1)). `fit_status` is `fitted`;
`capped` where the labels follow the scorer without an exception, so that the scale has no finite best value; `no_signal`
where no positive scale is better than P = 0.5 for every pair (the scale is 0). `accuracy` leaves labelled ties out,
`accuracy_per_prompt` is the mean over prompts of each one's accuracy, as HPSv2 reports it; `accuracy_with_ties` follows PickScore's protocol at `tie_threshold`. `log_loss` (nats) and `ece` are those of
probabilities under a scale that was fitted on other prompts or pairs; `own` holds the figures under the scorer's own
scale. Every interval (`low`, `high`) is at 95 %, by resampling prompts; those of the reliability bins are Wilson's.
"""

NOTES = (
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


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """All that the command found; ``source`` and ``tuning_source`` say where the pairs were read.

    ``ceiling`` names the scorer whose accuracy is the noise ceiling; ``num_left_out`` counts bad rows and pairs with
    bad images. ``per_prompt``: the table shows the accuracy per prompt too; calibration.json always holds it.
    """

    source: str
    pairs: LabelledPairs
    tuning_source: str | None
    tuning: LabelledPairs | None
    scorers: Sequence[ScorerCalibration]
    agreements: Sequence[Agreement]
    ceiling: str | None
    num_left_out: int
    per_prompt: bool = False

    @property
    def ranked(self) -> list[ScorerCalibration]:
        """The scorers by falling accuracy."""
        return sorted(self.scorers, key=lambda scorer: -scorer.accuracy.value)

    def notes(self) -> list[str]:
        """What a reader of the figures must know, one sentence each."""
        found = [f"{scorer.name}: {_note(scorer)}" for scorer in self.scorers if _note(scorer)]
        num_prompts = len(set(self.pairs.prompts))
        if num_prompts < FEW_PROMPTS:
            found.append(f"{num_prompts} prompts are few: the intervals are likely too narrow")
        shared = set(self.pairs.prompts) & set(self.tuning.prompts if self.tuning else ())
        if shared:
            found.append(
                f"prompts that both sets of pairs share: {len(shared)}; figures after the fit flatter a little"
            )
        if self.num_left_out:
            found.append(f"{self.num_left_out} pairs were left out, for bad rows or images")
        return found


def write(result: CalibrationResult, folder: Path) -> None:
    """Write the folder, each file whole or not at all; calibration.json last."""
    write_report(_report(result), folder / "report.html")
    content = json.dumps(to_json(result), indent=2, ensure_ascii=False, allow_nan=False)
    for name, text in (("README.md", CONTENTS), ("calibration.json", content + "\n")):
        with atomic_write(folder / name) as file:
            file.write_text(text, "utf-8")


def to_json(result: CalibrationResult) -> dict[str, Any]:
    """The content of calibration.json; ``scorers.<recipe_id>.logit_scale`` is what ``dfb label`` reads."""
    return {
        "pairs": {"source": result.source, "left_out": result.num_left_out, **_counts(result.pairs)},
        "tuning": None if result.tuning is None else {"source": result.tuning_source, **_counts(result.tuning)},
        "fitted_on": "halves of the prompts in turn; the final scale on all pairs"
        if result.tuning is None
        else "tuning",
        "scorers": {scorer.recipe_id: _scorer_json(scorer, result.ceiling) for scorer in result.scorers},
        "agreement": [{"a": found.a, "b": found.b, **asdict(found.share)} for found in result.agreements],
    }


def table(result: CalibrationResult) -> str:
    """The table on the screen, by falling accuracy, and what has to be said about it."""
    counts = _counts(result.pairs)
    told = f"{'per prompt':<21} " if result.per_prompt else ""
    rankings = f", {counts['rankings']:,} rankings" if counts["rankings"] != counts["prompts"] else ""
    lines = [
        f"{counts['num']:,} labelled pairs of {counts['prompts']:,} prompts{rankings}, {counts['ties']:,} ties",
        f"{'scorer':<18} {'accuracy':<21} {told}{'with ties':>9} {'t':>4} {'log loss':>15} {'ECE':>13} {'logit scale':>17}",
    ]
    for scorer in result.ranked:
        own, shown = scorer.own, [scorer.accuracy, *([scorer.accuracy_per_prompt] if result.per_prompt else [])]
        losses = [probabilities.log_loss.value for probabilities in (own, scorer.fitted) if probabilities]
        errors = [probabilities.ece for probabilities in (own, scorer.fitted) if probabilities]
        scales = [scale for scale in (scorer.own_logit_scale, scorer.fit.logit_scale) if scale is not None]
        accuracy = " ".join(f"{f'{found.value:.3f} ({found.low:.3f}-{found.high:.3f})':<21}" for found in shown)
        cells = (
            " -> ".join(f"{loss:.3f}" for loss in losses),
            " -> ".join(f"{100 * error:.1f}" for error in errors) + " %",
            " -> ".join(significant(scale) for scale in scales),
        )
        ties = f"{scorer.accuracy_with_ties.value:>9.3f} {scorer.tie_threshold:>4.1f}"
        mark = "  noise ceiling" if scorer.name == result.ceiling else ""
        lines.append(f"{scorer.name:<18} {accuracy} {ties} {cells[0]:>15} {cells[1]:>13} {cells[2]:>17}{mark}")
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes())])


def _counts(pairs: LabelledPairs) -> dict[str, int]:
    counts = {"num": len(pairs), "prompts": len(set(pairs.prompts)), "ties": int(pairs.is_tie.sum())}
    return counts | {"rankings": len(set(pairs.prompts if pairs.rankings is None else pairs.rankings))}


def _note(scorer: ScorerCalibration) -> str:
    notes = {
        "fitted": "",
        "capped": "the labels follow it without an exception, so its scale has no finite best value; capped",
        "no_signal": "no positive scale is better than a coin: it cannot tell, or prefers what people reject",
    }
    found = [notes[scorer.fit.status]] if notes[scorer.fit.status] else []
    if scorer.num_equal:
        found.append(f"{scorer.num_equal} pairs with equal scores")
    return "; ".join(found)


def _scorer_json(scorer: ScorerCalibration, ceiling: str | None) -> dict[str, Any]:
    interval = scorer.scale_interval
    return {
        "name": scorer.name,
        "logit_scale": scorer.fit.logit_scale,
        "logit_scale_interval": None if interval is None else [interval.low, interval.high],
        "fit_status": scorer.fit.status,
        "own_logit_scale": scorer.own_logit_scale,
        "accuracy": asdict(scorer.accuracy),
        "accuracy_per_prompt": asdict(scorer.accuracy_per_prompt),
        "accuracy_with_ties": asdict(scorer.accuracy_with_ties),
        "tie_threshold": scorer.tie_threshold,
        **_probabilities_json(scorer.fitted),
        "own": None if scorer.own is None else _probabilities_json(scorer.own),
        "coverage": [{"share": point.share, **asdict(point.accuracy)} for point in scorer.coverage],
        "equal_scores": scorer.num_equal,
        "is_noise_ceiling": scorer.name == ceiling,
    }


def _probabilities_json(found: Probabilities) -> dict[str, Any]:
    return {
        "log_loss": asdict(found.log_loss),
        "ece": found.ece,
        "ece_by_chance": found.ece_by_chance,
        "reliability": [asdict(part) for part in found.reliability],
    }


# --- the page --------------------------------------------------------------------------------------------------------


def _report(result: CalibrationResult) -> Report:
    counts = _counts(result.pairs)
    facts = {"Pairs": f"{counts['num']:,}", "Prompts": f"{counts['prompts']:,}", "Labelled ties": f"{counts['ties']:,}"}
    if result.tuning is None:
        facts["Scale and tie threshold"] = "each half of the prompts by the other half"
    else:
        facts["Scale and tie threshold"] = f"from {len(result.tuning):,} pairs of {result.tuning_source}"
    notes = result.notes()
    return Report(
        title="Calibration of scorers",
        summary=f"How far scorers can be trusted to judge as people do, measured on {result.source}.",
        facts=facts,
        calibration=CalibrationPart(
            rows=[_row(scorer, result) for scorer in result.ranked],
            reliability=[_reliability(scorer) for scorer in result.ranked],
            coverage={
                scorer.name: [IntervalPoint(point.share, _estimate(point.accuracy)) for point in scorer.coverage]
                for scorer in result.ranked
            },
            names=[LABELS, *(scorer.name for scorer in result.ranked)],
            agreement={(found.a, found.b): _estimate(found.share) for found in result.agreements},
        ),
        environment={scorer.name: scorer.recipe_id for scorer in result.scorers},
        notes=[*NOTES, *([("On these figures", ". ".join(notes) + ".")] if notes else [])],
    )


def _estimate(found: Interval) -> Estimate:
    return Estimate(found.value, found.low, found.high)


def _row(scorer: ScorerCalibration, result: CalibrationResult) -> CalibrationRow:
    interval = scorer.scale_interval
    return CalibrationRow(
        name=scorer.name,
        recipe_id=scorer.recipe_id,
        accuracy=_estimate(scorer.accuracy),
        accuracy_with_ties=_estimate(scorer.accuracy_with_ties),
        tie_threshold=scorer.tie_threshold,
        log_loss=_estimate(scorer.fitted.log_loss),
        ece=scorer.fitted.ece,
        ece_by_chance=scorer.fitted.ece_by_chance,
        logit_scale=scorer.fit.logit_scale,
        logit_scale_interval=None if interval is None else (interval.low, interval.high),
        own_logit_scale=scorer.own_logit_scale,
        own_log_loss=None if scorer.own is None else _estimate(scorer.own.log_loss),
        own_ece=None if scorer.own is None else scorer.own.ece,
        is_ceiling=scorer.name == result.ceiling,
        note=_note(scorer),
        accuracy_per_prompt=_estimate(scorer.accuracy_per_prompt) if result.per_prompt else None,
    )


def _reliability(scorer: ScorerCalibration) -> ReliabilityFigure:
    every: Mapping[str, Probabilities | None] = {"own scale": scorer.own, "after the fit": scorer.fitted}
    series = {
        name: [IntervalPoint(b.confidence, Estimate(b.observed, b.low, b.high)) for b in found.reliability]
        for name, found in every.items()
        if found is not None
    }
    return ReliabilityFigure(scorer.name, series, f"{len(scorer.fitted.reliability)} bins of about equally many pairs")
