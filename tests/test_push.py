"""``dfb push`` against a stand-in of the hub on this machine: what is sent, where, by whose token, and what stays here."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import saved_adapters
from huggingface_hub import constants

import diffusion_feedback as dfb
from diffusion_feedback.cli.main import main

CARD = """---
base_model: {base}
tags:
- lora
---

# mine

pipeline.load_lora_weights({run!r})
"""


class Hub(BaseHTTPRequestHandler):
    """The few calls of the hub's API that one commit takes; what was sent is kept by the server."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        seen: list[Any] = self.server.seen  # type: ignore[attr-defined]
        seen.append((self.path, self.headers["Authorization"], body))
        status, answer = self.server.refusal or (200, self._answer(body))  # type: ignore[attr-defined]
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _answer(self, body: bytes) -> dict[str, Any]:
        address = f"http://127.0.0.1:{self.server.server_address[1]}"
        if self.path.endswith("/repos/create"):
            return {"url": f"{address}/me/mine", "name": "me/mine"}
        if "/preupload/" in self.path:
            names = [each["path"] for each in json.loads(body)["files"]]
            return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        if "/commit/" in self.path:
            return {"commitUrl": f"{address}/me/mine/commit/abc", "commitOid": "a" * 40}
        return {"warnings": [], "errors": []}

    def log_message(self, format: str, *given: object) -> None:
        """Silent."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen, server.refusal = [], None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tiny_pipelines: dict[str, Path], tmp_path: Path) -> Path:
    """A finished LoRA run with a checkpoint, a card and what is for this machine alone."""
    folder = saved_adapters.save_image_lora(tiny_pipelines["sd"], "sd", tmp_path / "mine")
    (folder / "README.md").write_text(CARD.format(base=tiny_pipelines["sd"], run=str(folder)))
    (folder / "environment.json").write_text('{"host": "mine"}')
    step = folder / "checkpoints" / "step-000004"
    step.mkdir(parents=True)
    (step / "optimizer.pt").write_bytes(b"state")
    (step / "pytorch_lora_weights.safetensors").write_bytes((folder / "pytorch_lora_weights.safetensors").read_bytes())
    return folder


def sent(hub: Any) -> dict[str, bytes]:
    """The files of the commit."""
    (body,) = (body for path, _, body in hub.seen if "/commit/" in path)
    lines = [json.loads(line) for line in body.splitlines()]
    return {
        each["value"]["path"]: base64.b64decode(each["value"]["content"]) for each in lines if each["key"] == "file"
    }


def test_a_run_goes_in_one_commit(run: Path, hub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "me/mine", "--private"]) == 0
    assert "/me/mine/commit/abc" in capsys.readouterr().out
    files = sent(hub)
    assert set(files) == {"pytorch_lora_weights.safetensors", "README.md", "recipe.yaml"}
    assert files["pytorch_lora_weights.safetensors"] == (run / "pytorch_lora_weights.safetensors").read_bytes()
    # The card's code runs for others, and its base is none that the hub would look for.
    card = files["README.md"].decode()
    assert "load_lora_weights('me/mine')" in card
    assert "base_model" not in card
    assert {token for _, token, _ in hub.seen} == {"Bearer hf_of_the_test"}
    (create,) = (json.loads(body) for path, _, body in hub.seen if path.endswith("/repos/create"))
    assert "private" in (create.get("visibility"), *create)


def test_a_step_goes_to_a_branch(run: Path, hub: Any) -> None:
    pushed = dfb.push(f"{run}@4", "me/mine", revision="step-4")
    assert any(path.endswith("/branch/step-4") for path, _, _ in hub.seen)
    assert any(path.endswith("/commit/step-4") for path, _, _ in hub.seen)
    files = sent(hub)
    assert set(files) == {"pytorch_lora_weights.safetensors", "README.md", "recipe.yaml"}
    assert "These are the weights of step 000004" in files["README.md"].decode()
    assert pushed.files["pytorch_lora_weights.safetensors"] == len(files["pytorch_lora_weights.safetensors"])


def test_a_dry_run_sends_nothing(run: Path, hub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "me/mine", "--dry_run"]) == 0
    size = (run / "pytorch_lora_weights.safetensors").stat().st_size
    assert f"{size:,}  pytorch_lora_weights.safetensors" in capsys.readouterr().out
    assert hub.seen == []


def test_what_goes_wrong(run: Path, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(dfb.UserError, match="OWNER/NAME"):
        dfb.push(run, "mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(dfb.UserError, match="holds no weights"):
        dfb.push(tmp_path / "empty", "me/mine")
    hub.refusal = (403, {"error": "no right"})
    with pytest.raises(dfb.UserError, match=r"(?s)refused.*may not write to me/mine"):
        dfb.push(run, "me/mine")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(dfb.UserError, match="cannot be reached"):
        dfb.push(run, "me/mine")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(dfb.UserError, match=r"(?s)no token of the hub.*hf auth login"):
        dfb.push(run, "me/mine")
