"""Rows of objectives and families, ours and a user's: what they say, and what is refused of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_feedback.catalog import check_settings, family_row, objective_row, resolve
from diffusion_feedback.catalog.families import FAMILIES
from diffusion_feedback.catalog.objectives import OBJECTIVES
from diffusion_feedback.catalog.rows import Family, ObjectiveRow, name_of, settings_of
from diffusion_feedback.catalog.sources import foreign_hash
from diffusion_feedback.errors import UserError
from diffusion_feedback.objectives.pairwise import dpo
from diffusion_feedback.types.training import PairLogps
from diffusion_feedback.workflows.benchmark_folder import benchmark_of


def mine(logps: Any, *, beta: float) -> Tensor:
    losses: Tensor = beta * logps.policy_chosen
    return losses


def soft(logps: Any, chosen_probability: Tensor | None = None, *, beta: float) -> Tensor:
    return mine(logps, beta=beta)


def hard(logps: Any, margin: Tensor, *, beta: float) -> Tensor:
    return mine(logps, beta=beta) - margin


class Steep:
    """A loss that is an object."""

    def __init__(self, power: float) -> None:
        self.power = power

    def __call__(self, logps: Any, *, beta: float) -> Tensor:
        return self.power * mine(logps, beta=beta)


@pytest.mark.parametrize("given", [partial(mine, beta=2.0), partial(partial(mine), beta=1.0), Steep(2.0)])
def test_what_is_no_plain_function_is_an_objective(given: Callable[..., Tensor]) -> None:
    two = torch.zeros(2)
    objective_row(given).check_losses(PairLogps(two, two), examples=2, beta=1.0)
    with pytest.raises(UserError, match=f"objective {__name__}:(mine|Steep): returned Tensor"):
        objective_row(given).check_losses(PairLogps(two, two), examples=3, beta=1.0)


def test_a_name_a_function_and_a_row_are_rows() -> None:
    assert objective_row("dpo") is OBJECTIVES["dpo"]
    assert objective_row(mine) == ObjectiveRow(mine)
    row = ObjectiveRow(soft, inputs=("chosen_probability",))
    assert objective_row(row) is row
    assert resolve("objective", row) is soft
    assert resolve("objective", "dpo") is dpo
    assert resolve("rule", mine) is mine
    assert objective_row(mine).needs_reference
    assert family_row(FAMILIES["sd"]) is FAMILIES["sd"]
    assert resolve("family", Family(mine)) is mine
    check_settings("objective", mine, {"beta": 1.0})


def test_names_of_what_is_handed_in() -> None:
    here = __name__
    assert name_of("dpo") == "dpo"
    assert name_of(mine) == f"{here}:mine"
    assert name_of(ObjectiveRow(mine)) == f"{here}:mine"
    assert name_of(Family(mine)) == f"{here}:mine"
    assert name_of(OBJECTIVES["dpo"]).endswith(":dpo")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ObjectiveRow(mine, "pairs"), "unknown kind 'pairs'(.|\n)*known: pairwise"),  # type: ignore[arg-type]
        (lambda: ObjectiveRow(mine, inputs=("kl",)), "unknown input 'kl' of kind 'pairwise'(.|\n)*margin"),
        (lambda: ObjectiveRow(mine, "pointwise", inputs=("margin",)), "unknown input 'margin'(.|\n)*none"),
        (
            lambda: ObjectiveRow(mine, inputs=("mean_log_ratio", "population")),
            "mean_log_ratio and population(.|\n)*one",
        ),
        (lambda: ObjectiveRow(mine, inputs=("population",)), "go together"),
        (lambda: ObjectiveRow(mine, inputs=("population", "positions"), reference=False), "compares with a reference"),
        (lambda: ObjectiveRow(mine, "unpaired", inputs=("kl",), reference=False), "kl compares with a reference"),
        (lambda: objective_row(ObjectiveRow(hard, inputs=("margin",))), "'margin' has no default(.|\n)*margin=None"),
        (lambda: objective_row(soft), r"takes \(logps, chosen_probability\), and is called with \(logps\)"),
        (lambda: objective_row(lambda *, beta: beta), "takes no log-probabilities"),
        (lambda: objective_row(FAMILIES["sd"]), "is a Family"),
        (lambda: objective_row(type), "has no signature"),
        (lambda: objective_row("dppo"), "unknown objective 'dppo'(.|\n)*did you mean 'ppo'"),
        (lambda: family_row(mine), "is a function(.|\n)*give a row"),
        (lambda: resolve("rule", FAMILIES["sd"]), "is a Family"),
        (lambda: benchmark_of(lambda: 3), "makes a int"),
        (
            lambda: ObjectiveRow(mine).check_losses(torch.zeros(2), examples=2, beta=1.0),
            "AttributeError in .*test_rows.py",
        ),
        (lambda: ObjectiveRow(lambda x: x.sum()).check_losses(torch.zeros(2), examples=2), "one loss for each example"),
        (lambda: ObjectiveRow(lambda x: 3).check_losses(torch.zeros(2), examples=2), "returned int of shape"),
    ],
)
def test_what_is_refused(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        call()


def test_what_rows_say() -> None:
    says = {name: (row.learns_from, row.is_coupled, row.looks_ahead) for name, row in OBJECTIVES.items()}
    assert says["dpo"] == ("pairs", False, False)
    assert says["kto"] == ("labels", True, True)
    assert says["aot"] == ("pairs", True, True)
    assert says["pickscore_in_batch"] == ("pairs", True, False)
    assert says["sft"] == ("chosen", False, False)
    assert says["ppo"] == ("rollouts", False, False)
    assert says["ilql"] == ("trajectories", False, False)
    judges = {"pickscore", "pickscore_in_batch", "bradley_terry"}
    assert {name: OBJECTIVES[name].trains_judge for name in (*judges, "dpo")} == {
        **dict.fromkeys(judges, True),
        "dpo": False,
    }
    means = {"simpo", "alphapo", "orpo"}
    assert {name: OBJECTIVES[name].rewards for name in (*means, "cpo")} == {
        **dict.fromkeys(means, "mean"),
        "cpo": "sum",
    }
    assert [name for name, row in FAMILIES.items() if row.reads_text] == ["causal_lm", "reward_model"]
    assert Family(mine).can_learn(OBJECTIVES["dpo"])
    assert not Family(mine).can_learn(OBJECTIVES["simpo"])
    assert Family(mine, "text").can_learn(OBJECTIVES["simpo"])
    assert settings_of(mine).keys() == {"beta"}


def test_only_code_of_the_user_has_a_foreign_hash() -> None:
    assert foreign_hash(dpo) == ""
    assert foreign_hash(dpo, mine) == foreign_hash(mine) != foreign_hash(soft, mine)
