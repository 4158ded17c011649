"""The check of texts, in characters and in tokens, their conversion, and the two commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_text

from diffusion_feedback.cli.data import run
from diffusion_feedback.data.text_check import check_texts
from diffusion_feedback.data.text_output import write_texts
from diffusion_feedback.data.texts import open_texts
from diffusion_feedback.errors import UserError
from diffusion_feedback.records import TextRecord
from diffusion_feedback.reports.checks import check_summary
from diffusion_feedback.workflows.token_check import TokenCheck

ASK = {"role": "user", "content": "what is the colour?"}
YES = {"role": "assistant", "content": "the colour is yellow."}
NO = {"role": "assistant", "content": "hello there."}
TURNS = {"prompt": [ASK], "chosen": [YES], "rejected": [NO]}
PAIR = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_report(tmp_path: Path) -> None:
    turned = PAIR | {"chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}
    path = jsonl(
        tmp_path / "pairs.jsonl",
        PAIR,
        PAIR,
        turned,
        PAIR | {"prompt": "Grass is", "margin": 2.5},
        PAIR | {"prompt": "Snow is", "chosen_probability": 0.5},
        PAIR | {"chosen": "The sky is blue", "rejected": "The sky is green", "margin": 1},
        PAIR | {"chosen": ""},
        PAIR | {"margin": -1},
        "{oops",
    )
    report = check_texts(path)
    assert (report.reader.log.counts.rows, report.reader.log.counts.usable) == (9, 6)
    assert dict(report.reader.log.counts.bad) == {"empty": 1, "score": 1, "json": 1}
    # Four distinct pairs, one of them tied by its own account; two votes against one leave a majority.
    assert (report.votes.num_usable, report.votes.ties, report.votes.duplicates) == (3, 1, 2)
    assert report.votes.contradicting == [f"{path}, line 1"]
    assert report.repeated_prompts == [f"{path}, line 6"]
    assert report.kinds == {"pairs": 6}
    assert (len(report.prompts), report.num_conversational, report.longer_chosen) == (3, 0, 1)
    assert list(report.margins) == [2.5, 1.0]
    assert {side: sorted(found) for side, found in report.lengths.items()} == {
        "prompt": [7, 8, 10, 10, 10, 10],
        "chosen": [6, 6, 6, 6, 7, 15],
        "rejected": [6, 7, 7, 7, 7, 16],
    }
    assert not report.is_ready
    text = check_summary(report)
    for part in (
        f"{path}: JSON Lines with columns prompt, chosen, rejected",
        "9 rows, of which 3 bad",
        "6 pairs, plain texts over 3 prompts",
        "chosen: 6 to 15, median 6 characters",
        "the chosen side is the longer one in 17% of the pairs",
        "margins: 2 pairs have one, 1 to 2.5",
        "! 1 row with an empty text -> remove them",
        f"{path}, line 7, column 'chosen': found '', an empty text",
        f"1 example has rows that contradict each other (the first: {path}, line 1)",
        "2 rows repeat an example -> training uses each example once",
        f"1 example has texts that begin with their prompt once more (the first: {path}, line 6)",
        "Not ready: 3 unusable rows stop a run. Correct them, or train on the other 3 examples",
    ):
        assert part in text


def test_verdicts(tmp_path: Path) -> None:
    def text(*rows: Any) -> str:
        return check_summary(check_texts(jsonl(tmp_path / "texts.jsonl", *rows)))

    assert text(PAIR, PAIR | {"prompt": "Snow is"}).endswith("Ready to train: 2 examples.")
    tied = PAIR | {"prompt": "Snow is", "chosen_probability": 0.5}
    assert text(PAIR, tied).endswith("Ready to train: 1 example (1 tie is left out; data.ties: soft keeps tied pairs).")
    assert text(tied).endswith("Not ready: all usable examples are ties.")
    assert text("{oops").endswith("Not ready: no usable example.")
    assert "conversations over 1 prompt" in text(TURNS)
    assert "1 of them conversations" in text(TURNS, PAIR)


def test_labels_and_mixed_kinds(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": f"c{number}", "label": number < 2} for number in range(5)]
    against = rows[0] | {"label": False}
    report = check_texts(jsonl(tmp_path / "a.jsonl", *rows, against))
    assert report.labels == {"desirable": 2, "undesirable": 4}
    assert (report.votes.num_usable, report.votes.ties, len(report.votes.contradicting)) == (4, 1, 1)
    assert "labels: 4 undesirable, 2 desirable" in check_summary(report)
    text = check_summary(check_texts(jsonl(tmp_path / "a.jsonl", *rows[2:])))
    assert "! all labels are alike (3 undesirable) -> unpaired objectives need both" in text
    folder = tmp_path / "mixed"
    folder.mkdir()
    jsonl(folder / "a.jsonl", PAIR)
    jsonl(folder / "b.jsonl", {"text": "Once upon a time"})
    report = check_texts(folder)
    assert not report.is_ready
    assert "! 1 pairs, 1 whole texts stand side by side -> give one kind of data to a run" in check_summary(report)
    assert "columns prompt, chosen, rejected and column text, 2 files" in report.reader.format


def token_check(template: str | None, **settings: Any) -> TokenCheck:
    return TokenCheck(tiny_text.tokenizer(chat_template=template), "tiny", **settings)


def test_tokens_of_conversations(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "turns.jsonl", TURNS)
    check = token_check(tiny_text.CHATML)
    report = check_texts(path, tokens=check)
    assert report.is_ready
    assert "the chat template keeps the assistant's turns, and a stop token is scored in each" in check_summary(report)
    tokenizer = check.tokenization.tokenizer
    prompt = "<|im_start|>user\nwhat is the colour?<|im_end|>\n<|im_start|>assistant\n"
    assert check.prompts == [len(tokenizer(prompt, add_special_tokens=False)["input_ids"])]
    answers = [f"{side['content']}<|im_end|>\n" for side in (YES, NO)]
    assert check.completions == [len(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in answers]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (tiny_text.DROPS_ASSISTANT, "1 example cannot become tokens"),
        (None, "the tokenizer has no chat template"),
        (
            tiny_text.CHATML.replace("{{ message['content'] }}<|im_end|>", "{{ message['content'] }}"),
            "2 of 2 answers end",
        ),
    ],
)
def test_templates_that_teach_nothing(template: str | None, says: str, tmp_path: Path) -> None:
    report = check_texts(jsonl(tmp_path / "turns.jsonl", TURNS), tokens=token_check(template))
    assert not report.is_ready
    assert says in check_summary(report)
    assert check_summary(report).endswith("Not ready: see above.")


def test_what_is_cut_and_what_is_refused_is_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": [ASK], "completion": [YES | {"content": "good " * (n + 1)}]} for n in range(9)
    ]
    rows[4] = {"prompt": [ASK], "completion": [YES], "chat_template_kwargs": {"tokenize": True}}
    check = token_check(tiny_text.CHATML, max_completion_length=6)
    report = check_texts(jsonl(tmp_path / "turns.jsonl", *rows), tokens=check)
    # "good" five times and the two tokens behind it are more than six.
    whole = [len(check.tokenization.tokenizer(f"{'good ' * (n + 1)}<|im_end|>\n")["input_ids"]) - 1 for n in range(9)]
    expected = [min(number, 6) for n, number in enumerate(whole) if n != 4]
    assert check.completions == expected
    assert check.tokenization.counts.cut_completions == sum(number > 6 for n, number in enumerate(whole) if n != 4) > 0
    assert check.tokenization.counts.examples == 8
    assert not report.is_ready
    assert "line 5: 'tokenize' cannot be an argument" in check_summary(report)
    assert "completions were cut at the end" in check_summary(report)


def test_rows_beside_a_refused_one_are_counted_once(tmp_path: Path) -> None:
    rows = [{"prompt": "the cat", "completion": " sat on the mat"}] * 3
    # Without a beginning token nothing predicts the only token that is left of this one.
    rows.append({"prompt": "", "completion": "hello there"})
    check = TokenCheck(tiny_text.tokenizer(bos=False), "tiny", max_completion_length=1)
    report = check_texts(jsonl(tmp_path / "texts.jsonl", *rows), tokens=check)
    assert (check.tokenization.counts.examples, check.tokenization.counts.cut_completions) == (3, 3)
    assert "1 example cannot become tokens" in check_summary(report)
    assert "line 4: no token of a completion" in check_summary(report)


RECORDS = {
    "pairs": [
        TextRecord("The sky is", " blue.", " green.", margin=1.5),
        TextRecord("日本", "は", "が", chosen_probability=0.75, weight=0.5),
        TextRecord("", "a\n\x00\u2028b", "c"),
    ],
    "turns": [TextRecord((ASK,), (YES,), (NO,)), TextRecord((), (YES,), (NO, ASK, YES))],
    "labelled": [TextRecord("p", "c", label=True), TextRecord("p", "d", label=False, weight=2.0)],
    "demonstrations": [TextRecord((ASK,), (YES,)), TextRecord((ASK, NO, ASK), (YES,))],
    "messages": [TextRecord("", (ASK, YES))],
    "texts": [TextRecord("", "Once upon a time")],
    "tools": [TextRecord((ASK,), (YES,), (NO,), template={"tools": [{"name": "look"}], "enable_thinking": False})],
}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", RECORDS)
def test_what_is_written_is_read_again(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"texts{suffix}"
    assert write_texts(RECORDS[name], path) == len(RECORDS[name])
    read = list(open_texts(path))
    assert [record.example_id for record in read] == [record.example_id for record in RECORDS[name]]
    for found, written in zip(read, RECORDS[name], strict=True):
        for column in ("label", "margin", "chosen_probability", "weight", "template"):
            assert getattr(found, column) == getattr(written, column)
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


def test_columns_that_say_nothing_are_not_written(tmp_path: Path) -> None:
    records = [TextRecord("p", "c", "d"), TextRecord("q", "c", "d", margin=1.5)]
    write_texts(records, tmp_path / "texts.jsonl")
    assert [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()] == [
        {"prompt": "p", "chosen": "c", "rejected": "d"},
        {"prompt": "q", "chosen": "c", "rejected": "d", "margin": 1.5},
    ]
    write_texts(records, tmp_path / "texts.parquet")
    assert pq.read_table(tmp_path / "texts.parquet").to_pydict() == {
        "prompt": ["p", "q"], "chosen": ["c", "c"], "rejected": ["d", "d"], "margin": [0.0, 1.5],
    }  # fmt: skip


def test_trl_knows_the_columns(tmp_path: Path) -> None:
    from trl.data_utils import is_conversational

    expected = {"turns": True, "pairs": False, "demonstrations": True, "texts": False}
    for name, conversational in expected.items():
        path = tmp_path / f"{name}.jsonl"
        write_texts(RECORDS[name], path)
        row = json.loads(path.read_text().splitlines()[0])
        assert is_conversational(row) is conversational


def test_what_parquet_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "texts.parquet"
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    for records, says in (
        ([TextRecord((ASK,), (call,), (NO,))], "a turn has tool_calls besides role and content"),
        ([TextRecord("p", "c"), TextRecord("p", "c", "d")], "examples of several forms"),
        ([TextRecord("p", "c"), TextRecord((ASK,), (YES,))], "texts and turns in one parquet column"),
        ([], "no texts to write"),
    ):
        with pytest.raises(UserError, match=says):
            write_texts(records, path)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="cannot write texts to such a file"):
        write_texts([TextRecord("p", "c")], tmp_path / "texts.csv")
    assert write_texts([TextRecord((ASK,), (call,), (NO,))], tmp_path / "texts.jsonl") == 1
    (record,) = open_texts(tmp_path / "texts.jsonl")
    assert record.chosen == (call,)


def test_check_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["check", str(jsonl(tmp_path / "turns.jsonl", TURNS))])
    assert "Ready to train: 1 example." in capsys.readouterr().out
    folder = tmp_path / "model"
    tiny_text.tokenizer(chat_template=tiny_text.CHATML).save_pretrained(folder)
    run(["check", str(tmp_path / "turns.jsonl"), "--tokenizer", str(folder), "--max-length", "64"])
    assert f"tokens of {folder}, at most 64:" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        run(["check", str(jsonl(tmp_path / "bad.jsonl", PAIR, PAIR | {"chosen": None}))])
    assert caught.value.code == 2
    with pytest.raises(UserError, match=r"no columns? .*, as .* have \(columns: "):
        run(["check", str(jsonl(tmp_path / "other.jsonl", {"question": "a"}))])
    with pytest.raises(UserError, match="`max_length`: means nothing without `tokenizer`"):
        run(["check", str(tmp_path / "turns.jsonl"), "--max_length", "64"])
    with pytest.raises(UserError, match="no such folder"):
        run(["check", str(tmp_path / "turns.jsonl"), "--tokenizer", str(tmp_path / "nowhere")])
    pq.write_table(pa.Table.from_pylist([{"caption": "a", "jpg_0": b"1", "jpg_1": b"2"}]), tmp_path / "images.parquet")
    with pytest.raises(UserError, match="`tokenizer`: means nothing for images"):
        run(["check", str(tmp_path / "images.parquet"), "--tokenizer", str(folder)])


def test_convert_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = "\n\nHuman: Hi\n\nAssistant:"
    rows = [{"chosen": f"{said} Hello, you.", "rejected": f"{said} Hello there."}, {"chosen": "a", "rejected": "a"}]
    source = jsonl(tmp_path / "hh.jsonl", *rows)
    for name in ("out.jsonl", "out.parquet"):
        output = tmp_path / name
        with pytest.raises(UserError, match="line 2"):
            run(["convert", str(source), str(output)])
        assert not output.exists()
        run(["convert", str(source), str(output), "--on_bad_row", "skip"])
        told = capsys.readouterr().out
        assert f"left out: {source}, line 2" in told
        assert f"{output}: 1 examples from JSON Lines with columns chosen, rejected" in told
        (record,) = open_texts(output)
        assert (record.prompt, record.chosen, record.rejected) == (said, " Hello, you.", " Hello there.")
        with pytest.raises(UserError, match="exists already"):
            run(["convert", str(source), str(output)])
    with pytest.raises(UserError, match=r"the output is a .jsonl or .parquet file"):
        run(["convert", str(source), "out.csv"])
    with pytest.raises(UserError, match="is one of the inputs"):
        run(["convert", str(source), str(source), "--overwrite", "--on_bad_row", "skip"])
    with pytest.raises(UserError, match=r"nowhere.jsonl: no such file"):
        run(["convert", "nowhere.jsonl", str(tmp_path / "new.jsonl")])


def test_trajectories_are_checked_as_such_and_not_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "a", "completion": " b c", "reward": reward} for reward in (1.0, -2.0, 1.0)]
    source = jsonl(tmp_path / "walks.jsonl", *rows)
    run(["check", str(source)])
    assert "for ilql: 3 trajectories, rewards from -2 to 1" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"walks.jsonl: has reward, for which"):
        run(["convert", str(source), str(tmp_path / "new.jsonl")])
    bad = jsonl(tmp_path / "bad.jsonl", *rows, {"prompt": "a", "completion": " d", "reward": 1e39})
    with pytest.raises(UserError, match=r"line 4, column 'reward': found 1e\+39, not a finite number"):
        run(["check", str(bad)])
