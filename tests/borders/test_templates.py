"""Texts to tokens at the borders: rendered texts, prompts that end inside a token, templates of every temper."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import text_recipes
import tiny_text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from diffusion_feedback import foreign
from diffusion_feedback.cli.main import main
from diffusion_feedback.data.text_output import each_answer
from diffusion_feedback.errors import UserError
from diffusion_feedback.likelihoods.prompt_ends import open_ended
from diffusion_feedback.likelihoods.tokenization import Tokenization
from diffusion_feedback.models.end_tokens import closing_token_id
from diffusion_feedback.records import TextRecord
from diffusion_feedback.scorers.texts.classification import conversation_text
from diffusion_feedback.types.texts import TokenSequence

JAPANESE = ("首都は東京です", "東京と京都", "東 京", "a b c", "answer one", "the end", "Q: A: apple Paris")


def _around(spelling: Tokenizer, *, begin: bool, end: bool) -> None:
    single = [*(["<s>"] if begin else []), "$A", *(["</s>"] if end else [])]
    numbers = [(token, spelling.token_to_id(token)) for token in ("<s>", "</s>")]
    spelling.post_processor = TemplateProcessing(single=single, special_tokens=numbers)


def _byte_bpe(*, begin: bool = False, end: bool = False) -> PreTrainedTokenizerFast:
    found = tiny_text.tokenizer(bos=False, chat_template=tiny_text.CHATML)
    found.bos_token = "<s>"
    if begin or end:
        _around(found.backend_tokenizer, begin=begin, end=end)
    return found


def _unigram(*, begin: bool = False, end: bool = False) -> PreTrainedTokenizerFast:
    """As sentencepiece's: a mark for spaces, pieces that hold several characters."""
    spelling = Tokenizer(models.Unigram())
    spelling.pre_tokenizer = pre_tokenizers.Metaspace()
    spelling.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<pad>", tiny_text.TURN, tiny_text.END_OF_TURN]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False,
        initial_alphabet=sorted(set("".join(JAPANESE + tiny_text.CORPUS) + "systemusra\n:?")),
    )  # fmt: skip
    spelling.train_from_iterator([*JAPANESE * 20, *tiny_text.CORPUS], trainer)
    if begin or end:
        _around(spelling, begin=begin, end=end)
    found = PreTrainedTokenizerFast(
        tokenizer_object=spelling, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=[tiny_text.TURN, tiny_text.END_OF_TURN],
    )  # fmt: skip
    found.chat_template = tiny_text.CHATML
    return found


TOKENIZERS: Mapping[str, Callable[[], PreTrainedTokenizerFast]] = {
    "GPT-2: adds nothing": _byte_bpe,
    "Llama 3: puts a beginning": lambda: _byte_bpe(begin=True),
    "puts a beginning and an end": lambda: _byte_bpe(begin=True, end=True),
    "rinna: Unigram that puts an end": lambda: _unigram(end=True),
    "Llama 2: Unigram that puts a beginning": lambda: _unigram(begin=True),
    "Unigram: adds nothing": _unigram,
}
TOKENIZER = {name: build() for name, build in TOKENIZERS.items()}


def spelt(tokenizer: Any, sequence: TokenSequence) -> list[str]:
    return [str(token) for token in tokenizer.convert_ids_to_tokens(sequence.ids.tolist())]


def encoded(tokenizer: Any, record: TextRecord, **more: Any) -> tuple[Any, Tokenization]:
    tokenization = Tokenization(tokenizer, 128, **more)
    (example,) = tokenization.encode([record])
    return example, tokenization


# --- one beginning, one end ------------------------------------------------------------------------------------------

RENDERED_ENDS = {
    "nothing": "",
    "the end token": "</s>",
    "a stop token": "<|im_end|>",
    "a stop token and a line": "<|im_end|>\n",
}


@pytest.mark.parametrize("end", RENDERED_ENDS)
@pytest.mark.parametrize("column", ["prompt", "text"])
@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_rendered_texts_begin_and_end_once(name: str, begins: bool, column: str, end: str) -> None:
    tokenizer = TOKENIZER[name]
    prompt, completion = ("<s>" if begins else "") + "the end", " answer one" + RENDERED_ENDS[end]
    record = TextRecord(prompt, completion) if column == "prompt" else TextRecord("", prompt + completion)
    example, tokenization = encoded(tokenizer, record)
    tokens = spelt(tokenizer, example.chosen)
    puts_begin = "a beginning" in name
    assert tokens.count("<s>") == (begins or puts_begin)
    own_end = "<|im_end|>" if "stop" in end else "</s>"
    assert (tokens.count("</s>"), tokens.count("<|im_end|>")) == ((1, 0) if own_end == "</s>" else (0, 1))
    assert own_end in tokens[-3:]
    assert own_end in tokenizer.convert_ids_to_tokens(example.chosen.ids[example.chosen.scored].tolist())
    assert tokenization.counts.doubled_begins == (begins and puts_begin)
    assert tokenization.counts.own_end_tokens == ("stop" in end)
    assert tokenization.counts.added_end_tokens == (end == "nothing" and "an end" not in name)
    # What is generated from begins as training did, and is not ended.
    (ids,) = tokenization.encode_prompts([prompt])
    drawn = tokenizer.convert_ids_to_tokens(ids)
    assert drawn.count("<s>") == (begins or puts_begin)
    assert "</s>" not in drawn
    if column == "prompt":
        assert ids == example.chosen.ids[: example.chosen.prompt_length].tolist()


# --- prompts that end inside a token ---------------------------------------------------------------------------------

BORDERS = {
    "a space": ("Q: A: ", "apple", True),
    "a space in the completion": ("Q: A:", " apple", False),
    "Japanese": ("首都は東", "京です", True),
    "Japanese, whole words": ("首都は", "東京です", False),
    "a line": ("the end\n", "answer", False),
}


@pytest.mark.parametrize("case", BORDERS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_prompts_that_end_inside_a_token_are_counted(name: str, case: str) -> None:
    tokenizer = TOKENIZER[name]
    prompt, completion, _ = BORDERS[case]
    _, tokenization = encoded(tokenizer, TextRecord(prompt, completion))
    # The rule by hand: the prompt's own tokens are not those that the whole begins with.
    own, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + completion))
    is_moved = whole[: len(own)] != own
    assert tokenization.counts.moved_borders == is_moved
    assert any("inside a token" in note for note in tokenization.counts.notes()) == is_moved
    assert (prompt in open_ended(tokenizer, [prompt])) >= is_moved


def test_the_borders_are_of_both_kinds() -> None:
    moved = {
        (name, case)
        for name in TOKENIZERS
        for case, (prompt, completion, _) in BORDERS.items()
        if encoded(TOKENIZER[name], TextRecord(prompt, completion))[1].counts.moved_borders
    }
    assert ("GPT-2: adds nothing", "a space") in moved
    assert ("rinna: Unigram that puts an end", "Japanese") in moved
    assert not {case for _, case in moved} & {"a space in the completion", "Japanese, whole words", "a line"}


def test_whole_prompts_are_not_warned_of() -> None:
    for tokenizer in TOKENIZER.values():
        assert (
            open_ended(tokenizer, ["the end", "Q: A:", "the end\n", "首都は?", ({"role": "user", "content": "a "},)])
            == []
        )


# --- templates -------------------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "the end"}
ANSWER = {"role": "assistant", "content": "answer one"}
LAST = {"role": "assistant", "content": "b c"}
# As Qwen3's: an empty thought before the last answer, and none before the earlier ones.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}[think][/think]"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BROKEN = {
    "divides by zero": ("{{ 1 / 0 }}", "division"),
    "calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "more memory than there is": ("{{ 'a' * 10 ** 18 }}", ""),
    "too long a text": ("{% for i in range(999) %}{{ 'a' * 20000 }}{% endfor %}", "characters"),
    "a loop for ever": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "not done after",
    ),
    "a text for ever": (
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}", "not done after",
    ),
    "a range beyond all": ("{% for i in range(10 ** 12) %}{% endfor %}", ""),
    "no such filter": ("{{ messages | wizardry }}", "wizardry"),
    "no such field": ("{{ messages[0].a.b }}", ""),
    "not closed": ("{% for m in messages %}", ""),
    "raises": ("{{ raise_exception('only two turns') }}", "only two turns"),
    "reaches out": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", ""),
    "an item that is not there": ("{{ messages[99]['content'] }}", ""),
    "adds texts and numbers": ("{{ messages[0].content + 1 }}", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_templates_that_fail_are_one_message(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "TIME_LIMIT", 0.3)
    template, says = BROKEN[name]
    tokenizer = _byte_bpe(begin=True)
    tokenizer.chat_template = template
    record = TextRecord((USER,), (ANSWER,), source="rows.jsonl, line 3")
    for ask in (
        lambda found: found.encode([record]),
        lambda found: found.encode_prompts([(USER,)]),
    ):
        with pytest.raises(UserError) as caught:
            ask(Tokenization(tokenizer, 128))
        assert says in caught.value.problem
        assert "template" in caught.value.problem
        assert "text.chat_template" in caught.value.remedy


@pytest.mark.parametrize("name", BROKEN)
def test_judges_and_models_outlive_such_templates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "TIME_LIMIT", 0.3)
    template, says = BROKEN[name]
    tokenizer = _byte_bpe(begin=True)
    tokenizer.chat_template = template
    # What closes a turn is asked of every template, and what tells nothing closes none.
    assert closing_token_id(tokenizer) is None
    with pytest.raises(UserError) as caught:
        conversation_text((USER,), (ANSWER,), tokenizer, "judge")
    assert says in caught.value.problem


def _qwen() -> PreTrainedTokenizerFast:
    found = _byte_bpe(begin=True)
    found.chat_template = THINKING
    return found


def test_of_several_answers_that_the_template_rewrites_the_last_is_learnt_from() -> None:
    tokenizer = _qwen()
    record = TextRecord("", (USER, ANSWER, USER, LAST), source="rows.jsonl, line 3")
    example, tokenization = encoded(tokenizer, record)
    scored = tokenizer.decode(example.chosen.ids[example.chosen.scored])
    assert scored.strip() == "[think][/think]b c<|im_end|>"
    whole = tokenizer.apply_chat_template([dict(turn) for turn in record.chosen], tokenize=False)
    assert tokenizer.decode(example.chosen.ids) == whole
    assert tokenization.counts.skipped_answers == 1
    assert any("`each_answer`" in note for note in tokenization.counts.notes())


def test_a_row_of_each_answer_learns_from_all() -> None:
    tokenizer = _qwen()
    record = TextRecord("", (USER, ANSWER, USER, LAST), weight=2.0, source="rows.jsonl, line 3")
    rows = list(each_answer([record]))
    assert [(row.prompt, row.chosen, row.weight) for row in rows] == [
        ((USER,), (ANSWER,), 2.0),
        ((USER, ANSWER, USER), (LAST,), 2.0),
    ]
    for row, says in zip(rows, ("answer one", "b c"), strict=True):
        example, tokenization = encoded(tokenizer, row)
        scored = tokenizer.decode(example.chosen.ids[example.chosen.scored])
        assert scored.strip() == f"[think][/think]{says}<|im_end|>"
        # The prompt is what the model is asked with.
        assert tokenization.encode_prompts([row.prompt]) == [
            example.chosen.ids[: example.chosen.prompt_length].tolist()
        ]
        assert tokenization.counts.skipped_answers == 0


@pytest.mark.parametrize("kind", ["pair", "label"])
def test_preferences_under_such_a_template_are_refused(kind: str) -> None:
    chosen, rejected = (ANSWER, USER, LAST), (LAST, USER, ANSWER)
    more: dict[str, Any] = {"rejected": rejected} if kind == "pair" else {"label": True}
    record = TextRecord((USER,), chosen, source="rows.jsonl, line 3", **more)
    with pytest.raises(UserError, match=r"line 3: the chat template renders(.|\n)*first answer"):
        encoded(_qwen(), record)
    with pytest.raises(UserError, match="a preference"):
        list(each_answer([record]))
    # One answer each is right.
    example, _ = encoded(_qwen(), TextRecord((USER, ANSWER, USER), (LAST,), rejected=(ANSWER,)))
    assert example.rejected is not None


def test_convert_makes_a_row_of_each_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = text_recipes.write_jsonl(
        tmp_path / "a.jsonl", [{"messages": [USER, ANSWER, USER, LAST]}, {"messages": [USER, LAST]}]
    )
    assert main(["data", "convert", str(path), str(tmp_path / "out.jsonl"), "--each_answer"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["completion"] for row in rows] == [[ANSWER], [LAST], [LAST]]
    assert [len(row["prompt"]) for row in rows] == [1, 3, 1]


# --- plain prompts of chat models ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text.save_tiny_lm(tmp_path_factory.mktemp("chat") / "model")


@pytest.mark.parametrize("command", ["generate", "judge"])
@pytest.mark.parametrize("how", ["as they are", "--as_turns", "--chat_template"])
def test_plain_prompts_of_a_chat_model(
    how: str, command: str, chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("the end\nanswer one \n")
    (tmp_path / "t.jinja").write_text(tiny_text.CHATML)
    flags = {
        "as they are": [],
        "--as_turns": ["--as_turns"],
        "--chat_template": ["--chat_template", str(tmp_path / "t.jinja")],
    }[how]
    shared = [
        "--prompts",
        str(tmp_path / "prompts.txt"),
        "--output_dir",
        str(tmp_path / "out"),
        "--max_new_tokens",
        "4",
    ]
    if command == "generate":
        argv = ["generate", str(chat_model), *shared, *flags]
        written = tmp_path / "out" / "completions.jsonl"
    else:
        (tmp_path / "score.py").write_text(
            "def score(prompts, completions):\n    return [float(len(each)) for each in completions]\n"
        )
        argv = [
            "judge",
            str(chat_model),
            str(chat_model),
            "--names",
            "a",
            "b",
            "--judge",
            f"function={tmp_path}/score.py:score",
            *shared,
            *flags,
        ]
        written = tmp_path / "out" / "a" / "completions.jsonl"
    assert main(argv) == 0
    said = capsys.readouterr().out
    first = json.loads(written.read_text().splitlines()[0])["prompt"]
    if how == "as they are":
        assert first == "the end"
        assert "2 prompts are plain texts" in said
        assert "--as_turns" in said
        assert "1 prompt ends inside what may be one token (the first: 'answer one ')" in said
    else:
        assert first == [{"role": "user", "content": "the end"}]
        assert "note" not in said
