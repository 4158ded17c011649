"""What is an address, and no path, is refused with the way to fetch it, wherever files are read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from diffusion_feedback import load_recipe
from diffusion_feedback.data.image_lists import listed_images
from diffusion_feedback.data.image_sets import open_image_set
from diffusion_feedback.data.readers import open_pairs
from diffusion_feedback.data.texts import open_prompts, open_texts
from diffusion_feedback.errors import UserError
from diffusion_feedback.folders import at_home, expand
from diffusion_feedback.prompts import prompt_file, read_prompts
from diffusion_feedback.workflows.checking import check
from diffusion_feedback.workflows.data_settings import CheckSettings
from diffusion_feedback.workflows.settings import ModelSource

ADDRESSES = {
    "https://example.org/a/votes.csv?raw=1": "curl -L -o votes.csv https://example.org/a/votes.csv?raw=1",
    "http://example.org/pairs.jsonl": "curl -L -o pairs.jsonl http://example.org/pairs.jsonl",
    "s3://bucket/pairs.parquet": "aws s3 cp s3://bucket/pairs.parquet .",
    "gs://bucket/pairs.parquet": "gcloud storage cp gs://bucket/pairs.parquet .",
    "https://huggingface.co/datasets/owner/name": "give the hub id owner/name",
    "hf://datasets/owner/name/train.parquet": "give the hub id owner/name, or download the file",
    "hf://owner/name": "give the hub id owner/name",
    "file:///data/pairs.parquet": "give /data/pairs.parquet",
    "abfs://box/pairs.parquet": "copy pairs.parquet to this disk",
}
PLACES: dict[str, Callable[[str], object]] = {
    "pairs": open_pairs,
    "texts": open_texts,
    "prompts of texts": open_prompts,
    "prompts": read_prompts,
    "a file of prompts": lambda name: prompt_file(f"{name}.txt"),
    "images": lambda name: open_image_set([name]),
    "single images": lambda name: listed_images([name], None),
    "check": check,
    "a path": expand,
    "settings": lambda name: CheckSettings(tokenizer=name),
    "an adapter": lambda name: ModelSource(lora=name),
    "recipe": load_recipe,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_are_refused_with_the_way_to_fetch_them(place: str, address: str) -> None:
    with pytest.raises(
        UserError, match=f"{re.escape(address)}.*: is an address, and files are read from this disk"
    ) as e:
        PLACES[place](address)
    if "prompts" not in place or place == "prompts of texts":
        assert ADDRESSES[address] in e.value.remedy


def test_data_sets_of_the_hub_keep_their_names() -> None:
    assert at_home("hf://datasets/owner/name") == "hf://datasets/owner/name"
    assert open_pairs("hf://datasets/owner/name").source.hub.name == "owner/name"  # type: ignore[attr-defined]


def test_rows_that_name_addresses(tmp_path: Path) -> None:
    row = {"prompt": "p", "image_a": "https://example.org/a.png", "image_b": "b.png", "vote": "a"}
    (tmp_path / "votes.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"line 1, column 'image_a': https://example.org/a.png is an address; download"):
        list(open_pairs(tmp_path / "votes.jsonl"))
