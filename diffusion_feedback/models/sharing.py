"""Two models that grew from one base hold its weights once."""

from __future__ import annotations

import torch
from torch import nn


def share_frozen(model: nn.Module, owner: nn.Module) -> int:
    """Let ``model`` use the storage of ``owner``'s frozen parameters wherever both have equal ones of one name.

    Names are compared without what adapters put in between. ``model`` is for inference only: its parameters are frozen.
    Returns the bytes that are no longer held twice.
    """
    theirs = {_plain(name): parameter for name, parameter in owner.named_parameters() if not parameter.requires_grad}
    shared = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        other = theirs.get(_plain(name))
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


def _plain(name: str) -> str:
    for part in (".base_layer", "base_model.model."):
        name = name.replace(part, "")
    return name
