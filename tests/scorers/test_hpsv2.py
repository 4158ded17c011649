"""HPSv2 against open_clip and against the same weights as a transformers CLIPModel."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from letterbox import letterbox_by_hand
from safetensors.torch import save_file
from tiny_clip import (
    OPEN_CLIP_CONFIG,
    PROMPTS,
    SIDE,
    Landmine,
    check_rows_are_independent,
    open_clip_model,
    pictures,
    save_open_clip,
)
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from diffusion_feedback.errors import UserError
from diffusion_feedback.scorers import hpsv2
from diffusion_feedback.scorers.checkpoints import read_checkpoint
from diffusion_feedback.scorers.loading import load_scorers
from diffusion_feedback.scorers.scorer import Scorer, Towers
from diffusion_feedback.scorers.views import OPENAI_MEAN, OPENAI_STD


def small(folder: Path) -> str:
    """The spec of a small one with random weights, which is written into ``folder``."""
    file, architecture = save_open_clip(folder)
    return f"hpsv2={file},architecture={architecture}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return save_open_clip(tmp_path_factory.mktemp("hps"))


def scorer_of(checkpoint: tuple[Path, str], **settings: Any) -> Scorer:
    file, architecture = checkpoint
    return hpsv2.load(str(file), Towers(), architecture=architecture, **settings)


def stored_model() -> Any:
    """The model of the checkpoint: its weights went through half precision."""
    model = open_clip_model()
    model.load_state_dict({name: value.half().float() for name, value in model.state_dict().items()})
    return model


def letterboxed() -> Tensor:
    levels = [torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in pictures()]
    boxed = torch.stack([letterbox_by_hand(picture, SIDE, "antialias") for picture in levels]).float()
    return (boxed - torch.tensor(OPENAI_MEAN)[:, None, None]) / torch.tensor(OPENAI_STD)[:, None, None]


def as_transformers(model: Any) -> CLIPModel:
    """The same network as a CLIPModel: attention's packed projection in three, projections transposed, plain GELU."""
    text, vision = OPEN_CLIP_CONFIG["text_cfg"], OPEN_CLIP_CONFIG["vision_cfg"]
    size = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"hidden_act": "gelu", "projection_dim": OPEN_CLIP_CONFIG["embed_dim"]}
    special = {"bos_token_id": 49406, "eos_token_id": 49407, "vocab_size": text["vocab_size"]}
    picture = {"image_size": vision["image_size"], "patch_size": vision["patch_size"]}
    config = CLIPConfig(text_config=size | special, vision_config=size | picture, projection_dim=size["projection_dim"])
    state = dict(model.state_dict())
    found = {
        "logit_scale": state["logit_scale"],
        "text_projection.weight": state["text_projection"].T,
        "visual_projection.weight": state["visual.proj"].T,
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
    }
    norms = {
        "ln_final": "text_model.final_layer_norm",
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
    }
    inner = {
        "attn.out_proj": "self_attn.out_proj",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for tower, prefix in {"text_model": "", "vision_model": "visual."}.items():
        for layer in range(2):
            old, new = f"{prefix}transformer.resblocks.{layer}", f"{tower}.encoder.layers.{layer}"
            norms |= {f"{old}.{part}": f"{new}.{name}" for part, name in inner.items()}
            for kind in ("weight", "bias"):
                packed = state[f"{old}.attn.in_proj_{kind}"].chunk(3)
                found |= {f"{new}.self_attn.{n}_proj.{kind}": part for n, part in zip("qkv", packed, strict=True)}
    found |= {f"{new}.{kind}": state[f"{old}.{kind}"] for old, new in norms.items() for kind in ("weight", "bias")}
    converted = CLIPModel(config).eval()
    converted.load_state_dict(found)
    return converted


@torch.no_grad()
def test_scores_are_those_of_open_clip(checkpoint: tuple[Path, str]) -> None:
    """The cosine as ``hpsv2.score()`` returns it, from the weights as published and pictures letterboxed by hand."""
    image, text, scale = stored_model()(letterboxed(), open_clip.get_tokenizer("ViT-H-14")(PROMPTS))
    expected = (image * text).sum(-1)
    scorer = scorer_of(checkpoint)
    torch.testing.assert_close(scorer.score(pictures(), PROMPTS), expected, atol=1e-5, rtol=0)
    assert scorer.logit_scale == pytest.approx(scale.item(), rel=1e-6)


@torch.no_grad()
def test_scores_are_those_of_the_weights_in_transformers(checkpoint: tuple[Path, str]) -> None:
    model = as_transformers(stored_model())
    tokens = open_clip.get_tokenizer("ViT-H-14")(PROMPTS)
    logits = model(pixel_values=letterboxed(), input_ids=tokens).logits_per_image.diagonal()
    scorer = scorer_of(checkpoint)
    scores = scorer.score(pictures(), PROMPTS)
    torch.testing.assert_close(scores, logits / model.logit_scale.exp(), atol=1e-5, rtol=0)
    assert scores.std() > 0.05
    features = scorer.encode_images(torch.stack([scorer.view(image) for image in pictures()]))
    expected = torch.nn.functional.normalize(model.get_image_features(letterboxed()).pooler_output, dim=-1)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


def test_raw_is_the_score(checkpoint: tuple[Path, str]) -> None:
    """The logit of a record is logit_scale * raw, so raw has to be the cosine itself."""
    scorer = scorer_of(checkpoint)
    scores = scorer.judge(torch.eye(3, 24), torch.eye(3, 24) * 0.3)
    torch.testing.assert_close(scores.raw, torch.full((3,), 0.3))
    assert torch.equal(scores.raw, scores.score)


def test_rows_do_not_depend_on_each_other(checkpoint: tuple[Path, str]) -> None:
    check_rows_are_independent(scorer_of(checkpoint))


def test_recipes_tell_versions_and_resampling_apart(checkpoint: tuple[Path, str], tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    shutil.copy(checkpoint[0], file)
    kinds = [(version, way) for version in ("v2.0", "v2.1") for way in ("antialias", "legacy")]
    made = [scorer_of((file, checkpoint[1]), version=version, resampling=way) for version, way in kinds]
    heads = [scorer.recipe_id.rsplit("/", 1)[0] for scorer in made]
    assert heads == [f"hps{version}/tensor-{way}-{SIDE}/fp32" for version, way in kinds]
    assert len({scorer.recipe_id.rsplit("/", 1)[1] for scorer in made}) == 1
    assert {scorer.name for scorer in made} == {"hpsv2"}


def test_resampling_changes_scores(checkpoint: tuple[Path, str]) -> None:
    now, then = (scorer_of(checkpoint, resampling=way).score(pictures(), PROMPTS) for way in ("antialias", "legacy"))
    scaled = torch.tensor([max(image.size) != SIDE for image in pictures()])
    assert torch.equal(now[~scaled], then[~scaled])
    assert ((now - then).abs()[scaled] > 1e-4).all()


def test_one_checkpoint_is_loaded_once(checkpoint: tuple[Path, str]) -> None:
    towers = Towers()
    file, architecture = checkpoint
    for resampling in ("antialias", "legacy"):
        hpsv2.load(str(file), towers, architecture=architecture, resampling=resampling)
    hpsv2.load(str(file.parent), towers, architecture=architecture)
    assert len(towers.loaded) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_scores_nearby(checkpoint: tuple[Path, str], dtype: torch.dtype) -> None:
    file, architecture = checkpoint
    half = hpsv2.load(str(file), Towers(dtype=dtype), architecture=architecture)
    found, full = half.score(pictures(), PROMPTS), scorer_of(checkpoint).score(pictures(), PROMPTS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, full, atol=0.05, rtol=0)
    assert not torch.equal(found, full)
    assert half.recipe_id.split("/")[2] == {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def test_wrong_settings_are_named(checkpoint: tuple[Path, str]) -> None:
    with pytest.raises(UserError, match="version 'v2.2'.*\n.*known: v2.0, v2.1"):
        scorer_of(checkpoint, version="v2.2")
    with pytest.raises(UserError, match="version '2.1'"):
        load_scorers([f"hpsv2={checkpoint[0]},version=2.1"])
    with pytest.raises(UserError, match="resampling 'pil'.*\n.*known: antialias, legacy"):
        scorer_of(checkpoint, resampling="pil")


def test_weights_of_the_other_version_are_refused(checkpoint: tuple[Path, str]) -> None:
    """Only by the published name: nothing in the file tells."""
    with pytest.raises(UserError, match=r"the weights of v2.1, requested as v2.0\n.*version=v2.1"):
        scorer_of(checkpoint, version="v2.0")
    with pytest.raises(UserError, match=r"HPS_v2_compressed.pt: no such file"):
        scorer_of((checkpoint[0].parent, checkpoint[1]), version="v2.0")


@pytest.mark.parametrize("name", ["HPS_v2_compressed (1).pt", "weights.pt", "hps.safetensors", "HPS_v2.1.pt"])
def test_weights_of_unknown_name_need_their_version(checkpoint: tuple[Path, str], tmp_path: Path, name: str) -> None:
    """Nothing in the file tells, and the two do not compare: a guess would be set beside the other one's table."""
    shutil.copy(checkpoint[0], tmp_path / name)
    with pytest.raises(UserError, match=r"nothing in the file says which version.*\n.*version=v2.0 or ,version=v2.1"):
        scorer_of((tmp_path / name, checkpoint[1]))


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_the_published_name_tells_the_version_whatever_the_format(
    checkpoint: tuple[Path, str], tmp_path: Path, version: str
) -> None:
    path = tmp_path / hpsv2.FILES[version].replace(".pt", ".safetensors")
    save_file({k: v.contiguous() for k, v in read_checkpoint(checkpoint[0]).items()}, path)
    assert scorer_of((path, checkpoint[1])).recipe_id.startswith(f"hps{version}/")


def test_weights_of_another_architecture_are_refused(checkpoint: tuple[Path, str]) -> None:
    with pytest.raises(UserError, match=f"{checkpoint[0]}: weights of another architecture: .*positional_embedding is"):
        hpsv2.load(str(checkpoint[0]), Towers(), architecture="ViT-S-32-alt")


@pytest.mark.parametrize(
    ("architecture", "named"),
    [
        ("ViT-H-41", r"knows no architecture 'ViT-H-41'\n.*near to it: .*ViT-H-14"),
        ("coca_ViT-B-32", "is no plain CLIP .*multimodal_cfg"),
        ("roberta-ViT-B-32", "is no plain CLIP .*hf_model_name"),
        ("convnext_base", "is no plain CLIP .*timm_model_name"),
        ("local-dir:/nowhere", "architecture 'local-dir:/nowhere'"),
    ],
)
def test_unsupported_architectures_are_named(checkpoint: tuple[Path, str], architecture: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        hpsv2.load(str(checkpoint[0]), Towers(), architecture=architecture)


def test_code_in_a_checkpoint_does_not_run(checkpoint: tuple[Path, str], tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "extra": Landmine(tmp_path / "exploded")}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=r"bad.pt: refused, it holds code"):
        scorer_of((tmp_path / "bad.pt", checkpoint[1]), version="v2.1")
    assert not (tmp_path / "exploded").exists()


def test_missing_files_are_named(checkpoint: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing.pt: no such file"):
        scorer_of((tmp_path / "nothing.pt", checkpoint[1]))
    with pytest.raises(UserError, match=r"weights/HPS.pt: no such file"):
        hpsv2.load("weights/HPS.pt", Towers())
    with pytest.raises(
        UserError, match=r"xswu/HPSv2/HPS_v2.1_compressed.pt cannot be had from the hub.*\n.*give the path"
    ):
        hpsv2.load(None, Towers())
