"""Builds the embedded world under assets/: a small Stable Diffusion that imitates the Shapes mixture, preference pairs,
and a scorer that has learnt from them.

    python tools/build_assets.py                   # everything; model and pairs take about 80 minutes on two CPU cores
    python tools/build_assets.py --stage pairs     # only the pairs, from the model that is there
    python tools/build_assets.py --stage scorer    # only the scorer, from the pairs that are there

Stages: model (tokenizer, VAE, its decoder once more, text encoder and UNet), pairs (samples of the model itself,
labelled by a Bradley-Terry annotator over the exact verifier) and scorer (a CLIP model of the mixture, then the recipe
configs/shapes_scorer.yaml on the pairs). Every stage is resumable: run the same command again. Seeds are fixed; on
another CPU or thread count the floating-point rounding, and so the weights, differ.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pretrain
import pretrain_scorer
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from image_world import MIXTURE, WRONG_CAPTION_RATE, exact_scores, split_scenes
from PIL import Image
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from diffusion_feedback.catalog import resolve
from diffusion_feedback.config.parsing import load_recipe
from diffusion_feedback.data.pickapic import write_pickapic
from diffusion_feedback.generation.images import generate_images, load_generated, own_noise
from diffusion_feedback.records import PairRecord
from diffusion_feedback.workflows.training.run import train

POOL = 24_000
VAE_STEPS, DECODER_STEPS, UNET_STEPS, CLIP_STEPS = 1400, 300, 3000, 3000
SAMPLING = {"num_inference_steps": 15, "guidance_scale": 2.0}
TRAIN_SAMPLES, HELDOUT_SAMPLES = 14, 4  # images per prompt
TEMPERATURE = 0.15  # of the annotator: P(0 over 1) = sigmoid((score_0 - score_1) / TEMPERATURE)
JPEG = {"quality": 92, "subsampling": 0}


def build_model(work: Path, target: Path) -> None:
    """Train all parts and write a StableDiffusionPipeline folder in half precision to ``target``."""
    tokenizer = pretrain.build_tokenizer(work / "tokenizer")
    images, captions = pretrain.render_pool(work / "pool.npy", POOL)
    if not (work / "vae").exists():
        pretrain.train_vae(images, work / "vae.pt", steps=VAE_STEPS).save_pretrained(work / "vae")
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    if not (work / "latents.pt").exists():
        torch.save(pretrain.encode_pool(vae, images), work / "latents.pt")
    latents = torch.load(work / "latents.pt", weights_only=True)
    if not (work / "unet").exists():
        scaled = latents * vae.config.scaling_factor
        model = pretrain.train_unet(scaled, captions, tokenizer, work / "unet.pt", steps=UNET_STEPS)
        model.text_encoder.save_pretrained(work / "text_encoder")
        model.unet.save_pretrained(work / "unet")
    if not (work / "vae-refined").exists():
        refined = pretrain.refine_decoder(vae, images, latents, work / "decoder.pt", steps=DECODER_STEPS)
        refined.save_pretrained(work / "vae-refined")
    forward = pretrain.build_scheduler().config
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae-refined"),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder"),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel.from_pretrained(work / "unet"),
        scheduler=DPMSolverMultistepScheduler.from_config(forward, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    shutil.rmtree(target, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(target)


def write_prompts(folder: Path) -> tuple[list[str], list[str]]:
    """Write the captions that pairs are made of, and the held-out ones; one a line."""
    train, heldout = ([scene.caption for scene in scenes] for scenes in split_scenes())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.txt").write_text("\n".join(train) + "\n", "utf-8")
    (folder / "heldout.txt").write_text("\n".join(heldout) + "\n", "utf-8")
    return train, heldout


def sample_groups(model: Path, prompts: Sequence[str], count: int, folder: Path) -> dict[str, list[Image.Image]]:
    """``count`` images of the model's own for each prompt."""
    denoiser = resolve("family", "sd")(str(model))

    generate_images(
        prompts,
        range(count),
        folder,
        sampler=own_noise(lambda captions, seeds: denoiser.sample(denoiser.network, captions, seeds, **SAMPLING)),
        model_hash=denoiser.model_hash(),
        settings={**SAMPLING, "noise": "by prompt and seed"},
        batch_size=32,
    )
    groups: dict[str, list[Image.Image]] = {prompt: [] for prompt in prompts}
    for record, path in load_generated(folder):
        groups[record.prompt].append(Image.open(path).convert("RGB"))
    return groups


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **JPEG)
    return buffer.getvalue()


def label_groups(groups: dict[str, list[Image.Image]], seed: int) -> tuple[list[PairRecord], dict[str, list[float]]]:
    """Pair the best with the worst, the second best with the second worst, ..., and ask the annotator.

    Each image stands in one pair; its side is drawn. The annotator prefers image 0 with probability
    sigmoid((score_0 - score_1) / TEMPERATURE) (Bradley-Terry). Also returns the two verified scores of each pair.
    """
    pairs: list[PairRecord] = []
    scores: dict[str, list[float]] = {"score_0": [], "score_1": []}
    for number, (prompt, images) in enumerate(groups.items()):
        rng = np.random.default_rng([seed, 13, number])
        verified = exact_scores(images, [prompt] * len(images))
        order = np.argsort(-verified, kind="stable")
        for better, worse in zip(order[: len(order) // 2], order[::-1], strict=False):
            first, second = (better, worse) if rng.random() < 0.5 else (worse, better)
            chance = 1 / (1 + np.exp(-(verified[first] - verified[second]) / TEMPERATURE))
            label = float(rng.random() < chance)
            pairs.append(PairRecord(prompt, _jpeg(images[first]), _jpeg(images[second]), label))
            scores["score_0"].append(float(verified[first]))
            scores["score_1"].append(float(verified[second]))
    return pairs, scores


def label_noise(pairs: Sequence[PairRecord], scores: dict[str, list[float]]) -> float:
    """Share of labels that go against the verifier, equal scores left out."""
    differences = np.array(scores["score_0"]) - np.array(scores["score_1"])
    labels = np.array([pair.label_0 for pair in pairs])
    decided = differences != 0
    return float(np.mean((differences > 0)[decided] != (labels > 0.5)[decided]))


def build_pairs(model: Path, work: Path, assets: Path) -> dict[str, float]:
    """Sample, label and write both parts as Pick-a-Pic parquet; returns the facts for the asset card."""
    train, heldout = write_prompts(assets / "prompts")
    facts: dict[str, float] = {}
    for part, prompts, count, seed in (("train", train, TRAIN_SAMPLES, 0), ("validation", heldout, HELDOUT_SAMPLES, 1)):
        groups = sample_groups(model, prompts, count, work / f"samples-{part}")
        pairs, scores = label_groups(groups, seed)
        write_pickapic(pairs, assets / "pairs" / f"{part}-00000.parquet", scores)
        facts |= {f"{part}_pairs": len(pairs), f"{part}_label_noise": round(label_noise(pairs, scores), 4)}
        facts[f"{part}_mean_score"] = round(float(np.mean(scores["score_0"] + scores["score_1"])), 4)
    return facts


def build_scorer(work: Path, assets: Path) -> dict[str, float]:
    """Pre-train a CLIP model on the mixture, train it on the pairs by the recipe, and write both in half precision.

    Returns the facts for the asset card, as plain transformers finds them on the files that were written.
    """
    tokenizer = CLIPTokenizer.from_pretrained(assets / "shapes-sd" / "tokenizer")
    base, target = assets / "shapes-clip", assets / "shapes-scorer"
    if not (work / "clip").exists():
        images, captions = pretrain.render_pool(work / "pool.npy", POOL)
        clip = pretrain_scorer.train_clip(images, captions, tokenizer, work / "clip.pt", steps=CLIP_STEPS)
        pretrain_scorer.save_clip(clip, tokenizer, work / "clip")
    shutil.rmtree(base, ignore_errors=True)
    shutil.copytree(work / "clip", base)
    recipe = Path(__file__).parent.parent / "configs" / "shapes_scorer.yaml"
    own = {"model.pretrained_model_name_or_path": base, "output_dir": work / "scorer", "data.cache": False}
    for part in ("train", "validation"):
        own[f"data.{part}"] = assets / "pairs" / f"{part}-00000.parquet"
    train(load_recipe(recipe, own), resume=True)
    pretrain_scorer.save_clip(CLIPModel.from_pretrained(work / "scorer", dtype=torch.float16), tokenizer, target)
    heldout = assets / "pairs" / "validation-00000.parquet"
    before, after = (pretrain_scorer.judge_pairs(folder, heldout) for folder in (base, target))
    named = pretrain_scorer.attribute_accuracy(
        CLIPModel.from_pretrained(base, dtype=torch.float32), tokenizer, POOL, 500
    )
    facts = {f"scorer_validation_{key}": after[key] for key in ("accuracy", "loss")}
    facts |= {"scorer_logit_scale": after["logit_scale"], "scorer_base_validation_accuracy": before["accuracy"]}
    facts |= {f"scorer_base_{name}_accuracy": value for name, value in named.items()}
    return {name: round(value, 4) for name, value in facts.items()}


def write_facts(path: Path, facts: dict[str, float]) -> None:
    """Write ``facts`` over those of the same names in ``path``; the others stay."""
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps(known | facts, indent=2) + "\n", "utf-8")
    print(json.dumps(facts, indent=2))


def main() -> None:
    """Parse arguments and build the stages that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=["all", "model", "pairs", "scorer"], default="all")
    parser.add_argument("--assets", type=Path, default=Path(__file__).parent.parent / "assets")
    parser.add_argument("--work", type=Path, default=Path("build/assets"), help="checkpoints and samples")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    arguments.work.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    model = arguments.assets / "shapes-sd"
    if arguments.stage in ("all", "model"):
        build_model(arguments.work, model)
    if arguments.stage in ("all", "pairs"):
        facts = build_pairs(model, arguments.work, arguments.assets)
        facts |= {"wrong_captions_in_mixture": WRONG_CAPTION_RATE, **{f"mixture_{k}": v for k, v in MIXTURE.items()}}
        write_facts(arguments.assets / "facts.json", facts)
    if arguments.stage in ("all", "scorer"):
        write_facts(arguments.assets / "facts.json", build_scorer(arguments.work, arguments.assets))
    print(f"done in {(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
