"""Language models and reward models against transformers' own forward pass, sampling against the softmax, refusals."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny_text
import torch
from peft import AutoPeftModelForCausalLM, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    FalconConfig,
    FalconForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from diffusion_feedback.errors import UserError
from diffusion_feedback.models import causal_lm, lora, lora_targets, reward_model, text_network
from diffusion_feedback.models.reference import AdaptersOff, FrozenModel
from diffusion_feedback.types.models import AdapterSettings

IDS = torch.tensor([[5, 9, 11, 40, 7, 8], [6, 6, 12, 2, 2, 2]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
POSITIONS = torch.arange(6).expand(2, 6)


def logits(hidden: Tensor, head: nn.Module) -> Any:
    return head(hidden)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text.save_tiny_lm(tmp_path_factory.mktemp("lm") / request.param, family=request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text.save_tiny_lm(tmp_path_factory.mktemp("lm") / "llama")


def test_the_logits_are_those_of_transformers(folder: Path) -> None:
    model = causal_lm.load(str(folder))
    with torch.no_grad():
        found = model.network(IDS, MASK, POSITIONS, logits)
        expected = AutoModelForCausalLM.from_pretrained(folder).eval()(IDS, attention_mask=MASK).logits
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1, :3], expected[1, :3], atol=1e-5, rtol=1e-5)
    assert model.window == tiny_text.POSITIONS
    # The second closes the assistant's turn in the tokenizer's chat template.
    closing = model.tokenizer.convert_tokens_to_ids(tiny_text.END_OF_TURN)
    assert model.end_token_ids == (model.tokenizer.eos_token_id, closing)


def test_the_hash_knows_weights_and_template(folder: Path) -> None:
    model, same = causal_lm.load(str(folder)), causal_lm.load(str(folder))
    assert model.model_hash() == same.model_hash()
    same.tokenizer.chat_template = "{{ messages }}"
    assert model.model_hash() != same.model_hash()
    next(model.network.parameters()).data[0] += 1
    assert model.model_hash() != causal_lm.load(str(folder)).model_hash()


def test_dropout_is_off_in_training(tmp_path: Path) -> None:
    more = {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}
    folder = tiny_text.save_tiny_lm(tmp_path / "lm", family="gpt2", **more)
    network = causal_lm.load(str(folder)).network.train()
    first, second = (network(IDS, MASK, POSITIONS, logits) for _ in range(2))
    assert torch.equal(first, second)
    folder = tiny_text.save_tiny_lm(tmp_path / "llama", attention_dropout=0.5)
    network = causal_lm.load(str(folder)).network.train()
    assert torch.equal(network(IDS, MASK, POSITIONS, logits), network(IDS, MASK, POSITIONS, logits))


def test_noise_that_a_module_reads_from_its_config_is_off_too(tmp_path: Path) -> None:
    config = FalconConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, hidden_dropout=0.5, alibi=False
    )
    FalconForCausalLM(config).save_pretrained(tmp_path)
    tiny_text.tokenizer(bos=False).save_pretrained(tmp_path)
    network = causal_lm.load(str(tmp_path)).network.train()
    assert torch.equal(network(IDS, MASK, POSITIONS, logits), network(IDS, MASK, POSITIONS, logits))


def test_a_model_that_draws_as_it_likes_is_refused() -> None:
    class Noisy(GPT2LMHeadModel):
        def forward(self, *args: Any, **more: Any) -> Any:
            found = super().forward(*args, **more)
            return type(found)(logits=found.logits + torch.rand(()))

    with pytest.raises(UserError, match="two training passes of a Noisy on the same tokens differ"):
        text_network.prepare(Noisy(GPT2Config(vocab_size=20, n_layer=1, n_embd=8, n_head=2)), "folder", "cpu")


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_samples_follow_the_softmax(llama: Path) -> None:
    """4,000 draws of one token: no frequency is further from its probability than five standard errors."""
    model, prompt, count, temperature = causal_lm.load(str(llama)), [5, 9, 11], 4000, 0.7
    drawn = model.sample(model.network, [prompt] * count, list(range(count)), max_new_tokens=1, temperature=temperature)
    with torch.no_grad():
        row = model.network(torch.tensor([prompt]), torch.ones(1, 3), torch.arange(3)[None], logits)[0, -1]
    expected = torch.softmax(row.double() / temperature, 0)
    frequencies = Counter(completion[0] for completion in drawn)
    for token, p in enumerate(expected.tolist()):
        assert abs(frequencies[token] / count - p) < 5 * math.sqrt(max(p * (1 - p), 1 / count) / count)
    assert len(frequencies) > 5


def test_a_sample_depends_on_its_own_prompt_and_seed_alone(folder: Path) -> None:
    model = causal_lm.load(str(folder))
    prompts, seeds = [[5, 9, 11, 40], [6], [7, 8, 9, 10, 11, 12, 13]], [3, 1, 4]
    together = model.sample(model.network, prompts, seeds, max_new_tokens=12)
    alone = [model.sample(model.network, [p], [s], max_new_tokens=12)[0] for p, s in zip(prompts, seeds, strict=True)]
    assert together == alone
    assert model.sample(model.network, prompts, [5, 5, 5], max_new_tokens=12) != together
    assert all(model.tokenizer.eos_token_id not in completion[:-1] for completion in together)


def test_greedy_is_the_likeliest_and_the_models_own_settings_are_silent(llama: Path) -> None:
    model, prompt = causal_lm.load(str(llama)), [5, 9, 11]
    model.network.model.generation_config = GenerationConfig(top_k=1, repetition_penalty=50.0, eos_token_id=1)
    found = model.sample(model.network, [prompt], [0], max_new_tokens=5, temperature=0)[0]
    ids = list(prompt)
    for _ in found:
        row = model.network(torch.tensor([ids]), torch.ones(1, len(ids)), torch.arange(len(ids))[None], logits)[0, -1]
        ids.append(int(row.argmax()))
    assert found == ids[3:]
    drawn = {model.sample(model.network, [prompt], [seed], max_new_tokens=1)[0][0] for seed in range(40)}
    assert len(drawn) > 3  # with top_k 1 of the model's own there would be one
    kept = {model.sample(model.network, [prompt], [seed], max_new_tokens=1, top_k=1)[0][0] for seed in range(5)}
    assert kept == {ids[3]}
    assert model.network.model.generation_config.top_k == 1


def test_a_prompt_must_leave_room(llama: Path) -> None:
    model = causal_lm.load(str(llama))
    for prompt in ([], [5] * tiny_text.POSITIONS):
        with pytest.raises(UserError, match="prompt 1: "):
            model.sample(model.network, [[5], prompt], [0, 1], max_new_tokens=2)
    long = model.sample(model.network, [[5] * (tiny_text.POSITIONS - 2)], [0], max_new_tokens=50)
    assert len(long[0]) <= 2


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_adapters_start_silent_and_load_in_plain_peft(folder: Path, tmp_path: Path) -> None:
    model = causal_lm.load(str(folder))
    with torch.no_grad():
        before = model.network(IDS, MASK, POSITIONS, logits)
    targets = ["attention", "feed_forward"]
    lora_targets.add_adapters(
        model.network.model, AdapterSettings(rank=4, alpha=8, targets=targets, seed=1), task_type="CAUSAL_LM"
    )
    with torch.no_grad():
        assert torch.equal(model.network(IDS, MASK, POSITIONS, logits), before)
        generator = torch.Generator().manual_seed(0)
        for _, parameter in lora.trainable(model.network):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        after = model.network(IDS, MASK, POSITIONS, logits)
        with AdaptersOff()(model.network) as reference:
            assert torch.equal(reference(IDS, MASK, POSITIONS, logits), before)
        assert not torch.allclose(after, before)
        model.save(model.network, tmp_path / "adapter")
        plain = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
        torch.testing.assert_close(plain(IDS[:1]).logits, after[:1], atol=1e-5, rtol=1e-5)
        merged = causal_lm.load(str(tmp_path / "adapter"))
        torch.testing.assert_close(merged.network(IDS, MASK, POSITIONS, logits), after, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="no layer of the network ends in 'to_q'"):
        lora_targets.add_adapters(merged.network.model, AdapterSettings(rank=4, alpha=8, targets=["to_q"], seed=1))


def test_adapters_ask_no_library_but_peft(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' and diffusers' own calls of these names refuse every peft but the newest."""

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("The version of PEFT you are using is not compatible")

    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", refuse)
    monkeypatch.setattr("diffusers.loaders.peft.check_peft_version", refuse)
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", refuse)
    model = causal_lm.load(str(folder))
    lora_targets.add_adapters(
        model.network.model, AdapterSettings(rank=2, alpha=4, targets=["attention"], seed=1), task_type="CAUSAL_LM"
    )
    with AdaptersOff()(model.network):
        pass
    model.save(model.network, tmp_path / "ours")
    plain = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), model.network.model.peft_config["default"])
    monkeypatch.undo()
    plain.save_pretrained(tmp_path / "plain")
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "plain"))
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    with pytest.raises(ValueError, match="carries no adapters"):
        lora.switch(causal_lm.load(str(folder)).network, on=False)


def test_another_model_as_reference(llama: Path, tmp_path: Path) -> None:
    policy = causal_lm.load(str(llama)).network.train()
    other = causal_lm.load(str(tiny_text.save_tiny_lm(tmp_path / "other", seed=5))).network
    with FrozenModel(other)(policy) as reference:
        assert reference is other
        assert reference.training
        assert not any(parameter.requires_grad for parameter in reference.parameters())


# --- reward models ----------------------------------------------------------------------------------------------------


def test_the_score_is_that_of_transformers_at_the_last_token(tmp_path: Path) -> None:
    folder = tiny_text.save_tiny_reward_model(tmp_path / "rm")
    model = reward_model.load(str(folder))
    with torch.no_grad():
        found = model.network(IDS, MASK, POSITIONS, torch.tensor([5, 2]))
        plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        expected = torch.cat([plain(IDS[:1]).logits[0], plain(IDS[1:, :3]).logits[0]])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    model.save(model.network, tmp_path / "saved")
    assert reward_model.load(str(tmp_path / "saved")).model_hash() == model.model_hash()


def test_a_reward_model_starts_from_a_language_model(llama: Path) -> None:
    first, same, other = (reward_model.load(str(llama), seed=seed) for seed in (0, 0, 1))
    assert first.model_hash() == same.model_hash() != other.model_hash()
    trunk = causal_lm.load(str(llama)).network.model.base_model.state_dict()
    assert all(torch.equal(value, trunk[key]) for key, value in first.network.model.base_model.state_dict().items())


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_what_is_no_language_model(llama: Path, tmp_path: Path, tiny_pipelines: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="no such folder"):
        causal_lm.load(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="it is a diffusers pipeline"):
        causal_lm.load(str(tiny_pipelines["sd"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="it has no config.json"):
        reward_model.load(str(tmp_path / "empty"))
    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(llama)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = math.nan
    model.save_pretrained(broken)
    with pytest.raises(UserError, match="holds no tokenizer"):
        causal_lm.load(str(broken))
    tiny_text.tokenizer().save_pretrained(broken)
    with pytest.raises(UserError, match=r"up_proj.weight' holds 1 values that are not finite"):
        causal_lm.load(str(broken))


def test_a_foreign_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "lm"
    tiny_text.language_model(vocab_size=300).save_pretrained(folder)
    tiny_text.tokenizer().save_pretrained(folder)
    with pytest.raises(UserError, match=r"ids go to \d+, the model knows 300 tokens"):
        causal_lm.load(str(folder))


def test_a_classifier_of_several_labels_is_no_reward_model(tmp_path: Path) -> None:
    folder = tiny_text.save_tiny_reward_model(tmp_path / "rm")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "a", "1": "b", "2": "c"}
    LlamaForSequenceClassification(LlamaConfig(**config)).save_pretrained(folder)
    with pytest.raises(UserError, match="its head has 3 labels"):
        reward_model.load(str(folder))


def test_checkpointing_changes_no_gradient(llama: Path) -> None:
    gradients = []
    for enable in (False, True):
        model = causal_lm.load(str(llama))
        lora_targets.add_adapters(model.network.model, AdapterSettings(rank=4, alpha=8, targets=["attention"], seed=1))
        if enable:
            model.enable_gradient_checkpointing()
        model.network.train()
        model.network(IDS, MASK, POSITIONS, logits).square().sum().backward()
        gradients.append([parameter.grad for _, parameter in lora.trainable(model.network)])
    assert all(grad is not None and grad.abs().sum() >= 0 for grad in gradients[0])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
