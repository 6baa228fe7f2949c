"""Rotary frequencies and angles with the bits that the Hugging Face library has."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch

from scaling.core.nn.rotary import RotaryEmbedding, rotary_frequencies
from scaling.core.nn.rotary_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RotaryScaling,
    Unscaled,
    YarnScaling,
)

SHORT, LONG = (tuple(1.0 + step * pair for pair in range(48)) for step in (0.013, 0.71))
LLAMA3 = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, trained_length=8192)
YARN = YarnScaling(factor=40.0, trained_length=4096, mscale=1.0, mscale_all_dim=0.7, beta_fast=31.0, beta_slow=1.5)
YARN_UNROUNDED = YarnScaling(factor=32.0, trained_length=4096, truncate=False)
LONGROPE = LongRopeScaling(short_factor=SHORT, long_factor=LONG, trained_length=4096)
TRAINED = {"original_max_position_embeddings": 4096}


@pytest.fixture(scope="module")
def theirs() -> Any:
    """Return their Llama, whose import takes seconds."""
    return import_module("transformers.models.llama.modeling_llama")


@pytest.mark.parametrize(
    ("scaling", "their", "length"),
    [
        (Unscaled(), {"rope_type": "default"}, 4096),
        (LinearScaling(3.0), {"rope_type": "linear", "factor": 3.0}, 4096),
        (DynamicScaling(factor=2.5, trained_length=4096), {"rope_type": "dynamic", "factor": 2.5}, 9000),
        (
            YARN,
            {
                "rope_type": "yarn",
                "factor": 40.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.7,
                "beta_fast": 31.0,
                "beta_slow": 1.5,
                **TRAINED,
            },
            4096,
        ),
        (YARN_UNROUNDED, {"rope_type": "yarn", "factor": 32.0, "truncate": False, **TRAINED}, 4096),
        (
            LLAMA3,
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            131072,
        ),
        *(
            (LONGROPE, {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, **TRAINED}, length)
            for length in (4096, 131072)
        ),
    ],
    ids=["default", "linear", "dynamic", "yarn", "yarn, unrounded", "llama3", "longrope, short", "longrope, long"],
)
def test_frequencies_and_angles_are_theirs_to_the_bit(
    theirs: Any, scaling: RotaryScaling, their: dict[str, Any], length: int
) -> None:
    for base in (10000.0, 500000.0, 1234567.8):
        dimensions = 96
        config = theirs.LlamaConfig(
            hidden_size=4 * dimensions,
            num_attention_heads=4,
            max_position_embeddings=4096 if isinstance(scaling, DynamicScaling) else length,
            rope_parameters={**their, "rope_theta": base},
        )
        embedding = theirs.LlamaRotaryEmbedding(config)
        if isinstance(scaling, (DynamicScaling, LongRopeScaling)):
            make = theirs.ROPE_INIT_FUNCTIONS[their["rope_type"]]
            expected, factor = make(config, torch.device("cpu"), seq_len=length)
        else:
            expected, factor = embedding.inv_freq, embedding.attention_scaling
        found, found_factor = rotary_frequencies(scaling, dimensions=dimensions, base=base, length=length)
        assert torch.equal(found, expected)
        assert found_factor == factor
        positions = torch.tensor([[0, 1, 17, 1000, 4095]])
        if isinstance(scaling, (DynamicScaling, LongRopeScaling)):
            continue  # theirs follow the batch at hand
        rotary = RotaryEmbedding(dimensions, base=base, scaling=scaling, length=length)
        for own, other in zip(
            rotary.angles(positions, torch.float32), embedding(torch.zeros(1), positions), strict=True
        ):
            assert torch.equal(own.squeeze(2), other[..., : dimensions // 2])
