"""``lora_scale``: how much of adapters is added, recorded wherever a result is, so that two scales never share a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import diffusion_feedback as dfb
from diffusion_feedback.cli.main import main
from diffusion_feedback.models import causal_lm

FAST: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 1}


def test_two_scales_share_no_folder_of_images(
    lora_run: Path, tiny_pipelines: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dfb.generate(lora_run, ["a cat"], output_dir=tmp_path / "half", lora_scale=0.5, **FAST)
    (line,) = (tmp_path / "half" / "metadata.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row["settings"]["lora_scale"] == 0.5
    with pytest.raises(dfb.UserError, match="holds images of model"):
        dfb.generate(lora_run, ["a cat"], output_dir=tmp_path / "half", **FAST)
    # The run, and its base with the weights as `lora`, are the same model.
    base = ["generate", str(tiny_pipelines["sd"]), "--lora", str(lora_run), "--lora_scale", "0.5"]
    (tmp_path / "prompts.txt").write_text("a cat\n")
    where = ["--prompts", str(tmp_path / "prompts.txt"), "--num_inference_steps", "2", "--guidance_scale", "1"]
    assert main([*base, *where, "--output_dir", str(tmp_path / "command")]) == 0
    (other,) = (tmp_path / "command" / "metadata.jsonl").read_text().splitlines()
    assert json.loads(other) == row
    capsys.readouterr()
    assert (
        main(["generate", str(tiny_pipelines["sd"]), "--lora_scale", "2", *where, "--output_dir", str(tmp_path / "x")])
        == 2
    )
    assert "--lora_scale: means nothing for" in capsys.readouterr().err


def test_scales_that_are_none(lora_run: Path) -> None:
    for scale in (float("nan"), 1e9):
        with pytest.raises(dfb.UserError, match="`lora_scale`: got"):
            dfb.generate(lora_run, ["a cat"], lora_scale=scale)


def test_an_adapter_of_texts_is_scaled(adapter: Path, tiny_lm: Path) -> None:
    ids = torch.arange(3, 11)[None]
    whole, half, none = (causal_lm.load(str(adapter), lora_scale=scale).library_model for scale in (1.0, 0.5, 0.0))
    base = causal_lm.load(str(tiny_lm)).library_model
    for name, value in base.state_dict().items():
        mean = (whole.state_dict()[name] + value) / 2
        torch.testing.assert_close(half.state_dict()[name], mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(none(ids).logits, base(ids).logits)
    assert not torch.allclose(whole(ids).logits, base(ids).logits, atol=1e-3)


def test_a_comparison_records_the_scale(adapter: Path, tiny_lm: Path, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(
        "def reward(prompts, completions):\n    return [len(each) for each in completions]\n"
    )
    judges = f"function={tmp_path / 'reward.py'}:reward"
    call: dict[str, Any] = {"judges": judges, "max_new_tokens": 2, "output_dir": tmp_path / "out"}
    dfb.judge(adapter, tiny_lm, ["one", "two"], lora_scale=0.5, **call)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["settings"]["lora_scale"] == 0.5
    with pytest.raises(dfb.UserError, match="lora_scale 0.5, not 1.0"):
        dfb.judge(adapter, tiny_lm, ["one", "two"], **call)
    with pytest.raises(dfb.UserError, match="neither A nor B is an adapter"):
        dfb.judge(tiny_lm, tiny_lm, ["one"], judges=judges, names=["a", "b"], lora_scale=0.5)
