"""The installed packages: whether they fit this project and each other, checked before any of them is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import InvalidVersion

from .errors import UserError

PROJECT = "diffusion-feedback"
# Packages whose own requirements decide whether they load at all: torchvision's operators belong to one torch.
BOUND = ("torchvision",)
REMEDY = "pip install --upgrade {packages}"


def check_installed() -> None:
    """Raise UserError naming every package that is missing, or outside what this project and its parts ask for.

    What is required stands in the metadata that pip itself reads: the bounds in pyproject.toml, with a ceiling where a
    release is known to break something, and torchvision's torch. From a source tree that was never installed there is
    nothing to read, and nothing is checked.
    """
    wrong = dict(_wrong())
    if wrong:
        packages = " ".join(f"'{requirement}'" for requirement in wrong)
        problem = "installed packages do not fit: " + "; ".join(wrong.values())
        raise UserError(problem, REMEDY.format(packages=packages))


def _wrong() -> Iterator[tuple[str, str]]:
    """Each requirement that is not met, and what is there in its place."""
    versions: dict[str, str | None] = {}
    for owner in (PROJECT, *BOUND):
        for requirement in _requirements(owner):
            name = requirement.name
            if name not in versions:
                versions[name] = _version(name)
            version, wanted = versions[name], f"{name}{requirement.specifier}"
            if version is None:
                yield wanted, f"{name} is not installed ({owner} needs {wanted})"
            elif not _fits(requirement, version):
                yield wanted, f"{name} {version} ({owner} needs {wanted})"


def _requirements(owner: str) -> list[Requirement]:
    try:
        lines = metadata.requires(owner) or []
    except metadata.PackageNotFoundError:
        return []
    requirements = [Requirement(line) for line in lines]
    environment: Mapping[str, str] = {"extra": ""}
    return [one for one in requirements if one.marker is None or one.marker.evaluate(dict(environment))]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fits(requirement: Requirement, version: str) -> bool:
    """A build from source may carry a version that no rule can compare; its owner knows what it is."""
    try:
        return requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return True
