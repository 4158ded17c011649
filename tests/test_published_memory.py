"""Memory of published models: their sizes are the published ones, and the count is that of real passes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import memory_table
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from diffusion_feedback import load_recipe
from diffusion_feedback.config.recipe import DataConfig, ModelConfig, Recipe, TrainingConfig, ValidationConfig
from diffusion_feedback.models import published
from diffusion_feedback.models.published import PUBLISHED, published_model
from diffusion_feedback.workflows.training import published_memory
from diffusion_feedback.workflows.training.memory import PeakMemory, gibibytes
from diffusion_feedback.workflows.training.published_memory import MemoryNeed, _inputs, _Pass, _peak, memory_need

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SIZES = {"sd15": 859_520_964, "sd2": 865_910_724, "sd2-768": 865_910_724, "sdxl": 2_567_463_684}


def count(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_networks_have_the_published_sizes(name: str) -> None:
    assert count(PUBLISHED[name].network()) == SIZES[name]
    assert PUBLISHED.keys() == SIZES.keys()


def test_encoders_have_the_published_sizes() -> None:
    """CLIP's towers as transformers builds them of their configurations, and the autoencoder of all these models."""
    with torch.device("meta"):
        small = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        )
        middle = CLIPTextModel(
            CLIPTextConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16)
        )
        large = CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=1280,
                intermediate_size=5120,
                num_hidden_layers=32,
                num_attention_heads=20,
                projection_dim=1280,
            )
        )
    assert (count(small), count(middle), count(large)) == (published._CLIP_L, published._CLIP_H, published._CLIP_BIG_G)
    assert count(PUBLISHED["sd15"].decoder()) == 83_653_863


def test_models_by_their_names() -> None:
    assert published_model("stabilityai/stable-diffusion-xl-base-1.0") is PUBLISHED["sdxl"]
    assert published_model("sdxl") is PUBLISHED["sdxl"]
    assert published_model("assets/shapes-sd") is None


SMALL = published.PublishedModel((), "sd", {"sample_size": 8, "cross_attention_dim": 32, "block_out_channels": (32, 32), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 4}, 0)  # fmt: skip


def test_a_count_without_numbers_is_that_of_a_real_pass() -> None:
    """A small network of the same classes: the most that a pass of it takes, with numbers and without."""
    network = SMALL.network().requires_grad_(True)
    counted = _peak(_Pass(network), _inputs(SMALL, 2, 64), "no", torch.float32)
    real = network.to_empty(device="cpu")
    for weight in real.parameters():
        torch.nn.init.normal_(weight, std=0.01)
    inputs = [torch.zeros(each.shape) for each in _inputs(SMALL, 2, 64)]
    with PeakMemory() as peak:
        _Pass(real)(*inputs)
    assert counted == pytest.approx(peak.bytes, rel=0.05)


def recipe(**training: object) -> Recipe:
    model = ModelConfig("small", gradient_checkpointing=True, dtype="bfloat16", lora_rank=4)
    settings = TrainingConfig(mixed_precision="bf16", **training)  # type: ignore[arg-type]
    return Recipe(model, DataConfig("pairs", resolution=64), "run", training=settings)


def test_parts_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are in their precision, states follow what is trained, and a pass follows its pairs."""
    monkeypatch.setitem(published.PUBLISHED, "small", SMALL)  # type: ignore[arg-type]
    one, two = (memory_need(recipe(train_batch_size=size, ema_decay=decay)) for size, decay in ((8, 0.0), (16, 0.9)))
    trained = one.states // 12  # gradients, and two moments of adamw
    assert one.network == 2 * count(SMALL.network()) + 4 * trained
    assert one.frozen == 4 * 83_653_863
    assert two.states == 16 * trained
    assert 1.6 < two.one_pass / one.one_pass < 2.1
    assert one.total >= one.network + one.frozen + one.states


@pytest.mark.parametrize(
    ("prompts", "num_prompts", "batch", "images"),
    [([], 8, 4, 4), ([], 2, 4, 2), (["a"], 8, 4, 1), ([], 0, 4, 0)],
    ids=["as many as fit a pass", "fewer", "the recipe's own", "none"],
)
def test_samples_are_counted_as_they_are_drawn(
    prompts: list[str], num_prompts: int, batch: int, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default, too: prompts are taken from the data where the recipe has none."""
    monkeypatch.setitem(published.PUBLISHED, "small", SMALL)  # type: ignore[arg-type]
    drawn: list[int] = []

    def peak(module: object, inputs: Sequence[torch.Tensor], *_: object) -> int:
        if getattr(module, "call", "") == "decode":
            drawn.append(len(inputs[0]))
        return 7

    monkeypatch.setattr(published_memory, "_peak", peak)
    validation = ValidationConfig(prompts=prompts, num_prompts=num_prompts)
    need = memory_need(replace(recipe(train_batch_size=batch), validation=validation))
    assert drawn == ([images] if images else [])
    assert need.samples == (7 if images else 0)


def test_the_table_counts_every_number_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pass takes whatever its pairs are, such as copies of weights, is not multiplied by them."""
    gib = 2**30

    def need(given: Recipe) -> MemoryNeed:
        pairs = given.training.train_batch_size
        return MemoryNeed(
            network=2 * gib, frozen=gib, states=12 * gib, one_pass=(5 + pairs) * gib, encoding=0, samples=0
        )

    monkeypatch.setattr(memory_table, "memory_need", need)
    monkeypatch.setattr(memory_table, "FORMS", [("full", True, 8, ["adamw", "rmsprop"])])
    first, second = memory_table.rows("sd15")
    assert first == "| sd15 | 512 | full | on | adamw | 3.0 | 12.0 | 1.0 | 21.0 | 24.0 | 28.0 |"
    assert second == "| sd15 | 512 | full | on | rmsprop | 3.0 | 8.0 | 1.0 | 17.0 | 20.0 | 24.0 |"


def quoted(path: Path) -> str:
    """The figure in the header of a recipe."""
    found = re.search(r"estimated: ([\d.]+ GiB).*docs/memory.md", path.read_text())
    return found[1] if found else ""


def test_a_recipe_quotes_what_its_dry_run_says() -> None:
    path = CONFIGS / "sd15_dpo_full_8gpu.yaml"
    assert quoted(path) == gibibytes(memory_need(load_recipe(path)).total)


def test_recipes_say_what_the_table_says() -> None:
    """Recipes of Diffusion-DPO in a form of the table, that draw as many samples as it counts, or fewer than matter."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in memory_table.PAGE.read_text().splitlines()]
    table = {tuple(row[:1] + row[2:5]): row[-3:] for row in rows if len(row) == 11}
    compared = []
    for path in (path for path in sorted(CONFIGS.glob("sd*_dpo_*.yaml")) if quoted(path)):
        recipe = load_recipe(path)
        form = f"lora, rank {recipe.model.lora_rank}" if recipe.model.tuning == "lora" else "full"
        found = published_model(recipe.model.pretrained_model_name_or_path)
        name = next(name for name, each in PUBLISHED.items() if each is found)
        checkpointing = "on" if recipe.model.gradient_checkpointing else "off"
        row = table.get((name, form, checkpointing, str(recipe.optimizer["name"])))
        pairs = recipe.training.train_batch_size
        if row is not None and pairs in memory_table.PAIRS and pairs <= len(recipe.validation.prompts):
            assert quoted(path) == f"{row[memory_table.PAIRS.index(pairs)]} GiB", path.name
            compared.append(path.name)
    assert compared == ["sd15_dpo_lora_24gb.yaml"]


def test_the_most_at_once() -> None:
    parts = {"network": 5, "frozen": 3, "states": 1, "one_pass": 1, "encoding": 10, "samples": 4}
    assert MemoryNeed(**parts).total == 18
    assert MemoryNeed(**{**parts, "one_pass": 20}).total == 29
