"""What a folder of results holds, as plain values: equal on one machine bit for bit, near one another elsewhere."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor

from diffusion_feedback.runs import CHECKPOINTS, checkpoint_steps
from diffusion_feedback.training.checkpoints import load_checkpoint

# Tell of the process, of its versions and of time; or are pages for people, which other tests read.
LEFT_OUT_FILES = ("environment.json", "README.md", "report.html", "recipe.yaml")
LEFT_OUT_FOLDERS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
LEFT_OUT_KEYS = {"eps", "lora_path", "model_path", "seconds", "time", "version", "versions"}
# What the page of a training run is made of: other tests read it, and what it holds of results stands in the files here.
OF_PAGES = re.compile(r"heldout\.jsonl|notes\.json|samples/(before|step-\d+)/.*|samples/step-\d+\.json")
VERSIONS = ("torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "pillow", "pyarrow")
KERNELS = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA")


def _cpu() -> str:
    """The processor by its numbers, which virtual machines keep where they change its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    told = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    return " ".join(told.get(key, "?") for key in ("vendor_id", "cpu family", "model", "stepping"))


def signature() -> dict[str, Any]:
    """What rounding depends on: where all of it is equal, so are all bits."""
    return {
        "versions": {name: version(name) for name in VERSIONS},
        "machine": platform.machine(),
        "cpu": _cpu(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "kernels": {name: os.environ.get(name) for name in KERNELS},
    }


def _weights(path: Path) -> dict[str, Any]:
    """sha256 over names, dtypes, shapes and bytes in sorted order; norm and mean of each tensor in float64.

    Of checkpoints and of the merged models of rounds the hash alone: the run's own result stands beside them.
    """
    values = _tensors(load_file(path))
    return {"sha256": values["sha256"]} if "model" in path.parts else values


def _tensors(state: Mapping[str, Tensor]) -> dict[str, Any]:
    digest, tensors = hashlib.sha256(), {}
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        wide = value.double()
        tensors[name] = [str(value.dtype), list(value.shape), float(wide.norm()), _mean(wide)]
    return {"sha256": digest.hexdigest(), "tensors": tensors}


def _mean(values: Tensor) -> float:
    return float(values.mean()) if values.numel() else 0.0


def _plain(value: Any, places: Mapping[str, str]) -> Any:
    """``value`` as JSON knows it: bytes as their hash, folders of this run by name, no times and versions."""
    if isinstance(value, Mapping):
        return {_named(str(k), places): _plain(v, places) for k, v in value.items() if k not in LEFT_OUT_KEYS}
    if isinstance(value, list | tuple):
        return [_plain(item, places) for item in value]
    if isinstance(value, bytes):
        return {"sha256": hashlib.sha256(value).hexdigest()}
    return _named(value, places) if isinstance(value, str) else value


def _named(text: str, places: Mapping[str, str]) -> str:
    for place, name in places.items():
        text = text.replace(place, name)
    return text


def _content(path: Path, places: Mapping[str, str]) -> Any:
    """The values of one file by its form; of images and pages the hash of their bytes."""
    match path.suffix:
        case ".safetensors":
            return _weights(path)
        case ".json":
            return _plain(json.loads(path.read_text("utf-8")), places)
        case ".jsonl":
            return [_plain(json.loads(line), places) for line in path.read_text("utf-8").split("\n") if line]
        case ".parquet":
            return _plain(pq.read_table(path).to_pylist(), places)
        case ".csv":
            with path.open(encoding="utf-8", newline="") as lines:
                return _plain([{k: _number(v) for k, v in row.items()} for row in csv.DictReader(lines)], places)
        case _:
            return _plain(path.read_bytes(), places)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _recorded(path: Path) -> bool:
    """Results: metrics, tables, weights, samples; but not what is copied from the base model."""
    if path.name in LEFT_OUT_FILES or set(path.parts) & set(LEFT_OUT_FOLDERS):
        return False
    copied = ("config.json", "tokenizer", "generation_config", "model_index", "special_tokens", "preprocessor")
    return not path.name.startswith(copied) and not path.name.endswith("_config.json")


def _is_of_a_page(path: Path) -> bool:
    """Whether ``path`` belongs to the page of a training run."""
    run = next((parent for parent in path.parents if (parent / "recipe.yaml").exists()), None)
    if run is None or not (run / "environment.json").exists():
        return False
    name = path.relative_to(run).as_posix()
    return name == "report.html" or bool(OF_PAGES.fullmatch(name))


def snapshot(folder: Path, places: Mapping[str, str]) -> dict[str, Any]:
    """The names of all files in ``folder``, and the values of those that hold results.

    A checkpoint is told by what training goes on from, wherever in it that stands.
    """
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_of_a_page(path))
    files = [path for path in found if CHECKPOINTS not in path.relative_to(folder).parts]
    names = {path: path.relative_to(folder).as_posix() for path in files}
    values = {names[path]: _content(path, places) for path in files if _recorded(path.relative_to(folder))}
    listed = list(names.values())
    for place in folder.rglob(CHECKPOINTS):
        for checkpoint in checkpoint_steps(place.parent).values():
            name = checkpoint.relative_to(folder).as_posix()
            states = load_checkpoint(checkpoint)[1]
            values[f"{name}/policy.safetensors"] = {"sha256": _tensors(states["policy"])["sha256"]}
            listed += [f"{name}/{part}" for part in ("checksums.json", "optimizer.pt")]
            listed += [f"{name}/{state}.safetensors" for state in states]
    return {"files": sorted(listed, key=lambda name: Path(name)), "values": values}


def differences(recorded: Any, got: Any, tolerance: float | None, place: str = "") -> Iterator[str]:
    """Where ``got`` is not what was recorded: bit for bit, or floats within the relative ``tolerance``.

    Within a tolerance, hashes say nothing and are passed over, and so are accuracies, which count: a pair that is all
    but a tie falls to one side or the other. A float below 1 may differ by ``tolerance`` itself.
    """
    if isinstance(recorded, dict) and isinstance(got, dict):
        for key in sorted({*recorded, *got}):
            if key not in recorded or key not in got:
                yield f"{place}/{key}: {'only recorded' if key in recorded else 'not recorded'}"
            elif tolerance is None or not ("accurac" in key or key.endswith(("sha256", "hash", "key"))):
                yield from differences(recorded[key], got[key], tolerance, f"{place}/{key}")
    elif isinstance(recorded, list) and isinstance(got, list):
        if len(recorded) != len(got):
            yield f"{place}: {len(got)} items, recorded {len(recorded)}"
        for index, (one, other) in enumerate(zip(recorded, got, strict=False)):
            yield from differences(one, other, tolerance, f"{place}/{index}")
    elif type(recorded) is not type(got):
        yield f"{place}: {got!r}, recorded {recorded!r}"
    elif isinstance(recorded, float):
        if not _equal(recorded, got, tolerance):
            yield f"{place}: {got!r}, recorded {recorded!r}"
    elif recorded != got:
        yield f"{place}: {got!r}, recorded {recorded!r}"


def _equal(recorded: float, got: float, tolerance: float | None) -> bool:
    if tolerance is None or not (math.isfinite(recorded) and math.isfinite(got)):
        return repr(recorded) == repr(got)  # tells -0.0 from 0.0, and nan is nan
    return abs(recorded - got) <= tolerance * max(1.0, abs(recorded))
