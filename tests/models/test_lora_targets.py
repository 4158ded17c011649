"""Which layers adapters go on, for every architecture, against lists written by hand; and what whole modules do beside them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny_architectures
import tiny_text
import torch
from peft import AutoPeftModelForCausalLM
from peft.tuners.tuners_utils import BaseTunerLayer

from diffusion_feedback.errors import UserError
from diffusion_feedback.models import causal_lm, lora, lora_targets
from diffusion_feedback.models.reference import AdaptersOff
from diffusion_feedback.types.models import AdapterSettings

QKVO = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"
GATED = "mlp.gate_proj mlp.up_proj mlp.down_proj"
LLAMA = (QKVO, GATED)
NEOX = ("attention.query_key_value attention.dense", "mlp.dense_h_to_4h mlp.dense_4h_to_h")
BLOOM = ("self_attention.query_key_value self_attention.dense", "mlp.dense_h_to_4h mlp.dense_4h_to_h")
# By architecture: the layers of a block that mix tokens, and those that work on each alone, as its paper and code have them.
BY_HAND = {
    **dict.fromkeys(
        (
            "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", *tiny_architectures.MULTIMODAL, "granite", "cohere",
            "cohere2", "olmo2", "stablelm", "smollm3",
        ),
        LLAMA,
    ),
    "gpt_neox": NEOX,
    "bloom": BLOOM,
    "falcon": BLOOM,
    "phi": ("self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.dense", "mlp.fc1 mlp.fc2"),
    "phi3": ("self_attn.qkv_proj self_attn.o_proj", "mlp.gate_up_proj mlp.down_proj"),
    "glm4": (QKVO, "mlp.gate_up_proj mlp.down_proj"),
    "starcoder2": (QKVO, "mlp.c_fc mlp.c_proj"),
    "gpt2": ("attn.c_attn attn.c_proj", "mlp.c_fc mlp.c_proj"),
    "gptj": ("attn.q_proj attn.k_proj attn.v_proj attn.out_proj", "mlp.fc_in mlp.fc_out"),
    "gpt_neo": (
        "attn.attention.q_proj attn.attention.k_proj attn.attention.v_proj attn.attention.out_proj", "mlp.c_fc mlp.c_proj",
    ),
    "opt": ("self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj", "fc1 fc2"),
    "mpt": ("attn.Wqkv attn.out_proj", "ffn.up_proj ffn.down_proj"),
    "mixtral": (QKVO, ""),
    "qwen3_moe": (QKVO, ""),
    "gpt_oss": (QKVO, ""),
    "qwen2_moe": (
        QKVO, "mlp.shared_expert.gate_proj mlp.shared_expert.up_proj mlp.shared_expert.down_proj",
    ),
    "deepseek_v3": (
        "self_attn.q_a_proj self_attn.q_b_proj self_attn.kv_a_proj_with_mqa self_attn.kv_b_proj self_attn.o_proj",
        "",
    ),
    "lfm2": (
        "conv.in_proj conv.out_proj self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj",
        "feed_forward.w1 feed_forward.w2 feed_forward.w3",
    ),
    "mamba": ("mixer.in_proj", None),
    "jamba": (f"mamba.in_proj {QKVO}", "feed_forward.gate_proj feed_forward.up_proj feed_forward.down_proj"),
    "falcon_h1": (f"mamba.in_proj {QKVO}", "feed_forward.gate_proj feed_forward.up_proj feed_forward.down_proj"),
    "qwen3_next": (
        f"linear_attn.in_proj_qkvz linear_attn.in_proj_ba linear_attn.out_proj {QKVO}",
        "",
    ),
    "recurrent_gemma": (
        "temporal_block.linear_y temporal_block.linear_x temporal_block.linear_out temporal_block.q_proj "
        "temporal_block.k_proj temporal_block.v_proj temporal_block.o_proj",
        "mlp_block.gate_proj mlp_block.up_proj mlp_block.down_proj",
    ),
    "llama4": (
        QKVO,
        "feed_forward.gate_proj feed_forward.up_proj feed_forward.down_proj feed_forward.shared_expert.gate_proj "
        "feed_forward.shared_expert.up_proj feed_forward.shared_expert.down_proj",
    ),
}  # fmt: skip
FUSED = {"mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "deepseek_v3", "jamba", "qwen3_next", "llama4"}


def adapted(model: torch.nn.Module) -> set[str]:
    """Names within a block of all layers with adapters; none may stand outside of the blocks."""
    names = [name for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
    matches = [re.search(r"\.(?:layers|h|blocks)\.\d+\.(.+)", name) for name in names]
    assert all(matches), names
    return {match[1] for match in matches if match}


@pytest.mark.parametrize("kind", [*tiny_architectures.KINDS, *tiny_architectures.MULTIMODAL])
@pytest.mark.parametrize("number", [0, 1], ids=["attention", "feed_forward"])
def test_groups_mean_what_they_say(kind: str, number: int) -> None:
    group, by_hand = ("attention", "feed_forward")[number], BY_HAND[kind][number]
    model = tiny_architectures.build(kind)
    if not by_hand:
        words = "fused into one tensor" if kind in FUSED else "no layer of the network ends in 'feed_forward'"
        with pytest.raises(UserError, match=words) as caught:
            lora_targets.adapted_layers(model, [group])
        if kind not in FUSED:
            assert "in_proj" in caught.value.remedy  # a layer that there is
        return
    notes = lora_targets.add_adapters(model, AdapterSettings(rank=2, alpha=2, targets=[group], seed=0))
    assert adapted(model) == set(by_hand.split())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    layers = sum(isinstance(layer, BaseTunerLayer) for layer in model.modules())
    assert notes[0].startswith(f"rank 2 on {layers} layers (")
    assert notes[0].endswith(f": {trained:,} parameters")
    assert any("fused" in note for note in notes) == (group == "feed_forward" and kind in FUSED)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gpt_neox", "deepseek_v3", "mamba", "gemma3_multimodal"])
def test_all_linear_is_every_layer_of_the_trunk(kind: str) -> None:
    model = tiny_architectures.build(kind)
    lora_targets.add_adapters(model, AdapterSettings(rank=2, alpha=2, targets=["all-linear"], seed=0))
    assert adapted(model) == {name for group in BY_HAND[kind] for name in (group or "").split()}


def test_names_of_layers_that_are_not_there() -> None:
    model = tiny_architectures.build("gpt_neox")
    with pytest.raises(UserError, match="ends in 'q_proj'(.|\n)*query_key_value, dense"):
        lora_targets.adapted_layers(model, ["q_proj"])
    with pytest.raises(UserError, match="lora_modules_to_save: no module of the network ends in 'head'(.|\n)*embed_in"):
        lora_targets.add_adapters(
            model, AdapterSettings(rank=2, alpha=2, targets=["attention"], seed=0, modules_to_save=["head"])
        )


IDS = torch.tensor([[5, 9, 11, 40, 7, 8]])


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("targets", "heads"),
    [(["lm_head"], []), (["embed_tokens"], []), (["attention"], ["embed_tokens"]), (["attention"], ["lm_head"]),
     (["attention"], ["embed_tokens", "lm_head"])],
    ids=str,
)  # fmt: skip
def test_head_and_embedding_are_read_again_as_they_were(
    targets: list[str], heads: list[str], tied: bool, tmp_path: Path
) -> None:
    folder = tiny_text.save_tiny_lm(tmp_path / "lm", tied=tied)
    model = causal_lm.load(str(folder))
    with torch.no_grad():
        before = model.network.model(IDS).logits
    if tied and not heads:
        with pytest.raises(UserError, match="is one tensor with"):
            lora_targets.add_adapters(model.network.model, AdapterSettings(rank=2, alpha=2, targets=targets, seed=0))
        return
    lora_targets.add_adapters(
        model.network.model,
        AdapterSettings(rank=2, alpha=2, targets=targets, seed=0, modules_to_save=heads),
        task_type="CAUSAL_LM",
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        assert torch.equal(model.network.model(IDS).logits, before)
        for _, parameter in lora.trainable(model.network):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        after = model.network.model(IDS).logits
        assert not torch.allclose(after, before, atol=1e-2)
        with AdaptersOff()(model.network) as reference:
            assert torch.equal(reference.model(IDS).logits, before)
        model.save(model.network, tmp_path / "adapter")
        plain = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
        torch.testing.assert_close(plain(IDS).logits, after, atol=1e-5, rtol=1e-5)
        merged = causal_lm.load(str(tmp_path / "adapter"))
        torch.testing.assert_close(merged.network.model(IDS).logits, after, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(lora.merged_copy(model.network.model)(IDS).logits, after, atol=1e-4, rtol=1e-4)
