"""Images to scores, for the commands that judge: cached by content, resumable, in shards under accelerate launch."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..processes import check_joined

if TYPE_CHECKING:
    from ..data.cache import TensorCache
    from ..errors import UserError
    from ..records import ScoreRecord
    from ..scorers.runner import ScoredBatch
    from ..scorers.scorer import Scorer
    from ..types import ImageItem

_TOLD = 20
_FLUSH_SECONDS = 10.0  # what a killed process may have to score again

SCORERS_HELP = """scorers:
  pickscore, hpsv2, clip_score, aesthetic, imagereward, shapes; written [ALIAS:]NAME[=WEIGHTS][,key=value,...]
  WEIGHTS is a folder, a file or a hub id, the published weights when not given; examples:
    pickscore                            PickScore v1 from the hub
    pickscore=assets/shapes-scorer       any CLIPModel folder in PickScore's form
    hpsv2=HPS_v2_compressed.pt,version=v2.0
    clip_score=FOLDER,form=hessel        forms of clip_score: percent, hessel, diffusion_dpo
    mine:pickscore=runs/scorer           named "mine", beside another pickscore
  Images are judged upright (EXIF), transparency laid on white, 16-bit grey scaled to 8 bits, palettes made RGB before they are
  scaled; prompts beyond a scorer's token limit are cut, and told. docs/scorers.md says what each scorer computes.
"""


def add_scoring_flags(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The flags that say by which scorers, where and how fast images are judged."""
    add = parser.add_argument
    add("--scorer", nargs="+", action="extend", required=required, default=None, metavar="SPEC", help="see below")
    add("--device", help="cuda, cpu, ...; the best one there is by default")
    add("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="precision of the towers")
    add("--batch_size", "--batch-size", type=int, default=16, help="images at once (default 16)")
    add(
        "--workers",
        type=int,
        default=4,
        help="threads that decode images (default 4); each holds one, so fewer take less memory where they are huge",
    )
    add(
        "--cache_dir",
        "--cache-dir",
        default="~/.cache/diffusion-feedback",
        help="where scores are kept by content and recipe (default ~/.cache/diffusion-feedback)",
    )
    add(
        "--on_bad_image",
        "--on-bad-image",
        choices=["error", "skip"],
        default="error",
        help="stop at an image that cannot be decoded, or leave it out and list it (default error)",
    )


def score_items(items: Sequence[ImageItem], arguments: argparse.Namespace) -> list[ScoreRecord]:
    """Score ``items`` by ``arguments.scorer``: the records scorer by scorer, item by item.

    What the cache holds is not scored again, so the same call goes on after a kill. Under ``accelerate launch`` each
    process scores its share, and all of them return everything. Images left out by ``--on_bad_image skip`` are listed.
    Raises UserError for bad specs, weights and images, and where a scorer needs prompts that are not there.
    """
    _check(items, arguments)
    state = process_state()
    with ExitStack() as stack:
        session = _Session.open(arguments, state, stack)
        session.look_at_prompts(items)
        share = items[state.process_index :: state.num_processes]
        failed = session.score(share)
        session.flush()
        state.wait_for_everyone()
        session.report(failed, len(share))
        return session.records(items)


def check_output(output: Path, endings: Sequence[str], *, overwrite: bool) -> None:
    """Raise UserError unless ``output`` ends in one of ``endings`` and is not there yet, or may be replaced."""
    from ..errors import UserError

    if output.suffix not in endings:
        kind = "a parquet file" if list(endings) == [".parquet"] else f"a {', '.join(endings)} file"
        raise UserError(f"{output}: the output is {kind}", f"give a name that ends in {' or '.join(endings)}")
    if output.exists() and not overwrite:
        raise UserError(f"{output}: exists already", "give another name, or --overwrite to replace it")


def check_not_input(output: Path, items: Sequence[ImageItem], *others: str | None) -> None:
    """Raise UserError where ``output`` would replace a file that ``items`` are read from, or one of the ``others``."""
    from ..data.image_handles import files_of_pairs
    from ..errors import UserError

    read = files_of_pairs(items) | {Path(name).resolve() for name in others if name}
    if output.resolve() in read:
        raise UserError(f"{output}: is an input of this command, and would be lost", "give another name for the output")


def process_state() -> Any:
    """accelerate's state of this process: ``process_index``, ``num_processes``, ``is_main_process``, ``device``.

    All processes do the work under ``accelerate launch``; the main one writes the files.
    """
    from datetime import timedelta

    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    # A process that is done waits for the others; the default of ten minutes is too short for that.
    state = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))]).state
    check_joined(state.num_processes)
    return state


def summary(records: Sequence[ScoreRecord]) -> str:
    """A table in plain text: for each scorer the number of images, mean with standard error, range, and recipe."""
    from statistics import fmean, stdev

    from ..evaluation.benchmarks.units import unit_of

    lines = [f"{'scorer':<18} {'images':>7} {'mean':>9} {'+- se':>8} {'min':>9} {'max':>9}  recipe"]
    by_scorer: dict[tuple[str, str], list[float]] = {}
    for record in records:
        by_scorer.setdefault((record.scorer, record.recipe_id), []).append(record.score)
    for (name, recipe), values in by_scorer.items():
        error = f"{stdev(values) / len(values) ** 0.5:.4f}" if len(values) > 1 else "-"
        figures = f"{fmean(values):>9.4f} {error:>8} {min(values):>9.4f} {max(values):>9.4f}"
        lines.append(f"{name:<18} {len(values):>7} {figures}  {recipe}")
    units = {name: unit_of(recipe) for name, recipe in by_scorer}
    told = [
        f"{name}: the cosine; published tables and dfb benchmark show {unit}" for name, unit in units.items() if unit
    ]
    return "\n".join([*lines, *told])


def _check(items: Sequence[ImageItem], arguments: argparse.Namespace) -> None:
    from ..errors import UserError

    for name in ("batch_size", "workers"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name}: got {getattr(arguments, name)}", "allowed: 1 or more")
    if not items:
        raise UserError("no images to score", "give a folder of images or preference pairs")


@dataclass
class _Session:
    """Loaded scorers with their caches; one cache a recipe, one entry an image and prompt."""

    scorers: Sequence[Scorer]
    caches: Mapping[str, TensorCache]
    arguments: argparse.Namespace
    state: Any
    cut: dict[str, set[str]] = field(default_factory=dict)
    """By scorer, the prompts of which it reads the beginning only; filled in the main process."""

    @classmethod
    def open(cls, arguments: argparse.Namespace, state: Any, stack: ExitStack) -> _Session:
        import torch

        from ..data.cache import TensorCache
        from ..devices import find_device
        from ..scorers.loading import load_scorers

        device = find_device(arguments.device) if arguments.device else state.device
        scorers = load_scorers(arguments.scorer, device=device, dtype=getattr(torch, arguments.dtype))
        root = Path(arguments.cache_dir).expanduser() / "scores"
        caches = {
            s.recipe_id: stack.enter_context(TensorCache(root, {"recipe": s.recipe_id}, parts=("score", "raw")))
            for s in scorers
        }
        return cls(scorers, caches, arguments, state)

    def look_at_prompts(self, items: Sequence[ImageItem]) -> None:
        """Prompts beyond a scorer's limit are counted and named; prompts that are not there at all are an error."""
        from ..errors import UserError

        prompts = sorted({item.prompt for item in items})
        for scorer in self.scorers:
            if scorer.reads_prompts and "" in prompts:
                absent = [item.name for item in items if not item.prompt]
                problem = f"{len(absent)} images have no prompt, which {scorer.name!r} needs; the first: {absent[0]}"
                raise UserError(problem, "give --prompts or --prompt, a .txt beside each image, or a metadata.jsonl")
            if self.state.is_main_process:
                cut = [prompt for prompt, is_cut in zip(prompts, scorer.cuts(prompts), strict=True) if is_cut]
                self.cut[scorer.name] = set(cut)
                if cut:
                    told = f"{scorer.name} ignores the ends of {len(cut)} of {len(prompts)} prompts"
                    print(f"note: {told}, beyond its token limit; the first: {_short(cut[0])!r}")

    def key(self, scorer: Scorer, item: ImageItem) -> str:
        """Where the score of ``item`` lies in the scorer's cache."""
        from ..records import content_hash

        return content_hash(item.handle.key, item.prompt if scorer.reads_prompts else "")

    def score(self, items: Sequence[ImageItem]) -> list[tuple[str, str]]:
        """Score what no cache holds, each distinct image and prompt once; returns (name, problem) of bad images."""
        failed: list[tuple[str, str]] = []

        def on_bad(item: ImageItem, error: UserError) -> None:
            failed.append((item.name, error.problem))

        groups, num_cached = self._missing(items, on_bad)
        transparent: list[str] = []
        total = sum(map(len, groups.values()))
        if total:
            with self._bar(len(items), initial=num_cached, desc="score") as bar:
                for absent, wanted in groups.items():
                    scorers = [s for s in self.scorers if s.name in absent]
                    self._run(scorers, wanted, on_bad, lambda item: transparent.append(item.name), bar.update)
        if transparent:
            told = f"{len(transparent)} of the {total} images scored now are transparent in part"
            print(f"note: {told}, and are laid on white; one of them: {min(transparent)}")
        return [*failed, *self._copies(items, failed)]

    def _copies(self, items: Sequence[ImageItem], failed: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Images of the same bytes as one that failed: these were looked at once."""
        problems = dict(failed)
        bad = {item.handle.key: item.name for item in items if item.name in problems and _hashed(item) is None}
        return [
            (item.name, f"{item.name}: the same file as {bad[item.handle.key]}")
            for item in items
            if item.name not in problems and _hashed(item) is None and item.handle.key in bad
        ]

    def _missing(
        self, items: Sequence[ImageItem], on_bad: Callable[[ImageItem, UserError], None]
    ) -> tuple[dict[tuple[str, ...], list[ImageItem]], int]:
        """Items by the scorers that have yet to see them, and how many none has to see."""
        from concurrent.futures import ThreadPoolExecutor

        groups: dict[tuple[str, ...], list[ImageItem]] = {}
        seen: set[tuple[str, str]] = set()
        num_known = 0
        with ExitStack() as stack:
            bar = stack.enter_context(self._bar(len(items), desc="hash images"))
            pool = ThreadPoolExecutor(self.arguments.workers)
            # Whoever interrupts does not wait for the files that are still to be read.
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            for item, problem in zip(items, pool.map(_hashed, items), strict=True):
                bar.update()
                if problem is not None:
                    on_bad(item, problem)
                    continue
                absent = tuple(s.name for s in self.scorers if self.key(s, item) not in self.caches[s.recipe_id])
                identity = (item.handle.key, item.prompt)
                if not absent or identity in seen:
                    num_known += 1
                    continue
                seen.add(identity)
                groups.setdefault(absent, []).append(item)
        return groups, num_known

    def _run(
        self,
        scorers: Sequence[Scorer],
        items: Sequence[ImageItem],
        on_bad: Callable[[ImageItem, UserError], None],
        on_transparent: Callable[[ImageItem], object],
        advance: Callable[[int], Any],
    ) -> None:
        from ..scorers.runner import run

        batches = run(
            scorers,
            items,
            batch_size=self.arguments.batch_size,
            workers=self.arguments.workers,
            on_bad=on_bad,
            on_transparent=on_transparent,
        )
        for batch in _flushing(batches, self.flush):
            for scorer, scores in zip(scorers, batch.scores, strict=True):
                cache = self.caches[scorer.recipe_id]
                rows = zip(batch.items, scores.score.double(), scores.raw.double(), strict=True)
                for item, score, raw in rows:
                    cache.put(self.key(scorer, item), {"score": score, "raw": raw})
            advance(len(batch.items))

    def flush(self) -> None:
        """Bring what was scored to the disk."""
        for cache in self.caches.values():
            cache.flush()

    def report(self, failed: Sequence[tuple[str, str]], number: int) -> None:
        """Say which of ``number`` images this process left out. Raises UserError where none may be.

        At the end, so that all are told at once; the others have their scores by then, and keep them.
        """
        from ..errors import UserError

        if not failed:
            return
        first = "\n".join(f"  {problem}" for _, problem in failed[:_TOLD])
        if self.arguments.on_bad_image == "skip":
            print(f"{len(failed)} images left out; the first of them:\n{first}")
            return
        problem = f"{len(failed)} of {number} images cannot be read; the first of them:\n{first}"
        raise UserError(problem, "replace or remove them, or leave them out with --on_bad_image skip")

    def records(self, items: Sequence[ImageItem]) -> list[ScoreRecord]:
        """The scores of all ``items``, read back from the caches; an item that one scorer could not judge is left out.

        For all scorers: their means would be of different images else.
        """
        from ..errors import UserError
        from ..records import ScoreRecord

        for cache in self.caches.values():
            cache.refresh()
        found: list[tuple[ImageItem, list[tuple[float, float]]]] = []
        for item in items:
            values = self._values(item)
            if values is not None:
                found.append((item, values))
            elif self.arguments.on_bad_image == "error":
                raise UserError(f"{item.name}: its score is not in the cache", "run the same command again")
        if not found:
            raise UserError("no image could be scored", "replace the images listed above")
        return [
            ScoreRecord(
                item.name,
                item.handle.key,
                item.prompt,
                s.name,
                s.recipe_id,
                *values[number],
                s.logit_scale,
                item.prompt in self.cut[s.name] if s.name in self.cut else None,
            )
            for number, s in enumerate(self.scorers)
            for item, values in found
        ]

    def _values(self, item: ImageItem) -> list[tuple[float, float]] | None:
        """(score, raw) of ``item`` by each scorer; None where one has none."""
        if _hashed(item) is not None:
            return None
        entries = [self.caches[scorer.recipe_id].get(self.key(scorer, item)) for scorer in self.scorers]
        values = [(float(entry["score"]), float(entry["raw"])) for entry in entries if entry is not None]
        return values if len(values) == len(entries) else None

    def _bar(self, total: int, *, desc: str, initial: int = 0) -> Any:
        from tqdm import tqdm

        disable = not self.state.is_main_process
        # A thousand hashes take less than a second, and a bar that flickers by says nothing.
        delay = 1.0 if desc == "hash images" else 0.0
        return tqdm(total=total, initial=initial, desc=desc, unit="image", disable=disable, delay=delay)


def _hashed(item: ImageItem) -> UserError | None:
    """Take the hash of the image's bytes; what is wrong, where it cannot be read."""
    from ..errors import UserError

    try:
        item.handle.key  # noqa: B018 (the hash is kept by the handle)
    except UserError as error:
        return error
    return None


def _short(prompt: str) -> str:
    return prompt if len(prompt) <= 60 else prompt[:57] + "..."


def _flushing(batches: Iterable[ScoredBatch], flush: Callable[[], None]) -> Iterator[ScoredBatch]:
    """``batches``, with what was scored brought to the disk every few seconds."""
    last = time.monotonic()
    for batch in batches:
        yield batch
        if time.monotonic() - last > _FLUSH_SECONDS:
            flush()
            last = time.monotonic()
