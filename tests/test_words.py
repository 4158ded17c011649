"""One word for one thing: no two public things of one name, and none of the words that this project does not use."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffusion_feedback.catalog import CATALOG
from diffusion_feedback.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "diffusion_feedback"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def test_no_two_public_things_have_one_name() -> None:
    """Beside what all modules of a kind define, which is called by the module's name: ``sd.load``, ``train.run``."""
    places = public_names()
    shared = [*of_one_kind(places, modules_of_rows()), *of_one_kind(places, modules_of_commands())]
    for name, modules in shared:
        places[name] -= modules
    assert {name: sorted(modules) for name, modules in places.items() if len(modules) > 1} == {}


def public_names() -> dict[str, set[str]]:
    """The modules that define each public class or function."""
    places: defaultdict[str, set[str]] = defaultdict(set)
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
                places[node.name].add(module)
    return places


def modules_of_rows() -> set[str]:
    """Modules of one family, scorer or benchmark each: what the catalog names of them is called ``load`` or alike."""
    rows = [row for kind in ("family", "scorer", "text_scorer", "benchmark") for row in CATALOG[kind].values()]
    return {str(getattr(row, "load", row)).partition(":")[0] for row in rows}


def modules_of_commands() -> set[str]:
    return {f"diffusion_feedback.cli.{name}" for name in COMMANDS}


def of_one_kind(places: dict[str, set[str]], modules: set[str]) -> list[tuple[str, set[str]]]:
    both = [(name, here & modules) for name, here in places.items()]
    return [(name, here) for name, here in both if len(here) > 1]


FIGURES = r"(?<!reports\.)figures"  # but for pictures of curves, in reports

# What is not written, as a regular expression, and what is written in its place.
WORDS = {
    r"looked(?! up| for)": "evaluated, read, checked",
    r"(a|an|the|one|every|each|this|last|first|same) looks?": "an evaluation",
    FIGURES: "metrics, numbers",
    r"told": "recorded, reported, given",
    r"asked": "requested",
    r"anew": "again",
    r"mend(s|ed|ing)?": "repair",
    r"so many": "this many",
    r"size stor(y|ies)": "size conditioning",
    r"(rooms|floors|doors?|house|(a|the|only|each|every|one) room (that|which))": "packages, layers",
    r"(stands?|standing) once": "is used once",
    r"told apart|look every": "compared, evaluate every",
    r"convene[sd]?": "build_panel",
    r"found(?= (=|:=|: \w+ =|\+=|in)\W)": "what it is",
    r"class (Writer|Drawing|Side|Roller|Measured|Rotated|PairOrder)": "a name of what it is",
}

# Where such a word is right: the file, and what stands around it.
RIGHT = {
    "assets/README.md": "a pair stands once",  # written by the tool that builds them
    "diffusion_feedback/scorers/texts/llm_judge.py": "closer to what is asked?",  # a published question
    "CONTRIBUTING.md": "figures, pages and model cards",  # pictures of curves
}


def written() -> Iterator[tuple[str, int, str]]:
    """File, line number and text of each line that somebody reads."""
    code = ("diffusion_feedback", "docs", "examples", "experiments", "benchmarks", "tools")
    texts = (
        "diffusion_feedback/**/*.j2",
        "diffusion_feedback/cli/help/*.txt",
        "diffusion_feedback/reports/**/*.yaml",
        "docs/*.md",
        "README.md",
        "CONTRIBUTING.md",
        "assets/*.md",
        "configs/*.yaml",
    )
    patterns = (*(f"{folder}/**/*.py" for folder in code), *texts)
    for path in (path for pattern in patterns for path in sorted(ROOT.glob(pattern))):
        name = str(path.relative_to(ROOT))
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            yield name, number, line.replace(RIGHT.get(name, "\0"), "")


@pytest.mark.parametrize("word", WORDS)
def test_words_that_are_not_used(word: str) -> None:
    pattern = re.compile(rf"(?<![A-Za-z])(?:{word})(?![A-Za-z])")
    wrong = [
        f"{name}:{number}: {line.strip()}"
        for name, number, line in written()
        if pattern.search(line) and not (word == FIGURES and name.startswith("diffusion_feedback/reports/"))
    ]
    assert wrong == [], f"write {WORDS[word]}"


RATE = re.compile(
    r"([Nn]ats|[Bb]its|perplexity|[Pp]airs|images|samples) a (token|byte|completion|caption|step|second|prompt|round|pass)(?!\w)"
)
READ = (
    "diffusion_feedback/cli/",
    "diffusion_feedback/reports/",
    "diffusion_feedback/shapes/page.py",
    "configs/",
    "docs/",
)


def test_what_is_read_says_per() -> None:
    """It is "nats per token", not "nats a token": in help, pages, cards, recipes and documents."""
    lines = [(name, number, line) for name, number, line in written() if name.startswith(READ)]
    assert [f"{name}:{number}: {line.strip()}" for name, number, line in lines if RATE.search(line)] == []
    assert RATE.search("a KL of 0.4 nats a caption")


@pytest.mark.parametrize("word", ["the last look", "figures of the run", "it is told", "asked for", "say it anew"])
def test_the_words_are_seen(word: str) -> None:
    assert any(re.search(rf"(?<![A-Za-z])(?:{pattern})(?![A-Za-z])", word) for pattern in WORDS)
