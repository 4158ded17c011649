"""The aesthetic predictor against its head run layer by layer."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from tiny_clip import PROMPTS, SIDE, Landmine, check_rows_are_independent, pictures, save_clip
from torch import nn
from transformers import CLIPModel

from diffusion_feedback.errors import UserError
from diffusion_feedback.scorers import aesthetic, clip_score
from diffusion_feedback.scorers.runner import score_batches
from diffusion_feedback.scorers.scorer import Scorer, Towers
from diffusion_feedback.types.images import ImageItem

WIDTH = 24


def head(width: int = WIDTH, seed: int = 0) -> nn.Sequential:
    """As it is trained: dropouts between the first linear layers, so that these are numbers 0, 2, 4, 6 and 7."""
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64),
        nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
    )  # fmt: skip
    with torch.no_grad():
        for value in layers.parameters():
            value.mul_(2)
        layers[-1].bias.fill_(5.0)
    return layers.eval()


def save_head(folder: Path, layers: nn.Module | None = None) -> Path:
    torch.save(nn.Sequential(OrderedDict(layers=layers or head())).state_dict(), folder / "head.pth")
    return folder / "head.pth"


def small(folder: Path) -> str:
    """The spec of a small one with random weights, which is written into ``folder``."""
    return f"aesthetic={save_head(folder)},clip={save_clip(folder / 'clip', 3)}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("aesthetic")
    return save_head(folder), save_clip(folder / "clip")


def scorer_of(files: tuple[Path, Path], towers: Towers | None = None) -> Scorer:
    return aesthetic.load(str(files[0]), towers or Towers(), clip=str(files[1]))


@torch.no_grad()
def test_scores_are_those_of_the_head_layer_by_layer(files: tuple[Path, Path]) -> None:
    """On features from transformers and OpenAI's preprocessing as open_clip has it, in float64."""
    transform = open_clip.image_transform(SIDE, is_train=False)
    pixels = torch.stack([transform(image) for image in pictures()])
    features = CLIPModel.from_pretrained(files[1]).eval().get_image_features(pixels).pooler_output.double()
    expected = head().double()(features / features.norm(dim=-1, keepdim=True))[:, 0]
    scores = scorer_of(files).score(pictures(), PROMPTS)
    torch.testing.assert_close(scores.double(), expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.05


def test_rows_do_not_depend_on_each_other(files: tuple[Path, Path]) -> None:
    check_rows_are_independent(scorer_of(files))


def test_the_prompt_is_not_read(files: tuple[Path, Path]) -> None:
    scorer = scorer_of(files)
    assert not scorer.reads_prompts
    assert scorer.encode_prompts(PROMPTS).shape == (len(PROMPTS), 0)
    assert torch.equal(scorer.score(pictures(), PROMPTS), scorer.score(pictures(), PROMPTS[::-1]))
    assert sum(scorer.cuts(["word " * 500])) == 0


def test_recipe_names_tower_and_head(files: tuple[Path, Path], tmp_path: Path) -> None:
    first = scorer_of(files)
    name, view, precision, hashes = first.recipe_id.split("/")
    assert (name, view, precision) == ("aesthetic.2", "pil12-crop-32-nearest", "fp32")
    assert [len(part) for part in hashes.split("-")] == [12, 12]
    other = save_head(tmp_path, head(seed=1))
    assert scorer_of((other, files[1])).recipe_id != first.recipe_id
    assert first.logit_scale is None


def test_the_tower_is_shared_with_clip_score(files: tuple[Path, Path]) -> None:
    towers = Towers()
    own, other = scorer_of(files, towers), clip_score.load(str(files[1]), towers, form="hessel")
    assert len(towers.loaded) == 1
    assert (own.view_key, own.image_key) == (other.view_key, other.image_key)


@dataclass(frozen=True)
class Handle:
    """A picture in memory."""

    key: str
    image: Image.Image

    def open(self) -> Image.Image:
        return self.image


def test_the_runner_gives_the_same_scores(files: tuple[Path, Path]) -> None:
    """With views and features shared, in batches, beside a scorer that does read prompts."""
    towers = Towers()
    scorers = [scorer_of(files, towers), clip_score.load(str(files[1]), towers, form="hessel")]
    named = enumerate(zip(pictures(), PROMPTS, strict=True))
    items = [ImageItem(str(i), prompt, Handle(str(i), image)) for i, (image, prompt) in named]
    batches = list(score_batches(scorers, items, batch_size=2))
    for number, scorer in enumerate(scorers):
        found = torch.cat([batch.scores[number].score for batch in batches])
        torch.testing.assert_close(found, scorer.score(pictures(), PROMPTS), atol=1e-5, rtol=0)


def test_half_precision_gives_float32_scores_nearby(files: tuple[Path, Path]) -> None:
    found = scorer_of(files, Towers(dtype=torch.bfloat16)).score(pictures(), PROMPTS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, scorer_of(files).score(pictures(), PROMPTS), atol=0.1, rtol=0)


def test_without_weights_it_says_where_they_are(files: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=r"needs the file of its head.*\n.*sac\+logos\+ava1-l14-linearMSE.pth"):
        aesthetic.load(None, Towers(), clip=str(files[1]))


def test_default_tower_is_the_published_one(files: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="openai/clip-vit-large-patch14"):
        aesthetic.load(str(files[0]), Towers())


def test_a_head_of_another_tower_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    wide = save_head(tmp_path, head(width=768))
    with pytest.raises(UserError, match=rf"{wide}: .*layers.0.weight is \(1024, 768\), expected \(1024, 24\)"):
        scorer_of((wide, files[1]))


def test_bad_files_are_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no.pth: no such file"):
        scorer_of((tmp_path / "no.pth", files[1]))
    torch.save(Landmine(tmp_path / "exploded"), tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"bad.pth: refused, it holds code"):
        scorer_of((tmp_path / "bad.pth", files[1]))
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(UserError, match=r"head.pth: is a file"):
        aesthetic.load(str(files[0]), Towers(), clip=str(files[0]))


def linear_head(folder: Path, width: int = WIDTH) -> tuple[Path, nn.Linear]:
    """A head as version 1 is published: the state of one layer."""
    torch.manual_seed(4)
    layer = nn.Linear(width, 1)
    torch.save(layer.state_dict(), folder / "sa_0_4_vit_l_14_linear.pth")
    return folder / "sa_0_4_vit_l_14_linear.pth", layer


@torch.no_grad()
def test_version_1_is_one_layer_over_the_features(files: tuple[Path, Path], tmp_path: Path) -> None:
    file, layer = linear_head(tmp_path)
    transform = open_clip.image_transform(SIDE, is_train=False)
    pixels = torch.stack([transform(image) for image in pictures()])
    features = CLIPModel.from_pretrained(files[1]).eval().get_image_features(pixels).pooler_output.double()
    expected = layer.double()(features / features.norm(dim=-1, keepdim=True))[:, 0]
    scorer = scorer_of((file, files[1]))
    torch.testing.assert_close(scorer.score(pictures(), PROMPTS).double(), expected, atol=1e-5, rtol=0)
    assert scorer.recipe_id.startswith("aesthetic.1/pil12-crop-32-nearest/fp32/")


@pytest.mark.parametrize(
    ("width", "clip", "named"),
    [
        (768, None, "openai/clip-vit-large-patch14: .*from the hub"),
        (512, None, "a head over 512 features.*\n.*append ,clip=openai/clip-vit-base-patch32"),
        (7, None, "a head over 7 features.*\n.*append ,clip=the CLIPModel that the head was trained on"),
        (512, "tiny", r"weight is \(1, 512\), expected \(1, 24\)"),
    ],
)
def test_heads_of_version_1_need_their_own_clip(
    files: tuple[Path, Path], tmp_path: Path, width: int, clip: str | None, named: str
) -> None:
    file, _ = linear_head(tmp_path, width)
    with pytest.raises(UserError, match=f"(?s){named}"):
        aesthetic.load(str(file), Towers(), clip=clip and str(files[1]))
