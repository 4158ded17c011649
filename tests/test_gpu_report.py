"""The report of a GPU: full models have the published numbers of parameters, and no failing part stops it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gpu_models
import gpu_report
import pytest
import torch
from diffusers import UNet2DConditionModel


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_full_size_is_the_published_architecture(family: str) -> None:
    with torch.device("meta"):
        network = UNet2DConditionModel(**gpu_models.unet_config(family, "full"))
    assert sum(parameter.numel() for parameter in network.parameters()) == gpu_models.PARAMETERS[family]


def test_limits_leave_room_below_nine_minutes() -> None:
    assert sum(gpu_report.LIMITS.values()) <= 540


def test_a_failing_part_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts that fail, that die by a signal, that hang, and that print no result."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "gpu_parts.py").write_text(
        "import os, sys, time\n"
        "part = sys.argv[1]\n"
        "if part == 'sd15': raise RuntimeError('CUDA out of memory')\n"
        "if part == 'sdxl': os.kill(os.getpid(), 11)\n"
        "if part == 'scorer': time.sleep(60)\n"
        "if part == 'text': print('no result')\n"
        'if part == \'tests\': print(\'{"passed": 3, "failed": {}, "skipped": 0}\')\n'
        "if part == 'machine': print('{\"device\": \"a device\"}')\n"
    )
    monkeypatch.setattr(gpu_report, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_report, "LIMITS", dict.fromkeys(gpu_report.LIMITS, 20) | {"scorer": 1.0})
    monkeypatch.setattr(sys, "argv", ["gpu_report.py", "--output_dir", str(tmp_path / "out")])
    assert gpu_report.main() == 0
    printed = capsys.readouterr().out
    for words in (
        "RuntimeError: CUDA out of memory",
        "exit code -11",
        "took longer than 1 s",
        "wrote no result",
        "3 passed, 0 failed, 0 skipped",
        "machine | not measured: its result lacks",
    ):
        assert words in printed
    (written,) = (tmp_path / "out").glob("*-cuda-full.json")
    assert list(json.loads(written.read_text())) == list(gpu_report.LIMITS)
    assert written.with_suffix(".md").read_text() in printed
