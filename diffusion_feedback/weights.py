"""What can be computed of any weights: their identity; whether all are there, and are numbers; their move
to a device, and what two models hold in common.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError, first_line


def check_finite(module: nn.Module, name: str) -> None:
    """Raise UserError naming the first weight of ``module`` that holds NaN or infinity."""
    for key, value in module.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise UserError(
                f"{name}: weight {key!r} holds {count} values that are not finite", "the weights are damaged"
            )


def modules_hash(*modules: nn.Module, settings: str = "") -> str:
    """SHA-256 over configs, names, types and bytes of all weights, and ``settings``; 16 hexadecimal digits."""
    digest = hashlib.sha256(settings.encode())
    for module in modules:
        digest.update(_config_of(module).encode())
        for key, value in sorted(module.state_dict().items()):
            digest.update(f"{key}:{value.dtype}:{tuple(value.shape)}".encode())
            digest.update(_bytes(value))
    return digest.hexdigest()[:16]


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Content hash of named tensors, whatever the order and the file format; 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {state[name].dtype} {tuple(state[name].shape)}\n".encode())
        digest.update(_bytes(state[name]))
    return digest.hexdigest()[:12]


def _bytes(value: Tensor) -> memoryview:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _config_of(module: Any) -> str:
    """Everything besides the weights that decides what ``module`` computes: its config, and its adapters'."""
    config = module.config if isinstance(module.config, Mapping) else module.config.to_dict()
    kept = {key: value for key, value in config.items() if key not in ("_name_or_path", "_diffusers_version", "dtype")}
    adapters = {name: adapter.to_dict() for name, adapter in (getattr(module, "peft_config", None) or {}).items()}
    return json.dumps(
        [kept, adapters],
        sort_keys=True,
        default=lambda value: sorted(map(str, value)) if isinstance(value, set) else str(value),
    )


def check_complete(path: str, missing: Iterable[str], remedy: str) -> None:
    """Raise UserError where weights of the model at ``path`` are ``missing``."""
    names = sorted(missing)
    if names:
        raise UserError(f"{path}: {len(names)} weights are missing, the first is {names[0]!r}", remedy)


def move(model: nn.Module, device: torch.device | str) -> None:
    """Put ``model`` on ``device``. Raises UserError for a device that is not there."""
    try:
        model.to(device)
    except (AssertionError, RuntimeError) as error:  # torch's two ways to say that there is no such device
        raise UserError(f"device {device}: {first_line(error)}", "use another device, or free its memory") from error


def share_frozen(model: nn.Module, owner: nn.Module) -> int:
    """Let ``model`` use the storage of ``owner``'s frozen parameters wherever both have equal ones of one name.

    Names are compared without what adapters put in between. ``model`` is for inference only: its parameters are frozen.
    Returns the bytes that are no longer held twice.
    """
    theirs = {
        _without_adapters(name): parameter
        for name, parameter in owner.named_parameters()
        if not parameter.requires_grad
    }
    shared = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        other = theirs.get(_without_adapters(name))
        is_alike = (
            other is not None
            and other.shape == parameter.shape
            and other.dtype == parameter.dtype
            and other.device == parameter.device
        )
        if is_alike and other is not None and torch.equal(other, parameter):
            parameter.data = other.data
            shared += parameter.numel() * parameter.element_size()
    return shared


def _without_adapters(name: str) -> str:
    for part in (".base_layer", "base_model.model."):
        name = name.replace(part, "")
    return name
