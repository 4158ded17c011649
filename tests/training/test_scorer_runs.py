"""Runs that train a scorer, through the command line on a tiny real CLIPModel: geometry, resuming, labels, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forks
import killing
import pairs_data
import pyarrow.parquet as pq
import pytest
import tiny_ranker
import torch
import yaml
from run_results import assert_close, rows, train
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from diffusion_feedback.catalog import names, objective_row, objectives_for
from diffusion_feedback.catalog.families import FAMILIES
from diffusion_feedback.cli.main import main
from diffusion_feedback.data.images import decode_image
from diffusion_feedback.data.pickapic import write_pickapic
from diffusion_feedback.records import PairRecord
from diffusion_feedback.training.judging import JudgingStep
from diffusion_feedback.training.steps import StepParts
from diffusion_feedback.types.images import PreferenceBatch

MakeRecipe = Callable[..., Path]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ranker.save_clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture
def make_scorer(tmp_path: Path, clip: Path, pair_files: dict[str, Path]) -> MakeRecipe:
    """Write a scorer's recipe with changes such as ``training={"seed": 1}``, and return its path."""

    def make(name: str = "run", **changes: dict[str, Any]) -> Path:
        recipe: dict[str, Any] = {
            "model": {"pretrained_model_name_or_path": str(clip), "family": "clip", "tuning": "full"},
            "data": {
                "train": str(pair_files["train"]),
                "validation": str(pair_files["validation"]),
                "cache_dir": str(tmp_path / "cache"),
            },
            "output_dir": str(tmp_path / name),
            "objective": {"name": "pickscore"},
            "training": {"max_train_steps": 6, "train_batch_size": 4, "learning_rate": 1e-3, "checkpointing_steps": 2},
        }
        for section, values in changes.items():
            recipe[section] = {**recipe.get(section, {}), **values} if section != "objective" else values
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return path

    return make


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def by_transformers(folder: Path, pairs: Path) -> dict[str, float]:
    """Accuracy and negative log-likelihood on ``pairs`` by plain transformers, one pair at a time."""
    model = CLIPModel.from_pretrained(folder).eval()
    processor, tokenizer = CLIPImageProcessorPil.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    right, losses = [], []
    for row in pq.read_table(pairs).to_pylist():
        images = [decode_image(row[f"jpg_{side}"], "test") for side in (0, 1)]
        text = tokenizer([row["caption"]], return_tensors="pt")
        with torch.no_grad():
            logits = model(input_ids=text.input_ids, **processor(images, return_tensors="pt")).logits_per_text[0]
        chosen = 0 if row["label_0"] == 1 else 1
        right.append(float(logits[chosen] > logits[1 - chosen]))
        losses.append(-float(logits.log_softmax(0)[chosen]))
    return {"accuracy": sum(right) / len(right), "loss": sum(losses) / len(losses)}


def test_a_run_explains_itself(make_scorer: MakeRecipe, pair_files: dict[str, Path]) -> None:
    folder = train(make_scorer(validation={"steps": 3}, training={"learning_rate": 1e-5}))
    files = ["recipe.yaml", "environment.json", "metrics.jsonl", "README.md", "model.safetensors", "config.json"]
    for name in [*files, "tokenizer.json", "preprocessor_config.json"]:
        assert (folder / name).is_file(), name
    assert [row["step"] for row in rows(folder)] == [1, 2, 3, 4, 5, 6]
    assert rows(folder, "gate/loss")[0]["gate/loss"] == rows(folder)[0]["loss"]
    looks = rows(folder, "validation/accuracy")
    assert [row["step"] for row in looks] == [3, 6]
    expected = by_transformers(folder, pair_files["validation"])
    assert looks[-1]["validation/accuracy"] == expected["accuracy"]
    assert looks[-1]["validation/accuracy_low"] < expected["accuracy"] < looks[-1]["validation/accuracy_high"]
    assert looks[-1]["validation/loss"] == pytest.approx(expected["loss"], abs=1e-5)
    card = (folder / "README.md").read_text()
    assert "`pickscore`" in card
    assert f"{looks[-1]['validation/accuracy']:.3f}" in card
    assert main(["train", "--config", str(folder / "recipe.yaml"), "--overwrite"]) == 0


def test_the_result_is_a_scorer(make_scorer: MakeRecipe, pair_files: dict[str, Path]) -> None:
    """Its scores are those of the scorer ``pickscore`` on the run's folder, up to rounding."""
    if "pickscore" not in names("scorer"):
        pytest.skip("this checkout has no scorer of that name")
    from diffusion_feedback.scorers.loading import load_scorers

    folder = train(make_scorer(training={"learning_rate": 1e-5}))
    (scorer,) = load_scorers([f"pickscore={folder}"])
    pairs = pq.read_table(pair_files["validation"]).to_pylist()
    right = []
    for row in pairs:
        images = [decode_image(row[f"jpg_{side}"], "test") for side in (0, 1)]
        first, second = scorer.score(images, [row["caption"]] * 2).tolist()
        right.append((first > second) == (row["label_0"] == 1))
    assert sum(right) / len(right) == rows(folder, "validation/accuracy")[-1]["validation/accuracy"]
    assert scorer.logit_scale == pytest.approx(float(weights(folder)["logit_scale"].exp()), rel=1e-6)


def test_it_learns_the_preference(make_scorer: MakeRecipe) -> None:
    """Bright images are chosen everywhere, in the training pairs and in the held-out ones."""
    recipe = make_scorer(training={"max_train_steps": 60, "checkpointing_steps": 60, "train_batch_size": 8})
    folder = train(recipe, "--validation.steps", "30")
    look = rows(folder, "validation/accuracy")[-1]
    assert look["validation/accuracy"] == 1
    assert look["validation/loss"] < 0.3 < rows(folder)[0]["loss"]
    assert rows(folder)[-1]["rewards/margins"] > 0


def test_accumulation_equals_one_large_batch(make_scorer: MakeRecipe) -> None:
    """1 x 8 equals 8 x 1; plain gradient descent in effect, as AdamW's first steps only see signs."""
    common = {"max_train_steps": 3, "learning_rate": 1e-2}
    optimizer = {"name": "adamw", "epsilon": 1.0}
    wide = {**common, "train_batch_size": 8}
    long = {**common, "train_batch_size": 2, "gradient_accumulation_steps": 4}
    first = train(make_scorer("wide", training=wide, optimizer=optimizer))
    second = train(make_scorer("long", training=long, optimizer=optimizer))
    assert_close(weights(first), weights(second), 1e-6)
    for one, other in zip(rows(first), rows(second), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_in_batch_negatives_are_coupled_to_the_batch(make_scorer: MakeRecipe) -> None:
    """The same accumulation does change what is learnt; that is why such objectives are marked."""
    objective, common = {"name": "pickscore_in_batch"}, {"max_train_steps": 1}
    wide = train(make_scorer("wide", objective=objective, training={**common, "train_batch_size": 8}))
    narrow = {**common, "train_batch_size": 2, "gradient_accumulation_steps": 4}
    long = train(make_scorer("long", objective=objective, training=narrow))
    assert abs(rows(wide)[0]["loss"] - rows(long)[0]["loss"]) > 0.1
    assert rows(wide)[0]["rewards/margins"] == pytest.approx(rows(long)[0]["rewards/margins"], abs=1e-5)


@pytest.mark.slow
def test_two_processes_equal_one(make_scorer: MakeRecipe) -> None:
    common = {"max_train_steps": 2, "learning_rate": 1e-2}
    optimizer = {"name": "adamw", "epsilon": 1.0}
    alone = train(make_scorer("alone", training={**common, "train_batch_size": 8}, optimizer=optimizer))
    recipe = make_scorer("both", training={**common, "train_batch_size": 4}, optimizer=optimizer)
    forks.run_together(["train", "--config", str(recipe)], recipe.parent)
    assert_close(weights(alone), weights(recipe.with_suffix("")), 1e-6)
    for one, other in zip(rows(alone), rows(recipe.with_suffix("")), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(make_scorer: MakeRecipe) -> None:
    """SIGKILL at random moments, wherever the run is; then the weights are the same to the last bit."""
    training = {"max_train_steps": 12, "ema_decay": 0.9, "lr_warmup_steps": 3, "lr_scheduler": "cosine"}
    whole = train(make_scorer("whole", training=training))
    recipe = make_scorer("broken", training=training)
    folder = recipe.with_suffix("")
    command, metrics = ["train", "--config", str(recipe), "--resume"], folder / "metrics.jsonl"
    assert killing.kill_after_writing(command, metrics, kills=2, span=0.1, seed="scorer") >= 1
    train(recipe, "--resume")
    for name, value in weights(whole).items():
        assert torch.equal(weights(folder)[name], value), name
    assert rows(folder) == rows(whole)
    assert rows(folder, "validation/accuracy") == rows(whole, "validation/accuracy")


def test_the_cache_changes_nothing(make_scorer: MakeRecipe) -> None:
    cached = train(make_scorer("cached"))
    direct = train(make_scorer("direct", data={"cache": False}))
    assert all(torch.equal(value, weights(direct)[name]) for name, value in weights(cached).items())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("bf16", {"training": {"mixed_precision": "bf16"}}),
        ("checkpointing", {"model": {"gradient_checkpointing": True}}),
        ("in_batch", {"objective": {"name": "pickscore_in_batch"}}),
        ("alone", {"data": {"validation": None}}),
    ],
)
def test_variants_train(make_scorer: MakeRecipe, clip: Path, name: str, changes: dict[str, Any]) -> None:
    recipe = make_scorer(name, **changes)
    folder = train(recipe, "--training.max_train_steps", "2")
    assert all(math.isfinite(row["loss"]) for row in rows(folder))
    before, after = load_file(clip / "model.safetensors"), weights(folder)
    assert after["logit_scale"].dtype == torch.float32
    assert all(not torch.equal(before[f"{tower}_projection.weight"], after[f"{tower}_projection.weight"])
               for tower in ("text", "visual"))  # fmt: skip


def test_gradient_checkpointing_changes_nothing(make_scorer: MakeRecipe) -> None:
    plain, thrifty = make_scorer("plain"), make_scorer("thrifty", model={"gradient_checkpointing": True})
    assert_close(weights(train(plain)), weights(train(thrifty)), 1e-6)


def test_ties_are_learnt_from_and_dropped_when_held_out(make_scorer: MakeRecipe, tmp_path: Path) -> None:
    """Ties alone, as soft labels: what is learnt is indifference, and the loss goes towards its optimum of zero."""
    ties = [PairRecord(f"p{i}", pairs_data.jpeg(180, 2 * i), pairs_data.jpeg(70, 2 * i + 1), 0.5) for i in range(8)]
    decided = PairRecord("p", pairs_data.jpeg(180, 90), pairs_data.jpeg(70, 91), 1.0)
    write_pickapic(ties, tmp_path / "ties.parquet")
    write_pickapic([decided, PairRecord("q", pairs_data.jpeg(99, 92), decided.image_1, 0.5)], tmp_path / "held.parquet")
    data = {"train": str(tmp_path / "ties.parquet"), "validation": str(tmp_path / "held.parquet")}
    training = {"max_train_steps": 40, "train_batch_size": 8, "checkpointing_steps": 40}
    folder = train(make_scorer(data={**data, "ties": "soft", "soft_labels": True}, training=training))
    losses = [row["loss"] for row in rows(folder)]
    assert losses[-1] < 0.1 * losses[0]
    assert rows(folder, "validation/accuracy")[-1]["validation/accuracy"] in (0, 1), "one held-out pair"


@dataclass(frozen=True)
class FixedLogits:
    """A judge that knows its logits."""

    values: Tensor

    def prepare(self, batch: PreferenceBatch) -> Tensor:
        return self.values

    def scores(self, network: nn.Module, inputs: Tensor) -> Tensor:
        return inputs


def test_a_step_sums_weighted_losses() -> None:
    """Two pairs with d = 0.5 and 0, weights 1/4 and 1, labels 1 and 1/2."""
    batch = PreferenceBatch(["a", "b"], ["a", "b"], [], [], torch.tensor([1.0, 0.5]), torch.tensor([0.25, 1.0]))
    logits = torch.tensor([[1.5, 9.0, 1.0, 9.0], [9.0, 2.0, 9.0, 2.0]])
    hard = JudgingStep(StepParts(FixedLogits(logits), None, objective_row("pickscore"), {}))
    certain, even = 0.4740769841801067, 0.6931471805599453
    assert hard(nn.Identity(), batch).loss.item() == pytest.approx(0.25 * certain + even, abs=1e-6)
    soft = JudgingStep(StepParts(FixedLogits(logits), None, objective_row("pickscore"), {}, soft_labels=True))
    assert soft(nn.Identity(), batch).loss.item() == pytest.approx(0.25 * certain, abs=1e-6)
    unweighted = JudgingStep(StepParts(FixedLogits(logits), None, objective_row("pickscore"), {}, weighted=False))
    output = unweighted(nn.Identity(), batch)
    assert output.loss.item() == pytest.approx(certain + even, abs=1e-6)
    assert output.metrics["rewards/margins"].tolist() == [0.5, 0]
    assert output.metrics["rewards/accuracies"].tolist() == [1, 0.5]


def test_weights_that_are_not_finite_stop_the_run(
    make_scorer: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A logit scale of e^400 is finite, the loss is not."""
    model = CLIPModel.from_pretrained(tiny_ranker.save_clip(tmp_path / "wild"))
    with torch.no_grad():
        model.logit_scale.fill_(400.0)
    model.save_pretrained(tmp_path / "wild")
    assert (
        main(["train", "--config", str(make_scorer(model={"pretrained_model_name_or_path": str(tmp_path / "wild")}))])
        == 2
    )
    assert "step 0: the loss is" in capsys.readouterr().err


def test_dry_run_says_what_would_be_done(make_scorer: MakeRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_scorer(objective={"name": "pickscore_in_batch"})
    assert main(["train", "--config", str(recipe), "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "24 for training, 10 held out" in printed
    assert "the other 3 pairs of a pass" in printed
    assert "(measured)" in printed
    assert "reference" not in printed
    assert not recipe.with_suffix("").exists()
    assert main(["train", "--config", str(recipe), "--print_config"]) == 0
    assert "family: clip" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--objective", '{"name": "dpo", "beta": 1}'], ["'dpo' cannot tune", "'clip'", "pickscore, pickscore_in_batch"]),
        (["--objective", '{"name": "sft"}'], ["'sft' cannot tune"]),
        (["--model.family", "sd"], ["'pickscore' cannot tune", "'sd'", "dpo"]),
        (["--model.tuning", "lora"], ["model.tuning", "set model.tuning: full"]),
        (["--model.lora_rank", "4"], ["model.lora_rank", "means nothing for a scorer"]),
        (["--data.caption_dropout", "0.1"], ["data.caption_dropout", "means nothing"]),
        (["--data.resolution", "64"], ["data.resolution", "means nothing"]),
        (["--training.timestep_range", "[0, 0.5]"], ["training.timestep_range", "means nothing"]),
        (["--validation.prompts", "[a cat]"], ["validation.prompts", "means nothing"]),
        (["--model.dtype", "bfloat16", "--training.mixed_precision", "bf16"], ["model.dtype"]),
        (["--data.ties", "soft"], ["data.ties", "data.soft_labels: true"]),
        (["--objective.name", "pickscore_in_batch", "--training.train_batch_size", "1"], ["train_batch_size", "2 or"]),
        (["--objective.beta", "1"], ["does not take 'beta'"]),
    ],
)  # fmt: skip
def test_bad_settings(
    make_scorer: MakeRecipe, capsys: pytest.CaptureFixture[str], flags: list[str], named: list[str]
) -> None:
    recipe = make_scorer()
    assert main(["train", "--config", str(recipe), *flags]) == 2
    message = capsys.readouterr().err
    for word in named:
        assert word in message
    assert not recipe.with_suffix("").exists()


def test_each_family_wants_its_own_folder(
    make_scorer: MakeRecipe,
    make_recipe: MakeRecipe,
    clip: Path,
    tiny_pipelines: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = make_scorer(model={"pretrained_model_name_or_path": str(tiny_pipelines["sd"])})
    assert main(["train", "--config", str(wrong)]) == 2
    assert "is a diffusers pipeline" in capsys.readouterr().err
    wrong = make_recipe("other", model={"pretrained_model_name_or_path": str(clip)})
    assert main(["train", "--config", str(wrong)]) == 2
    assert "not a diffusers pipeline" in capsys.readouterr().err


def test_the_catalog_is_complete() -> None:
    """Every objective can tune some family."""
    assert {name for family in FAMILIES for name in objectives_for(family)} == set(names("objective"))
