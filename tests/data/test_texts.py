"""Texts of every form the field uses: what is read of a row, which rows are refused, and where files are found."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffusion_feedback.data.places import HubData
from diffusion_feedback.data.text_output import write_texts
from diffusion_feedback.data.text_sources import HubTexts
from diffusion_feedback.data.texts import find_texts, holds_texts, open_prompts, open_texts
from diffusion_feedback.errors import UserError
from diffusion_feedback.records import Text, TextRecord

ASK = {"role": "user", "content": "What is red?"}
YES = {"role": "assistant", "content": "A rose."}
NO = {"role": "assistant", "content": "The sky."}
RULE = {"role": "system", "content": "Be short."}


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def only(path: Path, **options: Any) -> TextRecord:
    (record,) = open_texts(path, **options)
    return record


def turns(*found: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    return found


PAIR = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
READ: dict[str, tuple[dict[str, Any], tuple[Text, Text, Text | None]]] = {
    "explicit": (PAIR, ("The sky is", " blue.", " green.")),
    "empty prompt": (PAIR | {"prompt": ""}, ("", " blue.", " green.")),
    "explicit turns": (
        {"prompt": [ASK], "chosen": [YES], "rejected": [NO]},
        (turns(ASK), turns(YES), turns(NO)),
    ),
    "no prompt turns": ({"prompt": [], "chosen": [YES], "rejected": [NO]}, ((), turns(YES), turns(NO))),
    "turns after a text": (
        {"prompt": "What is red?", "chosen": [YES], "rejected": [NO]},
        (turns(ASK), turns(YES), turns(NO)),
    ),
    "UltraFeedback binarized": (
        {
            "prompt": "What is red?", "prompt_id": "7", "messages": [ASK, YES],
            "chosen": [ASK, YES], "rejected": [ASK, NO], "score_chosen": 8.5, "score_rejected": 6.0,
        },
        (turns(ASK), turns(YES), turns(NO)),
    ),
    "turns that repeat a part of the prompt": (
        {"prompt": [RULE, ASK], "chosen": [ASK, YES], "rejected": [ASK, NO]},
        (turns(RULE, ASK), turns(YES), turns(NO)),
    ),
    "system turn beside whole conversations": (
        {"prompt": [RULE], "chosen": [ASK, YES], "rejected": [ASK, NO]},
        (turns(RULE, ASK), turns(YES), turns(NO)),
    ),
    "implicit turns": ({"chosen": [RULE, ASK, YES], "rejected": [RULE, ASK, NO]}, (turns(RULE, ASK), turns(YES), turns(NO))),
    "implicit turns, one goes on": (
        {"chosen": [ASK, YES], "rejected": [ASK, YES, ASK, NO]},
        (turns(ASK), turns(YES), turns(YES, ASK, NO)),
    ),
    "implicit texts": (
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        ("The sky is", " blue.", " black."),
    ),
    "Anthropic HH": (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello, you.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello there.",
        },
        ("\n\nHuman: Hi\n\nAssistant:", " Hello, you.", " Hello there."),
    ),
    "Anthropic HH in Japanese, breaks written out": (
        {"chosen": r"\n\n人間: やあ\n\nAssistant: はい。\nどうぞ。", "rejected": r"\n\n人間: やあ\n\nAssistant: はい、いいえ。"},
        ("\n\n人間: やあ\n\nAssistant:", " はい。\nどうぞ。", " はい、いいえ。"),
    ),
    "llm-jp's conversations": (
        {
            "ID": "1", "chosen": "A rose.", "rejected": "The sky.",
            "conversations": [{"from": "human", "value": "What is red?"}],
        },
        (turns(ASK), turns(YES), turns(NO)),
    ),
    "UltraFeedback": (
        {
            "instruction": "What is red?",
            "completions": [
                {"response": "A cup.", "overall_score": 5.0},
                {"response": "The sky.", "overall_score": 2.0},
                {"response": "A rose.", "overall_score": 9.0},
                {"response": "never scored", "overall_score": None},
            ],
        },
        (turns(ASK), turns(YES), turns(NO)),
    ),
    "SHP, first": (
        {"history": "What is red?", "human_ref_A": "A rose.", "human_ref_B": "The sky.", "labels": 1},
        (turns(ASK), turns(YES), turns(NO)),
    ),
    "SHP, second": (
        {"history": "What is red?", "human_ref_A": "The sky.", "human_ref_B": "A rose.", "labels": 0},
        (turns(ASK), turns(YES), turns(NO)),
    ),
    "demonstration": ({"prompt": "2 + 2 =", "completion": " 4"}, ("2 + 2 =", " 4", None)),
    "demonstration of turns": ({"prompt": [ASK], "completion": [YES]}, (turns(ASK), turns(YES), None)),
    "demonstration, turns and text": ({"prompt": [ASK], "completion": "A rose."}, (turns(ASK), turns(YES), None)),
    "messages": ({"messages": [RULE, ASK, YES]}, ("", turns(RULE, ASK, YES), None)),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "What is red?"}, {"from": "gpt", "value": "A rose."}]},
        ("", turns(ASK, YES), None),
    ),
    "text": ({"text": "Once upon a time"}, ("", "Once upon a time", None)),
    "instruction": (
        {"instruction": "Name the red one.", "input": " rose, sky ", "output": "A rose.", "ng_translation": "0"},
        (turns({"role": "user", "content": "Name the red one.\n\nrose, sky"}), turns(YES), None),
    ),
    "instruction without input": ({"instruction": "What is red?", "input": "", "output": "A rose."}, (turns(ASK), turns(YES), None)),
}  # fmt: skip


@pytest.mark.parametrize("storage", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", READ)
def test_every_format(name: str, storage: str, tmp_path: Path) -> None:
    row, expected = READ[name]
    path = tmp_path / f"texts.{storage}"
    if storage == "jsonl":
        jsonl(path, row)
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    record = only(path)
    assert (record.prompt, record.chosen, record.rejected) == expected
    assert record.label is None
    assert record.margin == {"UltraFeedback": 7.0, "UltraFeedback binarized": 2.5}.get(name, 0.0)
    assert record.source == f"{path}, {'line 1' if storage == 'jsonl' else 'row 0'}"


@pytest.mark.parametrize("label", [True, False])
def test_unpaired_and_columns_of_strength(label: bool, tmp_path: Path) -> None:
    row = {"prompt": "p", "completion": "c", "label": label, "weight": 0.5}
    record = only(jsonl(tmp_path / "a.jsonl", row))
    assert (record.prompt, record.chosen, record.rejected, record.label, record.weight) == ("p", "c", None, label, 0.5)
    strength = {"margin": 1.5, "chosen_probability": 0.75, "weight": 2}
    record = only(jsonl(tmp_path / "b.jsonl", PAIR | strength))
    assert (record.margin, record.chosen_probability, record.weight) == (1.5, 0.75, 2.0)
    # A margin that is given counts, not the scores; where a value is empty, the usual one holds.
    record = only(jsonl(tmp_path / "c.jsonl", PAIR | {"margin": 1.5, "score_chosen": 9, "score_rejected": 1}))
    assert record.margin == 1.5
    record = only(jsonl(tmp_path / "d.jsonl", PAIR | {"margin": None, "weight": None}))
    assert (record.margin, record.chosen_probability, record.weight) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_tokens_that_were_drawn_come_along(ending: str, tmp_path: Path) -> None:
    row = PAIR | {"chosen_token_ids": [1, 2], "rejected_token_ids": [3]}
    record = only(jsonl(tmp_path / "a.jsonl", row))
    assert record.token_ids == ((1, 2), (3,))
    write_texts([record], tmp_path / f"b{ending}")
    assert only(tmp_path / f"b{ending}").token_ids == record.token_ids
    assert only(jsonl(tmp_path / "c.jsonl", row | {"rejected_token_ids": None})).token_ids is None


def test_what_goes_to_the_chat_template(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": {"at": "sky"}}}]}
    row = {"prompt": [ASK], "chosen": [call], "rejected": [NO], "tools": tools}
    record = only(jsonl(tmp_path / "a.jsonl", row | {"chat_template_kwargs": {"enable_thinking": False}}))
    assert record.template == {"enable_thinking": False, "tools": tools}
    assert record.chosen == (call,)
    assert only(jsonl(tmp_path / "b.jsonl", row | {"tools": json.dumps(tools)})).template == {"tools": tools}
    # A parquet column gives every turn the fields of all turns; those that a turn does not have are left out again.
    seen = {"role": "tool", "content": "blue", "name": "look"}
    pq.write_table(pa.Table.from_pylist([row | {"chosen": [call, seen, YES]}]), tmp_path / "c.parquet")
    assert only(tmp_path / "c.parquet").chosen == (call, seen, YES)


SURROGATE = '{"prompt": "a", "chosen": "\\ud800", "rejected": "b"}'
REFUSED: dict[str, tuple[Any, str, list[str]]] = {
    "not JSON": ("{oops", "json", ["line 2", "not JSON"]),
    "not an object": ("[1, 2]", "json", ["line 2", "[1, 2]", "not an object"]),
    "half a character": (SURROGATE, "json", ["line 2"]),
    "number": (PAIR | {"chosen": 7}, "text", ["line 2, column 'chosen'", "found 7"]),
    "null": (PAIR | {"rejected": None}, "missing", ["line 2, column 'rejected'", "empty (null)"]),
    "missing": ({"prompt": "a", "chosen": "b"}, "missing", ["line 2, column 'rejected'", "prompt, chosen"]),
    "blank": (PAIR | {"chosen": " \n"}, "empty", ["line 2, column 'chosen'", r"' \n'"]),
    "identical": (PAIR | {"chosen": " green."}, "identical", ["line 2", "the same text"]),
    "role": (
        PAIR | {"prompt": [{"role": "wizard", "content": "x"}]},
        "turns",
        ["line 2, column 'prompt'", "turn 0", "'wizard'", "system, developer, user, assistant"],
    ),
    "no content": (
        {"prompt": [ASK], "chosen": [{"role": "assistant"}], "rejected": [NO]},
        "turns",
        ["column 'chosen'", "turn 0", "content None"],
    ),
    "turn that is a text": (PAIR | {"chosen": ["x"]}, "turns", ["column 'chosen'", "turn 0", "'x'"]),
    "no turns": ({"prompt": [ASK], "chosen": [], "rejected": [NO]}, "empty", ["column 'chosen'", "no turns"]),
    "empty turns": (
        {"prompt": [ASK], "chosen": [{"role": "assistant", "content": " "}], "rejected": [NO]},
        "empty",
        ["column 'chosen'"],
    ),
    "user turn as completion": (
        {"prompt": [RULE], "chosen": [ASK, YES], "rejected": [NO]},
        "turns",
        ["column 'chosen'", "'user'", "'assistant'"],
    ),
    "NaN margin": (PAIR | {"margin": float("nan")}, "score", ["column 'margin'", "nan"]),
    "infinite margin": (PAIR | {"margin": float("inf")}, "score", ["column 'margin'", "inf"]),
    "negative margin": (PAIR | {"margin": -1}, "score", ["column 'margin'", "-1.0", "0 or more"]),
    "margin in words": (PAIR | {"margin": "big"}, "score", ["column 'margin'", "'big'"]),
    "true as weight": (PAIR | {"weight": True}, "score", ["column 'weight'", "True"]),
    "no weight": (PAIR | {"weight": 0}, "score", ["column 'weight'", "above 0"]),
    "minority": (PAIR | {"chosen_probability": 0.4}, "score", ["column 'chosen_probability'", "0.4", "0.5 to 1"]),
    "scores the wrong way": (
        PAIR | {"score_chosen": 1.0, "score_rejected": 2.0},
        "score",
        ["column 'score_chosen'", "1.0", "2.0"],
    ),
    "tools": (PAIR | {"tools": "{oops"}, "json", ["column 'tools'", "not JSON"]),
    "words for tokens": (PAIR | {"chosen_token_ids": ["a"], "rejected_token_ids": [1]}, "text", ["'chosen_token_ids'"]),
    "tokens below 0": (PAIR | {"chosen_token_ids": [1], "rejected_token_ids": [-1]}, "text", ["'rejected_token_ids'"]),
    "tools of another kind": (PAIR | {"tools": {"a": 1}}, "turns", ["column 'tools'", "not a list"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_rows(name: str, tmp_path: Path) -> None:
    row, kind, parts = REFUSED[name]
    path = jsonl(tmp_path / "texts.jsonl", PAIR, row, PAIR | {"prompt": "Grass is"})
    with pytest.raises(UserError) as caught:
        list(open_texts(path))
    for part in (str(path), *parts):
        assert part in caught.value.problem
    assert "on_bad_row: skip" in caught.value.remedy
    reader = open_texts(path, on_bad_row="skip")
    assert [record.prompt for record in reader] == ["The sky is", "Grass is"]
    assert (dict(reader.log.counts.bad), reader.log.counts.rows, reader.log.counts.usable) == ({kind: 1}, 3, 2)
    assert reader.log.skipped == [(f"{path}, line 2", caught.value.problem)]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"prompt": "p", "completion": "c", "label": 2}, ["column 'label'", "found 2", "true, false, 1, 0"]),
        ({"prompt": "p", "completion": "c", "label": "yes"}, ["column 'label'", "'yes'"]),
        ({"prompt": "p", "completion": "", "label": True}, ["column 'completion'", "empty"]),
        ({"chosen": "same", "rejected": "same"}, ["the same text"]),
        ({"chosen": [ASK, YES], "rejected": [ASK, YES]}, ["the same text"]),
        ({"chosen": "text", "rejected": [ASK, YES]}, ["one of chosen and rejected"]),
        ({"chosen": [ASK, YES], "rejected": [ASK]}, ["column 'chosen'", "'user'"]),
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant:", "rejected": "\n\nHuman: Hi\n\nAssistant: Ho"},
            ["column 'chosen'", "nothing is left"],
        ),
        ({"messages": [ASK]}, ["column 'messages'", "no turn of the assistant"]),
        ({"history": "a", "human_ref_A": "b", "human_ref_B": "c", "labels": 2}, ["column 'labels'", "2", "0, 1"]),
        ({"instruction": "a", "completions": [{"response": "b", "overall_score": 1}]}, ["fewer than two"]),
        ({"instruction": "a", "completions": "b"}, ["column 'completions'"]),
    ],
)
def test_bad_rows_of_other_formats(row: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        list(open_texts(jsonl(tmp_path / "texts.jsonl", row)))
    for part in ("texts.jsonl, line 1", *parts):
        assert part in str(caught.value)


def test_rows_that_say_nothing_are_counted(tmp_path: Path) -> None:
    alike = [{"response": "b", "overall_score": 1.0}, {"response": "c", "overall_score": 1.0}]
    better = [*alike, {"response": "d", "overall_score": 2.0}]
    rows = [{"instruction": "a", "completions": found} for found in (alike, better)]
    reader = open_texts(jsonl(tmp_path / "a.jsonl", *rows))
    assert [record.margin for record in reader] == [1.0]
    assert (reader.log.counts.rows, reader.log.counts.silent) == (2, 1)
    rows = [{"instruction": "a", "output": "b", "ng_translation": value} for value in ("1", "0", "1.0", "", None)]
    reader = open_texts(jsonl(tmp_path / "b.jsonl", *rows))
    assert (len(list(reader)), reader.log.counts.silent) == (3, 2)
    with pytest.raises(UserError, match=r"0 usable examples \(1 row, of which 1 without a preference"):
        list(open_texts(jsonl(tmp_path / "c.jsonl", {"instruction": "a", "completions": alike})))


def test_unknown_columns_name_those_found_and_two_lines_that_would_pass(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        list(open_texts(jsonl(tmp_path / "texts.jsonl", {"title": "a", "body": "b"})))
    for part in ("texts.jsonl: no column", "(columns: body, title)", "Two lines that would pass"):
        assert part in str(caught.value)
    with pytest.raises(UserError, match=r"holds prompts alone \(columns prompt\)"):
        list(open_texts(jsonl(tmp_path / "texts.jsonl", {"prompt": "a"})))


def test_a_parquet_file_with_text_that_is_not_utf8(tmp_path: Path) -> None:
    chosen = pa.Array.from_buffers(pa.string(), 2, pa.array([b"good", b"b\xffd"]).buffers())
    path = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"prompt": ["p", "q"], "chosen": chosen, "rejected": ["x", "y"]}), path)
    with pytest.raises(UserError, match=r"texts.parquet, row 1: holds text that is not UTF-8"):
        list(open_texts(path))
    reader = open_texts(path, on_bad_row="skip")
    assert [record.prompt for record in reader] == ["p"]
    path.write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="not a parquet file"):
        list(open_texts(path))


def test_bytes_that_are_not_utf8_are_one_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    good = json.dumps(PAIR).encode()
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\n\n" + good.replace(b"blue", b"bl\xff") + b"\r\n" + good + b"\n")
    reader = open_texts(path, on_bad_row="skip")
    assert [record.source for record in reader] == [f"{path}, line 1", f"{path}, line 4"]
    assert "line 3: not UTF-8 text" in reader.log.skipped[0][1]


def test_json_lists_lines_and_gzip_hold_the_same(tmp_path: Path) -> None:
    rows = [PAIR | {"prompt": f"{number}"} for number in range(3)]
    jsonl(tmp_path / "lines.jsonl", *rows)
    jsonl(tmp_path / "lines.json", *rows)
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=1))
    with gzip.open(tmp_path / "packed.jsonl.gz", "wt") as file:
        file.write((tmp_path / "lines.jsonl").read_text())
    for name, number in (("lines.jsonl", None), ("lines.json", None), ("list.json", 3), ("packed.jsonl.gz", None)):
        reader = open_texts(tmp_path / name)
        assert [record.prompt for record in reader] == ["0", "1", "2"]
        assert [record.prompt for record in reader] == ["0", "1", "2"]
        assert reader.num_rows == number
    assert open_texts(tmp_path / "list.json").format == "JSON list with columns prompt, chosen, rejected"
    (tmp_path / "broken.jsonl.gz").write_bytes((tmp_path / "packed.jsonl.gz").read_bytes()[:40])
    with pytest.raises(UserError, match="broken.jsonl.gz: could not be read"):
        list(open_texts(tmp_path / "broken.jsonl.gz"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="the data holds no rows"):
        list(open_texts(tmp_path / "empty.jsonl"))


def test_where_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    for name in ("train-0", "train-1", "test-0"):
        pq.write_table(pa.Table.from_pylist([PAIR | {"prompt": name}]), folder / "data" / f"{name}.parquet")
    assert [record.prompt for record in open_texts(folder)] == ["train-0", "train-1"]
    assert only(folder, split="test").prompt == "test-0"
    assert [record.prompt for record in open_texts(f"{folder}/data/*-0.parquet")] == ["test-0", "train-0"]
    assert open_texts(folder).format == "parquet with columns prompt, chosen, rejected, 2 files"
    with pytest.raises(UserError, match=r"no parquet files of split 'dev'[\s\S]*found splits: test, train"):
        open_texts(folder, split="dev")
    # UltraFeedback binarized: a split of several parts is not guessed at, nor mixed with the test data.
    parts = tmp_path / "parts"
    parts.mkdir()
    for name in ("train_prefs", "test_prefs"):
        jsonl(parts / f"{name}.jsonl", PAIR | {"prompt": name})
    assert only(parts).prompt == "train_prefs"
    assert only(parts, split="test_prefs").prompt == "test_prefs"
    jsonl(parts / "train_sft.jsonl", PAIR)
    with pytest.raises(UserError, match=r"of split 'train'[\s\S]*found splits: test_prefs, train_prefs, train_sft"):
        open_texts(parts)
    jsonl(folder / "validation.jsonl", PAIR | {"prompt": "of JSON"})
    assert only(folder, split="validation").prompt == "of JSON"
    for wrong, says in (
        ("nowhere.jsonl", "no such file or folder"),
        ("set/nothing*.jsonl", "no file of"),
        ("set/pears", "no such file or folder"),
    ):
        with pytest.raises(UserError, match=says):
            open_texts(wrong)
    (tmp_path / "a.xlsx").write_text("prompt\n")
    with pytest.raises(UserError, match="not a file of texts(.|\n)*save the table as CSV"):
        open_texts("a.xlsx")
    assert find_texts("owner/name", split="test", revision="v1") == [HubTexts(HubData("owner/name", "test", "v1"))]
    with pytest.raises(UserError, match="owner/name: no such file or folder, and not to be had from the hub"):
        list(open_texts("owner/name"))


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_data_through_datasets(streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()
    rows = [{"chosen": [ASK, YES], "rejected": [ASK, NO]}, {"chosen": [ASK, NO], "rejected": [ASK, YES]}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "hub" / "train-0.parquet")
    source = HubTexts(HubData(str(tmp_path / "hub"), "train", streaming=streaming))
    found = list(source.rows())
    assert [row.cells for row in found] == rows
    assert found[1].source.endswith("split 'train', row 1")
    assert source.num_rows == (None if streaming else 2)
    assert source.columns == {"chosen", "rejected"}


def test_a_hub_data_set_that_fails_while_it_is_read_is_one_message() -> None:
    class Failing:
        features = datasets.Features({"text": datasets.Value("string")})

        def select_columns(self, names: list[str]) -> Iterator[Any]:
            yield {"text": "Once upon a time"}
            raise RuntimeError("connection lost")

    hub = HubData("owner/name", "train")
    hub.__dict__["data"] = Failing()
    with pytest.raises(UserError, match="split 'train': could not be read as rows of a data set: connection lost"):
        list(HubTexts(hub).rows())


def test_prompts_of_any_format(tmp_path: Path) -> None:
    pairs = jsonl(tmp_path / "pairs.jsonl", PAIR, PAIR | {"prompt": "Grass is"}, PAIR | {"chosen": " grey."})
    assert open_prompts(pairs) == ["The sky is", "Grass is"]
    assert open_prompts(pairs, unique=False) == ["The sky is", "Grass is", "The sky is"]
    rows = [{"prompt": [ASK]}, {"prompt": [RULE, ASK]}, {"prompt": [ASK]}]
    assert open_prompts(jsonl(tmp_path / "prompts.jsonl", *rows)) == [(ASK,), (RULE, ASK)]
    (tmp_path / "prompts.txt").write_text("one\r\n\n two\n")
    assert open_prompts(tmp_path / "prompts.txt") == ["one", " two"]
    with pytest.raises(UserError, match=r"line 1: the prompt comes with tools(.|\n)*leave these columns out"):
        open_prompts(jsonl(tmp_path / "tools.jsonl", {"prompt": [ASK], "tools": [{"name": "search"}]}))
    with pytest.raises(UserError, match="line 1: no prompt to generate from"):
        open_prompts(jsonl(tmp_path / "texts.jsonl", {"text": "Once"}))
    with pytest.raises(UserError, match=r"line 2, column 'prompt': found '', an empty text"):
        open_prompts(jsonl(tmp_path / "blank.jsonl", {"prompt": "a"}, {"prompt": ""}))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"latin.txt: not UTF-8 text \(line 1, byte 3\)"):
        open_prompts(tmp_path / "latin.txt")


def test_texts_are_told_from_images(tmp_path: Path) -> None:
    assert holds_texts(jsonl(tmp_path / "pairs.jsonl", PAIR))
    assert holds_texts(jsonl(tmp_path / "other.jsonl", {"question": "a"}))
    assert not holds_texts(jsonl(tmp_path / "metadata.jsonl", {"image_0_file_name": "a", "prompt": "b"}))
    assert not holds_texts(tmp_path)
    assert not holds_texts(tmp_path / "nowhere.jsonl")
    image = {"bytes": b"1", "path": None}
    tables = {
        "texts": ([PAIR], True),
        "turns": ([{"chosen": [ASK, YES], "rejected": [ASK, NO]}], True),
        "images": ([{"prompt": "a", "chosen": image, "rejected": image}], False),
        "bytes": ([{"prompt": "a", "chosen": b"1", "rejected": b"2"}], False),
        "Pick-a-Pic": ([{"prompt": "a", "jpg_0": b"1", "jpg_1": b"2", "label_0": 1.0}], False),
        "neither": ([{"a": 1}], False),
    }
    for name, (rows, expected) in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        assert holds_texts(tmp_path / f"{name}.parquet") is expected, name
