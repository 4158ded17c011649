"""The whole story on the embedded model: samples, Diffusion-DPO and its baseline, samples again, a verified report."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from ..config.parsing import load_recipe
from ..config.recipe import Recipe
from ..documents import read_object
from ..errors import UserError
from ..evaluation.comparison import compare
from ..folders import hold_folder
from ..output_folders import OutputKind
from ..prompts import read_prompts
from ..records import write_json
from ..workflows.generating import draw_images
from ..workflows.labeling import label
from ..workflows.sampling import validation_sampler
from ..workflows.settings import GenerationSettings
from ..workflows.training.run import train
from .page import write_demo_pages
from .result import Demo, VerifiedImages, average
from .scenes import parse_caption
from .settings import DemoSettings
from .verifier import read_scene

logger = logging.getLogger(__name__)

AI_PAIRS = "ai_pairs.parquet"
TIE_MARGIN = 0.02  # verified scores closer than this count as a tie; scores lie in [0, 1]
SCORER = "assets/shapes-scorer"
METHODS = {"dpo": "shapes_dpo_lora", "ai": "shapes_ai_dpo_lora", "sft": "shapes_sft_lora"}
"""The runs of the demo and their recipes: people's labels, the embedded scorer's labels, chosen images alone."""
_DEMOS = OutputKind(
    mark="stages.json",
    own=("results.json", "report.html", "README.md", "before_after.png", AI_PAIRS, "samples", *METHODS),
    free={()},  # every training run, and every folder of samples, knows its own settings
    foreign="is there and holds no demo",
    changed="",
)


def demo(settings: DemoSettings) -> Demo:
    """Tell the story in ``settings.output_dir``, or go on with one that was interrupted.

    Raises UserError where the embedded assets are missing, and for a folder that holds anything else.
    """
    if not Path(settings.prompts).is_file():
        raise UserError(f"{settings.prompts}: no such file", "run from the root of a clone, which holds assets/")
    folder = Path(settings.output_dir)
    with hold_folder(folder, "demo"):
        _DEMOS.open(folder, {}, overwrite=settings.overwrite)
        return Story(settings).tell()


class Story:
    """The demo's stages; each is resumable, and its time is kept in stages.json when it is done."""

    def __init__(self, settings: DemoSettings) -> None:
        self.folder = Path(settings.output_dir)
        self.prompts = [record.prompt for record in read_prompts(settings.prompts)][: settings.num_prompts]
        methods = [method for method in METHODS if method != "ai" or settings.ai_feedback]
        self.recipes = {method: self._recipe(method, settings) for method in methods}

    def _recipe(self, method: str, settings: DemoSettings) -> Recipe:
        own = {
            "output_dir": self.folder / method,
            "training.seed": settings.seed,
            "data.cache_dir": self.folder / "cache",
        }
        if method == "ai":
            own["data.train"] = self.folder / AI_PAIRS
        return load_recipe(Path(settings.configs) / f"{METHODS[method]}.yaml", own)

    @contextmanager
    def _stage(self, name: str, title: str) -> Iterator[None]:
        """Announce a stage, and keep its time when it is done; a stage done before keeps its first time."""
        logger.info("\n== %s", title)
        start = time.monotonic()
        yield
        stages = {name: round(time.monotonic() - start, 1), **self._stages()}
        write_json(self.folder / "stages.json", stages)

    def _stages(self) -> dict[str, float]:
        path = self.folder / "stages.json"
        if not path.exists():
            return {}
        remedy = "remove the file: only the times of the stages are lost"
        stages = read_object(path, remedy)
        if not all(isinstance(seconds, int | float) for seconds in stages.values()):
            raise UserError(f"{path}: damaged: holds something else than seconds", remedy)
        return stages

    def tell(self) -> Demo:
        """Sample, tune, sample again, judge, report."""
        images: dict[str, VerifiedImages] = {}
        with self._stage("sample base", f"base model, {len(self.prompts)} held-out prompts"):
            images["base"] = self._sample("base", None)
        if "ai" in self.recipes:
            with self._stage("label", "the embedded scorer labels the training pairs"):
                self._label()
        for method, recipe in self.recipes.items():
            steps, size = recipe.training.max_train_steps, recipe.training.train_batch_size
            with self._stage(f"train {method}", f"{method}: {steps} steps of {size} pairs"):
                train(recipe, resume=(self.folder / method / "recipe.yaml").exists())
            with self._stage(f"sample {method}", f"{method}: the same prompts and seeds"):
                images[method] = self._sample(method, str(self.folder / method))
        with self._stage("report", "judging by the exact verifier"):
            before, own = images["base"].scores, {method: images[method].scores for method in self.recipes}
            comparisons = {m: compare(self.prompts, before, own[m], tie_margin=TIE_MARGIN) for m in own}
        result = Demo(self.folder, self.recipes, images, comparisons, sum(self._stages().values()))
        write_json(self.folder / "results.json", result.metrics)
        write_demo_pages(result)
        return result

    def _label(self) -> None:
        """The training pairs under the scorer's labels, in place of the annotator's."""
        output = self.folder / AI_PAIRS
        if output.exists():
            return
        pairs, cache = self.recipes["dpo"].data.train, str(self.folder / "cache")
        label(pairs, scorers=f"pickscore={SCORER}", cache_dir=cache, batch_size=64, output=output)

    def _sample(self, name: str, lora: str | None) -> VerifiedImages:
        recipe, folder = self.recipes["dpo"], self.folder / "samples" / name
        sampler = validation_sampler(recipe, recipe.model.pretrained_model_name_or_path, lora)
        generation = GenerationSettings(seeds=(recipe.validation.seed,), batch_size=32)
        records = draw_images(self.prompts, sampler, folder, generation)
        return _judge(self.prompts, [folder / record.file_name for record in records])


def _judge(prompts: list[str], images: list[Path]) -> VerifiedImages:
    """What the exact verifier reads from ``images``, one of each prompt."""
    targets = [parse_caption(prompt) for prompt in prompts]
    readings = []
    for path in images:
        with Image.open(path) as image:
            readings.append(read_scene(image.convert("RGB")))
    both = list(zip(readings, targets, strict=True))
    return VerifiedImages(
        images,
        [reading.score(target) for reading, target in both],
        [average(list(reading.correct(target).values())) for reading, target in both],
        [reading.cleanliness for reading in readings],
    )
