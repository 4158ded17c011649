"""Heads that value tokens: their targets, their files, and how they steer the sampling of a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_text
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from diffusion_feedback.errors import UserError
from diffusion_feedback.models import causal_lm, lora, lora_targets, value_heads
from diffusion_feedback.models.value_heads import ValueHeads, ValueNetwork, steered
from diffusion_feedback.types.models import AdapterSettings

PROMPTS = [[5, 6, 7], [9], [20, 30, 40, 50, 60, 70]]
FAMILIES: list[tiny_text.Family] = ["llama", "gpt2"]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> causal_lm.CausalLM:
    tied = request.param == "gpt2"
    return causal_lm.load(str(tiny_text.save_tiny_lm(tmp_path / "lm", family=request.param, tied=tied)))


def scores_of(network: Any, prompt: list[int]) -> torch.Tensor:
    """Scores (T, V) at every position, by the forward pass that training uses."""
    ids = torch.tensor([prompt])
    mask, positions = torch.ones_like(ids, dtype=torch.bool), torch.arange(len(prompt))[None]
    with torch.no_grad():
        found: torch.Tensor = network(ids, mask, positions, lambda hidden, head: head(hidden))[0]
    return found


def test_targets_start_equal_and_follow() -> None:
    heads = ValueHeads(8, 11, seed=3)
    before = [p.clone() for p in heads.target_q_heads.parameters()]
    for first, second in zip(heads.q_heads.parameters(), before, strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(before[0], before[4])  # the two heads are drawn apart
    with torch.no_grad():
        for p in heads.q_heads.parameters():
            p.add_(1.0)
    heads.sync_targets(0.25)
    heads.sync_targets(0.25)
    for old, target in zip(before, heads.target_q_heads.parameters(), strict=True):
        torch.testing.assert_close(target, old + 0.25 + 0.75 * 0.25)
    heads.sync_targets(1.0)
    for first, second in zip(heads.q_heads.parameters(), heads.target_q_heads.parameters(), strict=True):
        torch.testing.assert_close(first, second)
    trained = {name for name, p in heads.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"q_heads", "v_head"}


def test_heads_are_drawn_from_their_seed_alone() -> None:
    torch.manual_seed(0)
    first, state = ValueHeads(8, 11, seed=3), torch.random.get_rng_state()
    torch.manual_seed(1)
    second, other = ValueHeads(8, 11, seed=3), ValueHeads(8, 11, seed=4)
    assert torch.equal(first.v_head[0].weight, second.v_head[0].weight)
    assert not torch.equal(first.v_head[0].weight, other.v_head[0].weight)
    torch.manual_seed(0)
    assert torch.equal(state, torch.random.get_rng_state())


def test_values_are_float32_under_autocast() -> None:
    heads, hidden = ValueHeads(8, 11), torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = [heads.q(hidden), heads.v(hidden), heads.target_q(hidden)]
    for value, expected in zip(found, [heads.q(hidden), heads.v(hidden), heads.target_q(hidden)], strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, expected)


def test_target_q_is_the_smaller_of_two_perceptrons() -> None:
    heads = ValueHeads(8, 11, seed=0)
    hidden = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    expected = []
    for number in range(2):
        first, last = heads.target_q_heads[number][0], heads.target_q_heads[number][2]
        expected.append((hidden @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias)
    torch.testing.assert_close(heads.target_q(hidden), torch.minimum(*expected))
    assert heads.q(hidden).shape == (2, 5, 11)
    assert heads.v(hidden).shape == (5,)
    assert heads.v(hidden.bfloat16()).dtype == torch.float32


def test_beta_zero_is_the_policy(model: causal_lm.CausalLM) -> None:
    network = value_heads.attach(model.network, "nowhere", seed=0)
    plain = scores_of(model.network, PROMPTS[2])
    drawn = model.sample(model.network, PROMPTS, [1, 2, 3], max_new_tokens=12)
    with steered(network, beta=0.0) as policy:
        assert torch.equal(scores_of(policy, PROMPTS[2]), plain)
        assert model.sample(policy, PROMPTS, [1, 2, 3], max_new_tokens=12) == drawn
    assert torch.equal(scores_of(model.network, PROMPTS[2]), plain)


@pytest.mark.parametrize("beta", [0.5, 8.0])
def test_steering_is_the_formula(model: causal_lm.CausalLM, beta: float) -> None:
    """softmax(log pi + beta (min Q - V)), by transformers' own logits and hidden states."""
    network = value_heads.attach(model.network, "nowhere", seed=0)
    found = model.network.model(torch.tensor([PROMPTS[2]]), output_hidden_states=True)
    hidden = found.hidden_states[-1][0]  # after the last norm
    advantage = network.heads.target_q(hidden) - network.heads.v(hidden)[:, None]
    expected = (found.logits[0].log_softmax(-1) + beta * advantage).softmax(-1)
    with steered(network, beta=beta) as policy:
        steered_scores = scores_of(policy, PROMPTS[2])
        greedy = model.sample(policy, [PROMPTS[2]], [0], max_new_tokens=1, temperature=0)
        one = model.sample(policy, [PROMPTS[2]] * 300, list(range(300)), max_new_tokens=1, top_k=3)
    torch.testing.assert_close(steered_scores.softmax(-1), expected, rtol=1e-4, atol=1e-6)
    assert greedy == [[int(expected[-1].argmax())]]
    # Of the three most likely tokens, as often as their probabilities say.
    likeliest = expected[-1].topk(3)
    shares = torch.tensor([sum(c == [int(token)] for c in one) / 300 for token in likeliest.indices])
    assert float(shares.sum()) == pytest.approx(1.0)
    wanted = likeliest.values / likeliest.values.sum()
    assert bool(((shares - wanted).abs() < 4 * (wanted * (1 - wanted) / 300).sqrt() + 1e-3).all())


def test_the_head_comes_back_after_an_error(model: causal_lm.CausalLM) -> None:
    network = value_heads.attach(model.network, "nowhere", seed=0)
    head = model.network.model.get_output_embeddings()
    with pytest.raises(RuntimeError, match="stop"), steered(network, beta=1.0):
        raise RuntimeError("stop")
    assert model.network.model.get_output_embeddings() is head
    with pytest.raises(UserError, match="beta"), steered(network, beta=-1.0):
        pass


def test_the_network_gives_both(model: causal_lm.CausalLM) -> None:
    network = value_heads.attach(model.network, "nowhere", seed=0)
    ids = torch.tensor([PROMPTS[0]])

    def read(hidden: torch.Tensor, head: nn.Module, heads: ValueHeads) -> tuple[torch.Tensor, torch.Tensor]:
        return head(hidden), heads.v(hidden)

    logits, v = network(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(3)[None], read)
    torch.testing.assert_close(logits, model.network.model(ids).logits)
    assert v.shape == (1, 3)


def test_saved_beside_the_model_and_found_again(model: causal_lm.CausalLM, tmp_path: Path) -> None:
    network = value_heads.attach(model.network, "nowhere", seed=0)
    with torch.no_grad():
        for p in network.heads.q_heads.parameters():
            p.add_(1.0)
    network.heads.sync_targets(0.5)
    folder = tmp_path / "saved"
    model.save(network.language_model, folder)
    value_heads.save_value_heads(network.heads, folder)
    again = causal_lm.load(str(folder))
    found = value_heads.attach(again.network, str(folder), seed=99)
    assert value_heads.heads_hash(found.heads) == value_heads.heads_hash(network.heads)
    for name, value in network.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    assert not found.heads.target_q_heads[0][0].weight.requires_grad
    plain = AutoModelForCausalLM.from_pretrained(folder)  # the heads are no business of transformers
    torch.testing.assert_close(plain(torch.tensor([[5, 6]])).logits, model.network.model(torch.tensor([[5, 6]])).logits)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    heads = ValueHeads(8, 11)
    with pytest.raises(UserError, match="no value heads"):
        value_heads.load_value_heads(heads, tmp_path)
    value_heads.save_value_heads(ValueHeads(8, 12), tmp_path)
    with pytest.raises(UserError, match=r"q_heads.0.2.bias is \(12,\), and the model needs \(11,\)"):
        value_heads.load_value_heads(heads, tmp_path)
    path = tmp_path / value_heads.FILE_NAME
    value_heads.save_value_heads(heads, tmp_path)
    state = load_file(path)
    state["v_head.0.bias"][0] = float("nan")
    save_file(state, path)
    with pytest.raises(UserError, match="v_head.0.bias.*not finite"):
        value_heads.load_value_heads(heads, tmp_path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="could not be read as value heads"):
        value_heads.load_value_heads(heads, tmp_path)


def test_adapters_train_beside_the_heads(model: causal_lm.CausalLM, tmp_path: Path) -> None:
    network: ValueNetwork = value_heads.attach(model.network, "nowhere", seed=0)
    lora_targets.add_adapters(model.network.model, AdapterSettings(rank=2, alpha=2, targets=["attention"], seed=0))
    trained = {name for name, _ in lora.trainable(network)}
    assert all("lora" in name or name.startswith(("heads.q_heads", "heads.v_head")) for name in trained)
    assert any("lora" in name for name in trained)
    assert any(name.startswith("heads.v_head") for name in trained)
    with steered(network, beta=1.0) as policy:
        assert len(model.sample(policy, PROMPTS, [0, 1, 2], max_new_tokens=3)) == 3
