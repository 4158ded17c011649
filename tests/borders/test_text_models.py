"""Whatever people bring as a model of texts: damaged, foreign, quantised, pickled or with code of its own, it is one message."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_text
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from diffusion_feedback import text_folders
from diffusion_feedback.errors import UserError
from diffusion_feedback.models import causal_lm, reward_model
from diffusion_feedback.scorers.texts import llm_judge
from diffusion_feedback.scorers.texts.loading import load_text_scorer

Damage = Callable[[Path], None]

LOADERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "causal_lm": ("lm", causal_lm.load),
    "tokenizer": ("lm", text_folders.load_tokenizer),
    "reward_model": ("reward", reward_model.load),
    "adapter": ("adapter", causal_lm.load),
    "reward_adapter": ("reward_adapter", reward_model.load),
    "reward_judge": ("reward", lambda path: load_text_scorer(f"reward_model={path}")),
    "reward_adapter_judge": ("reward_adapter", lambda path: load_text_scorer(f"reward_model={path}")),
    "classifier": ("classifier", lambda path: load_text_scorer(f"classifier={path},label=POSITIVE")),
    "llm_judge": ("lm", llm_judge.load),
    "llm_adapter_judge": ("adapter", llm_judge.load),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One whole folder of each kind. Read only."""
    root = tmp_path_factory.mktemp("whole")
    tiny_text.save_tiny_lm(root / "lm")
    tiny_text.save_tiny_reward_model(root / "reward")
    tiny_text.save_tiny_reward_model(root / "classifier")
    config = json.loads((root / "classifier" / "config.json").read_text())
    config |= {"id2label": {"0": "NEGATIVE", "1": "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}
    (root / "classifier" / "config.json").write_text(json.dumps(config))
    change_weights(
        root / "classifier", lambda state: state.update({"score.weight": state["score.weight"].repeat(2, 1)})
    )
    for name, auto, task in (
        ("adapter", AutoModelForCausalLM, "CAUSAL_LM"),
        ("reward_adapter", AutoModelForSequenceClassification, "SEQ_CLS"),
    ):
        settings = LoraConfig(r=2, target_modules=["q_proj"], task_type=task)
        more = {"num_labels": 1} if task == "SEQ_CLS" else {}
        get_peft_model(auto.from_pretrained(root / "lm", **more), settings).save_pretrained(root / name)
        tiny_text.tokenizer(chat_template=tiny_text.CHATML).save_pretrained(root / name)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing here may be requested from the hub."""
    asked: list[Any] = []

    def refuse(*where: Any, **_: Any) -> None:
        asked.append(where)
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert asked == []


def weights_of(folder: Path) -> Path:
    return next(path for path in folder.iterdir() if path.suffix == ".safetensors")


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = weights_of(folder)
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def change_json(name: str, **changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / config_name(folder, name)
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def config_name(folder: Path, name: str) -> str:
    """An adapter's own configuration in the place of config.json."""
    return "adapter_config.json" if name == "config.json" and not (folder / name).exists() else name


def write(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / config_name(folder, name)).write_bytes(content) and None


class Payload:
    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (Path("payload-ran"),)


def pickled(folder: Path) -> None:
    path = weights_of(folder)
    path.unlink()
    name = "adapter_model.bin" if path.name.startswith("adapter") else "pytorch_model.bin"
    (folder / name).write_bytes(pickle.dumps({"weight": Payload()}))


def gone(folder: Path) -> None:
    shutil.rmtree(folder)


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("weights")


def emptied(folder: Path) -> None:
    gone(folder)
    folder.mkdir()


def truncated(folder: Path) -> None:
    path = weights_of(folder)
    path.write_bytes(path.read_bytes()[:-100])


def a_pipeline(folder: Path) -> None:
    emptied(folder)
    (folder / "model_index.json").write_text("{}")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def lost_tensor(folder: Path) -> None:
    change_weights(folder, lambda state: state.pop(sorted(state)[0]))


def reshaped(folder: Path) -> None:
    change_weights(folder, lambda state: state.update({name: value[:1].clone() for name, value in state.items()}))


MODELS = frozenset(LOADERS) - {"tokenizer"}
PLAIN = frozenset({"causal_lm", "reward_model", "reward_judge", "classifier", "llm_judge"})
ADAPTERS = MODELS - PLAIN
ALL = frozenset(LOADERS)
CODE = {"AutoConfig": "modeling_x.Config", "AutoModelForCausalLM": "modeling_x.Model",
        "AutoModelForSequenceClassification": "modeling_x.Model"}  # fmt: skip


def with_code(folder: Path) -> None:
    change_json("config.json", auto_map=CODE, model_type="their_own")(folder)
    (folder / "modeling_x.py").write_text("raise SystemExit('code of the folder ran')")


def tokenizer_with_code(folder: Path) -> None:
    changes = {"auto_map": {"AutoTokenizer": ["tokenization_x.T", None]}, "tokenizer_class": "Their"}
    change_json("tokenizer_config.json", **changes)(folder)
    (folder / "tokenization_x.py").write_text("raise SystemExit('code of the folder ran')")


# What is done to a folder, whom it concerns, and what the message says of it.
DAMAGES: dict[str, tuple[Damage, frozenset[str], str]] = {
    "gone": (gone, ALL, "no such folder"),
    "a_file": (a_file, ALL, "a file, and not"),
    "emptied": (emptied, ALL, "has no config.json|holds no tokenizer"),
    "a_pipeline": (a_pipeline, MODELS, "is a diffusers pipeline"),
    "config_no_json": (write("config.json", b"{"), MODELS, "could not be read"),
    "config_a_list": (write("config.json", b"[1]"), MODELS, "could not be read"),
    "config_of_bytes": (write("config.json", b"\xff\xfe\x00"), MODELS, "could not be read"),
    "config_empty": (write("config.json", b"{}"), MODELS, "could not be read|names no base"),
    "config_deep": (write("config.json", b"[" * 100_000), MODELS, "could not be read"),
    "unknown_architecture": (change_json("config.json", model_type="nothing_known"), PLAIN, "could not be read"),
    "width_a_word": (change_json("config.json", hidden_size="wide"), PLAIN, "could not be read"),
    "width_negative": (change_json("config.json", hidden_size=-8), PLAIN, "could not be read"),
    "width_huge": (change_json("config.json", hidden_size=10**400), PLAIN, "could not be read"),
    "other_width": (change_json("config.json", hidden_size=64), PLAIN, "have other shapes than its config"),
    "truncated": (truncated, MODELS, "could not be read"),
    "noise": (lambda folder: weights_of(folder).write_bytes(b"\x07" * 999) and None, MODELS, "could not be read"),
    "no_bytes": (lambda folder: weights_of(folder).write_bytes(b"") and None, MODELS, "could not be read"),
    "no_weights": (lambda folder: weights_of(folder).unlink(), MODELS, "could not be read|weights are not there"),
    "pickled": (pickled, MODELS, "is a pickle with more in it than tensors"),
    "lost_tensor": (lost_tensor, MODELS, "weights"),
    "reshaped": (reshaped, MODELS, "could not be read"),
    "bitsandbytes": (
        change_json("config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        PLAIN,
        "quantised .bitsandbytes, 4 bit",
    ),
    "gptq": (
        change_json("config.json", quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128}),
        PLAIN,
        "quantised .gptq, 4 bit",
    ),
    "awq": (
        change_json("config.json", quantization_config={"quant_method": "awq", "bits": 4}), PLAIN, "quantised .awq, 4 bit",
    ),
    "unknown_quantisation": (
        change_json("config.json", quantization_config={"quant_method": "new"}), PLAIN, "quantised .new",
    ),
    "code": (with_code, PLAIN, "code of its own"),
    "tokenizer_code": (tokenizer_with_code, ALL, "code of its own"),
    "no_tokenizer": (no_tokenizer, ALL, "holds no tokenizer"),
    "tokenizer_no_json": (write("tokenizer.json", b"{]"), ALL, "could not be read as a tokenizer"),
    "tokenizer_other_json": (write("tokenizer.json", b'{"a": 1}'), ALL, "could not be read as a tokenizer"),
    "tokenizer_a_list": (write("tokenizer_config.json", b"[]"), ALL, "could not be read as a tokenizer"),
    "base_elsewhere": (
        change_json("config.json", base_model_name_or_path="runs/nowhere/else/at all"), ADAPTERS, "runs/nowhere",
    ),
    "base_unnamed": (change_json("config.json", base_model_name_or_path=None), ADAPTERS, "names no base"),
    "other_peft": (change_json("config.json", peft_type="NO_SUCH_WAY"), ADAPTERS, "could not be read"),
    "no_such_target": (change_json("config.json", target_modules=["nothing"]), ADAPTERS, "could not be read"),
    "rank_a_word": (change_json("config.json", r="many"), ADAPTERS, "could not be read"),
}  # fmt: skip

CELLS = [(loader, damage) for damage, (_, loaders, _) in DAMAGES.items() for loader in sorted(loaders)]


@pytest.mark.parametrize(("loader", "damage"), CELLS, ids=lambda value: value)
def test_a_damaged_folder_is_one_message(
    loader: str, damage: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kind, load = LOADERS[loader]
    harm, _, words = DAMAGES[damage]
    folder = tmp_path / "given"
    shutil.copytree(folders[kind], folder)
    harm(folder)
    with pytest.raises(UserError, match=words) as caught:
        load(str(folder))
    assert str(folder) in caught.value.problem
    assert caught.value.remedy
    assert not (tmp_path / "payload-ran").exists()


@pytest.mark.parametrize("loader", LOADERS)
def test_a_whole_folder_loads(loader: str, folders: dict[str, Path]) -> None:
    kind, load = LOADERS[loader]
    assert load(str(folders[kind])) is not None


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    "name", ["runs/mistyped", "./mistyped", "../mistyped", "~/no/such/model", "a/b/c", "mistyped.gguf"]
)
def test_a_local_path_that_is_not_there_is_never_asked_of_the_hub(
    loader: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        LOADERS[loader][1](name)
