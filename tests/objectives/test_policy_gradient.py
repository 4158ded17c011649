"""PPO, GRPO and RLOO against loops over single tokens in plain floats, and against TRL where it still has them."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_text
import torch
from torch import Tensor

from diffusion_feedback.catalog import check_settings, resolve
from diffusion_feedback.catalog.objectives import OBJECTIVES
from diffusion_feedback.errors import UserError
from diffusion_feedback.objectives.policy_gradient import GRPO, PPO, RLOO, Actions, Experience, log_ratio
from diffusion_feedback.objectives.returns import (
    adapted_kl_coef,
    gae,
    group_normalised,
    k1,
    k3,
    leave_one_out,
    per_completion,
    shaped_scores,
    token_rewards,
    whiten,
)

LENGTHS = [3, 1, 5, 2, 4, 1, 2, 6]


def experience(seed: int = 0, *, num_generations: int = 4, with_values: bool = True) -> Experience:
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    tokens = sum(LENGTHS)
    return Experience(
        -draw(tokens).abs(),
        torch.tensor(LENGTHS),
        draw(len(LENGTHS)),
        -draw(tokens).abs(),
        draw(tokens) if with_values else None,
        num_generations,
    )


def rows(flat: Tensor) -> list[list[float]]:
    return [part.tolist() for part in flat.split(LENGTHS)]


def actions(found: Experience, advantages: Tensor, seed: int = 1, **more: Any) -> Actions:
    generator = torch.Generator().manual_seed(seed)
    moved = 0.4 * torch.randn(len(found.logps), generator=generator, dtype=torch.float64)
    return Actions(found.logps + moved, found.logps, advantages, found.lengths, **more)


# ---------------------------------------------------------------- rewards, advantages, baselines


def gae_loop(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> list[float]:
    """The definition, not the recursion: A_t = sum_l (gamma lam)^l delta_{t+l}."""
    number = len(rewards)
    ahead = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * ahead[t] - values[t] for t in range(number)]
    return [sum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, number)) for t in range(number)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 0.0), (0.0, 0.5), (1.0, 1.0)])
def test_gae_is_the_sum_of_its_definition(gamma: float, lam: float) -> None:
    found = experience()
    assert found.values is not None
    rewards = torch.randn(len(found.logps), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected = [
        advantage
        for reward, value in zip(rows(rewards), rows(found.values), strict=True)
        for advantage in gae_loop(reward, value, gamma, lam)
    ]
    ours = gae(rewards, found.values, found.lengths, gamma=gamma, lam=lam)
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=1e-12)


def test_monte_carlo_advantages_add_up_to_the_reward() -> None:
    """With gamma and lambda 1 an advantage plus its value is the sum of the rewards that follow."""
    found = experience()
    assert found.values is not None
    rewards = token_rewards(found.scores, torch.zeros_like(found.logps), found.lengths, kl_coef=0.1)
    returns = gae(rewards, found.values, found.lengths, gamma=1, lam=1) + found.values
    torch.testing.assert_close(returns, found.scores.repeat_interleave(found.lengths))


def test_rewards_are_equation_2_of_instructgpt() -> None:
    found = experience()
    assert found.reference is not None
    beta = 0.3
    rewards = token_rewards(found.scores, k1(found.logps, found.reference), found.lengths, kl_coef=beta)
    for index, reward in enumerate(rows(rewards)):
        policy, reference = rows(found.logps)[index], rows(found.reference)[index]
        score = float(found.scores[index])
        assert sum(reward) == pytest.approx(score - beta * (sum(policy) - sum(reference)), abs=1e-12)
        assert reward[-1] == pytest.approx(score - beta * (policy[-1] - reference[-1]), abs=1e-12)
        assert reward[0] == pytest.approx(reward[-1] if len(reward) == 1 else -beta * (policy[0] - reference[0]))


def test_estimators_of_the_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 40, generator=generator, dtype=torch.float64).log_softmax(1)
    exact = float((policy.exp() * (policy - reference)).sum())
    for estimator in (k1, k3):
        assert float((policy.exp() * estimator(policy, reference)).sum()) == pytest.approx(exact, abs=1e-12)
    assert (k3(policy, reference) >= 0).all()
    assert (k1(policy, reference) < 0).any()
    assert torch.isfinite(k3(torch.tensor([-1e4]), torch.tensor([0.0]))).all()


def test_whitening_sees_every_token_and_no_padding() -> None:
    values = torch.tensor([3.0, -1.0, 4.0, 1.0, -5.0], dtype=torch.float64)
    mean, deviation = statistics.fmean(values.tolist()), statistics.stdev(values.tolist())
    expected = (values - mean) / deviation
    torch.testing.assert_close(whiten(values), expected, atol=1e-8, rtol=1e-8)
    assert whiten(torch.full((3,), 2.0)).tolist() == [0, 0, 0]
    assert whiten(torch.tensor([2.0])).tolist() == [0]
    # Completions of other lengths beside it do not change what a completion is worth before whitening.
    found = experience()
    assert found.values is not None
    alone = gae(found.logps[:3], found.values[:3], torch.tensor([3]))
    together = gae(found.logps, found.values, found.lengths)
    assert torch.equal(alone, together[:3])


def test_baselines_of_a_group() -> None:
    scores = experience().scores
    for baseline, formula in (
        (leave_one_out, lambda own, group: own - (sum(group) - own) / (len(group) - 1)),
        (group_normalised, lambda own, group: (own - statistics.fmean(group)) / (statistics.stdev(group) + 1e-4)),
    ):
        groups = [scores[:4].tolist(), scores[4:].tolist()]
        expected = [formula(own, group) for group in groups for own in group]
        assert baseline(scores, 4).tolist() == pytest.approx(expected, abs=1e-12)
    assert group_normalised(torch.ones(4), 4).tolist() == [0, 0, 0, 0]


def test_shaped_scores_clip_first_and_then_punish() -> None:
    scores, finished = torch.tensor([9.0, -9.0, 1.0]), torch.tensor([True, True, False])
    shaped = shaped_scores(scores, finished, missing_eos_penalty=7.0, reward_clip=2.0)
    assert shaped.tolist() == [2, -2, -6]
    assert shaped_scores(scores, finished).tolist() == [9, -9, 1]


def test_adaptive_coefficient_moves_against_the_error_by_a_fifth_at_most() -> None:
    # Ziegler et al.: target 6, horizon 10,000, batches of 512.
    settings = {"target": 6.0, "horizon": 10000.0, "completions": 512}
    assert adapted_kl_coef(0.2, 60.0, **settings) == pytest.approx(0.2 * (1 + 0.2 * 0.0512))
    assert adapted_kl_coef(0.2, 0.0, **settings) == pytest.approx(0.2 * (1 - 0.2 * 0.0512))
    assert adapted_kl_coef(0.2, 6.6, **settings) == pytest.approx(0.2 * (1 + 0.1 * 0.0512))
    fixed, adaptive = PPO(kl_coef=0.2), PPO(kl_coef=0.2, target_kl=6.0)
    assert fixed.next_kl_coef(0.2, 60.0, 512) == 0.2
    assert adaptive.next_kl_coef(0.2, 6.6, 512) == pytest.approx(0.2 * (1 + 0.1 * 0.0512))
    assert [each.next_kl_coef(0.2, 60.0, 512) for each in (GRPO(beta=0.2), RLOO(beta=0.2))] == [0.2, 0.2]


# ---------------------------------------------------------------- losses


def clipped(ratio: float, advantage: float, low: float, high: float) -> float:
    return -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def test_ppo_token_by_token() -> None:
    found = experience()
    assert found.reference is not None
    assert found.values is not None
    settings: dict[str, Any] = {"kl_coef": 0.2, "lam": 0.8, "cliprange": 0.1, "cliprange_value": 0.3, "vf_coef": 0.7}
    algorithm = PPO(**settings)
    estimates = algorithm.estimate(found, 0.2)
    raw = []
    for index, length in enumerate(LENGTHS):
        policy, reference = rows(found.logps)[index], rows(found.reference)[index]
        reward = [-0.2 * (policy[t] - reference[t]) for t in range(length)]
        assert float(estimates.non_score[index]) == pytest.approx(sum(reward), abs=1e-12)
        reward[-1] += float(found.scores[index])
        raw.append(gae_loop(reward, rows(found.values)[index], 1.0, 0.8))
    flat = [advantage for row in raw for advantage in row]
    mean, deviation = statistics.fmean(flat), statistics.stdev(flat)
    assert estimates.advantages.tolist() == pytest.approx([(a - mean) / deviation for a in flat], abs=1e-7)
    assert estimates.returns is not None
    expected = [a + v for a, v in zip(flat, found.values.tolist(), strict=True)]
    assert estimates.returns.tolist() == pytest.approx(expected, abs=1e-12)

    moved = found.values + 0.5 * torch.randn(len(flat), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    given = actions(
        found, estimates.advantages, values=moved, old_values=found.values, returns=estimates.returns
    )  # fmt: skip
    losses = algorithm.losses(given)
    for index, (policy, old, advantage, value, was, target) in enumerate(
        zip(
            *map(rows, (given.policy, given.old, given.advantages, moved, found.values, estimates.returns)), strict=True
        )
    ):
        total = 0.0
        for t in range(len(policy)):
            total += clipped(math.exp(policy[t] - old[t]), advantage[t], 0.1, 0.1)
            near = was[t] + min(max(value[t] - was[t], -0.3), 0.3)
            total += 0.7 * 0.5 * max((value[t] - target[t]) ** 2, (near - target[t]) ** 2)
        assert float(losses.total[index]) == pytest.approx(total, abs=1e-12)
    assert algorithm.counts(found.lengths).tolist() == LENGTHS
    assert losses.metrics["val/ratio"].tolist() == pytest.approx((given.policy - given.old).exp().tolist())
    assert 0 < float(losses.metrics["policy/clipfrac_avg"].mean()) < 1
    assert 0 < float(losses.metrics["val/clipfrac_avg"].mean()) < 1


def test_grpo_token_by_token() -> None:
    found = experience(with_values=False)
    assert found.reference is not None
    algorithm = GRPO(beta=0.3, epsilon=0.1, epsilon_high=0.25)
    estimates = algorithm.estimate(found, 0.3)
    given = actions(found, estimates.advantages, reference=found.reference)
    losses = algorithm.losses(given).total
    for index, length in enumerate(LENGTHS):
        group = found.scores[index // 4 * 4 : index // 4 * 4 + 4].tolist()
        own = (float(found.scores[index]) - statistics.fmean(group)) / (statistics.stdev(group) + 1e-4)
        policy, old, reference = (rows(flat)[index] for flat in (given.policy, given.old, found.reference))
        total = 0.0
        for t in range(length):
            gap = reference[t] - policy[t]
            total += clipped(math.exp(policy[t] - old[t]), own, 0.1, 0.25) + 0.3 * (math.exp(gap) - gap - 1)
        assert float(losses[index]) == pytest.approx(total / length, abs=1e-12)
    assert algorithm.counts(found.lengths).tolist() == [1] * len(LENGTHS)


def test_rloo_completion_by_completion() -> None:
    found = experience(with_values=False)
    assert found.reference is not None
    algorithm = RLOO(beta=0.3, epsilon=0.1)
    estimates = algorithm.estimate(found, 0.3)
    given = actions(found, estimates.advantages)
    losses = algorithm.losses(given).total
    rewards = [
        float(found.scores[index]) - 0.3 * (sum(rows(found.logps)[index]) - sum(rows(found.reference)[index]))
        for index in range(len(LENGTHS))
    ]
    for index in range(len(LENGTHS)):
        group = rewards[index // 4 * 4 : index // 4 * 4 + 4]
        own = rewards[index] - (sum(group) - rewards[index]) / 3
        ratio = math.exp(sum(rows(given.policy)[index]) - sum(rows(given.old)[index]))
        assert float(losses[index]) == pytest.approx(clipped(ratio, own, 0.1, 0.1), abs=1e-12)


@pytest.mark.parametrize("algorithm", [PPO(vf_coef=1e-9), GRPO(beta=0.0), RLOO(beta=0.0)])
def test_first_gradient_is_the_policy_gradient(algorithm: Any) -> None:
    """Before the first update the ratio is 1, and the gradient of the loss is - A per token (over the length for GRPO)."""
    found = experience()
    estimates = algorithm.estimate(found, 0.0)
    policy = found.logps.clone().requires_grad_()
    values = {"values": found.values, "old_values": found.values, "returns": estimates.returns}
    given = Actions(policy, found.logps, estimates.advantages, found.lengths, **values)
    algorithm.losses(given).total.sum().backward()
    scale = found.lengths.repeat_interleave(found.lengths) if isinstance(algorithm, GRPO) else 1
    assert policy.grad is not None
    torch.testing.assert_close(policy.grad, -estimates.advantages / scale)


@pytest.mark.parametrize(
    ("algorithm", "more"),
    [(PPO(kl_estimator="k3"), ("values", "old_values", "returns")), (GRPO(), ("reference",)), (RLOO(), ())],
)
def test_gradients_are_those_of_finite_differences(algorithm: Any, more: tuple[str, ...]) -> None:
    found = experience()
    estimates = algorithm.estimate(found, 0.1)
    values = {"values": found.values, "old_values": found.values, "returns": estimates.returns}
    parts = {**values, "reference": found.reference}
    given = actions(found, estimates.advantages)
    policy = given.policy.requires_grad_()

    def total(logps: Tensor) -> Tensor:
        losses: Tensor = algorithm.losses(
            Actions(logps, found.logps, estimates.advantages, found.lengths, **{name: parts[name] for name in more})
        ).total
        return losses

    assert torch.autograd.gradcheck(total, (policy,))


def test_half_precision_widens_and_runaway_ratios_stay_finite() -> None:
    found = experience()
    half = Experience(*(each.bfloat16() if each.is_floating_point() else each for each in (
        found.logps, found.lengths, found.scores, found.reference, found.values)), 4)  # type: ignore[union-attr,arg-type]  # fmt: skip
    for algorithm in (PPO(), GRPO(), RLOO()):
        estimates = algorithm.estimate(half, 0.1)
        assert estimates.advantages.dtype == torch.float32
        far = Actions(
            half.logps + 500, half.logps, estimates.advantages, half.lengths, half.reference, half.values, half.values,
            estimates.advantages,
        )  # fmt: skip
        losses = algorithm.losses(far).total
        assert losses.dtype == torch.float32
        assert torch.isfinite(losses).all()
    assert log_ratio(torch.tensor([1000.0]), torch.tensor([0.0])).item() == 20


def test_ppo_needs_values() -> None:
    found = experience(with_values=False)
    with pytest.raises(ValueError, match="values of the drawn tokens"):
        PPO().estimate(found, 0.1)
    with pytest.raises(ValueError, match="values, old values and returns"):
        PPO().losses(actions(found, torch.zeros(sum(LENGTHS))))


def test_settings_out_of_range_are_refused() -> None:
    for build, settings, named in (
        (PPO, {"kl_coef": -1.0}, "kl_coef"),
        (PPO, {"kl_coef": math.nan}, "kl_coef"),
        (PPO, {"gamma": 1.1}, "gamma"),
        (PPO, {"lam": -0.1}, "lam"),
        (PPO, {"cliprange": 0.0}, "cliprange"),
        (PPO, {"vf_coef": 0.0}, "vf_coef"),
        (PPO, {"kl_estimator": "k2"}, "kl_estimator"),
        (PPO, {"kl_coef": 0.0, "target_kl": 6.0}, "kl_coef"),
        (GRPO, {"epsilon": 1.5}, "epsilon"),
        (GRPO, {"beta": math.inf}, "beta"),
        (RLOO, {"epsilon": -0.2}, "epsilon"),
    ):
        with pytest.raises(UserError, match=named):
            build(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["ppo", "grpo", "rloo"])
def test_catalog_knows_them(name: str) -> None:
    assert OBJECTIVES[name].learns_from == "rollouts"
    assert resolve("objective", name)().kl_coef > 0
    with pytest.raises(UserError, match="gama"):
        check_settings("objective", name, {"gama": 0.9})


# ---------------------------------------------------------------- TRL


def trl_trainer(kind: str, folder: Path) -> Any:
    """A real trainer of TRL on a tiny model, with a reward by length."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import trl
        from datasets import Dataset

        spelling = tiny_text.tokenizer(bos=False)
        model = tiny_text.save_tiny_lm(folder / "lm", spelling=spelling)
        # The paper's loss: by default TRL means over tokens (DAPO), and weighs the KL by the ratio (DeepSeek-V3.2).
        config = {"GRPO": {"loss_type": "grpo", "use_bias_correction_kl": False}, "RLOO": {}}[kind]
        arguments = getattr(trl, f"{kind}Config")(
            output_dir=str(folder / "out"), per_device_train_batch_size=8, num_generations=4, max_completion_length=5,
            report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, beta=0.3, disable_tqdm=True,
            logging_strategy="no", save_strategy="no", **config,
        )  # fmt: skip
        return getattr(trl, f"{kind}Trainer")(
            model=str(model),
            reward_funcs=lambda prompts, completions, **_: [len(text) % 7 - 3.0 for text in completions],
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": ["a red", "the cat"]}),
            processing_class=spelling,
        )


@pytest.mark.parametrize(("kind", "build"), [("GRPO", GRPO), ("RLOO", RLOO)])
def test_equal_to_trl(kind: str, build: Callable[..., Any], tmp_path: Path) -> None:
    """TRL's own rollouts: its advantages from its rewards, and its loss where the policy has moved since."""
    trainer = trl_trainer(kind, tmp_path)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = trainer._generate_and_score_completions([{"prompt": p} for p in ("a red", "the cat") for _ in range(4)])
    mask = drawn["completion_mask"].bool()
    lengths = mask.sum(1)
    ids = torch.cat([drawn["prompt_ids"], drawn["completion_ids"]], 1)
    keep = drawn["completion_ids"].shape[1]

    def logps(model: Any) -> Tensor:
        logits = model(input_ids=ids).logits[:, -keep - 1 : -1].log_softmax(-1)
        return logits.gather(-1, drawn["completion_ids"][..., None]).squeeze(-1)

    with torch.no_grad():
        old = logps(trainer.model)
        reference = logps(trainer.ref_model) - 0.1
        for parameter in trainer.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        new = logps(trainer.model)
    texts = trainer.processing_class.batch_decode(drawn["completion_ids"], skip_special_tokens=True)
    scores = torch.tensor([len(text) % 7 - 3.0 for text in texts])
    algorithm = build(beta=0.3)
    # TRL drew under policy equal to reference: its KL is 0 when the advantages are made.
    advantages = algorithm.estimate(Experience(old[mask], lengths, scores, old[mask], num_generations=4), 0.3)
    ends = lengths.cumsum(0) - 1
    torch.testing.assert_close(advantages.advantages[ends], drawn["advantages"], atol=1e-5, rtol=1e-5)

    theirs = dict(drawn)
    theirs |= {"old_per_token_logps": old, "ref_per_token_logps": reference, "old_logps": (old * mask).sum(1)}
    with torch.no_grad():
        expected = trainer._compute_loss(trainer.model, theirs)
    given = Actions(new[mask], old[mask], advantages.advantages, lengths, reference[mask] if kind == "GRPO" else None)
    ours = algorithm.losses(given).total.sum() / algorithm.counts(lengths).sum()
    assert (new[mask] - old[mask]).abs().max() > 0.1
    assert float(ours) == pytest.approx(float(expected), abs=1e-5)


def test_sums_of_completions() -> None:
    found = experience()
    expected = [sum(row) for row in rows(found.logps)]
    assert per_completion(found.logps, found.lengths).tolist() == pytest.approx(expected, abs=1e-12)
