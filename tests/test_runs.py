"""A reference to a run's weights means one folder, or is refused with what there is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from diffusion_feedback.errors import UserError
from diffusion_feedback.runs import best_step, checkpoint_steps, recorded_model, run_of, weights_of


def make_run(folder: Path, steps: Sequence[int] = (50, 100), *, best: int | None = None, is_done: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("model: {family: sd, tuning: lora}\n")
    for step in steps:
        (folder / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    for foreign in ("step-000070.bak", ".step-000080.tmp", "step-9"):
        (folder / "checkpoints" / foreign).mkdir(parents=True)
    if best is not None:
        (folder / "best.json").write_text(json.dumps({"step": best}))
    if is_done:
        (folder / "README.md").touch()
        (folder / "pytorch_lora_weights.safetensors").touch()
    return folder


@pytest.mark.parametrize("is_done", [True, False])
@pytest.mark.parametrize(("which", "step"), [("100", 100), ("50", 50), ("050", 50), ("last", 100), ("best", 50)])
def test_a_step_is_the_folder_of_its_checkpoint(tmp_path: Path, which: str, step: int, is_done: bool) -> None:
    run = make_run(tmp_path / "a@7", best=50, is_done=is_done)
    found = Path(weights_of(f"{run}@{which}"))
    assert found == run / "checkpoints" / f"step-{step:06d}"
    assert run_of(found) == run_of(found / "raw") == run_of(run) == run
    for folder in (run, found, found / "raw"):
        assert recorded_model(folder, "", "family") == {"family": "sd", "tuning": "lora"}


def test_other_things_are_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b@12").mkdir()
    file = run / "pytorch_lora_weights.safetensors"
    for same in (str(run), str(file), "owner/name", "b@12", "name@main", "<object of Python>", "no/such", "a@"):
        assert weights_of(same) == same
    assert weights_of("a@50") == "a/checkpoints/step-000050"
    assert recorded_model(tmp_path / "b@12", "") is None
    rounds = make_run(tmp_path / "rounds", is_done=False)
    (rounds / "identity.json").touch()
    assert weights_of(str(rounds)) == str(rounds)


def test_the_last_step_of_a_run_without_checkpoints_is_its_result(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", steps=())
    assert weights_of(f"{run}@last") == str(run)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("a@70", "a@70: a has no checkpoint of step 70\n  -> give one of: a itself, its result, a@50, a@100"),
        ("a@best", "a@best: a has no best checkpoint\n  -> give one of: a itself, its result, a@50, a@100"),
        ("b@7", "b@7: b has no checkpoint of step 7\n  -> give one of: b@50 (best), b@100"),
        ("b", "b: the run has not come to its end, so it has no result yet\n  -> give one of: b@50 (best), b@100"),
        ("c@last", "c@last: c has no last checkpoint\n  -> it has no checkpoints either: go on with `resume`"),
        ("d@last", "d@last: d is no folder of a run\n  -> check the path, or give RUN@STEP"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, said: str
) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", best=50, is_done=False)
    make_run(tmp_path / "c", steps=(), is_done=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        weights_of(reference)
    assert str(error.value).startswith(said)


def test_a_best_step_whose_checkpoint_is_gone_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", best=70)
    assert best_step(run) == 70
    assert list(checkpoint_steps(run)) == [50, 100]
    with pytest.raises(UserError, match="has no checkpoint of step 70"):
        weights_of(f"{run}@best")
    (run / "best.json").write_text('{"step": "x"}')
    with pytest.raises(UserError, match=r"best\.json: step is 'x', no number"):
        best_step(run)
