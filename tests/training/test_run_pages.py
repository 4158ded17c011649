"""What a run leaves for people: its page, its closing line, samples with and without held-out pairs, and time."""

from __future__ import annotations

import json
import re
from datetime import datetime
from html import escape
from pathlib import Path

import pytest
from recipes import MakeRecipe
from run_results import rows, train
from text_recipes import MakeTextRecipe

from diffusion_feedback.cli.main import main
from diffusion_feedback.training.environment import commit_of, environment
from diffusion_feedback.training.run_folder import RunFolder
from diffusion_feedback.workflows.training.drawn import evenly_spread, read_samples
from diffusion_feedback.workflows.training.record import read_run

EVALUATED = {"validation": {"num_prompts": 2, "num_inference_steps": 2, "steps": 2}}


def test_a_run_on_images_ends_with_its_page(make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(make_recipe(training={"max_train_steps": 4}, **EVALUATED))
    run, page, said = read_run(folder), (folder / "report.html").read_text(), capsys.readouterr().out
    estimate = run.estimate(4)
    assert estimate is not None
    assert estimate.num == 10
    # The figures of the console are those of the last evaluation, worked out here once more.
    last = rows(folder, "validation/accuracy")[-1]
    assert f"held-out accuracy {last['validation/accuracy']:.3g} ({last['validation/accuracy_low']:.3g} to " in said
    start = last["validation/error/chosen"] - last["validation/error/chosen_change"]
    assert f"chosen error {100 * last['validation/error/chosen_change'] / start:+.1f} %, rejected " in said
    assert said.rstrip().endswith(f"report: {folder / 'report.html'}")
    assert f"{100 * last['validation/accuracy']:.1f}" in page
    assert page.index('class="verdict"') < page.index("Evaluations") < page.index("Samples") < page.index("<svg")
    assert "load_lora_weights" in page
    assert "no defaults" in page
    of_each = RunFolder(folder).read_heldout()[4]
    assert sum(of_each["rewards/accuracies"]) / 10 == pytest.approx(last["validation/accuracy"])
    assert sum(of_each["error/chosen_change"]) / 10 == pytest.approx(last["validation/error/chosen_change"], rel=1e-4)
    # Before and after stand on the same noise, and what was before is drawn once.
    drawn = read_samples(folder, up_to=4)
    assert list(drawn) == [2, 4]
    assert [path.name for path in drawn[4].before] == ["000.png", "001.png"]  # type: ignore[union-attr]
    assert drawn[2].before == drawn[4].before
    assert drawn[4].source == "held-out prompts"
    before, after = (Path(files[0]).read_bytes() for files in (drawn[4].before, drawn[4].after))
    assert before != after
    assert read_samples(folder, up_to=3).keys() == {2}


def test_without_held_out_pairs_nothing_is_shown_but_samples_of_training_prompts(
    make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(make_recipe(data={"validation": None}, training={"max_train_steps": 2}))
    said, page = capsys.readouterr().out, (folder / "report.html").read_text()
    assert "samples          of 2 training prompts, as none are held out" in said
    assert "no held-out examples: nothing is shown; report:" in said
    assert "Nothing is shown: no examples were held out" in page
    assert "2 training prompts, as none are held out, spread over the set" in page
    assert len(read_samples(folder, up_to=2)[2].after) == 2


def test_a_run_on_texts_ends_with_its_page(
    make_text_recipe: MakeTextRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(make_text_recipe(validation={"num_prompts": 2}))
    run, said, page = read_run(folder), capsys.readouterr().out, (folder / "report.html").read_text()
    assert re.search(
        r"done: .*, step 4: held-out accuracy .* to .*\), chosen [+-].* nats, rejected [+-].* nats; rep", said
    )
    assert [change.side for change in run.changes(4)] == ["chosen", "rejected"]
    assert all(change.bounds is not None and change.bounds.num == 10 for change in run.changes(4))
    assert [len(drawn.after) for drawn in run.samples.values()] == [2]
    assert all(escape(text) in page for text in run.samples[4].prompts)
    folder = train(make_text_recipe("sft", objective={"name": "sft"}, validation={"num_prompts": 0}))
    run = read_run(folder)
    assert run.measure is not None
    assert run.measure.key == "perplexity"
    (chosen,) = run.changes(4)
    gain = rows(folder, "validation/logps/chosen_change")[-1]["validation/logps/chosen_change"]
    assert chosen.bounds is not None
    assert chosen.bounds.value == pytest.approx(gain, rel=1e-4)
    assert "The perplexity went from" in (folder / "report.html").read_text()


def test_warnings_are_kept_on_the_page(make_recipe: MakeRecipe, pair_files: dict[str, Path], tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pair_files["train"])
    values = table["label_0"].to_pylist()
    values[3] = None
    place = table.column_names.index("label_0")
    pq.write_table(table.set_column(place, "label_0", pa.array(values)), tmp_path / "bad.parquet")
    data = {"train": str(tmp_path / "bad.parquet"), "on_bad_row": "skip"}
    folder = train(make_recipe(data=data, training={"max_train_steps": 1}))
    assert "1 bad rows skipped" in (folder / "report.html").read_text()
    assert any("1 bad rows skipped" in line for line in read_run(folder).warnings)


def test_time_goes_on_where_a_run_goes_on(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(training={"max_train_steps": 4})
    folder = train(recipe)
    (folder / "README.md").unlink()
    before = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    train(recipe, "--resume")
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert found[: len(before)] == before
    assert [row["seconds"] for row in found] == sorted(row["seconds"] for row in found)
    assert all(datetime.fromisoformat(row["time"]).utcoffset() is not None for row in found)


def test_an_interrupted_run_has_a_page_of_its_part(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    written = RunFolder.log

    def signalled(self: RunFolder, row: dict[str, object]) -> None:
        written(self, row)
        if row["step"] == 2 and "loss" in row:
            signal.raise_signal(signal.SIGTERM)

    recipe = make_recipe(training={"max_train_steps": 6})
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", signalled)
        assert main(["train", "--config", str(recipe)]) == 143
    folder = recipe.with_suffix("")
    assert not (folder / "README.md").exists()
    assert "of 6" in (folder / "report.html").read_text()
    assert "Stopped after step" in (folder / "report.html").read_text()
    train(recipe, "--resume")
    assert "Stopped after step" not in (folder / "report.html").read_text()


def test_prompts_are_spread_over_the_set() -> None:
    assert evenly_spread(range(100), 4) == [0, 25, 50, 75]
    assert evenly_spread(range(3), 8) == [0, 1, 2]
    assert evenly_spread([], 8) == []
    assert evenly_spread("abcdef", 0) == []


def test_the_environment_says_what_a_reader_needs(tmp_path: Path) -> None:
    facts = environment()
    assert str(facts["device"]).startswith(("CPU: ", "NVIDIA", "AMD", "Apple"))
    assert "python" in facts
    assert facts["command"]
    assert commit_of(tmp_path) == ""
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}(, with changes)?", commit_of(root))
