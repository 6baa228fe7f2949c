"""The layers of one pipeline stage, run one after another."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, final

from torch import Tensor, nn

from scaling.core.errors import LayoutError
from scaling.core.pipeline.runners import Run, Runners, surround


@final
class Stage(nn.Module):
    """Consecutive layers of the model, run one after another on this rank."""

    def __init__(self, layers: Sequence[nn.Module], indices: range) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.indices = indices
        self.run_with(Runners())

    def run_with(self, runners: Runners) -> None:
        """Let runners stand around the layers and the stage from now on, instead of those before."""
        runs = tuple(surround(layer, runners.layer) for layer in self.layers)
        # In a tuple, since a runner may return a module, which as an attribute would join the module tree.
        self._runs: tuple[Run, tuple[Run, ...]] = (surround(self._run_layers, runners.stage), runs)

    def forward(self, x: Any) -> Any:
        """Run all layers."""
        return self._runs[0](x)

    def _run_layers(self, x: Any) -> Any:
        index, layer, given = self.indices.start, None, x
        try:
            for index, layer, run in zip(self.indices, self.layers, self._runs[1], strict=True):
                given = x
                x = run(x)
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
