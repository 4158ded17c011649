"""Log-probabilities of completions against the model's own full softmax, one sequence at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tiny_text
import torch
from torch import Tensor

from diffusion_feedback.errors import UserError
from diffusion_feedback.likelihoods.prompt_sharing import shared_length
from diffusion_feedback.likelihoods.tokens import TokenLikelihood
from diffusion_feedback.models.causal_lm import LanguageModel
from diffusion_feedback.types.texts import TextBatch, TokenSequence
from diffusion_feedback.types.training import Likelihood

MODELS = [("llama", False), ("llama", True), ("gpt2", False), ("gpt2", True)]


def sequence(generator: np.random.Generator, prompt: Sequence[int], completion: int) -> TokenSequence:
    ids = np.array([*prompt, *generator.integers(5, 380, completion)], np.int32)
    return TokenSequence(ids, np.arange(len(ids)) >= max(1, len(prompt)), len(prompt))


def batch(lengths: Sequence[tuple[int, int, int]] = ((9, 4, 6), (3, 8, 2), (14, 1, 5)), *, seed: int = 0) -> TextBatch:
    """Pairs of (prompt, chosen, rejected) tokens."""
    generator = np.random.default_rng(seed)
    prompts = [generator.integers(5, 380, prompt).tolist() for prompt, _, _ in lengths]
    chosen = [sequence(generator, prompt, length[1]) for prompt, length in zip(prompts, lengths, strict=True)]
    rejected = [sequence(generator, prompt, length[2]) for prompt, length in zip(prompts, lengths, strict=True)]
    ones = torch.ones(len(lengths))
    return TextBatch([str(n) for n in range(len(lengths))], chosen, rejected, ones, ones, 0 * ones)


def network(
    family: Any = "llama", *, tied: bool = False, dtype: torch.dtype = torch.float32, **more: Any
) -> LanguageModel:
    return LanguageModel(tiny_text.language_model(family, tied=tied, **more).to(dtype))


def brute_tokens(model: LanguageModel, tokens: TokenSequence, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of the scored tokens of one sequence alone, by the model's own logits, in float64."""
    ids = torch.from_numpy(tokens.ids.astype(np.int64))
    logits = model.model(input_ids=ids[None]).logits[0].double() / temperature
    shares = torch.log_softmax(logits, -1)
    return torch.stack([shares[t - 1, ids[t]] for t in range(1, len(ids)) if tokens.scored[t]])


@pytest.mark.parametrize(("family", "tied"), MODELS)
@pytest.mark.parametrize("share_prompt", [False, True])
def test_sums_are_those_of_the_full_softmax(family: str, tied: bool, share_prompt: bool) -> None:
    model, pairs = network(family, tied=tied), batch()
    likelihood = TokenLikelihood(share_prompt=share_prompt, temperature=1.3)
    found = likelihood.logps(model, likelihood.prepare(pairs))
    expected = torch.stack([brute_tokens(model, s, 1.3).sum() for s in (*pairs.chosen, *pairs.rejected)])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("family", "tied"), MODELS)
@pytest.mark.parametrize("share_prompt", [False, True])
@pytest.mark.parametrize("kept_bytes", [0, 1 << 30])
def test_gradients_are_those_of_the_full_softmax(family: str, tied: bool, share_prompt: bool, kept_bytes: int) -> None:
    model, pairs = network(family, tied=tied, dtype=torch.float64), batch()
    likelihood = TokenLikelihood(share_prompt=share_prompt, kept_bytes=kept_bytes)
    push = torch.linspace(-1, 2, 6, dtype=torch.float64)
    parameters = list(model.parameters())
    ours = torch.autograd.grad((likelihood.logps(model, likelihood.prepare(pairs)) * push).sum(), parameters)
    brute = torch.stack([brute_tokens(model, s).sum() for s in (*pairs.chosen, *pairs.rejected)])
    for found, expected in zip(ours, torch.autograd.grad((brute * push).sum(), parameters), strict=True):
        # Llama norms in float32 whatever its weights.
        tolerance = 1e-9 if family == "gpt2" else 1e-5
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_shared_prompts_in_float32_agree_to_1e_5() -> None:
    model, pairs = network(), batch()
    values, gradients = [], []
    for share_prompt in (False, True):
        likelihood = TokenLikelihood(share_prompt=share_prompt)
        logps = likelihood.logps(model, likelihood.prepare(pairs))
        # The mean over tokens, as numbers and gradients of a step are.
        mean = logps / likelihood.lengths(likelihood.prepare(pairs))
        values.append(mean)
        gradients.append(torch.autograd.grad(mean.mean(), list(model.parameters())))
    torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=1e-5)
    for shared, apart in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(shared, apart, rtol=1e-5, atol=1e-5)


def test_shared_rows_hold_each_prompt_once() -> None:
    pairs = batch(((9, 4, 6), (3, 8, 2)))
    inputs = TokenLikelihood(share_prompt=True).prepare(pairs)
    assert inputs.input_ids.shape == (2, 19)
    assert inputs.input_ids[0].tolist() == [*pairs.chosen[0].ids, *pairs.rejected[0].ids[9:]]
    assert inputs.position_ids[1, :13].tolist() == [*range(11), 3, 4]
    assert shared_length(pairs.chosen[0], pairs.rejected[0]) == 9


def test_prompts_that_differ_share_what_they_have_in_common() -> None:
    generator = np.random.default_rng(1)
    chosen, rejected = sequence(generator, [7, 8, 9, 10], 3), sequence(generator, [7, 8, 11], 4)
    assert shared_length(chosen, rejected) == 2
    none = sequence(generator, [6], 3), sequence(generator, [12], 2)
    assert shared_length(*none) == 0
    whole = TokenSequence(np.arange(5, 9, dtype=np.int32), np.arange(4) > 0, 0), sequence(generator, [5], 2)
    ones = torch.ones(3)
    pairs = TextBatch(["0", "1", "2"], [chosen, none[0], whole[0]], [rejected, none[1], whole[1]], ones, ones, 0 * ones)
    model, likelihood = network(), TokenLikelihood(share_prompt=True)
    expected = torch.stack([brute_tokens(model, s).sum() for s in (*pairs.chosen, *pairs.rejected)])
    found = likelihood.logps(model, likelihood.prepare(pairs))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def test_a_pair_gets_the_same_number_in_any_batch() -> None:
    model, pairs = network("gpt2"), batch()
    long = batch(((40, 30, 20),), seed=9)
    together = TextBatch(
        [*pairs.example_ids, "long"],
        [*pairs.chosen, *long.chosen],
        [*pairs.rejected, *long.rejected],
        torch.ones(4),
        torch.ones(4),
        torch.zeros(4),
    )
    for share_prompt in (False, True):
        likelihood = TokenLikelihood(share_prompt=share_prompt)
        alone = likelihood.logps(model, likelihood.prepare(pairs))
        padded = likelihood.logps(model, likelihood.prepare(together))
        torch.testing.assert_close(padded[[0, 1, 2, 4, 5, 6]], alone, rtol=1e-5, atol=1e-5)


def test_lengths_count_the_scored_tokens() -> None:
    likelihood: Likelihood = TokenLikelihood()  # type: ignore[assignment]
    inputs = likelihood.prepare(batch())  # type: ignore[arg-type]
    lengths = likelihood.lengths(inputs)
    assert lengths is not None
    assert lengths.tolist() == [4, 8, 1, 6, 2, 5]
    assert lengths.dtype == torch.float32


def test_tokens_between_turns_are_not_scored() -> None:
    ids = np.arange(5, 15, dtype=np.int32)
    scored = np.array([0, 0, 1, 1, 0, 0, 0, 1, 1, 0], np.bool_)
    turns = TokenSequence(ids, scored, 2)
    model, likelihood = network(), TokenLikelihood()
    inputs = likelihood.prepare_sequences([turns])
    assert likelihood.lengths(inputs).tolist() == [4]
    found = likelihood.token_logps(model, inputs)
    torch.testing.assert_close(found.logps.double(), brute_tokens(model, turns), rtol=1e-5, atol=1e-5)
    assert found.rows.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("share_prompt", [False, True])
def test_the_tail_of_the_longer_side_counts_by_its_weight(share_prompt: bool) -> None:
    model, pairs = network(), batch()
    likelihood = TokenLikelihood(share_prompt=share_prompt, tail_weight=0.25)
    inputs = likelihood.prepare(pairs)
    expected = []
    for own, other in (
        *zip(pairs.chosen, pairs.rejected, strict=True),
        *zip(pairs.rejected, pairs.chosen, strict=True),
    ):
        tokens, shorter = brute_tokens(model, own), min(own.num_scored, other.num_scored)
        expected.append(tokens[:shorter].sum() + 0.25 * tokens[shorter:].sum())
    torch.testing.assert_close(likelihood.logps(model, inputs).double(), torch.stack(expected), rtol=1e-5, atol=1e-4)
    assert likelihood.lengths(inputs).tolist() == [4, 8, 1, 6, 2, 5]
    # The chosen half alone, as supervised fine-tuning sees it, has no shorter side.
    whole = torch.stack([brute_tokens(model, own).sum() for own in pairs.chosen])
    torch.testing.assert_close(likelihood.logps(model, likelihood.chosen(inputs)).double(), whole, rtol=1e-5, atol=1e-4)


def test_single_samples_are_all_chosen() -> None:
    model, pairs, likelihood = network(), batch(), TokenLikelihood(share_prompt=True, tail_weight=0.5)
    ones = torch.ones(3)
    inputs = likelihood.prepare(TextBatch(pairs.example_ids, pairs.chosen, [], ones, ones, 0 * ones))
    expected = torch.stack([brute_tokens(model, s).sum() for s in pairs.chosen])
    for some in (inputs, likelihood.chosen(inputs)):
        torch.testing.assert_close(likelihood.logps(model, some).double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("share_prompt", [False, True])
def test_entropies_are_those_of_the_full_softmax(share_prompt: bool) -> None:
    model, pairs = network(dtype=torch.float64), batch()
    likelihood = TokenLikelihood(share_prompt=share_prompt, temperature=0.8)
    found = likelihood.token_logps(model, likelihood.prepare(pairs), entropy=True)
    expected = []
    for tokens in (*pairs.chosen, *pairs.rejected):
        logits = model.model(input_ids=torch.from_numpy(tokens.ids.astype(np.int64))[None]).logits[0]
        shares = torch.softmax(logits / 0.8, -1)
        expected.append(-(shares * shares.log()).sum(-1)[np.flatnonzero(tokens.scored) - 1])
    assert found.entropy is not None
    torch.testing.assert_close(found.entropy, torch.cat(expected), rtol=1e-9, atol=1e-9)
    assert found.rows.tolist() == [0] * 4 + [1] * 8 + [2] + [3] * 6 + [4] * 2 + [5] * 5


def test_a_sequence_without_a_scored_token_gives_a_zero_with_a_gradient() -> None:
    model, likelihood = network(), TokenLikelihood()
    silent = TokenSequence(np.array([5, 6], np.int32), np.zeros(2, np.bool_), 2)
    inputs = likelihood.prepare_sequences([silent])
    logps = likelihood.logps(model, inputs)
    assert logps.tolist() == [0.0]
    assert likelihood.lengths(inputs).tolist() == [1.0]
    logps.sum().backward()


def test_bfloat16_models_give_float32_sums() -> None:
    model, pairs = network(dtype=torch.bfloat16), batch()
    for share_prompt in (False, True):
        likelihood = TokenLikelihood(share_prompt=share_prompt)
        assert likelihood.logps(model, likelihood.prepare(pairs)).dtype == torch.float32


def test_a_model_that_sees_through_the_mask_is_refused_with_shared_prompts() -> None:
    """A window of 8 positions in the row is not a window of 8 positions in the text."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, sliding_window=8, initializer_range=0.3,
    )  # fmt: skip
    model, likelihood = LanguageModel(MistralForCausalLM(config).eval()), TokenLikelihood(share_prompt=True)
    short = batch(((2, 2, 3),))
    likelihood.logps(model, likelihood.prepare(short))  # below the window there is no difference
    with pytest.raises(UserError, match="text.share_prompt"):
        likelihood.logps(model, likelihood.prepare(batch()))


@pytest.mark.parametrize(
    ("failure", "kind"),
    [(ValueError("no such mask"), UserError), (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError)],
)
def test_what_a_model_makes_of_the_mask_of_shared_rows(failure: Exception, kind: type[Exception]) -> None:
    """Its own failure says that it takes no such rows; a lack of memory stays one."""

    def fail(*_: object) -> None:
        raise failure

    model, likelihood = network(), TokenLikelihood(share_prompt=True)
    model.register_forward_pre_hook(fail)
    with pytest.raises(kind):
        likelihood.logps(model, likelihood.prepare(batch()))


def test_shared_rows_are_checked_once_for_each_length_and_network() -> None:
    model, pairs = network(), batch()
    likelihood, calls = TokenLikelihood(share_prompt=True), []
    model.register_forward_hook(lambda *_: calls.append(1))
    inputs = likelihood.prepare(pairs)
    likelihood.logps(model, inputs)
    assert len(calls) == 3
    likelihood.logps(model, inputs)
    assert len(calls) == 4
    likelihood.logps(model, likelihood.prepare(batch(((30, 5, 5),))))
    assert len(calls) == 7
    other = network(seed=1)
    likelihood.logps(other, inputs)
    with torch.no_grad():
        likelihood.logps(model, inputs)
    assert len(calls) == 8
