"""How long setting up takes, by pip and by uv: the locked files into fresh environments, one after the other.

    python -m benchmarks.setup        # with uv beside this Python (the dev environment); takes minutes and downloads

uv is timed with an empty cache and again with a full one; pip has whatever cache it has.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKED = ["--quiet", "--no-deps", "--require-hashes", "--requirement"]


def seconds(call: list[str], cache: Path | None = None) -> float:
    """Wall time of ``call``, in seconds; ``cache`` is uv's."""
    environment = {**os.environ, **({"UV_CACHE_DIR": str(cache)} if cache else {})}
    start = time.perf_counter()
    subprocess.run(call, check=True, env=environment)
    return time.perf_counter() - start


def environment(folder: Path) -> str:
    """A fresh environment in ``folder``; the path of its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    return str(folder / "bin" / "python")


def main() -> None:
    """Time all three and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requirements", type=Path, default=ROOT / "requirements" / "dev.txt", help="the locked file")
    given = parser.parse_args()
    uv, what = str(Path(sys.executable).parent / "uv"), str(given.requirements)
    with tempfile.TemporaryDirectory(dir=ROOT) as scratch:
        folder, cache = Path(scratch) / "environment", Path(scratch) / "cache"
        print(f"pip:            {seconds([environment(folder), '-m', 'pip', 'install', *LOCKED, what]):.1f} s")
        for state in ("empty", "full"):
            call = [uv, "pip", "install", "--python", environment(folder), *LOCKED, what]
            print(f"uv, {state} cache: {seconds(call, cache):.1f} s", flush=True)


if __name__ == "__main__":
    main()
