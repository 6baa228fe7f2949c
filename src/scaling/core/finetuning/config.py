"""LoRaConfig: the matrices of a model that get low-rank updates, and the form of the updates."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from enum import Enum

from pydantic import Field

from scaling.core.config.base import BaseConfig
from scaling.core.config.patterns import NAME_PATTERN, pattern_problems
from scaling.core.errors import Problem
from scaling.core.finetuning.form import LowRankForm


class LoRaModuleType(str, Enum):
    """Short names of the modules that LoRA can be added to."""

    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    DENSE = "dense"
    DENSE_IN = "dense_in"
    SIGLU_WEIGHT = "siglu_weight"
    DENSE_OUT = "dense_out"
    EMBEDDING = "embedding"
    HEAD = "head"


class LoRaConfig(BaseConfig):
    """Low-rank updates of frozen matrices (LoRA, arXiv:2106.09685)."""

    name: str = Field(default="lora", pattern=NAME_PATTERN)
    """Name of this adapter, part of its parameters' names: lora_<name>."""
    rank: int = Field(default=64, ge=1)
    """Rank of the updates."""
    parallel_modules: list[str] = Field(default=["dense", "key", "value", "query"], min_length=1)
    """Modules to update: any of query, key, value, dense (attention), dense_in, siglu_weight, dense_out (MLP),
    embedding and head, or patterns (regular expressions, found anywhere in a module's name, such as
    layers.3.self_attention.query)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the updates' input."""
    alpha: float = Field(default=1.0, ge=0)
    """Updates are multiplied by alpha / rank."""
    use_rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead, which keeps updates of high rank from fading (arXiv:2312.03732)."""
    use_dora: bool = False
    """Learn the lengths of the updated matrices' rows separately from their directions (DoRA, arXiv:2402.09353)."""
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    """Other ranks for modules whose names match these patterns; if several match, the last counts."""
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    """Other alphas for modules whose names match these patterns; if several match, the last counts."""
    bias: bool = False
    """Also add a vector to each updated output, multiplied by the same factor as the update."""
    kaiming_a: float = Field(default=math.sqrt(5), ge=0)
    """Slope of the Kaiming-uniform initialisation of the first matrix; the second starts at 0."""
    version: str = ".unknown."
    """Free text."""

    def form_of(self, module: str) -> LowRankForm:
        """Return the form of a module's update, by the module's name in the model."""
        rank, alpha = _last(self.rank_pattern, module, self.rank), _last(self.alpha_pattern, module, self.alpha)
        return LowRankForm(
            rank=int(rank),
            scale=alpha / (math.sqrt(rank) if self.use_rslora else rank),
            bias=self.bias,
            magnitude=self.use_dora,
            kaiming_a=self.kaiming_a,
        )

    def problems(self) -> Iterator[Problem]:
        """Check the patterns, and settings that exclude each other."""
        words = [word for word in self.parallel_modules if word not in list(LoRaModuleType)]
        yield from pattern_problems("parallel_modules", words)
        yield from pattern_problems("rank_pattern", list(self.rank_pattern))
        yield from pattern_problems("alpha_pattern", list(self.alpha_pattern))
        for pattern, rank in self.rank_pattern.items():
            if rank < 1:
                yield Problem("rank_pattern", f"gives {pattern!r} the rank {rank}; a rank is at least 1")
        for pattern, alpha in self.alpha_pattern.items():
            if not 0 <= alpha < math.inf:
                yield Problem("alpha_pattern", f"gives {pattern!r} the alpha {alpha}; alpha is at least 0")
        if self.use_dora and self.bias:
            yield Problem("bias", "is true, but use_dora has no vector beside its update; set one of them to false")


def _last(patterns: dict[str, int] | dict[str, float], module: str, otherwise: float) -> float:
    """Return the value of the last pattern that is found in a module's name."""
    found = [value for pattern, value in patterns.items() if re.search(pattern, module)]
    return found[-1] if found else otherwise
