"""The denoising likelihood on real tiny models: draws shared as promised, whatever the batch; errors in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from diffusion_feedback.catalog import resolve
from diffusion_feedback.data.cache import CachedImageEncoder, CachedTextEncoder
from diffusion_feedback.likelihoods.denoising import DenoisingInputs, DenoisingLikelihood
from diffusion_feedback.likelihoods.draws import draw_noise, draw_pair
from diffusion_feedback.records import content_hash
from diffusion_feedback.types.images import EncodedImages, ImageHandle, ImageView, PreferenceBatch


@dataclass(frozen=True)
class Picture:
    """An image handle over noise of its own."""

    number: int

    @property
    def key(self) -> str:
        return content_hash(str(self.number))

    def open(self) -> Image.Image:
        pixels = np.random.default_rng(self.number).integers(0, 256, (24, 20, 3), dtype=np.uint8)
        return Image.fromarray(pixels)


def batch(numbers: Sequence[int], draw: int = 0) -> PreferenceBatch:
    return PreferenceBatch(
        example_ids=[f"pair {n}" for n in numbers],
        prompts=[f"prompt {n}" for n in numbers],
        chosen=[Picture(2 * n) for n in numbers],
        rejected=[Picture(2 * n + 1) for n in numbers],
        chosen_probability=torch.ones(len(numbers)),
        weight=torch.ones(len(numbers)),
        draw=draw,
    )


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def likelihood(request: pytest.FixtureRequest, tiny_pipelines: dict[str, Path]) -> DenoisingLikelihood:
    denoiser = resolve("family", request.param)(str(tiny_pipelines[request.param]))
    return DenoisingLikelihood(
        denoiser,
        CachedImageEncoder(denoiser.encode_images, 16, None),
        CachedTextEncoder(denoiser.encode_prompts, None),
        seed=7,
        caption_dropout=0.5,
        random_flip=True,
        random_crop=True,
    )


def rows(inputs: DenoisingInputs, index: int) -> list[Tensor]:
    """Everything about one pair: chosen and rejected rows of every tensor."""
    half = len(inputs.timesteps) // 2
    tensors = [inputs.noisy, inputs.target, inputs.timesteps, *inputs.conditioning.values()]
    return [tensor[[index, half + index]] for tensor in tensors]


def test_a_pair_is_the_same_in_any_batch_and_order(likelihood: DenoisingLikelihood) -> None:
    together = likelihood.prepare(batch([3, 1, 4, 5]))
    for numbers in ([5, 4, 1, 3], [4], [1, 5]):
        other = likelihood.prepare(batch(numbers))
        for place, number in enumerate(numbers):
            for one, two in zip(rows(together, [3, 1, 4, 5].index(number)), rows(other, place), strict=True):
                torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_draws_themselves_are_identical_bit_for_bit(likelihood: DenoisingLikelihood) -> None:
    views: list[list[ImageView]] = []

    @dataclass(frozen=True)
    class Recorder:
        def encode(self, images: Sequence[ImageHandle], seen: Sequence[ImageView]) -> EncodedImages:
            views.append(list(seen))
            return EncodedImages(torch.zeros(len(images), 4, 8, 8), torch.zeros(len(images), 6))

    recorded = replace(likelihood, images=Recorder())
    first, second = recorded.prepare(batch([3, 1, 4])), recorded.prepare(batch([4, 3]))
    assert views[0][:3] == views[0][3:], "chosen and rejected are cut alike"
    assert (views[0][2], views[0][0]) == (views[1][0], views[1][1])
    order = torch.tensor([2, 0, 5, 3])
    assert torch.equal(first.noisy[order], second.noisy)
    assert torch.equal(first.timesteps[order], second.timesteps)


def test_both_sides_share_timestep_noise_and_dropout(likelihood: DenoisingLikelihood) -> None:
    numbers = list(range(12))
    inputs = likelihood.prepare(batch(numbers))
    assert torch.equal(inputs.timesteps[:12], inputs.timesteps[12:])
    assert torch.equal(inputs.target[:12], inputs.target[12:]), "the target of noise prediction is the shared noise"
    hidden = inputs.conditioning["encoder_hidden_states"]
    assert torch.equal(hidden[:12], hidden[12:])
    empty = likelihood.texts.encode([""])["encoder_hidden_states"][0]
    dropped = [torch.allclose(row, empty, atol=1e-5) for row in hidden[:12]]
    assert dropped == [draw_pair(7, 0, f"pair {n}").dropout < 0.5 for n in numbers]
    assert 0 < sum(dropped) < 12


def test_another_draw_or_seed_is_another(likelihood: DenoisingLikelihood) -> None:
    base = likelihood.prepare(batch([1, 2]))
    for other in (likelihood.prepare(batch([1, 2], draw=1)), replace(likelihood, seed=8).prepare(batch([1, 2]))):
        assert not torch.equal(base.target, other.target)


def test_noisy_latents_by_hand(likelihood: DenoisingLikelihood) -> None:
    plain = replace(likelihood, random_flip=False, random_crop=False, caption_dropout=0.0)
    inputs = plain.prepare(batch([1]))
    latents = plain.images.encode([Picture(2), Picture(3)], [ImageView(), ImageView()]).latents
    draw = draw_pair(7, 0, "pair 1")
    timestep = int(draw.timestep * 1000)
    abar = likelihood.denoiser.pipeline.scheduler.alphas_cumprod[timestep].double()  # type: ignore[attr-defined]
    noise = draw_noise([draw], latents.shape[1:])
    assert inputs.timesteps.tolist() == [timestep, timestep]
    torch.testing.assert_close(inputs.noisy, (abar.sqrt() * latents + (1 - abar).sqrt() * noise).float())
    prompt = plain.texts.encode(["prompt 1"])["encoder_hidden_states"]
    torch.testing.assert_close(inputs.conditioning["encoder_hidden_states"][:1], prompt)


def test_timestep_range(likelihood: DenoisingLikelihood) -> None:
    late = replace(likelihood, timestep_range=(0.8, 0.9)).prepare(batch(list(range(20))))
    assert late.timesteps.min() >= 800
    assert late.timesteps.max() < 900


def test_logps_are_minus_half_the_mean_squared_error(likelihood: DenoisingLikelihood) -> None:
    inputs = likelihood.prepare(batch([1, 2, 3]))
    network = likelihood.denoiser.network
    with torch.no_grad():
        logps = likelihood.logps(network, inputs)
        prediction = likelihood.denoiser.predict(network, inputs.noisy, inputs.timesteps, inputs.conditioning)
    expected = -0.5 * ((prediction.double() - inputs.target.double()) ** 2).mean((1, 2, 3))
    assert logps.dtype == torch.float32
    assert logps.shape == (6,)
    torch.testing.assert_close(logps.double(), expected, atol=1e-6, rtol=1e-6)


def test_chosen_half(likelihood: DenoisingLikelihood) -> None:
    inputs = likelihood.prepare(batch([1, 2, 3]))
    half = likelihood.chosen(inputs)
    with torch.no_grad():
        both = likelihood.logps(likelihood.denoiser.network, inputs)
        alone = likelihood.logps(likelihood.denoiser.network, half)
    torch.testing.assert_close(alone, both[:3], atol=1e-5, rtol=1e-5)


def test_half_predictions_are_cast_before_the_subtraction(likelihood: DenoisingLikelihood) -> None:
    """The target keeps its float32 digits: the error of a bfloat16 prediction is that of the cast prediction exactly."""

    @dataclass(frozen=True)
    class Half:
        process: Any

        def predict(self, network: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
            return noisy.bfloat16()

    inputs = likelihood.prepare(batch([1]))
    logps = replace(likelihood, denoiser=Half(None)).logps(nn.Identity(), inputs)  # type: ignore[arg-type]
    expected = -0.5 * ((inputs.noisy.bfloat16().double() - inputs.target.double()) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(logps.double(), expected, atol=0, rtol=1e-6)


def test_what_a_model_predicts_shows_in_its_errors(likelihood: DenoisingLikelihood) -> None:
    """A network that returns the noise errs by nothing where noise is asked for, and by 1 + 1 where the latents are."""
    process = likelihood.denoiser.process
    kinds = {kind: replace(process, prediction_type=kind) for kind in ("epsilon", "sample")}

    @dataclass(frozen=True)
    class Noise:
        """The denoiser, of which every network knows the noise."""

        denoiser: Any

        def __getattr__(self, name: str) -> Any:
            return getattr(self.denoiser, name)

        def predict(self, network: nn.Module, noisy: Tensor, *rest: object) -> Tensor:
            return expected.target

    expected = likelihood.prepare(batch([1, 2, 3]))
    clean = replace(likelihood, denoiser=replace(likelihood.denoiser, process=kinds["sample"])).prepare(
        batch([1, 2, 3])
    )
    knowing = replace(likelihood, denoiser=Noise(likelihood.denoiser))
    errors = knowing.errors_by_prediction(nn.Identity(), batch([1, 2, 3]), kinds)
    assert errors["epsilon"] == 0.0
    assert errors["sample"] == pytest.approx(float((expected.target - clean.target).square().mean()))
    assert likelihood.lengths(expected) is None
