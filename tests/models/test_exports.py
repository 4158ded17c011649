"""Forms of other tools: their names by facts, their strength by a merge by hand, and their files through diffusers itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import saved_adapters
import tiny_models
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import PeftModel, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusion_feedback.catalog import resolve
from diffusion_feedback.errors import UserError
from diffusion_feedback.models import lora
from diffusion_feedback.models.exports import adapters, low_rank, whole
from diffusion_feedback.models.exports.original_names import unet_names, vae_names
from diffusion_feedback.models.exports.probe import image_outputs, relative_error
from diffusion_feedback.models.latent_diffusion import LatentDiffusion
from diffusion_feedback.types.models import AdapterSettings

FORMS = [adapters.diffusers_form, adapters.peft_form, adapters.kohya_form, adapters.comfyui_form]
FLOAT = torch.float32
TEXT = ("self_attn.q_proj", "mlp.fc1")


@pytest.fixture(scope="module")
def bases(tiny_pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of SDXL one whose text encoders have widths of their own, by which diffusers tells them apart in a single file."""
    wide = tiny_models.save_sdxl(tmp_path_factory.mktemp("bases") / "sdxl", second_width=24)
    return {"sd": tiny_pipelines["sd"], "sdxl": wide}


@pytest.fixture(scope="module")
def runs(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {family: saved_adapters.save_image_lora(base, family, folder / family) for family, base in bases.items()}


@pytest.fixture
def tuned(bases: dict[str, Path], runs: dict[str, Path]) -> Callable[[str], LatentDiffusion]:
    """The result of the run of a family."""

    def load(family: str) -> LatentDiffusion:
        denoiser: LatentDiffusion = resolve("family", family)(str(bases[family]))
        denoiser.load_lora(str(runs[family]))
        return denoiser

    return load


def keys_of(folder: Path) -> set[str]:
    (file,) = folder.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        return set(opened.keys())


# --- names: what the makers of these files call their layers ------------------------------------------------------------

# Stable Diffusion 1.5's UNet has 12 input blocks, 3 middle ones and 12 output blocks; XL's has 9, 3 and 9.
SD15 = {
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SDXL = {
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
GOLDEN = [
    (SD15, "conv_in.weight", "input_blocks.0.0.weight"),
    (SD15, "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q", "input_blocks.2.1.transformer_blocks.0.attn1.to_q"),
    (SD15, "down_blocks.0.downsamplers.0.conv.weight", "input_blocks.3.0.op.weight"),
    (SD15, "down_blocks.3.resnets.1.conv1.bias", "input_blocks.11.0.in_layers.2.bias"),
    (SD15, "mid_block.resnets.1.time_emb_proj.weight", "middle_block.2.emb_layers.1.weight"),
    (SD15, "mid_block.attentions.0.proj_in.weight", "middle_block.1.proj_in.weight"),
    (SD15, "up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.1.conv.weight"),
    (SD15, "up_blocks.1.upsamplers.0.conv.weight", "output_blocks.5.2.conv.weight"),
    # By this weight diffusers knows a file of Stable Diffusion 1.
    (SD15, "up_blocks.3.resnets.2.conv_shortcut.weight", "output_blocks.11.0.skip_connection.weight"),
    (SD15, "conv_norm_out.weight", "out.0.weight"),
    (SDXL, "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_out.0", "input_blocks.4.1.transformer_blocks.1.attn2.to_out.0"),
    (SDXL, "down_blocks.2.attentions.1.proj_out", "input_blocks.8.1.proj_out"),
    (SDXL, "up_blocks.0.attentions.2.transformer_blocks.9.ff.net.0.proj", "output_blocks.2.1.transformer_blocks.9.ff.net.0.proj"),
    (SDXL, "up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
    (SDXL, "up_blocks.2.resnets.0.norm2.weight", "output_blocks.6.0.out_layers.0.weight"),
    (SDXL, "add_embedding.linear_2.bias", "label_emb.0.2.bias"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "ours", "original"), GOLDEN)
def test_names_of_the_original(config: dict[str, object], ours: str, original: str) -> None:
    assert unet_names([ours], config) == {ours: original}


def test_names_of_the_original_vae() -> None:
    names = {
        "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": "encoder.down.1.block.0.nin_shortcut.weight",
        "encoder.down_blocks.0.downsamplers.0.conv.bias": "encoder.down.0.downsample.conv.bias",
        "encoder.mid_block.attentions.0.to_out.0.weight": "encoder.mid.attn_1.proj_out.weight",
        "decoder.mid_block.attentions.0.group_norm.bias": "decoder.mid.attn_1.norm.bias",
        "decoder.mid_block.resnets.1.norm1.weight": "decoder.mid.block_2.norm1.weight",
        "decoder.up_blocks.0.upsamplers.0.conv.weight": "decoder.up.3.upsample.conv.weight",
        "decoder.up_blocks.3.resnets.2.conv1.weight": "decoder.up.0.block.2.conv1.weight",
        "decoder.conv_norm_out.weight": "decoder.norm_out.weight",
        "post_quant_conv.weight": "post_quant_conv.weight",
    }
    assert vae_names(names, {"up_block_types": ["UpDecoderBlock2D"] * 4}) == names


def test_a_name_without_a_place_is_refused() -> None:
    with pytest.raises(UserError, match="no name in the original format, the first is 'encoder_hid_proj.weight'"):
        unet_names(["encoder_hid_proj.weight"], SD15)
    with pytest.raises(UserError, match="layers_per_block"):
        unet_names([], SD15 | {"layers_per_block": [2, 2]})


@pytest.mark.parametrize(("family", "stem"), [
    ("sd", "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"),
    ("sdxl", "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q"),
])  # fmt: skip
def test_names_of_kohya(family: str, stem: str, tuned: Callable[[str], LatentDiffusion], tmp_path: Path) -> None:
    """diffusers' for Stable Diffusion, the original's for XL, as sd-scripts has them; rank and alpha in the metadata."""
    adapters.kohya_form(tuned(family), "x").write(tmp_path, FLOAT)
    keys = keys_of(tmp_path)
    assert {f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"} <= keys
    assert all(key.rpartition(".lora_")[0] or key.endswith(".alpha") for key in keys)
    with safe_open(tmp_path / "x.safetensors", "pt") as opened:
        assert (opened.metadata()["ss_network_dim"], opened.metadata()["ss_network_alpha"]) == ("4", "4")
        assert opened.get_tensor(f"{stem}.alpha") == 4.0


@pytest.mark.parametrize(("family", "part", "layer", "stem"), [
    ("sd", "text_encoder", "self_attn.q_proj", "lora_te_text_model_encoder_layers_0_self_attn_q_proj"),
    ("sdxl", "text_encoder", "self_attn.out_proj", "lora_te1_text_model_encoder_layers_0_self_attn_out_proj"),
    ("sdxl", "text_encoder_2", "mlp.fc1", "lora_te2_text_model_encoder_layers_0_mlp_fc1"),
])  # fmt: skip
def test_names_of_text_encoders_in_comfyui(
    family: str, part: str, layer: str, stem: str, tuned: Callable[[str], LatentDiffusion]
) -> None:
    """As they stand in its table of keys, for one text encoder and for two."""
    denoiser = tuned(family)
    (name,) = [
        name for name, _ in getattr(denoiser.pipeline, part).named_modules() if name.endswith(f"layers.0.{layer}")
    ]
    assert list(adapters.kohya_names(denoiser, part, [name]).values()) == [stem]


def test_comfyui_patches_the_original_weights(
    bases: dict[str, Path], tuned: Callable[[str], LatentDiffusion], tmp_path: Path
) -> None:
    """Its rule for XL, from the keys of a checkpoint alone, patched by hand; diffusers then reads the checkpoint."""
    denoiser = tuned("sdxl")
    truth = image_outputs(denoiser)
    adapters.comfyui_form(denoiser, "x").write(tmp_path, FLOAT)
    base: LatentDiffusion = resolve("family", "sdxl")(str(bases["sdxl"]))
    place = tmp_path / "base"
    place.mkdir()
    whole.single_file_form(base, "x").write(place, FLOAT)
    patches, weights = load_file(tmp_path / "x.safetensors"), load_file(place / "x.safetensors")
    for key in [key for key in weights if key.startswith("model.diffusion_model.") and key.endswith(".weight")]:
        stem = "lora_unet_" + key.removeprefix("model.diffusion_model.").removesuffix(".weight").replace(".", "_")
        if f"{stem}.alpha" in patches:
            up, down, alpha = (
                patches.pop(f"{stem}.{each}") for each in ("lora_up.weight", "lora_down.weight", "alpha")
            )
            change = up.flatten(1) @ down.flatten(1) * alpha / len(down)
            weights[key] += change.reshape(weights[key].shape)
    assert not patches
    save_file(weights, place / "x.safetensors")
    pipeline = StableDiffusionXLPipeline.from_single_file(
        str(place / "x.safetensors"), config=str(place / "config"), dtype=FLOAT, local_files_only=True
    )
    own = denoiser.family.from_pipeline(pipeline, dtype=FLOAT, device="cpu")
    assert relative_error(image_outputs(own), truth) < 1e-5


# --- strength: what every reader applies --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("form", [*FORMS, whole.merged_form, whole.single_file_form])
def test_every_form_is_read_back_as_it_was(
    form: Callable[[LatentDiffusion, str], adapters.AdapterForm],
    family: str,
    tuned: Callable[[str], LatentDiffusion],
    tmp_path: Path,
) -> None:
    written = form(tuned(family), "x")
    written.write(tmp_path, FLOAT)
    assert written.error(tmp_path) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_a_lost_strength_is_seen(
    form: Callable[[LatentDiffusion, str], adapters.AdapterForm],
    tuned: Callable[[str], LatentDiffusion],
    tmp_path: Path,
) -> None:
    """The comparison fails where one layer of a file has another strength: it is no formality."""
    written = form(tuned("sd"), "x")
    written.write(tmp_path, FLOAT)
    (file,) = tmp_path.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    state = load_file(file)
    first = min(key for key in state if key.endswith(("lora_B.weight", "lora_up.weight")))
    save_file(state | {first: state[first] * 1.5}, file, metadata=header)
    assert written.error(tmp_path) > 1e-4


def test_ours_to_kohya_to_ours_are_identical_tensors(
    bases: dict[str, Path], runs: dict[str, Path], tuned: Callable[[str], LatentDiffusion], tmp_path: Path
) -> None:
    for family in bases:
        adapters.kohya_form(tuned(family), "x").write(tmp_path, FLOAT)
        again: LatentDiffusion = resolve("family", family)(str(bases[family]))
        again.load_lora(str(tmp_path / "x.safetensors"))
        (tmp_path / family).mkdir()
        adapters.diffusers_form(again, "x").write(tmp_path / family, FLOAT)
        before, after = (
            load_file(folder / "pytorch_lora_weights.safetensors") for folder in (runs[family], tmp_path / family)
        )
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("form", FORMS)
def test_text_encoders_take_their_part(
    form: Callable[[LatentDiffusion, str], adapters.AdapterForm], bases: dict[str, Path], tmp_path: Path
) -> None:
    denoiser: LatentDiffusion = resolve("family", "sdxl")(str(bases["sdxl"]))
    plain = image_outputs(denoiser)
    for number, name in enumerate(("text_encoder", "text_encoder_2", "unet")):
        settings = AdapterSettings(rank=2, alpha=6.0, targets=TEXT if number < 2 else ["attention"], seed=number)
        lora.add(getattr(denoiser.pipeline, name), settings)
        saved_adapters.draw(getattr(denoiser.pipeline, name))
    written = form(denoiser, "x")
    assert relative_error(written.truth, plain) > 1e-3
    written.write(tmp_path, FLOAT)
    assert written.error(tmp_path) < 1e-5
    assert relative_error(image_outputs(denoiser), plain) == 0  # the base is bare again
    if form is adapters.kohya_form:
        keys = keys_of(tmp_path)
        assert {f"lora_te{n}_text_model_encoder_layers_0_self_attn_q_proj.alpha" for n in (1, 2)} <= keys


def test_ranks_and_alphas_of_each_layer(bases: dict[str, Path], tmp_path: Path) -> None:
    drawn = torch.Generator().manual_seed(0)
    layers = {
        f"down_blocks.1.attentions.0.transformer_blocks.0.attn1.{name}": low_rank.LowRank(
            torch.randn(rank, 16, generator=drawn), torch.randn(16, rank, generator=drawn), alpha
        )
        for name, rank, alpha in (("to_q", 2, 4.0), ("to_k", 3, 1.5), ("to_v", 2, -2.0))
    }
    for form in FORMS:
        denoiser: LatentDiffusion = resolve("family", "sd")(str(bases["sd"]))
        with low_rank.merged_by_hand(denoiser.pipeline, {"unet": layers}):
            truth = image_outputs(denoiser)
        state = {
            f"{name}.lora_{end}.weight": value
            for name, layer in layers.items()
            for end, value in (("A", layer.down), ("B", layer.up))
        }
        inject_adapter_in_model(low_rank.config_of(layers), denoiser.network, state_dict=state)
        set_peft_model_state_dict(denoiser.network, state)
        written = form(denoiser, "x")
        assert relative_error(written.truth, truth) < 1e-5
        place = tmp_path / form.__name__
        place.mkdir()
        written.write(place, FLOAT)
        assert written.error(place) < 1e-5


# --- through the libraries themselves -----------------------------------------------------------------------------------


def test_plain_libraries_read_the_files(
    bases: dict[str, Path], tuned: Callable[[str], LatentDiffusion], tmp_path: Path
) -> None:
    """diffusers' own reader takes the LoRA and kohya's file, peft its folder, ``from_single_file`` the checkpoint."""
    for family, pipeline_class in (("sd", StableDiffusionPipeline), ("sdxl", StableDiffusionXLPipeline)):
        denoiser = tuned(family)
        truth = image_outputs(denoiser)
        places = [tmp_path / f"{family}-{name}" for name in ("diffusers", "peft", "kohya", "file")]
        for place in places:
            place.mkdir()
        for form, place in zip(FORMS[:3], places, strict=False):
            form(tuned(family), "x").write(place, FLOAT)
        whole.single_file_form(denoiser, "x").write(places[3], FLOAT)
        for place in places[:3]:
            pipeline = DiffusionPipeline.from_pretrained(bases[family], dtype=FLOAT)
            if place.name.endswith("peft"):
                PeftModel.from_pretrained(pipeline.unet, place)
            else:
                pipeline.load_lora_weights(place, weight_name=min(file.name for file in place.iterdir()))
            own = denoiser.family.from_pipeline(pipeline, dtype=FLOAT, device="cpu")
            assert relative_error(image_outputs(own), truth) < 1e-5, place
        file, config = str(places[3] / "x.safetensors"), str(places[3] / "config")
        pipeline = pipeline_class.from_single_file(file, config=config, dtype=FLOAT, local_files_only=True)
        own = denoiser.family.from_pipeline(pipeline, dtype=FLOAT, device="cpu")
        assert relative_error(image_outputs(own), truth) < 1e-5
