"""Parts of a run on texts: whose completion a held-out prompt is mismatched with."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_feedback.data.token_index import TokenIndex
from diffusion_feedback.types.texts import TokenExample, TokenSequence
from diffusion_feedback.workflows.training.token_batches import MismatchedCompletions


def labelled(prompt: int, completion: int) -> TokenExample:
    ids = np.array([prompt, completion], np.int32)
    sequence = TokenSequence(ids, np.array([False, True]), 1)
    return TokenExample(f"{prompt}-{completion}", sequence, label=completion % 2 == 0)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_prompt_meets_a_completion_of_another_in_passes_of_any_size(size: int) -> None:
    """Two completions of each prompt stand side by side, so that the next example is often the same prompt's."""
    prompts = [1, 1, 2, 3, 3, 3, 1]
    index = TokenIndex([labelled(prompt, 10 * place + prompt) for place, prompt in enumerate(prompts)])
    owner = {int(each.chosen.ids[1]): int(each.chosen.ids[0]) for each in index.examples}
    found: list[tuple[int, int]] = []
    for start in range(0, len(index), size):
        batch = MismatchedCompletions(index).batch(range(start, min(start + size, len(index))), 0)
        found += [(int(each.ids[0]), int(each.ids[1])) for each in batch.mismatched]
    assert all(owner[completion] != prompt for prompt, completion in found)
    assert found == [
        (int(each.ids[0]), int(each.ids[1]))
        for each in MismatchedCompletions(index).batch(range(len(index)), 0).mismatched
    ]


def test_where_all_prompts_are_one_it_is_the_next_completion() -> None:
    index = TokenIndex([labelled(1, completion) for completion in (4, 5, 6)])
    assert list(MismatchedCompletions(index).partners) == [1, 2, 0]
