"""What becomes of texts on their way to tokens, counted."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import plural


@dataclass(slots=True)
class TokenCounts:
    """What was done to the texts: of ``examples``, those whose prompt was cut at its beginning, whose prompt's last token
    went over to the completion, and that came with the beginning token; of all completions, those cut at their end, those
    given the tokenizer's end token, those that end by another stop token of their own, and those whose end-of-turn token
    was scored though the template does not count it in; answers that are not scored; pairs that are no longer different
    after the cut; and pairs whose token ids are another tokenizer's, which were made of their texts.
    """

    examples: int = 0
    cut_prompts: int = 0
    cut_completions: int = 0
    added_end_tokens: int = 0
    own_end_tokens: int = 0
    added_stop_tokens: int = 0
    cut_alike: int = 0
    moved_borders: int = 0
    doubled_begins: int = 0
    skipped_answers: int = 0
    other_token_ids: int = 0

    def notes(self) -> list[str]:
        """One line for each kind of change that should be known; none where nothing was lost."""
        said = {
            "cut_prompts": ("prompt was cut", "prompts were cut", " at the beginning to fit text.max_length"),
            "cut_completions": ("completion was cut", "completions were cut", " at the end, with no end token"),
            "added_stop_tokens": (
                "turn is",
                "turns are",
                " followed by a stop token that the template leaves out, and that is scored",
            ),
            "own_end_tokens": (
                "completion ends",
                "completions end",
                " by an own stop token, and got no end token behind it",
            ),
            "cut_alike": ("pair is", "pairs are", " no longer different after the cut"),
            "moved_borders": (
                "prompt ends",
                "prompts end",
                " inside a token that goes on in the completion: nobody who gives the prompt alone"
                " is where training was; let the prompt end before the space, and the completion begin with it",
            ),
            "doubled_begins": (
                "text",
                "texts",
                " came with the beginning token that the tokenizer puts there, and it was kept once",
            ),
            "skipped_answers": (
                "earlier answer is",
                "earlier answers are",
                " not scored: the chat template rewrites it once others follow;"
                " converting the data with `each_answer` makes a row of each answer",
            ),
            "other_token_ids": (
                "pair has",
                "pairs have",
                " token ids that do not spell the texts in this tokenizer: the texts count",
            ),
        }
        counts = [(getattr(self, name), words) for name, words in said.items()]
        return [plural(number, one, many) + rest for number, (one, many, rest) in counts if number]
