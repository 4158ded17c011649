"""Files of texts as people bring them: every format in every container, what stands beside it, and what damages it."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import text_recipes

from diffusion_feedback.cli.main import main
from diffusion_feedback.data.texts import open_prompts, open_texts
from diffusion_feedback.errors import UserError
from diffusion_feedback.records import Text, TextRecord

Row = dict[str, Any]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


# --- containers ------------------------------------------------------------------------------------------------------


def _lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _table(rows: Sequence[Row], delimiter: str) -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {name: json.dumps(cell) if isinstance(cell, list | dict) else cell for name, cell in row.items()}
        )
    return file.getvalue()


def _write(path: Path, text: str) -> Path:
    if path.suffix == ".gz":
        with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
            file.write(text)
    else:
        path.write_text(text, "utf-8", newline="")
    return path


def _parquet(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def _folder(folder: Path, rows: Sequence[Row]) -> Path:
    folder.mkdir()
    _write(folder / "train-0.jsonl", _lines(rows))
    return folder


def _saved(folder: Path, rows: Sequence[Row]) -> Path:
    datasets.Dataset.from_list(list(rows)).save_to_disk(str(folder))
    return folder


def _saved_splits(folder: Path, rows: Sequence[Row]) -> Path:
    table = datasets.Dataset.from_list(list(rows))
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(str(folder))
    return folder


CONTAINERS: Mapping[str, Callable[[Path, Sequence[Row]], Path]] = {
    "jsonl": lambda place, rows: _write(place / "a.jsonl", _lines(rows)),
    "json": lambda place, rows: _write(place / "a.json", json.dumps(rows)),
    "jsonl.gz": lambda place, rows: _write(place / "a.jsonl.gz", _lines(rows)),
    "upper case": lambda place, rows: _write(place / "A.JSONL", _lines(rows)),
    "parquet": lambda place, rows: _parquet(place / "a.parquet", rows),
    "csv": lambda place, rows: _write(place / "a.csv", _table(rows, ",")),
    "csv.gz": lambda place, rows: _write(place / "a.csv.gz", _table(rows, ",")),
    "tsv": lambda place, rows: _write(place / "a.tsv", _table(rows, "\t")),
    "folder": lambda place, rows: _folder(place / "set", rows),
    "folder of parquet": lambda place, rows: _parquet(place / "set" / "train-0.parquet", rows).parent,
    "save_to_disk": lambda place, rows: _saved(place / "set", rows),
    "save_to_disk, splits": lambda place, rows: _saved_splits(place / "set", rows),
}

# --- formats, each with what its first row says ----------------------------------------------------------------------

Q, YES, NO = "What is red?", 'A rose, "red".\nYes.', "The sky, 空."
CALLED = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
FORMATS: Mapping[str, tuple[Row, tuple[Text, Text, Text | None]]] = {
    "TRL": ({"prompt": Q, "chosen": YES, "rejected": NO}, (Q, YES, NO)),
    "TRL, implicit": ({"chosen": "It is red.", "rejected": "It is blue."}, ("It is", " red.", " blue.")),
    "TRL, system": (
        {"system": "Be short.", "prompt": Q, "chosen": YES, "rejected": NO},
        ((system("Be short."), user(Q)), (bot(YES),), (bot(NO),)),
    ),
    "Intel": (
        {"system": "Be short.", "question": Q, "chosen": YES, "rejected": NO},
        ((system("Be short."), user(Q)), (bot(YES),), (bot(NO),)),
    ),
    "Intel, empty system": (
        {"system": "", "question": Q, "chosen": YES, "rejected": NO},
        ((user(Q),), (bot(YES),), (bot(NO),)),
    ),
    "Argilla": (
        {"system": "Be short.", "input": Q, "chosen": YES, "rejected": NO},
        ((system("Be short."), user(Q)), (bot(YES),), (bot(NO),)),
    ),
    "Alpaca, ranking": (
        {"instruction": "Sort.", "input": "b a", "chosen": YES, "rejected": NO, "system": "Be short."},
        ((system("Be short."), user("Sort.\n\nb a")), (bot(YES),), (bot(NO),)),
    ),
    "Alpaca, history": (
        {"instruction": "And?", "input": "", "output": YES, "system": "", "history": [["Hi", "Ho"]]},
        ((user("Hi"), bot("Ho"), user("And?")), (bot(YES),), None),
    ),
    "OpenRLHF": (
        {"question": Q, "response_chosen": YES, "response_rejected": NO},
        ((user(Q),), (bot(YES),), (bot(NO),)),
    ),
    "Dolly": (
        {"instruction": Q, "context": "Roses are.", "response": YES},
        ((user(f"{Q}\n\nRoses are."),), (bot(YES),), None),
    ),
    "question, answer": ({"question": Q, "answer": YES}, ((user(Q),), (bot(YES),), None)),
    "OpenOrca": (
        {"system_prompt": "Be short.", "question": Q, "response": YES},
        ((system("Be short."), user(Q)), (bot(YES),), None),
    ),
    "prompt, response": ({"prompt": Q, "response": YES}, (Q, YES, None)),
    "ShareGPT, ranking": (
        {
            "conversations": [{"from": "human", "value": Q}],
            "chosen": {"from": "gpt", "value": YES},
            "rejected": {"from": "gpt", "value": NO},
        },
        ((user(Q),), (bot(YES),), (bot(NO),)),
    ),
    "ShareGPT, system": (
        {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": YES}], "system": "Be short."},
        ("", (system("Be short."), user(Q), bot(YES)), None),
    ),
    "ShareGPT, calls": (
        {
            "conversations": [
                {"from": "human", "value": Q},
                {"from": "function_call", "value": '{"name": "look", "arguments": {"at": "sky"}}'},
                {"from": "observation", "value": "blue"},
                {"from": "gpt", "value": YES},
            ]
        },
        (
            "",
            (
                user(Q),
                {"role": "assistant", "tool_calls": [CALLED]},
                {"role": "tool", "content": "blue"},
                bot(YES),
            ),
            None,
        ),
    ),
    "messages of parts": (
        {"messages": [{"role": name, "content": [{"type": "text", "text": text}]} for name, text in (("user", Q), ("assistant", YES))]},
        ("", (user(Q), bot(YES)), None),
    ),
    "text": ({"text": YES}, ("", YES, None)),
    "prompt, completion": ({"prompt": Q, "completion": YES}, (Q, YES, None)),
}  # fmt: skip
# Tables hold no struct without its list, and turns of parts as JSON text alone.
NOT_IN_TABLES = {"ShareGPT, ranking"}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_in_every_container(name: str, container: str, tmp_path: Path) -> None:
    row, expected = FORMATS[name]
    path = CONTAINERS[container](tmp_path, [row, row])
    if name in NOT_IN_TABLES and ("csv" in container or "tsv" in container):
        with pytest.raises(UserError, match="column 'chosen': found (.|\n)*JSON Lines and parquet"):
            list(open_texts(path))
        return
    reader = open_texts(path)
    for record in (first := list(reader)):
        assert (record.prompt, record.chosen, record.rejected) == expected
    assert len(first) == 2
    assert reader.log.counts.unread == {}
    assert list(reader) == first


# --- what stands beside ----------------------------------------------------------------------------------------------

PAIR = {"prompt": Q, "chosen": YES, "rejected": NO}
IMPLICIT = {"chosen": "It is red.", "rejected": "It is blue."}
TURNS = {"chosen": [user(Q), bot(YES)], "rejected": [user(Q), bot(NO)]}
DEMONSTRATION = {"prompt": Q, "completion": YES}
CHAT = {"messages": [user(Q), bot(YES)]}
ASKED = {"question": Q, "answer": YES}
BASES = {
    "pair": PAIR,
    "implicit": IMPLICIT,
    "turns": TURNS,
    "demonstration": DEMONSTRATION,
    "chat": CHAT,
    "asked": ASKED,
}
WORDS = "Use two words."
# Read into the prompt (R), or refused by name (X); what is not said here is refused.
TAKEN = {
    "pair": {"system"}, "turns": {"system", "question", "instruction", "query", "input"}, "demonstration": {"system"},
    "chat": {"system"}, "asked": {"system", "history"}, "implicit": {"prompt", "question", "instruction", "query", "input"},
}  # fmt: skip


PROMPT_COLUMNS = ("system", "context", "history", "instruction", "query", "input", "question", "prompt")


@pytest.mark.parametrize(
    ("base", "column"),
    [(base, column) for base, row in BASES.items() for column in PROMPT_COLUMNS if column not in row],
)
def test_words_that_belong_to_a_prompt(base: str, column: str, tmp_path: Path) -> None:
    value: Any = [["Hi", WORDS]] if column == "history" else WORDS
    path = CONTAINERS["jsonl"](tmp_path, [BASES[base] | {column: value}])
    if column in TAKEN[base]:
        (record,) = open_texts(path)
        assert WORDS in json.dumps(record.prompt or record.chosen)
        return
    with pytest.raises(UserError) as caught:
        list(open_texts(path))
    for part in ("a.jsonl, line 1", f"column '{column}'", WORDS if column != "history" else "Hi"):
        assert part in str(caught.value)
    # Nothing in it: nothing is lost.
    for nothing in (None, "", "  ", []) if column != "prompt" else ():
        assert len(list(open_texts(CONTAINERS["jsonl"](tmp_path, [BASES[base] | {column: nothing}])))) == 1


@pytest.mark.parametrize("column", ["label", "kto_tag", "preference"])
@pytest.mark.parametrize("base", ["pair", "implicit", "turns", "chat", "asked"])
def test_labels_that_nobody_reads(base: str, column: str, tmp_path: Path) -> None:
    path = CONTAINERS["jsonl"](tmp_path, [BASES[base] | {column: 0}])
    if column == "kto_tag" and base in ("chat", "asked"):
        (record,) = open_texts(path)
        assert (record.label, record.prompt, record.chosen) == (False, (user(Q),), (bot(YES),))
        return
    with pytest.raises(UserError, match=f"line 1, column '{column}': found 0, which .* do not read"):
        list(open_texts(path))


@pytest.mark.parametrize("base", BASES)
def test_other_columns_are_listed_wherever_data_is_read(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [BASES[base] | {"id": 1, "source": "x"}, BASES[base] | {"late": "y"}]
    if base == "demonstration":
        rows = [{**row, "prompt": f"{number}"} for number, row in enumerate(rows)]
    path = CONTAINERS["jsonl"](tmp_path, rows)
    says = "columns not read: id (1 row), source (1 row), late (1 row)"
    reader = open_texts(path)
    list(reader)
    assert reader.notes == [says]
    main(["data", "check", str(path)])
    assert says in capsys.readouterr().out


REPEATED = {
    "UltraChat": (CHAT | {"prompt": Q}, "prompt"),
    "UltraFeedback": ({"prompt": Q, **TURNS, "messages": [user(Q), bot(YES)]}, "messages"),
    "NuminaMath": (CHAT | {"problem": Q, "solution": YES}, "problem"),
    "rendered": (DEMONSTRATION | {"prompt": f"### {Q}\n", "instruction": Q}, "instruction"),
}


@pytest.mark.parametrize("name", REPEATED)
def test_columns_that_repeat_what_is_read_are_listed(name: str, tmp_path: Path) -> None:
    row, column = REPEATED[name]
    reader = open_texts(CONTAINERS["jsonl"](tmp_path, [row]))
    assert len(list(reader)) == 1
    assert reader.log.counts.unread[column] == 1


@pytest.mark.parametrize("container", ["jsonl", "parquet", "csv", "tsv"])
@pytest.mark.parametrize(("label", "means"), [(1, True), (0, False), (True, True), ("false", False), (1.0, True)])
def test_labels_of_unpaired_feedback(label: Any, means: bool, container: str, tmp_path: Path) -> None:
    (record,) = open_texts(CONTAINERS[container](tmp_path, [DEMONSTRATION | {"label": label}]))
    assert record.label is means


@pytest.mark.parametrize("container", ["csv", "tsv", "csv.gz"])
def test_numbers_of_tables(container: str, tmp_path: Path) -> None:
    rows = [
        PAIR | {"margin": "1.5", "weight": "2", "score_chosen": ""},
        PAIR | {"prompt": "", "margin": "", "weight": ""},
    ]
    first, second = open_texts(CONTAINERS[container](tmp_path, [{"score_chosen": "", **row} for row in rows]))
    assert (first.margin, first.weight, second.margin, second.weight, second.prompt) == (1.5, 2.0, 0.0, 1.0, "")
    with pytest.raises(UserError, match="column 'margin': found 'big'"):
        list(open_texts(CONTAINERS[container](tmp_path, [PAIR | {"margin": "big"}])))


# --- oddities of rows ------------------------------------------------------------------------------------------------

CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}
ODD: Mapping[str, tuple[Row, list[str] | Callable[[TextRecord], bool]]] = {
    "printed turns": (PAIR | {"chosen": str([bot(YES)])}, ["column 'chosen'", "written out as a text"]),
    "JSON turns as a text": (PAIR | {"chosen": json.dumps([bot(YES)])}, ["column 'chosen'", "written out as a text"]),
    "speaker that is a list": ({"conversations": [{"from": ["x"], "value": "y"}]}, ["turn 0", "role ['x']"]),
    "speaker that is an object": ({"messages": [{"role": {}, "content": "y"}]}, ["turn 0", "role {}"]),
    "unknown speaker": ({"conversations": [{"from": "ghost", "value": "y"}]}, ["turn 0", "'ghost'"]),
    "picture in a turn": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "a"}]}, bot("x")]},
        ["turn 0", "image_url", "only parts of the type text"],
    ),
    "call that is no JSON": (
        {"conversations": [{"from": "human", "value": "y"}, {"from": "function_call", "value": "look()"}]},
        ["turn 1", "look()", "not JSON"],
    ),
    "arguments that are no JSON": (
        {"messages": [user("x"), {"role": "assistant", "tool_calls": [{"function": {"name": "l", "arguments": "{"}}]}]},
        ["turn 1", "not JSON"],
    ),
    "arguments as JSON text": (
        {"messages": [user("x"), {"role": "assistant", "tool_calls": [{"function": {"name": "l", "arguments": '{"a": 1}'}}]}]},
        lambda record: record.chosen[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1},  # type: ignore[index]
    ),
    "arguments without function": (
        {"messages": [user("x"), {"role": "assistant", "tool_calls": [{"name": "l", "arguments": ""}]}]},
        lambda record: record.chosen[1]["tool_calls"] == [{"name": "l", "arguments": {}}],  # type: ignore[index]
    ),
    "no calls": (
        {"messages": [user("x"), {"role": "assistant", "content": "y", "tool_calls": []}]},
        lambda record: record.chosen[1] == bot("y"),
    ),
    "calls that are texts": (
        {"messages": [user("x"), {"role": "assistant", "tool_calls": ["look"]}]}, ["turn 1", "'look'", "tool_calls"],
    ),
    "two systems": (
        {"messages": [system("a"), user("x"), bot("y")], "system": "b"}, ["column 'system'", "'b'", "'a'"],
    ),
    "the same system": (
        {"messages": [system("a"), user("x"), bot("y")], "system": "a"},
        lambda record: record.chosen == (system("a"), user("x"), bot("y")),
    ),
    "system that is a number": (PAIR | {"system": 3}, ["column 'system'", "found 3"]),
    "history of texts": (
        {"instruction": "a", "output": "b", "history": ["x"]}, ["column 'history'", "'x'", "[question, answer]"],
    ),
    "names of images": (
        PAIR | {"chosen": "a/1.png", "rejected": "b/1.PNG"}, ["column 'chosen'", "1.png", "image_0_file_name"],
    ),
    "context beside a question": (ASKED | {"context": "Look."}, ["column 'context'", "Look."]),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_rows(name: str, tmp_path: Path) -> None:
    row, expected = ODD[name]
    path = CONTAINERS["jsonl"](tmp_path, [row])
    if callable(expected):
        (record,) = open_texts(path)
        assert expected(record)
        return
    with pytest.raises(UserError) as caught:
        list(open_texts(path))
    for part in ("a.jsonl, line 1", *expected):
        assert part in str(caught.value)
    reader = open_texts(path, on_bad_row="skip")
    with pytest.raises(UserError, match="0 usable examples"):
        list(reader)
    assert reader.log.counts.bad.total() == 1


# --- damage ----------------------------------------------------------------------------------------------------------

GOOD = CONTAINERS["jsonl"]


def _damaged(place: Path, kind: str) -> Path:
    if kind == "gzip cut off":
        return _cut(CONTAINERS["jsonl.gz"](place, [PAIR] * 50), 60)
    if kind == "gzip of another kind":
        (place / "a.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00" + b"\xff" * 80)
        return place / "a.jsonl.gz"
    if kind == "no gzip":
        (place / "a.jsonl.gz").write_text("{}")
        return place / "a.jsonl.gz"
    if kind == "a key twice":
        return _write(place / "a.jsonl", '{"prompt": "a", "prompt": "b", "chosen": "c", "rejected": "d"}\n')
    if kind == "a key twice in a turn":
        return _write(place / "a.jsonl", '{"messages": [{"role": "user", "role": "assistant", "content": "c"}]}\n')
    if kind == "a column twice, parquet":
        table = pa.Table.from_arrays([pa.array(["a"])] * 4, ["prompt", "chosen", "rejected", "prompt"])
        pq.write_table(table, place / "a.parquet")
        return place / "a.parquet"
    if kind == "a column twice, csv":
        return _write(place / "a.csv", "prompt,completion,prompt\na,b,c\n")
    if kind == "csv that never closes":
        return _write(place / "a.csv", 'prompt,completion\n"a,b\nc,d\n')
    if kind == "csv of another width":
        return _write(place / "a.csv", "prompt,completion\na,b,c\n")
    if kind == "csv between semicolons":
        return _write(place / "a.csv", "prompt;completion\na;b\n")
    if kind == "csv in Latin-1":
        (place / "a.csv").write_bytes("prompt,completion\na,café\n".encode("latin-1"))
        return place / "a.csv"
    if kind == "empty csv":
        return _write(place / "a.csv", "")
    if kind == "save_to_disk without its tables":
        folder = CONTAINERS["save_to_disk"](place, [PAIR])
        next(folder.glob("*.arrow")).unlink()
        return folder
    if kind == "save_to_disk, damaged":
        folder = CONTAINERS["save_to_disk"](place, [PAIR])
        next(folder.glob("*.arrow")).write_bytes(b"no")
        return folder
    if kind == "save_to_disk, no such split":
        table = datasets.Dataset.from_list([PAIR])
        datasets.DatasetDict({"test": table}).save_to_disk(str(place / "set"))
        return place / "set"
    if kind == "a folder with a script":
        (place / "set").mkdir()
        (place / "set" / "set.py").write_text("raise SystemExit(0)")
        return place / "set"
    if kind == "NUL in the name":
        return Path("a\0b.jsonl")
    if kind == "NUL in a glob":
        return Path("a\0*.jsonl")
    if kind in (".txt", ".xlsx", ".arrow", ".zip", ".gz"):
        return _write(place / f"a{kind}x"[:-1], "x") if kind != ".gz" else _no_gzip(place)
    raise AssertionError(kind)


def _no_gzip(place: Path) -> Path:
    (place / "a.gz").write_bytes(b"x")
    return place / "a.gz"


def _cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


DAMAGE = {
    "gzip cut off": ["a.jsonl.gz: could not be read"],
    "gzip of another kind": ["a.jsonl.gz: could not be read"],
    "no gzip": ["a.jsonl.gz: could not be read"],
    "a key twice": ["line 1", "two values of 'prompt'"],
    "a key twice in a turn": ["line 1", "two values of 'role'"],
    "a column twice, parquet": ["a.parquet", "'prompt'"],
    "a column twice, csv": ["a.csv", "two columns are named 'prompt'"],
    "csv that never closes": ["a.csv, line", "not CSV"],
    "csv of another width": ["a.csv, line 2", "3 cells, the header has 2"],
    "csv between semicolons": ["a.csv", "prompt;completion", "commas"],
    "csv in Latin-1": ["a.csv: not UTF-8 text (line 2, byte 5)"],
    "empty csv": ["a.csv", "no rows"],
    "save_to_disk without its tables": ["set", "save_to_disk"],
    "save_to_disk, damaged": ["set", "save_to_disk"],
    "save_to_disk, no such split": ["no split 'train'", "found splits: test"],
    "a folder with a script": ["set", "no texts in this folder"],
    "NUL in the name": ["no such file or folder"],
    "NUL in a glob": ["no file of"],
    ".txt": ["a.txt: not a file of texts, nor of pairs of images", "JSON Lines"],
    ".xlsx": ["a.xlsx: not a file of texts, nor of pairs of images", "CSV"],
    ".arrow": ["a.arrow: not a file of texts, nor of pairs of images", "save_to_disk"],
    ".zip": ["a.zip: not a file of texts, nor of pairs of images", "unpack"],
    ".gz": ["a.gz: not a file of texts, nor of pairs of images", ".jsonl.gz"],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_message_of_every_command(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _damaged(tmp_path, kind)
    with pytest.raises(UserError) as caught:
        list(open_texts(path))
    for part in DAMAGE[kind]:
        assert part in str(caught.value)
    assert caught.value.remedy
    for command in (["check", str(path)], ["convert", str(path), str(tmp_path / "out.jsonl")]):
        try:
            code: Any = main(["data", *command])
        except SystemExit as stopped:
            code = stopped.code
        assert code == 2
        said = capsys.readouterr()
        assert "cannot be written" not in said.err
        # A whole file that is none is named as such by both; rows are listed by the check.
        assert any(part in said.out + said.err for part in (DAMAGE[kind][0], "set", "a\\x00"))
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("container", ["csv", "tsv", "csv.gz", "save_to_disk", "save_to_disk, splits", "upper case"])
def test_a_run_takes_what_the_check_takes(
    container: str, make_text_recipe: text_recipes.MakeTextRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"The cat {number}", "chosen": " is red", "rejected": " no"} for number in range(8)]
    path = CONTAINERS[container](tmp_path, rows)
    main(["data", "check", str(path)])
    assert "Ready to train: 8 examples" in capsys.readouterr().out
    recipe = make_text_recipe(data={"train": str(path), "validation": None})
    assert main(["train", "--config", str(recipe), "--dry_run"]) == 0
    assert "note             " + str(path) not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["score", "label"])
def test_completions_are_not_taken_for_images(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = CONTAINERS["jsonl"](tmp_path, [DEMONSTRATION | {"seed": 0}])
    assert main([command, str(path), "--scorer", "shapes", "--output", str(tmp_path / "out.parquet")]) == 2
    said = capsys.readouterr().err
    for part in ("a.jsonl: holds texts", "judge compares texts", "rounds"):
        assert part in said


def test_what_a_folder_holds_besides_is_named(tmp_path: Path) -> None:
    folder = CONTAINERS["folder"](tmp_path, [PAIR])
    _parquet(folder / "more.parquet", [PAIR])
    (folder / "old").mkdir()
    for name in ("._train-0.jsonl", "README.md", "dataset_info.json", "test-0.jsonl"):
        (folder / name).write_text("{oops")
    reader = open_texts(folder)
    assert len(list(reader)) == 1
    (note,) = reader.notes
    assert note == "beside the files that were read: dataset_info.json, more.parquet, old/, test-0.jsonl"


def test_pictures_beside_texts_are_named(tmp_path: Path) -> None:
    row = ASKED | {"image": {"bytes": b"1", "path": None}}
    reader = open_texts(CONTAINERS["parquet"](tmp_path, [row]))
    assert len(list(reader)) == 1
    assert reader.notes == ["columns not read: image (pictures)"]


def test_prompts_say_what_was_left_aside(tmp_path: Path) -> None:
    said: list[str] = []
    path = CONTAINERS["jsonl"](tmp_path, [PAIR | {"id": 1}])
    assert open_prompts(path, say=said.append) == [Q]
    assert said == [f"{path}: columns not read: id (1 row)"]
    with pytest.raises(UserError, match="column 'question'"):
        open_prompts(CONTAINERS["jsonl"](tmp_path, [{"prompt": "a", "question": "b"}]))
    assert open_prompts(CONTAINERS["jsonl"](tmp_path, [{"prompt": "a", "system": "b"}])) == [(system("b"), user("a"))]


def test_a_run_lists_columns_and_warns_as_the_check_does(
    make_text_recipe: text_recipes.MakeTextRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": f"The cat {number}", "chosen": f"The cat {number} is red", "rejected": "no", "id": number}
        for number in range(8)
    ]
    path = text_recipes.write_jsonl(tmp_path / "rows.jsonl", rows)
    recipe = make_text_recipe(data={"train": str(path), "validation": None})
    assert main(["train", "--config", str(recipe), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "rows.jsonl: columns not read: id (8 rows)" in said


def test_why_pairs_vanish_is_in_the_error(
    make_text_recipe: text_recipes.MakeTextRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All pairs but one are alike within the first tokens: the batch is too large for what is left, and this is why."""
    same = "the cat sat on the mat and the dog ran away " * 4
    rows = [{"prompt": f"{n}", "chosen": f"{same}{n}", "rejected": f"{same}{n} no"} for n in range(8)]
    rows[0]["rejected"] = "no"
    path = text_recipes.write_jsonl(tmp_path / "rows.jsonl", rows)
    recipe = make_text_recipe(data={"train": str(path), "validation": None}, text={"max_completion_length": 8})
    assert main(["train", "--config", str(recipe)]) == 2
    said = capsys.readouterr().err
    for part in ("larger than the 1 usable", "7 alike on both sides once cut"):
        assert part in said


KTO_SIZES = {"balanced": (4, 4, None), "few bad": (6, 2, "0.333 to 0.444"), "few good": (2, 6, "3 to 4")}


@pytest.mark.parametrize("name", KTO_SIZES)
def test_kto_says_which_weights_are_advised(
    name: str,
    make_text_recipe: text_recipes.MakeTextRecipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good, bad, advised = KTO_SIZES[name]
    rows = [{"prompt": f"{n}", "completion": "the cat", "label": int(n < good)} for n in range(good + bad)]
    path = text_recipes.write_jsonl(tmp_path / "rows.jsonl", rows)
    recipe = make_text_recipe(data={"train": str(path), "validation": None}, objective={"name": "kto", "beta": 0.1})
    assert main(["train", "--config", str(recipe), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert ("desirable_weight" in said) == (advised is not None)
    if advised is not None:
        assert f"{good} desirable and {bad} undesirable" in said
        assert f"objective.desirable_weight {advised}" in said


def test_kto_of_one_example_a_step_is_refused_before_the_model_is_read(
    make_text_recipe: text_recipes.MakeTextRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_text_recipe(
        objective={"name": "kto", "beta": 0.1}, training={"train_batch_size": 1},
        model={"pretrained_model_name_or_path": str(tmp_path / "nowhere")},
    )  # fmt: skip
    assert main(["train", "--config", str(recipe)]) == 2
    assert "needs two examples per step" in capsys.readouterr().err
