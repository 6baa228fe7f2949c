"""Make a model small without changing what a layout can break in it. Pure."""

from __future__ import annotations

from typing import Any

from scaling.core import TopologyConfig
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.root import TransformerConfig

_HEAD_SIZE = 8
_SEQUENCE = 16
_VOCABULARY = 48
_EXTRA_LAYERS = 2


def shrunk(config: TransformerConfig) -> TransformerConfig:
    """Return the configuration with the smallest sizes that keep its structure.

    Kept are the layout, the schedule and its options, tying, biases, dropout and norms; whether the layers are even or
    odd in number, whether the vocabulary divides by the model-parallel size and with which remainder, and whether there
    are fewer key-value heads than model ranks.
    """
    topology, architecture = config.topology, config.transformer_architecture
    heads, kv_heads = _heads(architecture, topology.model_parallel_size)
    hidden = heads * _HEAD_SIZE
    changes = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "attention_num_kv_heads": kv_heads,
        "num_layers": _layers(architecture, topology),
        "vocab_size": _vocabulary(architecture.vocab_size, topology.model_parallel_size),
        "sequence_length": min(architecture.sequence_length, _multiple(_SEQUENCE, topology.model_parallel_size)),
        "mlp_factor": _mlp_factor(architecture, hidden, topology.model_parallel_size),
        "rotary_percentage": 1.0 if architecture.rotary_percentage == 1.0 else 0.5,
    }
    values = config.as_dict()
    values["transformer_architecture"] |= changes
    values["topology"] |= _batch(topology)
    return TransformerConfig.from_dict(values, quiet=True)


def _heads(architecture: TransformerArchitectureConfig, model_ranks: int) -> tuple[int, int | None]:
    kv_heads = architecture.attention_num_kv_heads
    if kv_heads is None:
        return min(architecture.num_attention_heads, _multiple(2, model_ranks)), None
    few = min(kv_heads, model_ranks if kv_heads % model_ranks == 0 else kv_heads)
    ratio = min(2, architecture.num_attention_heads // kv_heads)
    while few * ratio % model_ranks:
        ratio += 1
    return few * ratio, few


def _layers(architecture: TransformerArchitectureConfig, topology: TopologyConfig) -> int:
    layers = architecture.num_layers
    if topology.pipe_partition_overwrite is not None:
        return layers  # the boundaries name them all
    others = architecture.num_pipeline_layers - layers
    needed = max(1, topology.pipe_stages - others) + _EXTRA_LAYERS
    return min(layers, needed + (layers - needed) % 2)


def _vocabulary(size: int, model_ranks: int) -> int:
    return min(size, _multiple(_VOCABULARY, model_ranks) + size % model_ranks)


def _mlp_factor(architecture: TransformerArchitectureConfig, hidden: int, model_ranks: int) -> float:
    return _multiple(round(hidden * architecture.mlp_factor), model_ranks) / hidden


def _batch(topology: TopologyConfig) -> dict[str, Any]:
    micro = min(topology.micro_batch_size, 2)
    steps = min(topology.gradient_accumulation_steps, 2 * topology.pipe_parallel_size)
    return {
        "micro_batch_size": micro,
        "gradient_accumulation_steps": steps,
        "global_batch_size": micro * steps * topology.data_parallel_size,
        "device": "cpu",
    }


def _multiple(size: int, of: int) -> int:
    """Return the smallest multiple of `of` that is at least `size`."""
    return -(-size // of) * of
