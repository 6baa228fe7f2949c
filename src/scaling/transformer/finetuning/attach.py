"""Add an adapter's edits to a layer that is already built, under a name of their own, and read values it replaces."""

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
    """Edit layer `index`, whose own weights are loaded, and return the edits: with values, but not yet active.

    `name` distinguishes edits that have the same name in several adapters. Parameters that the adapter does not hold
    were frozen in its training, and get the values that they had then.
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
    # A head with a table of its own has another name for the table than a tied head.
    module = "linear" if isinstance(layer, TransformerLMHead) else edit.module
    renamed: EditPlan
    if isinstance(edit, LowRankLinearPlan | LowRankHeadPlan):
        renamed = replace(edit, name=f"{edit.name}@{name}", module=module, dropout=0.0)
    else:
        renamed = replace(edit, name=f"{edit.name}@{name}", module=module)  # type: ignore[type-var]  # all dataclasses
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
    """Return new values for the parameters of the base that the adapter trained itself."""
    return {
        parameter: stored_values(parameter, description, reader, adapter.of_base)
        for parameter, description in parameters
        if any(piece.key in adapter.of_base for piece in description.pieces)
    }


@torch.no_grad()
def stored_values(
    parameter: nn.Parameter, description: ParameterMeta, reader: CheckpointReader, stored: frozenset[str]
) -> Tensor:
    """Return a parameter's values, with the pieces that a checkpoint holds in place of its own."""
    values = parameter.detach().clone()
    for piece in description.pieces:
        if piece.key in stored:
            there = piece.box.intersect(whole(reader.stored.manifest.tensors[piece.key].shape))
            if there is not None:  # a table may have more rows than are stored
                piece.local(values)[there.slices(piece.box)] = reader.read(piece.key, there).to(values)
    return values


def _joined(*names: str) -> str:
    return ".".join(name for name in names if name)
