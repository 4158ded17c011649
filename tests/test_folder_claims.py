"""Whose an output folder is: foreign folders are refused, changed settings named, clearing leaves what is not ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diffusion_feedback.errors import UserError
from diffusion_feedback.output_folders import OutputKind, check_writable

KIND = OutputKind(
    mark="settings.json",
    own=("results.json", "images-*"),
    free={("device",), ("data", "cache")},
    foreign="holds no settings.json",
    changed="has {key} = {old}, not {new}",
)


@pytest.mark.parametrize(("file", "is_free"), [(None, True), (".lock", True), ("settings.json", True), ("mine", False)])
def test_whose_a_folder_is(file: str | None, is_free: bool, tmp_path: Path) -> None:
    if file:
        (tmp_path / file).touch()
    assert KIND.is_marked(tmp_path) == (file == "settings.json")
    if is_free:
        KIND.check_own(tmp_path)
    else:
        with pytest.raises(UserError, match="holds no settings.json\n  -> choose another output_dir"):
            KIND.check_own(tmp_path)
    KIND.check_own(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="holds no settings.json"):
        KIND.check_own(tmp_path / "file")


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"seed": 1, "device": "cuda", "data": {"cache": {"size": 2}, "path": "x"}}, None),
        ({"seed": 2, "device": "cpu", "data": {"path": "x"}}, "has seed = 1, not 2\n  -> .*`overwrite` to start over"),
        ({"seed": 1, "data": {"path": "y"}}, "has data.path = 'x', not 'y'"),
        ({"seed": 1}, "has data.path = 'x', not None"),
        ({"seed": 1, "data": {"path": "x" * 300}}, r"not 'x{196}\.\.\.\n"),
    ],
)
def test_changed_settings_are_named(now: dict[str, Any], message: str | None, tmp_path: Path) -> None:
    before = {"seed": 1, "device": "cpu", "data": {"cache": {"size": 1}, "path": "x"}}
    if message is None:
        KIND.check_same(tmp_path, before, now)
    else:
        with pytest.raises(UserError, match=message):
            KIND.check_same(tmp_path, before, now)


def test_a_claim_clears_what_is_its_own(tmp_path: Path) -> None:
    for name in ("results.json", "settings.json", "mine.txt"):
        (tmp_path / name).write_text("old")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "images-1").mkdir()
    (tmp_path / "images-1" / "a.png").touch()
    (tmp_path / "images-2").symlink_to(tmp_path / "elsewhere")
    KIND.claim(tmp_path, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "mine.txt", "settings.json"]
    assert (tmp_path / "settings.json").read_text() == "new"
    (tmp_path / "images-3").touch()
    with pytest.raises(UserError, match="cannot be written"):
        KIND.claim(tmp_path / "images-3", "new")


def test_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "a" / "b")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be written"):
        check_writable(tmp_path / "a" / "b")
