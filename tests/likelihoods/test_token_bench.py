"""The speed measurement on a tiny model: both sides do the same work, trl's losses are ours, and what differs is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import text, text_ways

# trl calls transformers by names that are going to change.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TINY = {"layers": 1, "width": 32, "vocabulary": 60, "prompt": 8, "completion": 5, "pairs": 2, "steps": 2, "repeats": 1}


@pytest.mark.slow
def test_all_ways_do_the_same_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "WAYS", ("ours long shared",))
    monkeypatch.setattr(text, "SMALLER", ())
    arguments = [part for name, value in TINY.items() for part in (f"--{name}", str(value))]
    output = tmp_path / "found.json"
    text.main([*arguments, "--threads", "1", "--output", str(output)])
    found = json.loads(output.read_text())
    # trl's own losses of the same pairs, over four updates, with the reference computed along and before.
    assert found["speed"]["step"]["loss_gap"] < 1e-6
    assert found["speed"]["cached"]["loss_gap"] < 1e-6
    assert found["speed"]["shared prompts"]["loss_gap"] < 1e-6
    assert found["speed"]["step"]["last_loss"] != pytest.approx(0.693147, abs=1e-5)
    assert len(found["speed"]["cached"]["wall"]["ratios"]) == 2
    assert found["memory"]["ours long shared"]["peak"] > found["memory"]["ours long shared"]["before"] > 0
    said = capsys.readouterr().out
    assert output.with_suffix(".md").read_text() == said
    assert f"| step | {found['speed']['step']['pairs_per_second']['ours']:.2f} |" in said


def ours(**more: int) -> text_ways.Ours:
    return text_ways.Ours(text_ways.Setting(1, 32, 60, 8, 5, 2, **{"steps": 2, **more}, device="cpu"))


def test_ways_that_disagree_are_not_reported() -> None:
    one, other = ours(), ours()
    for way in (one, other):
        way.take(0)
    other.losses[0] += 1e-3
    with pytest.raises(SystemExit, match="step: the losses differ by 0.001"):
        text.timing("step", one, other)


def test_ways_that_tokenise_otherwise_are_not_compared() -> None:
    class Cut:
        def tokens(self) -> list[tuple[list[int], list[int], list[int]]]:
            return [([1], [2], [3])] * 4

    with pytest.raises(SystemExit, match="pair 0: the two ways tokenise it differently"):
        text_ways.check_tokens(ours(), Cut())  # type: ignore[arg-type]


def test_products_are_counted_as_on_paper() -> None:
    run = ours()
    batch = run.batch(0)
    sequences = [*batch.chosen, *batch.rejected]
    tokens, scored = 4 * max(map(len, sequences)), sum(sequence.num_scored for sequence in sequences)
    # Forward of policy and reference, and twice that of the policy's backward; 12 width^2 weights a layer.
    expected = 4 * 2 * (tokens * 12 * 32**2 + scored * 32 * 60)
    assert text_ways.products(run.setting, [batch], cached=False, everywhere=False) == expected
