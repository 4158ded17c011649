"""Locks of output folders and files, temporaries, and what is swept: one writer at a time, nothing left, nothing lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from diffusion_feedback.errors import UserError
from diffusion_feedback.folders import expand, hold_file, hold_folder, sweep_folder
from diffusion_feedback.records import atomic_write

FORK = multiprocessing.get_context("fork")
Hold = Callable[[Path, str], AbstractContextManager[None]]
LEFT = (".a.json.77.tmp", ".a.json.0123456789ab.tmp")
NOT_OURS = (".a.json.tmp", "a.json.77.tmp", ".a.json.0123456789.tmp.txt", ".hidden", "a.json")


def holds(hold: Hold, place: Path, ready: Path) -> None:
    with hold(place, "dfb other"):
        ready.touch()
        time.sleep(60)


@contextmanager
def at_work(hold: Hold, place: Path, ready: Path) -> Iterator[int]:
    """Another process that holds ``place``; killed at the end, as by a power cut."""
    other = FORK.Process(target=holds, args=(hold, place, ready))
    other.start()
    try:
        deadline = time.monotonic() + 30
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert other.pid is not None
        yield other.pid
    finally:
        other.kill()
        other.join()


@pytest.mark.parametrize("hold", [hold_folder, hold_file])
def test_a_second_command_is_told_who_is_at_work_and_a_dead_one_is_taken_over(hold: Hold, tmp_path: Path) -> None:
    place = tmp_path / "out" / "it"
    with at_work(hold, place, tmp_path / "ready") as pid:
        with pytest.raises(UserError) as told, hold(place, "dfb score"):
            pytest.fail("two at once")
        assert re.search(
            rf"{place}: dfb other \(process {pid} on \S+, since 2\d{{3}}-.*\) is at work here", str(told.value)
        )
        assert "wait until it has ended, or choose another output" in told.value.remedy
    with hold(place, "dfb score"):
        pass
    assert not list(tmp_path.rglob(".*")), "lock and holder are gone"


def test_two_files_of_one_folder_are_written_at_once(tmp_path: Path) -> None:
    with hold_file(tmp_path / "a.parquet", "dfb score"), hold_file(tmp_path / "b.parquet", "dfb score"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_stays_empty_is_not_left_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bad"), hold_folder(tmp_path / "a" / "b", "dfb judge"):
        raise UserError("bad input")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with hold_folder(tmp_path / "mine", "dfb judge"):
        pass
    assert (tmp_path / "mine").is_dir(), "what was there before stays"


@pytest.mark.parametrize("name", ["RANK", "OMPI_COMM_WORLD_RANK"])
def test_of_several_processes_the_first_takes_the_lock(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hold_folder(tmp_path, "dfb train"):
        monkeypatch.setenv(name, "1")
        with hold_folder(tmp_path, "dfb train"), hold_file(tmp_path / "x.parquet", "dfb score"):
            assert not list(tmp_path.glob(".x*"))
        monkeypatch.setenv(name, "0")
        with pytest.raises(UserError, match="is at work here"), hold_folder(tmp_path, "dfb train"):
            pytest.fail("two at once")


def test_a_folder_that_vanishes_meanwhile_is_told(tmp_path: Path) -> None:
    place = tmp_path / "out"
    with pytest.raises(UserError, match="was moved or deleted while dfb generate"), hold_folder(place, "dfb generate"):
        place.rename(tmp_path / "elsewhere")


@pytest.mark.parametrize("hold", [hold_folder, hold_file])
@pytest.mark.parametrize("damage", ["", "{", "[]", '{"command": 1}', "\0"])
def test_a_damaged_holder_is_another_command(hold: Hold, damage: str, tmp_path: Path) -> None:
    place = tmp_path / "it"
    with hold(place, "dfb train"):
        (holder,) = tmp_path.rglob(".*holder")
        holder.write_text(damage)
        with pytest.raises(UserError, match="another command is at work here"), hold(place, "dfb train"):
            pytest.fail("two at once")


def in_the_way(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "at" / "all")
    return {
        "file": tmp_path / "file",
        "under a file": tmp_path / "file" / "below",
        "too long": tmp_path / ("x" * 300),
        "path too long": tmp_path.joinpath(*["x" * 200] * 30),
        "loop": tmp_path / "loop" / "below",
        "dangling": tmp_path / "dangling",
        "NUL": tmp_path / "a\0b",
        "proc": Path("/proc/1/none"),
    }


@pytest.mark.parametrize(
    "what", ["file", "under a file", "too long", "path too long", "loop", "dangling", "NUL", "proc"]
)
def test_folders_that_cannot_be_made(what: str, tmp_path: Path) -> None:
    place = in_the_way(tmp_path)[what]
    with pytest.raises(UserError, match="cannot be written") as told, hold_folder(place, "dfb judge"):
        pytest.fail("held")
    assert told.value.remedy == "choose another output_dir"
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("what", ["under a file", "too long", "path too long", "loop", "NUL", "proc"])
def test_files_that_cannot_be_written(what: str, tmp_path: Path) -> None:
    place = in_the_way(tmp_path)[what]
    place = place if what in ("too long", "NUL") else place / "scores.parquet"
    with pytest.raises((UserError, OSError, ValueError)), hold_file(place, "dfb score"), atomic_write(place) as file:
        file.write_text("x")


@pytest.mark.parametrize("hold", [hold_folder, lambda folder, name: hold_file(folder / "a.json", name)])
def test_what_killed_writers_left_is_swept_and_nothing_else(hold: Hold, tmp_path: Path) -> None:
    for name in (*LEFT, *NOT_OURS):
        (tmp_path / name).write_text("x")
    with hold(tmp_path, "dfb score"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NOT_OURS)


def test_sweeping_keeps_off_folders_in_which_others_are_at_work(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / LEFT[1]).write_text("x")
    with hold_folder(tmp_path / "b", "dfb generate"):
        (tmp_path / "b" / LEFT[1]).write_text("x")
        sweep_folder(tmp_path)
        assert not (tmp_path / "a" / LEFT[1]).exists()
        assert (tmp_path / "b" / LEFT[1]).exists()


def test_no_two_writers_share_a_temporary(tmp_path: Path) -> None:
    """As in two containers, whose processes have one number."""
    with atomic_write(tmp_path / "a.json") as first, atomic_write(tmp_path / "a.json") as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert (tmp_path / "a.json").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("length", [80, 200, 255])
def test_long_names_are_written_and_locked(length: int, tmp_path: Path) -> None:
    path = tmp_path / ("x" * length)
    with hold_file(path, "dfb score"), atomic_write(path) as file:
        file.write_text("1")
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_file_and_folder_reach_the_disk_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def told_sync(descriptor: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        sync(descriptor)

    def told_replace(old: Path, new: Path) -> None:
        done.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", told_sync)
    monkeypatch.setattr(os, "replace", told_replace)
    with atomic_write(tmp_path / "a.json") as file:
        file.write_text("1")
    assert done == ["file", "rename", "folder"]


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "~nobody-of-this-name", "a\0b"])
def test_homes_and_paths_that_are_none(path: str) -> None:
    with pytest.raises(UserError, match="home folder|NUL"):
        expand(path)


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand("~/runs") == tmp_path / "runs"
    assert expand("a~/~b") == Path("a~/~b")


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_writer_that_is_killed_leaves_the_old_file(kill: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps("old"))
    code = (
        "import signal, sys, time; from pathlib import Path; from diffusion_feedback.records import atomic_write\n"
        # A process that a shell has put in the background starts with SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with atomic_write(Path(sys.argv[1])) as file:\n"
        "    file.write_text('half'); print('begun', flush=True); time.sleep(60)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "a.json")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(kill)
    assert json.loads((tmp_path / "a.json").read_text()) == "old"
    with hold_file(tmp_path / "a.json", "dfb score"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
