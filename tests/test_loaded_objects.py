"""Models that a caller has loaded are as they came after every call, and runs over them know what they are."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model
from recipes import MakeRecipe
from text_recipes import MakeTextRecipe
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import diffusion_feedback as dfb
from diffusion_feedback.catalog import resolve
from diffusion_feedback.workflows.training.given import Setup, accept

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
IMAGES: dict[str, Any] = {"num_inference_steps": 2, "height": 16, "width": 16}
FAMILY = Path(__file__).resolve().parent.parent / "examples" / "own_family.py"


def parts(model: Any) -> dict[str, nn.Module]:
    if isinstance(model, DiffusionPipeline):
        return {name: part for name, part in model.components.items() if isinstance(part, nn.Module)}
    return {"model": model}


def state(model: Any) -> dict[str, Any]:
    """All that a call may have changed: weights bit by bit, and every flag, rate and setting."""
    seen: dict[str, Any] = {}
    for part, top in parts(model).items():
        for name, value in top.state_dict().items():
            seen[f"{part} {name}"] = value.clone()
        for name, weight in top.named_parameters():
            seen[f"{part} {name} is trained"] = weight.requires_grad
        for name, module in top.named_modules():
            flags = {key: value for key, value in vars(module).items() if isinstance(value, bool | int | float | str)}
            hooks = [len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module)]
            seen[f"{part} {name} is"] = (type(module), flags, hooks)
        config: Any = top.config
        seen[f"{part} config"] = copy.deepcopy(dict(config) if isinstance(config, dict) else config.to_dict())
    return seen


def changes(model: Any, before: dict[str, Any]) -> set[str]:
    """Names of all that is not as it was."""
    after = state(model)
    differing = {name for name in after.keys() & before.keys() if not same(after[name], before[name])}
    return differing | (after.keys() ^ before.keys())


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) and one.dtype == other.dtype if isinstance(one, torch.Tensor) else one == other


def noisy_lm(tokens: int) -> GPT2LMHeadModel:
    """A language model with dropout, in training mode, one weight of which is frozen."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=tokens, n_layer=1, n_embd=16, n_head=2, n_positions=64)).train()
    model.transformer.wpe.weight.requires_grad_(False)
    return model


@pytest.fixture
def tokenizer(tiny_lm: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_lm)


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16], ids=["of float32", "of bfloat16"])
def test_a_pipeline_is_as_it_came(own: torch.dtype, make_recipe: MakeRecipe, tiny_pipelines: dict[str, Path]) -> None:
    """Bit by bit, though it was trained in another precision; so a run goes on with it."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipelines["sd"], dtype=own)
    pipeline.unet.train()
    before = state(pipeline)
    other = "bfloat16" if own == torch.float32 else "float32"
    training = {"max_train_steps": 1, "mixed_precision": "bf16"}
    file = make_recipe(model={"lora_rank": 2, "dtype": other}, training=training, validation={"num_prompts": 0})
    run = dfb.train(dfb.load_recipe(file), model=pipeline)
    assert not changes(pipeline, before)
    assert dfb.train(dfb.load_recipe(file), model=pipeline, resume=True).path == run.path
    for model in (run, pipeline):
        assert len(dfb.generate(model, ["a cat"], **IMAGES)) == 1
        assert not changes(pipeline, before)
    with pytest.raises(dfb.UserError, match="nowhere"):
        dfb.train(
            dfb.load_recipe(file, {"data.train": "nowhere", "output_dir": file.with_name("failed")}), model=pipeline
        )
    assert not changes(pipeline, before)


@pytest.mark.parametrize("family", ["sd", "causal_lm"])
def test_weights_in_the_recipes_precision_are_in_memory_once(
    family: str,
    make_recipe: MakeRecipe,
    make_text_recipe: MakeTextRecipe,
    tiny_pipelines: dict[str, Path],
    tokenizer: Any,
) -> None:
    """What the run uses is the caller's own storage, after all that was done to know what the model is."""
    make, model, own = make_text_recipe, noisy_lm(len(tokenizer)).to(torch.bfloat16), tokenizer
    if family == "sd":
        make, own = make_recipe, None
        model = StableDiffusionPipeline.from_pretrained(tiny_pipelines["sd"], dtype=torch.bfloat16)
    network = model if own is not None else model.unet
    storages = [weight.data_ptr() for weight in network.parameters()]
    recipe = dfb.load_recipe(make(model={"dtype": "bfloat16", "tuning": "lora"}, training={"mixed_precision": "bf16"}))
    recipe, given = accept(recipe, None, {"model": model, "tokenizer": own})
    assert Setup(recipe, Accelerator(), given).model() is not None
    assert [weight.data_ptr() for weight in network.parameters()] == storages


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_language_model_is_as_it_came(
    tuning: str, make_text_recipe: MakeTextRecipe, tokenizer: Any, tmp_path: Path
) -> None:
    """Dropout, modes and what is frozen; full tuning changes its weights, and of those the trained ones alone."""
    model = noisy_lm(len(tokenizer))
    before, template, special = state(model), tokenizer.chat_template, dict(tokenizer.special_tokens_map)
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    text = {"chat_template": str(tmp_path / "template.jinja")}
    file = make_text_recipe(model={"tuning": tuning}, validation={"num_prompts": 0}, text=text)
    dfb.train(dfb.load_recipe(file), model=model, tokenizer=tokenizer)
    changed = changes(model, before)
    assert bool(changed) == (tuning == "full")
    assert all(isinstance(before[name], torch.Tensor) for name in changed)
    before = state(model)
    drawn = dfb.generate(model, ["the "], tokenizer=tokenizer, max_new_tokens=4)
    assert len(drawn) == 1
    dfb.judge(
        (model, tokenizer),
        (model, tokenizer),
        ["the "],
        reference=(model, tokenizer),
        names=("a", "b"),
        max_new_tokens=4,
    )
    assert not changes(model, before)
    assert (tokenizer.chat_template, dict(tokenizer.special_tokens_map)) == (template, special)


def test_adapters_of_ones_own_are_refused_and_stay(
    make_recipe: MakeRecipe,
    make_text_recipe: MakeTextRecipe,
    tiny_pipelines: dict[str, Path],
    tiny_lm: Path,
    tokenizer: Any,
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_lm)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipelines["sd"])
    pipeline.unet.add_adapter(LoraConfig(target_modules=["to_q"]))
    given = ((make_text_recipe, wrapped), (make_text_recipe, model), (make_recipe, pipeline))
    for make, each in given:
        before = state(each if each is not wrapped else model)
        more = {} if each is pipeline else {"tokenizer": tokenizer}
        with pytest.raises(dfb.UserError, match="carries adapters.*\n?.*fuse or unload them"):
            dfb.train(dfb.load_recipe(make(validation={"num_prompts": 0})), model=each, **more)
        assert not changes(each if each is not wrapped else model, before)


def test_what_a_loader_of_ours_returns_is_refused(make_recipe: MakeRecipe, tiny_pipelines: dict[str, Path]) -> None:
    """A run over it could not say which family it is of."""
    denoiser = resolve("family", "sdxl")(str(tiny_pipelines["sdxl"]))
    with pytest.raises(dfb.UserError, match="of a LatentDiffusion no family is known"):
        dfb.train(dfb.load_recipe(make_recipe()), model=denoiser)


def test_a_tuned_run_is_loaded_by_what_its_folder_says(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """By its class where there is no recipe; the class of the pipeline is not enough where its recipe says more."""
    full = {"tuning": "full"}
    short: dict[str, Any] = {"training": {"max_train_steps": 1}, "validation": {"num_prompts": 0}}
    run = dfb.train(dfb.load_recipe(make_recipe(name="xl", family="sdxl", model=full, **short)))
    (tmp_path / "bare").mkdir()
    shutil.copytree(run.path, tmp_path / "bare", dirs_exist_ok=True)
    (tmp_path / "bare" / "recipe.yaml").unlink()
    drawn = [dfb.generate(model, ["a cat"], **IMAGES)["image"][0] for model in (run, run.path, tmp_path / "bare")]
    assert isinstance(run.load(), StableDiffusionXLPipeline)
    assert drawn[0].tobytes() == drawn[1].tobytes() == drawn[2].tobytes()


def test_a_tuned_run_of_a_family_of_ones_own(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """It is drawn from by that family, whose loader changes it no more than once."""
    shutil.copy(FAMILY, tmp_path / "mine.py")
    family = f"{tmp_path / 'mine.py'}:clip_skip"
    short: dict[str, Any] = {"training": {"max_train_steps": 1}, "validation": {"num_prompts": 0}}
    file = make_recipe(model={"tuning": "full", "family": family}, **short)
    run = dfb.train(dfb.load_recipe(file))
    assert yaml.safe_load((run.path / "recipe.yaml").read_text())["model"]["family"] == family
    assert len(run.load().text_encoder.encoder.layers) == 1  # of two
    drawn = dfb.generate(run, ["a cat"], **IMAGES)["image"][0].tobytes()
    assert drawn == dfb.generate(str(run.path), ["a cat"], family=family, **IMAGES)["image"][0].tobytes()
    source = (tmp_path / "mine.py").read_text()
    assert "layers.layers[:-1]" in source
    (tmp_path / "mine.py").write_text(source.replace("return denoiser", 'raise KeyError("mine")'))
    with pytest.raises((KeyError, dfb.UserError), match="mine"):
        dfb.generate(run, ["a cat"], **IMAGES)
