"""Two towers from folders and checkpoints: tokens, identity, sharing, precision, and what is said of broken files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_clip import (
    PROMPTS,
    Landmine,
    clip_model,
    letters,
    pictures,
    save_bare_clip,
    save_clip,
    save_open_clip,
)
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from diffusion_feedback.errors import UserError
from diffusion_feedback.scorers import clip_score, hpsv2, hub_files, imagereward, pickscore
from diffusion_feedback.scorers.scorer import Towers
from diffusion_feedback.scorers.towers import ClipTower, load_clip, load_open_clip

MORE_PROMPTS = [
    *PROMPTS,
    "it's 3D-rendered... by @artist_01!!",
    "日本の猫 😀",
    "a" * 300,
    "cat " * 200,
    "  two\n spaces\t",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> ClipTower:
    return load_clip(str(save_bare_clip(tmp_path_factory.mktemp("bare"))), Towers())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return save_open_clip(tmp_path_factory.mktemp("open_clip"))


def changed(folder: Path, target: Path, **text: Any) -> Path:
    """A copy of ``folder`` whose config.json says ``text`` of the text tower."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    config["text_config"] |= text
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_tokens_of_a_folder_are_its_tokenizers(folder: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    expected = tokenizer(MORE_PROMPTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    assert torch.equal(load_clip(str(folder), Towers()).tokenizer(MORE_PROMPTS), expected.input_ids)


def test_standard_tokens_are_open_clips(bare: ClipTower) -> None:
    """Up to the end token; what follows it is not read."""
    expected = open_clip.get_tokenizer("ViT-H-14")(MORE_PROMPTS)
    for own, other in zip(bare.tokenizer(MORE_PROMPTS), expected, strict=True):
        end = int(other.argmax())
        assert torch.equal(own[: end + 1], other[: end + 1])
        assert (own[end:] == 49407).all()


def test_tokens_of_a_checkpoint_are_open_clips(checkpoint: tuple[Path, str]) -> None:
    file, architecture = checkpoint
    tokenizer = load_open_clip(architecture, file, Towers()).tokenizer
    prompts = [*MORE_PROMPTS, "caf&eacute; &amp; bar", "Ã©"]
    assert torch.equal(tokenizer(prompts), open_clip.get_tokenizer("ViT-H-14")(prompts))
    assert sum(tokenizer.cuts(["cat " * 75, "cat " * 76])) == 1


def test_long_prompts_keep_their_end_and_are_counted(bare: ClipTower) -> None:
    rows = bare.tokenizer(["cat " * 75, "cat " * 76, "cat " * 500])
    assert rows.shape == (3, 77)
    assert rows[:, -1].tolist() == [49407] * 3
    assert (rows[:, :-1] != 49407).all()
    assert sum(bare.tokenizer.cuts(["cat " * 75, "cat " * 76, "cat " * 500, ""])) == 2
    assert sum(bare.tokenizer.cuts([])) == 0


def test_many_prompts_are_encoded_as_each_alone(folder: Path) -> None:
    """More than are taken at once, of all lengths."""
    tower = load_clip(str(folder), Towers())
    prompts = [f"{'word ' * (number % 23)}{number}" for number in range(150)]
    together = tower.encode_prompts(prompts)
    for number in (0, 63, 64, 127, 128, 149):
        torch.testing.assert_close(tower.encode_prompts([prompts[number]])[0], together[number], atol=1e-5, rtol=0)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(150), atol=1e-5, rtol=0)


def test_configurations_of_before_2023_are_read(folder: Path, tmp_path: Path) -> None:
    """They say eos_token_id 2 and mean the highest id."""
    old = changed(folder, tmp_path / "old", eos_token_id=2)
    expected = load_clip(str(folder), Towers()).encode_prompts(PROMPTS)
    assert torch.equal(load_clip(str(old), Towers()).encode_prompts(PROMPTS), expected)


def test_preprocessing_saved_with_the_processor_is_found(folder: Path, tmp_path: Path) -> None:
    image = CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image, letters()).save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path / name)
    assert load_clip(str(tmp_path), Towers()).view.id == "pil12-crop-32-of-40"


def test_weights_are_loaded_once(folder: Path, checkpoint: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    towers = Towers()
    first = load_clip(str(folder), towers)
    monkeypatch.chdir(folder.parent)
    assert load_clip(f"./{folder.name}", towers) is first
    assert load_clip(folder.name, towers) is first
    file, architecture = checkpoint
    assert load_open_clip(architecture, file, towers) is load_open_clip(architecture, file, towers)
    assert load_clip(str(folder), Towers()) is not first


def test_loading_draws_nothing_at_random(folder: Path, checkpoint: tuple[Path, str]) -> None:
    """A network of random weights is neither filled nor thrown away, and a run's own draws stay what they are."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load_clip(str(folder), Towers())
    load_open_clip(checkpoint[1], checkpoint[0], Towers())
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_trainable(folder: Path) -> None:
    tower = load_clip(str(folder), Towers())
    views = torch.stack([tower.view(image) for image in pictures()])
    assert not tower.encode_images(views).requires_grad
    assert not tower.encode_prompts(PROMPTS).requires_grad
    assert tower.encode_images(views.requires_grad_()).requires_grad


def test_the_key_tells_weights_architecture_and_vocabulary_apart(folder: Path, tmp_path: Path) -> None:
    def key(place: Path, dtype: torch.dtype = torch.float32) -> str:
        return load_clip(str(place), Towers(dtype=dtype)).key

    same = shutil.copytree(folder, tmp_path / "same")
    renamed = shutil.copytree(folder, tmp_path / "renamed")
    text = (renamed / "tokenizer.json").read_text()
    assert '"A": 32' in text
    (renamed / "tokenizer.json").write_text(
        text.replace('"A": 32', '"A": -1').replace('"B": 33', '"B": 32').replace('"A": -1', '"A": 33')
    )
    shorter = shutil.copytree(folder, tmp_path / "shorter")
    written = json.loads((shorter / "tokenizer_config.json").read_text())
    (shorter / "tokenizer_config.json").write_text(json.dumps(written | {"model_max_length": 8}))
    others = [
        shorter,
        save_clip(tmp_path / "weights", seed=1),
        changed(folder, tmp_path / "activation", hidden_act="gelu"),
        changed(folder, tmp_path / "epsilon", layer_norm_eps=1e-4),
        renamed,
    ]
    assert key(same) == key(folder)
    keys = [key(folder), key(folder, torch.float16), *(key(place) for place in others)]
    assert len(set(keys)) == len(keys)
    assert keys[1] == keys[0].replace("fp32", "fp16")


def test_half_precision_files_are_judged_in_full(folder: Path, tmp_path: Path) -> None:
    """As a scorer of this project is saved: the file's precision is in the hash, the sums are float32."""
    half = shutil.copytree(folder, tmp_path / "half")
    CLIPModel.from_pretrained(folder).half().save_pretrained(half)
    full = shutil.copytree(folder, tmp_path / "full")
    CLIPModel.from_pretrained(half, dtype=torch.float32).save_pretrained(full)
    stored, expected = load_clip(str(half), Towers()), load_clip(str(full), Towers())
    assert load_file(half / "model.safetensors")["logit_scale"].dtype == torch.float16
    assert torch.equal(stored.encode_prompts(PROMPTS), expected.encode_prompts(PROMPTS))
    assert stored.key != expected.key
    assert stored.logit_scale == expected.logit_scale


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_are_float32_of_unit_length(folder: Path, checkpoint: tuple[Path, str], dtype: torch.dtype) -> None:
    towers = Towers(dtype=dtype)
    for tower in (load_clip(str(folder), towers), load_open_clip(checkpoint[1], checkpoint[0], towers)):
        views = torch.stack([tower.view(image) for image in pictures()])
        for features in (tower.encode_images(views), tower.encode_prompts(PROMPTS)):
            assert features.dtype == torch.float32
            torch.testing.assert_close(features.norm(dim=-1), torch.ones(5), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["runs/scorer", "./clip", "/clip", "~/clip", "a/b/c", "weights/HPS.pt", "a/", "x.bin"])
def test_paths_are_not_asked_of_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns the name of a mistyped folder would serve the weights."""

    def asked(*arguments: object, **settings: object) -> None:
        raise AssertionError(f"the hub was asked for {arguments}")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(hub_files, "hf_hub_download", asked)
    monkeypatch.setattr(CLIPModel, "from_pretrained", asked)
    for load in (pickscore.load, hpsv2.load, imagereward.load, clip_score.load):
        with pytest.raises(UserError, match=rf"{re.escape(Path(name).name)}/?: no such f"):
            load(name, Towers())


def test_models_of_the_hub_that_cannot_be_had_are_named() -> None:
    with pytest.raises(UserError) as error:
        load_clip("nobody/no-such-model", Towers())
    assert error.value.problem.startswith("nobody/no-such-model: ")
    assert "from the hub" in error.value.problem
    assert "no such folder" in error.value.problem
    assert "local folder" in error.value.remedy


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def with_text(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def with_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    return apply


def with_tokenizer(folder: Path) -> None:
    tokenizer = letters()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)


def with_end(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 5
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (without("config.json"), "holds no config.json"),
        (with_text("config.json", "{"), "config.json: not JSON"),
        (with_text("config.json", "[]"), "config.json: holds list"),
        (with_text("config.json", '{"model_type": "siglip"}'), "a model of type 'siglip', not 'clip'"),
        (without("model.safetensors"), "could not be read as a CLIPModel"),
        (with_text("model.safetensors", "nonsense"), "model.safetensors: not a checkpoint"),
        (with_weights(lambda state: state.pop("logit_scale") and None), r"1 missing \(logit_scale"),
        (with_weights(lambda state: state.update(extra=torch.ones(1))), r"1 unknown \(extra\)"),
        (
            with_weights(lambda state: state.update({"visual_projection.weight": torch.ones(3, 32)})),
            r"1 of another shape \(visual_projection.weight\)",
        ),
        (without("tokenizer.json"), "holds no tokenizer, and its vocabulary of 190"),
        (with_text("tokenizer.json", "{"), "could not be read as CLIP's tokenizer"),
        (with_tokenizer, "the tokenizer's ids go to 190, the model knows 190 tokens"),
        (with_text("tokenizer_config.json", '{"model_max_length": 0}'), "says model_max_length 0"),
        (with_text("tokenizer_config.json", '{"model_max_length": "77"}'), "says model_max_length '77'"),
        (with_end, "prompts end in token 189, config.json says eos_token_id 5"),
        (with_text("preprocessor_config.json", '{"resample": 2}'), "resample is 2"),
        (with_text("preprocessor_config.json", '{"size": 224, "crop_size": 224}'), "crop_size is 224"),
    ],
)
def test_broken_folders_are_named(folder: Path, tmp_path: Path, harm: Callable[[Path], None], named: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    harm(copy)
    with pytest.raises(UserError, match=named) as error:
        load_clip(str(copy), Towers())
    assert str(copy) in error.value.problem
    assert error.value.remedy


def test_counting_buffers_of_old_files_are_let_be(folder: Path, tmp_path: Path) -> None:
    """Uploads of 2021 hold them."""
    old = shutil.copytree(folder, tmp_path / "old")
    with_weights(lambda state: state.update({"text_model.embeddings.position_ids": torch.arange(77)[None]}))(old)
    assert load_clip(str(old), Towers()).key == load_clip(str(folder), Towers()).key


def test_code_among_the_weights_does_not_run(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    state = clip_model(190).state_dict() | {"extra": Landmine(tmp_path / "exploded")}
    torch.save(state, copy / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin: refused, it holds code") as error:
        load_clip(str(copy), Towers())
    assert "weights_only" not in str(error.value)
    assert not (tmp_path / "exploded").exists()


def test_files_and_folders_are_not_confused(folder: Path, checkpoint: tuple[Path, str]) -> None:
    with pytest.raises(UserError, match=r"model.safetensors: is a file\n.*give the folder"):
        load_clip(str(folder / "model.safetensors"), Towers())
    with pytest.raises(UserError, match="/no/such/folder: no such folder"):
        load_clip("/no/such/folder", Towers())
    with pytest.raises(UserError, match=f"{folder}: is a folder"):
        load_open_clip(checkpoint[1], folder, Towers())


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[]", "no attribute 'get'"),
        ('{"model_cfg": []}', "not all objects"),
        ('{"model_cfg": {"embed_dim": 24, "vision_cfg": 5}}', "not all objects"),
        ('{"model_cfg": {"embed_dim": 24, "text_cfg": null}}', "not all objects"),
        ('{"model_cfg": {"embed_dim": 24, "vision_cfg": {}, "text_cfg": {"heads": 5}}}', "divisible by num_heads"),
        ('{"model_cfg": {"embed_dim": 24, "vision_cfg": {"pixels": 1}, "text_cfg": {}}}', "pixels"),
    ],
)
def test_architectures_that_are_none(checkpoint: tuple[Path, str], tmp_path: Path, content: str, named: str) -> None:
    (tmp_path / "open_clip_config.json").write_text(content)
    with pytest.raises(UserError, match=named) as error:
        load_open_clip(f"local-dir:{tmp_path}", checkpoint[0], Towers())
    assert error.value.problem.startswith(f"architecture 'local-dir:{tmp_path}'")
