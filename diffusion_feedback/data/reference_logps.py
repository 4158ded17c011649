"""What the reference says of each pair of texts: computed once, kept on disk, looked up ever after."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import UserError
from ..progress import progress
from ..records import content_hash
from ..types.texts import TextBatch, TokenSequence
from .cache import TensorCache


def pair_key(chosen: TokenSequence, rejected: TokenSequence) -> str:
    """Identity of a pair by its tokens, and by which of them count."""
    parts = [part for side in (chosen, rejected) for part in (side.ids.tobytes(), side.scored.tobytes())]
    return content_hash(*parts, f"{chosen.prompt_length} {rejected.prompt_length}")


class ReferenceLogps:
    """Log-probabilities of the reference, (2B,) float32, chosen first.

    ``compute`` calls the reference itself; after ``fill`` it is never called again, so the reference need not outlive it.
    The cache's namespace must name what the numbers depend on besides the tokens: weights, settings, precision.
    """

    def __init__(self, cache: TensorCache, compute: Callable[[TextBatch], Tensor], device: torch.device | str) -> None:
        self.cache, self.device = cache, device
        self._compute: Callable[[TextBatch], Tensor] | None = compute
        self._values: dict[str, Tensor] = {}

    def __call__(self, batch: TextBatch) -> Tensor:
        """Look ``batch`` up, or ask. Raises ValueError for a pair that was not filled in while the reference was there.

        Raises UserError for a pair of which the reference says no number.
        """
        keys = [pair_key(*sides) for sides in zip(batch.chosen, batch.rejected, strict=True)]
        for key in keys:
            entry = self.cache.get(key) if key not in self._values else None
            if entry is not None:
                self._values[key] = entry["logps"]
        if any(key not in self._values for key in keys):
            self._ask(batch, keys)
        return torch.stack([self._values[key] for key in keys], dim=1).flatten().to(self.device)

    def _ask(self, batch: TextBatch, keys: Sequence[str]) -> None:
        if self._compute is None:
            raise ValueError("the reference was let go before it was called for these pairs")
        logps = self._compute(batch).float().cpu().view(2, -1)
        for number, (key, value) in enumerate(zip(keys, logps.unbind(1), strict=True)):
            if not bool(value.isfinite().all()):
                problem = f"pair {batch.example_ids[number]}: the reference's log-probabilities are {value.tolist()}"
                remedy = "load it in float32 (model.dtype) without mixed precision; else its weights are damaged"
                raise UserError(problem, remedy)
            if key not in self._values:
                self._values[key] = value.clone()
                self.cache.put(key, {"logps": value})

    def fill(
        self, batches: Callable[[Sequence[int], int], TextBatch], passes: Sequence[Sequence[int]], *, show: bool
    ) -> None:
        """Bring the pairs of all ``passes`` into memory and onto the disk, with a progress bar where ``show`` says so."""
        for indices in progress(passes, desc="reference", unit="batch", disable=not show):
            self(batches(indices, 0))
        self.cache.flush()

    def release(self) -> None:
        """Let go of the reference. From here on all must be there."""
        self._compute = None
