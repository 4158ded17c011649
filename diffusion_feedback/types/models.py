"""What models promise to those who train, sample and save them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor, nn

Conditioning = dict[str, Tensor]
"""What a network is given besides latents and timestep: named tensors, batch first."""

TokenProcessor = Callable[[Tensor, Tensor], Tensor]
"""(ids so far (N, T), scores of the next token (N, V)) to scores (N, V), before temperature and cuts."""


class ForwardProcess(Protocol):
    """How noise is mixed into latents, and what the network predicts."""

    @property
    def num_timesteps(self) -> int:
        """Length of the scheduler's range."""
        ...

    @property
    def prediction_type(self) -> str:
        """What the network predicts, in the words of diffusers' schedulers: epsilon, v_prediction, sample, flow_prediction."""
        ...

    def timesteps(self, uniform: Tensor) -> Tensor:
        """Map ``uniform`` (B,) in [0, 1) to the process's own timesteps (B,)."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...
    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """What low-rank adapters are.

    Args:
        rank: Of each pair of factors.
        alpha: Their strength: a pair counts alpha / rank times.
        targets: Names of groups of layers, or endings of layer names.
        seed: Of the first factors; the second ones start at zero.
        modules_to_save: Endings of names of modules that are trained whole beside the adapters.
        revision: Of the base on the hub, which is recorded.
        start: A LoRA that the adapters start at, in place of the first factors.
    """

    rank: int
    alpha: float
    targets: Sequence[str]
    seed: int
    modules_to_save: Sequence[str] = ()
    revision: str | None = None
    start: str | None = None


class Tuned(Protocol):
    """A model that is tuned as a whole, or by adapters, and written to the folder of a run."""

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write weights that plain diffusers or transformers loads, with ``network`` in the place of its own."""
        ...

    def written_files(self) -> Sequence[str]:
        """Patterns (as of ``Path.glob``) of all files and folders that ``save`` may write into a folder."""
        ...

    @property
    def network(self) -> nn.Module:
        """What is trained and called, as loaded."""
        ...

    @property
    def library_model(self) -> Any:
        """The object of diffusers or transformers that all this is made of."""
        ...

    def trained_parts(self) -> Sequence[nn.Module]:
        """What full tuning trains."""
        ...

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass."""
        ...

    def model_hash(self) -> str:
        """Identity of the whole model: weights, adapters, tokenizers and settings that change what it computes."""
        ...


class Adaptable(Tuned, Protocol):
    """A model that takes adapters."""

    def add_adapters(self, settings: AdapterSettings) -> list[str]:
        """Add adapters over the frozen network, the only weights that are trainable then; says what is adapted.

        Raises UserError for names that mean no layer, and a start that does not fit.
        """
        ...


class Denoiser(Adaptable, Protocol):
    """A family of diffusion models behind one interface; the network is always passed explicitly."""

    @property
    def network_name(self) -> str:
        """What the family's pipelines call the trainable network: "unet", "transformer"."""
        ...

    @property
    def process(self) -> ForwardProcess: ...
    @property
    def resolution(self) -> int:
        """The model's own image side, px."""
        ...

    def frozen_modules(self) -> Sequence[nn.Module]:
        """The networks besides the trainable one: encoders of texts and images."""
        ...

    def image_encoder_id(self) -> str:
        """Identity of what encodes images, for cache keys."""
        ...

    def text_encoder_id(self) -> str:
        """Identity of what encodes prompts, for cache keys."""
        ...

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) in [-1, 1] to scaled latents (N, C, h, w) float32: the posterior's mode."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Text embeddings of each prompt, batch first, on the CPU."""
        ...

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many ``prompts`` are longer than the text encoder reads."""
        ...

    def conditioning(self, text: Conditioning, sizes: Tensor) -> Conditioning:
        """Join text embeddings (N, ...) and size conditioning (N, 6) into what ``predict`` takes."""
        ...

    def predict(self, network: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor: ...
    def sample(
        self, network: nn.Module, prompts: Sequence[str], seeds: Sequence[int], **settings: object
    ) -> list[Image.Image]:
        """One image per (prompt, seed); each image depends on its own prompt and seed alone, up to rounding."""
        ...

    def load_lora(self, path: str, scale: float = 1.0) -> str:
        """Add the LoRA weights at ``path``, times ``scale``; say which. Raises UserError unless all of them fit."""
        ...

    def save_merged(self, folder: Path) -> None:
        """Write the whole pipeline, what ``load_lora`` added merged into its weights."""
        ...


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    chat_template: Any
    model_max_length: int
    pad_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token_id: int | None
    eos_token_id: int | None
    bos_token_id: int | None
    all_special_ids: list[int]

    def __call__(self, text: str | Sequence[str], **settings: object) -> Any: ...
    def __len__(self) -> int: ...
    def get_vocab(self) -> dict[str, int]: ...
    def convert_ids_to_tokens(self, ids: int) -> str: ...
    def decode(self, token_ids: Sequence[int], **settings: object) -> str: ...
    def batch_decode(self, sequences: Sequence[Sequence[int]], **settings: object) -> list[str]: ...
    def apply_chat_template(self, conversation: Sequence[Mapping[str, object]], **settings: object) -> Any: ...
    def get_chat_template(self, chat_template: str | None = None, tools: object = None) -> str: ...
    def add_special_tokens(self, special_tokens_dict: Mapping[str, str]) -> int: ...
    def save_pretrained(self, save_directory: Path) -> object: ...
