"""Judges of texts against numbers got by hand from the same networks, and specs that say what is wrong with them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny_text
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaForSequenceClassification,
)

from diffusion_feedback.errors import UserError
from diffusion_feedback.scorers.texts.llm_judge import TEMPLATE, load
from diffusion_feedback.scorers.texts.loading import load_text_scorer

PROMPTS = ["a red circle", "the cat sat on the mat and", "", "hello there, how are you"]
COMPLETIONS = [" on a blue background", " the dog ran away with the cat and the mat", "good", "?"]


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama reward model whose padding token is its end token."""
    spelling = tiny_text.tokenizer(pad_is_eos=True, chat_template=tiny_text.CHATML)
    return tiny_text.save_tiny_reward_model(tmp_path_factory.mktemp("reward"), spelling=spelling)


def by_hand(folder: Path, ids: list[int]) -> torch.Tensor:
    """The head's output at the last of ``ids``, alone and without padding, in float64."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        hidden = model.model(torch.tensor([ids])).last_hidden_state
        return (model.score.weight @ hidden[0, -1]).detach()


def test_rewards_are_read_at_the_end_token(reward: Path) -> None:
    spelling = AutoTokenizer.from_pretrained(reward)
    assert spelling.pad_token_id == spelling.eos_token_id
    found = load_text_scorer(f"reward_model={reward}").score(PROMPTS, COMPLETIONS)
    for prompt, completion, score in zip(PROMPTS, COMPLETIONS, found, strict=True):
        ids = [*spelling(prompt + completion).input_ids, spelling.eos_token_id]
        assert score == pytest.approx(float(by_hand(reward, ids)), abs=1e-5)
        # transformers' own forward looks for the last token that is no padding, and reads one too early.
        assert score != pytest.approx(float(by_hand(reward, ids[:-1])), abs=1e-3)


def test_a_reward_depends_on_its_own_text_alone(reward: Path) -> None:
    alone = [
        load_text_scorer(f"reward_model={reward}").score([prompt], [text])[0]
        for prompt, text in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    for size in (1, 3, 32):
        together = load_text_scorer(f"reward_model={reward},batch_size={size}").score(PROMPTS[::-1], COMPLETIONS[::-1])
        assert together[::-1] == pytest.approx(alone, abs=1e-5)


def test_an_end_token_that_is_there_is_not_doubled(reward: Path) -> None:
    scorer = load_text_scorer(f"reward_model={reward}")
    assert scorer.score(["a"], [" b"]) == pytest.approx(scorer.score(["a"], [" b</s>"]), abs=1e-6)
    without = load_text_scorer(f"reward_model={reward},end_token=false").score(["a"], [" b"])
    assert without != pytest.approx(scorer.score(["a"], [" b"]), abs=1e-3)


def test_a_completion_that_was_cut_off_gets_no_end(reward: Path) -> None:
    scorer = load_text_scorer(f"reward_model={reward}")
    spelling = AutoTokenizer.from_pretrained(reward)
    ended, cut = scorer.score(["a cat", "a cat"], [" sat", " sat"], [True, False])
    ids = spelling("a cat sat").input_ids
    assert cut == pytest.approx(float(by_hand(reward, ids)), abs=1e-5)
    assert ended == pytest.approx(float(by_hand(reward, [*ids, spelling.eos_token_id])), abs=1e-5)
    turns = ({"role": "user", "content": "a cat?"},), ({"role": "assistant", "content": "a dog"},)
    (found,) = scorer.score([turns[0]], [turns[1]], [False])
    text = "<|im_start|>user\na cat?<|im_end|>\n<|im_start|>assistant\na dog"
    expected = by_hand(reward, spelling(text, add_special_tokens=False).input_ids)
    assert found == pytest.approx(float(expected), abs=1e-5)


def test_conversations_go_through_the_judge_s_own_template(reward: Path) -> None:
    scorer = load_text_scorer(f"reward_model={reward}")
    turns = ({"role": "user", "content": "a cat?"},), ({"role": "assistant", "content": "a dog"},)
    (found,) = scorer.score([turns[0]], [turns[1]])
    text = "<|im_start|>user\na cat?<|im_end|>\n<|im_start|>assistant\na dog<|im_end|>\n"
    ids = AutoTokenizer.from_pretrained(reward)(text, add_special_tokens=False).input_ids
    assert found == pytest.approx(float(by_hand(reward, ids)), abs=1e-5)
    assert scorer.score([turns[0]], ["a dog"]) == pytest.approx([found], abs=1e-6)
    assert load_text_scorer(f"reward_model={reward},as_chat=true").score(["a cat?"], ["a dog"]) == pytest.approx(
        [found]
    )


def test_long_texts_lose_their_beginning(reward: Path) -> None:
    spelling = AutoTokenizer.from_pretrained(reward)
    (found,) = load_text_scorer(f"reward_model={reward},max_length=8").score(["the cat sat " * 40], ["and the dog ran"])
    ids = [*spelling("the cat sat " * 40 + "and the dog ran").input_ids, spelling.eos_token_id][-8:]
    assert found == pytest.approx(float(by_hand(reward, ids)), abs=1e-5)


def test_recipes_name_weights_precision_and_form(reward: Path, tmp_path: Path) -> None:
    spelling = tiny_text.tokenizer(pad_is_eos=True, chat_template=tiny_text.CHATML)
    other = tiny_text.save_tiny_reward_model(tmp_path / "other", seed=1, spelling=spelling)
    specs = [f"reward_model={reward}", f"reward_model={other}", f"reward_model={reward},max_length=9"]
    recipes = [load_text_scorer(spec).recipe_id for spec in [*specs, f"{specs[0]},as_chat=true"]]
    recipes.append(load_text_scorer(specs[0], dtype=torch.bfloat16).recipe_id)
    assert len(set(recipes)) == 5
    assert load_text_scorer(specs[0]).recipe_id == recipes[0]


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weights are missing, such as score.weight"):
        load_text_scorer(f"reward_model={tiny_text.save_tiny_lm(tmp_path)}")


def test_a_judge_of_conversations_needs_a_template(tmp_path: Path) -> None:
    folder = tiny_text.save_tiny_reward_model(tmp_path, spelling=tiny_text.tokenizer())
    scorer = load_text_scorer(f"reward_model={folder}")
    with pytest.raises(UserError, match="no chat template"):
        scorer.score([({"role": "user", "content": "a"},)], ["b"])


# --- classifiers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with three labels."""
    folder, spelling = tmp_path_factory.mktemp("sentiment"), tiny_text.tokenizer(bos=True)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(spelling),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.5,
        id2label={0: "NEGATIVE", 1: "NEUTRAL", 2: "POSITIVE"},
        label2id={"NEGATIVE": 0, "NEUTRAL": 1, "POSITIVE": 2},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    spelling.save_pretrained(folder)
    return folder


def chances(folder: Path, text: str) -> torch.Tensor:
    """Probability of each label for one text, in float64."""
    model = BertForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        return torch.softmax(model(torch.tensor([AutoTokenizer.from_pretrained(folder)(text).input_ids])).logits[0], -1)


def test_classifiers_give_log_odds_or_probabilities(sentiment: Path) -> None:
    odds = load_text_scorer(f"classifier={sentiment},label=POSITIVE").score(PROMPTS, COMPLETIONS)
    shares = load_text_scorer(f"classifier={sentiment},label=POSITIVE,output=probability").score(PROMPTS, COMPLETIONS)
    alone = load_text_scorer(f"classifier={sentiment},label=NEGATIVE,reads=completion").score(PROMPTS, COMPLETIONS)
    for number, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        p = chances(sentiment, prompt + completion)
        assert odds[number] == pytest.approx(float((p[2] / (1 - p[2])).log()), abs=1e-4)
        assert shares[number] == pytest.approx(float(p[2]), abs=1e-5)
        q = chances(sentiment, completion)[0]
        assert alone[number] == pytest.approx(float((q / (1 - q)).log()), abs=1e-4)


def test_an_adapter_of_a_reward_model_is_its_judge(reward: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = LlamaForSequenceClassification.from_pretrained(reward)
    torch.manual_seed(1)
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tuned = get_peft_model(base, config)
    torch.nn.init.normal_(tuned.base_model.model.score.modules_to_save["default"].weight)
    tuned.save_pretrained(tmp_path)
    spelling = AutoTokenizer.from_pretrained(reward)
    spelling.save_pretrained(tmp_path)
    ids = [*spelling("a cat").input_ids, spelling.eos_token_id]
    with torch.no_grad():
        hidden = tuned.base_model.model.model(torch.tensor([ids])).last_hidden_state[0, -1]
        expected = float(tuned.base_model.model.score(hidden))
    (found,) = load_text_scorer(f"reward_model={tmp_path}").score(["a"], [" cat"])
    assert found == pytest.approx(expected, abs=1e-4)


# --- functions -------------------------------------------------------------------------------------------------------

FUNCTIONS = """
def by_length(prompts, completions):
    return [len(c) - len(p) for p, c in zip(prompts, completions)]
def trl(completions, **kwargs):
    return [float(len(c)) for c in completions]
def positional(a, b, /):
    return [len(c) for c in b]
def nan(prompts, completions):
    return [float("nan") if "bad" in c else 1.0 for c in completions]
def short(prompts, completions):
    return [1.0]
def word(prompts, completions):
    return ["x" for _ in completions]
def lonely(prompts):
    return prompts
def nothing(prompts, completions):
    return None
def boom(prompts, completions):
    raise KeyError("score")
def told(prompts, completions):
    from diffusion_feedback.errors import UserError
    raise UserError("the prompt asks for nothing", "ask")
def huge(prompts, completions):
    return [1e300 for _ in completions]
number = 3
"""


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    path = tmp_path / "rewards.py"
    path.write_text(FUNCTIONS)
    return path


def test_functions_of_every_form(functions: Path) -> None:
    wanted = {"by_length": [2.0, -1.0], "trl": [3.0, 1.0], "positional": [3.0, 1.0]}
    for name, expected in wanted.items():
        assert load_text_scorer(f"function={functions}:{name}").score(["a", "bc"], ["def", "g"]) == expected
    assert load_text_scorer("function=diffusion_feedback.shapes.captions:reward").score([], []) == []


def test_a_changed_file_is_another_recipe(functions: Path) -> None:
    first = load_text_scorer(f"function={functions}:trl").recipe_id
    functions.write_text(FUNCTIONS + "\n# changed\n")
    assert load_text_scorer(f"function={functions}:trl").recipe_id != first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", "the completion 'so bad' of the prompt 'p1' is nan"),
        ("short", "1 scores for 2 completions"),
        ("word", "'x' for the completion 'fine' of the prompt 'p0'"),
        ("nothing", r"function .*nothing: returned None"),
        ("boom", r"function .*boom: KeyError in .*rewards.py, line \d+: 'score'"),
        ("told", "^the prompt asks for nothing\n  -> ask$"),
        ("huge", r"of the prompt 'p0' is 1e\+300(.|\n)*single precision"),
    ],
)
def test_what_is_no_number_is_named(functions: Path, name: str, message: str) -> None:
    scorer = load_text_scorer(f"function={functions}:{name}")
    with pytest.raises(UserError, match=message):
        scorer.score(["p0", "p1"], ["fine", "so bad"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("reward=x", "unknown kind of judge 'reward'(.|\n)*did you mean 'reward_model'"),
        ("reward_model", "does not say where the reward_model lies"),
        ("reward_model={none}", "none: no such folder"),
        ("reward_model={none},maxlength=3", "does not take 'maxlength'(.|\n)*did you mean 'max_length'"),
        ("reward_model={none},max_length", "'max_length' is no setting"),
        ("reward_model={none},max_length=3,max_length=4", "stands twice"),
        ("classifier={none}", "needs a value for 'label'"),
        ("classifier={none},label=a,output=odds", "output=odds(.|\n)*allowed: logit, probability"),
        ("function=rewards", "no function is named"),
        ("function={file}:missing", "'missing' is not there(.|\n)*by_length"),
        ("function={file}:number", "'number' is a int"),
        ("function={file}:lonely", "is called with prompts and completions"),
        ("function={none}/a.py:f", "no such file"),
        ("function=no_such_module:f", "no module 'no_such_module'"),
    ],
)
def test_bad_specs_are_refused(functions: Path, tmp_path: Path, spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_text_scorer(spec.format(none=tmp_path / "none", file=functions))


def test_bad_values_of_settings(reward: Path, sentiment: Path) -> None:
    for spec, message in [
        (f"reward_model={reward},max_length=0", "max_length=0"),
        (f"reward_model={reward},as_chat=yes", "as_chat=yes"),
        (f"classifier={sentiment},label=POSITIF", "no label 'POSITIF'(.|\n)*did you mean 'POSITIVE'"),
        (f"classifier={reward},label=LABEL_0", "has 1 label"),
    ]:
        with pytest.raises(UserError, match=message):
            load_text_scorer(spec)


# --- language models as judges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [None, tiny_text.CHATML])
def test_an_llm_judge_reads_the_replies_a_and_b(tmp_path: Path, template: str | None) -> None:
    spelling = tiny_text.tokenizer(chat_template=template)
    folder = tiny_text.save_tiny_lm(tmp_path / "lm", spelling=spelling, positions=1024)
    question = tmp_path / "question.txt"
    question.write_text("{prompt}|{second}|{first} which?")
    judge = load(str(folder), template=str(question), batch_size="2")
    rows = [("say {first}", "a cat", "a dog"), ("b", "the mat", "a dog and a cat"), ("c", "x", "x")]
    found = judge.judge(*(list(column) for column in zip(*rows, strict=True)))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    for (prompt, first, second), preference in zip(rows, found, strict=True):
        text = f"{prompt}|{second}|{first} which?"
        if template:
            text = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        logps = []
        for reply in ("A", "B"):
            ids = torch.tensor(
                spelling(text + ("" if template else " ") + reply, add_special_tokens=not template).input_ids
            )
            with torch.no_grad():
                table = torch.log_softmax(model(ids[None]).logits[0], -1)
            logps.append(float(table[:-1].gather(1, ids[1:, None]).sum()))  # the whole text: what they share cancels
        assert preference == pytest.approx(1 / (1 + math.exp(logps[1] - logps[0])), abs=1e-5)
    assert judge.recipe_id != load(str(folder)).recipe_id


def test_bad_questions_are_refused(tmp_path: Path) -> None:
    folder = tiny_text.save_tiny_lm(tmp_path / "lm", spelling=tiny_text.tokenizer())
    (tmp_path / "question.txt").write_text("{prompt} {first}")
    with pytest.raises(UserError, match="does not hold {second}"):
        load(str(folder), template=str(tmp_path / "question.txt"))
    with pytest.raises(UserError, match="no such file"):
        load(str(folder), template=str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match="tokens, its window holds 128"):
        load(str(folder)).judge(["a"], ["b"], ["c " * 200])
    assert all("{" + name + "}" in TEMPLATE for name in ("prompt", "first", "second"))


def test_settings_of_a_function(tmp_path: Path) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(
        "def near(prompts, completions, *, target=3):\n    return [-abs(len(c) - target) for c in completions]\n"
    )
    plain, five = (load_text_scorer(f"function={file}:near{end}") for end in ("", ",target=5"))
    assert plain.score(["p"], ["abc"]) == [0.0]
    assert five.score(["p"], ["abc"]) == [-2.0]
    assert plain.recipe_id != five.recipe_id
    with pytest.raises(UserError, match="does not take 'goal'"):
        load_text_scorer(f"function={file}:near,goal=5")
