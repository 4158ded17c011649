"""Learning values: the step against loops over tables, its targets, its layout, and whole runs by the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_text
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from diffusion_feedback.catalog import objective_row
from diffusion_feedback.cli.main import main
from diffusion_feedback.config.parsing import load_recipe
from diffusion_feedback.config.recipe import TrainingConfig
from diffusion_feedback.errors import UserError
from diffusion_feedback.likelihoods.tokens import TokenLikelihood
from diffusion_feedback.models import causal_lm, value_heads
from diffusion_feedback.models.causal_lm import LanguageModel
from diffusion_feedback.models.value_heads import ValueHeads, ValueNetwork
from diffusion_feedback.training.heldout import even_passes, step_sums
from diffusion_feedback.training.loop import Trainer
from diffusion_feedback.training.order import EpochOrder
from diffusion_feedback.training.run_folder import RunFolder
from diffusion_feedback.training.sources import TokenSource
from diffusion_feedback.training.steps import PointwiseStep, StepParts
from diffusion_feedback.training.value_learning import ValueLearningStep
from diffusion_feedback.types.texts import TextBatch, TokenSequence, TrajectoryBatch
from diffusion_feedback.workflows.training import run as training_run

SETTINGS = {"gamma": 0.9, "tau": 0.8, "cql_scale": 0.3, "awac_scale": 0.7, "beta": 1.5}
VOCABULARY = 30


def trajectory(number: int, length: int, *, gap: bool = False) -> tuple[TokenSequence, np.ndarray[Any, Any]]:
    """A sequence of ``length`` tokens after a prompt of two; with a ``gap``, tokens 4 and 5 are another speaker's."""
    source = np.random.default_rng(number)
    ids = source.integers(3, VOCABULARY, 2 + length).astype(np.int32)
    scored = np.arange(2 + length) >= 2
    if gap:
        scored[4:6] = False
    return TokenSequence(ids, scored, 2), source.normal(size=int(scored.sum())).astype(np.float32)


DATA = [trajectory(n, 3 + (5 * n) % 7, gap=n % 3 == 2) for n in range(12)]


def batch_of(indices: Sequence[int], draw: int = 0, weights: Sequence[float] | None = None) -> TrajectoryBatch:
    weight = torch.ones(len(indices)) if weights is None else torch.tensor(weights)
    found = [DATA[i] for i in indices]
    return TrajectoryBatch([str(i) for i in indices], [s for s, _ in found], [r for _, r in found], weight, draw)


def build(seed: int = 0, dtype: torch.dtype = torch.float64) -> ValueNetwork:
    # GPT-2 computes in the precision of its weights; Llama's norms are in float32.
    model = tiny_text.language_model("gpt2", seed=seed, vocab_size=VOCABULARY)
    network = ValueNetwork(LanguageModel(model), ValueHeads(32, VOCABULARY, seed=seed)).to(dtype)
    with torch.no_grad():  # apart from their targets, which is where they are after some updates
        for p in network.heads.q_heads.parameters():
            p.add_(0.1)
    return network


def step_of(network: ValueNetwork, **settings: float) -> ValueLearningStep:
    parts = StepParts(TokenLikelihood(), None, objective_row("ilql"), {**SETTINGS, **settings})
    return ValueLearningStep(parts, network.heads)


def by_loops(network: ValueNetwork, indices: Sequence[int]) -> list[list[float]]:
    """The loss of every action of every trajectory, one sequence at a time, by transformers' own forward pass."""
    found = []
    for sequence, rewards in (DATA[i] for i in indices):
        with torch.no_grad():
            output = network.language_model.model(
                torch.from_numpy(sequence.ids)[None].long(), output_hidden_states=True
            )
            hidden = output.hidden_states[-1][0]
            q, v, target = network.heads.q(hidden), network.heads.v(hidden), network.heads.target_q(hidden)
        actions = np.flatnonzero(sequence.scored).tolist()
        losses = []
        for number, position in enumerate(actions):
            state, token = position - 1, int(sequence.ids[position])
            following = float(v[actions[number + 1] - 1]) if number + 1 < len(actions) else 0.0
            goal = float(rewards[number]) + SETTINGS["gamma"] * following
            gap = float(target[state, token] - v[state])
            loss = sum(float((q[head, state, token] - goal) ** 2) for head in range(2))
            loss += (SETTINGS["tau"] if gap >= 0 else 1 - SETTINGS["tau"]) * gap**2
            loss += SETTINGS["cql_scale"] * sum(
                float(q[head, state].logsumexp(0) - q[head, state, token]) for head in range(2)
            )
            logp = float(output.logits[0, state].double().log_softmax(0)[token])
            losses.append(loss + SETTINGS["awac_scale"] * np.exp(min(SETTINGS["beta"] * gap, np.log(100))) * -logp)
        found.append(losses)
    return found


def test_the_step_is_the_formula() -> None:
    network, indices, weights = build(), [0, 2, 5, 7], [1.0, 2.0, 0.5, 1.0]
    output = step_of(network)(network, batch_of(indices, weights=weights))
    expected = by_loops(network, indices)
    means = torch.tensor([np.mean(losses) for losses in expected])
    torch.testing.assert_close(output.metrics["loss"], means, rtol=1e-10, atol=0)
    assert output.weights["loss"].tolist() == [len(losses) for losses in expected]
    total = sum(weight * sum(losses) for weight, losses in zip(weights, expected, strict=True))
    assert float(output.loss.detach()) == pytest.approx(total, rel=1e-10)
    returns = [float(DATA[i][1].astype(np.float64).sum()) for i in indices]
    assert output.metrics["return"].tolist() == pytest.approx(returns, rel=1e-6)
    assert set(output.metrics) >= {"losses/q", "losses/v", "losses/cql", "losses/awac", "nll", "values/v", "values/q"}


def gradients(network: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def test_any_split_into_passes_gives_the_same_gradient() -> None:
    network = build()
    step = step_of(network)
    whole = gradients(network, step(network, batch_of(range(12))).loss)
    parts = [
        gradients(network, step(network, batch_of(part)).loss) for part in ([3, 1], [11], [0, 2, 4, 5, 6, 7, 8, 9, 10])
    ]
    assert whole.keys() == parts[0].keys()
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_values_share_of_the_trunk(share: float) -> None:
    """The trunk's gradient is that of imitation, and ``value_gradient`` times that of the values; the heads' is whole."""
    network, batch = build(), batch_of([0, 1, 2])

    def of(**settings: float) -> dict[str, torch.Tensor]:
        return gradients(network, step_of(network, **settings)(network, batch).loss)

    mixed, whole, imitation = of(value_gradient=share), of(), of(value_gradient=0.0)
    values = of(awac_scale=0.0)
    for name, value in mixed.items():
        if name.startswith("heads."):
            torch.testing.assert_close(value, whole[name], rtol=1e-10, atol=1e-12)
        else:
            torch.testing.assert_close(value, imitation[name] + share * values[name], rtol=1e-8, atol=1e-10)
    assert any(bool(values[name].any()) for name in values if not name.startswith("heads."))


def test_the_policy_is_behaviour_cloning_to_the_last_bit() -> None:
    """At beta 0 and value_gradient 0 the trunk's gradient is that of supervised fine-tuning."""
    network = build(dtype=torch.float32)
    step = step_of(network, beta=0.0, value_gradient=0.0, awac_scale=1.0)
    found = gradients(network, step(network, batch_of([0, 3, 4])).loss)
    sequences = [DATA[i][0] for i in (0, 3, 4)]
    ones = torch.ones(3)
    texts = TextBatch(["0", "3", "4"], sequences, [], ones, ones, torch.zeros(3))
    cloning = PointwiseStep(StepParts(TokenLikelihood(), None, objective_row("sft"), {}))
    expected = gradients(network.language_model, cloning(network.language_model, texts).loss)
    for name, value in expected.items():
        assert torch.equal(found[f"language_model.{name}"], value), name


def test_targets_follow_every_few_updates() -> None:
    network = build()
    step = step_of(network, target_alpha=0.25, target_sync_steps=3)
    targets = [p.clone() for p in network.heads.target_q_heads.parameters()]
    heads = list(network.heads.q_heads.parameters())
    for update in range(1, 8):
        step.observe(network, {})
        if update % 3 == 0:
            targets = [0.75 * old + 0.25 * new.detach() for old, new in zip(targets, heads, strict=True)]
        for expected, found in zip(targets, network.heads.target_q_heads.parameters(), strict=True):
            torch.testing.assert_close(found.detach(), expected, rtol=1e-12, atol=0)
    other = build(seed=1)
    again = step_of(other, target_alpha=0.25, target_sync_steps=3)
    again.load_state_dict({name: value.clone() for name, value in step.state_dict().items()})
    assert again.updates == 7
    for saved, found in zip(
        network.heads.target_q_heads.parameters(), other.heads.target_q_heads.parameters(), strict=True
    ):
        assert torch.equal(found, saved)


def test_what_the_step_refuses() -> None:
    network = build()
    short = batch_of([0])
    wrong = TrajectoryBatch(short.example_ids, short.sequences, [short.rewards[0][:-1]], short.weight)
    with pytest.raises(ValueError, match="3 scored tokens, 2 rewards"):
        step_of(network)(network, wrong)
    with pytest.raises(UserError, match="objective.tau"):
        step_of(network, tau=2.0).check()
    with torch.no_grad():
        network.heads.v_head[0].weight.fill_(float("nan"))
    with pytest.raises(UserError, match="step 0: the loss is nan"):
        step_of(network).gate(network, short)


def test_heldout_figures_do_not_depend_on_the_batches() -> None:
    network = build()
    step = step_of(network)
    first, second = (
        step_sums(step, network, batch_of, even_passes(12, size), "trajectories").means() for size in (12, 5)
    )
    assert first == pytest.approx(second, rel=1e-9)
    losses = [loss for losses in by_loops(network, range(12)) for loss in losses]
    assert first["loss"] == pytest.approx(float(np.mean(losses)), rel=1e-9)
    assert step.updates == 0


def fit(folder: Path, steps: int, max_tokens: int = 1000) -> dict[str, torch.Tensor]:
    """Train for ``steps`` updates, from the newest checkpoint in ``folder``; gives all weights."""
    # In float64, as Adam makes a step of any gradient above 1e-8, though it be the rounding of a zero.
    network = build()
    network.language_model.requires_grad_(True)
    trained = [p for p in network.parameters() if p.requires_grad]
    counts = [len(rewards) for _, rewards in DATA]
    source = TokenSource(EpochOrder(12, 4, 0), batch_of, [len(s) for s, _ in DATA], max_tokens, counts=counts)
    step = step_of(network, target_alpha=0.5, target_sync_steps=2)
    trainer = Trainer(
        Accelerator(cpu=True),
        TrainingConfig(max_train_steps=steps, learning_rate=1e-2, checkpointing_steps=3, ema_decay=0.9),
        RunFolder(folder),
        network,
        step,
        source,
        torch.optim.AdamW(trained),
        evaluate=lambda *_: {},
    )
    trainer.fit()
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_a_continued_run_ends_like_one_that_never_stopped(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", 8)
    fit(tmp_path / "parts", 3)
    resumed = fit(tmp_path / "parts", 8)
    assert any(name.startswith("heads.target_q_heads") for name in whole)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name
    small = fit(tmp_path / "small", 8, max_tokens=12)
    for name, value in whole.items():
        torch.testing.assert_close(small[name], value, rtol=1e-6, atol=1e-7)


# --- whole runs, by the command line ---------------------------------------------------------------------------------


def write_walks(path: Path, number: int, seed: int) -> Path:
    """Texts of which those that end in "dog" are rewarded."""
    words = np.random.default_rng(seed)
    rows = []
    for _ in range(number):
        last = words.choice(["dog", "mat"])
        text = " ".join(words.choice(["the", "cat", "sat", "ran"], int(words.integers(1, 6))))
        rows.append({"prompt": "the", "completion": f" {text} {last}", "reward": float(last == "dog")})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    content = {
        "model": {
            "pretrained_model_name_or_path": str(tiny_text.save_tiny_lm(tmp_path / "lm")),
            "family": "causal_lm",
            "tuning": "full",
        },
        "data": {
            "train": str(write_walks(tmp_path / "train.jsonl", 24, 0)),
            "validation": str(write_walks(tmp_path / "validation.jsonl", 10, 1)),
        },
        "output_dir": str(tmp_path / "run"),
        "objective": {"name": "ilql", "target_alpha": 0.5, "target_sync_steps": 2},
        "training": {"max_train_steps": 6, "train_batch_size": 8, "learning_rate": 1e-3, "checkpointing_steps": 2},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {**load_file(folder / "model.safetensors"), **load_file(folder / "value_heads.safetensors")}


def test_a_run_explains_itself_and_goes_on(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted between two checkpoints and resumed, a run ends with the very same weights, targets included."""
    command = ["train", "--config", str(recipe)]
    assert main(command) == 0
    folder = tmp_path / "run"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["gate/loss"] == pytest.approx(rows[1]["loss"], rel=1e-6)
    last = rows[-1]
    assert last["step"] == 6
    assert last["validation/nll"] > 0
    card = (folder / "README.md").read_text()
    assert f"| 6 | {last['validation/nll']:.4f} |" in card
    assert "`value_heads.safetensors`" in card

    written = RunFolder.log

    def stop_at_five(self: RunFolder, row: dict[str, Any]) -> None:
        if row["step"] == 5:
            raise KeyboardInterrupt
        written(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", stop_at_five)
        with pytest.raises(KeyboardInterrupt):
            training_run.train(load_recipe(recipe, {"output_dir": tmp_path / "b"}))
    assert [found.name for found in RunFolder(tmp_path / "b").checkpoints()] == ["step-000002", "step-000004"]
    assert main([*command, "--output_dir", str(tmp_path / "b"), "--resume"]) == 0
    expected, found = weights(folder), weights(tmp_path / "b")
    assert any(name.startswith("target_q_heads") for name in expected)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_result_is_used_as_the_card_says(recipe: Path, tmp_path: Path) -> None:
    assert main(["train", "--config", str(recipe), "--model.tuning", "lora"]) == 0
    folder = tmp_path / "run"
    assert (folder / "adapter_config.json").is_file()
    model = causal_lm.load(str(folder))
    network = value_heads.attach(model.network, str(folder), seed=0)
    saved = load_file(folder / "value_heads.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in network.heads.state_dict().items())
    prompts = [model.tokenizer("the")["input_ids"]]
    plain = model.sample(model.network, prompts, [0], max_new_tokens=8)
    with value_heads.steered(network, beta=0.0) as policy:
        assert model.sample(policy, prompts, [0], max_new_tokens=8) == plain
    (row,) = [
        row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "validation/nll" in row
    ]
    # The held-out likelihood of the model on disk, by transformers alone, is what the run says of it.
    losses, count = 0.0, 0
    for line in (tmp_path / "validation.jsonl").read_text().splitlines():
        texts = json.loads(line)
        ids = torch.tensor([[*model.tokenizer(texts["prompt"] + texts["completion"])["input_ids"], 1]])
        start = len(prompts[0])
        with torch.no_grad():
            logps = model.network.model(ids).logits[0, :-1].log_softmax(1)
        own = logps.gather(1, ids[0, 1:, None])[start - 1 :]
        losses, count = losses - float(own.sum()), count + len(own)
    assert row["validation/nll"] == pytest.approx(losses / count, rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--objective.tau", "1.5"], ["objective.tau: got 1.5"]),
        (["--objective.alpha", "1"], ["does not take 'alpha'", "target_alpha"]),
        (["--training.ema_decay", "0.9"], ["training.ema_decay", "whose targets are averages already"]),
        (["--validation.prompts", "[a]"], ["validation.prompts", "means nothing for objective 'ilql'"]),
        (["--rollouts.temperature", "2"], ["rollouts.temperature", "means nothing"]),
        (["--text.max_length", "4"], ["train.jsonl, line 1", "more than the 4 of text.max_length"]),
        (["--text.max_length", "1000"], ["text.max_length: got 1000", "128"]),
        (["--text.share_prompt", "true"], ["text.share_prompt"]),
        (["--model.reference_model_name_or_path", "x"], ["has no reference"]),
        (["--data.validation", "TRAIN"], ["data.validation: all of its 24 trajectories"]),
        (["--training.train_batch_size", "99"], ["effective batch of 99"]),
        (["--model.family", "reward_model"], ["'ilql' cannot tune"]),
    ],
)  # fmt: skip
def test_bad_settings(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], named: list[str]
) -> None:
    flags = [flag.replace("TRAIN", str(tmp_path / "train.jsonl")) for flag in flags]
    assert main(["train", "--config", str(recipe), *flags]) == 2
    message = capsys.readouterr().err
    for words in named:
        assert words in message
    assert not (tmp_path / "run").exists()


def test_dry_run(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", str(recipe), "--dry_run"]) == 0
    printed = capsys.readouterr().out
    for words in ("24 for training, 10 held out", "actions", "returns 0 to 1", "value heads", "(measured)"):
        assert words in printed
    assert not (tmp_path / "run").exists()
