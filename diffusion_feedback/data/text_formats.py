"""Every format of texts by its columns: from a raw row to a record, or the reason why the row is none."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..records import Message, Text, TextRecord
from .implicit_prompts import split_texts, split_turns, unescape_dialogue
from .rows import BadRow
from .text_cells import Row

Read = Callable[[Row], TextRecord | None]


@dataclass(frozen=True, slots=True)
class TextFormat:
    """A format, known by the columns that it ``needs``; ``read`` gives None for a row that says nothing by its own
    account, and raises BadRow for one that is wrong.
    """

    name: str
    needs: tuple[str, ...]
    read: Read

    @property
    def is_prompts(self) -> bool:
        """Whether there is nothing to learn from but prompts."""
        return self.needs == ("prompt",)


def detect(columns: Set[str]) -> TextFormat | None:
    """The first known format whose columns are among ``columns``; None where there is none."""
    return next((known for known in FORMATS if columns >= set(known.needs)), None)


def unknown_columns(name: str, columns: Set[str]) -> UserError:
    """The error of a file whose columns belong to no known format."""
    known = "; ".join(", ".join(form.needs) for form in FORMATS)
    return UserError(f"{name}: found columns {', '.join(sorted(columns)) or 'none'}", f"known formats: {known}")


# --- pairs -----------------------------------------------------------------------------------------------------------


def _preference(row: Row, prompt: Text, chosen: Text, rejected: Text, **strength: Any) -> TextRecord:
    if chosen == rejected:
        raise BadRow("identical", f"{row.source}, columns 'chosen' and 'rejected': both are the same text")
    return TextRecord(prompt, chosen, rejected, template=row.template(), source=row.source, **strength)


def _user(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


def _assistant(text: str) -> tuple[Message, ...]:
    return ({"role": "assistant", "content": text},)


def _pair(row: Row) -> TextRecord:
    """prompt, chosen, rejected. Turns of chosen and rejected may hold the prompt once more (UltraFeedback binarized)."""
    strength = row.strength("score_chosen", "score_rejected")
    prompt, chosen, rejected = row.text("prompt", blank=True), row.text("chosen"), row.text("rejected")
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        return _preference(row, prompt, chosen, rejected, **strength)
    return _preference(row, *_as_turns(row, prompt, chosen, rejected), **strength)


def _as_turns(row: Row, prompt: Text, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """The three as turns; where the assistant is not first in chosen and rejected, their prompt is in them."""
    sides = [_assistant(side) if isinstance(side, str) else side for side in (chosen, rejected)]
    if all(side[0]["role"] != "assistant" for side in sides):
        inner, *sides = split_turns(*sides)
        prompt = inner if isinstance(prompt, str) else _joined(prompt, inner)
    first, second = (row.checked_reply(name, side) for name, side in zip(("chosen", "rejected"), sides, strict=True))
    return _prompt_turns(prompt), first, second


def _prompt_turns(prompt: Text) -> tuple[Message, ...]:
    return (_user(prompt) if prompt.strip() else ()) if isinstance(prompt, str) else prompt


def _joined(prompt: tuple[Message, ...], inner: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns of ``prompt`` and then those of ``inner``, where one does not hold the other already."""
    if inner == prompt[len(prompt) - len(inner) :]:
        return prompt
    return inner if prompt in (inner[: len(prompt)], inner[len(inner) - len(prompt) :]) else prompt + inner


def _implicit(row: Row) -> TextRecord:
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
        row, turns[0], row.checked_reply("chosen", turns[1]), row.checked_reply("rejected", turns[2]), **strength
    )


def _pair_after_turns(row: Row) -> TextRecord:
    """conversations, chosen, rejected: the turns so far, and two answers (llm-jp/hh-rlhf-12k-ja)."""
    prompt, chosen, rejected = row.turns("conversations"), row.text("chosen"), row.text("rejected")
    return _preference(row, *_as_turns(row, prompt, chosen, rejected), **row.strength())


def _completions(row: Row) -> TextRecord | None:
    """instruction, completions with overall_score (UltraFeedback): the best against the worst; all alike says nothing."""
    prompt, completions = row.string("instruction"), row.raw("completions")
    if not isinstance(completions, list):
        raise row.bad("text", "completions", "not a list of completions")
    scored: list[tuple[float, str]] = []
    for number, item in enumerate(completions):
        inner = Row(f"{row.source}, completion {number}", item if isinstance(item, dict) else {})
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


def _shp(row: Row) -> TextRecord:
    """history, human_ref_A, human_ref_B, labels (Stanford SHP): labels 1 prefers A, 0 prefers B."""
    sides = _assistant(row.string("human_ref_A")), _assistant(row.string("human_ref_B"))
    label = row.number("labels")
    if label not in (0, 1):
        raise row.bad("label", "labels", f"found {row.cells.get('labels')!r}; allowed: 0, 1")
    chosen, rejected = sides if label == 1 else sides[::-1]
    return _preference(row, _user(row.string("history")), chosen, rejected)


# --- single texts ----------------------------------------------------------------------------------------------------


def _demonstration(row: Row) -> TextRecord:
    """prompt, completion."""
    return _single(row, None)


def _unpaired(row: Row) -> TextRecord:
    """prompt, completion, label: whether the completion is desirable."""
    label = row.raw("label")
    if not isinstance(label, bool):
        raise row.bad("label", "label", f"found {label!r}; allowed: true, false")
    return _single(row, label)


def _single(row: Row, label: bool | None) -> TextRecord:
    prompt, completion = row.text("prompt", blank=True), row.reply("completion")
    if not isinstance(prompt, str) or not isinstance(completion, str):
        prompt = _prompt_turns(prompt)
        completion = _assistant(completion) if isinstance(completion, str) else completion
    weight = row.strength().get("weight", 1.0)
    return TextRecord(prompt, completion, label=label, weight=weight, template=row.template(), source=row.source)


def _instruction(row: Row) -> TextRecord | None:
    """instruction, input, output (Alpaca, kunishou/hh-rlhf-49k-ja); ng_translation 1 says that a row is no good."""
    if str(row.cells.get("ng_translation") or "0").strip().lower() in ("1", "1.0", "true"):
        return None
    given = row.string("input", blank=True).strip() if row.cells.get("input") is not None else ""
    prompt = row.string("instruction") + (f"\n\n{given}" if given else "")
    return TextRecord(_user(prompt), _assistant(row.string("output")), source=row.source)


def _conversation(column: str) -> Read:
    def read(row: Row) -> TextRecord:
        turns = row.turns(column)
        if not any(turn["role"] == "assistant" for turn in turns):
            raise row.bad("turns", column, "no turn of the assistant: there is nothing to learn")
        weight = row.strength().get("weight", 1.0)
        return TextRecord("", turns, weight=weight, template=row.template(), source=row.source)

    return read


def _text(row: Row) -> TextRecord:
    return TextRecord("", row.string("text"), weight=row.strength().get("weight", 1.0), source=row.source)


def _prompt(row: Row) -> TextRecord:
    return TextRecord(row.text("prompt"), "", template=row.template(), source=row.source)


FORMATS = (
    TextFormat("columns prompt, chosen, rejected", ("prompt", "chosen", "rejected"), _pair),
    TextFormat("columns conversations, chosen, rejected", ("conversations", "chosen", "rejected"), _pair_after_turns),
    TextFormat("columns chosen, rejected (the prompt is in both)", ("chosen", "rejected"), _implicit),
    TextFormat("columns prompt, completion, label", ("prompt", "completion", "label"), _unpaired),
    TextFormat("columns prompt, completion", ("prompt", "completion"), _demonstration),
    TextFormat("UltraFeedback's completions, best against worst", ("instruction", "completions"), _completions),
    TextFormat("SHP's two answers", ("history", "human_ref_A", "human_ref_B", "labels"), _shp),
    TextFormat("columns instruction, output", ("instruction", "output"), _instruction),
    TextFormat("column messages", ("messages",), _conversation("messages")),
    TextFormat("column conversations", ("conversations",), _conversation("conversations")),
    TextFormat("column text", ("text",), _text),
    TextFormat("prompts alone", ("prompt",), _prompt),
)
