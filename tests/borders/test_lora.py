"""Any LoRA onto any base: what is read has the strength that its file states, and what does not fit whole is refused.

The truth is built by hand: base weight + alpha / rank * up @ down, layer by layer, in a plain network.
"""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion_feedback.catalog import resolve
from diffusion_feedback.errors import UserError
from diffusion_feedback.models import lora, lora_files
from diffusion_feedback.models.latent_diffusion import LatentDiffusion
from diffusion_feedback.models.reference import AdaptersOff
from diffusion_feedback.types.models import AdapterSettings

Factors = dict[str, tuple[Tensor, Tensor]]
RANK, ALPHA = 2, 6.0
UNET = ("attn1.to_q", "attn2.to_v", "to_out.0", "ff.net.2", "conv1", "proj_in")
TEXT = ("q_proj", "out_proj", "fc1")


def factors(network: nn.Module, endings: tuple[str, ...], rank: int = RANK) -> Factors:
    """Random down and up matrices for every layer whose name ends so."""
    draw = torch.Generator().manual_seed(7)
    found = {}
    for name, layer in network.named_modules():
        if name.endswith(endings):
            out, *shape = layer.weight.shape
            down = 0.3 * torch.randn(rank, *shape, generator=draw)
            found[name] = down, 0.3 * torch.randn(out, rank, *[1] * (len(shape) - 1), generator=draw)
    return found


def merge(network: nn.Module, wanted: Factors, scales: dict[str, float]) -> None:
    """Add scale * up @ down to the weight of each layer."""
    for name, (down, up) in wanted.items():
        weight = network.get_submodule(name).weight
        product = up.flatten(1).double() @ down.flatten(1).double()
        weight.data += scales[name] * product.reshape(weight.shape).to(weight.dtype)


def plain(wanted: Factors, prefix: str = "unet.") -> dict[str, Tensor]:
    """The keys of diffusers and peft."""
    return {
        f"{prefix}{name}.lora_{'AB'[i]}.weight": value for name, pair in wanted.items() for i, value in enumerate(pair)
    }


def kohya(wanted: Factors, alphas: dict[str, float], prefix: str = "lora_unet_") -> dict[str, Tensor]:
    """The keys of kohya's sd-scripts."""
    state = {}
    for name, (down, up) in wanted.items():
        layer = prefix + name.replace(".", "_")
        state[f"{layer}.lora_down.weight"], state[f"{layer}.lora_up.weight"] = down, up
        state[f"{layer}.alpha"] = torch.tensor(alphas[name])
    return state


def alpha_of(name: str) -> float:
    """Another alpha for each kind of layer."""
    return 1.0 + len(name) % 3


def settings(wanted: Factors) -> dict[str, Any]:
    return {"r": RANK, "lora_alpha": ALPHA, "target_modules": sorted(wanted)}


def diffusers_file(folder: Path, wanted: Factors) -> Path:
    header = {f"unet.{name}": value for name, value in settings(wanted).items()}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(header)}
    save_file(plain(wanted), folder / "pytorch_lora_weights.safetensors", metadata)
    return folder / "pytorch_lora_weights.safetensors"


def bare_file(folder: Path, wanted: Factors) -> Path:
    """As ``unet.save_lora_adapter`` writes it."""
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(settings(wanted))}
    save_file(plain(wanted, ""), folder / "mine.safetensors", metadata)
    return folder / "mine.safetensors"


def peft_file(folder: Path, wanted: Factors) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **settings(wanted)}))
    save_file(plain(wanted, "base_model.model."), folder / "adapter_model.safetensors")
    return folder / "adapter_model.safetensors"


def checkpoint_file(folder: Path, wanted: Factors) -> Path:
    place = folder / "checkpoints" / "step-000004"
    place.mkdir(parents=True)
    model = {"lora_rank": RANK, "lora_alpha": ALPHA, "tuning": "lora", "family": "sd"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": model}))
    state = {key.replace(".weight", ".default.weight"): value for key, value in plain(wanted, "").items()}
    save_file(state, place / "policy.safetensors")
    return place / "policy.safetensors"


def kohya_file(folder: Path, wanted: Factors) -> Path:
    save_file(kohya(wanted, dict.fromkeys(wanted, ALPHA)), folder / "kohya.safetensors")
    return folder / "kohya.safetensors"


def dotted_file(folder: Path, wanted: Factors) -> Path:
    """Alphas beside the factors, under the keys of diffusers."""
    alphas = {f"unet.{name}.alpha": torch.tensor(ALPHA) for name in wanted}
    save_file({**plain(wanted), **alphas}, folder / "dotted.safetensors")
    return folder / "dotted.safetensors"


FILES = {
    "diffusers": diffusers_file, "bare": bare_file, "peft": peft_file, "checkpoint": checkpoint_file,
    "kohya": kohya_file, "dotted": dotted_file,
}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tiny_pipelines: dict[str, Path]) -> dict[str, LatentDiffusion]:
    """A loaded model of each family, to which nothing is added."""
    return {family: resolve("family", family)(str(folder)) for family, folder in tiny_pipelines.items()}


def predict(denoiser: LatentDiffusion) -> Tensor:
    text = denoiser.encode_prompts(["a cat"])
    given = denoiser.conditioning(text, torch.full((1, 6), 16.0))
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return denoiser.predict(denoiser.network, noisy, torch.tensor([500]), given)


def check_strength(base: LatentDiffusion, path: str, scales: dict[str, float], wanted: Factors) -> None:
    """The LoRA at ``path`` on a copy of ``base`` equals the merge by hand, which differs from the base."""
    truth, tuned = copy.deepcopy(base), copy.deepcopy(base)
    merge(truth.network, wanted, scales)
    tuned.load_lora(path)
    torch.testing.assert_close(predict(tuned), predict(truth), atol=2e-5, rtol=1e-4)
    assert not torch.allclose(predict(truth), predict(base), atol=1e-2)
    assert tuned.model_hash() != base.model_hash()


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("as_folder", [False, True])
@pytest.mark.parametrize("form", FILES)
def test_every_form_has_the_strength_that_it_states(
    form: str, as_folder: bool, family: str, bases: dict[str, LatentDiffusion], tmp_path: Path
) -> None:
    wanted = factors(bases[family].network, UNET)
    file = FILES[form](tmp_path, wanted)
    path = file.parent if as_folder else file
    check_strength(bases[family], str(path), dict.fromkeys(wanted, ALPHA / RANK), wanted)


@pytest.mark.parametrize("form", FILES)
def test_a_scale_multiplies_what_is_added(form: str, bases: dict[str, LatentDiffusion], tmp_path: Path) -> None:
    base = bases["sd"]
    wanted = factors(base.network, UNET)
    file, hashes = FILES[form](tmp_path, wanted), set()
    for scale in (0.0, 0.5, 1.0, -1.0):
        truth, tuned = copy.deepcopy(base), copy.deepcopy(base)
        merge(truth.network, wanted, dict.fromkeys(wanted, scale * ALPHA / RANK))
        assert (f"times {scale:g}" in tuned.load_lora(str(file), scale)) is (scale != 1)
        torch.testing.assert_close(predict(tuned), predict(truth), atol=2e-5, rtol=1e-4)
        hashes.add(tuned.model_hash())
    assert len(hashes) == 4


def test_kohya_alphas_of_each_layer(bases: dict[str, LatentDiffusion], tmp_path: Path) -> None:
    wanted = factors(bases["sd"].network, UNET)
    save_file(kohya(wanted, {name: alpha_of(name) for name in wanted}), tmp_path / "x.safetensors")
    check_strength(bases["sd"], str(tmp_path), {name: alpha_of(name) / RANK for name in wanted}, wanted)


def test_ranks_of_each_layer_and_half_precision(bases: dict[str, LatentDiffusion], tmp_path: Path) -> None:
    network = bases["sd"].network
    wanted = {**factors(network, UNET[:3], rank=4), **factors(network, UNET[3:])}
    half = {name: (down.half(), up.half()) for name, (down, up) in wanted.items()}
    save_file(kohya(half, dict.fromkeys(half, 2.0)), tmp_path / "x.safetensors")
    scales = {name: 2.0 / len(down) for name, (down, _) in half.items()}
    check_strength(bases["sd"], str(tmp_path), scales, half)


def test_a_copy_from_before_is_told(
    bases: dict[str, LatentDiffusion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the hub cannot be reached, what was fetched before is used, and the user hears of it."""
    save_file(plain(factors(bases["sd"].network, UNET)), tmp_path / "x.safetensors")
    monkeypatch.setattr(lora_files, "snapshot_download", lambda path, local_files_only: str(tmp_path))
    copy.deepcopy(bases["sd"]).load_lora("owner/name")
    assert "owner/name: the hub cannot be reached" in caplog.text
    assert "the copy that was fetched before is used" in caplog.text


def test_a_refusal_of_the_hub_is_no_missing_network(
    bases: dict[str, LatentDiffusion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository that is gone, or private, is said; a copy from before would hide it."""

    def refused(api: object, path: str) -> list[str]:
        raise RuntimeError(f"401: {path} is private")

    save_file(plain(factors(bases["sd"].network, UNET)), tmp_path / "x.safetensors")
    monkeypatch.setattr(lora_files, "snapshot_download", lambda path, local_files_only: str(tmp_path))
    monkeypatch.setattr(lora_files.HfApi, "list_repo_files", refused)
    with pytest.raises(UserError, match="owner/name is private"):
        copy.deepcopy(bases["sd"]).load_lora("owner/name")


def test_an_adapter_that_changes_nothing_is_told(bases: dict[str, LatentDiffusion], tmp_path: Path) -> None:
    network = bases["sd"].network
    for scale, word in ((1.0, False), (0.0, True)):
        wanted = {name: (down, up * scale) for name, (down, up) in factors(network, UNET).items()}
        save_file(plain(wanted), tmp_path / "x.safetensors")
        assert ("CHANGES NOTHING" in copy.deepcopy(bases["sd"]).load_lora(str(tmp_path))) is word


def test_old_attention_processors(bases: dict[str, LatentDiffusion], tmp_path: Path) -> None:
    wanted = factors(bases["sd"].network, ("attn1.to_q", "attn2.to_v"))
    state = {}
    for name, (down, up) in wanted.items():
        block, layer = name.rsplit(".", 1)
        state[f"unet.{block}.processor.{layer}_lora.down.weight"] = down
        state[f"unet.{block}.processor.{layer}_lora.up.weight"] = up
    torch.save(state, tmp_path / "pytorch_lora_weights.bin")
    check_strength(bases["sd"], str(tmp_path), dict.fromkeys(wanted, 1.0), wanted)


def test_the_average_is_what_a_checkpoint_gives_out(bases: dict[str, LatentDiffusion], tmp_path: Path) -> None:
    wanted = factors(bases["sd"].network, UNET)
    file = checkpoint_file(tmp_path, {name: (down * 0, up) for name, (down, up) in wanted.items()})
    state = {key.replace(".weight", ".default.weight"): value for key, value in plain(wanted, "").items()}
    save_file({**state, "updates": torch.tensor(3)}, file.with_name("average.safetensors"))
    check_strength(bases["sd"], str(file.parent), dict.fromkeys(wanted, ALPHA / RANK), wanted)


@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft names"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_text_encoders_take_their_part(
    form: str, family: str, bases: dict[str, LatentDiffusion], tmp_path: Path
) -> None:
    """Through transformers' own call these are refused on every peft but the newest."""
    truth, tuned = copy.deepcopy(bases[family]), copy.deepcopy(bases[family])
    names = ["text_encoder", "text_encoder_2"][: 1 + (family == "sdxl")]
    state: dict[str, Tensor] = {}
    for number, name in enumerate(names):
        wanted = factors(getattr(truth.pipeline, name), TEXT)
        scale = 3.0 if form == "kohya" else 1.0
        merge(getattr(truth.pipeline, name), wanted, dict.fromkeys(wanted, scale))
        full = {key if key.startswith("text_model.") else f"text_model.{key}": value for key, value in wanted.items()}
        if form == "kohya":
            prefix = f"lora_te{number + 1}_" if family == "sdxl" else "lora_te_"
            state |= kohya(full, dict.fromkeys(full, ALPHA), prefix)
        elif form == "diffusers":
            ends = {"lora_A.weight": "lora_linear_layer.down.weight", "lora_B.weight": "lora_linear_layer.up.weight"}
            for key, value in plain(full, f"{name}.").items():
                state[key.replace(key[-13:], ends[key[-13:]])] = value
        else:
            state |= plain(wanted, f"{name}.")
    save_file(state, tmp_path / "te.safetensors")
    tuned.load_lora(str(tmp_path / "te.safetensors"))
    for key, value in truth.encode_prompts(["a cat"]).items():
        torch.testing.assert_close(tuned.encode_prompts(["a cat"])[key], value, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(predict(tuned), predict(bases[family]), atol=1e-4)


def test_merging_keeps_what_was_loaded(bases: dict[str, LatentDiffusion], tmp_path: Path) -> None:
    wanted = factors(bases["sd"].network, UNET)
    text = factors(bases["sd"].pipeline.text_encoder, TEXT)
    state = {**kohya(wanted, dict.fromkeys(wanted, ALPHA)), **kohya(text, dict.fromkeys(text, ALPHA), "lora_te_")}
    save_file(state, tmp_path / "both.safetensors")
    tuned = copy.deepcopy(bases["sd"])
    assert "layers of unet and" in tuned.load_lora(str(tmp_path / "both.safetensors"))
    expected = predict(tuned)
    tuned.save_merged(tmp_path / "merged")
    torch.testing.assert_close(
        predict(resolve("family", "sd")(str(tmp_path / "merged"))), expected, atol=1e-5, rtol=1e-4
    )


# --- what does not fit whole ------------------------------------------------------------------------------------------


def _edit(change: Callable[[dict[str, Tensor], str, str], None]) -> Callable[[Path], None]:
    """A damage of the tensors of a file: ``change`` is given them, and the keys of one layer's two factors."""

    def apply(file: Path) -> None:
        state = load_file(file)
        down, up = sorted(key for key in state if "attn1" in key and not key.endswith("alpha"))[:2]
        header = _header(file)
        change(state, down, up)
        save_file({key: value.contiguous() for key, value in state.items()}, file, header)

    return apply


def _header(file: Path) -> dict[str, str]:
    size = int.from_bytes(file.read_bytes()[:8], "little")
    return dict(json.loads(file.read_bytes()[8 : 8 + size]).get("__metadata__", {}))


def _rename(state: dict[str, Tensor], down: str, up: str) -> None:
    for key in (down, up):
        state[key.replace("attn1", "attn7")] = state.pop(key)


def _widen(state: dict[str, Tensor], down: str, up: str) -> None:
    state[down] = torch.cat([state[down], state[down]], dim=1)


def _drop(state: dict[str, Tensor], down: str, up: str) -> None:
    del state[up]


def _spoil(state: dict[str, Tensor], down: str, up: str) -> None:
    state[down] = state[down] * float("nan")


def _add(state: dict[str, Tensor], down: str, up: str) -> None:
    state["transformer.blocks.0.lora_A.weight"] = torch.zeros(2, 2)


def _loha(state: dict[str, Tensor], down: str, up: str) -> None:
    state[down.split(".lora")[0] + ".hada_w1_a"] = torch.zeros(2, 2)


def _dora(state: dict[str, Tensor], down: str, up: str) -> None:
    state[down.split(".lora")[0] + ".dora_scale"] = torch.zeros(2, 2)


def _longer(state: dict[str, Tensor], down: str, up: str) -> None:
    state[up] = torch.cat([state[up], state[up]], dim=1)


DAMAGES = {
    "another layer": _rename, "another width": _widen, "half a pair": _drop, "not finite": _spoil,
    "another model's": _add, "LoHa": _loha, "DoRA": _dora, "another rank": _longer,
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("form", FILES)
def test_nothing_goes_on_that_fits_in_part(
    form: str, damage: str, bases: dict[str, LatentDiffusion], tmp_path: Path
) -> None:
    base = bases["sd"]
    file = FILES[form](tmp_path, factors(base.network, UNET))
    _edit(DAMAGES[damage])(file)
    with pytest.raises(UserError) as raised:
        base.load_lora(str(file))
    assert str(file) in str(raised.value)
    assert raised.value.remedy
    assert not lora.is_adapted(base.network)


@pytest.mark.parametrize("form", FILES)
def test_the_lora_of_another_family_is_counted(form: str, bases: dict[str, LatentDiffusion], tmp_path: Path) -> None:
    file = FILES[form](tmp_path, factors(bases["sdxl"].network, UNET))
    with pytest.raises(UserError, match=r"\d+ of \d+ LoRA tensors fit this StableDiffusionPipeline"):
        bases["sd"].load_lora(str(file))
    assert not lora.is_adapted(bases["sd"].network)


@pytest.mark.parametrize("prefix", ["transformer.", "model.diffusion_model.", "diffusion_model.", "x."])
def test_keys_of_other_models_fit_nowhere(prefix: str, bases: dict[str, LatentDiffusion], tmp_path: Path) -> None:
    save_file(plain(factors(bases["sd"].network, UNET), prefix), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="0 of"):
        bases["sd"].load_lora(str(tmp_path))


class Hostile:
    def __reduce__(self) -> Any:
        return print, ("code of a pickle has run",)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def _pickled(file: Path) -> None:
    file.write_bytes(pickle.dumps(Hostile()))


def _binary(file: Path) -> None:
    torch.save({"a": Hostile()}, file.with_suffix(".bin"))
    file.unlink()


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (_cut, "could not be read as LoRA weights"),
    "pointer": (_pointer, "pointer of git-LFS"),
    "empty": (lambda file: file.write_bytes(b""), "an empty file"),
    "text": (lambda file: file.write_text("not found"), "could not be read as LoRA weights"),
    "no LoRA": (lambda file: save_file({"conv_in.weight": torch.zeros(2)}, file), "none of a LoRA"),
    "pickle": (_pickled, "could not be read as LoRA weights"),
    "gone": (lambda file: file.unlink(), "which file is the LoRA|no weights yet"),
    "pickled tensors with code": (_binary, "code in it is never run|which file|no weights yet"),
}  # fmt: skip


@pytest.mark.parametrize("damage", BROKEN)
@pytest.mark.parametrize("form", ["diffusers", "bare", "peft", "checkpoint", "kohya"])
def test_damaged_files_are_one_message(
    form: str, damage: str, bases: dict[str, LatentDiffusion], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = FILES[form](tmp_path, factors(bases["sd"].network, UNET))
    change, message = BROKEN[damage]
    change(file)
    with pytest.raises(UserError, match=message) as raised:
        bases["sd"].load_lora(str(file.parent))
    assert raised.value.remedy
    assert "weights_only" not in str(raised.value)
    assert "has run" not in capfd.readouterr().out
    assert not lora.is_adapted(bases["sd"].network)


def test_folders_that_are_no_lora(
    bases: dict[str, LatentDiffusion], tiny_pipelines: dict[str, Path], tmp_path: Path
) -> None:
    load = bases["sd"].load_lora
    wanted = factors(bases["sd"].network, UNET)
    with pytest.raises(UserError, match="no such file or folder"):
        load(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="no such file or folder"):
        load("tests/absent")  # beside a folder of ours: never asked of the hub
    with pytest.raises(UserError, match="a whole pipeline, no LoRA"):
        load(str(tiny_pipelines["sd"]))
    kohya_file(tmp_path, wanted).rename(tmp_path / "other.safetensors")
    kohya_file(tmp_path, wanted)
    with pytest.raises(UserError, match="holds 2 of them"):
        load(str(tmp_path))
    run = tmp_path / "run"
    run.mkdir()
    file = checkpoint_file(run, wanted)
    with pytest.raises(UserError, match=r"not come to its end[\s\S]*run@4"):
        load(str(run))
    (run / "recipe.yaml").unlink()
    with pytest.raises(UserError, match="alpha"):
        load(str(file))
    peft = tmp_path / "peft"
    peft.mkdir()
    file = peft_file(peft, wanted)
    (peft / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3", **settings(wanted)}))
    with pytest.raises(UserError, match="IA3"):
        load(str(file))
    (peft / "adapter_config.json").unlink()
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        load(str(file))
    alphas = {"lora_unet_nowhere.alpha": torch.tensor(2.0)}
    save_file({**kohya(wanted, dict.fromkeys(wanted, ALPHA)), **alphas}, tmp_path / "kohya.safetensors")
    with pytest.raises(UserError, match="belongs to no layer"):
        load(str(tmp_path / "kohya.safetensors"))
    assert not lora.is_adapted(bases["sd"].network)


# --- what we write ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize(("rank", "alpha"), [(4, 4), (4, 16), (4, 1), (3, 7)])
def test_every_reader_applies_the_same_strength(
    rank: int,
    alpha: float,
    family: str,
    bases: dict[str, LatentDiffusion],
    tiny_pipelines: dict[str, Path],
    tmp_path: Path,
) -> None:
    """In plain diffusers, and in a tool that reads the two matrices alone and takes alpha for the rank."""
    tuned = copy.deepcopy(bases[family])
    lora.add(tuned.network, AdapterSettings(rank=rank, alpha=alpha, targets=["attention", "convolutions"], seed=0))
    draw = torch.Generator().manual_seed(2)
    for _, parameter in lora.trainable(tuned.network):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    tuned.save(tuned.network, tmp_path)
    expected = predict(tuned)
    pipeline = DiffusionPipeline.from_pretrained(tiny_pipelines[family], dtype=torch.float32)
    pipeline.load_lora_weights(tmp_path)
    naive = copy.deepcopy(bases[family])
    state = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    layers = sorted({key.removeprefix("unet.").split(".lora")[0] for key in state})
    pairs = {name: (state[f"unet.{name}.lora_A.weight"], state[f"unet.{name}.lora_B.weight"]) for name in layers}
    merge(naive.network, pairs, dict.fromkeys(layers, 1.0))
    ours = copy.deepcopy(bases[family])
    ours.load_lora(str(tmp_path))
    with torch.no_grad():
        given = tuned.conditioning(tuned.encode_prompts(["a cat"]), torch.full((1, 6), 16.0))
        noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        theirs = tuned.predict(pipeline.unet, noisy, torch.tensor([500]), given)
    for found in (theirs, predict(naive), predict(ours)):
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    with AdaptersOff()(tuned.network):
        assert not torch.allclose(predict(tuned), expected, atol=1e-2)
