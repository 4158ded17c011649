"""Every objective on samples either trains a diffusion model or is refused with its reason."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import objective_calls
import pytest
import torch
from accelerate import Accelerator

from diffusion_feedback.catalog import needs_reference, objectives_for
from diffusion_feedback.catalog.objectives import OBJECTIVES
from diffusion_feedback.cli.main import main
from diffusion_feedback.config.checks import check_recipe
from diffusion_feedback.config.parsing import load_recipe
from diffusion_feedback.data.index import PairIndex
from diffusion_feedback.errors import UserError
from diffusion_feedback.types.training import Coupled
from diffusion_feedback.workflows.training.diffusion import DiffusionEvaluation, diffusion_session
from diffusion_feedback.workflows.training.given import Setup
from diffusion_feedback.workflows.training.image_pairs import ImagePairs

MakeRecipe = Callable[..., Path]
LORA = {"tuning": "lora", "lora_rank": 2}
SUM = [
    {"name": "dpo", "weight": 0.8, "beta": 500.0},
    {"name": "bco", "weight": 0.2, "beta": 500.0},
    {"name": "sft", "weight": 1.0},
]


def recipe_for(name: str) -> dict[str, Any]:
    """Settings that mean something for mean squared errors: beta in their units, and no divergences."""
    settings = objective_calls.settings_for(name)
    sized = {"beta": 500.0, "delta": 1e-3, "terms": SUM}
    kept = {key: sized.get(key, value) for key, value in settings.items() if not key.startswith("f_")}
    return {"name": name, **kept}


def test_every_objective_makes_an_update_or_gives_its_reason(make_recipe: MakeRecipe) -> None:
    path = make_recipe(model=LORA)
    recipe = load_recipe(path)
    setup = Setup(recipe, Accelerator())
    session = diffusion_session(setup)
    evaluation = session.evaluate
    assert isinstance(evaluation, DiffusionEvaluation)
    assert isinstance(session.data.train, PairIndex)
    weights = session.parameters()
    before = [weight.detach().clone() for weight in weights]
    trained, refused = [], []
    for name in objective_calls.ON_SAMPLES:
        own = dataclasses.replace(recipe, objective=recipe_for(name))
        if (reason := OBJECTIVES[name].images) is not None:
            with pytest.raises(UserError, match=reason):
                check_recipe(own)
            refused.append(name)
            continue
        check_recipe(own)
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
        changed = Setup(own, setup.accelerator)
        step = dataclasses.replace(evaluation.steps, setup=changed).training()
        assert (step.parts.reference is not None) == needs_reference(own.objective)
        step.check()
        pairs = ImagePairs(changed, session.data.train, None, session.data.order)
        batch = next(pairs.source().micro_batches(0))
        step.gate(session.network, batch)
        if isinstance(step, Coupled):
            step = step.coupled(session.network, [batch], lambda values: [values])
        output = step(session.network, batch)
        assert all(len(values) == len(batch) and values.isfinite().all() for values in output.metrics.values()), name
        optimizer = torch.optim.SGD(weights, lr=1.0)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = max((weight - value).abs().max().item() for weight, value in zip(weights, before, strict=True))
        assert 0 < moved < math.inf, name
        trained.append(name)
    assert sorted(trained) == sorted(objectives_for("sd"))
    assert set(refused) == {name for name, row in OBJECTIVES.items() if row.images}


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"name": "simpo", "beta": 2.0, "gamma": 1.0}, "'simpo' means nothing for family 'sd': without a reference"),
        ({"name": "dpo", "beta": 500, "f_divergence_type": "forward_kl"}, "objective.f_divergence_type means nothing"),
        (
            {"name": "weighted_sum", "terms": [*SUM, {"name": "odpo", "beta": 500.0, "weight": 1.0}]},
            "'odpo' means nothing for family 'sd': pairs of images carry no margin",
        ),
        ({"name": "weighted_sum", "terms": [{"name": "sft", "weight": "x"}]}, "weight of term 1: expected a number"),
    ],
)
def test_what_means_nothing_is_refused(
    make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str], objective: dict[str, Any], message: str
) -> None:
    assert main(["train", "--config", str(make_recipe(objective=objective))]) == 2
    assert message in capsys.readouterr().err


def test_kto_learns_from_pairs_of_images_in_any_number_of_passes(make_recipe: MakeRecipe) -> None:
    found = []
    for name, size, passes in (("wide", 8, 1), ("long", 2, 4)):
        training = {"max_train_steps": 3, "train_batch_size": size, "gradient_accumulation_steps": passes}
        objective, optimizer = {"name": "kto", "beta": 500}, {"name": "adamw", "epsilon": 1.0}
        recipe = make_recipe(
            name, model={"tuning": "full"}, objective=objective, training=training, optimizer=optimizer
        )
        assert main(["train", "--config", str(recipe)]) == 0
        rows = [json.loads(line) for line in (recipe.with_suffix("") / "metrics.jsonl").read_text().splitlines()]
        found.append([row for row in rows if "grad_norm" in row])
    for one, other in zip(*found, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert one["kl"] == pytest.approx(other["kl"], abs=2e-7)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    assert found[0][0]["loss"] == pytest.approx(0.5, abs=1e-6)
    assert max(row["kl"] for row in found[0]) > 2e-6, "the estimate is not 0 throughout"
