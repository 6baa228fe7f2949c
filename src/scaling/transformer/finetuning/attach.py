"""Put what an adapter adds to a layer that is built already, under a name of its own, and what it replaces of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from scaling.core import CheckpointReader, Edit, ParameterMeta, annotate, fill, meta, whole
from scaling.transformer.finetuning.stored import StoredAdapter
from scaling.transformer.layers.edits import edit_layer
from scaling.transformer.layers.head import TransformerLMHead
from scaling.transformer.layers.parts import PartMaker
from scaling.transformer.plan.edits import EditPlan, LowRankHeadPlan, LowRankLinearPlan


@torch.no_grad()
def put_edits(
    adapter: StoredAdapter, reader: CheckpointReader, layer: nn.Module, index: int, *, name: str, make: PartMaker
) -> list[Edit]:
    """Edit layer `index`, whose own weights are loaded, and return the edits: with values, and passed over for now.

    `name` tells apart what several adapters call alike. What the adapter does not hold was frozen when it was trained,
    and has the values that it had then.
    """
    return [_put(adapter, reader, layer, index, edit, name=name, make=make) for edit in adapter.layers[index].edits]


def _put(
    adapter: StoredAdapter,
    reader: CheckpointReader,
    layer: nn.Module,
    index: int,
    edit: EditPlan,
    *,
    name: str,
    make: PartMaker,
) -> Edit:
    # A tied head calls its table otherwise than one that has been given a table of its own.
    module = "linear" if isinstance(layer, TransformerLMHead) else edit.module
    renamed: EditPlan
    if isinstance(edit, LowRankLinearPlan | LowRankHeadPlan):
        renamed = replace(edit, name=f"{edit.name}@{name}", module=module, dropout=0.0)
    else:
        renamed = replace(edit, name=f"{edit.name}@{name}", module=module)  # type: ignore[type-var]  # all are dataclasses
    edit_layer(layer, edits=[renamed], make=make, layer=index)
    made = layer.get_submodule(_joined(module, renamed.name))
    assert isinstance(made, Edit)
    keys = {}
    for parameter_name, parameter in made.named_parameters():
        key = adapter.key(index, _joined(edit.module, edit.name, parameter_name))
        annotate(parameter, meta(parameter).named(key))
        keys[parameter_name] = key
    fill(made, seed=adapter.seed, device=make.place.topology.device)
    made.active = False
    made.requires_grad_(False)
    if not adapter.tensors.issuperset(keys.values()):
        made.follow_base()
    for parameter_name, key in keys.items():
        if key in adapter.tensors:  # of which this rank may have a part
            parameter = made.get_parameter(parameter_name)
            parameter.copy_(stored_values(parameter, meta(parameter), reader, adapter.tensors))
    return made


@torch.no_grad()
def replaced_values(
    adapter: StoredAdapter, reader: CheckpointReader, parameters: Iterable[tuple[nn.Parameter, ParameterMeta]]
) -> dict[nn.Parameter, Tensor]:
    """Return the values of those parameters of the base that the adapter trained itself."""
    return {
        parameter: stored_values(parameter, description, reader, adapter.of_base)
        for parameter, description in parameters
        if any(piece.key in adapter.of_base for piece in description.pieces)
    }


@torch.no_grad()
def stored_values(
    parameter: nn.Parameter, description: ParameterMeta, reader: CheckpointReader, stored: frozenset[str]
) -> Tensor:
    """Return a parameter's values with those pieces that a checkpoint has in place of its own."""
    values = parameter.detach().clone()
    for piece in description.pieces:
        if piece.key in stored:
            there = piece.box.intersect(whole(reader.stored.manifest.tensors[piece.key].shape))
            if there is not None:  # a table may have more rows than are stored
                piece.local(values)[there.slices(piece.box)] = reader.read(piece.key, there).to(values)
    return values


def _joined(*names: str) -> str:
    return ".".join(name for name in names if name)
