"""Odd prompts under every scorer that reads them: the ids are those of the published tokenizer, cut prompts keep their end."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pytest
import tiny_imagereward
import torch
from tiny_clip import save_bare_clip, save_open_clip
from transformers import BertTokenizer

from diffusion_feedback.scorers import clip_score, hpsv2, imagereward, pickscore
from diffusion_feedback.scorers.scorer import Scorer, Towers
from diffusion_feedback.scorers.towers import load_clip, load_open_clip

ODD = {
    "typographic quotes": "“A cat’s” ‘life’",
    "full width": "ｆｕｌｌ ｗｉｄｔｈ！ １２３",
    "ligatures": "ﬁne ﬂow ﬀ",
    "entities": "caf&eacute; &amp; bar &lt;b&gt; &hellip;",
    "entities twice": "&amp;amp;lt;",
    "entities beside a tag": "<b>&eacute;</b>",
    "accent apart": "e\u0301 cafe\u0301",
    "accent as an entity": "e&#769; <x>",
    "mojibake": "Ã© â€œquoteâ€\x9d",
    "emoji": "😀 👩‍👩‍👧 🏳️‍🌈",
    "cjk": "日本の猫 猫咪 한국어",
    "right to left": "עברית ﷺ",
    "indic and thai": "हिन्दी ไทย",
    "white space": "  two\n spaces\t\u3000x\u00a0y\u2028z\x85 ",
    "no width": "y\u200bz \ufeffbom",
    "control": "a\x00b\x07c \x1b[31mred",
    "case": "ΣΊΣΥΦΟΣ İstanbul ẞ STRASSE ǅ K",
    "numbers": "½ ² ①③ Ⅷ 12345 1,000",
    "contractions": "it's I'LL we'Ve O'Reilly's",
    "signs": "@#$%^&*()_+{}|:\"<>?~`-=[]\\;',./ ...!!!",
    "empty": "",
    "blank": "   \n",
    "long word": "x" * 300,
    "long": "a cat on a mat, " * 40,
}
# By OpenAI's package clip, where open_clip has other names for the two special tokens.
BY_OPENAI = {
    "<|endoftext|> after": [49407, 953],
    "<|startoftext|>mid <|endoftext|>": [49406, 4734, 49407],
    "e&#769; <x>": [324, 136, 479, 283, 343, 285],
    "“A cat’s” ｆｕｌｌ ﬁne caf&eacute; &amp;amp; â€œx": [257, 320, 2368, 568, 257, 1476, 3797, 15304, 261, 257, 343],
}

TOWERS = Towers()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bare_clip(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return save_open_clip(tmp_path_factory.mktemp("open_clip"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imagereward")
    tiny_imagereward.save(folder)
    return folder


@cache
def by_open_clip() -> Any:
    return open_clip.get_tokenizer("ViT-H-14")


def up_to_end(ids: torch.Tensor) -> list[int]:
    found: list[int] = ids.tolist()
    return found[: found.index(49407) + 1]


@pytest.mark.parametrize("prompt", ODD.values(), ids=ODD)
@pytest.mark.parametrize("kind", ["cleaned", "checkpoint"])
def test_cleaned_prompts_have_the_published_ids(
    bare: Path, published: tuple[Path, str], kind: str, prompt: str
) -> None:
    """A folder's tokenizer behind OpenAI's cleaning, and that of a checkpoint, against open_clip's own."""
    file, architecture = published
    tower = load_clip(str(bare), TOWERS) if kind == "cleaned" else load_open_clip(architecture, file, TOWERS)
    found = tower.tokenizer.cleaning()([prompt])[0]
    assert up_to_end(found) == up_to_end(by_open_clip()([prompt])[0])
    assert len(found) == 77


@pytest.mark.parametrize(("prompt", "expected"), BY_OPENAI.items(), ids=range(len(BY_OPENAI)))
def test_cleaned_prompts_have_openais_ids(bare: Path, prompt: str, expected: list[int]) -> None:
    [found] = load_clip(str(bare), TOWERS).tokenizer.cleaning().encode([prompt])
    assert found == [49406, *expected, 49407]


def test_cleaning_changes_what_it_should(bare: Path) -> None:
    """Otherwise the tests above could not fail."""
    tokenizer = load_clip(str(bare), TOWERS).tokenizer
    changed = [name for name, prompt in ODD.items() if tokenizer.encode([prompt]) != tokenizer.encode_cleaned([prompt])]
    wanted = {"typographic quotes", "full width", "ligatures", "entities", "mojibake", "entities twice", "control"}
    assert wanted <= set(changed)
    assert not {"emoji", "cjk", "contractions", "empty"} & set(changed)


SCORERS: dict[str, Callable[[Path, tuple[Path, str], Path], Scorer]] = {
    "pickscore": lambda bare, published, bert: pickscore.load(str(bare), TOWERS),
    "percent": lambda bare, published, bert: clip_score.load(str(bare), TOWERS),
    "hessel": lambda bare, published, bert: clip_score.load(str(bare), TOWERS, form="hessel"),
    "diffusion_dpo": lambda bare, published, bert: clip_score.load(
        str(published[0]), TOWERS, form="diffusion_dpo", architecture=published[1]
    ),
    "hpsv2": lambda bare, published, bert: hpsv2.load(str(published[0]), TOWERS, architecture=published[1]),
    "imagereward": lambda bare, published, bert: imagereward.load(str(bert), TOWERS),
}


@pytest.mark.parametrize("name", SCORERS)
def test_every_prompt_has_a_score_of_its_own(name: str, bare: Path, published: tuple[Path, str], bert: Path) -> None:
    """Whatever stands beside it; and long prompts that differ before they are cut differ in score."""
    scorer = SCORERS[name](bare, published, bert)
    prompts = list(ODD.values())
    together = scorer.encode_prompts(prompts)
    for number in range(0, len(prompts), 5):
        torch.testing.assert_close(scorer.encode_prompts([prompts[number]])[0], together[number], atol=1e-5, rtol=0)
    early = ["sea " + "cat " * 200, "dog " + "cat " * 200]
    one, two = scorer.encode_prompts(early)
    assert not torch.allclose(one.double(), two.double(), atol=1e-4)
    assert sum(scorer.cuts([*early, "cat"])) == 2
    assert sum(scorer.cuts([])) == 0


def test_imagereward_reads_as_bert_does(bert: Path) -> None:
    tokenizer = BertTokenizer(vocab=str(bert / "vocab.txt"))
    scorer = imagereward.load(str(bert), TOWERS)
    settings = {"padding": "max_length", "truncation": True, "max_length": 35}
    expected = tokenizer(list(ODD.values()), return_tensors="pt", **settings).input_ids
    assert torch.equal(scorer.encode_prompts(list(ODD.values()))[:, 0], expected)
