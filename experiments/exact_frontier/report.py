"""Tables, bars and figure of the frontier, from the results of its seeds; this module trains nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from scipy import stats

from diffusion_feedback.records import atomic_write

from .world import ExactWorld, Frontier, joint

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Row = Mapping[str, Any]

LABELS = {
    "best_of_n": "best of N",
    "dpo": "DPO",
    "ppo": "PPO, true reward",
    "ppo_learned": "PPO, learned reward",
    "learned_optimum": "optimum of the learned reward",
    "iterated_initial": "iterated DPO, initial reference",
    "iterated_previous": "iterated DPO, previous reference",
    "ipo": "IPO",
    "kto": "KTO",
    "orpo": "ORPO, from the base",
    "sft_chosen": "SFT on chosen, from the base",
}
SYMBOLS = {"best_of_n": "N", "orpo": "lambda", "sft_chosen": ""}
_STYLES = {
    "best_of_n": ("v", "tab:gray"),
    "dpo": ("o", "tab:blue"),
    "ppo": ("^", "tab:green"),
    "ppo_learned": ("s", "tab:red"),
    "learned_optimum": ("1", "tab:pink"),
    "iterated_initial": ("D", "tab:cyan"),
    "iterated_previous": ("P", "navy"),
    "ipo": ("X", "tab:orange"),
    "kto": ("<", "tab:purple"),
    "orpo": ("*", "tab:brown"),
    "sft_chosen": ("+", "black"),
}
_BEGIN, _END = "<!-- tables: experiments.exact_frontier -->", "<!-- end of tables -->"


def read_rows(output: Path, seeds: Iterable[int]) -> list[Row]:
    """All results of ``seeds`` under ``output``."""
    files = [file for seed in seeds for file in sorted((output / f"seed-{seed}").glob("*.json"))]
    return [json.loads(file.read_text("utf-8")) for file in files]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % Student interval; NaN for fewer than two values."""
    mean, number = float(np.mean(values)), len(values)
    if number < 2:
        return mean, math.nan
    return mean, float(stats.t.ppf(0.975, number - 1) * np.std(values, ddof=1) / math.sqrt(number))


def _shown(values: Sequence[float], digits: int = 3) -> str:
    mean, half = interval(values)
    return f"{mean:.{digits}f}" if math.isnan(half) else f"{mean:.{digits}f} ± {half:.{digits}f}"


def _of(rows: Sequence[Row], method: str, setting: float | None = None) -> list[Row]:
    return [row for row in rows if row["method"] == method and setting in (None, row["setting"])]


def _settings(rows: Sequence[Row], method: str) -> list[float]:
    settings = {row["setting"] for row in _of(rows, method)}
    return sorted(settings, reverse=method not in SYMBOLS)


def table(rows: Sequence[Row]) -> str:
    """The main table in Markdown: means over seeds with their intervals."""
    lines = [
        "| method | setting | KL to SFT, nats | expected reward | best at that KL | share of achievable gain | optimum of this beta: KL, reward |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, label in LABELS.items():
        for setting in _settings(rows, method):
            chosen = _of(rows, method, setting)
            columns = [_shown([row[name] for row in chosen]) for name in ("kl", "reward", "best_reward", "share")]
            aim = ""
            if "optimum_kl" in chosen[0]:
                aim = ", ".join(
                    f"{np.mean([row[name] for row in chosen]):.3f}" for name in ("optimum_kl", "optimum_reward")
                )
            symbol = SYMBOLS.get(method, "beta")
            shown = f"{symbol} {setting:g}" if symbol else ""
            lines.append(f"| {label} | {shown} | {' | '.join(columns)} | {aim} |")
    return "\n".join(lines)


def _worst(rows: Sequence[Row], name: str) -> float:
    """The largest relative distance of ``name`` from its optimum, over ``rows``."""
    return max((abs(row[name] / row[f"optimum_{name}"] - 1) for row in rows), default=math.nan)


def bars(rows: Sequence[Row]) -> str:
    """What the experiment has to show, what it showed, and in every seed: a Markdown table."""
    seeds = sorted({row["seed"] for row in rows})
    lines = [f"Bars, by the worst of seeds {', '.join(map(str, seeds))}:", "", "| bar | measured |", "|---|---|"]

    def add(bar: str, measured: str) -> None:
        lines.append(f"| {bar} | {measured} |")

    if chosen := _of(rows, "sft"):
        add(
            "SFT: cross entropy within 2 % of the source's entropy", f"{max(row['excess'] for row in chosen):.2%} above"
        )
    near = [row for row in _of(rows, "dpo") if row["setting"] >= 0.5]
    for setting in sorted({row["setting"] for row in near}, reverse=True):
        here = _of(near, "dpo", setting)
        text = f"KL {_worst(here, 'kl'):.1%}, reward {_worst(here, 'reward'):.1%}"
        add(f"DPO at beta {setting:g}: KL and reward within 5 % of the optimum's", text)
    if chosen := _of(rows, "ppo"):
        lowest = min(chosen, key=lambda row: float(row["share"]))
        add("PPO, true reward: 97 % of the achievable gain", f"{lowest['share']:.1%}, at beta {lowest['setting']:g}")
    if chosen := _of(rows, "reward_model"):
        add("Reward model: accuracy 0.85 on held-out pairs", f"{min(row['accuracy'] for row in chosen):.3f}")
    for method in ("iterated_initial", "iterated_previous"):
        if chosen := _of(rows, method):
            text = f"{min(row['share'] for row in chosen):.1%} after {len(chosen[0]['rounds'])} rounds"
            if single := _of(rows, "dpo", 0.1):
                text += f"; one shot {np.mean([row['share'] for row in single]):.1%} on average"
            add(f"{LABELS[method]}: 95 % of the achievable gain at beta 0.1", text)
    lines += _compared(rows) + _from_base(rows) + _rounds(rows)
    return "\n".join(lines)


def learned_against_dpo(rows: Sequence[Row]) -> dict[float, list[float]]:
    """By beta of PPO with a learned reward: DPO's reward at the same KL less PPO's, one a seed.

    DPO's reward there is its share of the gain, interpolated linearly in KL between its betas (and 0 gain at 0 nats),
    times the gain that can be had; NaN beyond DPO's largest KL.
    """
    shortfalls: dict[float, list[float]] = {}
    for row in _of(rows, "ppo_learned"):
        own = sorted((each["kl"], each["share"]) for each in _of(rows, "dpo") if each["seed"] == row["seed"])
        start = [each["reward"] for each in _of(rows, "sft") if each["seed"] == row["seed"]]
        if not own or not start:
            continue
        kls, shares = zip(*own, strict=True)
        share = float(np.interp(row["kl"], kls, shares)) if row["kl"] <= kls[-1] else math.nan
        reward = start[0] + share * (row["best_reward"] - start[0])
        shortfalls.setdefault(row["setting"], []).append(reward - row["reward"])
    return shortfalls


def _compared(rows: Sequence[Row]) -> list[str]:
    shortfalls = learned_against_dpo(rows)
    if not shortfalls:
        return []
    lines = ["", "DPO's reward at the KL of PPO with a learned reward, less PPO's (95 % intervals over seeds):", ""]
    lines += ["| beta of PPO | difference |", "|---|---|"]
    return lines + [f"| {beta:g} | {_shown(shortfalls[beta])} |" for beta in sorted(shortfalls, reverse=True)]


def _from_base(rows: Sequence[Row]) -> list[str]:
    if not _of(rows, "orpo"):
        return []
    lines = ["", "From the base, on the same pairs, as many updates; held-out pairs with the true order:", ""]
    lines += ["| method | NLL of the better completion, nats a token | preference accuracy |", "|---|---|---|"]
    for method in ("sft_chosen", "orpo"):
        for setting in sorted(_settings(rows, method)):
            here = _of(rows, method, setting)
            name = f"{LABELS[method]}" + (f", lambda {setting:g}" if method == "orpo" else "")
            columns = [_shown([row[key] for row in here], 4) for key in ("chosen_nll", "accuracy")]
            lines.append(f"| {name} | {' | '.join(columns)} |")
    return lines


def _rounds(rows: Sequence[Row]) -> list[str]:
    lines: list[str] = []
    for method in ("iterated_initial", "iterated_previous"):
        chosen = _of(rows, method)
        if not chosen:
            continue
        lines += [
            "",
            f"{LABELS[method][0].upper()}{LABELS[method][1:]}, round by round:",
            "",
            "| round | KL | reward | share |",
            "|---|---|---|---|",
        ]
        for number in range(len(chosen[0]["rounds"])):
            each = [row["rounds"][number] for row in chosen]
            columns = [_shown([row[name] for row in each]) for name in ("kl", "reward", "share")]
            lines.append(f"| {number + 1} | {' | '.join(columns)} |")
    return lines


def draw(rows: Sequence[Row], world: ExactWorld, file: Path) -> None:
    """Reward over KL: the exact frontier from the source, and every result of every seed."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), constrained_layout=True)
    frontier = Frontier(joint(world.source), world.rewards)
    points = np.array([frontier.point(float(beta)) for beta in np.geomspace(0.05, 20, 80)])
    left.plot(*points.T, color="black", linewidth=1, label="best possible (exact)")
    right.axhline(1, color="black", linewidth=1)
    for method, label in LABELS.items():
        chosen = [row for row in _of(rows, method) if row["kl"] > 0]
        marker, colour = _STYLES[method]
        kl = [row["kl"] for row in chosen]
        left.scatter(kl, [row["reward"] for row in chosen], marker=marker, color=colour, s=28, label=label)
        if method not in ("orpo", "sft_chosen"):  # they do not start from the model that the gain is counted from
            right.scatter(kl, [row["share"] for row in chosen], marker=marker, color=colour, s=28)
    for axes, name in ((left, "expected reward"), (right, "share of the achievable gain")):
        axes.set_xlabel("KL(policy || SFT), nats a completion")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    right.set_xscale("log")
    left.legend(fontsize=8)
    with atomic_write(file) as beside:
        figure.savefig(beside, dpi=120, format="png", metadata={"Software": None})
    plt.close(figure)


def write_docs(page: Path, rows: Sequence[Row]) -> None:
    """Replace what stands between the marks of ``page`` by the tables. Raises SystemExit where it has no marks."""
    text = page.read_text("utf-8")
    if _BEGIN not in text or _END not in text:
        raise SystemExit(f"{page}: has no lines {_BEGIN!r} and {_END!r} to put the tables between")
    before, after = text.split(_BEGIN)[0], text.split(_END)[1]
    with atomic_write(page) as file:
        file.write_text(f"{before}{_BEGIN}\n\n{table(rows)}\n\n{bars(rows)}\n\n{_END}{after}", "utf-8")
