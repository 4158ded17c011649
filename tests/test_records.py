"""Records: labels, identities, and writing that is never half done."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from diffusion_feedback.errors import UserError
from diffusion_feedback.models.saving import saving
from diffusion_feedback.records import (
    CompletionRecord,
    ImageRecord,
    PairRecord,
    ScoreRecord,
    atomic_folder,
    atomic_write,
    content_hash,
    parse_json,
    sync,
    write_json,
)


def test_content_hash_by_hand(tmp_path: Path) -> None:
    data = (1).to_bytes(8, "little") + b"a" + (2).to_bytes(8, "little") + b"bc"
    assert content_hash("a", b"bc") == hashlib.sha256(data).hexdigest()[:32]
    assert content_hash("ab", "c") != content_hash("a", "bc")
    (tmp_path / "file").write_bytes(b"bc" * 700_000)
    assert content_hash("a", tmp_path / "file", "d") == content_hash("a", b"bc" * 700_000, "d")


@pytest.mark.parametrize(
    ("label", "chosen", "rejected", "probability", "tie"),
    [(1.0, b"0", b"1", 1.0, False), (0.0, b"1", b"0", 1.0, False), (0.25, b"1", b"0", 0.75, False), (0.5, b"0", b"1", 0.5, True)],
)  # fmt: skip
def test_labels(label: float, chosen: bytes, rejected: bytes, probability: float, tie: bool) -> None:
    pair = PairRecord("prompt", b"0", b"1", label)
    assert (pair.chosen, pair.rejected, pair.chosen_probability, pair.is_tie) == (chosen, rejected, probability, tie)


def test_a_pair_is_itself_whichever_image_comes_first() -> None:
    pair = PairRecord("prompt", b"0", b"1", 1.0, source="here")
    assert pair.example_id == PairRecord("prompt", b"1", b"0", 0.0, weight=0.5, source="there").example_id
    assert pair.example_id != PairRecord("other", b"0", b"1", 1.0).example_id
    assert pair.example_id != PairRecord("prompt", b"0", b"2", 1.0).example_id


def test_image_records_read_back() -> None:
    record = ImageRecord("images/0.png", "größer", 3, {"steps": 5}, "abc")
    assert ImageRecord.from_json(record.to_json()) == record
    with pytest.raises(KeyError):
        ImageRecord.from_json('{"file_name": "a"}')


def test_atomic_write_keeps_the_old_file_on_an_error(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with atomic_write(path) as file:
        file.write_text("old")

    def fail() -> None:
        with atomic_write(path) as file:
            file.write_text("half of the ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_user_errors_carry_problem_and_remedy() -> None:
    error = UserError("a.yaml: unknown key 'b'", "did you mean 'c'?")
    assert str(error) == "a.yaml: unknown key 'b'\n  -> did you mean 'c'?"
    assert str(UserError("broken")) == "broken"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "model"
    (tmp_path / ".model.tmp").mkdir()  # of a writer that was killed
    for text in ("old", "new"):
        with atomic_folder(place) as folder:
            assert list(folder.iterdir()) == []
            (folder / "inner").mkdir()
            (folder / "inner" / text).write_text(text)
    with pytest.raises(FileNotFoundError), atomic_folder(place) as folder:
        folder.joinpath("absent", "half").touch()
    assert [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*")] == [
        "model",
        "model/inner",
        "model/inner/new",
    ]


def test_disks_without_fsync_are_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    with atomic_write(tmp_path / "file") as file:
        file.write_text("whole")
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "file").write_text("whole")
    with saving(tmp_path / "result") as beside:
        (beside / "config.json").write_text("whole")
    for name in ("file", "folder/file", "result/config.json"):
        assert (tmp_path / name).read_text() == "whole"


IMAGE = {"file_name": "a.png", "prompt": "a cat", "seed": 0, "model_hash": "m", "settings": {}}
COMPLETION = {
    "prompt_index": 0, "sample": 0, "seed": 0, "prompt": "a", "completion": "b", "token_ids": [1], "is_finished": True,
    "settings": {}, "model_hash": "m",
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        (ImageRecord, json.dumps(IMAGE | {"file_name": "../a.png"}), "leads out of the folder"),
        (ImageRecord, json.dumps(IMAGE | {"file_name": "/a.png"}), "leads out of the folder"),
        (ImageRecord, json.dumps(IMAGE | {"seed": True}), "seed is true"),
        (ImageRecord, "[" * 100_000, "nested too deep"),
        (ImageRecord, "[1]", "a list, and no object"),
        (CompletionRecord, json.dumps(COMPLETION | {"prompt": ["hi"]}), "neither a text nor a list of turns"),
    ],
)
def test_lines_that_are_no_records_are_refused(
    kind: type[ImageRecord | CompletionRecord], line: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind.from_json(line)


def test_a_disk_that_fails_to_sync_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        sync(tmp_path)


def test_completion_records_read_back() -> None:
    turns = ({"role": "user", "content": "größer?"},)
    for prompt in ("größer", turns):
        record = CompletionRecord(2, 1, 7, prompt, "ja", (3, 4), True, {"top_k": 0}, "abc")
        again = CompletionRecord.from_json(record.to_json())
        assert again == record
        assert again.identity == (2, 7, 1)
    with pytest.raises(ValueError, match="neither a text nor a list of turns"):
        CompletionRecord.from_json(record.to_json().replace('[{"content": "größer?", "role": "user"}]', '["größer?"]'))


def test_the_logit_of_a_score() -> None:
    score = ScoreRecord("a.png", "k", "p", "pickscore", "r", score=2.0, raw=0.25, logit_scale=8.0)
    assert score.logit == 2.0
    assert replace(score, logit_scale=None).logit is None


def test_json_that_is_written_and_read(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"größe": 1})
    assert parse_json((tmp_path / "a.json").read_bytes(), "a.json", "mend it") == {"größe": 1}
    with pytest.raises(UserError, match=r"a.json: not UTF-8 text \(byte 1\)"):
        parse_json(b'"\xff"', "a.json", "mend it")
    with pytest.raises(UserError, match="mend it"):
        parse_json(r'"\ud800"', "a.json", "mend it")
