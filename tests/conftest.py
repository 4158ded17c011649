"""Shared fixtures: one thread for the same sums everywhere, no network, and tiny pipelines on disk."""

from __future__ import annotations

import os
from pathlib import Path

# Before any test imports a library that reads them: no test may reach for a hub, or fight others for the cores.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

pytest_plugins = ["recipes", "text_recipes"]

torch.set_num_threads(1)
# A busy machine is no failure of ours.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


@pytest.fixture(scope="session")
def tiny_pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a tiny diffusers pipeline for each family of the catalog. Read only."""
    import tiny_models

    folder = tmp_path_factory.mktemp("pipelines")
    return {"sd": tiny_models.save_sd(folder / "sd"), "sdxl": tiny_models.save_sdxl(folder / "sdxl")}


@pytest.fixture(scope="session")
def lora_run(tiny_pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights and recipe of a LoRA run over the tiny Stable Diffusion. Read only."""
    import saved_adapters

    return saved_adapters.save_image_lora(tiny_pipelines["sd"], "sd", tmp_path_factory.mktemp("runs") / "lora")


@pytest.fixture(scope="session")
def adapter(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights and recipe of a LoRA run over the tiny language model. Read only."""
    import saved_adapters

    return saved_adapters.save_text_adapter(tiny_lm, tmp_path_factory.mktemp("runs") / "text")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker ends alone with them; tests marked ``gpu`` need a device.

    They are skipped where there is no CUDA device, and no other is named to stand in for one.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if torch.cuda.is_available() or "GPU_TESTS_DEVICE" in os.environ:
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
