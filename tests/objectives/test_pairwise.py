"""Pairwise losses against values worked out by hand, formulas written independently, and the properties of each."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_calls import COUPLED, WITH_REFERENCE, call, pairs
from torch import Tensor

from diffusion_feedback.catalog import check_settings, resolve
from diffusion_feedback.catalog.objectives import OBJECTIVES
from diffusion_feedback.catalog.rows import settings_of
from diffusion_feedback.errors import UserError
from diffusion_feedback.objectives.pairwise import dpo, hinge, ipo, robust
from diffusion_feedback.types.training import PairLogps

LN2 = 0.6931471805599453
PAIRWISE = [name for name in WITH_REFERENCE if name not in (*COUPLED, "bco")]
# Where samples have no length and pairs no margin, these see nothing but d.
OF_MARGIN = [name for name in PAIRWISE if name not in ("dpop", "nca", "sppo", "apo_zero", "apo_down")]
# What stands still or falls back at h = 0: apo_down's two pulls on the chosen sample cancel, discopop rises with z there.
STANDS_STILL, FALLS_BACK = "apo_down", "discopop"


def at_margin(d: float, dtype: torch.dtype = torch.float64) -> PairLogps:
    return pairs([d], [0.0], [0.0], [0.0], dtype=dtype)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def errors(chosen: float, rejected: float, reference_chosen: float, reference_rejected: float) -> PairLogps:
    """Pairs from mean squared errors, as the denoising likelihood makes them."""
    return pairs(*[[-0.5 * error] for error in (chosen, rejected, reference_chosen, reference_rejected)])


# --- values ---------------------------------------------------------------------------------------------------------


def test_dpo_on_denoising_errors_has_slope_2500() -> None:
    """z = -2500 [(0.1502 - 0.1498) - (0.1503 - 0.1497)] = 0.5; dL/dm = +-2500 sigmoid(-0.5)."""
    m = torch.tensor([0.1502, 0.1498], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.1503, 0.1497], dtype=torch.float64)
    loss = dpo(PairLogps(*(-0.5 * m).split(1), *(-0.5 * reference).split(1)), beta=5000.0)
    assert loss.item() == pytest.approx(0.474076984180, abs=1e-12)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.5)), abs=1e-12)
    loss.sum().backward()
    assert m.grad is not None
    assert m.grad.tolist() == pytest.approx([943.851672, -943.851672], abs=1e-6)
    assert m.grad.tolist() == pytest.approx([2500 * sigmoid(-0.5), -2500 * sigmoid(-0.5)], rel=1e-12)


@pytest.mark.parametrize("d", [-30.0, -2.0, -0.3, 0.0, 0.7, 4.0, 25.0])
@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_losses_agree_with_formulas_written_with_exponentials(d: float, beta: float) -> None:
    eps, z = 0.2, beta * d
    right, flipped = math.log1p(math.exp(-z)), math.log1p(math.exp(z))
    logps = at_margin(d)
    expected = {
        "dpo": (dpo(logps, beta=beta), right),
        "conservative": (dpo(logps, beta=beta, label_smoothing=eps), (1 - eps) * right + eps * flipped),
        "ipo": (ipo(logps, beta=beta), d * d - d / beta + 1 / (4 * beta * beta)),
        "hinge": (hinge(logps, beta=beta), 1 - z if z < 1 else 0.0),
        "robust": (robust(logps, beta=beta, label_smoothing=eps), (0.8 * right - 0.2 * flipped) / 0.6),
    }
    for name, (got, value) in expected.items():
        assert got.item() == pytest.approx(value, rel=1e-12, abs=1e-12), name


def test_ipo_has_its_minimum_at_half_of_one_over_beta() -> None:
    assert ipo(at_margin(1 / (2 * 0.3)), beta=0.3).item() == pytest.approx(0, abs=1e-24)


def test_hinge_is_flat_beyond_one_over_beta() -> None:
    assert hinge(at_margin(10.5), beta=0.1).item() == 0
    assert hinge(at_margin(9.5), beta=0.1).item() == pytest.approx(0.05)


@pytest.mark.parametrize("z", [-3.0, 0.4, 2.5])
def test_robust_is_unbiased_under_label_flips(z: float) -> None:
    """(1 - eps) L(z) + eps L(-z), the mean over flips, is dpo's loss on the true label."""
    eps = 0.3
    kept, flipped = (robust(at_margin(sign * z), beta=1.0, label_smoothing=eps) for sign in (1, -1))
    torch.testing.assert_close((1 - eps) * kept + eps * flipped, dpo(at_margin(z), beta=1.0))


def test_robust_without_noise_is_dpo() -> None:
    logps = pairs([0.3, -2.0], [0.1, 4.0], [0.0, 0.5], [0.2, -0.5])
    torch.testing.assert_close(robust(logps, beta=0.7, label_smoothing=0.0), dpo(logps, beta=0.7))


# --- soft labels ------------------------------------------------------------------------------------------------------


def test_certain_labels_are_the_default() -> None:
    logps = pairs([0.3, -2.0], [0.1, 4.0], [0.0, 0.5], [0.2, -0.5])
    torch.testing.assert_close(dpo(logps, torch.ones(2), beta=0.7), dpo(logps, beta=0.7))


def test_soft_label_and_smoothing_combine_to_one_probability() -> None:
    """p = 0.9, eps = 0.1: q = 0.9 * 0.9 + 0.1 * 0.1 = 0.82."""
    got = dpo(at_margin(1.0), torch.tensor([0.9]), beta=1.0, label_smoothing=0.1)
    assert got.item() == pytest.approx(-0.82 * math.log(sigmoid(1)) - 0.18 * math.log(sigmoid(-1)), abs=1e-7)


@pytest.mark.parametrize("q", [0.5, 0.7, 0.95])
def test_minimum_lies_where_the_implicit_preference_is_the_label(q: float) -> None:
    d = torch.tensor([math.log(q / (1 - q))], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    dpo(PairLogps(d, zero, zero, zero), torch.tensor([q], dtype=torch.float64), beta=1.0).sum().backward()
    assert d.grad is not None
    assert d.grad.item() == pytest.approx(0, abs=1e-15)


def test_a_tie_is_the_same_both_ways() -> None:
    half = torch.tensor([0.5])
    torch.testing.assert_close(dpo(at_margin(2.0), half, beta=1.0), dpo(at_margin(-2.0), half, beta=1.0))


SOFT = ["dpo", "cdpo", "dpo_norm", "odpo", "rdpo", "dpop", "sppo"]


def test_soft_labels_are_taken_where_they_are_defined() -> None:
    """The rows say who is handed soft labels; a row that says so wrongly would be a silent mistake."""
    takes = [name for name in PAIRWISE if "chosen_probability" in OBJECTIVES[name].inputs]
    assert takes == SOFT


@pytest.mark.parametrize("name", SOFT)
def test_a_soft_label_changes_the_loss(name: str) -> None:
    logps, labels = (
        pairs([0.3, -2.0], [0.1, 4.0], [0.0, 0.5], [0.2, -0.5]),
        torch.tensor([0.7, 1.0], dtype=torch.float64),
    )
    soft, hard = call(name, logps, labels), call(name, logps)
    assert soft[0] != hard[0]
    assert soft[1] == hard[1]


# --- properties of every pairwise objective ---------------------------------------------------------------------------

finite = st.floats(-50, 50, allow_nan=False)
four = st.tuples(finite, finite, finite, finite)


@pytest.mark.parametrize("name", OF_MARGIN)
@given(values=four, swap=st.booleans())
def test_loss_depends_on_the_margin_alone_and_falls_with_it(name: str, values: tuple[float, ...], swap: bool) -> None:
    """Swapping chosen and rejected negates d; a loss at -|d| is never below the loss at |d|, up to its optimum."""
    a, b, c, d = values
    logps = pairs([b], [a], [d], [c]) if swap else pairs([a], [b], [c], [d])
    margin = ((b - a) - (d - c)) if swap else ((a - b) - (c - d))
    torch.testing.assert_close(call(name, logps), call(name, at_margin(margin)), rtol=1e-9, atol=1e-9)
    low, high = call(name, at_margin(-abs(margin))), call(name, at_margin(abs(margin)))
    assert (low - high).item() >= -1e-9 or name == FALLS_BACK


@pytest.mark.parametrize("name", PAIRWISE)
def test_gradient_raises_chosen_and_lowers_rejected(name: str) -> None:
    """At policy == reference: dL/dchosen < 0 < dL/drejected, equal and opposite where d alone counts."""
    chosen, rejected = (torch.tensor([-3.0, 2.0], dtype=torch.float64, requires_grad=True) for _ in range(2))
    call(name, PairLogps(chosen, rejected, chosen.detach().clone(), rejected.detach().clone())).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    if name == FALLS_BACK:
        assert (chosen.grad > 0).all()
    elif name == STANDS_STILL:
        assert chosen.grad.abs().max() < 1e-15
    else:
        assert (chosen.grad < 0).all()
    assert (rejected.grad < 0).all() if name == FALLS_BACK else (rejected.grad > 0).all()
    if name in OF_MARGIN:
        torch.testing.assert_close(rejected.grad, -chosen.grad)


@pytest.mark.parametrize("name", OF_MARGIN)
def test_what_adds_to_both_samples_cancels(name: str) -> None:
    """Shift invariance: what depends on the prompt alone, such as log Z(x), must drop out."""
    logps = pairs([0.3, -2.0], [0.1, 4.0], [0.0, 0.5], [0.2, -0.5])
    shift = torch.tensor([5.0, -11.0], dtype=torch.float64)
    policy = PairLogps(
        logps.policy_chosen + shift, logps.policy_rejected + shift, logps.reference_chosen, logps.reference_rejected
    )
    torch.testing.assert_close(call(name, policy), call(name, logps))
    assert logps.reference_chosen is not None
    assert logps.reference_rejected is not None
    reference = PairLogps(
        logps.policy_chosen, logps.policy_rejected, logps.reference_chosen + shift, logps.reference_rejected + shift
    )
    torch.testing.assert_close(call(name, reference), call(name, logps))


@pytest.mark.parametrize("name", PAIRWISE)
def test_gradcheck(name: str) -> None:
    inputs = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.3, -2.0, 1.1], [0.1, 4.0, -0.7])]
    reference = torch.tensor([0.0, 0.5, 0.2], dtype=torch.float64)

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return call(name, PairLogps(chosen, rejected, reference, -reference))

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("name", PAIRWISE)
def test_reference_gets_no_gradient(name: str) -> None:
    parts = [torch.tensor([value], requires_grad=True) for value in (0.3, 0.1, 0.2, -0.4)]
    call(name, PairLogps(*parts)).sum().backward()
    assert [part.grad is not None for part in parts] == [True, True, False, False]


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize(
    ("given_type", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_losses_are_float32_or_wider(name: str, given_type: torch.dtype, expected: torch.dtype) -> None:
    logps = pairs([0.3, -2.0], [0.1, 4.0], [0.0, 0.5], [0.2, -0.5], dtype=given_type)
    loss = call(name, logps)
    assert loss.dtype == expected
    assert loss.shape == (2,)


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("d", [-1e5, -1e3, 1e3, 1e5])
def test_extreme_margins_stay_finite(name: str, d: float) -> None:
    policy = torch.tensor([d], requires_grad=True)
    zero = torch.zeros(1)
    loss = call(name, PairLogps(policy, zero, zero, zero))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert policy.grad is not None
    assert policy.grad.isfinite().all()


@pytest.mark.parametrize("name", PAIRWISE)
def test_losses_of_a_batch_are_those_of_its_examples(name: str) -> None:
    """No coupling within a batch: accumulation and data parallelism are then exact."""
    columns = [0.3, -2.0, 7.0], [0.1, 4.0, 6.5], [0.0, 0.5, 1.0], [0.2, -0.5, -1.0]
    whole = call(name, pairs(*columns))
    alone = [call(name, pairs(*[[column[i]] for column in columns])) for i in range(3)]
    assert torch.equal(whole, torch.cat(alone))


@pytest.mark.parametrize("name", PAIRWISE)
def test_half_of_the_error_at_twice_the_beta_is_the_same_loss(name: str) -> None:
    """logp = -1/2 error at beta 5000, and logp = -error at beta 2500; ipo and sppo measure log-probabilities, hence 4."""
    values = torch.tensor([[0.1502, 0.1498], [0.1498, 0.1512], [0.1503, 0.15], [0.1497, 0.151]], dtype=torch.float64)
    halves, wholes = PairLogps(*(-0.5 * values)), PairLogps(*(-values))
    scale = 4 if name in ("ipo", "sppo") else 1
    torch.testing.assert_close(
        scale * call(name, halves, beta=5000.0), call(name, wholes, beta=2500.0), rtol=1e-9, atol=0
    )


def test_large_log_probabilities_do_not_drown_the_margin() -> None:
    """Sums over a long text are large and close to the reference's: subtract those first."""
    logps = pairs([-70_000.125], [-3.0], [-70_000.0], [-3.5], dtype=torch.float32)
    assert dpo(logps, beta=1.0).item() == pytest.approx(math.log(1 + math.exp(0.625)), rel=1e-6)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, math.inf])
def test_beta_out_of_range_is_named(name: str, beta: float) -> None:
    with pytest.raises(UserError, match=rf"objective\.beta: got {beta!r}\n.*above 0"):
        call(name, at_margin(0.0), beta=beta)


SMOOTHED = [name for name in PAIRWISE if "label_smoothing" in settings_of(resolve("objective", name))]


@pytest.mark.parametrize("name", SMOOTHED)
@pytest.mark.parametrize("label_smoothing", [-0.1, 0.5, 1.0, math.nan])
def test_label_smoothing_out_of_range_is_named(name: str, label_smoothing: float) -> None:
    with pytest.raises(
        UserError, match=rf"objective\.label_smoothing: got {label_smoothing!r}\n.*(below 0\.5|above 0)"
    ):
        call(name, at_margin(0.0), label_smoothing=label_smoothing)


@pytest.mark.parametrize("name", ["cdpo", "exo"])
def test_labels_have_to_be_smoothed(name: str) -> None:
    with pytest.raises(UserError, match=r"objective\.label_smoothing: got 0\.0\n.*above 0"):
        call(name, at_margin(0.0), label_smoothing=0.0)


@pytest.mark.parametrize("name", PAIRWISE)
def test_missing_reference_is_refused(name: str) -> None:
    one = torch.ones(1)
    for logps in (PairLogps(one, one), PairLogps(one, one, one, None), PairLogps(one, one, None, one)):
        with pytest.raises(UserError, match="reference"):
            call(name, logps)


def test_shapes_that_would_broadcast_are_refused() -> None:
    two, column = torch.ones(2), torch.ones(2, 1)
    with pytest.raises(ValueError, match="one shape"):
        dpo(PairLogps(two, column, two, two), beta=1.0)
    with pytest.raises(ValueError, match="one shape"):
        dpo(PairLogps(column, column, column, column), beta=1.0)
    with pytest.raises(ValueError, match="chosen_probability"):
        dpo(PairLogps(two, two, two, two), torch.ones(1), beta=1.0)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dpo", {"beta": 1.0, "label_smooting": 0.1}, "did you mean 'label_smoothing'"),
        ("dpo", {"betta": 1.0}, "did you mean 'beta'"),
        ("ipo", {"beta": 1.0, "label_smoothing": 0.1}, "'ipo' does not take 'label_smoothing'"),
        ("hinge", {"beta": 1.0, "label_smoothing": 0.1}, "'hinge' does not take 'label_smoothing'"),
        ("dpo", {}, "needs a value for 'beta'"),
        ("robust", {"beta": 1.0}, "needs a value for 'label_smoothing'"),
        ("dpo", {"beta": 1.0, "chosen_probability": 1.0}, "does not take 'chosen_probability'"),
    ],
)
def test_settings_that_nobody_consumes_are_refused(name: str, settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_settings("objective", name, settings)
