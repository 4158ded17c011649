"""What this project does on a GPU: one command, at most nine minutes, a dated table and a JSON beside it.

    python tools/gpu_report.py                                # on CUDA, into docs/gpu/
    python tools/gpu_report.py --device cpu --size tiny       # shows that it works; the numbers mean nothing

Models have the published architectures and random weights, made on the device: nothing is downloaded, no hub is reached.
Each part runs in a process of its own under a limit of its own. A part that fails, crashes, runs out of memory or out of
time is written down as such, and the others go on. The parts:

  machine   the device, versions, the bf16 matrix-product rate and the rate of copies in its memory
  sd15      Stable Diffusion 1.5, LoRA, Diffusion-DPO at 512 px: pairs per second, share of the matrix rate, peak memory
  sdxl      the same for SDXL at 1024 px
  scorer    HPSv2's ViT-H/14 in half precision: images per second by the runner and by bare forward passes
  text      a DPO step on texts against trl's
  tests     the tests marked gpu: losses, caches, resuming, bf16 and fp16 against the CPU
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffusion_feedback.records import atomic_write

ROOT = Path(__file__).resolve().parent.parent
# Seconds that each part may take; together less than nine minutes, imports and the making of models included.
LIMITS = {"machine": 40, "sd15": 80, "sdxl": 110, "scorer": 80, "text": 110, "tests": 110}
NOT_MEASURED = "not measured"
GB = 1e9

Measured = Mapping[str, Any]


def run_part(part: str, size: str, device: str, limit: float) -> dict[str, Any]:
    """What ``part`` measured, with its ``seconds_taken``; under ``failed`` the reason where it measured nothing."""
    call = [sys.executable, str(ROOT / "tools" / "gpu_parts.py"), part, "--size", size, "--device", device]
    paths = [str(ROOT), str(ROOT / "tools"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    start, measured = time.monotonic(), dict[str, Any]()
    # A group of its own, so that what the part started ends with it.
    process = subprocess.Popen(
        call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=limit)
        last = (out.strip().splitlines() or [""])[-1]
        if process.returncode == 0:
            measured = json.loads(last)
        else:
            measured = {
                "failed": f"exit code {process.returncode}: {_last_line(err or out)}",
                "output": (err or out)[-4000:],
            }
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        measured = {"failed": f"took longer than {limit:.0f} s"}
    except ValueError as error:
        measured = {"failed": f"wrote no result: {error}"}
    return {**measured, "seconds_taken": round(time.monotonic() - start, 1)}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"


def _memory(measured: Measured) -> str:
    peak = measured.get("peak_bytes")
    return NOT_MEASURED if peak is None else f"{peak / GB:.1f} GB"


def _image_rows(name: str) -> Callable[[Measured], list[tuple[str, str]]]:
    def rows(measured: Measured) -> list[tuple[str, str]]:
        what = f"{name} LoRA, {measured['resolution']} px, {measured['pairs']} pairs per step, bf16"
        return [
            (f"{what}: pairs per second", f"{measured['pairs_per_second']:.2f}"),
            (f"{what}: share of the bf16 matrix rate", f"{measured['share_of_bf16_rate']:.1%}"),
            (f"{what}: peak memory", _memory(measured)),
            (f"{what}: loss before the first update (ln 2 is 0.6931)", f"{measured['first_loss']:.4f}"),
            (
                f"{name} VAE, float32, encoding with decoding of JPEG: images per second",
                f"{measured['vae_images_per_second']:.1f}",
            ),
        ]

    return rows


def _machine_rows(measured: Measured) -> list[tuple[str, str]]:
    memory = measured["device_memory_bytes"]
    return [
        ("device", measured["device"] + (f", {memory / GB:.0f} GB" if memory else "")),
        ("bf16 matrix products", f"{measured['bf16_flops'] / 1e12:.3g} TFLOP/s"),
        ("copies in its memory", f"{measured['copy_bytes_per_second'] / GB:.4g} GB/s"),
        ("software", ", ".join(f"{name} {version}" for name, version in measured["versions"].items())),
    ]


def _scorer_rows(measured: Measured) -> list[tuple[str, str]]:
    what = f"HPSv2 over {measured['architecture']}, {measured['dtype']}"
    return [
        (f"{what}: images per second by the runner", f"{measured['images_per_second']:.1f}"),
        (f"{what}: by bare forward passes", f"{measured['bare_images_per_second']:.1f}"),
        (f"{what}: runner's time over bare", f"{measured['runner_over_bare']:.2f}"),
        (f"{what}: peak memory", _memory(measured)),
    ]


def _text_rows(measured: Measured) -> list[tuple[str, str]]:
    rows = [
        (f"DPO on texts, {name}: times as fast", f"{way['wall']['ratio']:.2f}")
        for name, way in measured["speed"].items()
    ]
    gap = max(way["loss_gap"] for way in measured["speed"].values())
    return [*rows, ("DPO on texts: largest difference of a loss from trl's", f"{gap:.1e}")]


def _test_rows(measured: Measured) -> list[tuple[str, str]]:
    outcome = f"{measured['passed']} passed, {len(measured['failed'])} failed, {measured['skipped']} skipped"
    return [("tests marked gpu", outcome), *((f"failed: {name}", why) for name, why in measured["failed"].items())]


ROWS: dict[str, Callable[[Measured], list[tuple[str, str]]]] = {
    "machine": _machine_rows,
    "sd15": _image_rows("SD 1.5"),
    "sdxl": _image_rows("SDXL"),
    "scorer": _scorer_rows,
    "text": _text_rows,
    "tests": _test_rows,
}


def rows_of(part: str, measured: Measured) -> list[tuple[str, str]]:
    """The table's rows of ``part``; a row that says why where it gave nothing that can be read."""
    if isinstance(measured.get("failed"), str):
        return [(part, f"{NOT_MEASURED}: {measured['failed']}")]
    try:
        return ROWS[part](measured)
    except (KeyError, TypeError, ValueError) as error:
        return [(part, f"{NOT_MEASURED}: its result lacks {error}")]


def table(measured: Mapping[str, Measured], size: str, day: str) -> str:
    """The report as Markdown."""
    lines = [f"# On {measured['machine'].get('device', 'an unknown device')}, {day}\n"]
    if size == "tiny":
        lines.append("Tiny models: these numbers show that the report works, and nothing else.\n")
    lines += ["| what | found |", "|---|---|"]
    lines += [
        f"| {what} | {value.replace('|', '/')} |" for part in measured for what, value in rows_of(part, measured[part])
    ]
    taken = ", ".join(f"{part} {values['seconds_taken']:.0f} s" for part, values in measured.items())
    return "\n".join([*lines, f"\nRandom weights; `python tools/gpu_report.py --size {size}`. Taken: {taken}."]) + "\n"


def main() -> int:
    """Run all parts, writing after each, and print the table; 1 where the machine itself could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--parts", nargs="+", choices=LIMITS, default=list(LIMITS), help="all of them unless given")
    parser.add_argument("--limit", type=float, default=530, help="seconds for everything (default 530)")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs" / "gpu")
    given = parser.parse_args()
    day, start = datetime.date.today().isoformat(), time.monotonic()
    measured: dict[str, dict[str, Any]] = {"machine": {"seconds_taken": 0.0}}
    for part in dict.fromkeys(["machine", *given.parts]):
        left = given.limit - (time.monotonic() - start)
        out_of_time = {"failed": "no time was left", "seconds_taken": 0.0}
        measured[part] = run_part(part, given.size, given.device, min(LIMITS[part], left)) if left > 5 else out_of_time
        print(
            f"{part}: {measured[part].get('failed') or 'measured'} ({measured[part]['seconds_taken']} s)",
            file=sys.stderr,
        )
        stem = given.output_dir / f"{day}-{given.device.replace(':', '')}-{given.size}"
        for ending, text in (
            (".json", json.dumps(measured, indent=2) + "\n"),
            (".md", table(measured, given.size, day)),
        ):
            with atomic_write(stem.with_suffix(ending)) as file:
                file.write_text(text, encoding="utf-8")
    print(table(measured, given.size, day))
    return 1 if isinstance(measured["machine"].get("failed"), str) else 0


if __name__ == "__main__":
    raise SystemExit(main())
