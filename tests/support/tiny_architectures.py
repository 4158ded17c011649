"""Tiny language models of many architectures with random weights, in transformers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_text
import torch
import transformers

VOCABULARY = 400
_WIDE = {"initializer_range": 0.3}
_COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "tie_word_embeddings": False, **_WIDE,
}  # fmt: skip
_OLD = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, **_WIDE}
_EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
_GEMMA = {**_COMMON, "head_dim": 8}

# Name of the config's class, and what it is made with; the model's class has the name of the same beginning.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _COMMON),
    "mistral": ("MistralConfig", {**_COMMON, "sliding_window": 4}),
    "qwen2": ("Qwen2Config", _COMMON),
    "qwen3": ("Qwen3Config", {**_COMMON, "head_dim": 8}),
    "phi": ("PhiConfig", _COMMON),
    "phi3": ("Phi3Config", _COMMON),
    "gemma": ("GemmaConfig", _GEMMA),
    "gemma2": ("Gemma2Config", {**_GEMMA, "final_logit_softcapping": 3.0, "sliding_window": 4}),
    "gemma3": ("Gemma3TextConfig", {**_GEMMA, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}),
    "granite": ("GraniteConfig", {**_COMMON, "logits_scaling": 5.0}),
    "cohere": ("CohereConfig", {**_COMMON, "logit_scale": 0.25}),
    "cohere2": ("Cohere2Config", {**_COMMON, "head_dim": 8, "logit_scale": 0.25}),
    "olmo2": ("Olmo2Config", _COMMON),
    "stablelm": ("StableLmConfig", _COMMON),
    "starcoder2": ("Starcoder2Config", _COMMON),
    "glm4": ("Glm4Config", {**_COMMON, "head_dim": 8}),
    "smollm3": ("SmolLM3Config", _COMMON),
    "gpt_neox": ("GPTNeoXConfig", {**_COMMON, "use_parallel_residual": True}),
    "gpt2": ("GPT2Config", {**_OLD, "n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 128}),
    "gptj": ("GPTJConfig", {**_OLD, "n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 128, "rotary_dim": 4}),
    "gpt_neo": (
        "GPTNeoConfig",
        {**_OLD, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 128,
         "attention_types": [[["global", "local"], 1]], "window_size": 4},
    ),
    "opt": ("OPTConfig", {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}),
    "bloom": ("BloomConfig", {**_OLD, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": ("FalconConfig", {**_COMMON, "alibi": False, "bias": False}),
    "mpt": ("MptConfig", {**_OLD, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 96}),
    "mixtral": ("MixtralConfig", {**_COMMON, "num_local_experts": 4}),
    "qwen2_moe": ("Qwen2MoeConfig", {**_COMMON, **_EXPERTS, "shared_expert_intermediate_size": 16}),
    "qwen3_moe": ("Qwen3MoeConfig", {**_COMMON, **_EXPERTS, "head_dim": 8}),
    "gpt_oss": ("GptOssConfig", {**_COMMON, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v3": (
        "DeepseekV3Config",
        {**_COMMON, "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2,
         "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 8,
         "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8},
    ),
    "lfm2": ("Lfm2Config", {**_COMMON, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    "mamba": ("MambaConfig", {**_OLD, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "qwen3_next": (
        "Qwen3NextConfig",
        {**_COMMON, **_EXPERTS, "head_dim": 8, "shared_expert_intermediate_size": 16, "linear_num_value_heads": 4,
         "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
         "layer_types": ["linear_attention", "full_attention"]},
    ),
    "jamba": (
        "JambaConfig",
        {**_COMMON, "num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1,
         "expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 8},
    ),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        {**_GEMMA, "num_key_value_heads": 1, "num_attention_heads": 4, "lru_width": 32, "logits_soft_cap": 3.0,
         "attention_window_size": 16, "block_types": ["recurrent", "attention"]},
    ),
    "falcon_h1": (
        "FalconH1Config",
        {**_COMMON, "lm_head_multiplier": 0.3, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8,
         "mamba_n_groups": 1},
    ),
    "llama4": (
        "Llama4TextConfig",
        {**_COMMON, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2, "num_experts_per_tok": 1,
         "interleave_moe_layer_step": 2},
    ),
}  # fmt: skip
MULTIMODAL = ("gemma3_multimodal", "gemma4_multimodal")
# Multimodal ones, of which the part for texts is asked.
_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
           "patch_size": 8}  # fmt: skip


def build(kind: str, *, seed: int = 0, **changes: Any) -> Any:
    """The model of ``kind``, float32, in evaluation mode; weights are drawn wide, so that tokens differ."""
    if kind == "gemma4_multimodal":
        own = {
            "num_global_key_value_heads": 2, "global_head_dim": 8, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
            "vocab_size_per_layer_input": VOCABULARY, "final_logit_softcapping": 3.0,
        }  # fmt: skip
        vision = {**_VISION, "num_key_value_heads": 2, "head_dim": 8}
        config = transformers.Gemma4Config(
            text_config=KINDS["gemma3"][1] | own | changes, vision_config=vision, audio_config=None
        )
        model_class: Any = transformers.Gemma4ForConditionalGeneration
    elif kind == "gemma3_multimodal":
        config = transformers.Gemma3Config(
            text_config=KINDS["gemma3"][1] | changes,
            vision_config=_VISION,
            mm_tokens_per_image=4,
            image_token_index=390,
            boi_token_index=391,
            eoi_token_index=392,
            tie_word_embeddings=False,
        )
        model_class = transformers.Gemma3ForConditionalGeneration
    else:
        name, settings = KINDS[kind]
        config = getattr(transformers, name)(**{**settings, **changes})
        beginning = name.removesuffix("Config").removesuffix("Text") if kind != "gemma3" else "Gemma3"
        model_class = getattr(transformers, _CLASSES.get(kind, f"{beginning}ForCausalLM"))
    torch.manual_seed(seed)
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # many initialisations are too narrow for tokens to differ
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


_CLASSES = {"gpt2": "GPT2LMHeadModel"}


def save(folder: Path, kind: str, **changes: Any) -> Path:
    """Write the model of ``kind`` with a ChatML tokenizer to ``folder``."""
    build(kind, **changes).save_pretrained(folder)
    tiny_text.tokenizer(chat_template=tiny_text.CHATML).save_pretrained(folder)
    return folder
