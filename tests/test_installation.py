"""Packages that do not fit are named with the remedy before anything is loaded."""

from __future__ import annotations

import importlib.metadata as metadata
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_feedback import installation
from diffusion_feedback.cli.main import main
from diffusion_feedback.errors import UserError


def write_package(folder: Path, name: str, version: str, *requires: str) -> None:
    """The metadata of an installed package, as pip writes it."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages, which hides those of this environment."""
    write_package(tmp_path, "diffusion-feedback", "1.0", "torch>=2.8", "peft>=0.20,<0.30", "extra-one>=1; extra == 'x'")
    monkeypatch.setattr(metadata, "requires", lambda name: next(iter(_named(tmp_path, name))).requires)
    monkeypatch.setattr(metadata, "version", lambda name: next(iter(_named(tmp_path, name))).version)
    return tmp_path


def _named(site: Path, name: str) -> list[metadata.Distribution]:
    found = list(metadata.distributions(name=name, path=[str(site)]))
    if not found:
        raise metadata.PackageNotFoundError(name)
    return found


def test_this_environment_fits() -> None:
    installation.check_installed()


def test_what_fits_passes(site: Path) -> None:
    write_package(site, "torch", "2.14.1+cpu")
    write_package(site, "torchvision", "0.29.1", "torch==2.14.1", "numpy; extra == 'more'")
    write_package(site, "peft", "0.21.2")
    installation.check_installed()


@pytest.mark.parametrize(
    ("packages", "said"),
    [
        ([("torch", "2.14.1")], ["peft is not installed", "'peft<0.30,>=0.20'"]),
        ([("torch", "2.7.0"), ("peft", "0.21")], ["torch 2.7.0 (diffusion-feedback needs torch>=2.8)"]),
        ([("torch", "2.14.1"), ("peft", "0.30.0")], ["peft 0.30.0 (diffusion-feedback needs peft<0.30,>=0.20)"]),
        (
            [("torch", "2.13.0+cpu"), ("peft", "0.21"), ("torchvision", "0.29.1", "torch==2.14.1")],
            ["torch 2.13.0+cpu (torchvision needs torch==2.14.1)", "'torch==2.14.1'"],
        ),
        ([], ["torch is not installed", "peft is not installed"]),
    ],
)
def test_what_does_not_fit_is_named(site: Path, packages: list[tuple[str, ...]], said: list[str]) -> None:
    for name, version, *requires in packages:
        write_package(site, name, version, *requires)
    with pytest.raises(UserError) as caught:
        installation.check_installed()
    assert all(words in str(caught.value) for words in [*said, "-> pip install --upgrade '"])


def test_a_source_tree_that_was_never_installed_is_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: _named(tmp_path, name)[0].requires)
    installation.check_installed()


def test_commands_ask_before_they_load(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "images"]) == 2
    assert "installed packages do not fit: torch is not installed" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        main(["score", "--help"])
    assert done.value.code == 0


def test_asking_loads_none_of_them() -> None:
    code = "import sys; from diffusion_feedback.installation import check_installed; check_installed(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "numpy", "PIL"} & set(done.stdout.split())
