"""Texts to tokens: borders, end tokens, masks, cuts, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_text
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from diffusion_feedback.errors import UserError
from diffusion_feedback.likelihoods.conversations import as_turns
from diffusion_feedback.likelihoods.tokenization import Tokenization, common_prefix
from diffusion_feedback.records import TextRecord
from diffusion_feedback.types.texts import TokenExample, TokenSequence

USER = {"role": "user", "content": "what is the colour?"}
RED, BLUE = ({"role": "assistant", "content": colour} for colour in ("red", "blue"))


def pair(prompt: Any = "the ", chosen: Any = "cat", rejected: Any = "dog", **more: Any) -> TextRecord:
    return TextRecord(prompt, chosen, rejected, source="pairs.jsonl, row 7", **more)


def one(tokenization: Tokenization, record: TextRecord) -> TokenExample:
    (example,) = tokenization.encode([record])
    return example


def words(tokenization: Tokenization, sequence: TokenSequence, *, scored: bool | None = None) -> list[str]:
    """The tokens of a sequence as they are spelt: all, the scored, or the others."""
    ids = sequence.ids if scored is None else sequence.ids[sequence.scored == scored]
    return [token.replace("Ġ", "_").replace("Ċ", "\n") for token in tokenization.tokenizer.convert_ids_to_tokens(ids)]


def plain(max_length: int = 64, *args: Any, **tokenizer: Any) -> Tokenization:
    return Tokenization(tiny_text.tokenizer(**tokenizer), max_length, *args)


def chat(template: str = tiny_text.CHATML, max_length: int = 128, **tokenizer: Any) -> Tokenization:
    return Tokenization(tiny_text.tokenizer(chat_template=template, **tokenizer), max_length)


def test_a_last_token_that_merges_belongs_to_the_completion() -> None:
    tokenization = plain()
    example = one(tokenization, pair(rejected="7"))
    assert example.rejected is not None
    assert words(tokenization, example.chosen) == ["<s>", "the", "_cat", "</s>"]
    assert words(tokenization, example.chosen, scored=True) == ["_cat", "</s>"]
    # "the " and "7" do not merge, and yet the border is that of the pair: the space is kept, and scored on both sides.
    assert words(tokenization, example.rejected, scored=True) == ["_", "7", "</s>"]
    assert (example.chosen.prompt_length, example.rejected.prompt_length) == (2, 2)


def drawn(tokenizer: Any, *words: tuple[str, ...]) -> Any:
    return tuple(tuple(tokenizer.convert_tokens_to_ids(each) for each in side) for side in words)


@pytest.mark.parametrize("prompt", ["the", ({"role": "user", "content": "the"},)])
def test_tokens_that_a_model_drew_are_kept(prompt: Any) -> None:
    """ " cat" is one token, and was drawn as four; of the two only the second came to its end."""
    tokenization = chat() if isinstance(prompt, tuple) else plain()
    ids = drawn(tokenization.tokenizer, ("Ġ", "c", "a", "t"), ("Ġdog", "</s>"))
    sides = (
        (" cat", " dog")
        if isinstance(prompt, str)
        else [({"role": "assistant", "content": w},) for w in (" cat", " dog")]
    )
    example = one(tokenization, pair(prompt, *sides, token_ids=ids))
    assert example.rejected is not None
    assert words(tokenization, example.chosen, scored=True) == ["_", "c", "a", "t"]
    assert words(tokenization, example.rejected, scored=True) == ["_dog", "</s>"]
    (start,) = tokenization.encode_prompts([prompt])
    assert start == example.chosen.ids[: example.chosen.prompt_length].tolist()
    assert tokenization.counts.added_end_tokens == tokenization.counts.other_token_ids == 0
    assert example.example_id == pair(prompt, *sides).example_id


def test_drawn_tokens_are_cut_like_others() -> None:
    tokenization = plain(6)
    ids = drawn(tokenization.tokenizer, ("Ġ", "c", "a", "t"), ("Ġdog", "</s>"))
    example = one(tokenization, pair("the dog and the", " cat", " dog", token_ids=ids))
    assert words(tokenization, example.chosen) == ["<s>", "_the", "_", "c", "a", "t"]
    assert words(tokenization, one(plain(64, 2), pair("the", " cat", " dog", token_ids=ids)).chosen, scored=True) == [
        "_",
        "c",
    ]


def test_token_ids_of_another_tokenizer_give_way_to_the_texts() -> None:
    tokenization = plain()
    right, other = (drawn(tokenization.tokenizer, (word, "</s>"), ("Ġdog", "</s>")) for word in ("Ġcat", "Ġmat"))
    for number, (ids, template) in enumerate([(other, {}), (right, {"tools": []}), ((right[0], ()), {})], start=1):
        example = one(tokenization, pair("the", " cat", " dog", token_ids=ids, template=template))
        assert words(tokenization, example.chosen, scored=True) == ["_cat", "</s>"]
        assert tokenization.counts.other_token_ids == number
    assert "3 pairs have token ids that do not spell the texts" in "".join(tokenization.counts.notes())


@settings(max_examples=60)
@given(prompt=st.text(max_size=30), chosen=st.text(min_size=1, max_size=30), rejected=st.text(min_size=1, max_size=30))
def test_no_character_is_lost_and_the_end_stands_once(prompt: str, chosen: str, rejected: str) -> None:
    if chosen == rejected:
        return
    tokenization = plain(4000, bos=False)
    example = one(tokenization, pair(prompt, chosen, rejected))
    assert example.rejected is not None
    for sequence, completion in ((example.chosen, chosen), (example.rejected, rejected)):
        assert sequence.ids[-1] == 1
        assert (sequence.ids == 1).sum() == 1
        assert tokenization.tokenizer.decode(sequence.ids[:-1]) == prompt + completion
        start = sequence.prompt_length
        assert not sequence.scored[:start].any()
        assert sequence.scored[max(1, start) :].all()
    np.testing.assert_array_equal(
        example.chosen.ids[: example.chosen.prompt_length], example.rejected.ids[: example.rejected.prompt_length]
    )


def test_a_plain_text_without_a_prompt_is_scored_from_its_first_predicted_token() -> None:
    with_beginning, without = plain(), plain(bos=False)
    text = TextRecord("", "the cat")
    assert words(with_beginning, one(with_beginning, text).chosen, scored=True) == ["the", "_cat", "</s>"]
    assert words(without, one(without, text).chosen, scored=True) == ["_cat", "</s>"]
    assert one(without, text).chosen.prompt_length == 0


def test_the_end_token_is_not_doubled() -> None:
    tokenization = plain()
    example = one(tokenization, pair(chosen="cat</s>", rejected="dog</s></s>"))
    assert example.rejected is not None
    assert words(tokenization, example.chosen) == ["<s>", "the", "_cat", "</s>"]
    assert words(tokenization, example.rejected)[-2:] == ["_dog", "</s>"]
    assert tokenization.counts.added_end_tokens == 0
    one(tokenization, pair())
    assert tokenization.counts.added_end_tokens == 2


def test_a_tokenizer_that_ends_texts_itself_does_not_end_prompts() -> None:
    tokenization = plain()
    tokenization.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert tokenization.tokenizer("the").input_ids == [0, 262, 1]
    example = one(tokenization, pair("the", " cat", " dog"))
    assert words(tokenization, example.chosen, scored=False) == ["<s>", "the"]
    assert words(tokenization, example.chosen, scored=True) == ["_cat", "</s>"]
    assert tokenization.encode_prompts(["the", "the</s>"]) == [[0, 262], [0, 262, 1]]


def test_an_end_token_that_pads_too_is_scored() -> None:
    tokenization = plain(pad_is_eos=True)
    assert words(tokenization, one(tokenization, pair()).chosen, scored=True) == ["_cat", "</s>"]


def test_a_tokenizer_without_padding_will_do() -> None:
    tokenization = plain(pad=False)
    examples = tokenization.encode([pair(), pair("a small green ", "square", "circle")])
    assert [len(example.chosen) for example in examples] == [4, 6]


def test_the_fields_of_a_record_go_along() -> None:
    record = pair(margin=0.5, chosen_probability=0.75, weight=2.0)
    example = one(plain(), record)
    assert (example.margin, example.chosen_probability, example.weight) == (0.5, 0.75, 2.0)
    assert example.example_id == record.example_id
    unpaired = one(plain(), TextRecord("the ", "cat", label=False))
    assert (unpaired.label, unpaired.rejected) == (False, None)


def test_many_rows_are_the_rows_one_by_one() -> None:
    records = [pair(prompt, " good", " bad") for prompt in tiny_text.sentences(1500)]
    together = plain().encode(records)
    for number in (0, 1023, 1024, 1499):
        alone = one(plain(), records[number])
        np.testing.assert_array_equal(together[number].chosen.ids, alone.chosen.ids)
    assert [example.example_id for example in together] == [record.example_id for record in records]


# Cuts ---------------------------------------------------------------------------------------------------------------


def test_prompts_are_cut_at_their_beginning_and_keep_the_beginning_token() -> None:
    tokenization = plain(6)
    example = one(tokenization, pair("a red circle on a blue", " mat", " dog ran away"))
    assert example.rejected is not None
    # Both sides see the same prompt: what the longer completion leaves.
    assert words(tokenization, example.rejected) == ["<s>", "_blue", "_dog", "_ran", "_away", "</s>"]
    assert words(tokenization, example.chosen) == ["<s>", "_blue", "_mat", "</s>"]
    counts = tokenization.counts
    assert (counts.examples, counts.cut_prompts, counts.cut_completions, counts.cut_alike) == (1, 1, 0, 0)


def test_completions_are_cut_at_their_end_and_lose_their_end_token() -> None:
    tokenization = plain(4)
    example = one(tokenization, pair("a red circle", " the cat sat on the mat", " dog"))
    assert example.rejected is not None
    assert words(tokenization, example.chosen) == ["<s>", "_the", "_cat", "_sat"]
    assert words(tokenization, example.chosen, scored=True) == ["_the", "_cat", "_sat"]
    assert words(tokenization, example.rejected) == ["<s>", "_dog", "</s>"]
    counts = tokenization.counts
    assert (counts.cut_prompts, counts.cut_completions) == (1, 1)
    assert counts.notes() == [
        "1 prompt was cut at the beginning to fit text.max_length",
        "1 completion was cut at the end, with no end token",
    ]


def test_completions_have_a_limit_of_their_own() -> None:
    tokenization = plain(64, 2)
    example = one(tokenization, pair("a red circle", " the cat sat", " dog"))
    assert words(tokenization, example.chosen, scored=True) == ["_the", "_cat"]
    assert example.rejected is not None
    assert words(tokenization, example.rejected, scored=True) == ["_dog", "</s>"]
    assert tokenization.counts.cut_prompts == 0


def test_without_a_beginning_token_one_token_of_the_prompt_is_left() -> None:
    tokenization = plain(3, bos=False)
    example = one(tokenization, pair("a red circle", " the cat sat", " dog"))
    assert words(tokenization, example.chosen) == ["_circle", "_the", "_cat"]


def test_pairs_that_the_cut_makes_alike_are_counted() -> None:
    tokenization = plain(64, 2)
    one(tokenization, pair("a", " the cat sat", " the cat ran"))
    assert tokenization.counts.cut_alike == 1


@settings(max_examples=60)
@given(
    prompt=st.text(alphabet="abc ", max_size=40),
    completions=st.lists(st.text(alphabet="abc ", min_size=1, max_size=40), min_size=2, max_size=2, unique=True),
    max_length=st.integers(2, 30),
    limit=st.none() | st.integers(1, 30),
    bos=st.booleans(),
)
def test_cuts_keep_to_the_limits_and_leave_something_to_score(
    prompt: str, completions: list[str], max_length: int, limit: int | None, bos: bool
) -> None:
    tokenization = Tokenization(tiny_text.tokenizer(bos=bos), max_length, limit)
    whole = one(plain(4000, bos=bos), pair(prompt, *completions))
    if limit == 1 and whole.chosen.prompt_length == 0:
        with pytest.raises(UserError, match="no token of a completion"):
            one(tokenization, pair(prompt, *completions))
        return
    example = one(tokenization, pair(prompt, *completions))
    for sequence, uncut in ((example.chosen, whole.chosen), (example.rejected, whole.rejected)):
        assert sequence is not None
        assert uncut is not None
        assert 1 <= len(sequence) <= max_length
        assert 1 <= sequence.num_scored <= (limit or max_length)
        assert sequence.prompt_length >= min(1, uncut.prompt_length)
        completion = sequence.ids[sequence.prompt_length :]
        np.testing.assert_array_equal(completion, uncut.ids[uncut.prompt_length :][: len(completion)])
        kept = sequence.ids[bos : sequence.prompt_length]
        np.testing.assert_array_equal(kept, uncut.ids[: uncut.prompt_length][uncut.prompt_length - len(kept) :])


# Conversations --------------------------------------------------------------------------------------------------------


def test_a_turn_is_scored_to_its_end_and_gets_no_end_token() -> None:
    tokenization = chat()
    example = one(tokenization, pair((USER,), (RED,), (BLUE,)))
    assert words(tokenization, example.chosen, scored=True) == ["re", "d", "<|im_end|>", "\n"]
    assert "".join(words(tokenization, example.chosen, scored=False)).endswith("<|im_end|>\n<|im_start|>assistant\n")
    text = tokenization.tokenizer.decode(example.chosen.ids)
    assert text == tokenization.tokenizer.apply_chat_template([USER, RED], tokenize=False)
    assert 1 not in example.chosen.ids.tolist()
    assert tokenization.counts.added_end_tokens == 0


def test_a_completion_of_several_turns_scores_the_assistant_alone() -> None:
    tokenization = chat()
    example = one(tokenization, TextRecord((USER,), (RED, USER, BLUE)))
    assert "".join(words(tokenization, example.chosen, scored=True)) == "red<|im_end|>\nblue<|im_end|>\n"


@pytest.mark.parametrize("template", [tiny_text.CHATML, tiny_text.CHATML_GENERATION])
def test_whole_conversations_score_what_the_assistant_says_and_its_stop_token(template: str) -> None:
    tokenization = chat(template)
    system = {"role": "system", "content": "hello"}
    example = one(tokenization, TextRecord("", (system, USER, RED, USER, BLUE)))
    scored = "".join(words(tokenization, example.chosen, scored=True))
    assert scored.replace("\n", "") == "red<|im_end|>blue<|im_end|>"
    first = int(example.chosen.scored.argmax())
    assert example.chosen.prompt_length == first
    assert tokenization.counts.added_stop_tokens == 0


def test_a_stop_token_that_the_template_leaves_out_is_scored() -> None:
    template = tiny_text.CHATML_GENERATION.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    tokenization = chat(template)
    example = one(tokenization, TextRecord("", (USER, RED, USER, BLUE)))
    assert "".join(words(tokenization, example.chosen, scored=True)) == "red<|im_end|>blue<|im_end|>"
    assert tokenization.counts.added_stop_tokens == 2
    assert "stop token" in tokenization.counts.notes()[0]


def test_an_end_of_turn_that_merges_with_the_next_turn_is_scored() -> None:
    """Without special tokens: the line's end is one token with the next line's beginning or not, and is kept."""
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    spelling = tiny_text.tokenizer(chat_template=template)
    from tokenizers import AddedToken

    spelling.add_tokens([AddedToken("\nuser:", normalized=False)])
    tokenization = Tokenization(spelling, 64)
    example = one(tokenization, TextRecord("", (USER, RED, USER, BLUE)))
    scored = words(tokenization, example.chosen, scored=True)
    assert scored.count("\nuser:") == 1
    assert scored[-1] == "\n"


def test_arguments_of_the_template_are_passed_on() -> None:
    tokenization = chat()
    record = pair((USER,), (RED,), (BLUE,), template={"tools": [{"name": "look"}], "opening": "well, "})
    text = tokenization.tokenizer.decode(one(tokenization, record).chosen.ids)
    assert text.startswith('<|im_start|>system\nTools: [{"name": "look"}]<|im_end|>')
    (prompt,) = tokenization.encode_prompts([(USER,)])
    assert tokenization.tokenizer.decode(prompt).endswith("assistant\n")


def test_a_turn_opened_with_words_that_the_whole_lacks_is_scored_from_where_they_part() -> None:
    tokenization = chat()
    example = one(tokenization, pair((USER,), (RED,), (BLUE,), template={"opening": "thinking"}))
    assert "".join(words(tokenization, example.chosen, scored=True)) == "red<|im_end|>\n"


def test_a_template_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(tiny_text.CHATML)
    tokenization = Tokenization(tiny_text.tokenizer(), 64, chat_template=file)
    assert "".join(words(tokenization, one(tokenization, pair((USER,), (RED,), (BLUE,))).chosen, scored=True)) == (
        "red<|im_end|>\n"
    )
    with pytest.raises(UserError, match="text.chat_template: .*absent"):
        Tokenization(tiny_text.tokenizer(), 64, chat_template=tmp_path / "absent")
    file.write_text(" \n")
    with pytest.raises(UserError, match=r"text.chat_template: .*chat.jinja is empty"):
        Tokenization(tiny_text.tokenizer(), 64, chat_template=file)


def test_a_template_that_drops_every_answer_that_is_not_last_is_refused() -> None:
    """Of a demonstration that ends with the user's words nothing would be left to score."""
    template = (
        "{% for turn in messages %}{% if turn.role == 'user' or loop.last %}{{ turn.content }}. {% endif %}{% endfor %}"
    )
    record = TextRecord((USER,), (RED, USER), source="row 1")
    with pytest.raises(UserError, match="row 1: the chat template renders the beginning"):
        chat(template).encode([record])


def test_sides_of_whole_conversations_have_prompts_of_their_own() -> None:
    tokenization = chat(max_length=16)
    other = {"role": "user", "content": "hello there, how are you today?"}
    example = one(tokenization, pair("", (USER, RED), (other, BLUE)))
    assert example.rejected is not None
    for sequence in (example.chosen, example.rejected):
        assert len(sequence) == 16
        assert words(tokenization, sequence, scored=True)[-2:] == ["<|im_end|>", "\n"]


# Prompts --------------------------------------------------------------------------------------------------------------


def test_prompts_are_ready_to_be_completed() -> None:
    tokenization = chat()
    texts, turns = "the cat", (USER,)
    plain_ids, chat_ids = tokenization.encode_prompts([texts, turns])
    assert plain_ids == [0, 262, 350]
    expected = tokenization.tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    assert tokenization.tokenizer.decode(chat_ids) == expected
    assert tokenization.encode_prompts([]) == []


def test_prompts_leave_room_for_the_completion() -> None:
    prompt = "a red circle on a blue"
    (whole,) = plain(64).encode_prompts([prompt])
    assert plain(5).encode_prompts([prompt]) == [[0, *whole[-3:]]]
    assert plain(5, 2).encode_prompts([prompt]) == [[0, *whole[-2:]]]


# What is refused ------------------------------------------------------------------------------------------------------

SAME = (RED,)
# Another text for an assistant's turn that is not the last.
SHOUTS_EARLIER = tiny_text.CHATML.replace(
    "{{ message['content'] }}",
    "{{ message['content'] | upper if message['role'] == 'assistant' and not loop.last else message['content'] }}",
)


@pytest.mark.parametrize(
    ("tokenization", "record", "said"),
    [
        (plain(), pair(chosen=""), "row 7: chosen is empty"),
        (plain(), pair(rejected=""), "row 7: rejected is empty"),
        (chat(), pair((USER,), ({"role": "assistant", "content": ""},), (RED,)), "row 7: chosen is empty"),
        (chat(), pair((USER,), (), (RED,)), "row 7: chosen is empty"),
        (plain(), pair(chosen="dog"), "row 7: chosen and rejected are the same"),
        (chat(), pair((USER,), SAME, SAME), "row 7: chosen and rejected are the same"),
        (plain(eos=False), pair(), "row 7: a plain text, and the tokenizer has no end token"),
        (plain(), pair((USER,), (RED,), (BLUE,)), "row 7: a conversation, and the tokenizer has no chat template"),
        (chat(tiny_text.DROPS_ASSISTANT), pair((USER,), (RED,), (BLUE,)), "row 7: the chat template leaves the assis"),
        (chat(tiny_text.COUNTS_TURNS), pair((USER,), (RED,), (BLUE,)), "row 7: the chat template renders the beginn"),
        (chat(tiny_text.COUNTS_TURNS), pair("", (USER, RED, USER, BLUE), (USER, RED)), "renders the beginning"),
        (
            chat(SHOUTS_EARLIER),
            pair("", (USER, RED, USER, BLUE), (USER, RED)),
            "row 7: the chat template renders the beg",
        ),
        (chat("{{ raise_exception('no system') }}"), pair((USER,), (RED,), (BLUE,)), "row 7: .* no system"),
        (chat(), pair((USER,), (USER,), (BLUE,)), "row 7: the assistant says nothing"),
        (chat(tiny_text.CHATML_GENERATION), TextRecord("", (USER,), source="row 7"), "row 7: the chat template marks"),
        (chat(), pair("text", (RED,), (BLUE,)), "row 7: the completion is a conversation"),
        (chat(), pair((USER,), "red", "blue"), "row 7: the prompt is a conversation"),
        (chat(), pair("text", "red", (BLUE,)), "row 7: one side is a text"),
        (chat(), pair((USER,), (RED,), (BLUE,), template={"tokenize": True}), "row 7: 'tokenize' cannot be"),
        (plain(bos=False), TextRecord("", "</s>", source="row 7"), "row 7: no token of a completion"),
        (Tokenization(tiny_text.tokenizer(), 64, vocab_size=300), pair(), "row 7: token 3.* is beyond the model's 300"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(tokenization: Tokenization, record: TextRecord, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        tokenization.encode([record])
    assert caught.value.remedy


def test_a_completion_that_the_tokenizer_swallows_is_refused() -> None:
    from tokenizers import normalizers

    tokenization = plain()
    tokenization.tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    with pytest.raises(UserError, match="row 7: a completion has no token"):
        one(tokenization, pair("the", "  ", " cat"))


@pytest.mark.parametrize(
    ("arguments", "said"), [((1,), "text.max_length: got 1"), ((9, 0), "max_completion_length: got 0")]
)
def test_limits_without_room_are_refused(arguments: tuple[int, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Tokenization(tiny_text.tokenizer(), *arguments)


def test_common_prefix() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([1, 2], [1, 2, 4]) == 2
    assert common_prefix([], [1]) == 0


def test_texts_as_turns() -> None:
    turns = (USER, RED)
    assert as_turns(["hello", turns]) == [({"role": "user", "content": "hello"},), turns]
