"""The speed measurement on a tiny model: every way of scoring does the same work, and decodes are counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import scorers

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def arguments(folder: Path) -> list[str]:
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    given = {"architecture": f"local-dir:{folder}", "num_images": 5, "size": 48, "work": folder / "work"}
    given |= {"repeats": 2, "out": folder / "found.json", "workers": 2}
    return [*(part for key, value in given.items() for part in (f"--{key}", str(value))), "--batch_sizes", "2", "16"]


def test_all_ways_do_the_same_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorers.main(arguments(tmp_path))
    found = json.loads((tmp_path / "found.json").read_text())
    expected = {"bare": 0, "runner": 5, "loop": 5, "reload": 5, "together": 5, "separate": 15}
    assert found["decodes"] == expected
    assert {way: len(seconds) for way, seconds in found["seconds"].items()} == {
        way: 1 if way in ("together", "separate") else 2 for way in expected
    }
    assert found["batch_size"] in (2, 5)
    assert max(found["largest_differences"].values()) < 1e-5
    said = capsys.readouterr().out
    for ratio in ("runner / bare", "loop / runner", "reload / runner", "separate / together"):
        assert f"| {ratio} | {found['ratios'][ratio]:.3f} |" in said
    # Files are there by now; ways that disagree are not reported.
    monkeypatch.setitem(scorers.TOLERANCE, "float32", -1.0)
    with pytest.raises(SystemExit, match="the ways disagree"):
        scorers.main(arguments(tmp_path))


def test_the_ratio_is_of_times_side_by_side() -> None:
    bench = scorers.Bench([], "cpu", 1, seconds={"a": [2.0, 30.0, 8.0], "b": [1.0, 10.0, 2.0]})
    assert bench.ratio("a", "b") == 3.0
