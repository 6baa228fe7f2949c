"""Sampling options of a caller, which override those in the model's files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from scaling.transformer.inference.generation.sampling import Sampling


@final
@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """The fields of `Sampling`. None leaves a field to the model."""

    temperature: float | None = None
    top_k: int | None = None
    """0: off."""
    top_p: float | None = None
    """1: off."""
    min_p: float | None = None
    """0: off."""
    repetition_penalty: float | None = None
    """1: off."""

    def over(self, present: Sampling) -> Sampling:
        """Return a model's sampling with these options in place of its own.

        Raises:
            ConfigError: An option is outside its range.
        """
        return Sampling(
            temperature=_first(self.temperature, present.temperature),
            top_k=None if self.top_k == 0 else _first(self.top_k, present.top_k),
            top_p=_first(self.top_p, present.top_p),
            min_p=None if self.min_p == 0 else _first(self.min_p, present.min_p),
            repetition_penalty=_first(self.repetition_penalty, present.repetition_penalty),
        )


def _first(given: Any, otherwise: Any) -> Any:
    return otherwise if given is None else given
