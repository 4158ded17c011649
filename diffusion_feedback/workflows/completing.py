"""A language model and its settings to completions, for the commands that draw them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..generation import Completion
    from ..records import Text

_MODEL_FILES = ("model_index.json", "config.json", "adapter_config.json")
# Weights of images; those of texts have names of their own.
_SINGLE_FILE = re.compile(r"(?!model|pytorch_model|adapter_model).+\.(safetensors|ckpt)")
COMPLETION_FLAGS: Mapping[str, Any] = {
    "num_samples": 1,
    "max_new_tokens": 64,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "chat_template": None,
    "as_turns": False,
}


@dataclass(frozen=True, slots=True)
class Drawing:
    """How completions are drawn; ``top_k`` 0 and ``top_p`` 1 leave all tokens in, ``temperature`` 0 takes the likeliest."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Writer:
    """A loaded language model that turns prompts and seeds to completions; ``chat_template`` is a file."""

    model: Any
    drawing: Drawing
    chat_template: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What a file of completions records besides prompts, seeds and the hash of the model."""
        from ..likelihoods.conversations import read_template

        drawing = {name: getattr(self.drawing, name) for name in Drawing.__slots__}
        template = {"chat_template": read_template(self.chat_template)} if self.chat_template else {}
        return {**drawing, **template, "dtype": str(self.model.network.model.dtype).removeprefix("torch.")}

    def encode(self, prompts: Sequence[Text]) -> list[list[int]]:
        """Token ids of ``prompts``, cut at their beginning where they leave no room for a completion."""
        from ..likelihoods.tokenization import Tokenization

        most = self.drawing.max_new_tokens
        return Tokenization(self.model.tokenizer, self.model.window, most, self.chat_template).encode_prompts(prompts)

    def notes(self, prompts: Sequence[Text]) -> list[str]:
        """What should be known of ``prompts`` before they are completed, in plain words."""
        from ..errors import visible
        from ..likelihoods.prompt_ends import open_ended
        from ..likelihoods.tokenization import Tokenization

        tokenizer, most = self.model.tokenizer, self.drawing.max_new_tokens
        tokenization = Tokenization(tokenizer, self.model.window, most, self.chat_template)
        tokenization.encode_prompts(prompts)
        notes = [*plain_note(prompts, tokenizer, "--as_turns, or "), *tokenization.counts.notes()]
        if ends := open_ended(tokenizer, prompts):
            words = f"{len(ends):,} prompts end inside what may be one token (the first: {visible(ends[0][-20:])!r})"
            notes.append(f"{words}: a model that learnt it whole cannot write its rest; leave a last space out")
        return notes

    def __call__(self, prompts: Sequence[Text], seeds: Sequence[int]) -> list[Completion]:
        """One completion of each prompt, under its own seed."""
        from ..generation import Completion

        settings = {name: getattr(self.drawing, name) for name in Drawing.__slots__}
        drawn = self.model.sample(self.model.network, self.encode(prompts), seeds, **settings)
        ends = self.model.end_token_ids
        return [Completion(self.decode(ids), tuple(ids), bool(ids) and ids[-1] in ends) for ids in drawn]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a completion, without its end token and other special ones."""
        text: str = self.model.tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def add_completion_flags(parser: argparse._ActionsContainer) -> None:
    """The flags that say how completions are drawn. They have no defaults here, so that a model of images refuses them."""
    add = parser.add_argument
    add("--num_samples", "--num-samples", type=int, help="completions of each prompt under each seed (default 1)")
    add("--max_new_tokens", "--max-new-tokens", type=int, help="longest completion, in tokens (default 64)")
    add("--temperature", type=float, help="sampling temperature; 0 takes the likeliest token (default 1)")
    add("--top_k", "--top-k", type=int, help="draw from so many of the likeliest tokens; 0 for all (default 0)")
    add("--top_p", "--top-p", type=float, help="draw from the likeliest tokens of this share; 1 for all (default 1)")
    add(
        "--chat_template",
        "--chat-template",
        metavar="FILE",
        help="a Jinja chat template, in place of the tokenizer's own; plain prompts become the user's turn",
    )
    add(
        "--as_turns",
        "--as-turns",
        action="store_const",
        const=True,
        help="plain prompts become the user's turn of the chat template, as a chat model needs them",
    )


def given_completion_flags(arguments: argparse.Namespace) -> list[str]:
    """The names of the flags of ``add_completion_flags`` that were given."""
    return [name for name in COMPLETION_FLAGS if getattr(arguments, name) is not None]


def fill_completion_flags(arguments: argparse.Namespace) -> None:
    """Put defaults in the place of flags that were not given. Raises UserError for values out of range."""
    from ..errors import UserError

    for name, default in COMPLETION_FLAGS.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    for name, least in (("num_samples", 1), ("max_new_tokens", 1), ("top_k", 0)):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name}: got {getattr(arguments, name)}", f"allowed: {least} or more")
    if not 0 <= arguments.temperature < float("inf"):
        raise UserError(f"--temperature: got {arguments.temperature}", "allowed: 0 or more")
    if not 0 < arguments.top_p <= 1:
        raise UserError(f"--top_p: got {arguments.top_p}", "allowed: above 0, up to 1")


def drawing_of(arguments: argparse.Namespace) -> Drawing:
    """How ``arguments`` say that completions are drawn."""
    return Drawing(arguments.max_new_tokens, arguments.temperature, arguments.top_k, arguments.top_p)


def load_writer(
    path: str,
    drawing: Drawing,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
    chat_template: str | None = None,
) -> Writer:
    """Load the language model at ``path``; ``chat_template`` is a file. Raises UserError where it cannot be used."""
    import torch

    from ..devices import find_device
    from ..errors import UserError
    from ..models import causal_lm

    place = find_device(device) if device else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = causal_lm.load(path, revision=revision, dtype=getattr(torch, dtype), device=place)
    if drawing.max_new_tokens >= model.window:
        problem = (
            f"{drawing.max_new_tokens} new tokens leave no room for a prompt in the model's window of {model.window}"
        )
        raise UserError(problem, "draw fewer tokens")
    return Writer(model, drawing, chat_template)


def read_text_prompts(path: str, *, in_turns: bool = False) -> list[Text]:
    """The different prompts of a file of prompts, or of texts in any of the formats that are trained on.

    ``in_turns``: plain ones become the user's turn. Prints what was left aside.
    """
    from ..data.texts import open_prompts
    from ..likelihoods.conversations import as_turns

    prompts = open_prompts(path, say=print)
    return as_turns(prompts) if in_turns else prompts


def wants_turns(arguments: argparse.Namespace) -> bool:
    """Whether plain prompts are to go through a chat template."""
    return bool(arguments.as_turns or arguments.chat_template)


def plain_note(prompts: Sequence[Text], tokenizer: Any, remedy: str) -> list[str]:
    """The line on plain prompts for a model that may know conversations alone; none where there are none."""
    plain = sum(isinstance(prompt, str) for prompt in prompts)
    if not plain or not tokenizer.chat_template:
        return []
    what = f"{plain:,} prompts are plain texts, and go to the model as they are though it has a chat template"
    return [f'{what}: a chat model needs {remedy}turns ({{"prompt": [{{"role": "user", "content": ...}}]}})']


def is_language_model(model: str, family: str | None = None) -> bool:
    """Whether ``model`` writes texts: by its ``family`` where that is given, else by the files of its folder.

    Raises UserError for a path without a model.
    """
    from ..catalog import family_row
    from ..errors import UserError

    if family:
        return family_row(family).reads_text
    folder = Path(model)
    is_path = folder.exists() or model.count("/") > 1 or model.startswith((".", "/", "~"))
    is_model = any((folder / name).is_file() for name in _MODEL_FILES)
    if not is_model and any(
        _SINGLE_FILE.fullmatch(file.name) for file in (folder, *folder.glob("*")) if file.is_file()
    ):
        return False  # a single file or a LoRA: the loader of pipelines says what to do with it
    if is_path and not is_model:
        what = "no such folder" if not folder.exists() else f"holds none of {', '.join(_MODEL_FILES)}"
        raise UserError(
            f"{model}: {what}", "give the folder or hub id of a model; the folder of a finished dfb train is one"
        )
    if (folder / "model_index.json").is_file():
        return False
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
