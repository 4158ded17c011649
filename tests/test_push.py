"""``dfb push`` against a stand-in of the hub on this machine: what is sent, where, by whose token, and what stays here."""

from __future__ import annotations

import base64
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import HfApi, constants

import diffusion_feedback as dfb
from diffusion_feedback.cli.main import main
from diffusion_feedback.config.recipe import DataConfig, ModelConfig, Recipe, to_dict
from diffusion_feedback.reports.cards.writer import render_card
from diffusion_feedback.training.checkpoints import save_checkpoint

CARD = """---
base_model: {base}
tags:
- lora
---

# mine

![before and after](samples/step-000004.png)

pipeline.load_lora_weights({run!r})

## What is in this folder

| | |
|---|---|
| `pytorch_lora_weights.safetensors` | the result |
| `recipe.yaml` | every setting |
| `environment.json` | versions and hardware |
| `metrics.jsonl` | one line per step |
| `samples/` | before and after on fixed seeds |
| `checkpoints/` | weights of steps before the last |

## Recipe

| `environment.json` | this row is no file of the table |
"""
WEIGHTS = {"pytorch_lora_weights.safetensors", "README.md", "recipe.yaml"}
SHOWN = {"metrics.jsonl", "samples/step-000004.png", "samples/before/000.png"}


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

    def do_GET(self) -> None:
        """What is known of the repository: its visibility alone matters."""
        text = json.dumps({"id": "me/mine", "private": self.server.is_private}).encode()  # type: ignore[attr-defined]
        self.send_response(200)
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
    server.seen, server.refusal, server.is_private = [], None, True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(lora_run: Path, tiny_pipelines: dict[str, Path], tmp_path: Path) -> Path:
    """A finished LoRA run with a checkpoint, a card and what is for this machine alone."""
    folder = shutil.copytree(lora_run, tmp_path / "mine")
    (folder / "README.md").write_text(CARD.format(base=tiny_pipelines["sd"], run=str(folder)))
    (folder / "environment.json").write_text('{"host": "mine"}')
    weights = {"policy": {"unet.weight": torch.zeros(2)}, "average": {"unet.weight": torch.ones(2)}}

    def save_weights(beside: Path) -> None:
        shutil.copy(folder / "pytorch_lora_weights.safetensors", beside)

    save_checkpoint(folder / "checkpoints", 4, weights, {"optimizer": {}}, save_weights)
    (folder / "samples" / "before").mkdir(parents=True)
    for name in SHOWN:
        (folder / name).write_bytes(b"of the run")
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
    assert set(files) == WEIGHTS | SHOWN
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
    assert set(files) == WEIGHTS | SHOWN
    assert "These are the weights of step 000004" in files["README.md"].decode()
    assert pushed.files["pytorch_lora_weights.safetensors"] == len(files["pytorch_lora_weights.safetensors"])


@pytest.mark.parametrize("step", ["", "@4"], ids=["run", "step"])
@pytest.mark.parametrize("are_shown", [True, False], ids=["with samples", "without"])
def test_the_card_names_what_is_sent(run: Path, hub: Any, are_shown: bool, step: str) -> None:
    if not are_shown:
        shutil.rmtree(run / "samples")
    dfb.push(f"{run}{step}", "me/mine")
    files = sent(hub)
    card = files["README.md"].decode()
    named = re.findall(r"^\| `([^`]+)` \|", card.split("## Recipe")[0], re.MULTILINE)
    named += re.findall(r"!\[.*\]\((.*)\)", card)
    assert all(any(file == name or file.startswith(name) for file in files) for name in named)
    assert ("samples/step-000004.png" in named) == ("samples/" in named) == are_shown
    assert {"metrics.jsonl", "recipe.yaml", "pytorch_lora_weights.safetensors"} <= set(named)
    assert "| `environment.json` | this row is no file of the table |" in card


@pytest.mark.parametrize("pushed_from", ["where it was trained", "elsewhere"])
@pytest.mark.parametrize(("base", "is_on_hub"), [("models/mine", False), ("owner/base", True)])
def test_the_base_is_what_it_was_in_training(
    base: str,
    is_on_hub: bool,
    pushed_from: str,
    run: Path,
    hub: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A relative path is no id of the hub because it is read from another folder, and an id none that lies there by chance."""
    places = {"where it was trained": tmp_path / "training", "elsewhere": tmp_path / "elsewhere"}
    (places["where it was trained"] / "models" / "mine").mkdir(parents=True)
    places["elsewhere"].mkdir()
    monkeypatch.chdir(places["where it was trained"])
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["model"]["pretrained_model_name_or_path"] = base
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    whole = to_dict(Recipe(ModelConfig(base, family="sd"), DataConfig("pairs"), str(run)))
    (run / "README.md").write_text(render_card("diffusion", run, whole, [], effective_batch=4))
    monkeypatch.chdir(places[pushed_from])
    (places["elsewhere"] / "owner" / "base").mkdir(parents=True)
    dfb.push(run, "me/mine")
    assert ("base_model" in sent(hub)["README.md"].decode().split("---")[1]) == is_on_hub
    assert (f"the base {base} is a folder of this machine" in caplog.text) != is_on_hub


def test_a_dry_run_sends_nothing(run: Path, hub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "me/mine", "--dry_run"]) == 0
    size = (run / "pytorch_lora_weights.safetensors").stat().st_size
    assert f"{size:,}  pytorch_lora_weights.safetensors" in capsys.readouterr().out
    assert hub.seen == []


def test_what_goes_wrong(run: Path, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(dfb.UserError, match="OWNER/NAME"):
        dfb.push(run, "mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "recipe.yaml").write_text("model: {}\n")
    (tmp_path / "empty" / "README.md").write_text("# empty\n")
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


STRAY = (
    "creds.json", "id_rsa", ".env", "notes.json", "report.html", "best.json", "environment.json", "policy.safetensors",
    "cache/latents.safetensors", "other/pytorch_lora_weights.safetensors", "samples/.hidden.png", "unet/creds.json",
)  # fmt: skip


def fill(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"mine alone")


def test_what_is_no_result_is_refused(tmp_path: Path, hub: Any) -> None:
    fill(tmp_path / "home", (*STRAY, "pytorch_lora_weights.safetensors", "checkpoints/x/model.safetensors"))
    for folder in (tmp_path / "home", tmp_path / "home" / "checkpoints" / "x", tmp_path / "home" / "cache"):
        with pytest.raises(dfb.UserError, match="neither a run nor an export"):
            dfb.push(folder, "me/mine")
    assert hub.seen == []


def test_only_what_others_load_and_read_goes(run: Path, hub: Any, tmp_path: Path) -> None:
    fill(run, STRAY)
    (tmp_path / "id_rsa").write_text("mine alone")
    (run / "samples" / "key.png").symlink_to(tmp_path / "id_rsa")
    (run / "model.safetensors").symlink_to(tmp_path / "id_rsa")
    pushed = dfb.push(run, "me/mine", dry_run=True)
    assert set(pushed.files) == WEIGHTS | SHOWN
    assert {*STRAY, "samples/key.png", "model.safetensors"} < {*pushed.left_out}
    assert re.search(rf"{len(pushed.left_out)}  files stay here: .env, .*cache/", str(pushed))
    # A step is explained by what its run has written.
    assert set(dfb.push(f"{run}@4", "me/mine", dry_run=True).files) == WEIGHTS | SHOWN


def test_a_whole_pipeline_goes_with_its_parts(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(tiny_pipelines["sd"], tmp_path / "full", ignore=shutil.ignore_patterns("spelling"))
    (run / "recipe.yaml").write_text("model: {pretrained_model_name_or_path: me/base}\n")
    whole = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    fill(run, STRAY)
    assert set(dfb.push(run, "me/mine", dry_run=True).files) == whole


@pytest.mark.parametrize(("form", "revision"), [("peft", None), ("single_file", None), ("kohya", "v2")])
def test_an_export_loads_for_others_and_names_nothing_of_this_machine(
    form: str, revision: str | None, run: Path, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "exports" / form
    base = yaml.safe_load((run / "recipe.yaml").read_text())["model"]["pretrained_model_name_or_path"]
    dfb.export(run, folder, format=form)
    fill(folder, STRAY)
    dfb.push(folder, "me/mine", revision=revision)
    files = sent(hub)
    assert set(files) == {*json.loads(files["export.json"])["files"], "README.md", "export.json"}
    for name, content in files.items():
        assert str(tmp_path).encode() not in content, name
        assert base.encode() not in content, name
    assert not {"of", "base", "lora"} & json.loads(files["export.json"]).keys()
    # What the card says runs on another machine, where the base lies elsewhere.
    there = tmp_path / "downloaded"
    for name, content in files.items():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_bytes(content)
    (code,) = re.findall(r"```python\n(.*?)```", files["README.md"].decode(), re.DOTALL)
    asked = []
    shutil.rmtree(folder)

    def download(repo: str, revision: str | None = None) -> str:
        asked.append((repo, revision))
        return str(there)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    code = code.replace("path/to/sd", base)
    if not asked and revision is None:  # the loaders take a repository by its name
        code = re.sub(r"(?<!download\()'me/mine'", repr(str(there)), code)
    exec(code, {})
    assert all(each == ("me/mine", revision) for each in asked)
    assert asked or (revision is None and form != "single_file")


def test_a_run_names_nothing_of_this_machine(run: Path, hub: Any) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["data"] = {"train": [str(run.parent / "my data" / "pairs.parquet")], "validation": "me/pairs"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    block = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    card = (run / "README.md").read_text()
    prose = f"\nTuned on {recipe['data']['train'][0]}, see https://huggingface.co/me/base and a/b.\n\n"
    (run / "README.md").write_text(f"{card}{prose}```yaml\n{block}```\n")
    dfb.push(run, "me/mine")
    files = sent(hub)
    assert not [name for name, content in files.items() if str(run.parent).encode() in content]
    public = yaml.safe_load(files["recipe.yaml"])
    assert public["data"] == {"train": ["path/to/pairs.parquet"], "validation": "me/pairs"}
    assert public["model"] == recipe["model"] | {"pretrained_model_name_or_path": "path/to/sd"}
    text = files["README.md"].decode()
    assert "Tuned on pairs.parquet, see https://huggingface.co/me/base and a/b." in text


def test_private_is_never_public(run: Path, hub: Any) -> None:
    hub.is_private = False
    with pytest.raises(dfb.UserError, match=r"(?s)`private`: me/mine is there already.*nothing was sent"):
        dfb.push(run, "me/mine", private=True)
    assert not [path for path, _, _ in hub.seen if "/commit/" in path or "/preupload/" in path]
    dfb.push(run, "me/mine")


@pytest.mark.parametrize("error", [RuntimeError("a fault of ours"), PermissionError("not readable"), KeyError("x")])
def test_what_is_no_network_is_not_called_one(
    error: Exception, run: Path, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(HfApi, "create_commit", fail)
    with pytest.raises(type(error)) as raised:
        dfb.push(run, "me/mine")
    assert raised.value is error
