"""Make a model and its layout small, but keep everything in them that a layout can break. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise
from math import gcd, lcm, prod
from typing import Any

from scaling.core import ConfigError, Problem, TopologyConfig
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.plan.attention import AttentionPlan
from scaling.transformer.plan.parts import FeedForwardPlan
from scaling.transformer.verify.shrink_methods import shrunk_methods, without_methods

PROCESSES = 8
_HEAD_SIZE = 8
_SEQUENCE = 16
_VOCABULARY = 48
_EXTRA_LAYERS = 2
_CHUNK = 7
"""Chunk size with which logits in chunks still need several chunks, the last of them smaller."""

Sizes = dict[str, int]


def shrunk(
    config: TransformerConfig, *, also: TopologyConfig | None = None, processes: int = PROCESSES
) -> TransformerConfig:
    """Return the configuration with small sizes that keep its structure, for at most `processes` processes.

    Kept are which axes have several processes, the schedule and its options, tying, biases, dropout and norms; whether
    layers are even or odd in number and divide evenly over the stages, whether the vocabulary divides by the
    model-parallel size, whether there are fewer key-value heads than model ranks, and a layer of each kind. `also` is
    another layout that the model must fit. Settings of the data are dropped, since no real data have the small
    vocabulary; only whether the data are records is kept.
    """
    large, architecture = config.topology, config.transformer_architecture
    plan = plan_of(architecture)
    attention, *_ = plan.parts(AttentionPlan)
    others = plan.num_layers - architecture.num_layers
    sizes = axis_sizes(large, processes)
    ranks = sizes["model_parallel_size"]
    fits = lcm(ranks, 1 if also is None else also.model_parallel_size)
    stages = sizes["pipe_parallel_size"] * large.pipe_chunks_per_rank
    kinds = list(dict.fromkeys(architecture.attention_pattern))
    layers = _layers(
        *(architecture.num_layers, others, large.pipe_stages, stages),
        at_least=max(len(kinds), 1, 0 if also is None else also.pipe_stages - others),
    )
    grouped = architecture.attention_num_kv_heads is not None
    heads, kv_heads = _heads(attention, large.model_parallel_size, ranks, fits, grouped=grouped)
    cut = large.sequence_parallel or (also is not None and also.sequence_parallel)
    values = config.as_dict()
    values["data"] = {"eod_token_id": 0}
    if (records := config.data.records) is not None:
        values["data"] |= {"record_format": "auto", "packing": records.packing}
    values["transformer_architecture"] |= {
        "num_attention_heads": heads,
        "attention_num_kv_heads": kv_heads,
        "num_layers": layers,
        "vocab_size": _vocabulary(architecture.vocab_size, large.model_parallel_size, ranks, fits),
        "vocab_file": None,
        "attention_pattern": kinds if layers < architecture.num_layers else architecture.attention_pattern,
        **_widths(architecture, heads, fits),
        **_lengths(architecture, _sequence(plan.sequence, fits, cut=cut)),
        **without_methods(),
    }
    small = TransformerArchitectureConfig.from_dict(values["transformer_architecture"], quiet=True)
    values["transformer_architecture"] |= shrunk_methods(architecture, small)
    loss = values["training"]["loss_function_config"]
    if (chunk := loss.get("chunk_size")) is not None:
        loss["chunk_size"] = min(chunk, _CHUNK)
    values["topology"] |= sizes | _batch(large, sizes, also) | {"device": "cpu"}
    if large.pipe_partition_overwrite is not None:
        values["topology"]["pipe_partition_overwrite"] = scaled_boundaries(
            large.pipe_partition_overwrite, stages, layers + others
        )
    return TransformerConfig.from_dict(values, quiet=True)


def _widths(architecture: TransformerArchitectureConfig, heads: int, fits: int) -> dict[str, Any]:
    """Return small widths for `heads` heads; whether heads fill the hidden size, and how much is rotated, are kept."""
    size = min(architecture.head_size, _HEAD_SIZE)
    changes: dict[str, Any] = {"hidden_size": heads * size}
    if architecture.attention_head_size is not None:
        filled = architecture.num_attention_heads * architecture.head_size == architecture.hidden_size
        hidden = heads * size if filled else min(architecture.hidden_size, heads * size + heads * size // 2)
        changes |= {"attention_head_size": size, "hidden_size": hidden}
    ratio = architecture.mlp_width / architecture.hidden_size
    width = _multiple(max(1, round(changes["hidden_size"] * ratio)), fits)
    if architecture.mlp_size is None and architecture.mlp_size_multiple_of == 1:
        changes["mlp_factor"] = width / changes["hidden_size"]
    else:
        changes |= {"mlp_size": width, "mlp_size_multiple_of": 1}
    local, all_heads = architecture.num_local_attention_heads, architecture.num_attention_heads
    if local:
        most = heads if local == all_heads else max(heads - 1, 1)
        changes["num_local_attention_heads"] = min(max(1, local * heads // all_heads), most)
    if size < architecture.head_size and architecture.rotated_dimensions:
        changes["rotary_percentage"] = _rotated(architecture, size) / size
    return changes


def _rotated(architecture: TransformerArchitectureConfig, size: int) -> int:
    """Return how many features of a head of a small size are rotated: all where all were, never more than before."""
    rotated = architecture.rotated_dimensions
    if size == architecture.head_size:
        return rotated
    return size if rotated == architecture.head_size else min(rotated, size // 2)


def _lengths(architecture: TransformerArchitectureConfig, sequence: int) -> dict[str, Any]:
    """Return the settings that are measured in tokens, for a small sequence length: windows still hide keys."""
    values, before = architecture.as_dict(), architecture.sequence_length
    pairs = max(1, _rotated(architecture, min(architecture.head_size, _HEAD_SIZE)) // 2)

    def window(keys: int | None) -> int | None:
        return keys if keys is None or sequence == before else min(keys, max(1, sequence // 2))

    def rotary(section: dict[str, Any] | None) -> dict[str, Any] | None:
        if section is None:
            return None
        changes: dict[str, Any] = {
            name: section[name][:pairs] for name in ("short_factor", "long_factor") if name in section
        }
        trained = section.get("trained_length")
        if trained is not None and sequence != before:  # sequences stay shorter or longer than the trained length
            changes["trained_length"] = max(1, sequence // 2) if before > trained else max(trained, sequence)
        return {**section, **changes}

    positions = architecture.absolute_positions
    return {
        "sequence_length": sequence,
        "absolute_positions": positions and min(positions, sequence + (positions > before)),
        "local_attention_window_size": window(architecture.local_attention_window_size),
        "rotary": rotary(values["rotary"]),
        "softprompt_config": shorter_soft_prompt(values["softprompt_config"], sequence),
        "attention_kinds": {
            name: {"window": window(kind["window"]), "rotary": rotary(kind["rotary"])}
            for name, kind in values["attention_kinds"].items()
        },
    }


def shorter_soft_prompt(section: dict[str, Any] | None, sequence: int) -> dict[str, Any] | None:
    """Return a soft prompt that leaves most of a short sequence to its text."""
    return section and {**section, "n_tokens": min(section["n_tokens"], max(1, sequence // 4))}


def axis_sizes(topology: TopologyConfig, processes: int) -> Sizes:
    """Return sizes of the axes whose product is at most `processes`; an axis of several processes keeps at least two.

    The data axis shrinks first, the model axis last, by whole factors as far as possible.
    """
    names = ("data_parallel_size", "pipe_parallel_size", "model_parallel_size")
    sizes: Sizes = {name: getattr(topology, name) for name in names}

    def too_many() -> bool:
        return prod(sizes.values()) > processes

    for name in names:
        while too_many() and (factor := _smallest_factor(sizes[name])) < sizes[name]:
            sizes[name] //= factor
    for name in names:
        if too_many() and sizes[name] > 1:
            sizes[name] = 2
    if too_many():
        axes = sum(size > 1 for size in sizes.values())
        raise ConfigError(
            Problem(
                "topology",
                f"has several processes on {axes} axes, which takes at least {2**axes} processes, but {processes} are "
                "allowed; allow more",
            )
        )
    return {**sizes, "world_size": prod(sizes.values())}


def scaled_boundaries(boundaries: list[int], stages: int, layers: int) -> list[int]:
    """Return stage boundaries of `layers` layers in about the proportions of other boundaries, no stage empty."""
    parts = len(boundaries) - 1
    chosen = [boundaries[round(stage * parts / stages)] for stage in range(stages + 1)]
    spare = layers - stages
    wanted = [(stop - start) * layers / boundaries[-1] for start, stop in pairwise(chosen)]
    lengths = [1] * stages
    for _ in range(spare):  # to the stage that is furthest below its share
        lengths[min(range(stages), key=lambda stage: lengths[stage] - wanted[stage])] += 1
    return list(accumulate(lengths, initial=0))


def differences(before: TransformerConfig, after: TransformerConfig) -> Iterator[str]:
    """Yield the sizes that have changed, in words."""
    for (name, old), new in zip(_sizes(before).items(), _sizes(after).values(), strict=True):
        if old != new:
            yield f"{name} {old} -> {new}"


def _sizes(config: TransformerConfig) -> dict[str, object]:
    axes = ("data_parallel_size", "pipe_parallel_size", "model_parallel_size")
    batch = ("micro_batch_size", "gradient_accumulation_steps", "pipe_partition_overwrite")
    shape = ("num_layers", "hidden_size", "num_attention_heads", "attention_num_kv_heads")
    topology, architecture = config.topology, config.transformer_architecture
    (feed_forward,) = plan_of(architecture).parts(FeedForwardPlan)
    return {
        **{name: getattr(topology, name) for name in (*axes, *batch)},
        **{name: getattr(architecture, name) for name in shape},
        "mlp_size": feed_forward.width,
        **{name: getattr(architecture, name) for name in ("vocab_size", "sequence_length")},
    }


def _heads(
    attention: AttentionPlan, large_ranks: int, ranks: int, fits: int, *, grouped: bool
) -> tuple[int, int | None]:
    kv_heads = attention.kv_heads
    if not grouped:
        return min(attention.heads, _multiple(2, fits)), None
    if kv_heads < large_ranks and ranks > 1:
        shared = gcd(large_ranks // kv_heads, ranks)
        few = ranks // (shared if shared > 1 else ranks)
    else:
        few = min(kv_heads, fits)
        if few % ranks and ranks % few:  # such as three heads for three ranks, of which two ranks are left
            few = fits
    ratio = min(2, attention.heads // kv_heads)
    while few * ratio % fits:
        ratio += 1
    return few * ratio, few


def _layers(layers: int, others: int, large_stages: int, stages: int, *, at_least: int) -> int:
    even = (layers + others) % large_stages == 0
    needed = min(layers, max(at_least, stages - others) + _EXTRA_LAYERS)
    same_parity = [number for number in range(needed, layers + 1) if number % 2 == layers % 2]
    alike = [number for number in same_parity if ((number + others) % stages == 0) == even]
    return (alike or same_parity)[0]


def _vocabulary(size: int, large_ranks: int, ranks: int, fits: int) -> int:
    """Return a small vocabulary that divides by the model ranks exactly if the large one does."""
    remainder = size % large_ranks if ranks == large_ranks else min(size % large_ranks, ranks - 1)
    return min(size, _multiple(_VOCABULARY, fits) + remainder)


def _sequence(length: int, fits: int, *, cut: bool) -> int:
    """Return a small sequence length; where sequences are cut, one that the ranks divide."""
    return _multiple(min(length, _SEQUENCE), fits) if cut else min(length, _multiple(_SEQUENCE, fits))


def _batch(topology: TopologyConfig, sizes: Sizes, also: TopologyConfig | None) -> Sizes:
    micro, pipe = min(topology.micro_batch_size, 2), sizes["pipe_parallel_size"]
    steps = min(topology.gradient_accumulation_steps, 2 * pipe)
    if topology.pipe_chunks_per_rank > 1:
        steps = max(pipe, steps // pipe * pipe)
    if also is not None:
        cut = also.data_parallel_size * (also.pipe_parallel_size if also.pipe_chunks_per_rank > 1 else 1)
        micro *= cut // gcd(cut, micro * steps * sizes["data_parallel_size"])
    return {
        "micro_batch_size": micro,
        "gradient_accumulation_steps": steps,
        "global_batch_size": micro * steps * sizes["data_parallel_size"],
    }


def _smallest_factor(size: int) -> int:
    return next((factor for factor in range(2, size) if size % factor == 0), size)


def _multiple(size: int, of: int) -> int:
    """Return the smallest multiple of `of` that is at least `size`."""
    return -(-size // of) * of
