"""The layers of one pipeline stage, run one after another."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal, final

from torch import Tensor, nn

from scaling.core.errors import LayoutError
from scaling.core.nn.recompute import recomputed
from scaling.core.topology.topology import Topology

Recompute = Literal["disabled", "every_layer", "every_pipe_stage"]


@final
class Stage(nn.Module):
    """Consecutive layers of the model, run one after another on this rank."""

    def __init__(
        self, layers: Sequence[nn.Module], indices: range, *, recompute: Recompute, topology: Topology
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.indices = indices
        self._recompute = recompute
        self._topology = topology

    def forward(self, x: Any) -> Any:
        """Run all layers; while training, under the stage's activation checkpointing."""
        if not self.training or self._recompute == "disabled":
            return self._run(x)
        if self._recompute == "every_pipe_stage":
            return recomputed(self._run, x, self._topology)
        return self._run(x, every_layer=True)

    def _run(self, x: Any, *, every_layer: bool = False) -> Any:
        index, layer, given = self.indices.start, None, x
        try:
            for index, layer in zip(self.indices, self.layers, strict=True):
                given = x
                x = recomputed(layer, x, self._topology) if every_layer else layer(x)
                if x is None:
                    raise LayoutError(
                        f"layer {index} ({type(layer).__name__}) returned None; let its forward return what the next "
                        "layer takes"
                    )
        except Exception as error:
            if sys.version_info >= (3, 11):  # shown below the traceback
                error.add_note(
                    f"in layer {index} ({type(layer).__name__}) of the model, which was given {_kind(given)}"
                )
            raise
        return x


def _kind(value: Any) -> str:
    """Describe what a layer was given, for a message."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
