"""Every scorer x every damage of its weights, configuration, tokenizer and preprocessing: one clear error, and no code runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_imagereward
import torch
from safetensors.torch import load_file, save_file
from tiny_clip import Landmine, pictures, save_clip, save_open_clip
from torch import nn

from diffusion_feedback.errors import UserError
from diffusion_feedback.scorers import hub_files
from diffusion_feedback.scorers.checkpoints import read_checkpoint
from diffusion_feedback.scorers.loading import load_scorers

Harm = Callable[[Path], None]


# --- whole scorers, small --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder with the files of every scorer."""
    root = tmp_path_factory.mktemp("whole")
    save_clip(root / "clip")
    save_open_clip(root / "hps")
    (root / "imagereward").mkdir()
    tiny_imagereward.save(root / "imagereward")
    (root / "heads").mkdir()
    torch.save(nn.Linear(24, 1).state_dict(), root / "heads" / "v1.pth")
    widths = (24, 1024, 128, 64, 16, 1)
    layers = zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False)
    state = {f"layers.{place}": nn.Linear(inside, outside) for place, inside, outside in layers}
    torch.save(
        {f"{name}.{k}": v for name, layer in state.items() for k, v in layer.state_dict().items()},
        root / "heads" / "v2.pth",
    )
    return root


# Where the weights of each scorer lie, and how it is asked for.
SCORERS = {
    "pickscore": ("clip/model.safetensors", "pickscore={root}/clip"),
    "clip_score": ("clip/model.safetensors", "clip_score={root}/clip"),
    "hessel": ("clip/model.safetensors", "clip_score={root}/clip,form=hessel"),
    "hpsv2": ("hps/HPS_v2.1_compressed.pt", "hpsv2={root}/hps,architecture=local-dir:{root}/hps"),
    "diffusion_dpo": (
        "hps/HPS_v2.1_compressed.pt",
        "clip_score={root}/hps/HPS_v2.1_compressed.pt,form=diffusion_dpo,architecture=local-dir:{root}/hps",
    ),
    "imagereward": ("imagereward/ImageReward.pt", "imagereward={root}/imagereward"),
    "aesthetic": ("heads/v2.pth", "aesthetic={root}/heads/v2.pth,clip={root}/clip"),
    "aesthetic v1": ("heads/v1.pth", "aesthetic={root}/heads/v1.pth,clip={root}/clip"),
    "aesthetic's clip": ("clip/model.safetensors", "aesthetic={root}/heads/v2.pth,clip={root}/clip"),
}


def copy_of(whole: Path, target: Path) -> Path:
    return shutil.copytree(whole, target / "copy")


def load(root: Path, name: str) -> None:
    load_scorers([SCORERS[name][1].format(root=root)])


def refused(root: Path, name: str, path: Path) -> str:
    """The message; it names the file or its folder and what to do, and does not advise to switch a protection off."""
    with pytest.raises(UserError) as error:
        load(root, name)
    assert str(path) in error.value.problem or str(path.parent) in error.value.problem
    assert error.value.remedy
    assert "weights_only" not in str(error.value)
    assert len(error.value.problem.splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize("name", SCORERS)
def test_whole_scorers_load(whole: Path, name: str) -> None:
    [scorer] = load_scorers([SCORERS[name][1].format(root=whole)])
    assert scorer.score(pictures(), ["a cat"] * 5).isfinite().all()


# --- weights ---------------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    state = load_file(path) if path.suffix == ".safetensors" else read_checkpoint(path)
    return {name: value.clone() for name, value in state.items()}  # the file is mapped, and will be replaced


def write(state: Any, path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path, {"format": "pt"})
    else:
        torch.save(state, path)


def changed(change: Callable[[dict[str, Any]], object]) -> Harm:
    def apply(path: Path) -> None:
        state = read(path)
        change(state)
        write(state, path)

    return apply


def first(state: dict[str, Any]) -> str:
    return next(name for name, value in state.items() if value.ndim and value.is_floating_point() and "vis" not in name)


def into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")


WEIGHTS: dict[str, Harm] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b"") and None,
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]) and None,
    "a web page": lambda path: path.write_text("<!DOCTYPE html><html>Not found</html>") and None,
    "an LFS pointer": lambda path: path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:12ab\nsize 3944692325\n"
    ) and None,
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 40) and None,
    "another zip": zipped,
    "a folder": into_folder,
    "a tensor less": changed(lambda state: state.pop(first(state))),
    "a tensor more": changed(lambda state: state.update(extra=torch.ones(2))),
    "another shape": changed(lambda state: state.update({first(state): torch.ones(3, 5)})),
    "integers": changed(lambda state: state.update({first(state): torch.ones_like(state[first(state)]).int()})),
}  # fmt: skip


@pytest.mark.parametrize("harm", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("name", SCORERS)
def test_damaged_weights_are_named(whole: Path, tmp_path: Path, name: str, harm: Harm) -> None:
    root = copy_of(whole, tmp_path)
    path = root / SCORERS[name][0]
    harm(path)
    refused(root, name, path)


@pytest.mark.parametrize("kind", ["torch", "old torch", "pickle 2", "pickle 5", "module", "list", "number"])
@pytest.mark.parametrize("name", SCORERS)
def test_pickles_are_refused_and_no_code_runs(whole: Path, tmp_path: Path, name: str, kind: str) -> None:
    root = copy_of(whole, tmp_path)
    path = root / SCORERS[name][0]
    if path.suffix == ".safetensors":  # transformers reads this where there is no .safetensors
        path.unlink()
        path = path.with_name("pytorch_model.bin")
    trap = {"weight": torch.ones(2), "extra": Landmine(tmp_path / "exploded")}
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps(trap, protocol=int(kind[-1])))
    else:
        content = {"module": nn.Linear(2, 2), "list": [torch.ones(2)], "number": 3.0}.get(kind, trap)
        torch.save(content, path, _use_new_zipfile_serialization=kind != "old torch")
    refused(root, name, path)
    assert not (tmp_path / "exploded").exists()


# --- configuration, tokenizer, preprocessing -------------------------------------------------------------------------


def text(content: str | bytes) -> Harm:
    def apply(path: Path) -> None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return apply


def setting(*place: str, value: Any) -> Harm:
    def apply(path: Path) -> None:
        config = json.loads(path.read_text())
        part = config
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = value
        path.write_text(json.dumps(config))

    return apply


DAMAGED_TEXT: dict[str, Harm] = {
    "empty": text(""),
    "open": text("{"),
    "a list": text("[]"),
    "a number": text("7"),
    "null": text("null"),
    "a web page": text("<!DOCTYPE html>"),
    "binary": text(bytes(range(256))),
    "utf-16": text("{}".encode("utf-16")),
    "deep": text("[" * 100_000),
}
CONFIG: dict[str, Harm] = {
    "missing": lambda path: path.unlink(),
    "another model": setting("model_type", value="siglip"),
    "code of its own": setting("model_type", value="evil"),
    "text_config null": setting("text_config", "vocab_size", value=None),
    "vision_config a list": setting("vision_config", value=[]),
    "sizes as words": setting("vision_config", "hidden_size", value="wide"),
    "negative": setting("text_config", "num_hidden_layers", value=-1),
    "no heads": setting("text_config", "num_attention_heads", value=0),
    "enormous": setting("text_config", "hidden_size", value=2**62),
    "fraction": setting("text_config", "vocab_size", value=190.5),
    "other width": setting("projection_dim", value=8),
    "more layers": setting("vision_config", "num_hidden_layers", value=3),
    "unknown activation": setting("text_config", "hidden_act", value="no_such_act"),
    "other end": setting("text_config", "eos_token_id", value=5),
    "oblong": setting("vision_config", "image_size", value=[32, 48]),
}


@pytest.mark.parametrize("harm", [*DAMAGED_TEXT.values(), *CONFIG.values()], ids=[*DAMAGED_TEXT, *CONFIG])
@pytest.mark.parametrize("name", ["pickscore", "aesthetic"])
def test_damaged_configurations_are_named(whole: Path, tmp_path: Path, name: str, harm: Harm) -> None:
    root = copy_of(whole, tmp_path)
    harm(root / "clip/config.json")
    refused(root, name, root / "clip/config.json")


@pytest.mark.parametrize("harm", DAMAGED_TEXT.values(), ids=DAMAGED_TEXT)
@pytest.mark.parametrize("file", ["clip/tokenizer.json", "clip/preprocessor_config.json", "clip/tokenizer_config.json"])
def test_damaged_companions_are_named(whole: Path, tmp_path: Path, file: str, harm: Harm) -> None:
    root = copy_of(whole, tmp_path)
    harm(root / file)
    refused(root, "pickscore", root / file)


TOKENIZERS: dict[str, Harm] = {
    "another kind": text(
        json.dumps({"version": "1.0", "model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}})
    ),
    "no model": text('{"version": "1.0"}'),
    "negative ids": lambda path: path.write_text(path.read_text().replace('"A": 32', '"A": -1')) and None,
    "larger ids": lambda path: path.write_text(path.read_text().replace('"A": 32', '"A": 9999')) and None,
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("harm", TOKENIZERS.values(), ids=TOKENIZERS)
def test_foreign_tokenizers_are_named(whole: Path, tmp_path: Path, harm: Harm) -> None:
    root = copy_of(whole, tmp_path)
    harm(root / "clip/tokenizer.json")
    refused(root, "pickscore", root / "clip/tokenizer.json")


@pytest.mark.parametrize("harm", DAMAGED_TEXT.values(), ids=DAMAGED_TEXT)
@pytest.mark.parametrize("name", ["hpsv2", "diffusion_dpo"])
def test_damaged_architectures_are_named(whole: Path, tmp_path: Path, name: str, harm: Harm) -> None:
    root = copy_of(whole, tmp_path)
    harm(root / "hps/open_clip_config.json")
    refused(root, name, root / "hps/open_clip_config.json")


VOCABULARIES: dict[str, Harm] = {
    "empty": text(""),
    "binary": text(bytes(range(256))),
    "a word less": lambda path: path.write_text("\n".join(path.read_text().splitlines()[:-1])) and None,
    "a word more": lambda path: path.write_text(path.read_text() + "\nmore\n") and None,
    "a web page": text("<!DOCTYPE html>\n<html>"),
}


@pytest.mark.parametrize("harm", VOCABULARIES.values(), ids=VOCABULARIES)
def test_damaged_vocabularies_are_named(whole: Path, tmp_path: Path, harm: Harm) -> None:
    root = copy_of(whole, tmp_path)
    harm(root / "imagereward/vocab.txt")
    refused(root, "imagereward", root / "imagereward/vocab.txt")


# --- code ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_code_that_a_folder_brings_does_not_run(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """It is not even asked for: the folder is read as what it says it is."""
    root = copy_of(whole, tmp_path)
    trace = tmp_path / "exploded"
    (root / "clip/evil.py").write_text(f"import os\nos.mkdir({str(trace)!r})\nclass Evil: pass\n")
    for key, value in {"auto_map": dict.fromkeys(("AutoModel", "AutoConfig", "AutoTokenizer"), "evil.Evil")}.items():
        setting(key, value=value)(root / "clip" / file)
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")
    monkeypatch.chdir(root / "clip")
    load(root, "pickscore")
    assert not trace.exists()


@pytest.mark.parametrize("name", ["pickscore", "clip_score", "imagereward", "hpsv2"])
def test_a_network_that_fails_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whatever kind its error is."""

    class Odd(Exception):
        pass

    def fails(*arguments: object, **settings: object) -> None:
        raise Odd("certificate of the proxy")

    monkeypatch.setattr(hub_files, "hf_hub_download", fails)
    with pytest.raises(UserError, match=r"cannot be had from the hub \(certificate of the proxy\)\n.*give"):
        load_scorers([f"{name}=some-owner/some-model"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", SCORERS)
def test_files_that_may_not_be_read_are_named(whole: Path, tmp_path: Path, name: str) -> None:
    root = copy_of(whole, tmp_path)
    path = root / SCORERS[name][0]
    path.chmod(0)
    refused(root, name, path)
