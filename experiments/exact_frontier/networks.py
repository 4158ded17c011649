"""The exact world's networks, and their tables: what a network says of every completion, by one walk over all prefixes."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from diffusion_feedback.models.causal_lm import LanguageModel
from diffusion_feedback.models.reward_model import RewardNetwork

from .world import ExactWorld, Floats


def _config(world: ExactWorld, **settings: int) -> GPT2Config:
    # Positions are learnt, as the optimum depends on how many symbols are still to come.
    return GPT2Config(
        vocab_size=world.vocabulary,
        n_positions=world.length + 1,
        n_embd=48,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **settings,
    )


def new_policy(world: ExactWorld, seed: int) -> LanguageModel:
    """A language model of two layers with weights drawn from ``seed``; its tokens are the world's symbols."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LanguageModel(GPT2LMHeadModel(_config(world)))


def new_reward_network(world: ExactWorld, policy: LanguageModel, seed: int) -> RewardNetwork:
    """A reward network on a copy of the trunk of ``policy``, with a head drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2ForSequenceClassification(_config(world, num_labels=1))
    model.base_model.load_state_dict(policy.model.base_model.state_dict())
    return RewardNetwork(model)


@torch.no_grad()
def _walk(trunk: nn.Module, world: ExactWorld, prompt: int, depth: int) -> Iterator[Tensor]:
    """Hidden states of the last symbol of all sequences that begin with ``prompt``: (1, H), (V, H), ... (V^depth, H).

    Each prefix is computed once: its keys and values serve all sequences that go on from it.
    """
    size, cache = world.vocabulary, DynamicCache()
    ids = torch.tensor([[prompt]])
    for level in range(depth + 1):
        # By position: the name of the second argument differs between releases of transformers.
        yield trunk(ids, cache, use_cache=True).last_hidden_state[:, -1]
        if level < depth:
            cache.batch_repeat_interleave(size)
            ids = torch.arange(size).repeat(len(ids)).unsqueeze(1)


def policy_table(network: LanguageModel, world: ExactWorld, dtype: torch.dtype = torch.float64) -> list[Floats]:
    """The policy's table of conditionals (see ``world``); the network computes in ``dtype``."""
    model = copy.deepcopy(network.model).to(dtype).eval()
    rows: list[list[Floats]] = [[] for _ in range(world.length)]
    with torch.no_grad():
        for prompt in range(world.vocabulary):
            for level, hidden in enumerate(_walk(model.base_model, world, prompt, world.length - 1)):
                logps = torch.log_softmax(model.get_output_embeddings()(hidden).double(), dim=-1)
                rows[level].append(logps.numpy().reshape((world.vocabulary,) * (level + 1)))
    return [np.stack(level) for level in rows]


def reward_table(network: RewardNetwork, world: ExactWorld) -> Floats:
    """What a reward network gives every completion of every prompt, (prompts, completions)."""
    rows = []
    with torch.no_grad():
        for prompt in range(world.vocabulary):
            *_, hidden = _walk(network.model.base_model.eval(), world, prompt, world.length)
            rows.append(network.head(hidden).double().squeeze(-1).numpy())
    return np.stack(rows)
