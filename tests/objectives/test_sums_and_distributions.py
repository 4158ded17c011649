"""Weighted sums of objectives, objectives that compare whole batches in parts, and what the catalog says of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from objective_calls import call, random_pairs
from torch import Tensor

from diffusion_feedback.catalog import check_settings, check_terms, names, needs_reference, objectives_for, parts_of
from diffusion_feedback.catalog.families import FAMILIES
from diffusion_feedback.catalog.objectives import OBJECTIVES
from diffusion_feedback.errors import UserError
from diffusion_feedback.objectives.pairwise import dpo, hinge, ipo, odpo, sppo
from diffusion_feedback.objectives.shifted import bco
from diffusion_feedback.objectives.weighted_sum import weighted_sum
from diffusion_feedback.types.training import PairLogps

# --- weighted sums ------------------------------------------------------------------------------------------------------

MPO = [
    {"name": "dpo", "weight": 0.8, "beta": 0.1},
    {"name": "bco", "weight": 0.2, "beta": 0.1},
    {"name": "sft", "weight": 1.0},
]


def test_a_sum_is_the_sum_of_its_terms() -> None:
    logps, shift = random_pairs(6), torch.tensor(0.3)
    assert logps.chosen_length is not None
    nll = -logps.policy_chosen / logps.chosen_length
    expected = 0.8 * dpo(logps, beta=0.1) + 0.2 * bco(logps, shift, beta=0.1) + nll
    torch.testing.assert_close(weighted_sum(logps, mean_log_ratio=shift, terms=MPO), expected)


def test_cal_dpo_is_a_sum() -> None:
    """Cal-DPO (arXiv:2412.14516) is dpo at beta 1 and both squares of sppo."""
    logps = random_pairs(6)
    terms = [{"name": "dpo", "weight": 1.0, "beta": 1.0}, {"name": "sppo", "weight": 1.0, "beta": 0.5}]
    torch.testing.assert_close(weighted_sum(logps, terms=terms), dpo(logps, beta=1.0) + sppo(logps, beta=0.5))


def test_labels_and_margins_go_to_the_terms_that_know_them() -> None:
    logps, soft, margin = random_pairs(4), torch.full((4,), 0.7), torch.full((4,), 2.0)
    terms = [{"name": "odpo", "weight": 2.0, "beta": 0.1}, {"name": "sft", "weight": 1.0}]
    assert logps.chosen_length is not None
    expected = 2 * odpo(logps, soft, margin, beta=0.1) - logps.policy_chosen / logps.chosen_length
    torch.testing.assert_close(weighted_sum(logps, soft, margin, terms=terms), expected)


def test_soft_labels_that_a_term_would_ignore_are_refused() -> None:
    terms = [{"name": "dpo", "weight": 1.0, "beta": 0.1}, {"name": "hinge", "weight": 1.0, "beta": 0.1}]
    with pytest.raises(UserError, match=r"soft_labels: term 2 \(hinge\) takes hard labels only"):
        weighted_sum(random_pairs(2), torch.ones(2), terms=terms)


def test_a_sum_without_a_reference_needs_none() -> None:
    logps = random_pairs(3)
    free = dataclasses.replace(logps, reference_chosen=None, reference_rejected=None)
    terms = [{"name": "simpo", "weight": 1.0, "beta": 2.0, "gamma": 1.0}, {"name": "sft", "weight": 0.5}]
    assert not needs_reference({"name": "weighted_sum", "terms": terms})
    torch.testing.assert_close(weighted_sum(free, terms=terms), weighted_sum(logps, terms=terms))
    assert needs_reference({"name": "weighted_sum", "terms": MPO})
    assert [part["name"] for part in parts_of({"name": "weighted_sum", "terms": MPO})] == ["dpo", "bco", "sft"]
    assert [name for name in names("objective") if name != "weighted_sum" and needs_reference({"name": name})] == [
        name for name in names("objective") if OBJECTIVES[name].needs_reference
    ]


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([], "got .*give a list such as"),
        ("dpo", "got 'dpo'"),
        ([{"name": "dpo", "beta": 0.1}], "term 1 .* without a name or a weight"),
        ([{"weight": 1.0}], "term 1 .* without a name or a weight"),
        ([*MPO, {"name": "simppo", "weight": 1.0}], "did you mean 'simpo'"),
        ([{"name": "dpo", "weight": 1.0}], "'dpo' needs a value for 'beta'"),
        ([{"name": "dpo", "weight": 1.0, "beta": 1.0, "gamma": 1.0}], "'dpo' does not take 'gamma'"),
        (
            [{"name": "kto", "weight": 1.0, "beta": 1.0}],
            "'kto' cannot be a term of a sum, as it looks at more than one pair",
        ),
        ([{"name": "aot", "weight": 1.0, "beta": 1.0}], "looks at more than one pair"),
        ([{"name": "pickscore", "weight": 1.0}], "no loss on pairs of samples"),
        ([{"name": "weighted_sum", "weight": 1.0, "terms": MPO}], "no loss on pairs of samples"),
    ],
)
def test_terms_that_cannot_be_summed_are_refused(terms: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        check_terms(terms)
    with pytest.raises(UserError):
        check_settings("objective", "weighted_sum", {"terms": terms})


@pytest.mark.parametrize("weight", [0, -1.0, float("inf"), "much"])
def test_weights_out_of_range_are_named(weight: Any) -> None:
    terms = [{"name": "sft", "weight": weight}]
    with pytest.raises(UserError, match=rf"term 1 \(sft\) has the weight {weight!r}"):
        weighted_sum(random_pairs(2), terms=terms)


# --- distributions ------------------------------------------------------------------------------------------------------


def part(logps: PairLogps, indices: Sequence[int]) -> PairLogps:
    return PairLogps(*[getattr(logps, field.name)[list(indices)] for field in dataclasses.fields(logps)])


def gradients(name: str, logps: PairLogps, parts: Sequence[Sequence[int]]) -> tuple[float, Tensor]:
    """Sum of the losses over ``parts`` of a batch, and its gradient in all log-probabilities."""
    leaves = [side.clone().requires_grad_() for side in (logps.policy_chosen, logps.policy_rejected)]
    live = dataclasses.replace(logps, policy_chosen=leaves[0], policy_rejected=leaves[1])
    total = 0.0
    for indices in parts:
        losses = call(name, part(live, indices), logps, torch.tensor(list(indices)))
        losses.sum().backward()
        total += losses.sum().item()
    assert leaves[0].grad is not None
    assert leaves[1].grad is not None
    return total, torch.cat([leaves[0].grad, leaves[1].grad])


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_parts_add_up_to_the_whole(name: str) -> None:
    logps = random_pairs(7, seed=5)
    leaves = [side.clone().requires_grad_() for side in (logps.policy_chosen, logps.policy_rejected)]
    whole = call(name, dataclasses.replace(logps, policy_chosen=leaves[0], policy_rejected=leaves[1])).sum()
    whole.backward()
    assert leaves[0].grad is not None
    assert leaves[1].grad is not None
    for parts in ([[0, 1, 2, 3, 4, 5, 6]], [[2, 5], [0, 6, 3], [4], [1]]):
        total, gradient = gradients(name, logps, parts)
        assert total == pytest.approx(whole.item(), rel=1e-14)
        torch.testing.assert_close(gradient, torch.cat([leaves[0].grad, leaves[1].grad]), rtol=1e-13, atol=1e-15)


def test_aot_by_hand() -> None:
    """Margins 1, 3, 2 of the policy and 0, 5, 1 of the reference: sorted differences 1 - 0, 2 - 1, 3 - 5."""
    zero = torch.zeros(3, dtype=torch.float64)
    logps = PairLogps(zero + torch.tensor([1.0, 3.0, 2.0]), zero, zero + torch.tensor([0.0, 5.0, 1.0]), zero)
    expected = torch.nn.functional.softplus(-torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(call("aot", logps, beta=1.0, label_smoothing=0.0), expected)


def test_aot_unpaired_does_not_care_who_was_paired_with_whom() -> None:
    logps = random_pairs(6)
    swapped = dataclasses.replace(
        logps,
        policy_rejected=logps.policy_rejected.flip(0),
        reference_rejected=logps.reference_rejected.flip(0),  # type: ignore[union-attr]
    )
    torch.testing.assert_close(call("aot_unpaired", swapped), call("aot_unpaired", logps))
    assert not torch.allclose(call("dpo", swapped), call("dpo", logps))


# --- the catalog --------------------------------------------------------------------------------------------------------


def test_what_is_refused_has_a_reason_and_would_otherwise_fit() -> None:
    refused = {name: row for name, row in OBJECTIVES.items() if row.images is not None}
    for name, row in refused.items():
        assert row.images is not None
        assert len(row.images.split()) > 5
        for family in ("sd", "sdxl"):
            assert row.kind in FAMILIES[family].kinds
            assert name not in objectives_for(family)
        assert name in objectives_for("causal_lm")
    assert set(refused) >= {"dpo_norm", "rdpo", "odpo", "simpo", "alphapo"}


def test_batch_coupled_objectives_say_so() -> None:
    coupled = {name for name, row in OBJECTIVES.items() if row.is_coupled}
    assert coupled >= {"aot", "aot_unpaired", "kto", "pickscore_in_batch"}
    assert coupled.isdisjoint({"dpo", "bco", "sft", "weighted_sum"})


def test_lengths_are_what_the_refused_ones_need() -> None:
    """Without lengths dpo_norm and rdpo are dpo, which is why images are refused them; ipo is defined all the same."""
    logps = dataclasses.replace(random_pairs(4), chosen_length=None, rejected_length=None)
    torch.testing.assert_close(call("dpo_norm", logps), call("dpo", logps))
    torch.testing.assert_close(call("rdpo", logps), call("dpo", logps))
    assert logps.reference_chosen is not None
    assert logps.reference_rejected is not None
    d = (logps.policy_chosen - logps.reference_chosen) - (logps.policy_rejected - logps.reference_rejected)
    torch.testing.assert_close(ipo(logps, beta=0.5), (d - 1.0) ** 2)
    torch.testing.assert_close(hinge(logps, beta=0.5), torch.relu(1 - 0.5 * d))
