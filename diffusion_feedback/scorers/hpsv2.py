"""HPSv2 and HPSv2.1 (arXiv:2306.09341): CLIP ViT-H/14 tuned on human preferences, over letterboxed pictures."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError, nearest
from .hub_files import weights_file
from .scorer import Scorer, Towers
from .towers import clip_scorer, load_open_clip
from .views import LetterboxView

HUB_ID = "xswu/HPSv2"
FILES = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}


def load(
    weights: str | None,
    towers: Towers,
    *,
    version: str | None = None,
    resampling: str = "antialias",
    architecture: str = "ViT-H-14",
) -> Scorer:
    """HPSv2 from the checkpoint ``weights``, a folder or hub repository that holds the published files, or the hub.

    ``version`` is "v2.0" or "v2.1": other weights, whose scores are not comparable; a file of another name than the
    published ones needs it said, and where nothing is said the published v2.1 is taken. ``resampling`` "antialias" is what
    the published code computes today, "legacy" what it did when its tables were made (torchvision before 0.17).
    ``architecture`` is a model of open_clip. ``score`` and ``raw`` are the cosine, as hpsv2.score() gives it; the
    benchmark's numbers are 100 times that. ``logit_scale`` is exp of the checkpoint's own: the scorer was trained by
    Bradley-Terry. Raises UserError for other values, and for weights that cannot be had or do not fit.
    """
    if version not in (None, *FILES):
        raise UserError(f"scorer hpsv2: version {version!r}", nearest(str(version), list(FILES)))
    if resampling not in ("antialias", "legacy"):
        raise UserError(f"scorer hpsv2: resampling {resampling!r}", nearest(str(resampling), ["antialias", "legacy"]))
    version, checkpoint = _checkpoint(weights, version)
    tower = load_open_clip(architecture, checkpoint, towers)
    view = LetterboxView(tower.view.size, "legacy" if resampling == "legacy" else "antialias")
    return clip_scorer("hpsv2", f"hps{version}", tower, view, lambda cosine: cosine, tower.logit_scale)


def _checkpoint(weights: str | None, version: str | None) -> tuple[str, Path]:
    """The version and the file. Raises UserError where nothing tells the version, and where name and ``version`` differ."""
    wanted = version or "v2.1"
    path = weights_file(weights, HUB_ID, FILES[wanted])
    named = next((known for known, file in FILES.items() if Path(file).stem == path.stem), None)
    if named and version and named != version:
        raise UserError(f"{path}: by its name the weights of {named}, requested as {version}", f"say version={named}")
    if path.is_file() and not (named or version):
        problem = (
            f"{path}: nothing in the file says which version of HPSv2 it is, and its name is none of the published"
        )
        raise UserError(problem, "append ,version=v2.0 or ,version=v2.1: their scores do not compare")
    return named or wanted, path
