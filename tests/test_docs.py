"""The documents tell the truth: what they name exists, what exists they name, and their commands are accepted."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

import diffusion_feedback
from diffusion_feedback import __version__
from diffusion_feedback.catalog import CATALOG, names
from diffusion_feedback.cli.main import COMMANDS, overview
from diffusion_feedback.config.parsing import load_recipe
from docs.catalog_tables import filled, table

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("assets/**/*.md")])
RECIPES = sorted((ROOT / "configs").glob("**/*.yaml"))
HELPS = sorted((ROOT / "diffusion_feedback" / "cli" / "help").glob("*.txt"))


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def shell_lines(source: str) -> list[str]:
    """Commands with `dfb` or `make` in code blocks, recipe headers and help texts; continued lines are joined."""
    joined = source.replace("\\\n", " ")
    found = re.findall(r"^[ \t#$>]*((?:dfb|make|diffusion-feedback) [^\n`|>&]*)", joined, re.MULTILINE)
    return [line.split("  #")[0].strip() for line in found]


def shown_commands() -> list[tuple[str, str]]:
    sources = {path.relative_to(ROOT).as_posix(): text(path) for path in (*DOCUMENTS, *RECIPES, *HELPS)}
    sources["dfb --help"] = overview()
    return [(where, line) for where, source in sources.items() for line in shell_lines(source)]


@cache
def help_of(*words: str) -> str:
    command = [
        sys.executable,
        "-m",
        "diffusion_feedback",
        *words,
        "--help",
        *["all"] * (words[0] in ("train", "rounds")),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def flags(line: str) -> list[str]:
    return [
        word.split("=")[0].replace("-", "_").replace("__", "--", 1) for word in shlex.split(line) if word[:2] == "--"
    ]


def refuse_unknown(line: str) -> None:
    """Check command, flags and repository files of one line ``dfb ...`` or ``make ...``."""
    program, *words = shlex.split(line)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", text(ROOT / "Makefile"), re.MULTILINE)
        assert {word for word in words if "=" not in word} <= set(targets)
        return
    if not words or words[0] in ("COMMAND", "--help", "--version"):
        return
    assert words[0] in COMMANDS
    # A second word may be a command of its own, with flags of its own.
    known = help_of(words[0]) + (help_of(*words[:2]) if words[1:] and words[1][0] not in "-<{[" else "")
    accepted = {flag.replace("-", "_").replace("__", "--", 1) for flag in re.findall(r"--[\w.-]+", known)}
    assert set(flags(line)) <= accepted
    for word in words[1:]:
        if re.match(r"(configs|assets|examples|experiments|benchmarks|tools)/", word) and word == word.lower():
            assert (ROOT / word).exists(), word


@pytest.mark.parametrize(("where", "line"), shown_commands())
def test_shown_commands_are_accepted(where: str, line: str) -> None:
    refuse_unknown(line)


def test_a_wrong_command_would_be_noticed() -> None:
    source = "    dfb train --confg configs/a.yaml \\\n      --output_dir x\n\nas dfb does\n"
    assert shell_lines(source) == ["dfb train --confg configs/a.yaml        --output_dir x"]
    for line in ("dfb trian", "dfb train --confg x", "dfb train --config configs/no-such-recipe.yaml", "make nothing"):
        with pytest.raises(AssertionError):
            refuse_unknown(line)


KINDS = {
    "families": "family", "scorers": "scorer", "rules of labels": "rule", "benchmarks": "benchmark", "optimizers": "optimizer",
}  # fmt: skip


def named_in_the_readme() -> dict[str, set[str]]:
    """By kind, what the table of names holds; rows of another label are of objectives."""
    section = text(ROOT / "README.md").split("## What is supported")[1].split("\n## ")[0]
    named: defaultdict[str, set[str]] = defaultdict(set)
    for line in section.splitlines():
        if line.startswith("| ") and not line.startswith("| |"):
            label, cell = line.split("|")[1:3]
            named[KINDS.get(label.strip(), "objective")].update(re.findall(r"`(\w+)`", cell))
    return named


@pytest.mark.parametrize("kind", [*KINDS.values(), "objective"])
def test_the_readme_names_what_a_recipe_may_name(kind: str) -> None:
    """What came since need not stand there: the page of every name is made of the catalog."""
    named = named_in_the_readme()[kind]
    assert len(named) > 3
    assert named <= set(names(kind))


def test_the_page_of_every_name_has_them_all() -> None:
    page = filled(text(ROOT / "docs" / "catalog.md"))
    for kind in CATALOG:
        section = page.split(table(kind))
        assert len(section) == 2, kind
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(lines) == sum(map(len, CATALOG.values()))
    assert [line for line in lines if not line.split(" | ")[2].strip(" |")] == [], "a docstring says what it is"


def test_the_readme_names_every_command() -> None:
    readme = text(ROOT / "README.md")
    assert [name for name in COMMANDS if f"dfb {name}" not in readme] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    source = text(path)
    targets = re.findall(r"\]\(([^)\s]+)\)", source) + re.findall(r'(?:src|href)="([^"]+)"', source)
    local = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    assert [target for target in local if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_recipes_are_accepted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(path)
    assert recipe.output_dir
    assert text(path).startswith("#"), "a recipe begins with its command, hardware, time and expected numbers"


def test_there_are_recipes() -> None:
    assert RECIPES


def test_one_version_everywhere() -> None:
    assert f"version: {__version__}\n" in text(ROOT / "CITATION.cff")
    assert f"## [{__version__}]" in text(ROOT / "CHANGELOG.md")


def test_the_page_of_python_names_every_function() -> None:
    page = text(ROOT / "docs" / "python.md")
    functions = [name for name in diffusion_feedback.__all__ if name[0].islower()]
    assert [name for name in functions if not re.search(rf"\bdfb\.{name}\(", page)] == []
    members = [name for name, value in vars(diffusion_feedback.Run).items() if name[0] != "_" and callable(value)]
    assert [name for name in [*members, "metrics", "evaluations"] if f"run.{name}" not in page] == []
    shown = set(re.findall(r"\bdfb\.(\w+)", page))
    assert [name for name in shown if name not in diffusion_feedback.__all__] == []


def test_the_api_page_names_every_public_name() -> None:
    named = re.findall(r"^\.\. auto(?:function|class|exception):: (\w+)$", text(ROOT / "docs" / "api.md"), re.MULTILINE)
    assert sorted(named) == sorted(diffusion_feedback.__all__)
