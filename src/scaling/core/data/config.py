"""BlendedDatasetConfig: how several data sets are mixed into one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from scaling.core.config.base import BaseConfig
from scaling.core.config.fields import NoEffect
from scaling.core.errors import Problem

_COMPUTED = "the mixture is computed, not stored"


class BlendedDatasetConfig(BaseConfig):
    """Weights of the data sets in a mixture. With one data set nothing is mixed."""

    weight_by_num_documents: bool = True
    """Derive the weights from the sizes of the data sets; `weights` is then not used."""
    weighted_sampler_alpha: float = Field(default=1.0, ge=0)
    """Exponent on the share of each data set, with weight_by_num_documents: 1 keeps the shares, 0 makes them equal."""
    weights: list[float] | None = None
    """One weight for each data set, in their order: how often its samples are seen, relative to those of the others, so
    that its share is its size times its weight; needs weight_by_num_documents: false. null: none."""
    weight_examples_proportional: bool = False
    """Cap each size at ep_maximum and raise it to 1 / ep_temperature before sharing, as T5 does."""
    ep_maximum: int | None = Field(default=None, ge=1)
    """Cap on the size of a data set, with weight_examples_proportional. null: none."""
    ep_temperature: float = Field(default=1.0, gt=0)
    """Temperature, with weight_examples_proportional: 1 keeps the shares, larger ones even them out."""
    minimum_dataset_size: int = Field(default=0, ge=0)
    """Repeat the mixture until it has at least this many samples. 0: off."""
    shuffle_dataset_indices: bool = False
    """Also shuffle which data set the next sample comes from, within windows of 4096 samples, which keep the shares."""
    cache_directory: Annotated[Path | None, NoEffect(_COMPUTED)] = None
    """Formerly: folder for stored indices."""
    load_dataset_indices_to_memory: Annotated[bool, NoEffect(_COMPUTED)] = False
    """Formerly: keep stored indices in memory."""

    def problems(self) -> Iterator[Problem]:
        """Check the weights."""
        if not self.weight_by_num_documents and self.weights is None:
            yield Problem("weights", "are needed with weight_by_num_documents: false, one for each data set")
        if self.weights is not None and (min(self.weights, default=0) < 0 or sum(self.weights) <= 0):
            yield Problem(
                "weights", f"must not be negative, and at least one must be positive; they are {self.weights}"
            )
        if self.weight_examples_proportional and not self.weight_by_num_documents:
            yield Problem("weight_examples_proportional", "needs weight_by_num_documents: true")
