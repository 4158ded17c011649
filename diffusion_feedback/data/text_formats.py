"""Every format of texts by its columns: from a raw row to a record, or the reason why the row is none."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from ..errors import UserError, shown
from ..records import Ballot, Message, Text, TextRecord
from .columns import ColumnForm, missing_columns
from .implicit_prompts import split_texts, split_turns, unescape_dialogue
from .rows import BadRow
from .text_cells import TextCells, is_blank
from .text_columns import refuse_unread
from .votes import ANNOTATOR_COLUMNS, BOTH_BAD, VOTE_COLUMNS, annotator_of, is_true

Read = Callable[[TextCells], TextRecord | None]
_IMAGE_NAME = re.compile(r"\s*[^\n]{1,200}\.(png|jpe?g|webp|gif|bmp|tiff?|avif)\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TextFormat:
    """A format, known by the columns that it ``needs``; ``make`` gives None for a row that says nothing by its own
    account, and raises BadRow for one that is wrong.
    """

    name: str
    needs: tuple[str, ...]
    make: Read

    def read(self, row: TextCells) -> TextRecord | None:
        """The record of ``row``; None as ``make``. Raises BadRow too where a column beside what was read says more."""
        record = self.make(row)
        if record is None:
            return None
        annotator = next((column for column in ANNOTATOR_COLUMNS if not is_blank(row.cells.get(column))), "")
        is_both_bad = record.ballot.is_both_bad or is_true(row.get(BOTH_BAD))
        if annotator or is_both_bad:
            record = replace(record, ballot=Ballot(annotator_of(row.get(annotator)), is_both_bad))
        refuse_unread(row, record, self.name)
        return record

    @property
    def is_prompts(self) -> bool:
        """Whether there is nothing to learn from but prompts."""
        return self.needs == ("prompt",)


def detect(columns: Set[str]) -> TextFormat | None:
    """The first known format whose columns are among ``columns``; None where there is none."""
    return next((known for known in FORMATS if columns >= set(known.needs)), None)


def unknown_columns(name: str, columns: Set[str]) -> UserError:
    """The error of a file whose columns belong to no known format."""
    if len(columns) == 1 and any(mark in min(columns) for mark in ";|\t"):
        return UserError(
            f"{name}: found one column, {min(columns)!r}", "separate the cells by commas, or by tabs in a .tsv"
        )
    return missing_columns(name, sorted(columns), _PLAINEST, name)


# --- pairs -----------------------------------------------------------------------------------------------------------


def _preference(row: TextCells, prompt: Text, chosen: Text, rejected: Text, **strength: Any) -> TextRecord:
    if chosen == rejected:
        raise BadRow("identical", f"{row.source}, columns 'chosen' and 'rejected': both are the same text")
    if isinstance(chosen, str) and isinstance(rejected, str) and all(map(_IMAGE_NAME.fullmatch, (chosen, rejected))):
        says = f"found {chosen!r}, the name of an image: pairs of images stand in metadata.jsonl, as image_0_file_name"
        raise row.bad("text", "chosen", f"{says}, image_1_file_name, caption, label_0")
    return TextRecord(prompt, chosen, rejected, template=row.template(), source=row.source, **strength)


def _user(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


def _assistant(text: str) -> tuple[Message, ...]:
    return ({"role": "assistant", "content": text},)


def _system(row: TextCells) -> str | None:
    """The words of a column system (or system_prompt), which may be empty; None where there are none."""
    given = [row.string(name, blank=True) for name in ("system", "system_prompt") if row.get(name) is not None]
    return next((text for text in given if text.strip()), "" if given else None)


def _under_system(row: TextCells, turns: Sequence[Message]) -> tuple[Message, ...]:
    """``turns`` after the system's turn, where a column gives one that is not there already."""
    system = _system(row)
    if not (system or "").strip() or (turns and turns[0] == {"role": "system", "content": system}):
        return tuple(turns)
    if turns and turns[0]["role"] == "system":
        raise row.bad("turns", "system", f"found {system!r} beside another system turn: {turns[0]['content']!r}")
    return ({"role": "system", "content": system}, *turns)


def _prompt_of(row: TextCells) -> Text:
    """The column prompt, as turns where a system's words stand beside it."""
    prompt = row.text("prompt", blank=True)
    if isinstance(prompt, str) and _system(row) is None:
        return prompt
    return _under_system(row, _prompt_turns(prompt))


def _question(row: TextCells, column: str) -> tuple[Message, ...]:
    """The user's question with what belongs to it: Alpaca's input, Dolly's context; system; history."""
    words = row.string(column)
    for name in ("input", "context") if column == "instruction" else ():
        if row.get(name) is not None and (given := row.string(name, blank=True).strip()):
            words += f"\n\n{given}"
    return _under_system(row, (*_history(row), *_user(words)))


def _history(row: TextCells) -> tuple[Message, ...]:
    """LLaMA-Factory's earlier turns: a list of [question, answer]."""
    turns: list[Message] = []
    given = row.get("history")
    for number, pair in enumerate(() if is_blank(given) else given if isinstance(given, list | tuple) else [given]):
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(each, str) for each in pair)):
            raise row.bad("turns", "history", f"item {number}: found {str(pair)[:60]!r}, not [question, answer]")
        turns += (*_user(pair[0]), *_assistant(pair[1]))
    return tuple(turns)


def _pair(row: TextCells) -> TextRecord:
    """prompt, chosen, rejected. Turns of chosen and rejected may hold the prompt once more (UltraFeedback binarized)."""
    strength = row.strength("score_chosen", "score_rejected")
    strength["token_ids"] = row.token_ids("chosen_token_ids", "rejected_token_ids")
    return _answers(row, _prompt_of(row), row.text("chosen"), row.text("rejected"), **strength)


def _answers(row: TextCells, prompt: Text, chosen: Text, rejected: Text, **strength: Any) -> TextRecord:
    """Two answers: all three as texts where they are, else as turns."""
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        return _preference(row, prompt, chosen, rejected, **strength)
    return _preference(row, *_as_turns(row, prompt, chosen, rejected), **strength)


def _as_turns(row: TextCells, prompt: Text, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """The three as turns; where the assistant is not first in chosen and rejected, their prompt is in them."""
    sides = [_assistant(side) if isinstance(side, str) else side for side in (chosen, rejected)]
    if all(side[0]["role"] != "assistant" for side in sides):
        inner, *sides = split_turns(*sides)
        if isinstance(prompt, str) and not any(prompt.strip() in (turn.get("content") or "") for turn in inner):
            says = f"found {shown(prompt)}, which is not in the turns that chosen and rejected share"
            raise row.bad("turns", "prompt", f"{says}: leave one of the two prompts out")
        prompt = inner if isinstance(prompt, str) else _joined(prompt, inner)
    first, second = (row.checked_reply(name, side) for name, side in zip(("chosen", "rejected"), sides, strict=True))
    return _prompt_turns(prompt), first, second


def _voted(first: str, second: str, vote: str) -> Read:
    """Two answers, and a vote for one of them or for neither."""

    def read(row: TextCells) -> TextRecord | None:
        prompt, sides = _prompt_of(row), (row.text(first), row.text(second))
        choice = row.choice(vote, (first, second))
        if sides[0] == sides[1]:
            raise BadRow("identical", f"{row.source}, columns {first!r} and {second!r}: both are the same text")
        if choice is None:
            return None
        better, worse = sides if choice.share >= 0.5 else sides[::-1]
        strength = row.strength() | {"chosen_probability": max(choice.share, 1 - choice.share)}
        return replace(_answers(row, prompt, better, worse, **strength), ballot=Ballot("", choice.is_both_bad))

    return read


def _question_pair(question: str, better: str = "chosen", worse: str = "rejected") -> Read:
    """A question and two answers, as turns (Intel's orca_dpo_pairs, LLaMA-Factory's ranking, OpenRLHF)."""

    def read(row: TextCells) -> TextRecord:
        prompt = _prompt_of(row) if question == "prompt" else _question(row, question)
        chosen, rejected = row.text(better), row.text(worse)
        return _answers(row, prompt, chosen, rejected, **row.strength("score_chosen", "score_rejected"))

    return read


def _prompt_turns(prompt: Text) -> tuple[Message, ...]:
    return (_user(prompt) if prompt.strip() else ()) if isinstance(prompt, str) else prompt


def _joined(prompt: tuple[Message, ...], inner: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns of ``prompt`` and then those of ``inner``, where one does not hold the other already."""
    if inner == prompt[len(prompt) - len(inner) :]:
        return prompt
    return inner if prompt in (inner[: len(prompt)], inner[len(inner) - len(prompt) :]) else prompt + inner


def _implicit(row: TextCells) -> TextRecord:
    """chosen, rejected: whole texts or conversations that begin with the same prompt."""
    strength = row.strength("score_chosen", "score_rejected")
    chosen, rejected = row.text("chosen"), row.text("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if chosen == rejected:
            return _preference(row, "", chosen, rejected)
        prompt, chosen, rejected = split_texts(unescape_dialogue(chosen), unescape_dialogue(rejected))
        for column, side in (("chosen", chosen), ("rejected", rejected)):
            if not side.strip():
                raise row.bad("empty", column, "nothing is left behind the prompt that both texts share")
        return _preference(row, prompt, chosen, rejected, **strength)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise row.bad("turns", "rejected", "one of chosen and rejected is a text, the other a list of turns")
    if chosen == rejected:
        return _preference(row, (), chosen, rejected)
    turns = split_turns(chosen, rejected)
    return _preference(
        row,
        _under_system(row, turns[0]),
        row.checked_reply("chosen", turns[1]),
        row.checked_reply("rejected", turns[2]),
        **strength,
    )


def _pair_after_turns(row: TextCells) -> TextRecord:
    """conversations, chosen, rejected: the turns so far, and two answers, as texts or one turn each."""
    prompt = _under_system(row, row.turns("conversations"))
    chosen, rejected = row.text("chosen"), row.text("rejected")
    return _preference(row, *_as_turns(row, prompt, chosen, rejected), **row.strength())


def _completions(row: TextCells) -> TextRecord | None:
    """instruction, completions with overall_score (UltraFeedback): the best against the worst; all alike says nothing."""
    prompt, completions = row.string("instruction"), row.raw("completions")
    if not isinstance(completions, list):
        raise row.bad("text", "completions", "not a list of completions")
    scored: list[tuple[float, str]] = []
    for number, item in enumerate(completions):
        inner = TextCells(f"{row.source}, completion {number}", item if isinstance(item, dict) else {})
        score = inner.number("overall_score")
        if score is not None:
            scored.append((score, inner.string("response")))
    if len(scored) < 2:
        raise row.bad("missing", "completions", f"{len(scored)} completions with an overall_score, fewer than two")
    best, worst = max(scored, key=lambda item: item[0]), min(scored, key=lambda item: item[0])
    if best[0] == worst[0]:
        return None
    sides = _assistant(best[1]), _assistant(worst[1])
    return _preference(row, _user(prompt), *sides, margin=best[0] - worst[0])


def _shp(row: TextCells) -> TextRecord:
    """history, human_ref_A, human_ref_B, labels (Stanford SHP): labels 1 prefers A, 0 prefers B."""
    sides = _assistant(row.string("human_ref_A")), _assistant(row.string("human_ref_B"))
    label = row.number("labels")
    if label not in (0, 1):
        raise row.bad("label", "labels", f"found {row.cells.get('labels')!r}; allowed: 0, 1")
    chosen, rejected = sides if label == 1 else sides[::-1]
    return _preference(row, _user(row.string("history")), chosen, rejected)


# --- single texts ----------------------------------------------------------------------------------------------------


def _completion(column: str, *, is_labelled: bool = False) -> Read:
    """A prompt and the completion in ``column``; ``is_labelled``, with a column label, whether it is desirable."""

    def read(row: TextCells) -> TextRecord:
        label = row.truth("label") if is_labelled else None
        prompt, completion = _prompt_of(row), row.reply(column)
        if isinstance(prompt, str) and isinstance(completion, str):
            return _single(row, prompt, completion, label)
        turns = _assistant(completion) if isinstance(completion, str) else completion
        return _single(row, _prompt_turns(prompt), turns, label)

    return read


def _single(row: TextCells, prompt: Text, completion: Text, label: bool | None) -> TextRecord:
    weight = row.strength().get("weight", 1.0)
    return TextRecord(prompt, completion, label=label, weight=weight, template=row.template(), source=row.source)


def _tag(row: TextCells) -> bool | None:
    """LLaMA-Factory's kto_tag: whether the completion is desirable; None where there is none."""
    return None if row.get("kto_tag") is None else row.truth("kto_tag")


def _answered(question: str, answer: str) -> Read:
    """A question and its answer, as turns; ng_translation 1 (kunishou/hh-rlhf-49k-ja) says that a row is no good."""

    def read(row: TextCells) -> TextRecord | None:
        if str(row.get("ng_translation") or "0").strip().lower() in ("1", "1.0", "true"):
            return None
        return _single(row, _question(row, question), _assistant(row.string(answer)), _tag(row))

    return read


def _conversation(column: str) -> Read:
    def read(row: TextCells) -> TextRecord:
        turns = _under_system(row, row.turns(column))
        if not any(turn["role"] == "assistant" for turn in turns):
            raise row.bad("turns", column, "no turn of the assistant: there is nothing to learn")
        label = _tag(row)
        if label is None:
            return _single(row, "", turns, None)
        # What is judged is the last answer.
        return _single(row, turns[:-1], row.checked_reply(column, turns[-1:]), label)

    return read


def _text(row: TextCells) -> TextRecord:
    return TextRecord("", row.string("text"), weight=row.strength().get("weight", 1.0), source=row.source)


def _prompt(row: TextCells) -> TextRecord:
    prompt = _prompt_of(row)
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise row.bad("empty", "prompt", f"found {row.get('prompt')!r}, an empty text")
    return TextRecord(prompt, "", template=row.template(), source=row.source)


# Names of questions and of their answers, besides TRL's prompt and completion.
_QUESTIONS = ("instruction", "question", "query", "input")
_ANSWERS = (
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("problem", "solution"),
    ("input", "output"),
)


def _columns(*needs: str) -> tuple[str, tuple[str, ...]]:
    return f"columns {', '.join(needs)}", needs


_TWO_ANSWERS = (("response_a", "response_b"), ("answer_a", "answer_b"), ("completion_a", "completion_b"))

FORMATS = (
    *(
        TextFormat("votes on two responses", ("prompt", *sides, vote), _voted(*sides, vote))
        for sides in (*_TWO_ANSWERS, ("response_1", "response_2"), ("response_0", "response_1"), ("left", "right"))
        for vote in VOTE_COLUMNS
    ),
    TextFormat("columns prompt, chosen, rejected", ("prompt", "chosen", "rejected"), _pair),
    TextFormat("columns conversations, chosen, rejected", ("conversations", "chosen", "rejected"), _pair_after_turns),
    *(TextFormat(*_columns(name, "chosen", "rejected"), _question_pair(name)) for name in _QUESTIONS),
    *(
        TextFormat(
            *_columns(name, "response_chosen", "response_rejected"),
            _question_pair(name, "response_chosen", "response_rejected"),
        )
        for name in ("prompt", *_QUESTIONS)
    ),
    TextFormat("columns chosen, rejected (the prompt is in both)", ("chosen", "rejected"), _implicit),
    TextFormat(
        "columns prompt, completion, label",
        ("prompt", "completion", "label"),
        _completion("completion", is_labelled=True),
    ),
    TextFormat("columns prompt, completion", ("prompt", "completion"), _completion("completion")),
    TextFormat("UltraFeedback's completions, best against worst", ("instruction", "completions"), _completions),
    TextFormat("SHP's two answers", ("history", "human_ref_A", "human_ref_B", "labels"), _shp),
    *(TextFormat(*_columns("instruction", name), _answered("instruction", name)) for name in ("output", "response")),
    TextFormat("column messages", ("messages",), _conversation("messages")),
    TextFormat("column conversations", ("conversations",), _conversation("conversations")),
    TextFormat(*_columns("prompt", "response"), _completion("response")),
    *(TextFormat(*_columns(*names), _answered(*names)) for names in _ANSWERS),
    TextFormat("column text", ("text",), _text),
    TextFormat("prompts alone", ("prompt",), _prompt),
)
KNOWN_COLUMNS = tuple(
    dict.fromkeys(
        [name for form in FORMATS for name in form.needs]
        + ["margin", "weight", "chosen_probability", "score_chosen", "score_rejected", "system", "system_prompt"]
        + ["input", "context", "history", "kto_tag", "tools", "chat_template_kwargs", "reward", "rewards"]
        + [*ANNOTATOR_COLUMNS]
    )
)
"""Every name that a column of a table of texts may have."""
# What the nearest form of unknown columns is taken from: each with cells that would pass.
_TURNS = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]
_PLAINEST = (
    ColumnForm("pairs", [("prompt",), ("chosen",), ("rejected",)], ("What is 2 + 2?", "4", "5")),
    ColumnForm(
        "votes", [("prompt",), *zip(*_TWO_ANSWERS, strict=True), VOTE_COLUMNS], ("What is 2 + 2?", "4", "5", "a")
    ),
    ColumnForm("labelled completions", [("prompt",), ("completion",), ("label",)], ("What is 2 + 2?", "4", "true")),
    ColumnForm("completions", [("prompt",), ("completion",)], ("What is 2 + 2?", "4")),
    ColumnForm("conversations", [("messages",)], (_TURNS,)),
)
