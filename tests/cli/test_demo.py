"""The demo on the embedded assets, shortened: every stage runs, everything lands in its folder, and it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from diffusion_feedback.cli.main import main

ROOT = Path(__file__).resolve().parent.parent.parent
FIGURES = (
    "win_rate", "win_rate_low", "win_rate_high", "ties", "num_prompts", "attribute_accuracy_before",
    "attribute_accuracy_after", "cleanliness_before", "cleanliness_after", "ai_win_rate", "sft_win_rate",
    "seconds",
)  # fmt: skip


@pytest.fixture
def short_configs(tmp_path: Path) -> Path:
    """The demo's own recipes with two steps on few pairs."""
    folder = tmp_path / "configs"
    folder.mkdir()
    for method in ("dpo", "ai_dpo", "sft"):
        recipe = yaml.safe_load((ROOT / "configs" / f"shapes_{method}_lora.yaml").read_text())
        recipe["data"] |= {"max_train_pairs": 16, "max_validation_pairs": 8}
        recipe["training"] |= {"max_train_steps": 2, "train_batch_size": 8}
        recipe["validation"] |= {"num_prompts": 2, "num_inference_steps": 3, "seed": 3}
        (folder / f"shapes_{method}_lora.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.mark.slow
def test_the_story_is_told(
    short_configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "demo"
    command = ["demo", "--output_dir", str(folder), "--configs", str(short_configs), "--num_prompts", "9"]
    assert main(command) == 0
    assert "ai_win_rate" not in json.loads((folder / "results.json").read_text())
    command.append("--ai_feedback")
    assert main(command) == 0, "another model may join"
    results = json.loads((folder / "results.json").read_text())
    assert set(FIGURES) <= set(results)
    assert results["num_prompts"] == 9
    assert results["win_rate_low"] <= results["win_rate"] <= results["win_rate_high"]
    assert results["wins"] + results["ties"] + results["losses"] == 9
    page = (folder / "report.html").read_text()
    assert "Diffusion-DPO" in page
    assert page.count('<span class="seed">seed 3</span>') == 9
    assert "http://" not in page.replace("http://www.w3.org", "")
    with Image.open(folder / "before_after.png") as picture:
        assert picture.width > 400
    for method in ("dpo", "ai", "sft"):
        assert (folder / method / "pytorch_lora_weights.safetensors").is_file()
    labels = pq.read_table(folder / "ai_pairs.parquet", columns=["label_0", "human_label_0"]).to_pydict()
    agreed = [new == old for new, old in zip(labels["label_0"], labels["human_label_0"], strict=True)]
    assert 0.6 < sum(agreed) / len(agreed) < 0.9, "the scorer agrees with most of the annotator's labels, not with all"
    capsys.readouterr()
    stages = (folder / "stages.json").read_text()
    (folder / "results.json").unlink()
    assert main(command) == 0
    assert json.loads((folder / "results.json").read_text()) == results, "a second call repeats nothing"
    assert (folder / "stages.json").read_text() == stages
    assert main([*command, "--num_prompts", "10"]) == 0, "prompts may be added"
    assert main([*command, "--seed", "1"]) == 2, "another seed is another run"
    assert "--overwrite" in capsys.readouterr().err
    assert main([*command, "--seed", "1", "--overwrite"]) == 0
    assert json.loads((folder / "results.json").read_text())["num_prompts"] == 9


def test_without_assets_it_says_where_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 2
    assert "run from the root of a clone" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--num_prompts", "0"], "--num_prompts: got 0"), (["--seed", "-1"], "--seed: got -1")],
)
def test_values_out_of_range_are_refused(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *flags]) == 2
    assert said in capsys.readouterr().err
