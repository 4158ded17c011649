"""Tokenizers as people have them: sentencepiece models of Llama 2's and rinna's form, tokens beyond the embedding, limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import text_recipes
import tiny_architectures
import tiny_text
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from diffusion_feedback.cli.main import main
from diffusion_feedback.errors import UserError
from diffusion_feedback.likelihoods.tokens import TokenLikelihood
from diffusion_feedback.models import causal_lm
from diffusion_feedback.scorers.texts import llm_judge
from diffusion_feedback.scorers.texts.loading import load_text_scorer
from diffusion_feedback.text_folders import load_tokenizer
from diffusion_feedback.types.texts import TextBatch, TokenSequence

TEXTS = ("a red circle on a blue background", "the cat sat on the mat", "question")


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models that sentencepiece itself trained: BPE as Llama 2's, Unigram as rinna's."""
    folder = tmp_path_factory.mktemp("pieces")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(tiny_text.CORPUS * 4))
    for kind in ("bpe", "unigram"):
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus),
            model_prefix=str(folder / kind),
            vocab_size=330 if kind == "bpe" else 320,
            model_type=kind,
            byte_fallback=True,
            character_coverage=1.0,
            pad_id=3,
            minloglevel=2,
            hard_vocab_limit=False,
        )
    return {kind: folder / f"{kind}.model" for kind in ("bpe", "unigram")}


FORMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama2": ("bpe", "tokenizer.model", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}),
    "rinna": ("unigram", "spiece.model", {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}),
}


@pytest.mark.parametrize("form", FORMS)
def test_sentencepiece_models_load_and_mean_what_they_did(form: str, pieces: dict[str, Path], tmp_path: Path) -> None:
    kind, name, config = FORMS[form]
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (tmp_path / name).write_bytes(pieces[kind].read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, **named}))
    own = sentencepiece.SentencePieceProcessor(model_file=str(pieces[kind]))
    settings = GPTNeoXConfig(
        vocab_size=own.vocab_size(), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    GPTNeoXForCausalLM(settings).save_pretrained(tmp_path)
    tokenizer = causal_lm.load(str(tmp_path)).tokenizer
    for text in TEXTS:
        ids = own.encode(text)
        wanted = [own.bos_id(), *ids] if form == "llama2" else [*ids, own.eos_id()]
        assert tokenizer(text).input_ids == wanted
        assert tokenizer.decode(wanted, skip_special_tokens=True).strip() == text


@pytest.fixture(scope="module")
def with_image_token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Gemma 3's: the tokenizer has a token for images that is not in the embedding."""
    folder = tmp_path_factory.mktemp("image_token") / "lm"
    spelling = tiny_text.tokenizer(chat_template=tiny_text.CHATML)
    tiny_text.save_tiny_lm(folder, spelling=spelling)
    spelling.add_tokens(["<image_soft_token>"], special_tokens=True)
    spelling.save_pretrained(folder)
    return folder


def test_a_token_beyond_the_embedding_is_no_matter_where_no_text_has_it(
    with_image_token: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = text_recipes.write_recipe(tmp_path, with_image_token, training={"max_train_steps": 1})
    assert main(["train", "--config", str(recipe)]) == 0
    printed = capsys.readouterr().out
    assert (
        "1 tokens are beyond the model's embedding ('<image_soft_token>'): texts that use them are refused" in printed
    )
    rows = text_recipes.pairs(24)
    rows[3]["chosen"] = " see <image_soft_token>"
    text_recipes.write_jsonl(tmp_path / "train.jsonl", rows)
    again = text_recipes.write_recipe(tmp_path, with_image_token, "again")
    assert main(["train", "--config", str(again)]) == 2
    said = capsys.readouterr().err
    assert "train.jsonl" in said
    assert "is beyond the model's" in said


def test_whoever_reads_texts_refuses_such_a_token(with_image_token: Path, tmp_path: Path) -> None:
    model = causal_lm.load(str(with_image_token))
    beyond = model.tokenizer.convert_tokens_to_ids("<image_soft_token>")
    with pytest.raises(UserError, match=f"prompt 0: token {beyond} is beyond the model's"):
        model.sample(model.network, [[5, beyond]], [0], max_new_tokens=2)
    question = tmp_path / "question.txt"
    question.write_text("{prompt}{first}{second}")
    with pytest.raises(UserError, match=f"a text has the token {beyond}"):
        llm_judge.load(str(with_image_token), template=str(question)).judge(["see <image_soft_token>"], ["a"], ["b"])
    spelling = load_tokenizer(str(with_image_token))
    tiny_text.save_tiny_reward_model(tmp_path / "rm")
    spelling.save_pretrained(tmp_path / "rm")
    with pytest.raises(UserError, match=f"a text has the token {beyond}"):
        load_text_scorer(f"reward_model={tmp_path / 'rm'}").score(["see"], [" <image_soft_token>"])


def test_the_tokenizers_limit_is_a_limit_by_default_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spelling = tiny_text.tokenizer()
    spelling.model_max_length = 24
    folder = tiny_text.save_tiny_lm(tmp_path / "lm", spelling=spelling)
    model = causal_lm.load(str(folder))
    assert (model.usual_length, model.window) == (24, tiny_text.POSITIONS)
    short = {"max_train_steps": 1}
    assert main(["train", "--config", str(text_recipes.write_recipe(tmp_path, folder, training=short))]) == 0
    assert "texts are cut at 24 tokens, as the tokenizer says (model_max_length); the model holds 128" in (
        capsys.readouterr().out
    )
    for length, code in ((tiny_text.POSITIONS, 0), (tiny_text.POSITIONS + 1, 2)):
        recipe = text_recipes.write_recipe(
            tmp_path, folder, f"run{length}", training=short, text={"max_length": length}
        )
        assert main(["train", "--config", str(recipe)]) == code
    assert "the model's window holds 128 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "is_refused"),
    [
        *((kind, True) for kind in ("bloom", "mamba", "mpt", "mistral", "gemma3", "jamba")),
        *((kind, False) for kind in ("llama", "gpt2", "opt", "falcon")),
    ],
)
def test_shared_prompts_give_the_same_numbers_or_are_refused(kind: str, is_refused: bool, tmp_path: Path) -> None:
    model = causal_lm.load(str(tiny_architectures.save(tmp_path, kind)))

    def sequence(*ids: int) -> TokenSequence:
        return TokenSequence(np.array(ids, np.int32), np.arange(len(ids)) >= 6, 6)

    prompt = (5, 9, 11, 40, 7, 8)
    chosen, rejected = sequence(*prompt, 20, 21, 22, 23, 24, 25, 26), sequence(*prompt, 30, 31, 32, 33)
    one = torch.ones(1)
    batch = TextBatch(["a"], [chosen], [rejected], one, one, 0 * one)
    with torch.no_grad():
        apart = TokenLikelihood()
        expected = apart.logps(model.network, apart.prepare(batch))
        shared = TokenLikelihood(share_prompt=True)
        if is_refused:
            with pytest.raises(UserError, match="text.share_prompt(.|\n)*share_prompt: false"):
                shared.logps(model.network, shared.prepare(batch))
            return
        found = shared.logps(model.network, shared.prepare(batch))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
