"""CLIPScore in its three forms, against transformers used by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from letterbox import letterbox_by_hand
from tiny_clip import (
    PROMPTS,
    SIDE,
    check_rows_are_independent,
    open_clip_model,
    pictures,
    save_bare_clip,
    save_clip,
    save_open_clip,
)
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from diffusion_feedback.errors import UserError
from diffusion_feedback.scorers import clip_score, pickscore
from diffusion_feedback.scorers.checkpoints import read_checkpoint
from diffusion_feedback.scorers.scorer import Towers
from diffusion_feedback.scorers.views import OPENAI_MEAN, OPENAI_STD


def small(folder: Path) -> str:
    """The spec of a small one with random weights, which is written into ``folder``."""
    return f"clip_score={save_clip(folder, 1)}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"), seed=2)


@torch.no_grad()
def cosines(folder: Path, prompts: list[str]) -> Tensor:
    """By transformers' model and tokenizer, with OpenAI's preprocessing as open_clip has it."""
    model = CLIPModel.from_pretrained(folder).eval()
    tokens = CLIPTokenizer.from_pretrained(folder)(prompts, padding=True, truncation=True, return_tensors="pt")
    transform = open_clip.image_transform(SIDE, is_train=False)
    out = model(pixel_values=torch.stack([transform(image) for image in pictures()]), **tokens)
    return torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)


def test_percent_is_a_hundred_cosines(folder: Path) -> None:
    scorer = clip_score.load(str(folder), Towers())
    expected = cosines(folder, PROMPTS)
    torch.testing.assert_close(scorer.score(pictures(), PROMPTS), 100 * expected, atol=1e-3, rtol=0)
    assert (expected < 0).any()  # not clamped


def test_hessel_is_clamped_and_has_a_prefix(folder: Path) -> None:
    scorer = clip_score.load(str(folder), Towers(), form="hessel")
    expected = cosines(folder, [f"A photo depicts {prompt}" for prompt in PROMPTS])
    assert (expected < 0).any()
    assert (expected > 0).any()
    torch.testing.assert_close(scorer.score(pictures(), PROMPTS), 2.5 * expected.clamp(min=0), atol=1e-5, rtol=0)
    features = scorer.encode_images(torch.stack([scorer.view(image) for image in pictures()]))
    torch.testing.assert_close(scorer.judge(features, scorer.encode_prompts(PROMPTS)).raw, expected, atol=1e-5, rtol=0)


def test_rows_do_not_depend_on_each_other(folder: Path) -> None:
    check_rows_are_independent(clip_score.load(str(folder), Towers()))
    check_rows_are_independent(clip_score.load(str(folder), Towers(), form="hessel"))


def test_long_prompts_are_read_to_where_they_are_cut(folder: Path) -> None:
    """Without its end token a long prompt would be read as empty, and all long prompts would score alike."""
    scorer = clip_score.load(str(folder), Towers())
    long = ["a" * 200, "b" * 200, "a" * 75 + "b" * 90]
    image = pictures()[0]
    first, second, third = scorer.score([image] * 3, long).tolist()
    assert abs(first - second) > 0.1
    assert first == pytest.approx(third, abs=1e-4)  # alike in the 75 letters that are read
    assert sum(scorer.cuts([*long, "a" * 75, "a" * 76, ""])) == 4


def test_the_prefix_counts_among_the_tokens(folder: Path) -> None:
    """Letter by letter it takes 13 of them."""
    scorer = clip_score.load(str(folder), Towers(), form="hessel")
    assert sum(scorer.cuts(["a" * 62, "a" * 63])) == 1


def test_forms_are_told_apart_and_share_weights(folder: Path) -> None:
    towers = Towers()
    percent, hessel, pick = (
        clip_score.load(str(folder), towers),
        clip_score.load(str(folder), towers, form="hessel"),
        pickscore.load(str(folder), towers),
    )
    assert percent.recipe_id.startswith("clip_score.percent/pil12-crop-32/fp32/")
    assert hessel.recipe_id.startswith("clip_score.hessel/clean-text/pil12-crop-32-nearest/fp32/")
    assert percent.logit_scale is None
    assert hessel.logit_scale is None
    assert len(towers.loaded) == 1
    assert (percent.view_key, percent.image_key, percent.text_key) == (pick.view_key, pick.image_key, pick.text_key)
    assert (hessel.image_key, hessel.text_key == pick.text_key) == (pick.image_key, False)


@pytest.mark.parametrize(
    ("form", "weights"), [("percent", "openai/clip-vit-large-patch14"), ("hessel", "openai/clip-vit-base-patch32")]
)
def test_default_weights_are_the_published_ones(form: str, weights: str) -> None:
    with pytest.raises(UserError, match=weights):
        clip_score.load(None, Towers(), form=form)


def test_unknown_forms_are_named(folder: Path) -> None:
    with pytest.raises(UserError, match="form 'percents'.*\n.*did you mean 'percent'"):
        clip_score.load(str(folder), Towers(), form="percents")


def test_standard_vocabulary_counts_words(tmp_path: Path) -> None:
    scorer = clip_score.load(str(save_bare_clip(tmp_path)), Towers())
    assert sum(scorer.cuts(["cat " * 75, "cat " * 76])) == 1


@torch.no_grad()
def test_hessel_reads_prompts_as_openais_clip_does(folder: Path) -> None:
    """Typographic quotes, ligatures, full-width signs and entities mean what they stand for; percent keeps them apart."""
    odd, plain = ["“cats”", "ﬁne", "ｆｕｌｌ", "a&amp;b", "two\n words"], ['"cats"', "fine", "full", "a&b", "two words"]
    hessel, percent = clip_score.load(str(folder), Towers(), form="hessel"), clip_score.load(str(folder), Towers())
    assert torch.equal(hessel.encode_prompts(odd), hessel.encode_prompts(plain))
    assert not torch.allclose(percent.encode_prompts(odd[:1]), percent.encode_prompts(plain[:1]), atol=1e-3)


@torch.no_grad()
def test_diffusion_dpo_is_the_cosine_of_the_letterboxed_picture(tmp_path: Path) -> None:
    """As that paper's code computes it: open_clip's two towers over HPSv2's pictures, without its scale."""
    file, architecture = save_open_clip(tmp_path)
    model = open_clip_model()
    model.load_state_dict({name: value.float() for name, value in read_checkpoint(file).items()})
    mean, std = (torch.tensor(part)[:, None, None] for part in (OPENAI_MEAN, OPENAI_STD))
    levels = [torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in pictures()]
    views = torch.stack([(letterbox_by_hand(level, SIDE, "antialias").float() - mean) / std for level in levels])
    image, text, _ = model(views, open_clip.get_tokenizer("ViT-H-14")(PROMPTS))
    scorer = clip_score.load(str(file), Towers(), form="diffusion_dpo", architecture=architecture)
    found = scorer.score(pictures(), PROMPTS)
    torch.testing.assert_close(found, (image * text).sum(-1), atol=1e-5, rtol=0)
    assert scorer.recipe_id.startswith(f"clip_score.diffusion_dpo/clean-text/tensor-antialias-{SIDE}/fp32/")
    assert found.std() > 0.05
    check_rows_are_independent(scorer)


def test_diffusion_dpo_reads_folders_too(folder: Path) -> None:
    scorer = clip_score.load(str(folder), Towers(), form="diffusion_dpo")
    check_rows_are_independent(scorer)
    assert scorer.view_key == f"tensor-antialias-{SIDE}"
    with pytest.raises(UserError, match="laion/CLIP-ViT-H-14-laion2B-s32B-b79K"):
        clip_score.load(None, Towers(), form="diffusion_dpo")
