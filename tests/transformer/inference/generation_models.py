"""Small models whose texts are worth continuing, and prompts for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from scaling.core import Topology
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.inference.module import TransformerInferenceModule

VOCABULARY = 61
LENGTHS = (1, 5, 40, 17, 3, 22, 40, 9)

_USUAL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_layers": 4,
    "num_attention_heads": 4,
    "precision": "float64",
    "sequence_length": 48,
}

MODELS: Mapping[str, dict[str, Any]] = {
    "grouped": {"attention_num_kv_heads": 2, "mlp_type": "swiglu", "norm_type": "rms", "weight_tying": True},
    "shared": {"attention_num_kv_heads": 1, "attention_qkv_in_one": False, "lm_head_bias": True},
    "windows": {
        "attention_num_kv_heads": 2,
        "attention_kinds": {"near": {"window": 6}, "all": {}},
        "attention_pattern": ["near", "all"],
        "attention_score_cap": 5.0,
        "logit_cap": 9.0,
    },
    "local_heads": {"num_local_attention_heads": 1, "local_attention_window_size": 7},
}


def build(name: str, topology: Topology | None = None, **changes: Any) -> TransformerInferenceModule:
    """Return a model of random weights, large enough that its texts do not repeat one token."""
    config = TransformerArchitectureConfig.from_dict(_USUAL | MODELS[name] | changes)
    model = TransformerInferenceModule(config, topology=topology, seed=3)
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model


def prompts(*lengths: int) -> list[list[int]]:
    """Return prompts of these lengths, or of the usual ones."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, VOCABULARY, (length,), generator=generator).tolist() for length in lengths or LENGTHS]


def uncached(model: TransformerInferenceModule, prompt: list[int], new: int) -> list[int]:
    """Return the most likely continuation, every token from the whole text before it."""
    text = list(prompt)
    for _ in range(new):
        text.append(int(model.logits(torch.tensor([text]))[0, -1].argmax()))
    return text[len(prompt) :]
