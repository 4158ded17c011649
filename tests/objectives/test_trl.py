"""Every objective that TRL has gives TRL's numbers: its own methods are called, on scores instead of a model.

TRL's methods read attributes of a trainer; a namespace with just those stands in, so nothing of TRL's mathematics is
repeated here. What TRL gives as the mean of a batch is asked for pair by pair.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import objective_calls
import pytest
import torch
from torch import Tensor

from diffusion_feedback.catalog.objectives import OBJECTIVES
from diffusion_feedback.objectives import coupled, pairwise, reference_free, shifted, unpaired
from diffusion_feedback.objectives.metrics import pair_metrics
from diffusion_feedback.types.training import PairLogps, UnpairedLogps

PROMPT = 3


@pytest.fixture(scope="module")
def trl() -> Callable[[str, str], Any]:
    """Gives a name of one of TRL's modules, imported without its warnings, which are not about us."""

    def load(module: str, name: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(importlib.import_module(f"trl.{module}"), name)

    return load


@pytest.fixture(autouse=True)
def double_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """TRL makes constants in the default type and casts with .float(): both are double here, to compare all digits."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    yield
    torch.set_default_dtype(before)


def accelerator() -> SimpleNamespace:
    def same(value: Any) -> Any:
        return value

    return SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same)


def tokens(sums: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of tokens (N, T - 1) whose sums are given, and the mask of completions (N, T)."""
    longest = int(lengths.max())
    steps = torch.arange(longest) < lengths[:, None]
    logps = torch.where(steps, (sums / lengths)[:, None], 0.0)
    prompt = torch.zeros(len(sums), PROMPT)
    return torch.cat([prompt[:, 1:], logps], 1), torch.cat([prompt, steps.double()], 1).long()


class ScoredModel:
    """In place of a model: gives the log-probabilities that it was made with."""

    def __init__(self, log_probs: Tensor) -> None:
        nothing = torch.zeros_like(log_probs)
        self.training = True
        self.outputs = SimpleNamespace(
            log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool(), log_sum_sq_probs=nothing
        )

    def __call__(self, **_: Any) -> Any:
        return self.outputs


def dpo_trainer(loss_type: str, **settings: Any) -> SimpleNamespace:
    values: dict[str, Any] = {
        "beta": 0.1, "label_smoothing": 0.0, "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5,
        "aux_loss_enabled": False, "ld_alpha": None, "precompute_ref_logps": True, "use_weighting": False,
        "loss_types": [loss_type], "loss_weights": [1.0], "_total_train_tokens": 0, "_tp_size": 1,
        "accelerator": accelerator(), "args": SimpleNamespace(discopop_tau=settings.pop("tau", 0.05)),
    }  # fmt: skip
    return SimpleNamespace(**(values | settings), _metrics={"train": defaultdict(list)})


def trl_dpo(trainer_class: Any, trainer: SimpleNamespace, logps: PairLogps) -> Tensor:
    """TRL's loss of a batch, a scalar."""
    assert logps.reference_chosen is not None
    assert logps.chosen_length is not None
    assert logps.rejected_length is not None
    log_probs, mask = tokens(
        torch.cat([logps.policy_chosen, logps.policy_rejected]), torch.cat([logps.chosen_length, logps.rejected_length])
    )
    model = trainer.model = ScoredModel(log_probs)
    inputs = {
        "input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask,
        "ref_chosen_logps": logps.reference_chosen, "ref_rejected_logps": logps.reference_rejected,
    }  # fmt: skip
    loss: Tensor = trainer_class._compute_loss(trainer, model, inputs, False)
    return loss


def single(logps: PairLogps, index: int) -> PairLogps:
    columns = (logps.policy_chosen, logps.policy_rejected, logps.reference_chosen, logps.reference_rejected,
               logps.chosen_length, logps.rejected_length)  # fmt: skip
    return PairLogps(*[None if column is None else column[index : index + 1] for column in columns])  # type: ignore[arg-type]


def each(trainer_class: Any, logps: PairLogps, loss_type: str, **settings: Any) -> list[float]:
    return [
        trl_dpo(trainer_class, dpo_trainer(loss_type, **settings), single(logps, index)).item()
        for index in range(len(logps.policy_chosen))
    ]


def exactly(values: list[float]) -> Any:
    return pytest.approx(values, rel=1e-10, abs=1e-10)


SAME: list[tuple[Callable[..., Tensor], str, dict[str, Any]]] = [
    (pairwise.dpo, "sigmoid", {}),
    (pairwise.hinge, "hinge", {}),
    (pairwise.ipo, "ipo", {}),
    (pairwise.exo, "exo_pair", {"label_smoothing": 0.01}),
    (pairwise.robust, "robust", {"label_smoothing": 0.2}),
    (pairwise.discopop, "discopop", {"tau": 0.3}),
    (pairwise.dpo_norm, "sigmoid_norm", {}),
]  # fmt: skip
SIDES: list[tuple[Callable[..., Tensor], str, dict[str, Any]]] = [
    (pairwise.nca, "nca_pair", {}),
    (pairwise.sppo, "sppo_hard", {}),
    (pairwise.apo_zero, "apo_zero", {}),
    (pairwise.apo_down, "apo_down", {}),
    (shifted.bco, "bco_pair", {}),
]


@pytest.mark.parametrize("beta", [0.1, 1.3])
@pytest.mark.parametrize(("objective", "loss_type", "settings"), SAME + SIDES)
def test_losses_of_pairs(
    trl: Any, objective: Callable[..., Tensor], loss_type: str, settings: dict[str, Any], beta: float
) -> None:
    logps = objective_calls.random_pairs(12, seed=3)
    expected = each(trl("trainer.dpo_trainer", "DPOTrainer"), logps, loss_type, beta=beta, **settings)
    assert objective(logps, beta=beta, **settings).tolist() == exactly(expected)


@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence"])
@pytest.mark.parametrize(("objective", "loss_type", "settings"), SAME)
def test_divergences(
    trl: Any, objective: Callable[..., Tensor], loss_type: str, settings: dict[str, Any], divergence: str
) -> None:
    logps = objective_calls.random_pairs(8, seed=4)
    expected = each(
        trl("trainer.dpo_trainer", "DPOTrainer"), logps, loss_type, f_divergence_type=divergence, **settings
    )
    assert objective(logps, beta=0.1, f_divergence_type=divergence, **settings).tolist() == exactly(expected)


@pytest.mark.parametrize("coefficient", [0.3, 1.0, 1.7])
@pytest.mark.parametrize(("objective", "loss_type", "settings"), SAME)
def test_alpha_divergences(
    trl: Any,
    monkeypatch: pytest.MonkeyPatch,
    objective: Callable[..., Tensor],
    loss_type: str,
    settings: dict[str, Any],
    coefficient: float,
) -> None:
    """TRL knows half and single precision only here, so digits are those of float32."""
    monkeypatch.undo()
    torch.set_default_dtype(torch.float32)
    wide = objective_calls.random_pairs(8, seed=5)
    logps = PairLogps(*[getattr(wide, name).to(torch.float32) for name in wide.__slots__])
    change = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": coefficient}
    expected = each(trl("trainer.dpo_trainer", "DPOTrainer"), logps, loss_type, **change, **settings)
    assert objective(logps, beta=0.1, **change, **settings).tolist() == pytest.approx(expected, rel=2e-5, abs=2e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize(("objective", "loss_type"), [(coupled.aot, "aot"), (coupled.aot_unpaired, "aot_unpaired")])
def test_distributions(trl: Any, objective: Callable[..., Tensor], loss_type: str, label_smoothing: float) -> None:
    """The mean of a batch, and its gradient in every log-probability."""
    fixed = objective_calls.random_pairs(9, seed=6)
    found = []
    for compute in ("ours", "theirs"):
        chosen, rejected = (t.clone().requires_grad_() for t in (fixed.policy_chosen, fixed.policy_rejected))
        logps = PairLogps(chosen, rejected, fixed.reference_chosen, fixed.reference_rejected, fixed.chosen_length,
                          fixed.rejected_length)  # fmt: skip
        if compute == "ours":
            loss = objective(logps, beta=0.4, label_smoothing=label_smoothing).mean()
        else:
            trainer = dpo_trainer(loss_type, beta=0.4, label_smoothing=label_smoothing)
            loss = trl_dpo(trl("trainer.dpo_trainer", "DPOTrainer"), trainer, logps)
        loss.backward()
        assert chosen.grad is not None
        assert rejected.grad is not None
        found.append([loss.item(), *chosen.grad.tolist(), *rejected.grad.tolist()])
    assert found[0] == exactly(found[1])


def test_rewards_are_named_and_measured_as_there(trl: Any) -> None:
    logps, trainer = objective_calls.random_pairs(6, seed=8), dpo_trainer("sigmoid", beta=0.7)
    trl_dpo(trl("trainer.dpo_trainer", "DPOTrainer"), trainer, logps)
    ours = pair_metrics(logps, beta=0.7)
    for name in (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
    ):
        assert ours[name].mean().item() == exactly(trainer._metrics["train"][name][0]), name


# --- without a reference ------------------------------------------------------------------------------------------------


def means(logps: PairLogps) -> tuple[Tensor, Tensor]:
    assert logps.chosen_length is not None
    assert logps.rejected_length is not None
    return logps.policy_chosen / logps.chosen_length, logps.policy_rejected / logps.rejected_length


@pytest.mark.parametrize(("objective", "loss_type", "alpha", "settings"), [
    (reference_free.cpo, "sigmoid", 0.0, {"alpha": 0.0}),
    (reference_free.simpo, "simpo", 0.0, {"gamma": 0.6}),
    (reference_free.alphapo, "simpo", 0.25, {"gamma": 0.6, "alpha": 0.25}),
    (reference_free.alphapo, "simpo", -0.5, {"gamma": 0.6, "alpha": -0.5}),
])  # fmt: skip
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_contrastive_losses(
    trl: Any, objective: Callable[..., Tensor], loss_type: str, alpha: float, settings: Any, label_smoothing: float
) -> None:
    logps = objective_calls.random_pairs(12, seed=7)
    trainer = SimpleNamespace(
        alpha=alpha, beta=1.5, simpo_gamma=0.6, loss_type=loss_type, label_smoothing=label_smoothing,
        accelerator=accelerator(),
    )  # fmt: skip
    given = (logps.policy_chosen, logps.policy_rejected) if loss_type == "sigmoid" else means(logps)
    expected, chosen, rejected = trl("experimental.cpo.cpo_trainer", "CPOTrainer").cpo_loss(trainer, *given)
    losses = objective(logps, beta=1.5, label_smoothing=label_smoothing, **settings)
    assert losses.tolist() == exactly(expected.tolist())
    if alpha == 0:
        free = PairLogps(
            logps.policy_chosen, logps.policy_rejected, None, None, logps.chosen_length, logps.rejected_length
        )
        ours = pair_metrics(free, beta=1.5, per_token=OBJECTIVES[objective.__name__].rewards == "mean")
        assert ours["rewards/chosen"].tolist() == exactly(chosen.tolist())
        assert ours["rewards/rejected"].tolist() == exactly(rejected.tolist())


def test_odds_ratios(trl: Any) -> None:
    """TRL subtracts beta * log sigmoid(log odds ratio) from the likelihood of all tokens, the prompt's included."""
    logps = objective_calls.random_pairs(12, seed=9)
    trainer = SimpleNamespace(beta=0.3, accelerator=accelerator())
    ratios, chosen, *_ = trl("experimental.orpo.orpo_trainer", "ORPOTrainer").odds_ratio_loss(trainer, *means(logps))
    expected = -means(logps)[0] - ratios
    assert reference_free.orpo(logps, beta=0.3).tolist() == exactly(expected.tolist())
    free = PairLogps(logps.policy_chosen, logps.policy_rejected, None, None, logps.chosen_length, logps.rejected_length)
    assert pair_metrics(free, beta=0.3, per_token=True)["rewards/chosen"].tolist() == exactly(chosen.tolist())


@pytest.mark.parametrize("x", [-1e-9, -1e-4, -0.3, -0.7, -3.0, -40.0])
def test_log1mexp(trl: Any, x: float) -> None:
    expected = trl("experimental.orpo.orpo_trainer", "log1mexp")(torch.tensor([x]))
    assert reference_free.log1mexp(torch.tensor([x])).item() == exactly(expected.item())


# --- single samples -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "loss_type"), [(unpaired.kto, "kto"), (unpaired.apo_zero_unpaired, "apo_zero_unpaired")]
)
@pytest.mark.parametrize("divergence", [-0.8, 0.9])
def test_single_samples(trl: Any, objective: Callable[..., Tensor], loss_type: str, divergence: float) -> None:
    """The mean of a batch of both kinds; a negative estimate of the divergence counts as 0."""
    drawn = objective_calls.random_pairs(10, seed=11)
    assert drawn.reference_chosen is not None
    assert drawn.chosen_length is not None
    desirable = torch.tensor([True, False] * 5)
    log_probs, mask = tokens(drawn.policy_chosen, drawn.chosen_length)
    kl_logps = drawn.policy_rejected - drawn.policy_rejected.mean() + divergence
    model = ScoredModel(log_probs)
    trainer = SimpleNamespace(
        model=model, beta=0.6, desirable_weight=1.2, undesirable_weight=0.7, loss_type=loss_type, accelerator=accelerator(),
        calculate_KL=loss_type == "kto", precompute_ref_logps=True, aux_loss_enabled=False, _total_train_tokens=0, _tp_size=1,
        _compute_kl_logps=lambda *_: kl_logps, _metrics={"train": defaultdict(list)},
    )  # fmt: skip
    batch = {
        "input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask,
        "label": desirable, "ref_logps": drawn.reference_chosen, "ref_KL_logps": torch.zeros(10),
    }  # fmt: skip
    expected = trl("trainer.kto_trainer", "KTOTrainer")._compute_loss(trainer, model, batch, False)
    handed = {"kl": torch.tensor(max(0.0, divergence))} if loss_type == "kto" else {}
    logps = UnpairedLogps(drawn.policy_chosen, drawn.reference_chosen, desirable)
    losses = objective(logps, **handed, beta=0.6, desirable_weight=1.2, undesirable_weight=0.7)
    assert losses.mean().item() == exactly(expected.item())
    if loss_type == "kto":
        assert trainer._metrics["train"]["kl"][0] == pytest.approx(max(0.0, divergence), abs=1e-12)


# --- where we differ on purpose (docs/objectives.md) --------------------------------------------------------------------


def test_label_smoothing_is_not_ignored(trl: Any) -> None:
    logps, trainer = objective_calls.random_pairs(5), trl("trainer.dpo_trainer", "DPOTrainer")
    assert each(trainer, logps, "sigmoid", label_smoothing=0.3) == each(trainer, logps, "sigmoid")
    assert pairwise.dpo(logps, beta=0.1, label_smoothing=0.3).tolist() != pairwise.dpo(logps, beta=0.1).tolist()


def test_bco_is_shifted(trl: Any) -> None:
    logps, trainer = objective_calls.random_pairs(5), trl("trainer.dpo_trainer", "DPOTrainer")
    assert shifted.bco(logps, torch.tensor(0.0), beta=0.1).tolist() == exactly(each(trainer, logps, "bco_pair"))
    assert shifted.bco(logps, torch.tensor(0.5), beta=0.1).tolist() != shifted.bco(logps, beta=0.1).tolist()


def test_distributions_are_those_of_the_update(trl: Any) -> None:
    """Micro-batches of TRL do not add up to its one batch."""
    logps, trainer = objective_calls.random_pairs(6), trl("trainer.dpo_trainer", "DPOTrainer")
    whole = trl_dpo(trainer, dpo_trainer("aot_unpaired"), logps).item()
    parts = sum(each(trainer, logps, "aot_unpaired")) / 6
    assert whole != pytest.approx(parts, rel=1e-3)


def test_certain_samples_have_finite_odds(trl: Any) -> None:
    ours, theirs = (torch.zeros(1, requires_grad=True) for _ in range(2))
    other = torch.tensor([-1.0])
    trainer = SimpleNamespace(beta=0.3, accelerator=accelerator())
    trl("experimental.orpo.orpo_trainer", "ORPOTrainer").odds_ratio_loss(trainer, theirs, other)[0].sum().backward()
    reference_free.orpo(PairLogps(ours, other), beta=0.3).sum().backward()
    assert theirs.grad is not None
    assert ours.grad is not None
    assert theirs.grad.isnan().all()
    assert ours.grad.isfinite().all()


def test_discopop_does_not_overflow(trl: Any) -> None:
    logps = PairLogps(*[torch.tensor([value]) for value in (-9000.0, -1000.0, -1000.0, -1000.0, 1.0, 1.0)])
    assert math.isnan(each(trl("trainer.dpo_trainer", "DPOTrainer"), logps, "discopop")[0])
    assert pairwise.discopop(logps, beta=0.1).item() == pytest.approx(800.0)


def test_a_tie_is_half_right(trl: Any) -> None:
    logps, trainer = objective_calls.random_pairs(3), dpo_trainer("sigmoid")
    assert logps.reference_chosen is not None
    equal = PairLogps(*[logps.reference_chosen] * 4, logps.chosen_length, logps.chosen_length)
    trl_dpo(trl("trainer.dpo_trainer", "DPOTrainer"), trainer, equal)
    assert trainer._metrics["train"]["rewards/accuracies"] == [0.0]
    assert pair_metrics(equal, beta=0.1)["rewards/accuracies"].tolist() == [0.5] * 3


def test_implicit_prompts_cut_words_there(trl: Any) -> None:
    found = trl("data_utils", "extract_prompt")({"chosen": "The sky is blue.", "rejected": "The sky is black."})
    assert found == {"prompt": "The sky is bl", "chosen": "ue.", "rejected": "ack."}
