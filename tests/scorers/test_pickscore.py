"""PickScore against transformers used by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_clip import PROMPTS, check_rows_are_independent, pictures, save_bare_clip, save_clip
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from diffusion_feedback.errors import UserError
from diffusion_feedback.scorers import pickscore
from diffusion_feedback.scorers.loading import load_scorers
from diffusion_feedback.scorers.scorer import Towers


def small(folder: Path) -> str:
    """The spec of a small one with random weights, which is written into ``folder``."""
    return f"pickscore={save_clip(folder)}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@torch.no_grad()
def test_scores_are_transformers_logits_per_image(folder: Path) -> None:
    """The diagonal of ``logits_per_image``, with transformers' own processor and padded prompts under their mask."""
    model = CLIPModel.from_pretrained(folder).eval()
    tokens = CLIPTokenizer.from_pretrained(folder)(PROMPTS, padding=True, truncation=True, return_tensors="pt")
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(pictures(), return_tensors="pt").pixel_values
    expected = model(pixel_values=pixels, **tokens).logits_per_image.diagonal()
    scorer = pickscore.load(str(folder), Towers())
    torch.testing.assert_close(scorer.score(pictures(), PROMPTS), expected, atol=1e-4, rtol=1e-5)
    assert scorer.logit_scale == pytest.approx(torch.tensor(3.0).exp().item(), rel=1e-6)
    views = torch.stack([scorer.view(image) for image in pictures()])
    scores = scorer.judge(scorer.encode_images(views), scorer.encode_prompts(PROMPTS))
    torch.testing.assert_close(scores.raw, expected / scorer.logit_scale, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.score, scorer.logit_scale * scores.raw)


def test_rows_do_not_depend_on_each_other(folder: Path) -> None:
    check_rows_are_independent(pickscore.load(str(folder), Towers()))


def test_a_folder_without_tokenizer_has_the_standard_one(tmp_path: Path) -> None:
    scorer = pickscore.load(str(save_bare_clip(tmp_path)), Towers())
    check_rows_are_independent(scorer)
    assert scorer.view_key == "pil12-crop-32"


def test_recipe_and_keys(folder: Path, tmp_path: Path) -> None:
    scorer = pickscore.load(str(folder), Towers())
    name, view, precision, identity = scorer.recipe_id.split("/")
    assert (scorer.name, name, view, precision) == ("pickscore", "pickscore.1", "pil12-crop-32", "fp32")
    assert len(identity) == 12
    copy = save_clip(tmp_path / "same")
    other = save_clip(tmp_path / "other", seed=1)
    assert pickscore.load(str(copy), Towers()).recipe_id == scorer.recipe_id
    assert pickscore.load(str(other), Towers()).recipe_id != scorer.recipe_id
    half = pickscore.load(str(folder), Towers(dtype=torch.bfloat16))
    assert half.recipe_id == scorer.recipe_id.replace("fp32", "bf16")
    assert half.image_key != scorer.image_key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_scores_nearby(folder: Path, dtype: torch.dtype) -> None:
    full, half = (pickscore.load(str(folder), Towers(dtype=kind)) for kind in (torch.float32, dtype))
    found = half.score(pictures(), PROMPTS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, full.score(pictures(), PROMPTS), atol=1.0, rtol=0)
    assert not torch.equal(found, full.score(pictures(), PROMPTS))


def test_default_weights_are_the_published_ones() -> None:
    with pytest.raises(UserError) as error:
        pickscore.load(None, Towers())
    assert "yuvalkirstain/PickScore_v1" in error.value.problem
    assert "local folder" in error.value.remedy


def test_specs_reach_it(folder: Path) -> None:
    (scorer,) = load_scorers([f"mine:pickscore={folder}"])
    assert scorer.name == "mine"
