"""The types of weights: their names in safetensors files, and in configurations of both sides."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import torch

WEIGHT_TYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
)
"""Types by their names in files. Other types are quantized, or not used for weights."""


def name_in_configurations(dtype: torch.dtype) -> str:
    """Return the name of a type in configurations, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def prevailing(sizes: Mapping[str, int]) -> torch.dtype:
    """Return the type with the most bytes, given the number of bytes of each type by its name in files."""
    return WEIGHT_TYPES[max(sizes, key=lambda name: sizes[name])]
