"""The types of weights: their names in safetensors files, and in configurations of both sides."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import torch

WEIGHT_TYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
)
"""By the names in files. Others are quantized, or no weights."""


def name_in_configurations(dtype: torch.dtype) -> str:
    """Return the name that configurations have for a type: `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def prevailing(sizes: Mapping[str, int]) -> torch.dtype:
    """Return the type that most bytes are of, given their numbers by the names of types in files."""
    return WEIGHT_TYPES[max(sizes, key=lambda name: sizes[name])]
