"""Check the scorers on the published weights against the numbers that their authors published.

    python scripts/verify_weights.py FOLDER

Put into FOLDER what you have of the files below, under these names; what is absent is listed with its address. Prints
expected and found numbers; exit code 0 if all that could be checked agree, 1 on a mismatch or on weights that do not
load, 2 when nothing could be checked. PickScore and HPSv2.1 come without a published number for a public image: their
weights are loaded and their scores of the demo image are shown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion_feedback.data.image_sets import ImageFile
from diffusion_feedback.errors import UserError
from diffusion_feedback.scorers.loading import load_scorers
from diffusion_feedback.scorers.runner import run
from diffusion_feedback.types import ImageItem

PUBLISHED = {
    "ImageReward.pt": "https://huggingface.co/THUDM/ImageReward",
    "vocab.txt": "https://huggingface.co/google-bert/bert-base-uncased",
    **{f"{n}.webp": "https://github.com/zai-org/ImageReward/tree/main/assets/images" for n in (1, 2, 3, 4)},
    "HPS_v2_compressed.pt": "https://huggingface.co/xswu/HPSv2",
    "HPS_v2.1_compressed.pt": "https://huggingface.co/xswu/HPSv2",
    "demo_image.jpg": "https://github.com/tgxs002/HPSv2/tree/master/hpsv2/assets",
    "PickScore_v1": "https://huggingface.co/yuvalkirstain/PickScore_v1",
}
OCEAN = "a painting of an ocean with clouds and birds, day time, low depth field effect"
CAT = "A cat with two horns on its head"


@dataclass(frozen=True, slots=True)
class Check:
    """One image under one scorer: ``expected`` is the published number, None where there is none.

    ``spec`` is the scorer's with {} for the folder, ``files`` are all that it reads; ``field`` names the kind of number
    that was published: the score, or the raw cosine.
    """

    spec: str
    files: tuple[str, ...]
    image: str
    prompt: str
    expected: float | None
    tolerance: float
    field: str = "score"


def checks() -> list[Check]:
    """All that is published: README of ImageReward (float32), and HPSv2's demo, whose 0.2876 stands on a float16 grid."""
    reward = "imagereward={}/ImageReward.pt", ("ImageReward.pt", "vocab.txt")
    readme = (0.5811622738838196, 0.2745276093482971, -1.4131819009780884, -2.029569625854492)
    return [
        *(Check(*reward, f"{n}.webp", OCEAN, value, 1e-3) for n, value in enumerate(readme, 1)),
        *(
            Check(f"hpsv2={{}}/{file},version={version}", (file,), "demo_image.jpg", CAT, value, 5e-4, "raw")
            for version, file, value in (
                ("v2.0", "HPS_v2_compressed.pt", 0.2876),
                ("v2.1", "HPS_v2.1_compressed.pt", None),
            )
        ),
        Check("pickscore={}/PickScore_v1", ("PickScore_v1",), "demo_image.jpg", CAT, None, 0.0),
    ]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a check: ``found`` None where the scorer failed; ``verdict`` in words."""

    check: Check
    found: float | None
    verdict: str

    @property
    def failed(self) -> bool:
        """Whether the number is wrong or could not be had from files that are there."""
        return self.verdict not in ("agrees", "no published number")

    def row(self) -> str:
        """A line of the table."""
        wanted, found = self.check.expected, self.found
        gap = None if wanted is None or found is None else found - wanted
        numbers = " | ".join(f"{'' if v is None else f'{v:.4f}':>8}" for v in (wanted, found, gap))
        return f"{self.check.files[0]:24} | {self.check.image:14} | {numbers} | {self.verdict}"


def verify(folder: Path, todo: Sequence[Check], device: str = "cpu") -> list[Outcome]:
    """Run the checks whose files are all in ``folder``; each scorer is loaded once and let go before the next."""
    there = [check for check in todo if all((folder / name).exists() for name in (*check.files, check.image))]
    outcomes: list[Outcome] = []
    for spec in dict.fromkeys(check.spec for check in there):
        group = [check for check in there if check.spec == spec]
        items = [ImageItem(check.image, check.prompt, ImageFile(folder / check.image)) for check in group]
        try:
            scorers = load_scorers([spec.format(folder)], device=device)
            batches = [batch.scores[0] for batch in run(scorers, items)]
        except UserError as error:
            outcomes += [Outcome(check, None, f"failed: {error.problem}") for check in group]
            continue
        for number, check in enumerate(group):
            values = [value for batch in batches for value in getattr(batch, check.field).tolist()]
            outcomes.append(_judge(check, values[number]))
    return outcomes


def _judge(check: Check, found: float) -> Outcome:
    if check.expected is None:
        return Outcome(check, found, "no published number")
    agrees = abs(found - check.expected) <= check.tolerance  # a NaN does not agree
    return Outcome(check, found, "agrees" if agrees else f"MISMATCH: beyond {check.tolerance:g}")


def report(folder: Path, outcomes: Sequence[Outcome]) -> int:
    """Print the table and what is absent; returns the exit code."""
    if outcomes:
        print(f"{'weights':24} | {'image':14} | {'expected':>8} | {'found':>8} | {'gap':>8} | verdict")
    for outcome in outcomes:
        print(outcome.row())
    absent = {name: address for name, address in PUBLISHED.items() if not (folder / name).exists()}
    if absent:
        print(f"\nabsent from {folder}:")
    for name, address in absent.items():
        print(f"  {name:24} {address}")
    if any(outcome.failed for outcome in outcomes):
        return 1
    if not any(outcome.verdict == "agrees" for outcome in outcomes):
        print("\nnothing could be checked")
        return 2
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, check, and print. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the weights and the images stand")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu, whose numbers are float32)")
    given = parser.parse_args(arguments)
    return report(given.folder, verify(given.folder, checks(), given.device))


if __name__ == "__main__":
    sys.exit(main())
