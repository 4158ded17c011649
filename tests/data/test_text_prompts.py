"""Implicit prompts: what two whole texts share, cut where a reader would cut."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from diffusion_feedback.data.implicit_prompts import split_texts, split_turns, unescape_dialogue

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # man, woman and girl, joined to one picture
CASES = {
    ("The sky is blue.", "The sky is black."): ("The sky is", " blue.", " black."),
    ("Apple pie ", "Banana split"): ("", "Apple pie ", "Banana split"),
    ("The sky is", "The sky is blue"): ("The sky", " is", " is blue"),
    ("The sky is ", "The sky is blue"): ("The sky", " is ", " is blue"),
    ("same", "same"): ("", "same", "same"),
    ("", "x"): ("", "", "x"),
    ("Say: Yes", "Say: No"): ("Say:", " Yes", " No"),
    ("Say:Yes", "Say:No"): ("Say:", "Yes", "No"),
    ("Line\nfoo", "Line\nbar"): ("Line\n", "foo", "bar"),
    ("a\r\nb", "a\rb"): ("a", "\r\nb", "\rb"),
    ("It costs 3.14", "It costs 3.15"): ("It costs", " 3.14", " 3.15"),
    ("I don't go", "I don"): ("I", " don't go", " don"),
    ("日本語は楽しい", "日本語は難しい"): ("日本語は", "楽しい", "難しい"),
    ("caf e\u0301", "caf e\u0300"): ("caf", " e\u0301", " e\u0300"),
    (f"we {FAMILY}", f"we {FAMILY[:3]}"): ("we", f" {FAMILY}", f" {FAMILY[:3]}"),
    ("\n\nHuman: a\n\nAssistant: b c", "\n\nHuman: a\n\nAssistant: b d"): (
        "\n\nHuman: a\n\nAssistant:", " b c", " b d",
    ),
    ("Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: e"): (
        "Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", " d", " e",
    ),
    # The two part in a question of the human: what follows the last common answer mark is the completion.
    ("Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "Human: a\n\nAssistant: b\n\nHuman: x\n\nAssistant: d"): (
        "Human: a\n\nAssistant:", " b\n\nHuman: c\n\nAssistant: d", " b\n\nHuman: x\n\nAssistant: d",
    ),
    # No human speaks: the mark is part of a text like any other.
    ("The\n\nAssistant: is an old book", "The\n\nAssistant: is an old film"): (
        "The\n\nAssistant: is an old", " book", " film",
    ),
}  # fmt: skip


@pytest.mark.parametrize("texts", CASES)
def test_where_texts_are_cut(texts: tuple[str, str]) -> None:
    prompt, chosen, rejected = CASES[texts]
    assert split_texts(*texts) == (prompt, chosen, rejected)
    assert split_texts(*texts[::-1]) == (prompt, rejected, chosen)


ALPHABET = st.sampled_from("ab \n.'日\u0301\u200d\U0001f600\r") | st.characters(exclude_categories=("Cs",))
TEXT = st.text(ALPHABET, max_size=12)


@given(TEXT, TEXT, TEXT)
@example("", "Apple pie ", "Banana split")
def test_prompt_and_completion_are_the_text_again(shared: str, first: str, second: str) -> None:
    one, other = shared + first, shared + second
    prompt, chosen, rejected = split_texts(one, other)
    assert (prompt + chosen, prompt + rejected) == (one, other)
    for text, completion in ((one, chosen), (other, rejected)):
        assert bool(completion.strip()) == bool(text.strip())
        # No word of ASCII letters is parted, and no accent from its letter.
        if prompt and completion:
            assert not (prompt[-1] in "ab" and completion[0] in "ab")
            assert not unicodedata.combining(completion[0])


@given(
    st.lists(st.sampled_from(["the", "cat", "sat"]), max_size=6),
    st.text("xyz ", min_size=1),
    st.text("uvw ", min_size=1),
)
def test_all_shared_words_are_in_the_prompt(words: list[str], first: str, second: str) -> None:
    """Completions that begin with another word each: the prompt ends just before, without the space between."""
    shared = " ".join(words)
    one, other = shared + " x" + first, shared + " u" + second
    assert split_texts(one, other)[0] == shared


TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.sampled_from("ab")})


@given(st.lists(TURN, max_size=4), st.lists(TURN, min_size=1, max_size=3), st.lists(TURN, min_size=1, max_size=3))
def test_common_leading_turns(
    shared: list[dict[str, str]], first: list[dict[str, str]], second: list[dict[str, str]]
) -> None:
    prompt, chosen, rejected = split_turns(shared + first, shared + second)
    assert [*prompt, *chosen] == shared + first
    assert [*prompt, *rejected] == shared + second
    assert chosen
    assert rejected
    assert len(prompt) >= len(shared)
    # No longer prompt would do: the next turns differ, or one of the sides would be left with none.
    assert chosen[0] != rejected[0] or 1 in (len(chosen), len(rejected))


def test_breaks_that_were_written_out() -> None:
    assert unescape_dialogue(r"\n\n人間: a\n \nAssistant: b\nc") == "\n\n人間: a\n\nAssistant: b\nc"
    assert unescape_dialogue(r"\n\nHuman: a\n\nAssistant: b") == "\n\nHuman: a\n\nAssistant: b"
    for text in (r"print('\n\n')", "\n\nHuman: say \\n", ""):
        assert unescape_dialogue(text) == text


def test_as_trl_where_trl_is_right() -> None:
    from trl.data_utils import extract_prompt

    ask, rule = {"role": "user", "content": "Hi"}, {"role": "system", "content": "Be short."}
    answers = [{"role": "assistant", "content": text} for text in ("Hello", "Go away")]
    conversations = [[rule, ask, answer] for answer in answers]
    found = extract_prompt(dict(zip(("chosen", "rejected"), conversations, strict=True)))
    assert [list(part) for part in split_turns(*conversations)] == [
        found[name] for name in ("prompt", "chosen", "rejected")
    ]
    texts = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    found = extract_prompt(texts)
    assert split_texts(*texts.values()) == (found["prompt"], found["chosen"], found["rejected"])
