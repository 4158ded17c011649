"""Every kind of cache under every kind of damage: it is told, the values are computed again, and they are the right ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pairs_data
import pytest
import shapes_images
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from diffusion_feedback.cli.main import main
from diffusion_feedback.data.cache import CachedImageEncoder, CachedTextEncoder, TensorCache
from diffusion_feedback.data.images import EncodedImage
from diffusion_feedback.data.reference_logps import ReferenceLogps
from diffusion_feedback.data.scores import read_scores
from diffusion_feedback.data.views import CachedViews
from diffusion_feedback.errors import UserError
from diffusion_feedback.records import content_hash
from diffusion_feedback.types.images import ImageView
from diffusion_feedback.types.texts import TextBatch, TokenSequence

SPACE = {"encoder": "test"}


@dataclass
class Kind:
    """Reads everything through its cache in a folder, filling in what is missing; counts what had to be computed."""

    read: Callable[[Path], list[Tensor]]
    computed: int = 0


def latents(pictures: list[EncodedImage]) -> Kind:
    def encode(pixels: Tensor) -> Tensor:
        kind.computed += len(pixels)
        return pixels.mean(dim=(2, 3), keepdim=True).repeat(1, 2, 2, 2)

    def read(folder: Path) -> list[Tensor]:
        with TensorCache(folder, SPACE, parts=("latents", "sizes")) as cache:
            found = CachedImageEncoder(encode, 16, cache).encode(pictures, [ImageView()] * len(pictures))
        return [found.latents, found.sizes]

    kind = Kind(read)
    return kind


def texts() -> Kind:
    def encode(prompts: list[str]) -> dict[str, Tensor]:
        kind.computed += len(prompts)
        rows = torch.tensor([[len(prompt), ord(prompt[0])] for prompt in prompts])
        return {"states": rows.float() / 7, "ids": rows}

    def read(folder: Path) -> list[Tensor]:
        with TensorCache(folder, SPACE) as cache:
            found = CachedTextEncoder(lambda prompts: encode(list(prompts)), cache).encode(["a cat", "dogs", "sea"])
        return [found["states"], found["ids"]]

    kind = Kind(read)
    return kind


def reference_values() -> Kind:
    def tokens(*ids: int) -> TokenSequence:
        return TokenSequence(np.array(ids, dtype=np.int32), np.arange(len(ids)) > 0, 1)

    chosen, rejected = [tokens(1, 2, 3), tokens(4, 5), tokens(6, 7)], [tokens(1, 9), tokens(4, 8), tokens(6, 8, 9)]
    ones = torch.ones(3)
    batch = TextBatch(["a", "b", "c"], chosen, rejected, ones, ones, torch.zeros(3))

    def compute(asked: TextBatch) -> Tensor:
        kind.computed += len(asked)
        return torch.tensor([-float(side.ids.sum()) / 3 for side in (*asked.chosen, *asked.rejected)])

    def read(folder: Path) -> list[Tensor]:
        with TensorCache(folder, SPACE, parts=("logps",)) as cache:
            return [ReferenceLogps(cache, compute, "cpu")(batch)]

    kind = Kind(read)
    return kind


def views(pictures: list[EncodedImage]) -> Kind:
    def cut(image: object) -> Tensor:
        kind.computed += 1
        return torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1).contiguous()  # type: ignore[attr-defined]

    def read(folder: Path) -> list[Tensor]:
        with TensorCache(folder, SPACE, parts=("pixels",)) as cache:
            return [CachedViews(cut, cache)(pictures)]

    kind = Kind(read)
    return kind


def scores(folder_of_images: Path) -> Kind:
    def read(folder: Path) -> list[Tensor]:
        table = folder / "table.parquet"
        flags = ["--scorer", "shapes", "--cache_dir", str(folder), "--output", str(table), "--overwrite"]
        assert main(["score", str(folder_of_images), *flags]) == 0
        return [torch.tensor([[row.score, row.raw] for row in read_scores(table)], dtype=torch.float64)]

    return Kind(read)


@pytest.fixture(scope="module")
def pictures() -> list[EncodedImage]:
    return [EncodedImage(data, f"picture {i}") for i, data in enumerate(pairs_data.jpeg(90, seed) for seed in range(3))]


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes_images.write_folder(tmp_path_factory.mktemp("shapes") / "set", 2, 2)


@pytest.fixture(params=["latents", "texts", "reference values", "views", "scores"])
def kind(request: pytest.FixtureRequest, pictures: list[EncodedImage], image_folder: Path) -> Kind:
    make: dict[str, Callable[[], Kind]] = {
        "latents": lambda: latents(pictures),
        "texts": texts,
        "reference values": reference_values,
        "views": lambda: views(pictures),
        "scores": lambda: scores(image_folder),
    }
    return make[request.param]()


def flipped_bit(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[-2] ^= 0x10  # in the values, so that the file opens as before
    shard.write_bytes(data)


def flipped_name(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[data.index(b'"dtype"') - 8] ^= 0x01  # in the header: a key, or a digit of one
    shard.write_bytes(data)


def cut_off(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-3])


def emptied(shard: Path) -> None:
    shard.write_bytes(b"")


def garbage(shard: Path) -> None:
    shard.write_bytes(b"\xff" * shard.stat().st_size)


def of_another_cache(shard: Path) -> None:
    save_file({name: value + 1 for name, value in load_file(shard).items()}, shard)


def as_written(shard: Path, tensors: dict[str, Tensor]) -> None:
    """Put ``tensors`` in the place of a shard, under the name that their content asks for."""
    shard.unlink()
    data = save(tensors)
    (shard.parent / f"{content_hash(data)}.safetensors").write_bytes(data)


def not_finite(shard: Path) -> None:
    tensors = load_file(shard)
    name = min(tensors)
    tensors[name] = torch.full(tensors[name].shape, float("nan"))
    as_written(shard, tensors)


def without_a_part(shard: Path) -> None:
    tensors = load_file(shard)
    first = min(tensors)
    key, _, part = first.partition("/")
    tensors[f"{key}/other"] = tensors.pop(f"{key}/{part}")
    as_written(shard, tensors)


DAMAGES = (
    flipped_bit, flipped_name, cut_off, emptied, garbage, of_another_cache, not_finite, without_a_part,
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_and_mended(kind: Kind, damage: Callable[[Path], None], tmp_path: Path) -> None:
    expected = kind.read(tmp_path)
    shards = list(tmp_path.rglob("*.safetensors"))
    assert len(shards) == 1
    damage(shards[0])
    kind.computed = 0
    with pytest.warns(UserWarning, match="broken cache shard"):
        again = kind.read(tmp_path)
    for one, other in zip(again, expected, strict=True):
        assert torch.equal(one, other)
    assert len(list(tmp_path.rglob("*.broken"))) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind.computed = 0
        whole = kind.read(tmp_path)
    assert kind.computed == 0
    assert all(torch.equal(one, other) for one, other in zip(whole, expected, strict=True))


def test_a_lost_shard_is_computed_again(kind: Kind, tmp_path: Path) -> None:
    expected = kind.read(tmp_path)
    next(tmp_path.rglob("*.safetensors")).unlink()
    assert all(torch.equal(one, other) for one, other in zip(kind.read(tmp_path), expected, strict=True))


def test_what_is_no_number_is_never_cached(tmp_path: Path) -> None:
    """It is an error that names the image, prompt or pair, before anything is written."""
    nan = float("nan")
    picture = EncodedImage(pairs_data.jpeg(90, 0), "picture 0")
    encoder = CachedImageEncoder(lambda pixels: pixels[:, :, :2, :2] * nan, 16, TensorCache(tmp_path, SPACE))
    with pytest.raises(UserError, match=f"image {picture.key}: its latents are not finite"):
        encoder.encode([picture], [ImageView()])
    for cache in (TensorCache(tmp_path, SPACE), None):
        words = CachedTextEncoder(lambda prompts: {"states": torch.full((len(prompts), 2), nan)}, cache)
        with pytest.raises(UserError, match="prompt 'a cat': its states from the text encoder are not finite"):
            words.encode(["a cat"])
    tokens = TokenSequence(np.array([1, 2], dtype=np.int32), np.array([False, True]), 1)
    one = torch.ones(1)
    batch = TextBatch(["p7"], [tokens], [tokens], one, one, one)
    with pytest.raises(UserError, match="pair p7: the reference's log-probabilities are"):
        ReferenceLogps(TensorCache(tmp_path, SPACE), lambda asked: torch.full((2,), nan), "cpu")(batch)
    with pytest.raises(ValueError, match="raw of k is not finite"):
        TensorCache(tmp_path, SPACE).put("k", {"score": one, "raw": one * nan})
    assert not list(tmp_path.rglob("*.safetensors"))
