"""Check the scorers on the published weights against the numbers that their authors published.

    python tools/verify_weights.py FOLDER

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
from typing import Literal

import torch

from diffusion_feedback.data.image_handles import ImageFile
from diffusion_feedback.errors import UserError
from diffusion_feedback.scorers.loading import load_scorers
from diffusion_feedback.scorers.runner import score_batches
from diffusion_feedback.scorers.scorer import Scorer
from diffusion_feedback.specs import Spec
from diffusion_feedback.types.images import ImageItem

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

    ``files`` are all that the scorer reads, its weights first; ``kind`` says which number was published: the score, or
    the raw cosine.
    """

    scorer: str
    files: tuple[str, ...]
    image: str
    prompt: str
    expected: float | None = None
    tolerance: float = 0.0
    kind: Literal["score", "raw"] = "score"
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def source(self) -> tuple[object, ...]:
        """What makes the scorer."""
        return self.scorer, self.files, self.settings

    def load(self, folder: Path, device: str) -> Scorer:
        """The scorer. Raises UserError where the weights cannot be loaded."""
        spec = Spec("scorer", self.scorer, str(folder / self.files[0]), dict(self.settings))
        return load_scorers([spec], device=device)[0]


def checks() -> list[Check]:
    """All that is published: README of ImageReward (float32), and HPSv2's demo, whose 0.2876 stands on a float16 grid.

    The demo is shown with HPSv2's older resampling too: should the number have been made before torchvision 0.17.
    """
    reward = "imagereward", ("ImageReward.pt", "vocab.txt")
    readme = (0.5811622738838196, 0.2745276093482971, -1.4131819009780884, -2.029569625854492)
    hps = "hpsv2", ("HPS_v2_compressed.pt",), "demo_image.jpg", CAT
    hps_2_1 = "hpsv2", ("HPS_v2.1_compressed.pt",), "demo_image.jpg", CAT
    old = ("version", "v2.0")
    return [
        *(Check(*reward, f"{n}.webp", OCEAN, value, 1e-3) for n, value in enumerate(readme, 1)),
        Check(*hps, 0.2876, 5e-4, "raw", (old,)),
        Check(*hps, kind="raw", settings=(old, ("resampling", "legacy"))),
        Check(*hps_2_1, kind="raw", settings=(("version", "v2.1"),)),
        Check("pickscore", ("PickScore_v1",), "demo_image.jpg", CAT),
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
        wanted, score = self.check.expected, self.found
        gap = None if wanted is None or score is None else score - wanted
        numbers = " | ".join(f"{'' if v is None else f'{v:.4f}':>8}" for v in (wanted, score, gap))
        what = " ".join([self.check.files[0], *(value for _, value in self.check.settings)])
        return f"{what:34} | {self.check.image:14} | {numbers} | {self.verdict}"


def verify(folder: Path, todo: Sequence[Check], device: str = "cpu") -> list[Outcome]:
    """Run the checks whose files are all in ``folder``; each scorer is loaded once and let go before the next."""
    there = [check for check in todo if all((folder / name).exists() for name in (*check.files, check.image))]
    outcomes: list[Outcome] = []
    for source in dict.fromkeys(check.source for check in there):
        group = [check for check in there if check.source == source]
        items = [ImageItem(check.image, check.prompt, ImageFile(folder / check.image)) for check in group]
        try:
            scores = [batch.scores[0] for batch in score_batches([group[0].load(folder, device)], items)]
        except UserError as error:
            outcomes += [Outcome(check, None, f"failed: {error.problem}") for check in group]
            continue
        for number, check in enumerate(group):
            outcomes.append(_judge(check, float(torch.cat([getattr(part, check.kind) for part in scores])[number])))
    return outcomes


def _judge(check: Check, found: float) -> Outcome:
    if check.expected is None:
        return Outcome(check, found, "no published number")
    agrees = abs(found - check.expected) <= check.tolerance  # a NaN does not agree
    return Outcome(check, found, "agrees" if agrees else f"MISMATCH: beyond {check.tolerance:g}")


def report(folder: Path, outcomes: Sequence[Outcome]) -> int:
    """Print the table and what is absent; returns the exit code."""
    if outcomes:
        print(f"{'weights':34} | {'image':14} | {'expected':>8} | {'found':>8} | {'gap':>8} | verdict")
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
