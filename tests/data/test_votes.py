"""Tables of votes as people have them: one reader for all spellings, forms of files, images and texts."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffusion_feedback.cli.main import main
from diffusion_feedback.data.columns import ColumnForm, column_names, missing_columns, spelt_out
from diffusion_feedback.data.index import PairIndex
from diffusion_feedback.data.pair_layouts import FORMS, KNOWN_COLUMNS
from diffusion_feedback.data.readers import open_pairs
from diffusion_feedback.data.text_formats import _PLAINEST as TEXT_FORMS
from diffusion_feedback.data.texts import holds_texts, open_texts
from diffusion_feedback.data.votes import Choice, VoteColumn
from diffusion_feedback.errors import UserError
from diffusion_feedback.workflows.converting import convert

Picture = Callable[..., bytes]
Rows = list[dict[str, Any]]
ENDINGS = ("csv", "tsv", "jsonl", "ndjson", "csv.gz", "jsonl.gz", "parquet")


def write(path: Path, rows: Rows) -> Path:
    """``rows`` as a table of the form that the name's ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as file:
        if "json" in path.name:
            file.write("\n".join(map(json.dumps, rows)))
        else:
            writer = csv.DictWriter(file, names, delimiter="\t" if ".tsv" in path.name else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.fixture
def images(tmp_path: Path, picture: Picture) -> list[tuple[str, str]]:
    """The names of three pairs of images, in subfolders of the folder of a test."""
    names = [(f"images/{n}/left.png", f"images/{n}/right.png") for n in range(3)]
    for number, name in enumerate(name for pair in names for name in pair):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture(number))
    return names


def votes_on(images: Sequence[tuple[str, str]], votes: Sequence[str]) -> Rows:
    return [
        {"user_id": f"user {n}", "prompt": f"prompt {n % 3}", "image_a": first, "image_b": second, "vote": vote}
        for n, vote in enumerate(votes)
        for first, second in [images[n % 3]]
    ]


# --- cells -----------------------------------------------------------------------------------------------------------

FIRST, SECOND, TIE, BAD = Choice(1.0), Choice(0.0), Choice(0.5), Choice(0.5, is_both_bad=True)


@pytest.mark.parametrize(
    ("cells", "choice"),
    [
        (("a", "A", " left ", "Left", "image_a", "model_a", "response A", "left image", "a.png"), FIRST),
        (("b", "right", "IMAGE B", "model_b", "option-b", "b.png"), SECOND),
        (("tie", "Tie", "equal", "both_good", "no preference", "draw"), TIE),
        (("both_bad", "both bad", "tie (bothbad)", "bothbad", "neither", "Both-Bad"), BAD),
        (("skip", "Skipped"), None),
    ],
)
def test_spellings(cells: Sequence[str], choice: Choice | None) -> None:
    column = VoteColumn("vote", ("image_a", "image_b"), "votes.csv")
    assert {cell: column.read(cell, "a.png", "b.png") for cell in cells} == dict.fromkeys(cells, choice)


@pytest.mark.parametrize(
    "cell", ["", None, "None", "none", "c", "maybe", "a or b", 0.5, "-1", float("nan"), "left right"]
)
def test_what_is_no_vote(cell: object) -> None:
    with pytest.raises(ValueError, match="found .*not a vote|may mean"):
        VoteColumn("vote", ("image_a", "image_b"), "votes.csv").read(cell)


@pytest.mark.parametrize(
    ("sides", "cells", "shares"),
    [
        (("image_0", "image_1"), [0, 1, "0", 1.0], [1, 0, 1, 0]),  # as the columns are numbered
        (("image_1", "image_2"), ["1", "2", True], [1, 0, 1]),
        (("image_0_file_name", "image_1_file_name"), ["1"], [0]),
        (("image_a", "image_b"), ["1", "2", "tie", "1"], [1, 0, 0.5, 1]),  # 1 and 2, as both occur
        (("image_a", "image_b"), ["2", 2.0], [0, 0]),
    ],
)
def test_numbers_that_are_unambiguous(sides: tuple[str, str], cells: list[object], shares: list[float]) -> None:
    column = VoteColumn("vote", sides, "votes.csv", lambda: cells)
    assert [choice.share for cell in cells if (choice := column.read(cell))] == shares


@pytest.mark.parametrize("cells", [["0", "1"], ["1"], [0], [0, 1, 2], [True, False], ["1", "2", "3"]])
def test_numbers_that_may_mean_either(cells: list[object]) -> None:
    column = VoteColumn("won", ("image_a", "image_b"), "votes.csv", lambda: cells)
    with pytest.raises(UserError, match="column 'won': found .*may mean 'image_a' or 'image_b'") as raised:
        column.read(cells[0])
    assert ("`columns` label_0=won" in raised.value.remedy) == ({str(int(c)) for c in cells} <= {"0", "1"})  # type: ignore[call-overload]
    with pytest.raises(UserError, match="found 0, which may mean 'image_1' or 'image_2'"):
        VoteColumn("won", ("image_1", "image_2"), "votes.csv").read(0)


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
@pytest.mark.parametrize("codes", [(0, 1), (1, 2)])
@pytest.mark.parametrize("numbers", [(0, 1), (1, 2), None])
@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize("medium", ["image", "response"])
def test_numbers_are_never_read_the_other_way_round(
    medium: str,
    is_named: bool,
    numbers: tuple[int, int] | None,
    codes: tuple[int, int],
    on_bad_row: Literal["error", "skip"],
    images: list[tuple[str, str]],
    tmp_path: Path,
) -> None:
    """Codes of other numbers than the columns have are refused as a whole, where bad rows are left out too."""
    names = [f"{medium}_{end}" for end in numbers or "ab"]
    votes = [codes[0], codes[1], codes[1]]
    sides = images if medium == "image" else [(f"left {n}", f"right {n}") for n in range(3)]
    rows = [
        {"prompt": f"p{n}", names[0]: pair[0], names[1]: pair[1], "vote": vote}
        for n, (pair, vote) in enumerate(zip(sides, votes, strict=True))
    ]
    path, own = write(tmp_path / "own.csv", rows), f"{medium}_a={names[0]},{medium}_b={names[1]},vote=vote"
    read = open_pairs if medium == "image" else open_texts
    is_known = numbers == codes or (numbers is None and codes == (1, 2))
    if not is_known:
        with pytest.raises(UserError, match=f"may mean '{names[0]}' or '{names[1]}'") as raised:
            list(read(path, columns=own if is_named else None, on_bad_row=on_bad_row))  # type: ignore[operator]
        if medium == "image" and codes == (0, 1):
            both = own.removesuffix("vote=vote") if numbers else ""
            assert f"`columns` {both}label_0=vote where 1 is a vote for '{names[0]}', label_1=" in raised.value.remedy
            assert [pair.label_0 for pair in open_pairs(path, columns=f"{both}label_0=vote")] == [0, 1, 1]
            assert [pair.label_0 for pair in open_pairs(path, columns=f"{both}label_1=vote")] == [1, 0, 0]
        return
    chosen = [sides[0][0], sides[1][1], sides[2][1]]
    if medium == "image":
        wanted = [(tmp_path / name).read_bytes() for name in chosen]
        assert [
            pair.chosen for pair in open_pairs(path, columns=own if is_named else None, on_bad_row=on_bad_row)
        ] == wanted
    else:
        assert [
            record.chosen for record in open_texts(path, columns=own if is_named else None, on_bad_row=on_bad_row)
        ] == chosen


@pytest.mark.parametrize(("cell", "is_bad"), [("True", True), ("1", True), ("", False), ("False", False), ("0", False)])
def test_both_bad_is_read_alike_for_images_and_texts(
    cell: str, is_bad: bool, images: list[tuple[str, str]], tmp_path: Path
) -> None:
    (first, second), *_ = images
    row = {"prompt": "p", "image_0": first, "image_1": second, "label_0": 0.5, "both_bad": cell}
    (pair,) = open_pairs(write(tmp_path / "images.csv", [row]), ties="soft")
    text = {"prompt": "p", "response_a": "x", "response_b": "y", "vote": "tie", "both_bad": cell}
    (record,) = open_texts(write(tmp_path / "texts.csv", [text]))
    assert (pair.ballot.is_both_bad, record.ballot.is_both_bad) == (is_bad, is_bad)


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_votes_on_images(ending: str, images: list[tuple[str, str]], tmp_path: Path) -> None:
    rows = votes_on(images, ["a", "b", "both_bad", "a", "a", "tie", "b", "b", "skip"])
    path = write(tmp_path / f"own.{ending}", rows)
    assert not holds_texts(path)
    reader = open_pairs(path, ties="soft")
    pairs = list(reader)
    assert [pair.label_0 for pair in pairs] == [1, 0, 0.5, 1, 1, 0.5, 0, 0]
    assert [pair.ballot.annotator for pair in pairs] == [f"user {n}" for n in range(8)]
    assert [pair.ballot.is_both_bad for pair in pairs] == [n == 2 for n in range(8)]
    assert pairs[1].image_1 == (tmp_path / images[1][1]).read_bytes()
    counts = reader.log.counts
    assert (counts.rows, counts.usable, counts.ties, counts.both_bad, counts.unlabelled) == (9, 8, 2, 1, 1)
    assert "2 ties, 1 of these both bad, 1 unlabelled" in str(counts)
    # Dropped by default; rows of one pair are averaged: a, a, b and b, a, b.
    index = PairIndex.build(open_pairs(path), quiet=True)
    shares = {pair.prompt: round(max(pair.label_0, 1 - pair.label_0), 3) for pair in index.pairs}
    assert shares == {"prompt 0": 0.667, "prompt 1": 0.667}
    assert index.num_duplicates == 4
    folder = tmp_path / "moved"
    write(
        folder / f"votes.{ending}",
        [row | {side: str(tmp_path / row[side]) for side in ("image_a", "image_b")} for row in rows],
    )
    assert len(list(open_pairs(folder, ties="soft"))) == 8  # a folder with votes.csv, and full paths


@pytest.mark.parametrize("ties", ["drop", "soft"])
def test_ties_are_votes_of_a_pair_before_they_are_dropped(
    ties: Literal["drop", "soft"], images: list[tuple[str, str]], tmp_path: Path
) -> None:
    """As for texts: one a and two both_bad are two thirds; only pairs that remain tied are left out."""
    rows = votes_on(images, ["a", "tie", "a", "both_bad", "tie", "b", "both_bad", "both_bad", "tie"])
    reader = open_pairs(write(tmp_path / "votes.csv", rows), ties=ties)
    seen: list[float] = []
    for on_pair in (None, lambda record: seen.append(record.label_0)):
        index = PairIndex.build(reader, on_pair=on_pair, quiet=True)
        shares = {pair.prompt: max(pair.label_0, 1 - pair.label_0) for pair in index.pairs}
        tied = {"prompt 1": 0.5, "prompt 2": 0.5} if ties == "soft" else {}
        assert shares == pytest.approx({"prompt 0": 2 / 3} | tied)
        split = [note for note in index.notes if "contradict each other evenly" in note]
        assert [note.split(": ")[1][:7] for note in split] == (["1 pair "] if ties == "drop" else [])
        assert index.num_duplicates == (4 if ties == "drop" else 6)
    assert len(seen) == (3 if ties == "drop" else 9)
    counts = reader.log.counts
    assert (counts.rows, counts.ties, counts.both_bad) == (9, 6, 3)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("sides", [("chosen", "rejected"), ("image_0", "image_1"), ("left", "right")])
def test_names_of_files_beside_bytes(
    ending: str, sides: tuple[str, str], images: list[tuple[str, str]], tmp_path: Path
) -> None:
    label = {"chosen": {}, "image_0": {"label_0": 1.0}, "left": {"winner": "left"}}[sides[0]]
    rows = [{"caption": "a cat", sides[0]: first, sides[1]: second, **label} for first, second in images]
    path = write(tmp_path / f"own.{ending}", rows)
    assert not holds_texts(path)
    assert [pair.chosen for pair in open_pairs(path)] == [(tmp_path / first).read_bytes() for first, _ in images]


OWN = {"prompt": "text", "image_a": "left_path", "image_b": "right_path", "vote": "better"}


@pytest.mark.parametrize("ending", ENDINGS)
def test_own_names_of_columns(ending: str, images: list[tuple[str, str]], tmp_path: Path) -> None:
    rows = votes_on(images, ["a", "b", "tie"])
    path = write(
        tmp_path / f"own.{ending}", [{OWN.get(name, name): cell for name, cell in row.items()} for row in rows]
    )
    with pytest.raises(UserError, match=r"no columns 'prompt', 'image_a', 'image_b', 'vote', as votes have") as raised:
        list(open_pairs(path))
    suggested = raised.value.remedy.split("`columns` ")[1].split(" ?")[0]
    assert suggested == "prompt=text,image_a=left_path,image_b=right_path,vote=better"
    pairs = list(open_pairs(path, columns=suggested, ties="soft"))
    assert pairs == list(open_pairs(path, columns=OWN, ties="soft"))
    assert [pair.label_0 for pair in pairs] == [1, 0, 0.5]
    (tmp_path / images[0][1]).unlink()
    with pytest.raises(UserError, match=r"own\..*column 'right_path': cannot read"):
        list(open_pairs(path, columns=OWN))


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"promt": "text", "imag_a": "x"}, r"'promt', 'imag_a': no column that any form has[\s\S]*'prompt', 'image_a'"),
        ({"prompt": "txt", "vote": "wins"}, r"prompt=txt,vote=wins: the table has no such column[\s\S]*'text'"),
        ({"prompt": "text", "chosen": "text"}, "'text' stands for two columns"),
        ("image_a", "'image_a': is not OURS=THEIRS"),
        ("vote=a,vote=b", "'vote=b': stands twice"),
        (OWN | {"label_1": "user_id"}, "label_1=user_id: is not read beside"),
    ],
)
def test_names_that_fit_nothing(
    columns: Mapping[str, str] | str, says: str, images: list[tuple[str, str]], tmp_path: Path
) -> None:
    rows = [{OWN.get(name, name): cell for name, cell in row.items()} for row in votes_on(images, ["a"])]
    with pytest.raises(UserError, match=says):
        list(open_pairs(write(tmp_path / "own.csv", rows), columns=columns))


def test_a_users_names_come_before_the_tables(images: list[tuple[str, str]], tmp_path: Path) -> None:
    (first, second), *_ = images
    row = {"prompt": "old", "caption": "older", "text": "new", "image_0": second, "image_1": first, "label_0": 0.0}
    path = write(tmp_path / "own.csv", [row | {"left": first, "right": second, "winner": "right"}])
    assert next(iter(open_pairs(path))).prompt == "old"
    columns = {"prompt": "text", "image_a": "left", "image_b": "right", "vote": "winner"}
    pair = next(iter(open_pairs(path, columns=columns)))
    assert (pair.prompt, pair.image_0, pair.label_0) == ("new", (tmp_path / first).read_bytes(), 0.0)
    assert spelt_out(" a=b , c = d ") == {"a": "b", "c": "d"}
    assert column_names(None, KNOWN_COLUMNS).theirs == {}


def test_shares_for_either_side(images: list[tuple[str, str]], tmp_path: Path) -> None:
    rows = [{"prompt": "p", "image_a": a, "image_b": b, "won": n % 2} for n, (a, b) in enumerate(images)]
    path = write(tmp_path / "own.csv", rows)
    with pytest.raises(UserError, match="column 'won': found 0, which may mean 'image_a' or 'image_b'"):
        list(open_pairs(path, columns="vote=won"))
    assert [pair.label_0 for pair in open_pairs(path, columns="label_0=won")] == [0, 1, 0]
    assert [pair.label_0 for pair in open_pairs(path, columns="label_1=won")] == [1, 0, 1]


def test_a_bad_vote_is_a_bad_row(images: list[tuple[str, str]], tmp_path: Path) -> None:
    path = write(tmp_path / "votes.csv", votes_on(images, ["a", "maybe", ""]))
    with pytest.raises(UserError, match=r"votes.csv, line 3, column 'vote': found 'maybe', not a vote: a, b, tie or"):
        list(open_pairs(path))
    reader = open_pairs(path, on_bad_row="skip")
    assert (len(list(reader)), reader.log.counts.bad) == (1, {"label": 2})


def test_conversion_keeps_who_voted(images: list[tuple[str, str]], tmp_path: Path) -> None:
    rows = votes_on(images, ["a", "both_bad", "tie"])
    converted = convert(write(tmp_path / "votes.csv", rows), tmp_path / "out" / "pairs.parquet")
    pairs, again = list(open_pairs(tmp_path / "votes.csv", ties="soft")), open_pairs(converted.output, ties="soft")
    assert [pair.ballot for pair in again] == [pair.ballot for pair in pairs]
    assert (again.log.counts.ties, again.log.counts.both_bad) == (2, 1)
    plain = [{name: cell for name, cell in row.items() if name != "user_id"} | {"label_0": 1} for row in rows]
    labels = convert(write(tmp_path / "labels.csv", plain), tmp_path / "out" / "labels.parquet")
    assert "user_id" not in pq.read_schema(labels.output).names


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_votes_on_texts(ending: str, tmp_path: Path) -> None:
    rows = [
        {"user_id": f"u{n}", "prompt": "hi", "response_a": "good", "response_b": "bad", "vote": vote}
        for n, vote in enumerate(["a", "b", "tie", "both_bad", "skip"])
    ]
    path = write(tmp_path / f"own.{ending}", rows)
    assert holds_texts(path)
    reader = open_texts(path)
    records = list(reader)
    assert [(r.chosen, r.chosen_probability) for r in records] == [
        ("good", 1),
        ("bad", 1),
        ("good", 0.5),
        ("good", 0.5),
    ]
    assert [r.ballot.annotator for r in records] == ["u0", "u1", "u2", "u3"]
    assert (reader.log.counts.both_bad, reader.log.counts.silent) == (1, 1)
    own = [{("q" if name == "prompt" else name): cell for name, cell in row.items()} for row in rows]
    path = write(tmp_path / f"other.{ending}", own)
    with pytest.raises(UserError, match=r"no column 'prompt', as votes have"):
        list(open_texts(path))
    assert [r.chosen for r in open_texts(path, columns={"prompt": "q"})] == [r.chosen for r in records]
    out = convert(path, tmp_path / "out.jsonl", columns="prompt=q")
    assert [r.ballot for r in open_texts(out.output)] == [r.ballot for r in records]


def test_numbered_votes_on_texts(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "response_a": "x", "response_b": "y", "vote": vote} for vote in ("1", "2")]
    assert [record.chosen for record in open_texts(write(tmp_path / "own.csv", rows))] == ["x", "y"]
    with pytest.raises(UserError, match=r"may mean 'response_a' or 'response_b'\n  -> write a, b, tie or both_bad"):
        list(open_texts(write(tmp_path / "own.csv", [row | {"vote": "0"} for row in rows])))


# --- what is missing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("form", [*(form.columns for form in FORMS), *TEXT_FORMS], ids=lambda form: form.name)
def test_the_example_of_a_message_would_pass(form: ColumnForm, ending: str, tmp_path: Path, picture: Picture) -> None:
    """All missing columns are named, and the two lines that would pass do so, for every form that is suggested."""
    is_text = form in TEXT_FORMS
    if form.example == (form.example[0],) and ending != "jsonl":
        return
    columns = [known[0] for known in form.needs]
    message = missing_columns("own", columns[:1] if len(columns) > 1 else ["x"], [form], f"own.{ending}")
    for name in columns[1:]:
        assert repr(name) in message.problem
    lines = message.remedy.split("Two lines that would pass:\n")[1].splitlines()
    path = tmp_path / f"own.{ending}"
    path.write_text("\n".join(line.removeprefix(" " * 7) for line in lines) + "\n")
    for number, name in enumerate(("images/1-a.png", "images/1-b.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture(number))
    assert holds_texts(path) == is_text
    assert list(open_texts(path) if is_text else open_pairs(path))


def test_a_csv_of_votes_from_first_try_to_pairs(
    images: list[tuple[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the first message suggests is a flag that the next call takes."""
    rows = [{OWN.get(name, name): cell for name, cell in row.items()} for row in votes_on(images, ["a", "b", "a"])]
    path = str(write(tmp_path / "own.csv", rows))
    assert main(["data", "check", path]) == 2
    flag = capsys.readouterr().err.split("did you mean ")[1].split(" ?")[0].split()
    assert flag[0] == "--columns"
    assert main(["data", "check", path, *flag]) == 0
    assert main(["data", "convert", path, str(tmp_path / "pairs.parquet"), *flag]) == 0
    assert "Ready to train: 3 pairs" in capsys.readouterr().out


def test_several_data_sets_are_checked_each_and_together(
    images: list[tuple[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = str(write(tmp_path / "one.csv", votes_on(images, ["a", "a"])))
    two = str(write(tmp_path / "two.jsonl", votes_on(images, ["b", "a", "b"])))
    assert main(["data", "check", one, two]) == 0
    said = capsys.readouterr().out
    assert "Ready to train: 2 pairs." in said
    assert "Ready to train: 3 pairs." in said
    joint = f"2 stand in {one} and in {two}; 1 have rows that contradict each other; their labels are joined"
    assert f"Together: 2 pairs ({joint})." in said
    texts = str(write(tmp_path / "texts.jsonl", [{"prompt": "p", "chosen": "x", "rejected": "y"}]))
    with pytest.raises(SystemExit) as stopped:
        main(["data", "check", one, texts])
    assert stopped.value.code == 2
    assert "Not ready together: some are of images, others of texts." in capsys.readouterr().out
