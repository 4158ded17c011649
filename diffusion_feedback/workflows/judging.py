"""Two language models, or their completions, judged against each other on the same prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from shutil import rmtree
from typing import cast
from weakref import finalize

from ..documents import read_object
from ..errors import UserError
from ..evaluation.judged import Distance, Fluency, JudgeMeasurements, Verdict
from ..evaluation.leakage import Leakage
from ..evaluation.statistics import Interval, WinRate
from ..folders import at_home, check_outside, expand
from ..generation.completions import COMPLETIONS, load_completions
from ..models.loaded import as_it_came
from ..output_folders import OutputKind
from ..records import CompletionRecord, TextRecord, content_hash, write_text
from ..reports.console import judge_summary
from ..reports.pages.folder import write_pages
from ..reports.pages.judge import judge_report
from ..scorers.texts.completion_scorer import quote
from ..scorers.texts.loading import parse_text_spec
from .generating import Prompts, all_text_prompts, complete, text_prompts
from .leakage import leakage_of
from .model_measures import ComparedModel, measure_distance, measure_fluency, read_texts
from .outputs import hold_output
from .settings import CompletionSampling, JudgeSettings, as_list, made_of_keywords, refuse, shows
from .verdicts import Judge, load_judge, name_of_judge, verdict_of

_COMPARISONS = OutputKind(
    mark="results.json",  # until all is measured it holds the settings alone
    own=("README.md", "judgements.jsonl", "report.html", *(f"{side}/{COMPLETIONS}" for side in "ab")),
    free={("device",), ("batch_size",)},
    foreign="is there and holds no comparison",
    changed="holds a comparison with {key} {old}, not {new}",
)
_SIDES = ("a", "b")
_UNSCALED = {"lora_scale": 1.0}


@dataclass(frozen=True, slots=True, weakref_slot=True, repr=False)
class JudgeResult:
    """What was measured of A and B, in ``folder``; as text it is a summary.

    ``judged`` has everything, the completions too; what follows are its parts by judge, or by name of the model.
    """

    judged: JudgeMeasurements
    folder: Path

    @property
    def win_rates(self) -> dict[str, WinRate]:
        """By judge: how often A wins, ties counting half, with a 95 % interval over prompts."""
        return {verdict.spec: verdict.win_rate for verdict in self.judged.verdicts}

    @property
    def scores(self) -> dict[str, tuple[Interval, Interval]]:
        """By judge that scores: the mean scores of A and B, with 95 % intervals over prompts."""
        return {verdict.spec: verdict.means for verdict in self.judged.verdicts if verdict.means is not None}

    @property
    def perplexities(self) -> dict[str, Fluency]:
        """By model: perplexity a token and bits a byte on the held-out texts."""
        return dict(self.judged.fluency)

    @property
    def divergences(self) -> dict[str, Distance]:
        """By model: KL from the reference on its own completions, nats a completion."""
        return dict(self.judged.distance)

    @property
    def report(self) -> Path:
        """The page with tables and completions side by side."""
        return self.folder / "report.html"

    def __str__(self) -> str:
        return judge_summary(self.judged)

    __repr__ = __str__


_KINDS = (JudgeSettings, CompletionSampling)


@shows(*_KINDS)
def judge(
    a: object,
    b: object,
    prompts: Prompts | None = None,
    *,
    judges: Judge | Sequence[Judge] = (),
    texts: str | Path | None = None,
    reference: object = None,
    names: Sequence[str] | None = None,
    output_dir: str | Path | None = None,
    **settings: object,
) -> JudgeResult:
    """Compare two language models on the same ``prompts``: win rates, mean scores, perplexity, divergence.

    ``a``, ``b`` and ``reference``: a folder or hub id, the result of ``train``, or (model, tokenizer) of transformers that
    are loaded; ``a`` and ``b`` may be completions of the same prompts and seeds. ``prompts``: a list of texts or
    conversations, or a file. ``judges``: specs such as "reward_model=FOLDER", functions of prompts and completions, loaded
    scorers of texts, or judges that compare two completions. Perplexity is measured on the held-out ``texts`` (a file of
    any format that is trained on), KL, in nats a completion, from ``reference``. ``settings`` are the fields of
    JudgeSettings and CompletionSampling.

    The same call goes on in ``output_dir`` after a kill; models that are loaded are as they came at the end. Raises
    UserError for settings that are out of range or contradict each other, models, prompts and judges that cannot be read, and a folder that holds another comparison.
    """
    own, sampling = made_of_keywords(settings, *_KINDS)
    listed: list[Judge] = as_list(judges)
    first, second = _names(a, b, names)
    sides = ComparedModel.of(a, first, sampling, own), ComparedModel.of(b, second, sampling, own)
    unscaled = replace(own, lora_scale=1.0)
    origin = None if reference is None else ComparedModel.of(reference, _described(reference), sampling, unscaled)
    place = None if texts is None else at_home(str(texts))
    comparison = _Comparison(sides, at_home(prompts), listed, place, origin, names, own, sampling)
    comparison.check()
    if all(side.holds_completions for side in sides):
        named = settings if prompts is None else {**settings, "prompts": prompts}
        refuse(named, ("prompts", "seed", *CompletionSampling.__slots__), "for completions that are there")
    records = read_texts(place)
    if output_dir is not None:
        check_outside(expand(output_dir), comparison.inputs())
    given = [each.model for each in (*sides, origin) if each is not None]
    with hold_output(output_dir, "judge") as folder, as_it_came(*given):
        claim = _claim(folder, comparison.recorded(), overwrite=own.overwrite)
        result = JudgeResult(comparison.measure(folder, records, claim), folder)
    if output_dir is None:  # the folder lives as long as the result
        finalize(result, rmtree, folder, ignore_errors=True)
    return result


def _described(given: object) -> str:
    """A path as it is; of what is loaded, its class."""
    path = getattr(given, "path", given)
    return str(path) if isinstance(path, str | Path) else type(given[0] if isinstance(given, tuple) else given).__name__


def _names(a: object, b: object, names: Sequence[str] | None) -> tuple[str, str]:
    """What the two are called: by default their folders."""
    if names is not None and len(as_list(names)) != 2:
        raise UserError(f"`names`: got {names!r}", "give two, of A and of B")
    paths = [Path(_described(given)) for given in (a, b)]
    paths = [path.parent if path.name == COMPLETIONS else path for path in paths]
    first, second = names or (path.name or str(path) for path in paths)
    if first == second and not names:
        first, second = (str(path) for path in paths)
    if first == second:
        raise UserError(f"A and B would both be called {first!r}", "give two different ones, or `names`")
    return first, second


def _claim(folder: Path, settings: Mapping[str, object], *, overwrite: bool) -> Callable[[], None]:
    """What makes ``folder`` one of a comparison under ``settings``, once it has found all that it reads.

    Raises UserError where ``folder`` holds another comparison, or anything of others. Writes nothing.
    """
    others = [path for side in _SIDES for path in (folder / side).glob("[!.]*") if path.name != COMPLETIONS]
    if others:
        raise UserError(f"{folder}: is there and holds {min(others).name}", "choose another output_dir")
    _COMPARISONS.check_own(folder)
    mark = json.dumps({"settings": settings}, indent=2) + "\n"
    if overwrite or not _COMPARISONS.is_marked(folder):
        return cache(partial(_COMPARISONS.claim, folder, mark))
    path, remedy = folder / _COMPARISONS.mark, "choose another output_dir, or `overwrite` to start over"
    content = read_object(path, remedy, ["settings"])
    before, now = content["settings"], json.loads(mark)["settings"]
    if not isinstance(before, dict):
        raise UserError(f"{path}: damaged: 'settings' is no object", remedy)
    if "judges" not in content:  # it failed or was killed, and what it drew is checked by its own settings
        return cache(partial(_COMPARISONS.write_mark, folder, mark))
    # What an older version did not record is no difference, nor is a scale of 1.
    before, now = _UNSCALED | before, _UNSCALED | now
    _COMPARISONS.check_same(folder, {key: before.get(key) for key in now}, now)
    return lambda: None


@dataclass(frozen=True, slots=True)
class _Comparison:
    """What is compared, and how."""

    sides: tuple[ComparedModel, ComparedModel]
    prompts: Prompts | None
    judges: Sequence[Judge]
    texts: str | None
    reference: ComparedModel | None
    names: Sequence[str] | None
    own: JudgeSettings
    sampling: CompletionSampling

    def check(self) -> None:
        """Raise UserError for what can be seen to be wrong before minutes of sampling."""
        if not (self.judges or self.texts or self.reference):
            raise UserError("nothing to measure", "name judges, or give `texts` or `reference`")
        own = self.sampling
        if self.own.lora_scale != 1 and not any(side.is_adapted for side in self.sides):
            raise UserError("`lora_scale`: means nothing where neither A nor B is an adapter", "leave it out")
        if self.reference and (own.temperature == 0 or own.top_k > 0 or own.top_p < 1):
            problem = "`reference`: no divergence can be estimated from samples with temperature 0, top_k or top_p"
            raise UserError(problem, "draw with all tokens at a temperature above 0, or leave `reference` out")
        for side in self.sides:
            for name, value in (("texts", self.texts), ("reference", self.reference)):
                if value and side.holds_completions:
                    problem = f"`{name}`: {side.path} holds completions, not a model"
                    raise UserError(problem, f"leave `{name}` out, or give the model")
        for judge in self.judges:
            if isinstance(judge, str):
                parse_text_spec(judge, "pair_judge")
        called = [name_of_judge(judge) for judge in self.judges]
        if repeated := next((name for name in called if called.count(name) > 1), None):
            raise UserError(f"the judge {repeated!r} is given twice", "give each judge once, under a name of its own")

    def inputs(self) -> dict[str, str | None]:
        """The paths that are read, by the parameters that name them."""
        reference = None if self.reference is None else self.reference.path
        prompts = str(self.prompts) if isinstance(self.prompts, str | Path) else None
        named = {"`prompts`": prompts, "`texts`": self.texts, "`reference`": reference}
        return {"A": self.sides[0].path, "B": self.sides[1].path, **named}

    def recorded(self) -> dict[str, object]:
        """All settings that a result depends on; of two files of completions, none that says how to draw."""
        a, b = (side.path or f"{side.name}, a loaded {type(side.model).__name__}" for side in self.sides)
        settings: dict[str, object] = {"a": a, "b": b}
        if self.own.lora_scale != 1:
            settings["lora_scale"] = self.own.lora_scale
        if not all(side.holds_completions for side in self.sides):
            named = self.prompts is None or isinstance(self.prompts, str | Path)
            settings["prompts"] = self.inputs()["`prompts`"] if named else content_hash(repr(self.prompts))
            settings |= {"seed": self.own.seed, **asdict(self.sampling)}
        return settings | {
            "judge": [name_of_judge(judge) for judge in self.judges],
            "texts": self.texts,
            "reference": None if self.reference is None else self.reference.name,
            "names": None if self.names is None else list(self.names),
            "tie_margin": self.own.tie_margin,
            "dtype": self.own.dtype or "float32",
            "device": None if self.own.device is None else str(self.own.device),
            "batch_size": self.own.batch_size,
        }

    def measure(self, folder: Path, texts: Sequence[TextRecord], claim: Callable[[], None]) -> JudgeMeasurements:
        """Everything that was requested, written to ``folder``, which ``claim`` makes ours.

        The judgements are there before anything else is measured.
        """
        # One that cannot be loaded is named before minutes of sampling.
        judges = {name_of_judge(judge): load_judge(judge, self.own) for judge in self.judges}
        completions = self.completions(folder, claim)
        verdicts = [verdict_of(name, judge, *completions, self.own.tie_margin) for name, judge in judges.items()]
        del judges  # their memory is the models' now
        claim()
        _write_judgements(folder / "judgements.jsonl", completions, verdicts)
        fluency, notes = measure_fluency(self.sides, texts)
        judged = JudgeMeasurements(
            names=(self.sides[0].name, self.sides[1].name),
            completions=completions,
            verdicts=verdicts,
            fluency=fluency,
            distance=measure_distance(self.sides, completions, self.reference),
            settings=self.recorded(),
            notes=notes,
        )
        are_given = self.prompts is None or not completions[0] or all(side.holds_completions for side in self.sides)
        given = None if are_given else len(all_text_prompts(cast(Prompts, self.prompts)))
        judged = replace(judged, leakage=self._leakage(judged), num_given=given)
        _COMPARISONS.write_mark(folder, json.dumps(judged.to_json(), indent=2, allow_nan=False) + "\n")
        write_pages(judge_report(judged), "judge", folder, results=judge_summary(judged))
        return judged

    def _leakage(self, judged: JudgeMeasurements) -> dict[str, Leakage]:
        """What each of the two has seen of prompts and judges; of completions alone nobody knows."""
        judges = {verdict.spec: verdict.recipe_id for verdict in judged.verdicts}
        models = {side.name: [] if side.path is None or side.holds_completions else [side.path] for side in self.sides}
        return {name: leakage_of(paths, judged.prompts, judges) for name, paths in models.items()}

    def completions(
        self, folder: Path, claim: Callable[[], None]
    ) -> tuple[list[CompletionRecord], list[CompletionRecord]]:
        """The completions of A and of B: read, or drawn into ``folder``; none where nothing needs them."""
        a, b = (self._completions(side, folder / name, claim) for side, name in zip(self.sides, _SIDES, strict=True))
        if a:
            _check_aligned([side.name for side in self.sides], a, b)
        return a, b

    def _completions(self, side: ComparedModel, folder: Path, claim: Callable[[], None]) -> list[CompletionRecord]:
        if side.holds_completions:
            return load_completions(str(side.path))
        if not (self.judges or self.reference):
            return []
        if self.prompts is None:
            raise UserError(
                "`prompts`: is not given", f"{side.path or side.name} is a model, and needs prompts to complete"
            )
        prompts = text_prompts(self.prompts, in_turns=self.sampling.wants_turns)
        sampler = side.open()
        claim()
        return complete(prompts, sampler, folder, self.own.generation)


def _check_aligned(called: Sequence[str], a: Sequence[CompletionRecord], b: Sequence[CompletionRecord]) -> None:
    """Raise UserError unless both are of the same prompts, seeds and samples, in the same order."""
    remedy = "complete the same prompts with the same seeds and num_samples"
    if len(a) != len(b):
        raise UserError(f"{called[0]} has {len(a)} completions, {called[1]} has {len(b)}", remedy)
    for one, other in zip(a, b, strict=True):
        if one.identity != other.identity or one.prompt != other.prompt:
            which = (f"{name} has {_draw(each)}" for name, each in zip(called, (one, other), strict=True))
            raise UserError(" where ".join(which), remedy)


def _draw(record: CompletionRecord) -> str:
    return f"prompt {record.prompt_index} ({quote(record.prompt)}), seed {record.seed}, sample {record.sample}"


def _write_judgements(
    path: Path, completions: tuple[Sequence[CompletionRecord], Sequence[CompletionRecord]], verdicts: Sequence[Verdict]
) -> None:
    """One row for each prompt and sample: both completions, and what every judge says of them."""
    rows = []
    for place, (a, b) in enumerate(zip(*completions, strict=True)):
        said = {
            verdict.spec: {"a": verdict.a[place], "b": verdict.b[place], "outcome": verdict.outcomes[place]}
            for verdict in verdicts
        }
        row = {"prompt": a.prompt, "seed": a.seed, "sample": a.sample, "a": a.completion, "b": b.completion}
        rows.append(json.dumps({**row, "judges": said}, ensure_ascii=False, default=dict) + "\n")
    write_text(path, "".join(rows))
