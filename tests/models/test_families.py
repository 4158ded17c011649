"""Contract of every model family, on tiny real pipelines: encoders, prediction, adapters, reference, saving, sampling."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion_feedback.catalog import resolve
from diffusion_feedback.catalog.families import FAMILIES
from diffusion_feedback.errors import UserError
from diffusion_feedback.models import lora
from diffusion_feedback.models.latent_diffusion import LatentDiffusion
from diffusion_feedback.models.reference import AdaptersOff, FrozenModel
from diffusion_feedback.types.models import AdapterSettings

SAMPLING = {"num_inference_steps": 3, "guidance_scale": 3.0}
TARGETS = ["attention", "feed_forward", "convolutions"]


@pytest.fixture(params=[name for name, row in FAMILIES.items() if not row.reads_text and "pairwise" in row.kinds])
def loaded(request: pytest.FixtureRequest, tiny_pipelines: dict[str, Path]) -> tuple[LatentDiffusion, Path]:
    folder = tiny_pipelines[request.param]
    return resolve("family", request.param)(str(folder)), folder


def inputs(denoiser: LatentDiffusion) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    latents = denoiser.encode_images(torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1)
    text = denoiser.encode_prompts(["a cat", "two dogs on a hill"])
    return latents, torch.tensor([3, 500]), denoiser.conditioning(text, torch.full((2, 6), 16.0))


def disturb(denoiser: LatentDiffusion) -> None:
    generator = torch.Generator().manual_seed(4)
    for _, parameter in lora.trainable(denoiser.network):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def as_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_latents_are_the_scaled_posterior_mode(loaded: tuple[LatentDiffusion, Path]) -> None:
    denoiser, _ = loaded
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    vae = denoiser.pipeline.vae
    expected = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(denoiser.encode_images(pixels), expected)


def test_prompt_encoding_does_not_depend_on_the_batch(loaded: tuple[LatentDiffusion, Path]) -> None:
    denoiser, _ = loaded
    both = denoiser.encode_prompts(["a cat", "two dogs"])
    alone = denoiser.encode_prompts(["two dogs"])
    for name, value in both.items():
        torch.testing.assert_close(value[1:], alone[name], atol=1e-5, rtol=1e-5)


def test_adapters_start_as_the_base_and_switch_off_bit_for_bit(loaded: tuple[LatentDiffusion, Path]) -> None:
    denoiser, _ = loaded
    noisy, timesteps, conditioning = inputs(denoiser)
    base = denoiser.predict(denoiser.network, noisy, timesteps, conditioning)
    lora.add(denoiser.network, AdapterSettings(rank=4, alpha=8, targets=TARGETS, seed=0))
    assert torch.equal(denoiser.predict(denoiser.network, noisy, timesteps, conditioning), base)
    disturb(denoiser)
    assert not torch.allclose(denoiser.predict(denoiser.network, noisy, timesteps, conditioning), base, atol=1e-2)
    with AdaptersOff()(denoiser.network) as reference:
        assert torch.equal(denoiser.predict(reference, noisy, timesteps, conditioning), base)
    assert not torch.allclose(denoiser.predict(denoiser.network, noisy, timesteps, conditioning), base, atol=1e-2)
    assert all(parameter.requires_grad for name, parameter in denoiser.network.named_parameters() if "lora_" in name)


def test_frozen_copy_does_not_follow_the_policy(loaded: tuple[LatentDiffusion, Path]) -> None:
    denoiser, _ = loaded
    noisy, timesteps, conditioning = inputs(denoiser)
    base = denoiser.predict(denoiser.network, noisy, timesteps, conditioning)
    reference = FrozenModel.copy_of(denoiser.network)
    denoiser.network.requires_grad_(True)
    disturb(denoiser)
    with reference(denoiser.network) as frozen:
        assert torch.equal(denoiser.predict(frozen, noisy, timesteps, conditioning), base)
        assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_adapter_start_is_a_function_of_the_seed(tiny_pipelines: dict[str, Path]) -> None:
    def start(seed: int) -> list[Tensor]:
        denoiser = resolve("family", "sd")(str(tiny_pipelines["sd"]))
        torch.rand(seed + 1)  # the global generator must not matter
        lora.add(denoiser.network, AdapterSettings(rank=2, alpha=2, targets=["attention"], seed=seed))
        return [parameter for _, parameter in lora.trainable(denoiser.network)]

    first, again, other = start(5), start(5), start(6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_lora_loads_with_plain_diffusers(loaded: tuple[LatentDiffusion, Path], tmp_path: Path) -> None:
    denoiser, folder = loaded
    before = denoiser.sample(denoiser.network, ["a cat"], [3], **SAMPLING)[0]
    lora.add(denoiser.network, AdapterSettings(rank=4, alpha=8, targets=TARGETS, seed=0))
    disturb(denoiser)
    tuned = denoiser.sample(denoiser.network, ["a cat"], [3], **SAMPLING)[0]
    denoiser.save(denoiser.network, tmp_path)
    assert (tmp_path / "pytorch_lora_weights.safetensors").is_file()
    pipeline = DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.load_lora_weights(tmp_path)
    generator = [torch.Generator().manual_seed(3)]
    plain = pipeline(prompt=["a cat"], generator=generator, **SAMPLING).images[0]
    assert np.array_equal(as_array(plain), as_array(tuned))
    assert not np.array_equal(as_array(plain), as_array(before))


def test_full_model_loads_with_plain_diffusers(loaded: tuple[LatentDiffusion, Path], tmp_path: Path) -> None:
    denoiser, _ = loaded
    denoiser.network.requires_grad_(True)
    disturb(denoiser)
    tuned = denoiser.sample(denoiser.network, ["a cat"], [3], **SAMPLING)[0]
    denoiser.save(denoiser.network, tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    plain = pipeline(prompt=["a cat"], generator=[torch.Generator().manual_seed(3)], **SAMPLING).images[0]
    assert np.array_equal(as_array(plain), as_array(tuned))


def test_samples_do_not_depend_on_the_batch(loaded: tuple[LatentDiffusion, Path]) -> None:
    denoiser, _ = loaded
    prompts, seeds = ["a cat", "a dog", "a tree"], [3, 4, 5]
    together = denoiser.sample(denoiser.network, prompts, seeds, **SAMPLING)
    alone = [denoiser.sample(denoiser.network, [p], [s], **SAMPLING)[0] for p, s in zip(prompts, seeds, strict=True)]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(as_array(one) - as_array(other)).max() <= 1


def test_sdxl_is_told_the_sizes(tiny_pipelines: dict[str, Path]) -> None:
    denoiser = resolve("family", "sdxl")(str(tiny_pipelines["sdxl"]))
    noisy, timesteps, conditioning = inputs(denoiser)
    base = denoiser.predict(denoiser.network, noisy, timesteps, conditioning)
    moved = {**conditioning, "time_ids": torch.full((2, 6), 900.0)}
    assert not torch.allclose(denoiser.predict(denoiser.network, noisy, timesteps, moved), base)


def test_truncated_prompts_are_counted(loaded: tuple[LatentDiffusion, Path]) -> None:
    denoiser, _ = loaded
    # The tiny tokenizer spells letter by letter: 75 letters and two marks make 77 tokens.
    assert denoiser.count_truncated(["x" * 75, "x" * 76, "short"]) == 1
    assert denoiser.count_truncated([]) == 0


def test_model_hash_sees_weights_and_adapters(loaded: tuple[LatentDiffusion, Path]) -> None:
    denoiser, _ = loaded
    first = denoiser.model_hash()
    assert denoiser.model_hash() == first
    lora.add(denoiser.network, AdapterSettings(rank=2, alpha=2, targets=["attention"], seed=0))
    adapted = denoiser.model_hash()
    disturb(denoiser)
    assert len({first, adapted, denoiser.model_hash()}) == 3


def test_hashes_see_configs(tmp_path: Path, tiny_pipelines: dict[str, Path]) -> None:
    """The same weights under another activation are another encoder: its embeddings must not come from the cache."""
    folder = tmp_path / "other"
    shutil.copytree(tiny_pipelines["sd"], folder)
    file = folder / "text_encoder" / "config.json"
    file.write_text(file.read_text().replace("quick_gelu", "gelu"))
    load = resolve("family", "sd")
    first, other = load(str(tiny_pipelines["sd"])), load(str(folder))
    assert first.text_encoder_id() != other.text_encoder_id()
    assert first.model_hash() != other.model_hash()
    assert first.image_encoder_id() == other.image_encoder_id()


def test_wrong_paths_and_kinds_are_named(tmp_path: Path, tiny_pipelines: dict[str, Path]) -> None:
    load = resolve("family", "sd")
    with pytest.raises(UserError, match="no such file or folder"):
        load(str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"holds no model_index\.json"):
        load(str(tmp_path))
    with pytest.raises(UserError, match="StableDiffusionXLPipeline"):
        load(str(tiny_pipelines["sdxl"]))
    with pytest.raises(UserError, match="no layer of the network ends in 'to_nowhere'"):
        lora.add(
            load(str(tiny_pipelines["sd"])).network, AdapterSettings(rank=2, alpha=2, targets=["to_nowhere"], seed=0)
        )
    with pytest.raises(UserError, match="no such file or folder"):
        load(str(tiny_pipelines["sd"])).load_lora(str(tmp_path / "absent"))


def test_weights_that_are_not_finite_are_named(tmp_path: Path, tiny_pipelines: dict[str, Path]) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_pipelines["sd"], folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.bias"][0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"unet: weight 'conv_in\.bias' holds 1 values that are not finite"):
        resolve("family", "sd")(str(folder))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_base_keeps_float32_adapters(tiny_pipelines: dict[str, Path], dtype: torch.dtype) -> None:
    denoiser = resolve("family", "sd")(str(tiny_pipelines["sd"]), dtype=dtype)
    lora.add(denoiser.network, AdapterSettings(rank=2, alpha=2, targets=["attention"], seed=0))
    assert {p.dtype for _, p in lora.trainable(denoiser.network)} == {torch.float32}
    assert denoiser.network.conv_in.weight.dtype == dtype
    assert denoiser.pipeline.vae.dtype == torch.float32
