"""What a run leaves for people: its page, its closing line, samples with and without held-out pairs, and time."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from datetime import datetime
from html import escape
from pathlib import Path

import pytest
from recipes import MakeRecipe
from run_results import rows, train
from text_recipes import MakeTextRecipe

import diffusion_feedback as dfb
from diffusion_feedback import progress
from diffusion_feedback.cli.main import main
from diffusion_feedback.config.recipe import DataConfig, ModelConfig, Recipe, ValidationConfig
from diffusion_feedback.errors import UserError
from diffusion_feedback.evaluation.trained import TrainedRun, difference
from diffusion_feedback.reports.pages.training import claim_of, training_report
from diffusion_feedback.training.environment import commit_of, environment
from diffusion_feedback.training.progress_line import ProgressLine, describe_progress
from diffusion_feedback.training.run_folder import RunFolder
from diffusion_feedback.workflows.training.drawn import evenly_spread, read_samples, source_of_prompts
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
    assert drawn[4].source == "2 held-out prompts, spread over the set"
    before, after = (Path(files[0]).read_bytes() for files in (drawn[4].before, drawn[4].after))
    assert before != after
    assert read_samples(folder, up_to=3).keys() == {2}
    assert "2 held-out prompts, spread over the set, on fixed seeds" in page
    # Lists of data sets read as they do on the card.
    parts = [{"path": "a.parquet", "repeats": 3}, "b.parquet"]
    data = {**run.recipe["data"], "train": parts, "validation": [{"path": "c.parquet"}]}
    shown = training_report(replace(run, recipe={**run.recipe, "data": data}))
    assert shown.summary.endswith("on a.parquet (repeats 3), b.parquet.")
    assert "c.parquet" in [row[1][0].text for row in shown.tables[-1].rows if row[0].text == "data.validation"]


@pytest.mark.parametrize(
    ("prompts", "number", "has_heldout", "expected"),
    [
        (["a", "b"], 2, True, "2 prompts of the recipe"),
        (["a"], 1, False, "1 prompt of the recipe"),
        ([], 4, True, "4 held-out prompts, spread over the set"),
        ([], 1, True, "1 held-out prompt"),
        ([], 2, False, "2 training prompts, as none are held out, spread over the set"),
    ],
)
def test_the_source_of_samples_in_words(prompts: list[str], number: int, has_heldout: bool, expected: str) -> None:
    recipe = Recipe(ModelConfig("base"), DataConfig("pairs"), "run", validation=ValidationConfig(prompts=prompts))
    assert source_of_prompts(recipe, number, has_heldout=has_heldout) == expected
    # The first prompts of a set are not spread over it.
    first = source_of_prompts(recipe, number, has_heldout=has_heldout, are_spread=False)
    assert first == expected.removesuffix(", spread over the set")


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
    before = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    train(recipe, "--resume", "--training.max_train_steps", "5")
    assert "training.max_train_steps: 4 -&gt; 5" in (folder / "report.html").read_text()
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # The evaluation at the former end goes: a run of that length would have had none there.
    assert found[: len(before) - 1] == before[:-1]
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


def test_training_runs_are_compared_example_by_example(
    make_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {"max_train_steps": 2}
    a = train(make_recipe("a", training=training))
    b = train(make_recipe("b", training={**training, "learning_rate": 1e-2}, objective={"name": "dpo", "beta": 50}))
    other = train(make_recipe("c", training=training, data={"validation": None}, validation={"num_prompts": 0}))
    capsys.readouterr()
    page = tmp_path / "compared.html"
    assert main(["report", str(a), str(b), "--output", str(page)]) == 0
    assert "2 training runs, compared with a" in capsys.readouterr().out
    text = page.read_text()
    runs = read_run(a), read_run(b)
    lead = difference(*runs)
    assert lead is not None
    figures = [run.evaluations[2]["accuracy"] for run in runs]
    assert lead.value == pytest.approx(figures[1] - figures[0])
    for said in ("training.learning_rate", "objective.beta", "pair by pair", "a, step 2", "b, step 2", "before"):
        assert said in text
    assert "data.train" not in text
    assert "training.max_train_steps" not in text
    # The same base: what was before is shown once, beside both runs, for each of two prompts.
    assert text.count("<img") == 6
    content = dfb.report([a, other], tmp_path / "unlike.html", names=["with", "without"])
    assert content.claim is not None
    assert content.claim.value == ""
    assert dfb.report(a, tmp_path / "one.html").title.startswith("a: dpo")


def test_runs_of_two_kinds_are_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run = train(make_recipe(training={"max_train_steps": 1}, data={"validation": None}, validation={"num_prompts": 0}))
    (tmp_path / "bench").mkdir()
    with pytest.raises(UserError, match="is a training run, .*bench is none: one page shows runs of one kind"):
        dfb.report([run, tmp_path / "bench"], tmp_path / "page.html")
    with pytest.raises(UserError, match="`tie_margin`: means nothing for training runs"):
        dfb.report(run, tmp_path / "page.html", tie_margin=0.1)


def evaluated(name: str, values: list[float], examples: str = "same") -> TrainedRun:
    """A run whose held-out accuracy is the mean of ``values``."""
    rows = [{"step": 5, "loss": 0.5}, {"step": 5, "validation/accuracy": sum(values) / len(values)}]
    heldout = {5: {"step": 5, "examples": examples, "rewards/accuracies": values}}
    recipe = {"data": {"validation": "x"}, "validation": {"prompts": []}, "training": {}}
    return TrainedRun(Path(name), name, recipe, rows, heldout)


def test_a_difference_is_shown_where_its_interval_leaves_out_zero() -> None:
    weak, strong = evaluated("weak", [0.0] * 30 + [1.0] * 30), evaluated("strong", [0.0] * 10 + [1.0] * 50)
    lead = difference(weak, strong)
    assert lead is not None
    assert lead.value == pytest.approx(1 / 3)
    assert lead.low > 0
    # The same figure on other examples, or twice the same run, shows nothing.
    assert difference(weak, evaluated("strong", [0.0] * 10 + [1.0] * 50, "others")) is None
    same = difference(weak, weak)
    assert same is not None
    assert same.low == same.high == 0


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.55, 0.7, "lies above 50 %"), (0.3, 0.45, "lies below 50 %"), (0.45, 0.7, "Nothing is shown")],
)
def test_the_sentence_claims_no_more_than_its_interval(low: float, high: float, said: str) -> None:
    bounds = {"validation/accuracy": (low + high) / 2, "validation/accuracy_low": low, "validation/accuracy_high": high}
    run = replace(evaluated("run", [1.0]), rows=[{"step": 5, **bounds}])
    assert said in claim_of(run).sentence


def test_the_line_of_a_run_is_smooth_and_says_both_sides() -> None:
    line = ProgressLine(0, 100, 32, "pairs", is_hidden=True)
    losses = [1.0, 0.0] * 50
    for loss in losses:
        line.step({"loss": loss, "lr": 1e-5})
    expected = sum(0.9**age * loss for age, loss in enumerate(reversed(losses))) / sum(0.9**age for age in range(100))
    assert line.smoothed["loss"] == pytest.approx(expected)
    shown = describe_progress(
        {"error/chosen": 0.99, "error/chosen_change": -0.01, "rewards/accuracies": 0.5, "lr": 1e-5}
    )
    assert shown == ["accuracy 0.50", "chosen -1.0 %", "lr 1e-05"]
    assert "rejected +0.25 nats" in describe_progress({"logps/rejected_change": 0.25})


def test_where_output_is_no_terminal_a_line_comes_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dfb.set_verbosity("INFO")
    for _ in progress.progress(range(3), desc="quick"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_QUIET", 0.05)
    for _ in progress.progress(range(6), desc="slow"):
        time.sleep(0.03)
    lines = capsys.readouterr().err.splitlines()
    dfb.set_verbosity("WARNING")
    assert 1 <= len(lines) <= 4
    assert all(line.startswith("slow: ") and "\r" not in line for line in lines)
