"""How the texts of a run become tokens, and what there is to say of it."""

from __future__ import annotations

from ...config.recipe import Recipe
from ...errors import UserError
from ...likelihoods.conversations import read_template
from ...likelihoods.tokenization import Tokenization
from ...models.end_tokens import adds_end
from ...models.text_network import TokenModel
from ...reports.cards.writer import TokenizerFacts
from ...text_folders import NO_LIMIT, rows_of, unknown_tokens
from ...types.models import Tokenizer


def build_tokenization(recipe: Recipe, loaded: TokenModel, *, room_for: int | None = None) -> Tokenization:
    """How the recipe's texts become tokens, by its chat template where it has one.

    ``room_for``: tokens that a prompt leaves for a completion that is still to be drawn. Raises UserError for a length
    beyond the model's window, a prompt without room, and a template that cannot be read.
    """
    length = length_of(recipe, loaded)
    if room_for is not None and room_for >= length:
        problem = f"rollouts.max_new_tokens: {room_for} tokens leave no room for a prompt in {length}"
        raise UserError(problem, "lower it, or raise text.max_length up to the model's window")
    set_chat_template(recipe, loaded.tokenizer)
    return Tokenization(
        loaded.tokenizer,
        length,
        max_completion_length=recipe.text.max_completion_length if room_for is None else room_for,
        vocab_size=rows_of(loaded.library_model),
    )


def set_chat_template(recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Make the recipe's chat template, where it has one, the tokenizer's own: it is saved with the result.

    Raises UserError for a template that cannot be read.
    """
    if recipe.text.chat_template is not None:
        tokenizer.chat_template = read_template(recipe.text.chat_template)


def length_of(recipe: Recipe, loaded: TokenModel) -> int:
    """Longest example in tokens: the recipe's text.max_length, else as long as tokenizer and model both take.

    Raises UserError for a length beyond the model's window.
    """
    length, window = recipe.text.max_length, loaded.window
    if length is not None and length > window:
        raise UserError(f"text.max_length: got {length}", f"the model's window holds {window} tokens")
    return length or int(loaded.usual_length)


def describe_tokenizer(loaded: TokenModel) -> list[str]:
    """Lines on tokens that the model does not know, on a length that is the tokenizer's, and on what ends a completion."""
    tokenizer, model = loaded.tokenizer, loaded.library_model
    lines = []
    if unknown := unknown_tokens(tokenizer, model):
        first = ", ".join(map(repr, unknown[:3]))
        lines.append(
            f"{len(unknown)} tokens are beyond the model's embedding ({first}): texts that use them are refused"
        )
    if loaded.usual_length < loaded.window < NO_LIMIT:
        lines.append(
            f"texts are cut at {loaded.usual_length} tokens, as the tokenizer says (model_max_length); the model holds "
            f"{loaded.window}: set text.max_length for more"
        )
    if unsaid := getattr(loaded, "unsaid_end_token_ids", ()):
        words = ", ".join(repr(tokenizer.convert_ids_to_tokens(token)) for token in unsaid)
        lines.append(f"{words} ends a completion too, and is saved as an end token in generation_config.json")
    return [f"note             {line}" for line in lines]


def tokenizer_facts(loaded: TokenModel) -> TokenizerFacts:
    """What a card tells of the tokenizer of a language model or reward model."""
    tokenizer, is_stated = loaded.tokenizer, not getattr(loaded, "unsaid_end_token_ids", ())
    return TokenizerFacts(
        adds_end=adds_end(tokenizer),
        has_types="token_type_ids" in tokenizer("a"),
        pad_token=tokenizer.pad_token,
        end_token_ids=() if is_stated else getattr(loaded, "end_token_ids", ()),
    )
