"""CLIP scorers against transformers' own forward pass and image processor, and the refusals of what is none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_ranker
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from diffusion_feedback.errors import UserError
from diffusion_feedback.models.clip import load

PROMPTS = ["a cat", "a much longer prompt", "x" * 100]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ranker.save_clip(tmp_path_factory.mktemp("clip") / "model")


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)) for width, height in sizes]


def test_logits_are_those_of_transformers(folder: Path) -> None:
    scorer = load(str(folder))
    images = pictures((16, 16), (40, 25), (33, 61))
    processor, tokenizer = CLIPImageProcessorPil.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    text = tokenizer(PROMPTS, padding=True, truncation=True, max_length=40, return_tensors="pt")
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(folder)(**text, **processor(images, return_tensors="pt")).logits_per_text
        cut = torch.stack([scorer.cut(image) for image in images])
        found = scorer.network(scorer.tokenize(PROMPTS), scorer.normalise(cut))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-6)
    assert cut.dtype == torch.uint8
    assert scorer.logit_scale == pytest.approx(1 / 0.07, rel=1e-3)


def test_pictures_are_cut_as_the_scorers_cut_them(folder: Path) -> None:
    views = pytest.importorskip("diffusion_feedback.scorers.views")
    view, scorer = views.CropView(16, 16), load(str(folder))
    for image in pictures((16, 16), (64, 64), (40, 25), (33, 61), (23, 16), (512, 300)):
        assert torch.equal(scorer.normalise(scorer.cut(image)[None])[0], view(image))


def test_a_prompts_logits_do_not_depend_on_its_neighbours(folder: Path) -> None:
    scorer = load(str(folder))
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = scorer.network(scorer.tokenize(PROMPTS), pixels)
        alone = torch.cat([scorer.network(scorer.tokenize([prompt]), pixels) for prompt in PROMPTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_long_prompts_are_cut_and_counted(folder: Path) -> None:
    scorer = load(str(folder))
    tokens = scorer.tokenize(PROMPTS)
    assert tokens.shape == (3, 40)
    assert tokens[2, -1] == scorer.network.clip.config.text_config.eos_token_id
    assert scorer.count_truncated(PROMPTS) == 1


def test_the_product_is_in_float32_under_autocast(folder: Path) -> None:
    """bfloat16 would round logits near 14 to steps of 1/16."""
    scorer = load(str(folder))
    pixels = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = scorer.network(scorer.tokenize(PROMPTS), pixels)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


def test_saved_folders_load_again(folder: Path, tmp_path: Path) -> None:
    scorer = load(str(folder))
    with torch.no_grad():
        scorer.network.clip.logit_scale.fill_(3.0)
    scorer.save(scorer.network, tmp_path)
    assert CLIPModel.from_pretrained(tmp_path).logit_scale.item() == 3.0
    assert CLIPTokenizer.from_pretrained(tmp_path)(PROMPTS[0]).input_ids == scorer.tokenize(PROMPTS[:1])[0].tolist()
    assert CLIPImageProcessorPil.from_pretrained(tmp_path).size["shortest_edge"] == 16
    assert load(str(tmp_path)).model_hash() == scorer.model_hash() != load(str(folder)).model_hash()


def test_a_folder_without_a_processor_gets_clips_own(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "preprocessor_config.json").unlink()
    with_own, without = load(str(folder)), load(str(tmp_path / "copy"))
    assert without.image_processor.to_dict() == with_own.image_processor.to_dict()


def edit(name: str, change: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / name).read_text())
        change(config)
        (folder / name).write_text(json.dumps(config))

    return apply


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "other model": (edit("config.json", lambda c: c.update(model_type="siglip")), "model_type is 'siglip'"),
    "dropout": (edit("config.json", lambda c: c["text_config"].update(attention_dropout=0.1)), "attention_dropout"),  # type: ignore[attr-defined]
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "could not be read as a CLIPModel"),
    "cut off": (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 40), "could not be read"),
    "missing weight": (weights(lambda s: s.pop("visual_projection.weight")), "missing, the first is 'visual_proj"),
    "not finite": (weights(lambda s: s["logit_scale"].fill_(torch.nan)), "'logit_scale' holds 1 values"),
    "other crop": (edit("preprocessor_config.json", lambda c: c.update(do_center_crop=False)), "do_center_crop"),
    "other size": (edit("preprocessor_config.json", lambda c: c.update(crop_size={"height": 8, "width": 8})), "crop_s"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BROKEN))
def test_broken_folders_are_refused(case: str, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    change, named = BROKEN[case]
    change(copy)
    with pytest.raises(UserError, match=re.escape(named)) as error:
        load(str(copy))
    assert str(copy) in str(error.value)
    assert error.value.remedy


def test_pipelines_and_absent_folders_are_refused(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a diffusers pipeline"):
        load(str(tiny_pipelines["sd"]))
    with pytest.raises(UserError, match="no such folder"):
        load(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="device nowhere|device meta:7|device cuda:99"):
        load(str(tiny_ranker.save_clip(tmp_path / "model")), device="cuda:99")
