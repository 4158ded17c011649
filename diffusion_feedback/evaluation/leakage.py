"""Whether a model has seen what it is measured on: prompts that it was trained on, and judges that made its labels."""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..records import Text

_BYTES = 6  # of each hash: two of a million prompts share one by chance once in five hundred times
_WEIGHTS = re.compile(r"[0-9a-f]{4,}")
_SHOWN = 20


def prompt_text(prompt: Text) -> str:
    """A prompt as one text: of a conversation, its turns line by line."""
    return prompt if isinstance(prompt, str) else "\n".join(str(turn["content"]) for turn in prompt)


def prompt_key(prompt: Text) -> bytes:
    """Six bytes of the hash of ``prompt``, however its letters are cased and spaced and whatever stops it."""
    normal = " ".join(unicodedata.normalize("NFKC", prompt_text(prompt)).casefold().split()).rstrip(" .,;:!?")
    return hashlib.sha256(normal.encode("utf-8", "surrogatepass")).digest()[:_BYTES]


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """What a model was trained on: ``prompts`` by their keys, and ``judges``, by name their recipe id, "" where unknown."""

    prompts: frozenset[bytes] = frozenset()
    judges: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, prompts: Iterable[Text], judges: Mapping[str, str]) -> TrainedOn:
        """What a run learns from; a prompt that is empty says nothing."""
        return cls(frozenset(prompt_key(prompt) for prompt in prompts if prompt), judges)

    def __or__(self, other: TrainedOn) -> TrainedOn:
        return TrainedOn(self.prompts | other.prompts, {**self.judges, **other.judges})

    def to_json(self) -> dict[str, object]:
        """In a few bytes a prompt: the keys in base64, sorted, one after the other."""
        keys = base64.b64encode(b"".join(sorted(self.prompts))).decode()
        return {"num_prompts": len(self.prompts), "prompts": keys, "labelled_by": dict(self.judges)}

    @classmethod
    def of_json(cls, content: object) -> TrainedOn:
        """Raises ValueError, KeyError, TypeError or AttributeError for what ``to_json`` does not give."""
        if not isinstance(content, dict):
            raise TypeError(f"{type(content).__name__}, not an object")
        keys = base64.b64decode(content["prompts"], validate=True)
        parts = frozenset(keys[start : start + _BYTES] for start in range(0, len(keys), _BYTES))
        if len(keys) % _BYTES or len(parts) != content["num_prompts"]:
            raise ValueError(f"{len(parts)} prompts, not {content['num_prompts']}")
        return cls(parts, {str(name): str(recipe) for name, recipe in content["labelled_by"].items()})


@dataclass(frozen=True, slots=True)
class Leakage:
    """What a model has seen of its measurement: the places of the ``prompts`` that it was trained on, and the ``judges`` that
    labelled what it was trained on. None where nobody knows.
    """

    prompts: tuple[int, ...] | None = None
    judges: tuple[str, ...] | None = None

    @property
    def is_clean(self) -> bool:
        """Whether nothing speaks against the measurement, as far as is known."""
        return not self.prompts and not self.judges

    def to_json(self, prompts: Sequence[Text]) -> dict[str, object]:
        """As it stands in results.json; null is unknown."""
        places = self.prompts
        return {
            "num_prompts_trained_on": None if places is None else len(places),
            "prompts_trained_on": None
            if places is None
            else [prompt_text(prompts[place]) for place in places[:_SHOWN]],
            "places_trained_on": None if places is None else list(places),
            "judges_that_labelled": None if self.judges is None else list(self.judges),
        }

    @classmethod
    def of_json(cls, content: object) -> Leakage:
        """What ``to_json`` wrote; of anything else nothing is known."""
        if not isinstance(content, Mapping):
            return cls()
        places, judges = content.get("places_trained_on"), content.get("judges_that_labelled")
        return cls(
            tuple(map(int, places)) if isinstance(places, list) else None,
            tuple(map(str, judges)) if isinstance(judges, list) else None,
        )


def find_leakage(trained: TrainedOn | None, prompts: Sequence[Text], judges: Mapping[str, str]) -> Leakage:
    """What a model that was ``trained`` so has seen of ``prompts`` under ``judges``, by name their recipe id."""
    if trained is None:
        return Leakage()
    places = tuple(place for place, prompt in enumerate(prompts) if prompt_key(prompt) in trained.prompts)
    return Leakage(
        places, tuple(name for name, recipe in judges.items() if _has_labelled(name, recipe, trained.judges))
    )


def _has_labelled(name: str, recipe: str, known: Mapping[str, str]) -> bool:
    """Whether a judge is one of those ``known``: of the same name, whatever its precision, unless its weights are others."""
    if name not in known:
        return bool(recipe) and recipe in known.values()
    weights = [each.rpartition("/")[2] for each in (recipe, known[name])]
    return not all(_WEIGHTS.fullmatch(each) for each in weights) or weights[0] == weights[1]
