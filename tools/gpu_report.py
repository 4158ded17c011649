"""What this project does on a GPU: one command, at most nine minutes, a dated table and a JSON beside it.

    python tools/gpu_report.py                                # on CUDA, into docs/gpu/
    python tools/gpu_report.py --device cpu --size tiny       # shows that it works; the figures mean nothing

Models have the published architectures and random weights, made on the device: nothing is downloaded, no hub is asked.
Each part runs in a process of its own under a limit of its own. A part that fails, crashes, runs out of memory or out of
time is written down as such, and the others go on. The parts:

  machine   the device, versions, the bf16 matrix-product rate and the rate of copies in its memory
  sd15      Stable Diffusion 1.5, LoRA, Diffusion-DPO at 512 px: pairs a second, share of the matrix rate, peak memory
  sdxl      the same for SDXL at 1024 px
  scorer    HPSv2's ViT-H/14 in half precision: images a second by the runner and by bare forward passes
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

Found = Mapping[str, Any]


def run_part(part: str, size: str, device: str, limit: float) -> dict[str, Any]:
    """What ``part`` found, with its ``seconds_taken``; under ``failed`` the reason where it found nothing."""
    call = [sys.executable, str(ROOT / "tools" / "gpu_parts.py"), part, "--size", size, "--device", device]
    paths = [str(ROOT), str(ROOT / "tools"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    start, found = time.monotonic(), dict[str, Any]()
    # A group of its own, so that what the part started ends with it.
    process = subprocess.Popen(
        call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=limit)
        last = (out.strip().splitlines() or [""])[-1]
        if process.returncode == 0:
            found = json.loads(last)
        else:
            found = {
                "failed": f"exit code {process.returncode}: {_last_line(err or out)}",
                "output": (err or out)[-4000:],
            }
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        found = {"failed": f"took longer than {limit:.0f} s"}
    except ValueError as error:
        found = {"failed": f"wrote no result: {error}"}
    return {**found, "seconds_taken": round(time.monotonic() - start, 1)}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"


def _memory(found: Found) -> str:
    peak = found.get("peak_bytes")
    return NOT_MEASURED if peak is None else f"{peak / GB:.1f} GB"


def _image_rows(name: str) -> Callable[[Found], list[tuple[str, str]]]:
    def rows(found: Found) -> list[tuple[str, str]]:
        what = f"{name} LoRA, {found['resolution']} px, {found['pairs']} pairs a step, bf16"
        return [
            (f"{what}: pairs a second", f"{found['pairs_per_second']:.2f}"),
            (f"{what}: share of the bf16 matrix rate", f"{found['share_of_bf16_rate']:.1%}"),
            (f"{what}: peak memory", _memory(found)),
            (f"{what}: loss before the first update (ln 2 is 0.6931)", f"{found['first_loss']:.4f}"),
            (
                f"{name} VAE, float32, encoding with decoding of JPEG: images a second",
                f"{found['vae_images_per_second']:.1f}",
            ),
        ]

    return rows


def _machine_rows(found: Found) -> list[tuple[str, str]]:
    memory = found["device_memory_bytes"]
    return [
        ("device", found["device"] + (f", {memory / GB:.0f} GB" if memory else "")),
        ("bf16 matrix products", f"{found['bf16_flops'] / 1e12:.3g} TFLOP/s"),
        ("copies in its memory", f"{found['copy_bytes_per_second'] / GB:.4g} GB/s"),
        ("software", ", ".join(f"{name} {version}" for name, version in found["versions"].items())),
    ]


def _scorer_rows(found: Found) -> list[tuple[str, str]]:
    what = f"HPSv2 over {found['architecture']}, {found['dtype']}"
    return [
        (f"{what}: images a second by the runner", f"{found['images_per_second']:.1f}"),
        (f"{what}: by bare forward passes", f"{found['bare_images_per_second']:.1f}"),
        (f"{what}: runner's time over bare", f"{found['runner_over_bare']:.2f}"),
        (f"{what}: peak memory", _memory(found)),
    ]


def _text_rows(found: Found) -> list[tuple[str, str]]:
    rows = [
        (f"DPO on texts, {name}: times as fast", f"{way['wall']['ratio']:.2f}") for name, way in found["speed"].items()
    ]
    gap = max(way["loss_gap"] for way in found["speed"].values())
    return [*rows, ("DPO on texts: largest difference of a loss from trl's", f"{gap:.1e}")]


def _test_rows(found: Found) -> list[tuple[str, str]]:
    told = f"{found['passed']} passed, {len(found['failed'])} failed, {found['skipped']} skipped"
    return [("tests marked gpu", told), *((f"failed: {name}", why) for name, why in found["failed"].items())]


ROWS: dict[str, Callable[[Found], list[tuple[str, str]]]] = {
    "machine": _machine_rows,
    "sd15": _image_rows("SD 1.5"),
    "sdxl": _image_rows("SDXL"),
    "scorer": _scorer_rows,
    "text": _text_rows,
    "tests": _test_rows,
}


def rows_of(part: str, found: Found) -> list[tuple[str, str]]:
    """The table's rows of ``part``; a row that says why where it gave nothing that can be read."""
    if isinstance(found.get("failed"), str):
        return [(part, f"{NOT_MEASURED}: {found['failed']}")]
    try:
        return ROWS[part](found)
    except (KeyError, TypeError, ValueError) as error:
        return [(part, f"{NOT_MEASURED}: its result lacks {error}")]


def table(found: Mapping[str, Found], size: str, day: str) -> str:
    """The report as Markdown."""
    lines = [f"# On {found['machine'].get('device', 'an unknown device')}, {day}\n"]
    if size == "tiny":
        lines.append("Tiny models: these figures show that the report works, and nothing else.\n")
    lines += ["| what | found |", "|---|---|"]
    lines += [f"| {what} | {value.replace('|', '/')} |" for part in found for what, value in rows_of(part, found[part])]
    taken = ", ".join(f"{part} {values['seconds_taken']:.0f} s" for part, values in found.items())
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
    found: dict[str, dict[str, Any]] = {"machine": {"seconds_taken": 0.0}}
    for part in dict.fromkeys(["machine", *given.parts]):
        left = given.limit - (time.monotonic() - start)
        out_of_time = {"failed": "no time was left", "seconds_taken": 0.0}
        found[part] = run_part(part, given.size, given.device, min(LIMITS[part], left)) if left > 5 else out_of_time
        print(f"{part}: {found[part].get('failed') or 'measured'} ({found[part]['seconds_taken']} s)", file=sys.stderr)
        stem = given.output_dir / f"{day}-{given.device.replace(':', '')}-{given.size}"
        for ending, text in ((".json", json.dumps(found, indent=2) + "\n"), (".md", table(found, given.size, day))):
            with atomic_write(stem.with_suffix(ending)) as file:
                file.write_text(text, encoding="utf-8")
    print(table(found, given.size, day))
    return 1 if isinstance(found["machine"].get("failed"), str) else 0


if __name__ == "__main__":
    raise SystemExit(main())
