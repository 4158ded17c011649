"""``dfb export`` and ``dfb.export``: what stands in the folder afterwards, and what is refused with nothing left behind."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

import diffusion_feedback as dfb
from diffusion_feedback.catalog.formats import EXPORT_FORMATS
from diffusion_feedback.cli.main import main
from diffusion_feedback.models.exports import adapters
from diffusion_feedback.models.latent_diffusion import LatentDiffusion
from diffusion_feedback.models.single_files import load_single_file


def test_the_command_prints_the_error_and_writes_a_card(
    lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "mine"
    mask = os.umask(0o022)
    try:
        assert main(["export", str(lora_run), "--format", "kohya", "--dtype", "float16", "--output", str(place)]) == 0
    finally:
        os.umask(mask)
    printed = capsys.readouterr().out
    facts = json.loads((place / "export.json").read_text())
    assert {path.name for path in place.iterdir()} == {"mine.safetensors", "README.md", "export.json"}
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o644}
    assert 0 < facts["relative_error"] < 1e-2
    assert facts["relative_error_float32"] <= 1e-5
    assert f"{facts['relative_error']:.1e}" in printed
    card = (place / "README.md").read_text()
    assert f"{facts['relative_error']:.1e} relative" in card
    assert "models/Lora" in card
    assert facts["base"] in card
    assert "Licence" in card


def test_the_code_of_the_cards_runs_as_it_stands(lora_run: Path, single_file: Path, tmp_path: Path) -> None:
    config = str(single_file.with_name("config"))
    cards = [dfb.export(lora_run, tmp_path / name, format=name).path for name in EXPORT_FORMATS]
    on_file = {"lora": str(lora_run), "model_config": config}
    cards.append(dfb.export(single_file, tmp_path / "on file", format="kohya", **on_file).path)
    for place in cards:
        (code,) = re.findall(r"```python\n(.*?)```", (place / "README.md").read_text(), re.DOTALL)
        exec(compile(code, str(place), "exec"), {})


@pytest.mark.parametrize("name", [name for name, row in EXPORT_FORMATS.items() if row.texts])
def test_texts(name: str, adapter: Path, tmp_path: Path) -> None:
    done = dfb.export(adapter, tmp_path / "out", format=name, lora_scale=0.5)
    assert done.error <= 1e-5
    again = dfb.export(tmp_path / "out", tmp_path / "again", format="merged")
    assert again.error <= 1e-5
    half, whole = (
        dfb.export(adapter, tmp_path / f"{scale}", format="merged", lora_scale=scale) for scale in (0.5, 1.0)
    )
    weights = [(place.path / "model.safetensors").read_bytes() for place in (again, half, whole)]
    assert weights[0] == weights[1] != weights[2]


def test_what_means_nothing_is_refused(
    adapter: Path, lora_run: Path, tiny_pipelines: dict[str, Path], tmp_path: Path
) -> None:
    for result, name, why in (
        (adapter, "kohya", "is one of image models .* of texts there are peft, merged"),
        (tiny_pipelines["sd"], "peft", "a whole model, not adapters"),
        (lora_run, "kohia", "`format`: got 'kohia'"),
    ):
        with pytest.raises(dfb.UserError, match=f"(?s){why}"):
            dfb.export(result, tmp_path / "out", format=name)
    with pytest.raises(dfb.UserError, match="an export is a folder"):
        dfb.export(lora_run, tmp_path / "x.safetensors")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_others_is_kept_and_an_export_replaced_on_request(lora_run: Path, tmp_path: Path) -> None:
    place = tmp_path / "out"
    dfb.export(lora_run, place, format="merged")
    with pytest.raises(dfb.UserError, match="holds an export already"):
        dfb.export(lora_run, place)
    dfb.export(lora_run, place, overwrite=True)
    assert {path.name for path in place.iterdir()} == {"pytorch_lora_weights.safetensors", "README.md", "export.json"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(dfb.UserError, match="holds no export"):
        dfb.export(lora_run, tmp_path / "other", overwrite=True)


def test_above_the_bar_nothing_is_left(lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(denoiser: LatentDiffusion, part: str, layers: Iterable[str]) -> dict[str, str]:
        """Two layers under each other's names, in the writer alone."""
        names = right(denoiser, part, layers)
        if len(calls := [*calls_of, part]) == 1:
            first, second = [name for name in names if name.endswith("attn1.to_q")][:2]
            names |= {first: names[second], second: names[first]}
        calls_of[:] = calls
        return names

    right, calls_of = adapters.kohya_names, list[str]()
    monkeypatch.setattr(adapters, "kohya_names", wrong)
    with pytest.raises(dfb.UserError, match="allowed is 1e-05"):
        dfb.export(lora_run, tmp_path / "out", format="comfyui")
    assert not (tmp_path / "out").exists()


# --- bases in one file ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def single_file(tiny_pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Stable Diffusion as one file, with its configuration beside it."""
    place = tmp_path_factory.mktemp("files") / "tiny"
    dfb.export(tiny_pipelines["sd"], place, format="single_file")
    return place / "tiny.safetensors"


def test_a_single_file_is_the_model_of_its_folder(
    single_file: Path, lora_run: Path, tiny_pipelines: dict[str, Path], tmp_path: Path
) -> None:
    """Equal images and equal hashes, so that caches serve both; a LoRA goes on it as on the folder."""
    config = str(single_file.with_name("config"))
    for more in ({}, {"lora": str(lora_run)}):
        call = {"num_inference_steps": 2, "guidance_scale": 1, **more}
        dfb.generate(single_file, ["a cat"], output_dir=tmp_path / f"file{len(more)}", model_config=config, **call)
        dfb.generate(tiny_pipelines["sd"], ["a cat"], output_dir=tmp_path / f"folder{len(more)}", **call)
        one, other = (tmp_path / f"{kind}{len(more)}" for kind in ("file", "folder"))
        rows = [json.loads((place / "metadata.jsonl").read_text()) for place in (one, other)]
        assert [row.pop("model_path") for row in rows] == [str(single_file), str(tiny_pipelines["sd"])]
        assert rows[0] == rows[1]
        assert (one / "images" / "00000-s0.png").read_bytes() == (other / "images" / "00000-s0.png").read_bytes()


@pytest.mark.parametrize(("encoder", "more", "is_refused"), [
    ("conditioner.embedders.1.", [], False),
    ("conditioner.embedders.1.", ["v_pred", "ztsnr"], True),
    ("cond_stage_model.model.", [], True),
    ("cond_stage_model.transformer.", [], False),
])  # fmt: skip
@pytest.mark.parametrize("config", [None, "own"])
def test_what_a_single_file_predicts_is_not_guessed(
    encoder: str, more: list[str], is_refused: bool, config: str | None, tmp_path: Path
) -> None:
    """Of Stable Diffusion 2, and of XL where a key says velocity, the configuration has to be named."""
    names = ["model.diffusion_model.x", "first_stage_model.x", f"{encoder}x", *more]
    file = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(1) for name in names}, file)
    kind = StableDiffusionXLPipeline if encoder.startswith("conditioner") else StableDiffusionPipeline
    given = None if config is None else str(tmp_path)
    with pytest.raises(dfb.UserError) as raised:
        load_single_file(kind, str(file), given)
    assert ("predicts velocity or noise" in raised.value.problem) == (is_refused and config is None)
    assert "model.config" in f"{raised.value.problem} {raised.value.remedy}"


def test_what_a_single_file_needs(
    single_file: Path,
    lora_run: Path,
    tiny_pipelines: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(dfb.UserError, match="(?s)cannot be had.*model.config"):
        dfb.generate(single_file, ["a cat"])  # no network here
    assert "is taken to be that of stable-diffusion-v1-5/stable-diffusion-v1-5" in caplog.text
    with pytest.raises(dfb.UserError, match="holds no model_index.json"):
        dfb.generate(single_file, ["a cat"], model_config=str(tmp_path))
    with pytest.raises(dfb.UserError, match="is no single file"):
        dfb.generate(tiny_pipelines["sd"], ["a cat"], model_config=str(tmp_path))
    with pytest.raises(dfb.UserError, match="model of family sd, not a StableDiffusionXLPipeline"):
        dfb.generate(single_file, ["a cat"], family="sdxl", model_config=str(tiny_pipelines["sdxl"]))
    with pytest.raises(dfb.UserError, match="holds a LoRA, not a whole model"):
        dfb.generate(lora_run / "pytorch_lora_weights.safetensors", ["a cat"])
    torch.save({"x": torch.zeros(1)}, tmp_path / "old.ckpt")
    with pytest.raises(dfb.UserError, match="a pickle, which may run any code"):
        dfb.generate(tmp_path / "old.ckpt", ["a cat"])
