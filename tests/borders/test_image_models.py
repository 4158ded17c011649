"""Any damage to any part of a pipeline is one message that names the part; what is whole loads, in every variant."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from run_results import rows, train
from safetensors.torch import load_file, save_file

from diffusion_feedback.catalog import resolve
from diffusion_feedback.cli.main import main
from diffusion_feedback.errors import UserError
from diffusion_feedback.models.latent_diffusion import LatentDiffusion

ROOT = Path(__file__).resolve().parents[2]
LORA = {"tuning": "lora", "lora_rank": 2, "lora_targets": ["attention"]}
NETWORKS = {
    "sd": ["unet", "vae", "text_encoder"],
    "sdxl": ["unet", "vae", "text_encoder", "text_encoder_2"],
}
PARTS = [(family, part) for family, parts in NETWORKS.items() for part in parts]
TOKENIZERS = [("sd", "tokenizer"), ("sdxl", "tokenizer"), ("sdxl", "tokenizer_2")]


class Hostile:
    def __reduce__(self) -> Any:
        return print, ("code of a pickle has run",)


@pytest.fixture
def copied(tmp_path: Path, tiny_pipelines: dict[str, Path]) -> Callable[[str], Path]:
    """A copy of a tiny pipeline, to be damaged."""

    def copy(family: str) -> Path:
        return Path(shutil.copytree(tiny_pipelines[family], tmp_path / "model"))

    return copy


def weights(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; ``...`` removes one."""
    found = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))


def refusal(folder: Path, family: str) -> UserError:
    """The one message of loading ``folder``; it names the folder and says what to do."""
    with pytest.raises(UserError) as raised:
        resolve("family", family)(str(folder))
    assert str(folder) in str(raised.value)
    assert raised.value.remedy
    assert "weights_only" not in str(raised.value)
    return raised.value


# --- weights of every network -----------------------------------------------------------------------------------------


def _missing(file: Path) -> None:
    state = load_file(file)
    del state[sorted(state)[0]]
    save_file(state, file, {"format": "pt"})


def _left_over(file: Path) -> None:
    save_file({**load_file(file), "another.layer.weight": torch.zeros(3)}, file, {"format": "pt"})


def _shape(file: Path) -> None:
    state = load_file(file)
    key = next(key for key in sorted(state) if state[key].ndim == 2)
    save_file({**state, key: torch.zeros(3, 5)}, file, {"format": "pt"})


def _not_finite(file: Path) -> None:
    state = load_file(file)
    key = next(key for key in sorted(state) if state[key].is_floating_point())
    save_file({**state, key: state[key] * float("nan")}, file, {"format": "pt"})


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-50])


def _pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def _pickle(file: Path) -> None:
    name = "pytorch_model.bin" if "text" in file.parent.name else "diffusion_pytorch_model.bin"
    file.with_name(name).write_bytes(pickle.dumps({"a": Hostile()}))
    file.unlink()


def _torch_pickle(file: Path) -> None:
    name = "pytorch_model.bin" if "text" in file.parent.name else "diffusion_pytorch_model.bin"
    torch.save({"a": Hostile()}, file.with_name(name))
    file.unlink()


def _only_variant(file: Path) -> None:
    file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))


WEIGHTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (_missing, "missing"),
    "left over": (_left_over, "left over"),
    "of another shape": (_shape, "shape|could not be read"),
    "not finite": (_not_finite, "not finite"),
    "cut": (_cut, "could not be read"),
    "pointer": (_pointer, "pointer of git-LFS"),
    "empty": (lambda file: file.write_bytes(b""), "empty file"),
    "text": (lambda file: file.write_text("404: not found"), "could not be read"),
    "gone": (lambda file: file.unlink(), "holds no weights"),
    "pickle": (_pickle, "could not be read"),
    "torch pickle": (_torch_pickle, "is never loaded"),
    "another variant": (_only_variant, "variant fp16 alone"),
}


@pytest.mark.parametrize("damage", WEIGHTS)
@pytest.mark.parametrize(("family", "part"), PARTS)
def test_damaged_weights(
    family: str, part: str, damage: str, copied: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copied(family)
    change, message = WEIGHTS[damage]
    change(weights(folder / part))
    error = refusal(folder, family)
    assert any(word in str(error) for word in message.split("|")), str(error)
    assert "has run" not in capfd.readouterr().out


# --- configs ----------------------------------------------------------------------------------------------------------

CONFIGS: dict[str, Callable[[Path], Any]] = {
    "no JSON": lambda file: file.write_text("{"),
    "a list": lambda file: file.write_text("[1]"),
    "not text": lambda file: file.write_bytes(b"\xff\xfe\x00{"),
    "too deep": lambda file: file.write_text("[" * 100000),
    "gone": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", CONFIGS)
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_damaged_configs(part: str, damage: str, copied: Callable[[str], Path]) -> None:
    folder = copied("sd")
    CONFIGS[damage](folder / part / "config.json")
    refusal(folder, "sd")


@pytest.mark.parametrize("damage", CONFIGS)
def test_damaged_scheduler(damage: str, copied: Callable[[str], Path]) -> None:
    folder = copied("sd")
    CONFIGS[damage](folder / "scheduler" / "scheduler_config.json")
    refusal(folder, "sd")


@pytest.mark.parametrize("damage", CONFIGS)
def test_damaged_index(damage: str, copied: Callable[[str], Path]) -> None:
    folder = copied("sd")
    CONFIGS[damage](folder / "model_index.json")
    refusal(folder, "sd")


SETTINGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "wider network": ("unet", {"cross_attention_dim": 24}, "unet"),
    "more blocks": ("unet", {"layers_per_block": 2}, "unet"),
    "nine channels": ("unet", {"in_channels": 9}, "unet"),
    "two sizes": ("unet", {"sample_size": [8, 16]}, "sample_size"),
    "no size": ("unet", {"sample_size": None}, "sample_size"),
    "a word for a number": ("unet", {"sample_size": "8"}, "sample_size"),
    "unknown block": ("unet", {"down_block_types": ["NoSuchBlock2D", "CrossAttnDownBlock2D"]}, "NoSuchBlock2D"),
    "no scaling": ("vae", {"scaling_factor": 0}, "scaling_factor"),
    "scaling is a word": ("vae", {"scaling_factor": "x"}, "scaling_factor"),
    "more latents": ("vae", {"latent_channels": 8}, "vae"),
    "smaller vocabulary": ("text_encoder", {"vocab_size": 50}, "text_encoder"),
    "unknown activation": ("text_encoder", {"hidden_act": "nothing"}, "nothing"),
    "fewer layers": ("text_encoder", {"num_hidden_layers": 1}, "text_encoder"),
    "more layers": ("text_encoder", {"num_hidden_layers": 3}, "text_encoder"),
    "flow prediction": ("scheduler", {"prediction_type": "flow_prediction"}, "flow_prediction"),
    "unknown betas": ("scheduler", {"beta_schedule": "nothing"}, "nothing"),
    "betas beyond one": ("scheduler", {"beta_end": 7.0}, "alphas_cumprod"),
    "no timesteps": ("scheduler", {"num_train_timesteps": 0}, "scheduler"),
    "a flow scheduler": ("scheduler", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "model"),
    "no such scheduler": ("scheduler", {"_class_name": "NoSuchScheduler"}, "model"),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_do_not_fit(name: str, copied: Callable[[str], Path]) -> None:
    folder = copied("sd")
    part, changes, message = SETTINGS[name]
    edit(folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json"), **changes)
    if "_class_name" in changes and part == "scheduler":
        edit(folder / "model_index.json", scheduler=["diffusers", changes["_class_name"]])
    assert message in str(refusal(folder, "sd"))


INDEXES: dict[str, tuple[dict[str, Any], str]] = {
    "another pipeline": ({"_class_name": "FluxPipeline"}, "FluxPipeline"),
    "own code": ({"_class_name": ["pipeline", "Mine"]}, "Mine"),
    "own network": ({"unet": ["mine", "UNet2DConditionModel"]}, "code of its own"),
    "own scheduler": ({"scheduler": ["mine", "Mine"]}, "code of its own"),
    "another class": ({"unet": ["diffusers", "AutoencoderKL"]}, "AutoencoderKL"),
    "no text encoder": ({"text_encoder": [None, None]}, "text_encoder"),
    "no unet": ({"unet": ...}, "unet"),
    "no tokenizer": ({"tokenizer": [None, None]}, "tokenizer"),
    "no scheduler": ({"scheduler": ...}, "scheduler"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_pipelines_of_other_parts(name: str, copied: Callable[[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    folder = copied("sd")
    changes, message = INDEXES[name]
    edit(folder / "model_index.json", **changes)
    for place in (folder, folder / "unet", folder / "scheduler"):
        for module in ("mine.py", "pipeline.py"):
            (place / module).write_text("print('code of a stranger has run')\nclass Mine: pass\n")
    assert message in str(refusal(folder, "sd"))
    assert "has run" not in capfd.readouterr().out


# --- tokenizers -------------------------------------------------------------------------------------------------------


def _remove(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink(missing_ok=True) for name in names] and None


def _small_vocabulary(folder: Path) -> None:
    file = folder / "tokenizer.json"
    found = json.loads(file.read_text())
    kept = dict(list(found["model"]["vocab"].items())[:20])
    found["model"]["vocab"] = kept
    found["model"]["merges"] = []
    file.write_text(json.dumps(found))


def _longer(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", model_max_length=500)


TOKENIZER: dict[str, Callable[[Path], Any]] = {
    "no vocabulary": _remove("tokenizer.json", "vocab.json", "merges.txt"),
    "nothing": lambda folder: shutil.rmtree(folder),
    "no settings": _remove("tokenizer_config.json"),
    "cut vocabulary": lambda folder: (folder / "tokenizer.json").write_bytes(
        (folder / "tokenizer.json").read_bytes()[:500]
    ),
    "small vocabulary": _small_vocabulary,
    "longer texts": _longer,
}


@pytest.mark.parametrize("damage", TOKENIZER)
@pytest.mark.parametrize(("family", "part"), TOKENIZERS)
def test_tokenizers(family: str, part: str, damage: str, copied: Callable[[str], Path]) -> None:
    """A library that finds no vocabulary makes one up of two tokens, and every prompt becomes the same."""
    folder = copied(family)
    TOKENIZER[damage](folder / part)
    refusal(folder, family)


# --- what is whole loads ----------------------------------------------------------------------------------------------


def _predict(denoiser: LatentDiffusion) -> torch.Tensor:
    given = denoiser.conditioning(denoiser.encode_prompts(["a cat"]), torch.full((1, 6), 16.0))
    with torch.no_grad():
        return denoiser.predict(denoiser.network, torch.ones(1, 4, 8, 8), torch.tensor([500]), given)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("form", ["fp16 alone", "fp16 beside", "fp16 of one part", "bin"])
def test_every_variant(form: str, family: str, copied: Callable[[str], Path]) -> None:
    folder = copied(family)
    load = resolve("family", family)
    expected = _predict(load(str(folder)))
    for part in NETWORKS[family]:
        file = weights(folder / part)
        if form == "bin":
            _to_bin(file)
        elif form != "fp16 of one part" or part == "unet":
            half = {key: value.half() if value.is_floating_point() else value for key, value in load_file(file).items()}
            save_file(half, file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")), {"format": "pt"})
            if form == "fp16 alone":
                file.unlink()
    found = _predict(load(str(folder), variant=None if form == "bin" else "fp16"))
    torch.testing.assert_close(found, expected, atol=1e-5 if form == "bin" else 5e-3, rtol=1e-2)
    if form == "fp16 beside":
        assert torch.equal(_predict(load(str(folder))), expected)
        with pytest.raises(UserError, match=r"no weights of variant 'bf16'; it has the variants fp16"):
            load(str(folder), variant="bf16")
    if form == "bin":
        with pytest.raises(UserError, match="no weights of variant 'fp16'; it has no variants"):
            load(str(folder), variant="fp16")


def _to_bin(file: Path) -> None:
    name = "pytorch_model.bin" if "text" in file.parent.name else "diffusion_pytorch_model.bin"
    torch.save(load_file(file), file.with_name(name))
    file.unlink()


def test_what_a_path_is(tmp_path: Path, tiny_pipelines: dict[str, Path]) -> None:
    load = resolve("family", "sd")
    single = tmp_path / "dreamish.safetensors"
    save_file({"model.diffusion_model.x": torch.zeros(2)}, single)
    with pytest.raises(UserError, match="no whole model: it holds no VAE and no text encoder"):
        load(str(single))
    with pytest.raises(UserError, match=r"a folder with one file[\s\S]*give the file: .*dreamish"):
        load(str(tmp_path))
    with pytest.raises(UserError, match=r"holds no model_index\.json; .*sd is one"):
        load(str(tiny_pipelines["sd"].parent))
    with pytest.raises(UserError, match="no such file or folder"):
        load("tests/absent")  # beside a folder of ours: never asked of the hub
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("model: {pretrained_model_name_or_path: runs/base}")
    with pytest.raises(UserError, match=r"LoRA run[\s\S]*its base is 'runs/base'[\s\S]*`lora`"):
        load(str(tmp_path / "run"))


def test_the_command_ends_in_a_message(copied: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied("sd")
    _cut(weights(folder / "text_encoder"))
    (folder.parent / "p.txt").write_text("a cat\n")
    flags = ["--prompts", str(folder.parent / "p.txt"), "--output_dir", str(folder.parent / "out")]
    assert main(["generate", str(folder), *flags]) == 2
    assert "could not be read" in capsys.readouterr().err


# --- two truths of nothing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [True, False])
def test_the_empty_prompt_is_what_guidance_starts_from(zeros: bool, copied: Callable[[str], Path]) -> None:
    """Captions are dropped to the empty prompt; SDXL's sampling knows zeros there, not the encoding of ''."""
    folder = copied("sdxl")
    edit(folder / "model_index.json", force_zeros_for_empty_prompt=zeros)
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        _, nothing, _, pooled = pipeline.encode_prompt("a cat", device="cpu", do_classifier_free_guidance=True)
        a_cat = pipeline.encode_prompt("a cat", device="cpu", do_classifier_free_guidance=False)[0]
    denoiser = resolve("family", "sdxl")(str(folder))
    found = denoiser.encode_prompts(["", "a cat", ""])
    for row in (0, 2):
        torch.testing.assert_close(found["encoder_hidden_states"][row], nothing[0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found["text_embeds"][row], pooled[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found["encoder_hidden_states"][1], a_cat[0], atol=1e-6, rtol=1e-5)
    assert bool((found["text_embeds"][0] == 0).all()) is zeros
    other = Path(shutil.copytree(folder, folder.with_name("other")))
    edit(other / "model_index.json", force_zeros_for_empty_prompt=not zeros)
    assert resolve("family", "sdxl")(str(other)).text_encoder_id() != denoiser.text_encoder_id()


def test_the_empty_prompt_of_sd(tiny_pipelines: dict[str, Path]) -> None:
    denoiser = resolve("family", "sd")(str(tiny_pipelines["sd"]))
    with torch.no_grad():
        _, nothing = denoiser.pipeline.encode_prompt("a cat", "cpu", 1, do_classifier_free_guidance=True)
    torch.testing.assert_close(denoiser.encode_prompts([""])["encoder_hidden_states"], nothing, atol=1e-6, rtol=1e-5)


# --- what is drawn ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "p.txt"
    path.write_text("a cat\n")
    return path


def generate(model: Path, prompts: Path, out: Path, *flags: str) -> int:
    steps = [] if "--num_inference_steps" in flags else ["--num_inference_steps", "1"]
    return main(["generate", str(model), "--prompts", str(prompts), "--output_dir", str(out), *steps, *flags])


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        (["--height", "24"], (16, 24)),
        (["--width", "24"], (24, 16)),
        (["--height", "24", "--width", "8"], (8, 24)),
        ([], (16, 16)),
    ],
)
def test_one_side_alone_is_honoured(
    flags: list[str], size: tuple[int, int], tiny_pipelines: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    assert generate(tiny_pipelines["sd"], prompts, tmp_path / "out", *flags) == 0
    with Image.open(tmp_path / "out" / "images" / "00000-s0.png") as image:
        assert image.size == size
    settings = json.loads((tmp_path / "out" / "metadata.jsonl").read_text())["settings"]
    if flags:
        assert (settings["width"], settings["height"]) == size
    else:
        assert "width" not in settings


@pytest.mark.parametrize(
    "flags",
    [
        ["--guidance_scale", "inf"],
        ["--guidance_scale=-inf"],
        ["--guidance_scale", "nan"],
        ["--guidance_scale", "1e30"],
        ["--guidance_scale", "-1"],
        ["--num_inference_steps", "0"],
        ["--num_inference_steps", "1001"],
        ["--height", "0"],
        ["--height", "12"],
        ["--width", "-8"],
        ["--width", "80000000"],
    ],
)
def test_numbers_that_mean_nothing(
    flags: list[str],
    tiny_pipelines: dict[str, Path],
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert generate(tiny_pipelines["sd"], prompts, tmp_path / "out", *flags) == 2
    said = capsys.readouterr().err
    assert flags[0].split("=")[0] in said
    assert "allowed" in said
    assert not list((tmp_path / "out").rglob("*.png"))


def test_images_that_are_not_finite_are_never_written(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    denoiser = resolve("family", "sd")(str(tiny_pipelines["sd"]))
    with torch.no_grad():
        denoiser.network.conv_out.bias.fill_(float("nan"))
    with pytest.raises(
        UserError, match="2 of 2 images hold values that are not finite, the first is of 'a cat' under seed 5"
    ):
        denoiser.sample(denoiser.network, ["a cat", "a dog"], [5, 6], num_inference_steps=1)


@pytest.mark.parametrize("model", ["run", "checkpoint"])
def test_a_lora_run_is_a_model(
    model: str,
    make_recipe: Callable[..., Path],
    tiny_pipelines: dict[str, Path],
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its recipe knows the base: the pictures are those of base and --lora, and not the base's."""
    run = train(make_recipe(model=LORA, training={"max_train_steps": 2, "learning_rate": 0.1}))
    given = run if model == "run" else run / "checkpoints" / "step-000002"
    assert generate(given, prompts, tmp_path / "own") == 0
    assert f"a LoRA run on {tiny_pipelines['sd']}" in capsys.readouterr().out
    assert generate(tiny_pipelines["sd"], prompts, tmp_path / "pair", "--lora", str(run)) == 0
    assert generate(tiny_pipelines["sd"], prompts, tmp_path / "base") == 0
    own, pair, base = ((tmp_path / name / "images" / "00000-s0.png").read_bytes() for name in ("own", "pair", "base"))
    assert own == pair != base
    capsys.readouterr()
    assert generate(given, prompts, tmp_path / "x", "--lora", str(run)) == 2
    assert "is itself a LoRA run" in capsys.readouterr().err
    assert generate(given, prompts, tmp_path / "x", "--family", "sdxl") == 2
    assert "--family: got 'sdxl'" in capsys.readouterr().err


# --- what the model is taken to predict -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "objective"),
    [
        ("epsilon", {"name": "dpo", "beta": 500}),
        ("v_prediction", {"name": "dpo", "beta": 500}),
        ("v_prediction", {"name": "sft"}),
    ],
)
def test_a_wrong_prediction_type_is_noticed(
    prediction: str,
    objective: dict[str, Any],
    make_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The embedded model predicts noise: declared as velocity it trains as calmly, to no good."""
    base = Path(shutil.copytree(ROOT / "assets" / "shapes-sd", tmp_path / "base"))
    edit(base / "scheduler" / "scheduler_config.json", prediction_type=prediction)
    recipe = make_recipe(
        model={**LORA, "pretrained_model_name_or_path": str(base)},
        objective=objective,
        data={"validation": None, "max_train_pairs": 4},
        training={"max_train_steps": 1, "train_batch_size": 4},
        validation={"num_prompts": 0},
    )
    assert main(["train", "--config", str(recipe), "--dry_run"]) == 0
    assert f"prediction type  {prediction} " in capsys.readouterr().out
    run = train(recipe)
    said = capsys.readouterr().out
    error = rows(run, "gate/error")[0]["gate/error"]
    if prediction == "epsilon":
        assert error < 0.5  # 0.31: these pictures are not those that it was trained on
        assert "warning" not in said
    else:
        assert error > 0.5
        assert "the scheduler says prediction_type v_prediction" in said
        assert "at epsilon it is 0.3" in said
