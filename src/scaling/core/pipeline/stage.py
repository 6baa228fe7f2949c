"""The layers of one pipeline stage: built, named, tied, filled and run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from scaling.core.errors import LayoutError
from scaling.core.nn.init import initialize
from scaling.core.nn.parameter import meta, update_meta
from scaling.core.nn.recompute import recomputed
from scaling.core.pipeline.actions import rank_of
from scaling.core.pipeline.layer_spec import LayerSpec, TiedLayerSpec
from scaling.core.topology.rng import derive_seed
from scaling.core.topology.topology import Topology

Recompute = Literal["disabled", "every_layer", "every_pipe_stage"]


@dataclass(frozen=True)
class Tie:
    """Parameters shared under one name: their first layer, their global names, and the pipe ranks that hold them."""

    layer: int
    keys: tuple[str, ...]
    ranks: tuple[int, ...]


def ties(specs: Sequence[LayerSpec], stages: Sequence[range], pipe_ranks: int) -> dict[str, Tie]:
    """Return every tie of the model. Pure: the same on all ranks.

    Tied parameters go by the name they have in the first layer of the tie.
    """
    found: dict[str, Tie] = {}
    for number, layers in enumerate(stages):
        for index in layers:
            spec = specs[index]
            if isinstance(spec, TiedLayerSpec):
                keys = tuple(f"layers.{index}.{name}" for name in spec.tied_parameters)
                known = found.get(spec.tie, Tie(index, keys, ()))
                ranks = tuple(sorted({*known.ranks, rank_of(number, pipe_ranks)}))
                found[spec.tie] = replace(known, ranks=ranks)
    return found


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


def build_stages(
    specs: Sequence[LayerSpec], stages: Sequence[range], *, topology: Topology, seed: int, recompute: Recompute
) -> dict[int, Stage]:
    """Build this rank's stages, by global number: layers made, parameters named, tied, filled, moved to the device.

    Each rank fills its own parts from (seed, name, part); nothing is communicated. A layer that fills its parameters
    itself (any plain `nn.Module`) is built under a seed derived from its place in the model, and so is alike on all
    ranks.
    """
    pipe_ranks = topology.layout.pipe
    all_ties = ties(specs, stages, pipe_ranks)
    shared: dict[str, nn.Parameter] = {}
    built: dict[int, Stage] = {}
    for number, indices in enumerate(stages):
        if rank_of(number, pipe_ranks) != topology.coordinate.pipe:
            continue
        layers = []
        for index in indices:
            layer = _build_layer(specs[index], index, seed)
            spec = specs[index]
            if isinstance(spec, TiedLayerSpec):
                tie, first = all_ties[spec.tie], specs[all_ties[spec.tie].layer]
                if index > tie.layer and tie.keys[0] not in shared:
                    # The layer that fills what is shared lies on another rank: make it here too, for that alone.
                    assert isinstance(first, TiedLayerSpec)
                    _tie(_build_layer(first, tie.layer, seed), first, tie, shared)
                _tie(layer, spec, tie, shared)
            for parameter in layer.parameters():
                initialize(parameter, seed=seed)
            layers.append(layer)
        built[number] = Stage(layers, indices, recompute=recompute, topology=topology).to(topology.device)
    return built


def _build_layer(spec: LayerSpec, index: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "layer", index))
        layer = spec.build()
    for name, parameter in layer.named_parameters():
        key, known = f"layers.{index}.{name}", meta(parameter).key
        if known not in ("", key) and meta(parameter).tied is None:
            raise LayoutError(
                f"layer {index} ({spec.name}) has the parameter {name} in common with an earlier one, {known}, which "
                "other pipeline stages could not know; build each layer anew, or share it through TiedLayerSpec"
            )
        update_meta(parameter, key=key)
    return layer


def _tie(layer: nn.Module, spec: TiedLayerSpec, tie: Tie, shared: dict[str, nn.Parameter]) -> None:
    for key, name in zip(tie.keys, spec.tied_parameters, strict=True):
        owner_name, _, attribute = name.rpartition(".")
        owner = layer.get_submodule(owner_name)
        own = owner.get_parameter(attribute)
        update_meta(own, key=key, tied=key)
        present = shared.setdefault(key, own)
        if meta(present).global_shape != meta(own).global_shape:
            raise LayoutError(
                f"the tie {spec.tie!r} joins {key} {list(meta(present).global_shape)} and {name} "
                f"{list(meta(own).global_shape)} of a later layer; tied parameters need one shape"
            )
        setattr(owner, attribute, present)
