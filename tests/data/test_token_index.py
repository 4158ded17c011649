"""The index of token examples: one order whatever the files', merged rows, and batches."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion_feedback.data.token_index import TokenIndex, unpair
from diffusion_feedback.errors import UserError
from diffusion_feedback.records import TextRecord
from diffusion_feedback.types.texts import TokenExample, TokenSequence


def sequence(prompt: list[int], completion: list[int]) -> TokenSequence:
    ids = np.array(prompt + completion, np.int32)
    scored = np.arange(len(ids)) >= max(len(prompt), 1)
    return TokenSequence(ids, scored, len(prompt))


def pair(prompt: int, chosen: list[int], rejected: list[int], **more: Any) -> TokenExample:
    name = TextRecord(str(prompt), str(chosen), str(rejected)).example_id
    return TokenExample(name, sequence([1, prompt], chosen), sequence([1, prompt], rejected), **more)


def labelled(prompt: int, completion: list[int], label: bool | None, **more: Any) -> TokenExample:
    name = TextRecord(str(prompt), str(completion)).example_id
    return TokenExample(name, sequence([1, prompt], completion), label=label, **more)


def ids(found: Any) -> list[list[int]]:
    return [one.ids.tolist() for one in found]


def test_order_of_files_does_not_matter() -> None:
    examples = [pair(number, [10 + number], [20 + number]) for number in range(9)]
    index = TokenIndex(examples)
    names = [example.example_id for example in index.examples]
    assert names == sorted(example.example_id for example in examples)
    random.Random(1).shuffle(examples)
    again = TokenIndex(examples)
    assert [example.example_id for example in again.examples] == names
    assert again.labels_hash() == index.labels_hash()
    assert len(index) == 9
    assert [example.example_id for example in index.head(4).examples] == names[:4]
    assert TokenIndex(examples[1:]).labels_hash() != index.labels_hash()
    heavier = [*examples[1:], pair(99, [1], [2], weight=0.5)]
    assert TokenIndex(heavier).labels_hash() != TokenIndex([*examples[1:], pair(99, [1], [2])]).labels_hash()


def test_batch_of_pairs() -> None:
    examples = [pair(5, [7, 8], [9], margin=1.5, weight=0.25, chosen_probability=0.75), pair(6, [7], [9, 9, 9])]
    index = TokenIndex(examples)
    order = [index.examples.index(example) for example in examples]
    batch = index.batch(order, draw=3)
    assert batch.example_ids == [example.example_id for example in examples]
    assert ids(batch.chosen) == [[1, 5, 7, 8], [1, 6, 7]]
    assert ids(batch.rejected) == [[1, 5, 9], [1, 6, 9, 9, 9]]
    for name, values in (("margin", [1.5, 0.0]), ("weight", [0.25, 1.0]), ("chosen_probability", [0.75, 1.0])):
        found = getattr(batch, name)
        assert found.dtype == torch.float32
        assert found.tolist() == values
    assert (len(batch), batch.draw) == (2, 3)


def test_single_completions_have_an_empty_rejected() -> None:
    index = TokenIndex([labelled(5, [7], None), labelled(6, [7], None)])
    batch = index.batch([0, 1], draw=0)
    assert (len(batch), list(batch.rejected)) == (2, [])
    with pytest.raises(UserError, match="no column 'label'"):
        index.unpaired([0], [1], 0)


@pytest.mark.parametrize("turned", [False, True])
def test_repeated_and_contradicting_rows_are_merged(turned: bool) -> None:
    rows = [
        pair(5, [7], [8], margin=3.0, weight=0.5),
        pair(5, [7], [8], margin=1.0, weight=2.0),
        pair(5, [8], [7], margin=1.0),  # against the two before
        pair(6, [7], [8], margin=0.5),
        pair(6, [8], [7], margin=0.5),  # one against one
    ]
    index = TokenIndex(rows[::-1] if turned else rows)
    (merged,) = index.examples
    assert merged.example_id == rows[0].example_id
    assert (ids([merged.chosen]), merged.weight) == ([[1, 5, 7]], 2.0)
    assert merged.chosen_probability == pytest.approx(2 / 3)
    assert merged.margin == 1.0  # (3 + 1 - 1) / 3
    assert (index.num_duplicates, index.num_contradicting, index.num_ties, index.num_identical) == (3, 2, 1, 0)
    soft = TokenIndex(rows[::-1] if turned else rows, ties="soft")
    assert [example.chosen_probability for example in soft.examples if example.chosen.ids[1] == 6] == [0.5]
    assert soft.labels_hash() == TokenIndex(rows, ties="soft").labels_hash()


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.sampled_from([0.5, 0.75, 1.0])), min_size=1, max_size=8))
def test_merging_against_votes_counted_by_hand(rows: list[tuple[int, bool, float]]) -> None:
    examples = [
        pair(number, *([[7], [8]] if first else [[8], [7]]), chosen_probability=share) for number, first, share in rows
    ]
    expected: dict[int, float] = {}
    for number in {number for number, _, _ in rows}:
        shares = [share if first else 1 - share for other, first, share in rows if other == number]
        expected[number] = sum(shares) / len(shares)
    wanted = {number: share for number, share in expected.items() if share != 0.5}
    if not wanted:
        with pytest.raises(UserError, match="0 usable examples"):
            TokenIndex(examples)
        return
    found = {int(example.chosen.ids[1]): example for example in TokenIndex(examples).examples}
    assert found.keys() == wanted.keys()
    for number, share in wanted.items():
        assert int(found[number].chosen.ids[-1]) == (7 if share > 0.5 else 8)
        assert found[number].chosen_probability == max(share, 1 - share)


def test_labels_are_decided_by_the_majority() -> None:
    rows = [labelled(5, [7], label) for label in (True, False, False)]
    rows += [labelled(6, [7], label) for label in (True, False)] + [labelled(7, [7], True)]
    index = TokenIndex(rows)
    assert {int(example.chosen.ids[1]): example.label for example in index.examples} == {5: False, 7: True}
    assert (index.num_contradicting, index.num_ties) == (2, 1)


def test_sides_with_the_same_tokens_are_left_out() -> None:
    index = TokenIndex([pair(5, [7], [8]), TokenExample("cut", sequence([1], [7]), sequence([1], [7]))])
    assert [example.example_id for example in index.examples] == [pair(5, [7], [8]).example_id]
    assert index.num_identical == 1


def test_mismatched_completions() -> None:
    rows = [labelled(5, [7, 8, 9], True, weight=0.5), labelled(6, [4], False)]
    index = TokenIndex(rows)
    order = [index.examples.index(row) for row in rows]
    batch = index.unpaired(order, order[::-1], draw=2)
    assert ids(batch.samples) == [[1, 5, 7, 8, 9], [1, 6, 4]]
    assert ids(batch.mismatched) == [[1, 5, 4], [1, 6, 7, 8, 9]]
    assert [one.scored.tolist() for one in batch.mismatched] == [[False, False, True], [False, False, True, True, True]]
    assert [one.prompt_length for one in batch.mismatched] == [2, 2]
    assert (batch.desirable.tolist(), batch.weight.tolist(), batch.draw) == ([True, False], [0.5, 1.0], 2)


def test_mismatched_completions_are_no_longer_than_the_longest_example() -> None:
    long = TokenExample("a", sequence([1, 2, 3, 4, 5, 6], [7]), label=True)
    index = TokenIndex([long, TokenExample("b", sequence([1], [7, 8, 9]), label=False)])
    (found,) = index.unpaired([0], [1], 0).mismatched
    assert found.ids.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert found.num_scored == 1


def test_pairs_as_labelled_completions() -> None:
    found = unpair([pair(5, [7], [8], weight=0.5), labelled(6, [7], True)])
    assert [(one.chosen.ids.tolist(), one.label, one.weight) for one in found] == [
        ([1, 5, 7], True, 0.5), ([1, 5, 8], False, 0.5), ([1, 6, 7], True, 1.0),
    ]  # fmt: skip
    assert len({one.example_id for one in found}) == 3
    assert len(TokenIndex(found)) == 3


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "0 usable examples"),
        ([pair(5, [7], [8]), labelled(5, [7], None)], "1 of 2 examples are pairs"),
        ([labelled(5, [7], True), labelled(6, [7], None)], "1 of 2 examples have a label"),
        ([pair(5, [7], [8], chosen_probability=0.5)], r"all 1 are ties[\s\S]*data.ties: soft"),
    ],
)
def test_data_that_cannot_be_used(rows: list[TokenExample], says: str) -> None:
    with pytest.raises(UserError, match=says):
        TokenIndex(rows)
