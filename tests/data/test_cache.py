"""The cache: what is read is what was written, whoever is killed, whoever writes at the same time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion_feedback.data.cache import CachedImageEncoder, CachedTextEncoder, TensorCache
from diffusion_feedback.data.images import EncodedImage
from diffusion_feedback.errors import UserError
from diffusion_feedback.types.images import ImageView
from diffusion_feedback.types.models import Conditioning

ROOT = Path(__file__).resolve().parents[2]
APPENDER = ROOT / "tests" / "support" / "appender.py"
SPACE = {"encoder": "test"}


def start_appender(folder: Path, first: int, number: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(APPENDER), str(folder), str(first), str(number)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def assert_entry(cache: TensorCache, number: int) -> None:
    entry = cache.get(f"key{number}")
    assert entry is not None
    assert torch.equal(entry["latents"], torch.full((64, 64), float(number)))
    assert torch.equal(entry["sizes"], torch.arange(6))


def fill(folder: Path, number: int, flush_every: int = 4) -> TensorCache:
    with TensorCache(folder, SPACE, flush_every=flush_every) as cache:
        for i in range(number):
            cache.put(f"key{i}", {"latents": torch.full((64, 64), float(i)), "sizes": torch.arange(6)})
    return cache


def test_round_trip_and_namespaces(tmp_path: Path) -> None:
    cache = fill(tmp_path, 10)
    assert json.loads((cache.folder / "namespace.json").read_text()) == SPACE
    assert len(list(cache.folder.glob("*.safetensors"))) == 3
    again = TensorCache(tmp_path, SPACE)
    assert len(again) == 10
    for i in range(10):
        assert_entry(again, i)
    assert again.get("key10") is None
    assert "key3" in again
    assert again.missing(["key10", "key1", "key10"]) == ["key10"]
    other = TensorCache(tmp_path, SPACE | {"resolution": 512})
    assert len(other) == 0
    assert other.folder != again.folder
    with pytest.raises(ValueError, match="must not hold '/'"):
        again.put("a/b", {})


def test_precisions_are_kept_and_entries_do_not_share_memory(tmp_path: Path) -> None:
    whole = torch.randn(3, 4)
    with TensorCache(tmp_path, SPACE) as cache:
        for i, dtype in enumerate((torch.float32, torch.float16, torch.bfloat16)):
            cache.put(f"k{i}", {"x": whole[i].to(dtype)})
        cache.put("k0", {"x": torch.zeros(1)})  # the first is kept
        copy = whole.clone()
        whole.zero_()
    again = TensorCache(tmp_path, SPACE)
    for i, dtype in enumerate((torch.float32, torch.float16, torch.bfloat16)):
        entry = again.get(f"k{i}")
        assert entry is not None
        assert torch.equal(entry["x"], copy[i].to(dtype))


def test_killed_while_appending(tmp_path: Path) -> None:
    process = start_appender(tmp_path, 0, 10**6)
    assert process.stdout is not None
    flushed = [int(process.stdout.readline()) for _ in range(6)][-1]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    cache = TensorCache(tmp_path, SPACE)  # a warning would be an error here: no shard is broken
    assert len(cache) >= flushed + 1
    for i in range(flushed + 1):
        assert_entry(cache, i)
    cache.put("later", {"x": torch.ones(1)})
    cache.close()
    assert "later" in TensorCache(tmp_path, SPACE)


def test_two_processes_append_at_once(tmp_path: Path) -> None:
    reader = TensorCache(tmp_path, SPACE)
    processes = [start_appender(tmp_path, first, 60) for first in (0, 30)]  # 30 to 59 are written by both
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert reader.missing(f"key{i}" for i in range(91)) == ["key90"]
    for i in range(90):
        assert_entry(reader, i)
    assert not list(reader.folder.glob(".*"))


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_broken_shard_is_named_and_its_entries_are_missing(damage: str, tmp_path: Path) -> None:
    folder = fill(tmp_path, 8).folder
    shard = min(folder.glob("*.safetensors"))
    data = shard.read_bytes()
    shard.write_bytes({"truncated": data[: len(data) // 2], "garbage": b"\xff" * len(data), "empty": b""}[damage])
    with pytest.warns(UserWarning, match=f"{shard.name}: broken cache shard"):
        cache = TensorCache(tmp_path, SPACE)
    assert shard.with_suffix(".broken").is_file()
    lost = cache.missing(f"key{i}" for i in range(8))
    assert len(lost) == 4
    for i in range(8):
        if f"key{i}" not in lost:
            assert_entry(cache, i)
    fill(tmp_path, 8)
    whole = TensorCache(tmp_path, SPACE)
    for i in range(8):
        assert_entry(whole, i)


def test_shard_that_breaks_under_an_open_cache(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    cache = TensorCache(tmp_path, SPACE)
    next(cache.folder.glob("*.safetensors")).unlink()
    with pytest.warns(UserWarning, match="broken cache shard"):
        assert cache.get("key0") is None
    assert cache.missing(["key0", "key1"]) == ["key0", "key1"]


def test_old_leftovers_are_swept(tmp_path: Path) -> None:
    folder = fill(tmp_path, 1).folder
    old, young = folder / ".a.safetensors.1.tmp", folder / ".b.safetensors.2.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    TensorCache(tmp_path, SPACE)
    assert not old.exists()
    assert young.exists()


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/.*: the cache cannot be written[\s\S]*cache_dir"):
        TensorCache(tmp_path / "file", SPACE)
    cache = TensorCache(tmp_path / "gone", SPACE)
    cache.put("k", {"x": torch.ones(1)})
    (cache.folder / "namespace.json").unlink()
    cache.folder.rmdir()
    cache.folder.write_text("in the way")
    with pytest.raises(UserError, match=r"gone/.*: the cache cannot be written"):
        cache.flush()


# --- encoders --------------------------------------------------------------------------------------------------------


class Vae:
    """A stand-in for an image encoder that counts what it is given."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.weight = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def __call__(self, pixels: Tensor) -> Tensor:
        self.batches.append(len(pixels))
        return torch.nn.functional.conv2d(pixels, self.weight, stride=8)


@pytest.fixture
def handles(picture: object) -> list[EncodedImage]:
    assert callable(picture)
    return [EncodedImage(picture(i, size=(24 + i, 20)), f"picture {i}") for i in range(7)]


def test_cached_latents_equal_direct_ones(handles: list[EncodedImage], tmp_path: Path) -> None:
    views = [ImageView((0.0, 1.0), flip=i % 2 == 0) for i in range(7)]
    direct = CachedImageEncoder(Vae(), 16, None, batch_size=3).encode(handles, views)
    assert direct.latents.shape == (7, 4, 2, 2)
    assert direct.sizes[2].tolist() == [20, 26, 0, 5, 16, 16]  # mirrored: the left edge is 21 - 16 - 0
    vae = Vae()
    with TensorCache(tmp_path, SPACE, flush_every=2) as cache:
        encoder = CachedImageEncoder(vae, 16, cache, batch_size=3)
        for _ in range(2):
            cached = encoder.encode(handles, views)
            assert torch.equal(cached.latents, direct.latents)
            assert torch.equal(cached.sizes, direct.sizes)
    assert vae.batches == [3, 3, 1]
    reopened = CachedImageEncoder(vae, 16, TensorCache(tmp_path, SPACE), batch_size=3)
    order = [5, 0, 0, 3]
    some = reopened.encode([handles[i] for i in order], [views[i] for i in order])
    assert torch.equal(some.latents, direct.latents[order])
    assert vae.batches == [3, 3, 1]


def test_views_and_resolutions_have_their_own_entries(handles: list[EncodedImage], tmp_path: Path) -> None:
    vae, cache = Vae(), TensorCache(tmp_path, SPACE)
    views = [ImageView(), ImageView(flip=True), ImageView((0.0, 0.0)), ImageView((0.0, 0.5))]
    latents = CachedImageEncoder(vae, 16, cache).encode([handles[6]] * 4, views).latents
    assert vae.batches == [4]
    assert not torch.equal(latents[0], latents[1])
    CachedImageEncoder(vae, 8, cache).encode([handles[6]], [ImageView()])
    assert vae.batches == [4, 1]


def test_a_second_encode_opens_no_image(handles: list[EncodedImage], tmp_path: Path) -> None:
    vae, views = Vae(), [ImageView()] * 7
    with TensorCache(tmp_path, SPACE) as cache:
        CachedImageEncoder(vae, 16, cache, batch_size=4).encode([*handles, handles[0]], [*views, views[0]])
    assert vae.batches == [4, 3]

    class Closed:
        def __init__(self, key: str) -> None:
            self.key = key

        def open(self) -> None:
            raise AssertionError("opened")

    encoder = CachedImageEncoder(vae, 16, TensorCache(tmp_path, SPACE))
    assert encoder.encode([Closed(h.key) for h in handles], views).latents.shape[0] == 7  # type: ignore[misc]


def test_half_precision_first_run_equals_second(handles: list[EncodedImage], tmp_path: Path) -> None:
    views = [ImageView()] * 7
    exact = CachedImageEncoder(Vae(), 16, None).encode(handles, views).latents
    with TensorCache(tmp_path, SPACE) as cache:
        first = CachedImageEncoder(Vae(), 16, cache, dtype=torch.float16).encode(handles, views)
    second = CachedImageEncoder(Vae(), 16, TensorCache(tmp_path, SPACE), dtype=torch.float16).encode(handles, views)
    assert first.latents.dtype == second.latents.dtype == torch.float32
    assert torch.equal(first.latents, second.latents)
    assert torch.equal(first.latents, exact.half().float())
    assert first.sizes[0].tolist() == [20, 24, 0, 2, 16, 16]


def test_latents_that_are_not_finite_are_not_cached(handles: list[EncodedImage], tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, SPACE)
    encoder = CachedImageEncoder(lambda pixels: Vae()(pixels) * 1e6, 16, cache, dtype=torch.float16)
    with pytest.raises(UserError, match=f"image {handles[0].key}: its latents are not finite in float16"):
        encoder.encode(handles[:1], [ImageView()])
    assert len(cache) == 0


def test_text_encoder(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def encode(prompts: Sequence[str]) -> Conditioning:
        asked.append(list(prompts))
        values = torch.tensor([[float(len(p)), 0.1] for p in prompts])
        return {"embeddings": values[:, None].expand(-1, 3, -1), "mask": torch.ones(len(prompts), 3, dtype=torch.long)}

    prompts = ["a cat", "", "a cat", "a dog on the moon"]
    plain = CachedTextEncoder(encode, None).encode(prompts)
    assert asked == [["a cat", "", "a dog on the moon"]]
    assert plain["embeddings"].shape == (4, 3, 2)
    with TensorCache(tmp_path, SPACE) as cache:
        first = CachedTextEncoder(encode, cache, batch_size=2).encode(prompts)
    assert asked[1:] == [["a cat", ""], ["a dog on the moon"]]
    second = CachedTextEncoder(encode, TensorCache(tmp_path, SPACE)).encode(prompts)
    assert len(asked) == 3
    for name in plain:
        assert torch.equal(plain[name], first[name])
        assert torch.equal(plain[name], second[name])
        assert plain[name].dtype == second[name].dtype
    with TensorCache(tmp_path, {"dtype": "float16"}) as cache:
        half = CachedTextEncoder(encode, cache, dtype=torch.float16)
        half.fill(prompts)
        assert torch.equal(half.encode(prompts)["embeddings"], plain["embeddings"].half().float())
    assert len(asked) == 4
