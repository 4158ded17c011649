"""Random walks on a directed graph: what ILQL makes of them, beside behaviour cloning on the same walks.

    python -m experiments.random_walks                       # three graphs, the table below
    python -m experiments.random_walks --prepare             # only the walks and the model that configs/walks_ilql.yaml reads

The task is that of trlX's example (github.com/CarperAI/trlx, examples/randomwalks), rebuilt: a directed graph of 21 nodes
where each edge is there with probability 0.1, a goal, and 1,000 walks that take a random edge at each node until they are
at the goal or have visited 10 nodes. A walk's reward is its optimality: 1 for a shortest path to the goal, falling to 0
for one of 10 nodes, and 0 for one that does not arrive, or takes an edge that is not there. A small GPT-2 of 23 tokens
(the nodes, an end token and padding) learns from walks alone, without the graph; samples are drawn at temperature 1 for
every start.

Three runs a graph, with the same walks in the same order: behaviour cloning (objective sft), ILQL, and ILQL whose values
leave the trunk alone (value_gradient 0), the policy of which has to be behaviour cloning's to the last bit. A killed script
goes on where it was. It takes five minutes of one CPU core, writes results.json and optimality.png, and prints what
follows: means over three graphs with 95 % intervals (Student's t). They are wide where graphs differ in how easily a
random walk arrives; the gain over behaviour cloning is taken on each graph by itself.

                                            optimality   gain on cloning           arrived
    walks                               0.190 +- 0.199
    cloning                             0.171 +- 0.185    0.000 +- 0.000    0.280 +- 0.265
    distance of ilql from cloning       0.034 +- 0.020
    ilql beta 0                         0.173 +- 0.190    0.002 +- 0.006    0.281 +- 0.266
    ilql beta 1                         0.279 +- 0.223    0.108 +- 0.041    0.361 +- 0.261
    ilql beta 4                         0.533 +- 0.211    0.362 +- 0.033    0.637 +- 0.244
    ilql beta 16                        0.852 +- 0.135    0.681 +- 0.078    0.925 +- 0.083
    ilql beta 100                       0.931 +- 0.037    0.760 +- 0.174    0.988 +- 0.040
    distance of apart from cloning      0.000 +- 0.000
    apart beta 0                        0.171 +- 0.185    0.000 +- 0.000    0.280 +- 0.265
    apart beta 1                        0.227 +- 0.220    0.056 +- 0.040    0.317 +- 0.272
    apart beta 4                        0.343 +- 0.336    0.172 +- 0.156    0.468 +- 0.421
    apart beta 16                       0.612 +- 0.359    0.441 +- 0.190    0.763 +- 0.339
    apart beta 100                      0.771 +- 0.343    0.600 +- 0.169    0.914 +- 0.209

"walks" are those learnt from, "apart" is the third run, beta is that of decoding, and a distance is the mean total
variation of next-token distributions along held-out walks. So at beta 0 ILQL imitates as behaviour cloning does, exactly
where the trunk is not shared and within noise where it is; optimality rises with beta, far above all that was shown;
and values that may shape the trunk are better values. Rounding differs between machines.
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import t as student
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from diffusion_feedback.catalog import objective_row
from diffusion_feedback.config.parsing import load_recipe
from diffusion_feedback.config.recipe import Recipe, to_yaml
from diffusion_feedback.data.trajectories import TrajectoryIndex
from diffusion_feedback.likelihoods.tokens import TokenLikelihood
from diffusion_feedback.models import causal_lm, value_heads
from diffusion_feedback.records import atomic_write, content_hash
from diffusion_feedback.training.loop import Trainer
from diffusion_feedback.training.order import EpochOrder
from diffusion_feedback.training.run_folder import RunFolder
from diffusion_feedback.training.sources import TokenSource
from diffusion_feedback.training.steps import PointwiseStep, StepParts
from diffusion_feedback.types.texts import TextBatch
from diffusion_feedback.workflows.training.given import Setup
from diffusion_feedback.workflows.training.run import build_optimizer, train
from diffusion_feedback.workflows.training.value_learning import load_trajectories

NODES, EDGE, LONGEST, WALKS = 21, 0.1, 10, 1000
LETTERS = "abcdefghijklmnopqrstu"
GOAL = 0
END, PADDING = "<end>", "<pad>"
RECIPE = "configs/walks_ilql.yaml"
BETAS = (0.0, 1.0, 4.0, 16.0, 100.0)
SAMPLES = 50  # of each start


# --- the world -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Graph:
    """``edges`` (21, 21) bool, from row to column; ``shortest`` (21,) nodes of the shortest path to the goal, both ends."""

    edges: NDArray[np.bool_]
    shortest: NDArray[np.int64]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Graph:
        """A graph in which every node leads somewhere, and has a path to the goal of fewer than 10 nodes."""
        while True:
            edges = rng.random((NODES, NODES)) < EDGE
            np.fill_diagonal(edges, False)
            for node in np.flatnonzero(~edges.any(1)):
                edges[node, rng.choice([other for other in range(NODES) if other != node])] = True
            shortest = _shortest_paths(edges)
            if shortest.max() < LONGEST:
                return cls(edges, shortest)

    def walk(self, rng: np.random.Generator) -> list[int]:
        """A walk from any node but the goal, along random edges, to the goal or to ten nodes."""
        path = [int(rng.integers(1, NODES))]
        while path[-1] != GOAL and len(path) < LONGEST:
            path.append(int(rng.choice(np.flatnonzero(self.edges[path[-1]]))))
        return path

    def optimality(self, path: Sequence[int]) -> float:
        """The reward of a path, in [0, 1]."""
        is_walk = all(self.edges[node, other] for node, other in pairwise(path))
        if not is_walk or path[-1] != GOAL or len(path) > LONGEST:
            return 0.0
        least = int(self.shortest[path[0]])
        return 1 - (len(path) - least) / (LONGEST - least)


def _shortest_paths(edges: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Nodes on the shortest path from each node to the goal, by breadth-first search backwards from it."""
    moves = np.full(NODES, 10**6)
    moves[GOAL] = 1
    queue = deque([GOAL])
    while queue:
        node = queue.popleft()
        for other in np.flatnonzero(edges[:, node]):
            if moves[other] > moves[node] + 1:
                moves[other] = moves[node] + 1
                queue.append(other)
    return moves


def spell(path: Sequence[int]) -> str:
    """A path as letters."""
    return "".join(LETTERS[node] for node in path)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a node, then the end token and padding: 23."""
    vocabulary = {word: number for number, word in enumerate((*LETTERS, END, PADDING))}
    spelling = Tokenizer(models.WordLevel(vocabulary, unk_token=PADDING))
    spelling.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=spelling, eos_token=END, pad_token=PADDING)


def prepare(folder: Path, seed: int) -> Graph:
    """Write the walks (half as many again are held out) and a model with random weights; gives the graph."""
    rng = np.random.default_rng(seed)
    graph = Graph.draw(rng)
    for name, number in (("train", WALKS), ("validation", WALKS // 2)):
        walks = [graph.walk(rng) for _ in range(number)]
        rows = [
            {"prompt": spell(path[:1]), "completion": spell(path[1:]), "reward": graph.optimality(path)}
            for path in walks
        ]
        with atomic_write(folder / f"{name}.jsonl") as file:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    torch.manual_seed(seed)
    spelling = tokenizer()
    ids = {"eos_token_id": spelling.eos_token_id, "pad_token_id": spelling.pad_token_id, "bos_token_id": None}
    config = GPT2Config(vocab_size=len(spelling), n_positions=16, n_embd=64, n_layer=3, n_head=4, **ids)
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    spelling.save_pretrained(folder / "model")
    return graph


# --- training --------------------------------------------------------------------------------------------------------


def recipe_of(folder: Path, name: str, seed: int, **objective: float) -> Recipe:
    """The recipe of one run on the walks in ``folder``."""
    paths = [("model.pretrained_model_name_or_path", "model"), ("data.train", "train.jsonl")]
    paths += [("data.validation", "validation.jsonl"), ("output_dir", name)]
    settings = {f"objective.{key}": value for key, value in objective.items()}
    return load_recipe(RECIPE, {**{key: folder / value for key, value in paths}, "training.seed": seed, **settings})


def clone(recipe: Recipe, folder: Path) -> causal_lm.CausalLM:
    """Behaviour cloning: objective sft on the walks of ``recipe``, in the same order, by the same optimizer."""
    training, accelerator = recipe.training, Accelerator(cpu=True)
    model = causal_lm.load(recipe.model.pretrained_model_name_or_path)
    model.network.requires_grad_(True)
    index, _ = load_trajectories(Setup(recipe, accelerator), model)

    def batch(indices: Sequence[int], draw: int) -> TextBatch:
        steps = index.batch(indices, draw)
        ones = torch.ones(len(steps))
        return TextBatch(steps.example_ids, steps.sequences, [], ones, steps.weight, torch.zeros(len(steps)), draw)

    order = EpochOrder(len(index), training.train_batch_size * training.gradient_accumulation_steps, training.seed)
    budget = training.train_batch_size * max(index.lengths)
    source = TokenSource(order, batch, index.lengths, budget, counts=index.counts)
    step = PointwiseStep(StepParts(TokenLikelihood(), None, objective_row("sft"), {}))
    optimizer = build_optimizer(recipe, list(model.network.parameters()))
    run = RunFolder(folder)
    run.path.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        accelerator,
        training,
        run,
        model.network,
        step,
        source,
        optimizer,
        evaluate=lambda *_: {},
        identity={"recipe": content_hash(to_yaml(recipe))},
    )
    trainer.fit()
    model.save(model.network, folder)
    return model


def learnt(folder: Path) -> tuple[causal_lm.CausalLM, value_heads.ValueNetwork]:
    """The model and the value network of a finished run."""
    model = causal_lm.load(str(folder))
    return model, value_heads.attach(model.network, str(folder), seed=0)


# --- judging ---------------------------------------------------------------------------------------------------------


def judge(model: causal_lm.CausalLM, network: Any, graph: Graph) -> dict[str, float]:
    """Mean optimality of samples from every start, in [0, 1], and how many of them arrive."""
    starts = [start for start in range(1, NODES) for _ in range(SAMPLES)]
    completions = model.sample(network, [[start] for start in starts], range(len(starts)), max_new_tokens=LONGEST)
    end = model.tokenizer.eos_token_id
    paths = [
        [start, *(token for token in tokens if token != end)] for start, tokens in zip(starts, completions, strict=True)
    ]
    scores = [graph.optimality(path) if max(path) < NODES else 0.0 for path in paths]
    return {"optimality": float(np.mean(scores)), "arrived": float(np.mean([path[-1] == GOAL for path in paths]))}


@torch.no_grad()
def distributions(network: nn.Module, index: TrajectoryIndex) -> torch.Tensor:
    """Next-token distributions (N, V) at every action of the walks."""
    inputs = TokenLikelihood().prepare_sequences([each.sequence for each in index.trajectories])

    def read(hidden: torch.Tensor, head: nn.Module) -> torch.Tensor:
        scores: torch.Tensor = head(hidden.flatten(0, 1)[inputs.read])
        return scores.softmax(1)

    logits: torch.Tensor = network(inputs.input_ids, inputs.attention_mask, inputs.position_ids, read)
    return logits


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean total variation of two lists of distributions, in [0, 1]."""
    return float((one - other).abs().sum(1).mean() / 2)


def run_seed(folder: Path, seed: int) -> dict[str, Any]:
    """All runs on one graph, and what became of them."""
    graph = prepare(folder, seed)
    runs = {"ilql": recipe_of(folder, "ilql", seed)}
    runs["apart"] = recipe_of(folder, "apart", seed, value_gradient=0.0)
    for recipe in runs.values():
        train(recipe, resume=True)
    cloned = clone(runs["ilql"], folder / "cloning")
    rewards = [json.loads(line)["reward"] for line in (folder / "train.jsonl").read_text("utf-8").splitlines()]
    index = load_trajectories(runs["ilql"], cloned, Accelerator(cpu=True), heldout=True)
    assert index is not None
    reference = distributions(cloned.network, index)
    row: dict[str, Any] = {"seed": seed, "walks": float(np.mean(rewards))}
    row["cloning"] = judge(cloned, cloned.network, graph)
    for name in runs:
        model, network = learnt(folder / name)
        row[f"distance of {name} from cloning"] = distance(reference, distributions(model.network, index))
        for beta in BETAS:
            with value_heads.steered(network, beta=beta) as policy:
                row[f"{name} beta {beta:g}"] = judge(model, policy, graph)
    return row


# --- results ---------------------------------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean and the half width of its 95 % interval (Student's t over the graphs)."""
    spread = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return {"mean": float(np.mean(values)), "half_width": float(student.ppf(0.975, len(values) - 1)) * spread}


def summary(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every figure over the graphs; ``gain`` is the optimality less behaviour cloning's on the same graph."""
    rows: dict[str, Any] = {}
    for name, value in seeds[0].items():
        if name == "seed":
            continue
        if isinstance(value, Mapping):
            gains = [seed[name]["optimality"] - seed["cloning"]["optimality"] for seed in seeds]
            rows[name] = {key: interval([seed[name][key] for seed in seeds]) for key in value}
            rows[name]["gain"] = interval(gains)
        else:
            rows[name] = interval([seed[name] for seed in seeds])
    return rows


def table(rows: Mapping[str, Any]) -> str:
    """The summary as text."""
    lines = [f"{'':32}{'optimality':>18}{'gain on cloning':>18}{'arrived':>18}"]
    for name, row in rows.items():
        cells = [row] if "mean" in row else [row[key] for key in ("optimality", "gain", "arrived")]
        lines.append(f"{name:32}" + "".join(f"{cell['mean']:>9.3f} +- {cell['half_width']:.3f}" for cell in cells))
    return "\n".join(lines)


def draw(rows: Mapping[str, Any], path: Path) -> None:
    """Optimality over beta, with behaviour cloning and the walks themselves."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    places = range(len(BETAS))
    for name, label in (("ilql", "ILQL"), ("apart", "ILQL, values apart from the trunk")):
        cells = [rows[f"{name} beta {beta:g}"]["optimality"] for beta in BETAS]
        widths = [cell["half_width"] for cell in cells]
        axes.errorbar(places, [cell["mean"] for cell in cells], widths, marker="o", capsize=3, label=label)
    axes.axhline(rows["cloning"]["optimality"]["mean"], color="grey", linestyle="--", label="behaviour cloning")
    axes.axhline(rows["walks"]["mean"], color="grey", linestyle=":", label="the walks learnt from")
    axes.set_xticks(list(places), [f"{beta:g}" for beta in BETAS])
    axes.set_xlabel("beta of decoding")
    axes.set_ylabel("optimality of sampled walks")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)


def main() -> None:
    """Prepare, or run everything and write results.json and optimality.png."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/random_walks"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one graph each")
    parser.add_argument("--prepare", action="store_true", help="only write the walks and the model of the first seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.prepare:
        prepare(options.output_dir / f"graph-{options.seeds[0]}", options.seeds[0])
        return
    seeds = [run_seed(options.output_dir / f"graph-{seed}", seed) for seed in options.seeds]
    rows = summary(seeds)
    results = {"graphs": seeds, "summary": rows, "recipe": yaml.safe_load(Path(RECIPE).read_text("utf-8"))}
    with atomic_write(options.output_dir / "results.json") as file:
        file.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    draw(rows, options.output_dir / "optimality.png")
    print(table(rows))


if __name__ == "__main__":
    main()
