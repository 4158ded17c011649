"""Every common architecture against a plain forward pass of transformers in float64: log-probabilities, sampling, windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_architectures
import tiny_text
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel

from diffusion_feedback.errors import UserError
from diffusion_feedback.likelihoods.tokens import TokenLikelihood
from diffusion_feedback.models import causal_lm, output_heads, value_heads
from diffusion_feedback.types.texts import TokenSequence

KINDS = [*tiny_architectures.KINDS, *tiny_architectures.MULTIMODAL]
PROMPT = 4
SEQUENCES = [[5 + (7 * i + 3 * n) % 300 for i in range(length)] for n, length in enumerate((14, 9))]


def in_float64(folder: Path, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of the tokens behind the prompt, one sequence alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager").eval().double()
    with torch.no_grad():
        logps = torch.log_softmax(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double(), -1)
    return logps[range(PROMPT - 1, len(ids) - 1), ids[PROMPT:]]


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_and_samples(kind: str, tmp_path: Path) -> None:
    folder = tiny_architectures.save(tmp_path / kind, kind)
    model = causal_lm.load(str(folder))
    sequences = []
    for ids in SEQUENCES:
        scored = np.arange(len(ids)) >= PROMPT
        sequences.append(TokenSequence(np.array(ids, np.int32), scored, PROMPT))
    likelihood = TokenLikelihood()
    with torch.no_grad():
        found = likelihood.token_logps(model.network, likelihood.prepare_sequences(sequences)).logps
    expected = torch.cat([in_float64(folder, ids) for ids in SEQUENCES])
    assert expected.std() > 0.1  # tokens differ, so that a wrong one would show
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    prompts, seeds = [[5, 9, 11], [6]], [3, 1]
    together = model.sample(model.network, prompts, seeds, max_new_tokens=5)
    alone = [model.sample(model.network, [p], [s], max_new_tokens=5)[0] for p, s in zip(prompts, seeds, strict=True)]
    assert together == alone
    assert model.window == {"mpt": 96, "bloom": 10**9, "mamba": 10**9}.get(kind, 128)


@pytest.mark.parametrize("kind", ["gemma2", "granite", "cohere", "falcon_h1", "recurrent_gemma"])
def test_a_rule_that_is_not_known_is_refused_however_small_the_logits(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that has just been drawn has logits near 0, which a cap of 30 leaves as they are."""
    wide = {"final_logit_softcapping": 30.0} if kind == "gemma2" else {}
    folder = tiny_architectures.save(tmp_path / kind, kind, initializer_range=0.02, **wide)
    for name in ("_CAPS", "_FACTORS", "_DIVISORS"):
        monkeypatch.setattr(output_heads, name, ())
    with pytest.raises(UserError, match="are not its output head's, by a rule unknown here"):
        causal_lm.load(str(folder))


def test_a_model_that_sees_what_follows_is_no_language_model(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    BertLMHeadModel(config).save_pretrained(tmp_path)
    tiny_text.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="whose tokens see those that follow"):
        causal_lm.load(str(tmp_path))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "granite"])
def test_value_heads_steer_the_logits_that_the_model_gives(kind: str, tmp_path: Path) -> None:
    """softmax(log pi + beta Q'), also where logits are capped or scaled after the head, in samples and in log-probabilities."""
    folder = tiny_architectures.save(tmp_path / kind, kind)
    model = causal_lm.load(str(folder))
    network = value_heads.attach(model.network, str(folder), seed=0)
    ids = torch.tensor([SEQUENCES[0]])
    plain = model.network.model
    with torch.no_grad():
        expected = plain(input_ids=ids).logits
        hidden = output_heads.trunk_of(plain)(input_ids=ids).last_hidden_state
        expected = expected + 4.0 * network.heads.target_q(hidden)
        with value_heads.steered(network, beta=4.0) as policy:
            found = policy.model(input_ids=ids).logits
            ours = policy(ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None], lambda some, head: head(some))
        again = plain(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again, expected - 4.0 * network.heads.target_q(hidden), atol=1e-4, rtol=1e-4)
