"""From a finished run to its model card."""

from __future__ import annotations

from ...config.recipe import Recipe, to_dict
from ...models.end_tokens import adds_end
from ...reports.cards.writer import CardKind, TokenizerFacts, write_card
from ...training.loop import Trainer
from ...types.models import TextModel


def write_run_card(kind: CardKind, trainer: Trainer, recipe: Recipe, **facts: object) -> None:
    """Write the model card of the run that ``trainer`` has ended, which marks it as complete; see ``write_card``."""
    folder = trainer.folder
    facts["effective_batch"] = trainer.effective_batch
    write_card(kind, folder.path, to_dict(recipe), folder.read_metrics(), **facts)


def tokenizer_facts(loaded: TextModel) -> TokenizerFacts:
    """What a card tells of the tokenizer of a language model or reward model."""
    tokenizer, is_stated = loaded.tokenizer, not getattr(loaded, "unsaid_end_token_ids", ())
    return TokenizerFacts(
        adds_end=adds_end(tokenizer),
        has_types="token_type_ids" in tokenizer("a"),
        pad_token=tokenizer.pad_token,
        end_token_ids=() if is_stated else getattr(loaded, "end_token_ids", ()),
    )
