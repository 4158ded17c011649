"""The lock is whole: every dependency at a version that pyproject.toml allows, every file by its hash, no index named."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FILES = ("run.txt", "dev.txt", "installer.txt")


def locked(name: str) -> list[tuple[Requirement, int]]:
    """Each requirement of a locked file, and how many hashes follow it."""
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(Requirement(line.split("--hash")[0]), line.count("--hash=sha256:")) for line in lines]


def versions(name: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for requirement, _ in locked(name):
        found.setdefault(canonicalize_name(requirement.name), set()).update(s.version for s in requirement.specifier)
    return found


@pytest.mark.parametrize("name", FILES)
def test_exact_versions_with_hashes_and_no_index(name: str) -> None:
    found = locked(name)
    assert found
    for requirement, hashes in found:
        assert [s.operator for s in requirement.specifier] == ["=="], requirement
        assert hashes >= 1, requirement
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links|@ ", text)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("run.txt", PROJECT["dependencies"]),
        ("dev.txt", PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]),
        ("installer.txt", ["uv"]),
    ],
)
def test_every_dependency_is_locked_within_its_bounds(name: str, wanted: list[str]) -> None:
    found = versions(name)
    for line in wanted:
        requirement = Requirement(line)
        at = found.get(canonicalize_name(requirement.name))
        assert at, f"{name} lacks {line}: run `make lock`"
        assert all(requirement.specifier.contains(Version(version)) for version in at), f"{line}: locked at {at}"


def test_both_environments_hold_the_same_versions() -> None:
    """Except where a marker splits a package, what runs is what was tested."""
    run, dev = versions("run.txt"), versions("dev.txt")
    assert {name: at for name, at in run.items() if name in dev and not at <= dev[name]} == {}
