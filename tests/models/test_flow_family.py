"""A rectified flow over a transformer is carried by the class of all families: nothing there knows a UNet or DDPM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from tiny_models import sd3_pipeline
from torch import Tensor, nn

from diffusion_feedback.models import lora
from diffusion_feedback.models.latent_diffusion import DiffusionFamily, LatentDiffusion
from diffusion_feedback.models.reference import AdaptersOff
from diffusion_feedback.noise import RectifiedFlow
from diffusion_feedback.types.models import AdapterSettings, Conditioning, Denoiser

SAMPLING = {"num_inference_steps": 2, "guidance_scale": 2.0, "height": 16, "width": 16, "max_sequence_length": 8}
ABSENT = {"text_encoder_3": None, "tokenizer_3": None}


def encode_text(pipeline: Any, prompts: list[str]) -> Conditioning:
    hidden, _, pooled, _ = pipeline.encode_prompt(
        prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=8
    )
    return {"encoder_hidden_states": hidden, "pooled_projections": pooled}


def join(text: Conditioning, sizes: Tensor) -> Conditioning:
    return text


def call(network: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    prediction: Tensor = network(noisy, timestep=timesteps, return_dict=False, **conditioning)[0]
    return prediction


def family(pipeline: StableDiffusion3Pipeline) -> Denoiser:
    for module in (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        module.requires_grad_(False).eval()
    pipeline.set_progress_bar_config(disable=True)
    flow = DiffusionFamily(StableDiffusion3Pipeline, encode_text, join, call, "transformer")
    return LatentDiffusion(pipeline, RectifiedFlow(shift=3.0), flow)


@pytest.fixture
def denoiser() -> Denoiser:
    return family(sd3_pipeline())


def prediction(denoiser: Denoiser, network: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = denoiser.encode_images(torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1)
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = denoiser.process.timesteps(torch.tensor([0.1, 0.7]))
    given = denoiser.conditioning(denoiser.encode_prompts(["a cat", "two dogs"]), torch.full((2, 6), 16.0))
    with torch.no_grad():
        return denoiser.predict(network, denoiser.process.add_noise(latents, noise, timesteps), timesteps, given)


def image(denoiser: Denoiser) -> np.ndarray:
    return np.array(denoiser.sample(denoiser.network, ["a cat"], [3], **SAMPLING)[0])


def adapt(denoiser: Denoiser) -> None:
    lora.add(denoiser.network, AdapterSettings(rank=2, alpha=4, targets=["attention"], seed=0))
    generator = torch.Generator().manual_seed(1)
    for _, parameter in lora.trainable(denoiser.network):
        nn.init.normal_(parameter, std=0.3, generator=generator)


def test_what_it_says_of_itself(denoiser: Denoiser) -> None:
    assert (denoiser.network_name, denoiser.resolution) == ("transformer", 16)
    assert (denoiser.process.prediction_type, denoiser.process.num_timesteps) == ("flow_prediction", 1000)
    assert len(denoiser.frozen_modules()) == 3
    assert len({denoiser.model_hash(), denoiser.text_encoder_id(), denoiser.image_encoder_id()}) == 3
    assert denoiser.count_truncated(["x" * 80, "x"]) == 1


def test_adapters_off_are_the_base(denoiser: Denoiser) -> None:
    base = prediction(denoiser, denoiser.network)
    adapt(denoiser)
    assert not torch.allclose(prediction(denoiser, denoiser.network), base, atol=1e-2)
    with AdaptersOff()(denoiser.network) as reference:
        assert torch.equal(prediction(denoiser, reference), base)


def test_adapters_load_with_plain_diffusers_and_with_ours(denoiser: Denoiser, tmp_path: Path) -> None:
    before = image(denoiser)
    adapt(denoiser)
    tuned = image(denoiser)
    assert not np.array_equal(before, tuned)
    denoiser.save(denoiser.network, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= set(denoiser.written_files())
    pipeline = sd3_pipeline()
    pipeline.load_lora_weights(tmp_path)
    assert np.array_equal(image(family(pipeline)), tuned)
    other = family(sd3_pipeline())
    assert "layers of transformer" in other.load_lora(str(tmp_path))
    assert np.array_equal(image(other), tuned)
    other.save_merged(tmp_path / "merged")
    merged = image(family(DiffusionPipeline.from_pretrained(tmp_path / "merged", **ABSENT)))
    assert np.abs(merged.astype(int) - tuned).max() <= 1  # the sums are rounded in another order


def test_the_whole_pipeline_loads_with_plain_diffusers(denoiser: Denoiser, tmp_path: Path) -> None:
    denoiser.save(denoiser.network, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= set(denoiser.written_files())
    assert np.array_equal(image(family(DiffusionPipeline.from_pretrained(tmp_path, **ABSENT))), image(denoiser))
