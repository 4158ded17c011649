"""What a run learns from, kept in its folder: hashes of its prompts, and who made its labels."""

from __future__ import annotations

import logging
from pathlib import Path

from ...config.sources import is_object
from ...documents import read_object
from ...errors import UserError
from ...evaluation.leakage import TrainedOn
from ...records import write_json
from .examples import RunData

log = logging.getLogger(__name__)

ENVIRONMENT, TRAINED_ON = "environment.json", "trained_on"


def record_training(data: RunData, run: Path) -> None:
    """Write into the folder ``run``, beside versions and hardware, what it learns from; a run that goes on keeps it."""
    path = run / ENVIRONMENT
    environment = read_object(path, "start the run over, with `overwrite`") if path.exists() else {}
    if TRAINED_ON in environment:
        return
    reward = data.setup.recipe.rollouts.reward
    try:
        judges = data.judges() | ({reward: ""} if reward and not is_object(reward) else {})
        trained = TrainedOn.of(data.prompts(), judges)
    except UserError as error:  # the run reads its data by rules of its own, and needs none of this
        log.debug("what the run is trained on is not recorded: %s", error)
        return
    write_json(path, {**environment, TRAINED_ON: trained.to_json()})
