"""The settings of an architecture as families see them: flat, resolved, and with the particulars of each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any, Final

Layer = Mapping[str, Any]
"""`window` and `rotary` of one layer. Without `window`, it attends to all keys; without `rotary`, it rotates as the
model does."""

USUAL_ACTIVATION: Final[Mapping[str, str]] = {"default": "gelu", "swiglu": "silu", "geglu": "gelu"}

FOLLOWS_LENGTH: Final[frozenset[str]] = frozenset({"dynamic", "longrope"})
"""Rotations that depend on the configured length."""

TRAINED_LENGTH: Final[frozenset[str]] = frozenset({"dynamic", "yarn", "llama3", "longrope"})
"""Rotations that have as a parameter the length trained before an extension."""


def flat(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section in which nested sections are replaced by dotted names, where families use their settings."""
    result = dict(section)
    for name in ("layernorm",):
        for key, value in result.pop(name, {}).items():
            result[f"{name}.{key}"] = value
    return result


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section from settings with dotted names."""
    result: dict[str, Any] = {}
    for name, value in settings.items():
        outer, _, inner = name.rpartition(".")
        (result.setdefault(outer, {}) if outer else result)[inner] = value
    return result


def resolved(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a section that has all keys, as `as_dict` gives it.

    A setting that is null because it follows from another one gets the value that follows. `layers` gives the window
    and the rotation of each layer; `mlp_type` says only whether there is a gate (swiglu).
    """
    ours = flat(section)
    heads, hidden = ours["num_attention_heads"], ours["hidden_size"]
    width, multiple = ours["mlp_size"] or round(hidden * ours["mlp_factor"]), ours.pop("mlp_size_multiple_of")
    activation = ours["activation_function"] or USUAL_ACTIVATION[ours["mlp_type"]]
    bias = ours["attention_bias"]
    if ours["num_local_attention_heads"] == heads:  # a window for all heads is a window for all layers
        usual = {"window": ours["local_attention_window_size"], "rotary": None}
        ours |= {"num_local_attention_heads": 0, "local_attention_window_size": None}
    else:
        usual = {"window": None, "rotary": None}
    for key in ("attention_qkv_bias", "attention_dense_bias"):
        ours[key] = bias if ours[key] is None else ours[key]
    if ours["layernorm.bias"] is None:
        ours["layernorm.bias"] = ours["norm_type"] == "layernorm"
    size = ours["attention_head_size"] or hidden // heads
    factor = ours.pop("masked_softmax").get("scale", 1.0)
    if ours["attention_score_scale"] is None and factor != 1.0:
        ours["attention_score_scale"] = factor / math.sqrt(size)
    ours |= {
        "attention_bias": ours["attention_qkv_bias"],
        "attention_head_size": size,
        "attention_num_kv_heads": ours["attention_num_kv_heads"] or heads,
        "mlp_size": -(-width // multiple) * multiple,
        "activation_function": activation,
        "mlp_type": "default" if ours["mlp_type"] == "default" else "swiglu",
        "key_query_norm": "per_head" if ours["key_query_norm"] is True else ours["key_query_norm"],
        "layers": layers_of(ours, usual),
    }
    for key in ("mlp_factor", "attention_kinds", "attention_pattern", "rotary", "rotary_embedding_base"):
        ours.pop(key)
    return ours


def layers_of(ours: Mapping[str, Any], usual: Layer) -> list[dict[str, Any]]:
    """Return `window` and `rotary` of every layer, the rotation without nulls; `usual`: where there are no kinds."""
    kinds = [ours["attention_kinds"][name] for name in ours["attention_pattern"]] or [usual]
    rotates = ours["relative_position_embedding_type"] != "none"
    cycled = [
        {"window": kind["window"], "rotary": _rotary(ours, kind["rotary"] or ours["rotary"]) if rotates else NO_ROTARY}
        for kind in kinds
    ]
    return list(islice(cycle(cycled), ours["num_layers"]))


NO_ROTARY: Final[Mapping[str, Any]] = {"type": "none"}


def _rotary(ours: Mapping[str, Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    if given["type"] == "none":
        return NO_ROTARY
    result = {key: value for key, value in given.items() if value is not None}
    result.setdefault("base", ours["rotary_embedding_base"])
    if given["type"] in TRAINED_LENGTH:
        result.setdefault("trained_length", ours["sequence_length"])
    return result


def kinds_of(layers: Sequence[Layer]) -> dict[str, Any]:
    """Return `attention_kinds` and `attention_pattern` of layers; nothing where no layer differs from the model."""
    if not any(layers):
        return {}
    names: dict[str, Layer] = {}
    pattern: list[str] = []
    for layer in layers:
        name = next((name for name, known in names.items() if known == layer), None)
        if name is None:
            name = _name(layer, names)
            names[name] = layer
        pattern.append(name)
    return {
        "attention_kinds": {name: dict(layer) for name, layer in names.items()},
        "attention_pattern": period(pattern),
    }


def _name(layer: Layer, taken: Mapping[str, Layer]) -> str:
    name = "full" if layer.get("window") is None else "sliding"
    if layer.get("rotary") == NO_ROTARY:
        name += "_no_rotary"
    return name if name not in taken else f"{name}_{len(taken)}"


def period(pattern: Sequence[str]) -> list[str]:
    """Return the shortest beginning whose repetition gives the whole."""
    for length in range(1, len(pattern)):
        if list(pattern) == list(islice(cycle(pattern[:length]), len(pattern))):
            return list(pattern[:length])
    return list(pattern)
