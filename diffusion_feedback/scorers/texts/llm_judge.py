"""A language model as a judge of pairs: shown a prompt and two answers, it says which is better, A or B (arXiv:2306.05685)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ...documents import read_text
from ...errors import UserError, first_line
from ...foreign import apply_template
from ...records import Text, content_hash
from ...text_folders import positions_of
from ...weights import state_hash
from ..scorer import PRECISION
from .classification import check_tokens, load_judge_network, padded, whole_number
from .completion_scorer import check_equal_length

TEMPLATE = """Which of two answers to the request is better: more helpful, more truthful, and closer to what is asked?
The order of the answers and their length must not matter.

[Request]
{prompt}

[Answer A]
{first}

[Answer B]
{second}

Reply with one letter, A or B. The better answer is:"""
_ANSWERS = ("A", "B")
_FIELDS = ("prompt", "first", "second")
_FIELD = re.compile("{(" + "|".join(_FIELDS) + ")}")


@dataclass(frozen=True, slots=True)
class LanguageModelJudge:
    """Reads the log-probabilities of the replies A and B; ``template`` is the question."""

    name: str
    recipe_id: str
    model: Any
    tokenizer: Any
    template: str
    batch_size: int

    def judge(self, prompts: Sequence[Text], firsts: Sequence[Text], seconds: Sequence[Text]) -> list[float]:
        """p(A) / (p(A) + p(B)) for each prompt with the answers in this order, in [0, 1].

        Raises UserError for a question beyond the model's window: cut anywhere, it would be another question.
        """
        check_equal_length(prompts, firsts)
        check_equal_length(prompts, seconds)
        questions = [self._question(*row) for row in zip(prompts, firsts, seconds, strict=True)]
        preferences: list[float] = []
        for start in range(0, len(questions), self.batch_size):
            preferences += self._answer(questions[start : start + self.batch_size])
        return preferences

    def _question(self, prompt: Text, first: Text, second: Text) -> str:
        texts = {name: _plain(value) for name, value in zip(_FIELDS, (prompt, first, second), strict=True)}
        # Filled in at once: a prompt that speaks of {first} stays as it is.
        question = _FIELD.sub(lambda match: texts[match[1]], self.template)
        if not self.tokenizer.chat_template:
            return question
        turn = [{"role": "user", "content": question}]
        try:
            return str(apply_template(self.tokenizer, turn, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a stranger's template may fail in any way
            problem = f"llm={self.name}: its chat template refuses a question: {first_line(error)}"
            raise UserError(problem, "use another model, or correct its chat template") from error

    @torch.inference_mode()
    def _answer(self, questions: Sequence[str]) -> list[float]:
        is_chat = bool(self.tokenizer.chat_template)
        # A reply in plain text follows a space; the first token in which the two replies differ decides.
        replies = [question + ("" if is_chat else " ") + answer for question in questions for answer in _ANSWERS]
        rows = self.tokenizer(replies, add_special_tokens=not is_chat, verbose=False).input_ids
        shared = [_common(*rows[place : place + 2]) for place in range(0, len(rows), 2)]
        self._check_length(max(map(len, rows)))
        for row in rows:
            check_tokens(row, self.model, f"llm={self.name}")
        ids, mask = padded(rows)
        device = self.model.device
        logits = self.model(input_ids=ids.to(device), attention_mask=mask.long().to(device)).logits
        logps = torch.log_softmax(logits.float(), -1)[:, :-1].gather(2, ids[:, 1:, None].to(device)).squeeze(2).cpu()
        sums = [
            sum(float(logps[number, place - 1]) for place in range(shared[number // 2], len(row)))
            for number, row in enumerate(rows)
        ]
        favour = torch.tensor(sums, dtype=torch.float64)
        preferences: list[float] = torch.sigmoid(favour[0::2] - favour[1::2]).tolist()
        return preferences

    def _check_length(self, length: int) -> None:
        limit = positions_of(self.model.config)
        if length > limit:
            problem = f"llm={self.name}: a question of {length} tokens, its window holds {limit}"
            raise UserError(problem, "judge shorter texts, shorten the template, or use a model with a longer window")


def load(
    source: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    template: str = "",
    batch_size: str = "8",
) -> LanguageModelJudge:
    """The causal language model in the folder or under the hub id ``source``, as a judge.

    ``template`` is a file with the question, which holds {prompt}, {first} and {second} once or more each, and is
    answered by A or B; it goes through the model's chat template where there is one. Raises UserError for another file
    or model.
    """
    question = _read_question(template) if template else TEMPLATE
    what = "a language model that judges"
    model, tokenizer = load_judge_network(source, AutoModelForCausalLM, what, device, dtype)
    recipe = f"llm.1/question {content_hash(question)[:8]}/{PRECISION[dtype]}/{state_hash(model.state_dict())}"
    return LanguageModelJudge(source, recipe, model, tokenizer, question, whole_number("batch_size", batch_size))


def _read_question(path: str) -> str:
    if not Path(path).is_file():
        raise UserError(f"template={path}: no such file", "give a file with the question to the judge")
    text = read_text(Path(path), "give a file with the question to the judge").rstrip("\n")
    missing = [name for name in _FIELDS if "{" + name + "}" not in text]
    if missing:
        raise UserError(f"{path}: does not hold {{{missing[0]}}}", "show the judge {prompt}, {first} and {second}")
    return text


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences share from the start, at least one: the first has no log-probability."""
    pairs = zip(one, other, strict=False)
    shared = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    return max(shared, 1)


def _plain(text: Text) -> str:
    """A text, or the turns of a conversation as text."""
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return str(text[0]["content"])
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in text)
