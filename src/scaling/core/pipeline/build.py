"""Build a rank's pipeline stages: layers described, parameters named and tied, filled once, moved to the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from scaling.core.errors import LayoutError
from scaling.core.nn.init import fill
from scaling.core.nn.parameter import annotate, meta, share
from scaling.core.pipeline.layer_spec import LayerSpec, TiedLayerSpec
from scaling.core.pipeline.stage import Stage
from scaling.core.pipeline.stage_map import StageMap
from scaling.core.topology.layout import Axis
from scaling.core.topology.placement import tied
from scaling.core.topology.rng import derive_seed
from scaling.core.topology.topology import Topology


@dataclass(frozen=True)
class Tie:
    """Parameters shared under one name: their first layer, their names in the model, the pipe ranks holding them."""

    layer: int
    names: tuple[str, ...]
    ranks: tuple[int, ...]


def ties(specs: Sequence[LayerSpec], stages: Sequence[range], stage_map: StageMap) -> dict[str, Tie]:
    """Return every tie of the model. Pure: the same on all ranks.

    Tied parameters have the names that they have in the first layer of the tie.
    """
    found: dict[str, Tie] = {}
    for number, layers in enumerate(stages):
        for index in layers:
            spec = specs[index]
            if isinstance(spec, TiedLayerSpec):
                names = tuple(f"layers.{index}.{name}" for name in spec.tied_parameters)
                known = found.get(spec.tie, Tie(index, names, ()))
                ranks = tuple(sorted({*known.ranks, stage_map.rank_of(number)}))
                found[spec.tie] = replace(known, ranks=ranks)
    return found


def describe_layers(
    specs: Sequence[LayerSpec], stages: Sequence[range], stage_map: StageMap, *, topology: Topology, seed: int
) -> Iterator[tuple[int, int, nn.Module]]:
    """Yield (stage, index, layer) of this rank's layers: described and named, without values.

    This works for any rank, without a process group: of the topology only coordinate and layout are used. A layer that
    fills its parameters itself (any plain `nn.Module`) is built under a seed derived from its place in the model, and
    so is the same on all ranks. Tied parameters are one object on a rank.
    """
    all_ties = ties(specs, stages, stage_map)
    shared: dict[str, nn.Parameter] = {}
    for number, indices in enumerate(stages):
        if stage_map.rank_of(number) != topology.coordinate.pipe:
            continue
        for index in indices:
            layer, spec = _described(specs[index], index, seed), specs[index]
            if isinstance(spec, TiedLayerSpec):
                tie, first = all_ties[spec.tie], specs[all_ties[spec.tie].layer]
                if index > tie.layer and tie.names[0] not in shared:
                    # The layer that describes the shared parameters is on another rank: build it here too, for these.
                    assert isinstance(first, TiedLayerSpec)
                    _tie(_described(first, tie.layer, seed), first, tie, shared)
                _tie(layer, spec, tie, shared)
            yield number, index, layer


def build_stages(
    specs: Sequence[LayerSpec], stages: Sequence[range], stage_map: StageMap, *, topology: Topology, seed: int
) -> dict[int, Stage]:
    """Build this rank's stages, by global number.

    Each rank fills its own parts from (seed, name, part), once, where they stay; nothing is communicated.
    """
    layers: dict[int, list[nn.Module]] = {}
    for number, _, layer in describe_layers(specs, stages, stage_map, topology=topology, seed=seed):
        layers.setdefault(number, []).append(fill(layer, seed=seed, device=topology.device))
    return {number: Stage(built, stages[number]) for number, built in layers.items()}


def _described(spec: LayerSpec, index: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "layer", index))
        layer = spec.build()
    for name, parameter in layer.named_parameters():
        full, known = f"layers.{index}.{name}", meta(parameter).name
        if known not in ("", full):
            raise LayoutError(
                f"layer {index} ({spec.name}) has the parameter {name} in common with an earlier one, {known}, which "
                "other pipeline stages could not know; build each layer anew, or share it through TiedLayerSpec"
            )
        annotate(parameter, meta(parameter).named(full))
    return layer


def _tie(layer: nn.Module, spec: TiedLayerSpec, tie: Tie, shared: dict[str, nn.Parameter]) -> None:
    for full, name in zip(tie.names, spec.tied_parameters, strict=True):
        owner_name, _, attribute = name.rpartition(".")
        owner = layer.get_submodule(owner_name)
        own = owner.get_parameter(attribute)
        present = shared.setdefault(full, own)
        annotate(own, meta(own).named(full))
        share(own, Axis.PIPE, tied(tie.ranks))
        shapes = [[list(piece.shape) for piece in meta(parameter).pieces] for parameter in (present, own)]
        if shapes[0] != shapes[1]:
            raise LayoutError(
                f"the tie {spec.tie!r} joins {full} {_shown(shapes[0])} and {name} {_shown(shapes[1])} of a later "
                "layer; tied parameters need one shape"
            )
        setattr(owner, attribute, present)


def _shown(shapes: Sequence[Sequence[int]]) -> str:
    return " and ".join(str(list(shape)) for shape in shapes)
