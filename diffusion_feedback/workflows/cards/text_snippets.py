"""The lines of Python by which model cards of texts show how a result is used: what stands there runs as it stands."""

from __future__ import annotations

from pathlib import Path

from ...models.end_tokens import adds_end
from ...types import GenerativeTextModel, TextModel
from .model import literal, location

_LOAD = """{imports}

model = {auto}.from_pretrained({folder}{labels}){more}
tokenizer = AutoTokenizer.from_pretrained({folder})
"""
_CHAT_PROMPT = """turns = [{"role": "user", "content": "your prompt"}]
inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
"""
_CHAT_PAIR = """turns = [{"role": "user", "content": "your prompt"}, {"role": "assistant", "content": "a completion"}]
others = [*turns[:1], {"role": "assistant", "content": "another, longer completion"}]
"""


def _load(folder: Path, auto: str, *, more: str = "") -> str:
    """How the result in ``folder`` is loaded by the auto class ``auto``; ``more`` are lines that follow."""
    is_adapter = (folder / "adapter_config.json").is_file()
    peft = f"AutoPeftModelFor{auto}"
    imports = (
        f"from peft import {peft}\nfrom transformers import AutoTokenizer"
        if is_adapter
        else f"from transformers import AutoModelFor{auto}, AutoTokenizer"
    )
    labels = ", num_labels=1" if is_adapter and auto == "SequenceClassification" else ""
    return _LOAD.format(
        imports=imports,
        auto=peft if is_adapter else f"AutoModelFor{auto}",
        folder=literal(location(str(folder))),
        labels=labels,
        more=more,
    )


def writing(folder: Path, loaded: GenerativeTextModel, *, is_chat: bool, how: str) -> str:
    """How the language model in ``folder`` completes a prompt; ``how`` are arguments of ``generate``."""
    tokenizer = loaded.tokenizer
    if is_chat:
        prompt = _CHAT_PROMPT
    else:
        arguments = ", return_token_type_ids=False" if "token_type_ids" in tokenizer("a") else ""
        prompt = f'inputs = tokenizer("your prompt", return_tensors="pt"{arguments})\n'
        if adds_end(tokenizer):
            prompt += (
                "inputs = {name: part[:, :-1] for name, part in inputs.items()}  # no end token behind the prompt\n"
            )
    ends = ""
    if (folder / "adapter_config.json").is_file() and loaded.unsaid_end_token_ids:
        ends = f", eos_token_id={list(loaded.end_token_ids)}"  # the generation settings are those of the base there
    return (
        _load(folder, "CausalLM")
        + prompt
        + f"output = model.generate(**inputs, {how}{ends})\n"
        + "print(tokenizer.decode(output[0]))"
    )


def judging(folder: Path, loaded: TextModel, *, is_chat: bool) -> str:
    """How the reward model in ``folder`` scores two completions, read where it was trained to be read."""
    tokenizer = loaded.tokenizer
    more = ".eval()"
    padded = ', padding=True, padding_side="right"' if tokenizer.pad_token_id is not None else ""
    lines = _load(folder, "SequenceClassification", more=more)
    if padded and (folder / "adapter_config.json").is_file():
        lines += "model.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # no end of a text\n"
    if is_chat:
        both = "[turns, others]" if padded else "[turns]"
        how = padded.removeprefix(", padding=True") and ', tokenizer_kwargs={"padding_side": "right"}'
        lines += _CHAT_PAIR
        lines += (
            f'inputs = tokenizer.apply_chat_template({both}, return_dict=True, return_tensors="pt"'
            f"{', padding=True' if padded else ''}{how})\n"
        )
    else:
        end = "" if adds_end(tokenizer) else " + tokenizer.eos_token"
        texts = ['"your prompt and a completion"' + end, '"your prompt and another, longer completion"' + end]
        lines += f"texts = [{', '.join(texts if padded else texts[:1])}]\n"
        types = ", return_token_type_ids=False" if "token_type_ids" in tokenizer("a") else ""
        lines += f'inputs = tokenizer(texts, return_tensors="pt"{padded}{types})\n'
    return "import torch\n" + lines + "with torch.no_grad():\n    scores = model(**inputs).logits[:, 0]"


def prompt_ids(*, is_chat: bool) -> str:
    """The token ids of a prompt, as an expression of ``model.tokenizer``."""
    if not is_chat:
        return '[model.tokenizer("your prompt")["input_ids"]]'
    turns = '[{"role": "user", "content": "your prompt"}]'
    return f"[model.tokenizer.apply_chat_template({turns}, add_generation_prompt=True, return_dict=False)]"
