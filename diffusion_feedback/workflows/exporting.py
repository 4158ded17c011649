"""A result in the form of another tool: written, read back in that tool's way, and compared before it stands."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from ..catalog import family_row
from ..catalog.formats import EXPORT_FORMATS, ExportFormat
from ..catalog.rows import import_path
from ..devices import best_device
from ..errors import UserError
from ..folders import check_outside, expand, hold_folder
from ..foreign import is_hub_id
from ..models.saving import saving
from ..output_folders import OutputKind, check_writable
from ..records import write_text
from ..reports.cards.export import write_export_card
from ..runs import recorded_model
from ..text_folders import adapter_config, base_of, is_adapter
from .sampling import base_of_lora_run, folder_or_id, writes_texts
from .settings import ModelSource, made_of_keywords, shows
from .sharing_settings import ExportSettings
from .training.base_model import load_named_model, recorded_family

logger = logging.getLogger(__name__)

BAR = 1e-5  # largest relative error of a form in float32; above it something else than rounding is at work
_MARK = "export.json"

_EXPORTS = OutputKind(
    mark=_MARK,
    own=(
        "README.md", "*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model", "config", "scheduler", "unet",
        "vae", "transformer", "text_encoder*", "tokenizer*",
    ),
    foreign="is there and holds no export",
    foreign_remedy="choose another `output`",
    changed="holds another export",
)  # fmt: skip


class Form(Protocol):
    """A result in one form; made of the loaded model, whose output it notes first."""

    def write(self, folder: Path, dtype: torch.dtype) -> None: ...
    def error(self, folder: Path) -> float: ...
    def facts(self) -> dict[str, object]: ...


@dataclass(frozen=True, slots=True)
class Exported:
    """An export in the folder ``path``: its ``files`` with their bytes, and how far its output is from the result's own.

    ``error`` is the largest relative error of the model's output as ``files`` hold it, ``error_float32`` that of the form
    itself, before rounding to ``dtype``.
    """

    path: Path
    format: str
    dtype: str
    error: float
    error_float32: float
    files: Mapping[str, int]

    def __str__(self) -> str:
        size = sum(self.files.values()) / 2**20
        read = f"read back, its output differs by {self.error:.1e} of its largest value"
        rounded = f" ({self.error_float32:.1e} before rounding)" if self.dtype != "float32" else ""
        return f"{self.path}: {self.format}, {self.dtype}, {size:,.1f} MiB; {read}{rounded}"


_KINDS = (ExportSettings, ModelSource)


@shows(*_KINDS)
def export(model: object, output: str | Path, **settings: object) -> Exported:
    """Write the result ``model`` into the folder ``output`` as another tool reads it, and prove that it reads the same.

    ``model``: a run, its folder, RUN@STEP, RUN@best, or a base with ``lora``. ``settings`` are the fields of ExportSettings and
    ModelSource. The strength of adapters (alpha / rank, times ``lora_scale``) is the same for every reader. What was written
    is read back in the tool's own way; the network's prediction on the same latents, prompts and timesteps (of texts: the
    logits) is compared with the result's own. Raises UserError where that differs by more than 1e-5 in float32, for a form
    that means nothing for the result, and for a folder that holds other things; then nothing is left in it.
    """
    own, source = made_of_keywords(settings, *_KINDS)
    path = folder_or_id(model)
    if path is None:
        raise UserError(f"a {type(model).__name__}: is no path", "give the folder of a run, or a base with `lora`")
    run, folder, row = str(getattr(model, "path", model)), expand(output), EXPORT_FORMATS[own.format]
    _check_folder(folder, own)
    check_outside(folder, {"the result": path, "`lora`": source.lora, "`model_config`": source.model_config})
    path, source = base_of_lora_run(path, source)
    with hold_folder(folder, "export"), saving(folder) as beside:
        form = _form(path, source, own, row, folder.name)
        errors = {dtype: _written(form, beside, dtype) for dtype in dict.fromkeys(("float32", own.dtype))}
        files = {
            each.relative_to(beside).as_posix(): each.stat().st_size
            for each in sorted(beside.rglob("*"))
            if each.is_file()
        }
        exported = Exported(folder, own.format, own.dtype, errors[own.dtype], errors["float32"], files)
        is_text = writes_texts(path, source.family or recorded_family(path))
        facts = _facts(exported, run, path, source) | form.facts()
        write_export_card(beside, facts, row, title=folder.name, place=folder.resolve(), is_text=is_text)
        _EXPORTS.claim(folder, "{}\n")  # what an earlier export left goes only now
        write_text(beside / _MARK, json.dumps(facts, indent=2) + "\n")
    return exported


def _check_folder(folder: Path, own: ExportSettings) -> None:
    if folder.suffix in (".safetensors", ".ckpt"):
        problem = f"{folder}: an export is a folder, with a card beside the weights"
        raise UserError(problem, f"give {folder.with_suffix('')}: the file in it takes that name")
    _EXPORTS.check_own(folder)
    check_writable(folder)
    if _EXPORTS.is_marked(folder) and not own.overwrite and (folder / _MARK).read_text("utf-8").strip() != "{}":
        raise UserError(f"{folder}: holds an export already", "choose another `output`, or `overwrite` to replace it")


def _form(path: str, source: ModelSource, own: ExportSettings, row: ExportFormat, stem: str) -> Form:
    """The result at ``path`` in the form of ``row``. Raises UserError where it means nothing for it."""
    is_text = writes_texts(path, source.family or recorded_family(path))
    device = best_device(own.device)
    if not is_text:
        denoiser: Any = load_named_model(path, source, device=device)
        if not hasattr(denoiser, "pipeline"):
            raise UserError(f"{path}: no diffusion model", "export models that make images or read texts")
        return cast(Form, import_path(row.images)(denoiser, stem))
    if row.texts is None:
        known = ", ".join(name for name, each in EXPORT_FORMATS.items() if each.texts)
        problem = f"`format` {own.format}: is one of image models ({row.readers}), and {path} reads texts"
        raise UserError(problem, f"of texts there are {known}")
    source = replace(source, family=source.family or recorded_family(path) or "causal_lm")
    assert family_row(str(source.family)).reads_text
    plain = ModelSource(family=source.family)
    made = import_path(row.texts)(
        load_named_model(path, source, device=device),
        path,
        source.lora_scale,
        lambda folder: load_named_model(folder, plain, device=device),
    )
    return cast(Form, made)


def _written(form: Form, beside: Path, dtype: str) -> float:
    """Write ``form`` into the emptied folder ``beside``; the error of what was written.

    Raises UserError where that is above the bar in float32, and where rounding has left no numbers.
    """
    for left in beside.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    form.write(beside, getattr(torch, dtype))
    error = form.error(beside)
    logger.info("%s: read back, relative error %.1e", dtype, error)
    if error > BAR and dtype == "float32":
        problem = f"read back, the export's output differs by {error:.1e} of its largest value, allowed is {BAR:g}"
        raise UserError(problem, "nothing was written; take another `format`, and report this")
    if error == float("inf"):
        raise UserError(f"in {dtype} the output is not finite", "nothing was written; take `dtype` bfloat16 or float32")
    return error


def _facts(exported: Exported, run: str, path: str, source: ModelSource) -> dict[str, object]:
    """What export.json holds of the result ``run``, which is the model at ``path`` with what ``source`` says."""
    base = path
    if is_adapter(path):
        base = base_of(path, adapter_config(path))
    elif model := recorded_model(expand(path), "copy the run's folder whole", "pretrained_model_name_or_path"):
        base = str(model["pretrained_model_name_or_path"])
    return {
        "format": exported.format,
        "dtype": exported.dtype,
        "of": run,
        "base": base,
        "base_is_hub_id": is_hub_id(base),
        "config": source.model_config,
        "lora": source.lora,
        "lora_scale": source.lora_scale,
        "family": source.family or recorded_family(path),
        "relative_error": exported.error,
        "relative_error_float32": exported.error_float32,
        "bar_float32": BAR,
        "files": dict(exported.files),
    }
