"""What a recipe may say: typed dataclasses, one a section; their docstrings are the help of the flags."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_type_hints

import yaml

from ..folders import at_home
from ..values import COUNT, DECAY, GUIDANCE, NOT_NEGATIVE, POSITIVE, SEED, SEVERAL, SHARE, SIDE, TOKENS, Range

MAX_TRAIN_STEPS = 1000  # where a recipe says neither steps nor epochs
_STEPS, _STEPS_OR_NONE, _PAIRS = Range(1, 100_000_000), Range(0, 100_000_000), Range(1, 2.0**40)
# What a key is for, where it means nothing to all other runs.
IMAGES = "pairs of images"
NOISE = "pictures that are made from noise"  # a scorer sees whole pictures, as they are, and draws nothing at random
SAMPLES = "samples of an evaluation"
ADAPTERS = "adapters"
POLICY_GRADIENT = "policy gradients"
ESSENTIAL = "what one changes"  # shown by the short help; no key is refused for it
RESTARTS, POLYNOMIAL, WARMUP = "cosine_with_restarts", "polynomial", "constant_with_warmup"  # schedules
GIVEN = "examples that are given"  # completions drawn are not labelled, and how many an update has follows from the rollouts


@dataclass(frozen=True)
class ModelConfig:
    """Which model is tuned, and how.

    Args:
        pretrained_model_name_or_path: Folder, one .safetensors file of a whole model, or hub id; the folder is one of diffusers,
            transformers or a CLIPModel.
        family: Kind of model: sd, sdxl, clip, causal_lm or reward_model; clip is a scorer, reward_model a judge of texts.
        revision: Branch, tag or commit on the hub.
        variant: Weight variant, such as fp16.
        config: Of a model in one .safetensors file: folder or hub id of a pipeline with its configuration; else the hub's.
        tuning: Adapters alone, or the whole network; a scorer is trained as a whole always.
        lora_rank: Rank of the adapters.
        lora_alpha: Scale of the adapters is alpha / rank; the rank when not given.
        lora_targets: Groups (attention, feed_forward, convolutions; for texts also all-linear) or endings of layer names.
        lora_modules_to_save: Endings of names of modules that are trained whole beside adapters, as embed_tokens (texts).
        init_from: RUN, RUN@STEP or RUN@best: start with the weights of another run, in a run of its own from step 0.
        init_lora: Start the adapters at a LoRA: folder, file or hub id, of a run or in diffusers', kohya's or peft's form.
        dtype: Precision of the frozen base weights under lora; full tuning keeps float32 master weights.
        gradient_checkpointing: Recompute activations in the backward pass, to save memory.
        reference_model_name_or_path: Another model as the reference; the model as it is loaded when not given.
    """

    pretrained_model_name_or_path: Annotated[str, at_home, ESSENTIAL]
    family: Annotated[str, ESSENTIAL] = "sd"
    revision: str | None = None
    variant: str | None = None
    config: Annotated[str | None, at_home, NOISE] = None
    tuning: Annotated[Literal["lora", "full"], ESSENTIAL] = "lora"
    lora_rank: Annotated[int, Range(1, 65_536), ADAPTERS, ESSENTIAL] = 8
    lora_alpha: Annotated[float | None, POSITIVE, ADAPTERS] = None
    lora_targets: Annotated[list[str], ADAPTERS] = field(default_factory=lambda: ["attention"])
    lora_modules_to_save: list[str] = field(default_factory=list)
    init_from: Annotated[str | None, at_home] = None
    init_lora: Annotated[str | None, at_home, ADAPTERS] = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    gradient_checkpointing: Annotated[bool, ESSENTIAL] = False
    reference_model_name_or_path: Annotated[str | None, at_home] = None


@dataclass(frozen=True)
class DataConfig:
    """Which preference pairs are learnt from.

    Args:
        train: Table of votes or pairs, folder, glob or hub id; or several: [{path: a, weight: 2}, {path: b, repeats: 3}, c].
        validation: Held-out pairs, in any of the same forms, several without weights; none when not given.
        split: Split of the training data, where the source has splits.
        validation_split: Split of the validation data.
        revision: Branch, tag or commit on the hub.
        streaming: Read hub data as a stream; needs the cache.
        resolution: Side of the square training images, px; the model's own when not given, and always for a scorer.
        ties: drop leaves tied pairs out, soft keeps them with probability one half.
        soft_labels: Use vote shares as label probabilities, where the objective takes them; else the majority decides.
        prompt_weights: Weigh each pair by 1 / num_example_per_prompt, where the data has that column.
        columns: Names of columns that a table has, where they are not a form's own: {image_a: left_path, vote: winner}, or as
            image_a=left_path,vote=winner; of training and held-out data alike.
        on_bad_row: error stops at the first bad row, skip leaves bad rows out and lists them.
        cache: Keep latents and text embeddings on disk, or a scorer's pictures.
        cache_dir: Where the cache lies.
        cache_dtype: Precision of cached tensors.
        random_flip: Mirror half of the pairs, both images alike.
        random_crop: Crop at random instead of at the centre, both images alike; needs cache false.
        caption_dropout: Share of pairs trained with the empty caption, in [0, 1].
        max_train_pairs: Use only this many training pairs.
        max_validation_pairs: Use only this many validation pairs.
    """

    train: Annotated[list[Any] | str, at_home, ESSENTIAL]
    validation: Annotated[list[Any] | str | None, at_home, ESSENTIAL] = None
    split: str = "train"
    validation_split: str = "validation"
    revision: str | None = None
    streaming: Annotated[bool, IMAGES] = False
    resolution: Annotated[int | None, SIDE, NOISE, ESSENTIAL] = None
    ties: Annotated[Literal["drop", "soft"], GIVEN] = "drop"
    soft_labels: Annotated[bool, GIVEN] = False
    prompt_weights: Annotated[bool, GIVEN] = True
    columns: dict[str, str] | str = field(default_factory=dict)
    on_bad_row: Literal["error", "skip"] = "error"
    cache: Annotated[bool, IMAGES] = True
    cache_dir: str = "~/.cache/diffusion-feedback"
    cache_dtype: Annotated[Literal["float32", "float16"], NOISE] = "float32"
    random_flip: Annotated[bool, NOISE] = False
    random_crop: Annotated[bool, NOISE] = False
    caption_dropout: Annotated[float, SHARE, NOISE] = 0.0
    max_train_pairs: Annotated[int | None, _PAIRS] = None
    max_validation_pairs: Annotated[int | None, _PAIRS] = None


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how fast, and with what.

    Args:
        seed: Seed of every draw: order, timesteps, noise, flips, crops, caption dropout, adapter start.
        max_train_steps: Number of optimizer steps; --dry_run says how many passes through the data they are. 1000 where
            num_train_epochs is not given either.
        num_train_epochs: Passes through the data, in place of max_train_steps; of the prompts, where completions are drawn.
        train_batch_size: Pairs in one forward pass of one process.
        gradient_accumulation_steps: Forward passes of each process in one optimizer step.
        global_batch_size: Examples of one optimizer step that the recipe was written for, all passes and processes together;
            it sets nothing: where another number comes out, a warning names what restores it.
        learning_rate: Peak learning rate.
        lr_scheduler: Course of the learning rate after the warm-up.
        lr_warmup_steps: Steps of linear warm-up.
        lr_num_cycles: Cosines from the peak to 0, one after the other, of cosine_with_restarts.
        lr_power: Exponent of polynomial; 1 is linear.
        lr_end: Learning rate that polynomial ends at, below learning_rate.
        max_grad_norm: Gradient norm is clipped to this; 0 leaves it.
        mixed_precision: Autocast precision of forward passes.
        ema_decay: Decay of the moving average of the trained weights, which is then the result; 0 for none.
        timestep_range: Part of the scheduler's range that timesteps are drawn from.
        checkpointing_steps: Steps between two checkpoints.
        checkpoints_total_limit: Number of checkpoints that are kept.
        report_to: Tracker of accelerate (tensorboard, wandb, ...), or a list of them, beside metrics.jsonl.
    """

    seed: Annotated[int, SEED] = 0
    max_train_steps: Annotated[int | None, _STEPS, ESSENTIAL] = None
    num_train_epochs: Annotated[float | None, POSITIVE, ESSENTIAL] = None
    train_batch_size: Annotated[int, COUNT, ESSENTIAL] = 8
    gradient_accumulation_steps: Annotated[int, COUNT, GIVEN, ESSENTIAL] = 1
    global_batch_size: Annotated[int | None, _PAIRS, GIVEN] = None
    learning_rate: Annotated[float, NOT_NEGATIVE, ESSENTIAL] = 1e-5
    lr_scheduler: Annotated[
        Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"], ESSENTIAL
    ] = "constant"
    lr_warmup_steps: Annotated[int, _STEPS_OR_NONE] = 0
    lr_num_cycles: Annotated[int, COUNT, RESTARTS] = 1
    lr_power: Annotated[float, POSITIVE, POLYNOMIAL] = 1.0
    lr_end: Annotated[float, NOT_NEGATIVE, POLYNOMIAL] = 0.0
    max_grad_norm: Annotated[float, NOT_NEGATIVE] = 1.0
    mixed_precision: Annotated[Literal["no", "bf16", "fp16"], ESSENTIAL] = "no"
    ema_decay: Annotated[float, DECAY] = 0.0
    timestep_range: Annotated[tuple[float, float], SHARE, NOISE] = (0.0, 1.0)
    checkpointing_steps: Annotated[int, _STEPS] = 100
    checkpoints_total_limit: Annotated[int, COUNT] = 2
    report_to: list[str] | str = field(default_factory=list)

    @property
    def trackers(self) -> list[str]:
        """``report_to`` as a list; "none" says that there are none."""
        named = [self.report_to] if isinstance(self.report_to, str) else self.report_to
        return [] if named == ["none"] else list(named)

    def steps(self, steps_per_epoch: int) -> int:
        """Number of optimizer steps, of a run whose data give ``steps_per_epoch`` in one pass."""
        if self.max_train_steps is not None:
            return self.max_train_steps
        # Rounded first: 0.07 * 100 is a little more than 7 as a float.
        return max(1, math.ceil(round((self.num_train_epochs or 0) * steps_per_epoch, 6)))


@dataclass(frozen=True)
class ValidationConfig:
    """What is evaluated while training, which step is kept as the best, and when the run ends before its last step.

    Args:
        steps: Steps between two evaluations; 0 evaluates only at the end.
        prompts: Prompts of the samples; when empty they are taken from the data, see num_prompts. Images are drawn at
            data.resolution, training.train_batch_size at once.
        num_prompts: How many prompts are taken when prompts is empty, spread evenly over the held-out ones, or over those of
            training where none are held out; 0 for no samples.
        seed: Seed of the first sample, and of the held-out draws.
        num_inference_steps: Steps of the sampler.
        guidance_scale: Classifier-free guidance.
        scorers: Scorers of dfb score, or the verifier, that judge the samples: scores/NAME is their mean, wins/NAME how often a
            sample beats the one of before training.
        keep_best: Metric of the evaluations by which the best step is kept, for RUN@best, whatever checkpoints are removed:
            accuracy, loss, ...; no step is when not given.
        early_stopping: Metric of the evaluations that ends the run once it gets no better; the run has all of its steps when
            not given.
        early_stopping_patience: Evaluations in a row that may pass without a gain.
        early_stopping_min_delta: What is gained must be more than this.
    """

    steps: Annotated[int, _STEPS_OR_NONE, ESSENTIAL] = 0
    prompts: Annotated[list[str], SAMPLES, ESSENTIAL] = field(default_factory=list)
    num_prompts: Annotated[int, Range(0, 1_000_000), SAMPLES] = 8
    seed: Annotated[int, SEED, SAMPLES] = 0
    num_inference_steps: Annotated[int, Range(1, 1000), NOISE] = 30
    guidance_scale: Annotated[float, GUIDANCE, NOISE] = 7.5
    scorers: Annotated[list[str], NOISE] = field(default_factory=list)
    keep_best: str | None = None
    early_stopping: str | None = None
    early_stopping_patience: Annotated[int, COUNT] = 3
    early_stopping_min_delta: Annotated[float, NOT_NEGATIVE] = 0.0


@dataclass(frozen=True)
class TextConfig:
    """How texts become tokens, and tokens passes. For language models alone.

    Args:
        max_length: Longest sequence, prompt and completion, in tokens; the model's window when not given.
        max_completion_length: Completions are cut at their end to this many tokens; no limit of their own when not given.
        max_tokens_per_pass: Tokens of one pass, padding included; passes are formed of like lengths under this budget,
            which is train_batch_size times the longest example when not given. The examples of an optimizer step stay
            the same.
        share_prompt: Chosen and rejected share their prompt in one forward pass.
        chat_template: File with a Jinja chat template, in place of the tokenizer's own; plain prompts of rollouts become turns.
        tail_weight: Weight in [0, 1] of the tokens of a pair beyond the length of its shorter side, under policy and
            reference alike: 1 counts all, less makes any objective on pairs length-desensitised (arXiv:2409.06411).
        cache_reference: Compute the reference's log-probabilities once and keep them on disk.
    """

    max_length: Annotated[int | None, Range(2, 2**31 - 1)] = None
    max_completion_length: Annotated[int | None, TOKENS, GIVEN] = None
    max_tokens_per_pass: Annotated[int | None, TOKENS] = None
    share_prompt: bool = False
    chat_template: Annotated[str | None, at_home] = None
    tail_weight: Annotated[float, SHARE] = 1.0
    cache_reference: Annotated[bool, GIVEN] = False


@dataclass(frozen=True)
class RolloutConfig:
    """How completions are drawn and judged where a policy learns from its own. For policy gradients, rounds and samples.

    Args:
        reward: What judges: reward_model=PLACE, classifier=PLACE,label=POSITIVE, or function=module:attribute.
        max_new_tokens: Longest completion, in tokens; of the samples of an evaluation too.
        temperature: Sampling temperature, of the samples of an evaluation too; applied alike to old, new and reference log-probabilities.
        batch_size: Completions drawn at once; changes nothing but speed.
        num_prompts: Prompts of one iteration of a policy gradient, taken from data.train.
        num_generations: Completions of each of them; 2 or more for grpo and rloo.
        num_ppo_epochs: Passes of the updates through the completions of one iteration.
        num_mini_batches: Updates in one of these passes; each takes an equal part of the completions.
        missing_eos_penalty: Taken from the reward of a completion without an end token.
        reward_clip: Rewards are clipped to plus and minus this; not at all when not given.
        ptx_data: Texts that the policy must not unlearn, in any form of data.train; none when not given.
        ptx_coef: Weight of their negative log-likelihood, a mean over tokens beside a policy loss that is a mean too; gammas
            of codes that sum (27.8 of InstructGPT) have another scale: 0.1 to 1 is a start here.
        ptx_batch_size: Texts of one update; as many as it has completions when not given.
    """

    reward: str = ""
    max_new_tokens: Annotated[int, TOKENS] = 64
    temperature: Annotated[float, NOT_NEGATIVE] = 1.0
    batch_size: Annotated[int, COUNT] = 64
    num_prompts: Annotated[int, COUNT, POLICY_GRADIENT] = 32
    num_generations: Annotated[int, COUNT, POLICY_GRADIENT] = 4
    num_ppo_epochs: Annotated[int, COUNT, POLICY_GRADIENT] = 4
    num_mini_batches: Annotated[int, COUNT, POLICY_GRADIENT] = 1
    missing_eos_penalty: Annotated[float | None, NOT_NEGATIVE, POLICY_GRADIENT] = None
    reward_clip: Annotated[float | None, POSITIVE, POLICY_GRADIENT] = None
    ptx_data: Annotated[str | None, POLICY_GRADIENT, at_home] = None
    ptx_coef: Annotated[float, NOT_NEGATIVE, POLICY_GRADIENT] = 1.0
    ptx_batch_size: Annotated[int | None, COUNT, POLICY_GRADIENT] = None


@dataclass(frozen=True)
class RoundsConfig:
    """Rounds of drawing, judging, pairing and training. For dfb rounds alone, where data.train holds prompts.

    Args:
        num_rounds: Number of rounds; may be raised later, to go on.
        num_prompts: Prompts of one round; all of data.train when not given, else none repeats until all were used.
        num_samples: Samples of each prompt in a round.
        rule: How pairs are picked from the ranked samples of a prompt: a rule of dfb label, as NAME or NAME,key=value.
        start_from: What a round trains: the model of the round before (previous), or the initial one.
        reference: What its objective compares with: the initial model, the previous round's, or an average (ema).
        reference_decay: Share of itself that an averaged reference keeps from round to round, in [0, 1).
        scorer: Who judges images: a scorer of dfb score. Texts are judged by rollouts.reward.
        reward_recipe: Recipe by which the reward model is trained again in every round, on the pairs of all rounds so far;
            the judge stays as it is when not given.
        labels_from: Who labels those pairs, such as function=module:attribute.
        heldout_prompts: File of prompts on which every round is measured.
        num_heldout_prompts: Use only this many of them.
        num_heldout_samples: Samples of each held-out prompt.
        heldout_judge: Who judges the held-out samples; labels_from where it is given, else what judges in the rounds.
        batch_size: Images drawn at once; texts go by rollouts.batch_size.
    """

    num_rounds: Annotated[int, Range(0, 10_000), ESSENTIAL] = 0
    num_prompts: Annotated[int | None, COUNT, ESSENTIAL] = None
    num_samples: Annotated[int, SEVERAL, ESSENTIAL] = 4
    rule: str = "best_worst"
    start_from: Literal["previous", "initial"] = "previous"
    reference: Literal["initial", "previous", "ema"] = "initial"
    reference_decay: Annotated[float, DECAY] = 0.5
    scorer: Annotated[str, ESSENTIAL] = ""
    reward_recipe: Annotated[str | None, at_home] = None
    labels_from: str | None = None
    heldout_prompts: Annotated[str, at_home, ESSENTIAL] = ""
    num_heldout_prompts: Annotated[int | None, SEVERAL] = None
    num_heldout_samples: Annotated[int, COUNT] = 1
    heldout_judge: str | None = None
    batch_size: Annotated[int, COUNT] = 16


@dataclass(frozen=True)
class Recipe:
    """One training run.

    Args:
        model: Which model is tuned, and how.
        data: Which pairs are learnt from.
        output_dir: The run's folder.
        objective: What is minimised; its name and settings, such as {name: dpo, beta: 5000}.
        optimizer: Name of the optimizer and its settings, such as {name: adamw, weight_decay: 0.01}.
        training: How long, how fast, and with what.
        validation: What is evaluated while training.
        text: How texts become tokens, and tokens passes.
        rollouts: How completions are drawn and judged.
        rounds: Rounds of drawing, judging, pairing and training.
    """

    model: ModelConfig
    data: DataConfig
    output_dir: Annotated[str, at_home, ESSENTIAL]
    objective: Annotated[dict[str, Any], ESSENTIAL] = field(default_factory=lambda: {"name": "dpo", "beta": 5000.0})
    optimizer: dict[str, Any] = field(default_factory=lambda: {"name": "adamw"})
    training: TrainingConfig = field(default_factory=TrainingConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    text: TextConfig = field(default_factory=TextConfig)
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    rounds: RoundsConfig = field(default_factory=RoundsConfig)


SECTIONS: Mapping[str, type[Any]] = {
    name: kind
    for name, kind in get_type_hints(Recipe).items()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
}
# Sections that mean nothing to most runs: a resolved recipe names them only where they say something.
_OPTIONAL: Mapping[str, Any] = {"text": TextConfig(), "rollouts": RolloutConfig(), "rounds": RoundsConfig()}


def to_dict(recipe: Recipe) -> dict[str, object]:
    """The resolved recipe as plain nested values, in the order of the sections."""
    silent = {name for name, default in _OPTIONAL.items() if getattr(recipe, name) == default}
    whole = plain(dataclasses.asdict(recipe))
    return {name: value for name, value in whole.items() if name not in silent}


def plain(value: object) -> Any:
    """``value`` as YAML holds it: tuples as lists, paths as texts."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML that ``--config`` reads back."""
    return yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True)
