"""Every reader of prompt files against every form and oddity: one value, or one message, the same for all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffusion_feedback.data.prompt_sets import read_prompt_set
from diffusion_feedback.data.texts import open_prompts
from diffusion_feedback.errors import UserError
from diffusion_feedback.prompts import read_prompts

TWO = ["a red cat", "two dögs, running"]
Read = Callable[[Path], list[str]]

READERS: dict[str, Read] = {
    "images": lambda path: [record.prompt for record in read_prompts(path)],
    "benchmarks": lambda path: [record.prompt for record in read_prompt_set(str(path), files={}).prompts],
    "texts": lambda path: [str(prompt) for prompt in open_prompts(path, unique=False)],
}


def rows(column: str) -> list[dict[str, str]]:
    return [{column: prompt, "style": "photo"} for prompt in TWO]


def table(column: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows(column)), sink)
    return sink.getvalue().to_pybytes()


def lines(*found: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)


GOOD: dict[str, tuple[str, str | bytes]] = {
    "lines": ("p.txt", "\n".join(TWO)),
    "lines of Windows": ("p.txt", "\r\n".join(TWO) + "\r\n"),
    "lines of old macOS": ("p.txt", "\r".join(TWO)),
    "a byte order mark": ("p.txt", "\ufeff" + "\n".join(TWO)),
    "blank lines": ("p.txt", f"\n{TWO[0]}\n\n   \n{TWO[1]}\n\n"),
    "ending in capitals": ("P.TXT", "\n".join(TWO)),
    "a JSON list": ("p.json", json.dumps(TWO)),
    "a JSON list over lines": ("p.json", json.dumps(TWO, indent=2)),
    "a JSON list with a byte order mark": ("p.json", "\ufeff" + json.dumps(TWO, ensure_ascii=False)),
    **{f"a JSON list of objects, {c}": ("p.json", json.dumps(rows(c))) for c in ("prompt", "Prompt", "Prompts")},
    **{f"JSON lines, {c}": ("p.jsonl", lines(*rows(c))) for c in ("prompt", "PROMPT", "Prompts", "caption", "Caption")},
    "JSON lines with a byte order mark": ("p.jsonl", "\ufeff" + lines(*rows("prompt"))),
    "JSON lines of Windows": ("p.jsonl", lines(*rows("prompt")).replace("\n", "\r\n")),
    **{
        f"CSV, {c}": ("p.csv", f'{c},style\n{TWO[0]},photo\n"{TWO[1]}",photo\n')
        for c in ("prompt", "Prompt", "prompts", "Prompts", "caption", "text", "Text", " prompt ")
    },
    "CSV with a byte order mark": ("p.csv", f'\ufeffprompt\r\n{TWO[0]}\r\n"{TWO[1]}"\r\n'),
    **{
        f"TSV, {c}": ("p.tsv", f"{c}\tCategory\n{TWO[0]}\tphoto\n{TWO[1]}\tphoto\n")
        for c in ("Prompt", "text", "caption")
    },
    **{f"parquet, {c}": ("p.parquet", table(c)) for c in ("prompt", "Prompt", "prompts", "caption")},
}

BAD: dict[str, tuple[str, str | bytes, str]] = {
    "Latin-1 lines": ("p.txt", "a cat\nein Hündchen\n".encode("latin-1"), r"not UTF-8 text \(line 2, byte 5\)"),
    "Latin-1 CSV": ("p.csv", "prompt\na cat\nH\xfcndchen\n".encode("latin-1"), r"not UTF-8 text \(line 3, byte 1\)"),
    "Latin-1 TSV": ("p.tsv", "prompt\tb\nH\xfcndchen\tc\n".encode("latin-1"), r"not UTF-8 text \(line 2, byte 1\)"),
    "UTF-16 lines": ("p.txt", "\n".join(TWO).encode("utf-16"), "looks like UTF-16"),
    "UTF-16 lines without a mark": ("p.txt", "a cat\na dog\n".encode("utf-16-le"), "looks like UTF-16"),
    "UTF-16 CSV": ("p.csv", "prompt\na cat\n".encode("utf-16"), "looks like UTF-16"),
    "nothing": ("p.txt", "", "holds no prompts|0 usable examples"),
    "a header alone": ("p.csv", "prompt\n", "holds no prompts|0 usable examples"),
    "no such column": ("p.csv", "style\nphoto\n", "line 2: no column 'prompt', 'prompts', 'caption', 'text'"),
    "semicolons": ("p.csv", "prompt;style\na;b\n", "separate the cells by commas"),
    "an unquoted comma": ("p.csv", "prompt,style\na cat,big,photo\n", "line 2: 3 cells, the header has 2"),
    "an open quotation mark": ("p.csv", 'prompt\n"a cat\na dog\n', "not CSV"),
    "two columns of one name": ("p.csv", "prompt,prompt\na,b\n", "two columns are named 'prompt'"),
    "two columns but for the case": ("p.csv", "prompt,Prompt\na,b\n", "two columns are named 'prompt'|column 'Prompt'"),
    "an empty cell": ("p.csv", "prompt,style\na,b\n,c\n", "line 3, column 'prompt'"),
    "an open quotation mark in quoted TSV": ("p.tsv", 'prompt\tb\n"a ""red"" cat"\tc\n"a dog\tc\n', "not CSV"),
    "cells missing in TSV": ("p.tsv", "prompt\tb\na\n", "1 cells, the header has 2"),
    "an object": ("p.json", '{"prompts": ["a"]}', "holds an object, not a list|no list|no column"),
    "a number among texts": ("p.json", '["a", 5]', "item 1: found 5"),
    "an empty text": ("p.json", '["a", " "]', "item 1"),
    "half of JSON": ("p.json", '["a", "b', "not JSON"),
    "no parquet": ("p.parquet", "PAR1 but not", "parquet"),
    "another ending": ("p.docx", "a cat", "ending in '.docx'|not a file of texts"),
    "no such file": ("", "", "no such file"),
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / (name or "gone.txt")
        if name:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("form", GOOD)
def test_every_reader_reads_every_form(form: str, reader: str, write: Callable[..., Path]) -> None:
    assert READERS[reader](write(*GOOD[form])) == TWO


@pytest.mark.parametrize("reader", READERS)
def test_cells_between_tabs_are_quoted_where_the_file_says_so(reader: str, write: Callable[..., Path]) -> None:
    """As pandas writes them; where no cell is quoted, marks belong to the prompt."""
    quoted = 'prompt\tb\n"a ""red"" cat"\tc\n"two\nlines"\tc\n"a\ttab"\tc\nplain\tc\n'
    assert READERS[reader](write("quoted.tsv", quoted)) == ['a "red" cat', "two\nlines", "a\ttab", "plain"]
    plain = 'prompt\tb\n"Hi" he said\tc\n"all of it"\tc\n"\tc\n'
    assert READERS[reader](write("plain.tsv", plain)) == ['"Hi" he said', '"all of it"', '"']


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("form", BAD)
def test_every_reader_names_what_is_wrong(form: str, reader: str, write: Callable[..., Path]) -> None:
    name, content, message = BAD[form]
    path = write(name, content)
    with pytest.raises(UserError, match=message) as error:
        READERS[reader](path)
    assert path.name in error.value.problem
    assert error.value.remedy


@pytest.mark.parametrize("reader", READERS)
def test_what_a_prompt_may_hold(reader: str, write: Callable[..., Path]) -> None:
    """Line separators of Unicode, quotation marks, form feeds: a prompt is no less whole for them."""
    odd = ['"G I G" in letters', "line\u2028separator", "form\x0cfeed", "nul \0 byte", "e\u0301 \U0001f600"]
    forms = {
        "p.txt": "\n".join(odd),
        "p.json": json.dumps(odd),
        "p.jsonl": lines(*({"prompt": prompt} for prompt in odd)),
        "p.csv": "prompt\n" + "".join('"{}"\n'.format(prompt.replace('"', '""')) for prompt in odd),
        "p.tsv": "prompt\tb\n" + "".join(f"{prompt}\tx\n" for prompt in odd),
    }
    for name, content in forms.items():
        assert READERS[reader](write(name, content)) == odd, name
