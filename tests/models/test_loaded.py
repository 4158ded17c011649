"""Models that somebody has loaded are the same as those that are loaded by their path."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_text
import torch
from diffusers import DiffusionPipeline
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GPT2Config, GPT2Model

from diffusion_feedback.catalog import resolve
from diffusion_feedback.errors import UserError
from diffusion_feedback.models import causal_lm, loaded, reward_model
from diffusion_feedback.models.latent_diffusion import LatentDiffusion

SAMPLING = {"num_inference_steps": 2, "guidance_scale": 2.0, "height": 16, "width": 16}


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_loaded_pipeline_is_as_its_folder(family: str, tiny_pipelines: dict[str, Path]) -> None:
    folder = tiny_pipelines[family]
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    network = pipeline.unet.train().requires_grad_(True)
    found, by_path = loaded.from_loaded(pipeline), resolve("family", family)(str(folder))
    assert loaded.family_of(pipeline) == family
    assert isinstance(found, LatentDiffusion)
    assert found.network is network
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())
    assert found.model_hash() == by_path.model_hash()
    assert (found.text_encoder_id(), found.image_encoder_id()) == (
        by_path.text_encoder_id(),
        by_path.image_encoder_id(),
    )
    first, second = (one.sample(one.network, ["a cat"], [3], **SAMPLING)[0] for one in (found, by_path))
    assert first.tobytes() == second.tobytes()
    assert loaded.from_loaded(pipeline, dtype=torch.bfloat16).network.dtype == torch.bfloat16


def test_a_loaded_language_model_is_as_its_folder(tmp_path: Path) -> None:
    folder = tiny_text.save_tiny_lm(tmp_path / "lm")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).train(), AutoTokenizer.from_pretrained(folder)
    found, by_path = loaded.from_loaded(model, tokenizer), causal_lm.load(str(folder))
    assert loaded.family_of(model) == "causal_lm"
    assert isinstance(found, causal_lm.CausalLM)
    assert found.library_model is model
    assert not model.training
    assert found.model_hash() == by_path.model_hash()
    drawn = [one.sample(one.network, [[5, 6]], [1], max_new_tokens=5) for one in (found, by_path)]
    assert drawn[0] == drawn[1]
    with pytest.raises(UserError, match="came without its tokenizer"):
        loaded.from_loaded(model)


def test_a_loaded_reward_model_is_as_its_folder(tmp_path: Path) -> None:
    folder = tiny_text.save_tiny_reward_model(tmp_path / "reward")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    found = loaded.from_loaded(model, AutoTokenizer.from_pretrained(folder))
    assert loaded.family_of(model) == "reward_model"
    assert isinstance(found, reward_model.RewardModel)
    assert found.model_hash() == reward_model.load(str(folder)).model_hash()
    model.config.num_labels = 3
    with pytest.raises(UserError, match="3 labels"):
        loaded.from_loaded(model, found.tokenizer)


def test_other_objects_are_refused_by_their_class() -> None:
    with pytest.raises(UserError, match="of a Linear no family is known") as raised:
        loaded.family_of(torch.nn.Linear(1, 1))
    assert "StableDiffusionPipeline, StableDiffusionXLPipeline" in str(raised.value.remedy)
    with pytest.raises(UserError, match="of a GPT2Model no family"):
        loaded.from_loaded(GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9)))
