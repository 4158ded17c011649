"""What holds for objectives on samples of every kind: values by plain floats, signs, shapes, precision, settings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from objective_calls import (
    COUPLED,
    FREE,
    ON_PAIRS,
    UNPAIRED,
    WITH_REFERENCE,
    call,
    pairs,
    random_pairs,
    settings_for,
    unpaired,
)
from torch import Tensor

from diffusion_feedback.catalog import check_settings, resolve
from diffusion_feedback.catalog.objectives import OBJECTIVES
from diffusion_feedback.catalog.rows import settings_of
from diffusion_feedback.errors import UserError
from diffusion_feedback.objectives.divergences import DIVERGENCES, divergence_score
from diffusion_feedback.types.training import PairLogps, UnpairedLogps

LN2 = 0.6931471805599453
# Of the reference's table: the loss where policy equals reference, at beta 0.1.
AT_START = {
    "dpo": LN2, "cdpo": LN2, "robust": LN2, "ipo": 25.0, "hinge": 1.0, "exo": -LN2 - 0.5 * math.log(1e-3 * (1 - 1e-3)),
    "dpo_norm": LN2, "odpo": LN2, "dpop": LN2, "discopop": 0.5 * LN2 + 0.5, "nca": 2 * LN2, "sppo": 50.0, "apo_zero": 1.0,
    "apo_down": 1.0, "bco": 2 * LN2, "aot": LN2, "aot_unpaired": LN2,
}  # fmt: skip


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def nls(x: float) -> float:
    """-log sigmoid(x)."""
    return math.log1p(math.exp(-x)) if x > -30 else -x


# --- values -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in WITH_REFERENCE if name != "rdpo"])
def test_value_where_policy_equals_reference(name: str) -> None:
    equal = pairs([-3.0, 2.0], [-7.0, 1.5], [-3.0, 2.0], [-7.0, 1.5])
    settings = {"label_smoothing": 1e-3} if name == "exo" else {}
    assert call(name, equal, **settings).tolist() == pytest.approx([AT_START[name]] * 2, abs=1e-12)


def test_figures_of_the_table() -> None:
    assert AT_START["exo"] == pytest.approx(2.761, abs=5e-4)
    assert AT_START["discopop"] == pytest.approx(0.8466, abs=5e-5)


# s_w, s_l, r_w, r_l, n_w, n_l of two pairs; settings are those of ``objective_calls``: beta 0.1 (0.1), smoothing 0.1.
ROWS = [(-4.0, -9.0, -5.5, -7.0, 3.0, 5.0), (-8.0, -2.5, -6.0, -3.0, 4.0, 2.0)]


def plain(name: str, s_w: float, s_l: float, r_w: float, r_l: float, n_w: float, n_l: float) -> float:
    """The formula of each objective in plain floats, from its paper."""
    h_w, h_l, b, eps = s_w - r_w, s_l - r_l, 0.1, 0.1
    d, a_w, a_l, nll = h_w - h_l, s_w / n_w, s_l / n_l, -s_w / n_w

    def smoothed(z: float) -> float:
        return 0.9 * nls(z) + 0.1 * nls(-z)

    def odds(a: float) -> float:
        return math.log(math.exp(a) / (1 - math.exp(a)))

    def bent(a: float) -> float:
        return (1 - math.exp(a) ** -0.25) / 0.25

    q, g = sigmoid(b * d), sigmoid(b * d / 0.05)
    formulas: dict[str, Callable[[], float]] = {
        "dpo": lambda: smoothed(b * d),
        "cdpo": lambda: smoothed(b * d),
        "robust": lambda: (0.9 * nls(b * d) - 0.1 * nls(-b * d)) / 0.8,
        "ipo": lambda: (h_w / n_w - h_l / n_l - 5.0) ** 2,
        "hinge": lambda: max(0.0, 1 - b * d),
        "exo": lambda: q * math.log(q / (1 - eps)) + (1 - q) * math.log((1 - q) / eps),
        "dpo_norm": lambda: smoothed(b * (h_w / n_w - h_l / n_l)),
        "odpo": lambda: smoothed(b * d - 1.5 * 2.0),
        "rdpo": lambda: smoothed(b * d + 0.05 * (n_w - n_l)),
        "dpop": lambda: smoothed(b * (d - 5.0 * max(0.0, r_w - s_w))),
        "discopop": lambda: (1 - g) * nls(b * d) + g * math.exp(-b * d),
        "nca": lambda: nls(b * h_w) + 0.5 * nls(-b * h_w) + 0.5 * nls(-b * h_l),
        "sppo": lambda: (h_w - 5.0) ** 2 + (h_l + 5.0) ** 2,
        "apo_zero": lambda: 1 - sigmoid(b * h_w) + sigmoid(b * h_l),
        "apo_down": lambda: sigmoid(b * h_w) + 1 - sigmoid(b * (h_w - h_l)),
        "bco": lambda: nls(b * (h_w - 0.7)) + nls(-b * (h_l - 0.7)),
        "cpo": lambda: smoothed(b * (s_w - s_l)) + 0.5 * nll,
        "simpo": lambda: smoothed(b * (a_w - a_l) - 0.3),
        "alphapo": lambda: smoothed(b * (bent(a_w) - bent(a_l)) - 0.3),
        "slic": lambda: max(0.0, 1.0 - s_w + s_l) + 0.5 * nll,
        "orpo": lambda: nll + b * nls(odds(a_w) - odds(a_l)),
        "weighted_sum": lambda: (
            0.8 * nls(b * d) + 0.2 * (nls(0.2 * h_w) + nls(-0.2 * h_l)) + 0.4 * nls(2.0 * (a_w - a_l) - 0.5) + nll
        ),
    }
    return formulas[name]()


@pytest.mark.parametrize("name", [name for name in ON_PAIRS if name not in COUPLED])
def test_values_by_plain_floats(name: str) -> None:
    *columns, n_w, n_l = (list(column) for column in zip(*ROWS, strict=True))
    handed: dict[str, Any] = {}
    if name == "odpo":
        handed["margin"] = torch.tensor([2.0, 2.0])
    if name == "bco":
        handed["mean_log_ratio"] = torch.tensor(0.7)
    losses = call(name, pairs(*columns, lengths=(n_w, n_l)), **handed)
    assert losses.tolist() == pytest.approx([plain(name, *row) for row in ROWS], rel=1e-7 if name == "bco" else 1e-12)


def test_a_margin_in_the_objective_is_a_margin_in_logits() -> None:
    """With a margin of 0, odpo is dpo; with a length offset of 0, so is rdpo."""
    logps = random_pairs(5)
    expected = call("dpo", logps)
    torch.testing.assert_close(call("odpo", logps, margin=torch.zeros(5)), expected)
    torch.testing.assert_close(call("odpo", logps, margin=torch.ones(5), alpha=0.0), expected)
    torch.testing.assert_close(call("rdpo", logps, alpha=0.0), expected)
    with pytest.raises(ValueError, match="margin must have shape"):
        call("odpo", logps, margin=torch.zeros(4))


def test_length_explains_what_length_gave() -> None:
    """Where the whole margin is owed to length, z + alpha (n_w - n_l) says so: the longer chosen sample is pulled less."""
    longer, shorter = (pairs([0.0], [0.0], [0.0], [0.0], lengths=n) for n in (([9.0], [3.0]), ([3.0], [9.0])))
    assert call("rdpo", longer, label_smoothing=0.0).item() < LN2 < call("rdpo", shorter, label_smoothing=0.0).item()


def test_alphapo_tends_to_simpo() -> None:
    logps = random_pairs(6)
    torch.testing.assert_close(call("alphapo", logps, alpha=1e-7), call("simpo", logps), rtol=1e-5, atol=1e-6)


def test_orpo_of_nearly_certain_samples_is_finite() -> None:
    """p = 1 - 1e-12 and p = 1: odds are cut where 1 - p runs out of digits; no NaN, no infinity, in value or gradient."""
    policy = torch.tensor([-1e-12, 0.0, -5e-8, -1e-3, -90.0], requires_grad=True)
    losses = call("orpo", PairLogps(policy, policy.detach().flip(0)))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert policy.grad is not None
    assert policy.grad.isfinite().all()


def test_unpaired_values_by_plain_floats() -> None:
    """h = 1.5 desirable, h = -0.5 undesirable; z = 0.4, beta 0.1, weights 1.2 and 0.7."""
    logps = unpaired([-1.0, -3.0], [-2.5, -2.5], [True, False])
    kto = call("kto", logps, torch.tensor(0.4, dtype=torch.float64))
    assert kto.tolist() == pytest.approx([1.2 * (1 - sigmoid(0.11)), 0.7 * (1 - sigmoid(0.09))], rel=1e-12)
    zero = [1.2 * (1 - sigmoid(0.15)), 0.7 * sigmoid(-0.05)]
    assert call("apo_zero_unpaired", logps).tolist() == pytest.approx(zero, rel=1e-12)
    torch.testing.assert_close(call("kto", logps), call("apo_zero_unpaired", logps))


@pytest.mark.parametrize("name", UNPAIRED)
def test_unpaired_value_where_policy_equals_reference(name: str) -> None:
    equal = unpaired([-3.0, -7.0], [-3.0, -7.0], [True, False])
    assert call(name, equal, desirable_weight=1.0, undesirable_weight=1.0).tolist() == pytest.approx(
        [0.5, 0.5], abs=1e-15
    )


def test_a_pair_of_single_samples_is_apo_zero() -> None:
    logps = random_pairs(6)
    assert logps.reference_chosen is not None
    assert logps.reference_rejected is not None
    both = UnpairedLogps(
        torch.cat([logps.policy_chosen, logps.policy_rejected]),
        torch.cat([logps.reference_chosen, logps.reference_rejected]),
        torch.arange(12) < 6,
    )
    chosen, rejected = call("apo_zero_unpaired", both, desirable_weight=1.0, undesirable_weight=1.0).chunk(2)
    torch.testing.assert_close(chosen + rejected, call("apo_zero", logps))


# --- signs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ON_PAIRS if name not in ("apo_down", "discopop")])
def test_chosen_goes_up_and_rejected_down(name: str) -> None:
    """At h = 0, where a run begins: dL/ds_w < 0 < dL/ds_l."""
    chosen, rejected = (torch.tensor([-3.0, -2.0], dtype=torch.float64, requires_grad=True) for _ in range(2))
    lengths = torch.tensor([2.0, 3.0], dtype=torch.float64)
    logps = PairLogps(chosen, rejected, chosen.detach().clone(), rejected.detach().clone(), lengths, lengths)
    call(name, logps).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert (chosen.grad < 0).all()
    assert (rejected.grad > 0).all()


@pytest.mark.parametrize("name", UNPAIRED)
def test_desirable_goes_up_and_undesirable_down(name: str) -> None:
    policy = torch.tensor([-3.0, -2.0], requires_grad=True)
    logps = UnpairedLogps(policy, policy.detach().clone(), torch.tensor([True, False]))
    call(name, logps).sum().backward()
    assert policy.grad is not None
    assert policy.grad[0] < 0 < policy.grad[1]


# --- properties ---------------------------------------------------------------------------------------------------------

SHIFT_INVARIANT = {
    "dpo", "cdpo", "robust", "ipo", "hinge", "exo", "dpo_norm", "odpo", "rdpo", "discopop", "aot", "simpo",
}  # fmt: skip


@pytest.mark.parametrize("name", ON_PAIRS)
def test_what_adds_to_both_samples_cancels_where_it_should(name: str) -> None:
    """What depends on the prompt alone drops out of objectives that see differences of samples of equal length."""
    logps = random_pairs(4)
    same = torch.full((4,), 3.0, dtype=torch.float64)
    before = dataclasses.replace(logps, chosen_length=same, rejected_length=same)
    # Odds, bent probabilities and thresholds would hide a shift that is too small.
    shift = torch.tensor([-5.0, -11.0, -2.0, -7.0], dtype=torch.float64)
    after = dataclasses.replace(
        before, policy_chosen=before.policy_chosen + shift, policy_rejected=before.policy_rejected + shift
    )
    assert torch.allclose(call(name, before), call(name, after)) == (name in SHIFT_INVARIANT)


@pytest.mark.parametrize("name", ON_PAIRS)
def test_gradcheck(name: str) -> None:
    logps = random_pairs(4, seed=1)

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        # aot_unpaired counts a loss with one sample and its gradient with two, so only its sum is a function.
        return call(name, dataclasses.replace(logps, policy_chosen=chosen, policy_rejected=rejected)).sum()

    inputs = [side.clone().requires_grad_() for side in (logps.policy_chosen, logps.policy_rejected)]
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("name", UNPAIRED)
def test_gradcheck_of_single_samples(name: str) -> None:
    policy = torch.tensor([-1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    logps = unpaired([0, 0, 0], [-1.5, -1.0, 0.2], [True, False, True])
    assert torch.autograd.gradcheck(lambda value: call(name, dataclasses.replace(logps, policy=value)), [policy])


@pytest.mark.parametrize("name", [*ON_PAIRS, *UNPAIRED])
@pytest.mark.parametrize("given_type", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_losses_are_one_an_example_in_float32_or_wider(name: str, given_type: torch.dtype) -> None:
    settings = settings_for(name)
    check_settings("objective", name, settings)
    if name in UNPAIRED:
        losses = call(name, unpaired([-1.0, -2.0, -0.5], [-1.0, -2.5, 0.0], [True, False, True], given_type))
    else:
        losses = call(name, pairs(*[[-1.0, -2.0, -0.5]] * 4, dtype=given_type, lengths=([1, 2, 3], [3, 2, 1])))
    assert losses.shape == (3,)
    assert losses.dtype == (torch.float64 if given_type is torch.float64 else torch.float32)


@pytest.mark.parametrize("name", [*WITH_REFERENCE, "weighted_sum"])
def test_reference_gets_no_gradient_and_has_to_be_there(name: str) -> None:
    parts = [torch.tensor([value, value - 1], requires_grad=True) for value in (-0.3, -0.1, -0.2, -0.4)]
    call(name, PairLogps(*parts)).sum().backward()
    assert [part.grad is not None for part in parts] == [True, True, False, False]
    with pytest.raises(UserError, match="use a reference"):
        call(name, PairLogps(*parts[:2]))


@pytest.mark.parametrize("name", FREE)
def test_reference_free_objectives_do_not_look_at_a_reference(name: str) -> None:
    logps = random_pairs(4)
    free = dataclasses.replace(logps, reference_chosen=None, reference_rejected=None)
    assert torch.equal(call(name, logps), call(name, free))


@pytest.mark.parametrize("name", [*FREE, "bco", "aot", "aot_unpaired", "weighted_sum"])
@pytest.mark.parametrize("d", [-1e5, -1e3, 1e3, 1e5])
def test_extreme_margins_stay_finite(name: str, d: float) -> None:
    policy = torch.tensor([-1.0 + min(d, 0), -2.0], requires_grad=True)
    rejected = torch.tensor([-1.0 - max(d, 0), -3.0])
    losses = call(name, PairLogps(policy, rejected, -torch.ones(2), -torch.ones(2)))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert policy.grad is not None
    assert policy.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name in ON_PAIRS if name not in COUPLED])
def test_losses_of_a_batch_are_those_of_its_examples(name: str) -> None:
    whole = random_pairs(3)
    columns = [getattr(whole, field.name) for field in dataclasses.fields(whole)]
    alone = [call(name, PairLogps(*[column[i : i + 1] for column in columns])) for i in range(3)]
    torch.testing.assert_close(call(name, whole), torch.cat(alone), rtol=1e-14, atol=0)


# --- settings -----------------------------------------------------------------------------------------------------------

CHANGED: dict[str, Any] = {
    "f_divergence_type": "js_divergence", "terms": [{"name": "dpo", "weight": 0.8, "beta": 0.2}],
}  # fmt: skip


@pytest.mark.parametrize("name", [*ON_PAIRS, *UNPAIRED])
def test_every_setting_changes_the_loss(name: str) -> None:
    logps: Any = random_pairs(5, seed=2)
    handed: dict[str, Any] = {"margin": torch.full((5,), 0.5)} if name == "odpo" else {}
    if name in UNPAIRED:
        logps = UnpairedLogps(
            logps.policy_chosen, logps.reference_chosen, torch.tensor([True, False, True, False, True])
        )
    before = call(name, logps, **handed).tolist()
    for key, value in settings_for(name).items():
        if key == "f_alpha_divergence_coef":
            change = {"f_divergence_type": "alpha_divergence", key: 1.5}
        else:
            change = {key: CHANGED[key] if key in CHANGED else value * 2}
        assert call(name, logps, **handed, **change).tolist() != before, key


BAD = {
    "beta": [0.0, -1.0, math.nan, math.inf],
    "label_smoothing": [-0.1, 0.5, math.nan],
    "alpha": [math.nan, math.inf],
    "gamma": [-0.1, math.nan],
    "delta": [-1.0, math.inf],
    "tau": [0.0, math.nan],
    "dpop_lambda": [-1.0, math.inf],
    "desirable_weight": [-1.0, math.nan],
    "undesirable_weight": [-1.0, math.inf],
    "f_divergence_type": ["kl", ""],
    "f_alpha_divergence_coef": [1.5],
}


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        (name, key, value)
        for name in [*ON_PAIRS, *UNPAIRED]
        for key in settings_of(resolve("objective", name))
        for value in BAD.get(key, [])
    ],
)
def test_settings_out_of_range_are_named(name: str, key: str, value: Any) -> None:
    logps: Any = unpaired([0.0], [0.0], [True]) if name in UNPAIRED else pairs([-1.0], [-1.0], [-1.0], [-1.0])
    with pytest.raises(UserError, match=rf"objective\.{key}: (got {value!r}|means nothing)"):
        call(name, logps, **{key: value})


@pytest.mark.parametrize("name", ["simpo", "cpo", "orpo"])
def test_log_probabilities_of_another_shape_are_refused(name: str) -> None:
    two, three = torch.full((2,), -1.0), torch.full((3,), -1.0)
    with pytest.raises(ValueError, match=r"one shape \(B,\), got \[\(2,\), \(3,\)\]"):
        call(name, PairLogps(two, three))
    with pytest.raises(ValueError, match=r"one shape \(B,\), got \[\(2, 1\), \(2, 1\)\]"):
        call(name, PairLogps(two[:, None], two[:, None]))
    with pytest.raises(ValueError, match=r"lengths must have shape \(2,\), got \[\(2,\), \(3,\)\]"):
        call("simpo", PairLogps(two, two, chosen_length=-two, rejected_length=-three))


@pytest.mark.parametrize("name", UNPAIRED)
def test_single_samples_of_another_shape_are_refused(name: str) -> None:
    two, three = torch.full((2,), -1.0), torch.full((3,), -1.0)
    with pytest.raises(ValueError, match=r"one shape \(B,\), got \[\(2,\), \(3,\), \(2,\)\]"):
        call(name, UnpairedLogps(two, three, two < 0))
    with pytest.raises(ValueError, match=r"one shape \(B,\), got \[\(2,\), \(2,\), \(3,\)\]"):
        call(name, UnpairedLogps(two, two, three < 0))


def test_alpha_divergence_needs_its_coefficient() -> None:
    logps = random_pairs(2)
    with pytest.raises(UserError, match=r"f_alpha_divergence_coef: got None\n.*needs a finite number"):
        call("dpo", logps, f_divergence_type="alpha_divergence")
    with pytest.raises(UserError, match=r"alpha: got 0\n.*use simpo"):
        call("alphapo", logps, alpha=0)


@pytest.mark.parametrize("h", [-300.0, -2.0, -1e-3, 0.0, 0.5, 3.0, 300.0])
def test_divergences_are_slopes_of_their_functions(h: float) -> None:
    """f'(u) at u = e^h, from f of the f-DPO paper: u ln u, -ln u, and so on; less f'(1), so that all are 0 at h = 0."""
    value = torch.tensor([h], dtype=torch.float64, requires_grad=True)
    found = {kind: divergence_score(value, kind, 0.5 if kind == "alpha_divergence" else None) for kind in DIVERGENCES}
    for kind, score in found.items():
        gradient = torch.autograd.grad(score.sum(), value)[0]
        assert score.isfinite().all(), kind
        assert gradient.isfinite().all(), kind
        assert (gradient >= 0).all(), kind
    if abs(h) < 10:
        u = math.exp(h)
        expected = {
            "reverse_kl": math.log(u),
            "forward_kl": 1 - 1 / u,
            "js_divergence": math.log(2 * u / (1 + u)),
            "alpha_divergence": (u**-0.5 - 1) / -0.5,
        }
        assert {kind: score.item() for kind, score in found.items()} == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_every_objective_on_samples_is_called_here() -> None:
    """A new objective of the catalog is either of a kind that these tests go through, or has a test file of its own."""
    others = {name: row.kind for name, row in OBJECTIVES.items() if name not in (*ON_PAIRS, *UNPAIRED)}
    assert set(others.values()) == {"pointwise", "ranking", "reward", "policy_gradient", "value_learning"}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_row_says_what_its_function_is_handed(name: str) -> None:
    OBJECTIVES[name].check_signature(name)
