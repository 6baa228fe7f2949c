"""The layers of one pipeline stage, run one after another."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, final

import torch
from torch import Tensor, nn

from scaling.core.collectives import tree
from scaling.core.errors import LayoutError
from scaling.core.pipeline.compiled import Run
from scaling.core.pipeline.runners import Runners, surround


@dataclass(frozen=True)
class _Runs:
    """The functions that run the parts of a stage, apart from it: a module among them must not join the module tree."""

    layers: tuple[Run, ...]
    """Each layer."""
    layers_from: tuple[Run, ...]
    """Entry i runs layers i to the last, those with a backward pass; without runners for these, only entry 0 exists."""
    whole: Run


@final
class Stage(nn.Module):
    """Consecutive layers of the model, run one after another on this rank."""

    def __init__(self, layers: Sequence[nn.Module], indices: range) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.indices = indices
        self.run_with(Runners())

    def run_with(self, runners: Runners) -> None:
        """Wrap the layers and the stage in `runners` from now on, in place of earlier ones."""
        layers = tuple(surround(layer, runners.layer) for layer in self.layers)
        firsts = range(len(layers)) if runners.differentiated else range(1)
        differentiated = (partial(self._run_layers, first, len(layers)) for first in firsts)
        self._runs = _Runs(
            layers=layers,
            layers_from=tuple(surround(run, runners.differentiated) for run in differentiated),
            whole=surround(self._run_all, runners.stage),
        )

    @contextlib.contextmanager
    def running_with(self, runners: Runners) -> Iterator[None]:
        """Wrap the layers and the stage in other runners within the context."""
        before = self._runs
        self.run_with(runners)
        try:
            yield
        finally:
            self._runs = before

    def forward(self, x: Any) -> Any:
        """Run all layers."""
        return self._runs.whole(x)

    def _run_all(self, x: Any) -> Any:
        runs = self._runs.layers_from
        first = self._first_differentiated(x) if len(runs) > 1 and torch.is_grad_enabled() else 0
        if first:
            x = self._run_layers(0, first, x)
        return runs[first](x) if first < len(runs) else x

    def _first_differentiated(self, x: Any) -> int:
        """Return the first layer that has a backward pass (its number within the stage), or the number of layers."""
        if any(tensor.requires_grad for _, tensor in tree.flatten(x)):
            return 0
        trained = (any(parameter.requires_grad for parameter in layer.parameters()) for layer in self.layers)
        return next((number for number, found in enumerate(trained) if found), len(self.layers))

    def _run_layers(self, first: int, stop: int, x: Any) -> Any:
        index, layer, given = self.indices.start, None, x
        try:
            layers = zip(self.indices, self.layers, self._runs.layers, strict=True)
            for index, layer, run in islice(layers, first, stop):
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
    """Describe the input of a layer, for a message."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
