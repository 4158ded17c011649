"""A cache of scores under damage: the same scores come out, computed again where a shard is not what it was."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tiny_clip import save_clip

from diffusion_feedback.cli.main import main
from diffusion_feedback.data.scores import read_scores


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cache")
    save_clip(root / "clip")
    (root / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 40), (80 * number, 20, 60)).save(root / "images" / f"{number}.png")
    return root


def flipped(share: float) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(share * (len(data) - 1))] ^= 4
        path.write_bytes(data)

    return apply


HARMS: dict[str, Callable[[Path], None]] = {
    **{f"a bit at {share:.0%}": flipped(share) for share in (0.0, 0.3, 0.6, 0.9, 0.99, 1.0)},
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-9]) and None,
    "empty": lambda path: path.write_bytes(b"") and None,
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 3) and None,
    "gone": lambda path: path.unlink(),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_damage_changes_no_score(world: Path, tmp_path: Path, harm: Callable[[Path], None]) -> None:
    flags = ["--scorer", f"pickscore={world / 'clip'}", "--cache_dir", str(tmp_path / "cache"), "--overwrite"]
    argv = ["score", str(world / "images"), "--prompt", "a cat", *flags, "--output", str(tmp_path / "s.parquet")]
    assert main(argv) == 0
    before = read_scores(tmp_path / "s.parquet")
    [shard] = (tmp_path / "cache").rglob("*.safetensors")
    harm(shard)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that says what was set aside
        assert main(argv) == 0
    assert read_scores(tmp_path / "s.parquet") == before


def test_scores_of_another_resampler_are_not_taken(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a folder of its own in the cache, and its own recipe."""
    from diffusion_feedback.scorers import views

    flags = ["--scorer", f"pickscore={world / 'clip'}", "--cache_dir", str(tmp_path / "cache")]
    argv = ["score", str(world / "images"), "--prompt", "a cat", *flags, "--output"]
    assert main([*argv, str(tmp_path / "a.parquet")]) == 0
    monkeypatch.setattr(views, "_resampler", lambda: "pil-01234567")
    assert main([*argv, str(tmp_path / "b.parquet")]) == 0
    recipes = {row.recipe_id for name in "ab" for row in read_scores(tmp_path / f"{name}.parquet")}
    assert [recipe.split("/")[1] for recipe in sorted(recipes)] == ["pil-01234567-crop-32", "pil12-crop-32"]
    assert len(list((tmp_path / "cache").rglob("namespace.json"))) == 2
