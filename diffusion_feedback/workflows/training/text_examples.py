"""From a recipe to the examples of a run on texts: rows that fit the objective, as tokens."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...config.recipe import Recipe
from ...data.text_check import repeats_prompt
from ...data.texts import open_texts
from ...data.token_index import TokenIndex, unpair
from ...errors import UserError, plural
from ...likelihoods.tokenization import Tokenization
from ...records import TextRecord, content_hash
from ...types.texts import TokenExample
from .examples import check_apart, note_skipped, shares
from .given import Setup

Fit = Callable[[TextRecord], TextRecord | None]


def _pair(record: TextRecord) -> TextRecord:
    if record.rejected is None:
        has = "a label" if record.label is not None else "one completion"
        problem = f"{record.source}: has {has} and no rejected completion, and this objective compares two"
        raise UserError(problem, "give prompt, chosen and rejected; or use sft for completions, kto for labels")
    return record


def _demonstration(record: TextRecord) -> TextRecord | None:
    """The chosen completion; what is labelled as undesirable is nothing to imitate."""
    return None if record.label is False else replace(record, rejected=None, label=None, margin=0.0)


def _labelled(record: TextRecord) -> TextRecord:
    if record.rejected is None and record.label is None:
        problem = f"{record.source}: has neither a label nor a rejected completion"
        raise UserError(problem, "give prompt, completion and label (true or false), or pairs")
    return record


_FITS: Mapping[str, Fit] = {"pairs": _pair, "chosen": _demonstration, "labels": _labelled}


@dataclass(frozen=True, slots=True)
class TextData:
    """The examples of a run; ``heldout`` is None where the recipe names none. ``notes`` say what was left out.

    ``heldout_pairs`` are the held-out examples as pairs, where a run takes their sides apart and they were pairs.
    ``is_conversational``: the training examples are made of turns.
    """

    train: TokenIndex
    heldout: TokenIndex | None
    notes: Sequence[str]
    is_conversational: bool
    heldout_pairs: TokenIndex | None = None


def load_texts(setup: Setup, tokenization: Tokenization) -> TextData:
    """Read, fit to the objective and tokenise training and held-out texts.

    Held-out ties are dropped: they have no side to agree with. Raises UserError for bad rows, rows that do not fit the
    objective, and held-out examples that are training examples.
    """
    recipe, notes = setup.recipe, list[str]()
    examples, has_turns = _examples(setup, tokenization, notes, heldout=False)
    train = _index(setup, examples, notes, heldout=False)
    if setup.objective.learns_from == "labels" and len({example.label for example in train.examples}) == 1:
        word = "desirable" if train.examples[0].label else "undesirable"
        notes.append(f"note: every completion is {word}: nothing says what it is better or worse than")
    elif "kl" in setup.objective.inputs:
        notes += _kto_weights(recipe, train)
    if setup.data(heldout=True) is None:
        return TextData(train, None, notes, has_turns)
    examples, _ = _examples(setup, tokenization, notes, heldout=True)
    heldout = _index(setup, examples, notes, heldout=True)
    check_apart("examples", *([example.example_id for example in index.examples] for index in (train, heldout)))
    are_apart = examples[0].rejected is not None and heldout.examples[0].rejected is None
    return TextData(train, heldout, notes, has_turns, TokenIndex(examples) if are_apart else None)


def _kto_weights(recipe: Recipe, train: TokenIndex) -> list[str]:
    """KTO's authors: the desirable completions together should weigh 1 to 4/3 as much as the undesirable ones."""
    good = sum(example.label is True for example in train.examples)
    bad = len(train) - good
    weights = [float(recipe.objective.get(f"{name}_weight", 1.0)) for name in ("desirable", "undesirable")]
    ratio = weights[0] * good / (weights[1] * bad) if weights[1] else math.inf
    if 1 <= ratio <= 4 / 3:
        return []
    low, high = (share * weights[1] * bad / good for share in (1, 4 / 3))
    what = f"{good:,} desirable and {bad:,} undesirable completions, which weigh {ratio:.3g} to 1 together"
    return [f"note: {what}; 1 to 1.33 is advised: objective.desirable_weight {low:.3g} to {high:.3g}"]


def _examples(
    setup: Setup, tokenization: Tokenization, notes: list[str], *, heldout: bool
) -> tuple[list[TokenExample], bool]:
    """Examples of the rows that fit the objective, and whether they are conversations."""
    recipe, parts = setup.recipe, setup.parts(heldout=heldout)
    readers = [open_texts(part.place, **setup.reading(heldout=heldout)) for part in parts]
    fitting = [[_FITS[setup.objective.learns_from](record) for record in reader] for reader in readers]
    records = [[record for record in each if record is not None] for each in fitting]
    if limit := setup.limit(heldout=heldout):
        kept = {record.example_id for record in first_of([record for each in records for record in each], limit)}
        records = [[record for record in each if record.example_id in kept] for each in records]
    examples: list[TokenExample] = []
    for part, reader, own in zip(parts, readers, records, strict=True):
        tokens, unfit = encode(tokenization, own, skip=recipe.data.on_bad_row == "skip") if own else ([], [])
        examples += [replace(example, times=part.times) for example in tokens] if part.times != 1 else tokens
        note_skipped(reader.log.name, [reason for _, reason in reader.log.skipped] + unfit)
        odd = [*reader.notes, *_odd_texts(own, has_template=recipe.text.chat_template is not None)]
        notes += [f"note             {reader.log.name}: {note}" for note in odd]
    notes += [f"data             {line}" for line in shares(parts, [len(each) for each in records], "rows")]
    unlike = sum(record is None for each in fitting for record in each)
    _note_left_out({"labelled as undesirable": unlike}, notes, heldout=heldout)
    return examples, any(record.is_conversational for each in records for record in each[:1])


def _odd_texts(records: Sequence[TextRecord], *, has_template: bool) -> list[str]:
    """What a check of the data warns of and training goes on with."""
    notes = []
    if repeating := sum(map(repeats_prompt, records)):
        notes.append(
            f"{plural(repeating, 'completion begins with its', 'completions begin with their')} prompt once more: the model learns to repeat it"
        )
    turns = sum(record.is_conversational for record in records)
    if 0 < turns < len(records):
        notes.append(
            f"{turns:,} of {plural(len(records), 'example')} {'is a conversation' if turns == 1 else 'are conversations'}, the others plain texts"
        )
    if has_template and turns < len(records):
        notes.append(
            f"{plural(len(records) - turns, 'example is plain text and does', 'examples are plain texts, which do')} not go through text.chat_template"
        )
    return notes


def _index(setup: Setup, examples: Sequence[TokenExample], notes: list[str], *, heldout: bool) -> TokenIndex:
    ties = "drop" if heldout else setup.recipe.data.ties
    index = TokenIndex(unpair(examples) if setup.objective.learns_from == "labels" else examples, ties=ties)
    left_out = {
        "repeated": index.num_duplicates,
        "alike on both sides once cut": index.num_identical,
        "ties": index.num_ties if ties == "drop" else 0,
    }
    _note_left_out(left_out, notes, heldout=heldout)
    return index


def _note_left_out(left_out: Mapping[str, int], notes: list[str], *, heldout: bool) -> None:
    named = [f"{count:,} {reason}" for reason, count in left_out.items() if count]
    if named:
        notes.append(
            f"left out         of the examples {'held out' if heldout else 'for training'}: {', '.join(named)}"
        )


def encode(
    tokenization: Tokenization, records: Sequence[TextRecord], *, skip: bool
) -> tuple[list[TokenExample], list[str]]:
    """``records`` as tokens, and why rows were left out; without ``skip`` the first such row raises UserError."""
    kept = copy.copy(tokenization.counts)
    try:
        return tokenization.encode(records), []
    except UserError as error:
        tokenization.counts = kept
        if not skip:
            raise
        bad = _bad_rows(tokenization, records)
        tokenization.counts = copy.copy(kept)
        if len(bad) == len(records):
            raise UserError(f"all {len(records)} rows are bad; the first: {error.problem}", error.remedy) from error
        return tokenization.encode([record for i, record in enumerate(records) if i not in bad]), list(bad.values())


def _bad_rows(tokenization: Tokenization, records: Sequence[TextRecord], first: int = 0) -> dict[int, str]:
    """Numbers (counted from ``first``) and reasons of the records that cannot be encoded, found by halving."""
    try:
        tokenization.encode(records)
    except UserError as error:
        if len(records) == 1:
            return {first: error.problem}
        middle = len(records) // 2
        parts = ((records[:middle], first), (records[middle:], first + middle))
        return {number: why for part, start in parts for number, why in _bad_rows(tokenization, part, start).items()}
    return {}


def first_of(records: Sequence[TextRecord], number: int) -> list[TextRecord]:
    """All rows of the first ``number`` examples by content hash: a fixed random sample, whatever the order of rows."""
    hashes = [record.example_id for record in records]
    kept = set(sorted(set(hashes))[:number])
    return [record for record, name in zip(records, hashes, strict=True) if name in kept]


def examples_hash(examples: Sequence[TokenExample]) -> str:
    """Identity of the tokens and labels that a run learns from."""
    parts: list[bytes] = []
    for each in examples:
        sides = [side for side in (each.chosen, each.rejected) if side is not None]
        parts += [part for side in sides for part in (side.ids.tobytes(), side.scored.tobytes())]
        times = f" {each.times}" if each.times != 1 else ""
        strength = f"{each.label} {each.margin} {each.chosen_probability} {each.weight}{times}"
        parts.append(f"{each.example_id} {strength}".encode())
    return content_hash(*parts)
