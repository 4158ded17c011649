"""What the reference says of each pair of texts of a run, computed once before the first update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...data.cache import TensorCache
from ...data.reference_logps import ReferenceLogps
from ...data.token_index import TokenIndex
from ...errors import within_memory
from ...folders import expand
from ...likelihoods.tokens import TokenLikelihood
from ...types.texts import TextBatch
from ...types.training import Reference
from .given import Setup
from .token_batches import passes_over


@dataclass(frozen=True, slots=True)
class ReferenceAnswers:
    """The reference's log-probabilities on disk; ``fill`` asks for all, after which the reference may go."""

    setup: Setup
    network: nn.Module
    logps: ReferenceLogps

    @classmethod
    def of(
        cls, setup: Setup, reference: Reference, weights_hash: str, likelihood: TokenLikelihood, network: nn.Module
    ) -> ReferenceAnswers:
        """The namespace of the cache holds all that the numbers depend on but the tokens."""
        recipe, accelerator = setup.recipe, setup.accelerator
        namespace: dict[str, str | int | float] = {
            "reference": weights_hash,
            "tail_weight": recipe.text.tail_weight,
            "share_prompt": int(recipe.text.share_prompt),
            "dtype": recipe.model.dtype,
            "mixed_precision": recipe.training.mixed_precision,
        }

        def compute(batch: TextBatch) -> Tensor:
            with torch.no_grad(), accelerator.autocast(), reference(network) as frozen:
                return likelihood.logps(frozen, likelihood.prepare(batch))

        cache = TensorCache(expand(recipe.data.cache_dir) / "reference_logps", namespace, parts=("logps",))
        return cls(setup, network, ReferenceLogps(cache, compute, accelerator.device))

    def fill(self, indexes: Sequence[TokenIndex | None]) -> None:
        """Ask for all pairs of ``indexes``, each process its share, and let go of the reference."""
        recipe, accelerator = self.setup.recipe, self.setup.accelerator
        self.network.train()
        for index in indexes:
            if index is None:
                continue
            passes = passes_over(recipe, index, share_prompt=recipe.text.share_prompt)
            share = passes[accelerator.process_index :: accelerator.num_processes]
            remedy = "lower text.max_tokens_per_pass or text.max_length"
            with within_memory("log-probabilities of the reference", remedy):
                self.logps.fill(index.batch, share, show=accelerator.is_main_process)
            if accelerator.num_processes > 1:
                # What others have filled in is taken over while the reference is there to compute what is damaged,
                # or lies on a disk that this process does not see.
                accelerator.wait_for_everyone()
                self.logps.cache.refresh()
                self.logps.fill(index.batch, passes, show=False)
        accelerator.wait_for_everyone()
        self.logps.release()
