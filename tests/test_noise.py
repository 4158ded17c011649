"""Forward processes against diffusers' schedulers and against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from diffusion_feedback.noise import DDPMProcess, RectifiedFlow

SHAPE = (5, 4, 3, 3)


def scheduler(prediction_type: str) -> DDPMScheduler:
    return DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction_type
    )


def tensors(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64).to(dtype)
    return latents, noise, torch.tensor([0, 1, 250, 500, 999])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_ddpm_agrees_with_diffusers(prediction_type: str) -> None:
    latents, noise, timesteps = tensors()
    theirs = scheduler(prediction_type)
    process = DDPMProcess(theirs.alphas_cumprod, prediction_type)  # type: ignore[arg-type]
    torch.testing.assert_close(
        process.add_noise(latents, noise, timesteps), theirs.add_noise(latents, noise, timesteps)
    )
    expected = {
        "epsilon": noise,
        "sample": latents,
        "v_prediction": theirs.get_velocity(latents, noise, timesteps),
    }[prediction_type]
    torch.testing.assert_close(process.target(latents, noise, timesteps), expected)


def test_ddpm_by_hand() -> None:
    process = DDPMProcess(torch.tensor([0.64], dtype=torch.float64), "v_prediction")
    latents, noise = torch.full((1, 1, 1, 1), 2.0).double(), torch.full((1, 1, 1, 1), -1.0).double()
    zero = torch.tensor([0])
    assert process.add_noise(latents, noise, zero).item() == pytest.approx(0.8 * 2 - 0.6, abs=1e-15)
    assert process.target(latents, noise, zero).item() == pytest.approx(-0.8 - 0.6 * 2, abs=1e-15)


def test_v_and_epsilon_describe_the_same_sample() -> None:
    latents, noise, timesteps = tensors(torch.float64)
    abar = scheduler("epsilon").alphas_cumprod.double()
    process = DDPMProcess(abar, "v_prediction")
    noisy, velocity = process.add_noise(latents, noise, timesteps), process.target(latents, noise, timesteps)
    signal = abar[timesteps].sqrt().reshape(-1, 1, 1, 1)
    sigma = (1 - abar[timesteps]).sqrt().reshape(-1, 1, 1, 1)
    torch.testing.assert_close(signal * noisy - sigma * velocity, latents)
    torch.testing.assert_close(sigma * noisy + signal * velocity, noise)


def test_timesteps_cover_the_schedulers_own_range() -> None:
    process = DDPMProcess(torch.linspace(0.99, 0.01, 200))
    uniform = torch.tensor([0.0, 0.00499, 0.005, 0.5, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert process.timesteps(uniform).tolist() == [0, 0, 1, 100, 199]
    assert process.num_timesteps == 200
    counts = torch.bincount(process.timesteps(torch.arange(0, 1, 1e-4, dtype=torch.float64)), minlength=200)
    assert (counts >= 49).all()
    assert (counts <= 51).all()


def test_half_latents_are_noised_in_float32() -> None:
    latents, noise, timesteps = tensors()
    process = DDPMProcess(scheduler("epsilon").alphas_cumprod)
    noisy = process.add_noise(latents.half(), noise, timesteps)
    assert noisy.dtype == torch.float32
    torch.testing.assert_close(noisy, process.add_noise(latents.half().float(), noise, timesteps))


def test_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(ValueError, match="'flow'; known: epsilon"):
        DDPMProcess(torch.ones(3), "flow")  # type: ignore[arg-type]


def test_rectified_flow_agrees_with_diffusers() -> None:
    latents, noise, _ = tensors()
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    timesteps = theirs.timesteps[[0, 100, 500, 700, 999]]
    flow = RectifiedFlow()
    expected = theirs.scale_noise(latents, timesteps, noise)
    torch.testing.assert_close(flow.add_noise(latents, noise, timesteps), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(flow.target(latents, noise, timesteps), noise - latents)


def test_rectified_flow_timesteps() -> None:
    uniform = torch.tensor([0.0, 0.25, 0.5, 0.999], dtype=torch.float64)
    assert RectifiedFlow().timesteps(uniform).tolist() == pytest.approx([0.0, 250.0, 500.0, 999.0])
    # shift 3 maps one half to 3 * 0.5 / (1 + 2 * 0.5) = 0.75
    assert RectifiedFlow(shift=3.0).timesteps(uniform)[2].item() == pytest.approx(750.0)
    # The median of a logit-normal is sigmoid(mean); its 84.13 % quantile sigmoid(mean + std).
    shaped = RectifiedFlow(logit_mean=0.5, logit_std=2.0).timesteps(torch.tensor([0.5, 0.8413447460685429]).double())
    expected = [1000 / (1 + math.exp(-0.5)), 1000 / (1 + math.exp(-2.5))]
    assert shaped.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_flow_predicts_the_velocity() -> None:
    assert RectifiedFlow().prediction_type == "flow_prediction"
