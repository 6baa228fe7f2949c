"""Dropout of the input of a matrix, deep within a layer that does not know its samples."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from scaling.core.errors import LayoutError
from scaling.core.nn.dropout import Dropout


@final
class SampleNote:
    """The samples of the micro-batch that a layer runs on, for modules deep within the layer."""

    def __init__(self) -> None:
        self.samples: Tensor | None = None
        """int64 [b]: the position of each row in the sample order of the whole run."""


@final
class InputDropout(nn.Module):
    """Dropout of the input [b, s, f] of a matrix. The samples come from a `SampleNote`.

    `features` are the global indices of the input's features, where the input has a part of them only.
    """

    def __init__(self, dropout: Dropout, note: SampleNote, *, features: range | None = None) -> None:
        super().__init__()
        self.dropout = dropout
        self.features = features
        self._note = note

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` after dropout; `x` itself where nothing is dropped."""
        if not self.dropout.active:
            return x
        if self._note.samples is None:
            raise LayoutError(
                "an input is to be dropped out, but nothing has said of which samples it is; run the layer by calling "
                "it, so that its hooks run"
            )
        return self.dropout.within(x, self._note.samples, features=self.features)
