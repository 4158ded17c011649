"""ImageReward on transformers' BLIP against the formulas of the papers, written out in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny_imagereward
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from diffusion_feedback.errors import UserError
from diffusion_feedback.scorers.imagereward import load
from diffusion_feedback.scorers.loading import load_scorers
from diffusion_feedback.scorers.scorer import Scorer, Towers

PROMPTS = ["a cat on the sea", "A dog, in the sea, day time.", "cats", "the day"]
HEAD = 64  # width of one attention head


def small(folder: Path) -> str:
    """The spec of a small one with random weights, which is written into ``folder``."""
    return f"imagereward={tiny_imagereward.save(folder)}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_imagereward.save(tmp_path_factory.mktemp("imagereward"))


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Scorer:
    return load(str(folder), Towers())


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(48, 40), (33, 61), (32, 32), (90, 34)]
    return [Image.fromarray(rng.integers(0, 256, (*sizes[i % 4], 3), dtype=np.uint8)) for i in range(count)]


# The formulas. ViT (arXiv:2010.11929, equations 1 to 4), attention (arXiv:1706.03762, equation 1), BERT
# (arXiv:1810.04805: norms after the sums, exact GELU) with a cross-attention between self-attention and feed-forward
# (arXiv:2201.12086, figure 2). One image and one unpadded prompt at a time, so that there is no mask to get wrong.


class Formulas:
    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = {name: value.double() for name, value in state.items()}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        unit = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + eps)
        return unit * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    @staticmethod
    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    @staticmethod
    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(L, width), (M, width), (M, width): heads are neighbouring columns."""
        heads = []
        for part in (slice(start, start + HEAD) for start in range(0, query.shape[1], HEAD)):
            weights = torch.exp(query[:, part] @ key[:, part].T / math.sqrt(HEAD))
            heads.append(weights / weights.sum(1, keepdim=True) @ value[:, part])
        return torch.cat(heads, 1)

    def image(self, pixels: Tensor) -> Tensor:
        """(3, S, S) to (1 + patches, width)."""
        name, patch = "blip.visual_encoder", tiny_imagereward.PATCH
        kernel = self.state[f"{name}.patch_embed.proj.weight"].flatten(1)
        steps = range(0, pixels.shape[1], patch)
        rows = [pixels[:, y : y + patch, x : x + patch].double().flatten() @ kernel.T for y in steps for x in steps]
        patches = torch.stack(rows) + self.state[f"{name}.patch_embed.proj.bias"]
        x = torch.cat([self.state[f"{name}.cls_token"][0], patches]) + self.state[f"{name}.pos_embed"][0]
        for block in (f"{name}.blocks.{number}" for number in range(tiny_imagereward.LAYERS)):
            projected = self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, 1e-6))
            x = x + self.linear(f"{block}.attn.proj", self.attention(*projected.chunk(3, 1)))
            hidden = self.gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, 1e-6)))
            x = x + self.linear(f"{block}.mlp.fc2", hidden)
        return self.norm(f"{name}.norm", x, 1e-6)

    def text(self, ids: Sequence[int], image: Tensor) -> Tensor:
        """The first token's last hidden state (width,)."""
        name = "blip.text_encoder"
        words = self.state[f"{name}.embeddings.word_embeddings.weight"][list(ids)]
        places = self.state[f"{name}.embeddings.position_embeddings.weight"][: len(ids)]
        x = self.norm(f"{name}.embeddings.LayerNorm", words + places, 1e-12)
        for layer in (f"{name}.encoder.layer.{number}" for number in range(tiny_imagereward.LAYERS)):
            for kind in ("attention", "crossattention"):
                seen = x if kind == "attention" else image
                query, key, value = (
                    self.linear(f"{layer}.{kind}.self.{role}", source)
                    for role, source in (("query", x), ("key", seen), ("value", seen))
                )
                mixed = self.linear(f"{layer}.{kind}.output.dense", self.attention(query, key, value))
                x = self.norm(f"{layer}.{kind}.output.LayerNorm", x + mixed, 1e-12)
            hidden = self.gelu(self.linear(f"{layer}.intermediate.dense", x))
            x = self.norm(f"{layer}.output.LayerNorm", x + self.linear(f"{layer}.output.dense", hidden), 1e-12)
        return x[0]

    def reward(self, pixels: Tensor, ids: Sequence[int]) -> float:
        x = self.text(ids, self.image(pixels))
        for place in (0, 2, 4, 6, 7):
            x = self.linear(f"mlp.layers.{place}", x)
        return float(x)


WORD = {word: index for index, word in enumerate(tiny_imagereward.WORDS)}
SPELT = [
    "[CLS] a cat on the sea [SEP]",
    "[CLS] a dog , in the sea , day time . [SEP]",
    "[CLS] cat ##s [SEP]",
    "[CLS] the day [SEP]",
]
IDS = [[WORD[word] for word in line.split()] for line in SPELT]


def test_equals_the_formulas(scorer: Scorer) -> None:
    images = pictures(4)
    formulas = Formulas(tiny_imagereward.state())
    views = [scorer.view(image) for image in images]
    assert {tuple(view.shape) for view in views} == {(3, 32, 32)}
    expected = np.array([formulas.reward(view, ids) for view, ids in zip(views, IDS, strict=True)])
    assert np.ptp(expected) > 0.1
    found = scorer.judge(scorer.encode_images(torch.stack(views)), scorer.encode_prompts(PROMPTS))
    np.testing.assert_allclose(found.raw, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.score, (expected - 0.16717362830052426) / 1.0333394966054072, rtol=0, atol=1e-5)
    np.testing.assert_allclose(scorer.score(images, PROMPTS), found.score, rtol=0, atol=1e-6)


def test_norms_have_the_published_epsilons(tmp_path: Path) -> None:
    """Where activations are as small as the roots of 1e-6 and 1e-12, the formulas hold as well."""
    state = tiny_imagereward.state()
    for name in state:
        if name.startswith("blip.visual_encoder") and ".blocks." not in name and ".norm." not in name:
            state[name] = state[name] * 1e-3
        if name.endswith(("word_embeddings.weight", "position_embeddings.weight")):
            state[name] = state[name] * 1e-6
    scorer = load(str(tiny_imagereward.save(tmp_path, state)), Towers())
    formulas = Formulas(state)
    images = pictures(4)
    expected = [formulas.reward(scorer.view(image), ids) for image, ids in zip(images, IDS, strict=True)]
    found = scorer.judge(
        scorer.encode_images(torch.stack([scorer.view(image) for image in images])), scorer.encode_prompts(PROMPTS)
    )
    np.testing.assert_allclose(found.raw, expected, rtol=0, atol=1e-5)


def test_cuts_as_published(scorer: Scorer) -> None:
    """torchvision's Resize, CenterCrop, ToTensor and Normalize, bit for bit."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    steps = [v2.Resize(32, v2.InterpolationMode.BICUBIC), v2.CenterCrop(32), v2.PILToTensor()]
    published = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    rng = np.random.default_rng(1)
    for size in ((48, 40), (33, 61), (32, 35), (39, 32), (68, 34), (20, 27)):
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        torch.testing.assert_close(scorer.view(image), published(image), rtol=0, atol=1e-6)


def test_image_tokens_equal_the_formulas(scorer: Scorer) -> None:
    view = scorer.view(pictures(1)[0])
    found = scorer.encode_images(view[None])
    assert found.shape == (1, 17, tiny_imagereward.IMAGE_WIDTH)
    np.testing.assert_allclose(found[0], Formulas(tiny_imagereward.state()).image(view), rtol=0, atol=2e-5)


def test_prompts_become_wordpieces(scorer: Scorer) -> None:
    found = scorer.encode_prompts(PROMPTS)
    assert (found.shape, found.dtype) == ((4, 2, 35), torch.int64)
    for (ids, mask), expected in zip(found.tolist(), IDS, strict=True):
        assert ids == expected + [0] * (35 - len(expected))
        assert mask == [1] * len(expected) + [0] * (35 - len(expected))


def test_scores_do_not_depend_on_the_batch(scorer: Scorer) -> None:
    images, prompts = pictures(6), [PROMPTS[i % 4] for i in range(6)]
    alone = torch.cat([scorer.score([image], [prompt]) for image, prompt in zip(images, prompts, strict=True)])
    together = scorer.score(images, prompts)
    order = [3, 1, 5, 0, 4, 2]
    shuffled = scorer.score([images[i] for i in order], [prompts[i] for i in order])
    assert alone.std() > 0.05
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(shuffled, alone[order], rtol=0, atol=1e-5)


def test_padding_is_not_read(scorer: Scorer) -> None:
    images = scorer.encode_images(torch.stack([scorer.view(image) for image in pictures(4)]))
    prompts = scorer.encode_prompts(PROMPTS)
    other = prompts.clone()
    other[:, 0][prompts[:, 1] == 0] = WORD["dog"]
    unmasked = torch.stack([prompts[:, 0], torch.ones_like(prompts[:, 1])], 1)
    expected = scorer.judge(images, prompts).raw
    torch.testing.assert_close(scorer.judge(images, other).raw, expected, rtol=0, atol=0)
    assert (scorer.judge(images, unmasked).raw - expected).abs().min() > 1e-3


def test_long_prompts_are_cut_and_counted(scorer: Scorer) -> None:
    fits, long = " ".join(["cat"] * 33), " ".join(["cat"] * 33 + ["dog"] * 9)
    found = scorer.encode_prompts([fits, long])
    expected = [WORD["[CLS]"], *[WORD["cat"]] * 33, WORD["[SEP]"]]
    assert found[:, 0].tolist() == [expected, expected]
    assert bool((found[:, 1] == 1).all())
    assert sum(scorer.cuts([fits, long, "cats " * 17, "a cat"])) == 2


def test_what_the_scorer_says_of_itself(folder: Path, scorer: Scorer, tmp_path: Path) -> None:
    """The recipe follows the weights that scores depend on, wherever they stand and whatever else is in the file."""
    assert scorer.recipe_id.startswith("imagereward.1.0/pil12-crop-32-nearest/fp32/")
    assert (scorer.name, scorer.logit_scale) == ("imagereward", 1.0)
    same = {n: v for n, v in tiny_imagereward.state().items() if "_proj." not in n and "position_ids" not in n}
    assert load(str(tiny_imagereward.save(tmp_path / "same", same)), Towers()).recipe_id == scorer.recipe_id
    other = tiny_imagereward.save(tmp_path / "other", tiny_imagereward.state(1))
    assert load(str(other), Towers()).recipe_id != scorer.recipe_id
    words = tiny_imagereward.save(tmp_path / "words")
    (words / "vocab.txt").write_text("\n".join([*tiny_imagereward.WORDS[:5], *tiny_imagereward.WORDS[:4:-1]]))
    swapped = load(str(words), Towers())
    assert swapped.recipe_id != scorer.recipe_id
    assert not torch.equal(swapped.encode_prompts(["a cat"]), scorer.encode_prompts(["a cat"]))
    (by_spec,) = load_scorers([f"imagereward={folder / 'ImageReward.pt'}"])
    assert by_spec.recipe_id == scorer.recipe_id
    coarse = load(str(folder), Towers(dtype=torch.bfloat16))
    assert "/bf16/" in coarse.recipe_id
    images = pictures(4)
    np.testing.assert_allclose(coarse.score(images, PROMPTS), scorer.score(images, PROMPTS), atol=0.3)


def broken(change: str) -> dict[str, Tensor]:
    state = tiny_imagereward.state()
    match change:
        case "missing":
            del state["blip.text_encoder.encoder.layer.1.crossattention.self.key.weight"]
        case "unknown":
            state["blip.visual_encoder_m.cls_token"] = torch.zeros(1, 1, 128)
        case "shape":
            state["blip.visual_encoder.blocks.1.mlp.fc1.weight"] = torch.zeros(99, 128)
        case "head":
            state["mlp.layers.2.weight"] = torch.zeros(128, 99)
        case "flat":
            state["blip.visual_encoder.pos_embed"] = torch.zeros(17)
        case "width":
            state["blip.text_encoder.embeddings.word_embeddings.weight"] = torch.zeros(18, 200 + 1)
        case "clip":
            state = {"visual.conv1.weight": torch.zeros(8, 3, 4, 4)}
    return state


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("missing", "1 tensors missing.*missing blip.text_encoder.encoder.layer.1.crossattention.self.key.weight"),
        ("unknown", "1 unknown.*unknown blip.visual_encoder_m.cls_token"),
        ("shape", r"blip.visual_encoder.blocks.1.mlp.fc1.weight is \(99, 128\), expected \(512, 128\)"),
        ("head", r"mlp.layers.2.weight is \(128, 99\), expected \(128, 1024\)"),
        ("flat", r"blip.visual_encoder.pos_embed is \(17,\)"),
        ("width", "width 201 is no multiple of 64"),
        ("clip", "blip.visual_encoder.patch_embed.proj.weight is missing"),
    ],
)
def test_other_weights_are_refused(tmp_path: Path, change: str, named: str) -> None:
    folder = tiny_imagereward.save(tmp_path, broken(change))
    with pytest.raises(UserError, match=named) as error:
        load(str(folder), Towers())
    assert str(folder / "ImageReward.pt") in error.value.problem


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = tiny_imagereward.save(tmp_path)
    (folder / "vocab.txt").write_text("\n".join([*tiny_imagereward.WORDS, "more"]))
    with pytest.raises(UserError, match="vocab.txt: holds 18 tokens, the weights know 17"):
        load(str(folder), Towers())
    (folder / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="vocab.txt: could not be read as a vocabulary"):
        load(str(folder), Towers())
    (folder / "vocab.txt").unlink()
    with pytest.raises(UserError, match="bert-base-uncased/vocab.txt cannot be had") as error:
        load(str(folder), Towers())
    assert f"beside the weights: {folder / 'vocab.txt'}" in error.value.remedy


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        (None, "THUDM/ImageReward/ImageReward.pt cannot be had"),
        ("someone/reward", "someone/reward/ImageReward.pt cannot be had"),
        ("nowhere/ImageReward.pt", "nowhere/ImageReward.pt: no such file"),
        ("/nowhere/at/all", "/nowhere/at/all: no such file"),
    ],
)
def test_weights_that_are_not_there(weights: str | None, named: str) -> None:
    with pytest.raises(UserError, match=named):
        load(weights, Towers())


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ImageReward.pt: no such file"):
        load(str(tmp_path), Towers())
