"""Merge edits into the weights that they change: in high precision, rounded once, on each rank's own parts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from scaling.core.errors import LayoutError
from scaling.core.finetuning.added_bias import AddedBias
from scaling.core.finetuning.cut import ParallelLinear, added_dtype
from scaling.core.finetuning.low_rank import LowRank
from scaling.core.finetuning.scale import InputScale, OutputScale
from scaling.core.finetuning.table import LowRankEmbedding, LowRankHead, TokenRows
from scaling.core.nn.edit import Edit
from scaling.core.nn.embedding import VocabParallelEmbedding
from scaling.core.nn.linear import ColumnParallelLinear, RowParallelLinear
from scaling.core.nn.parameter import meta
from scaling.core.topology.layout import Axis

_Layer = ParallelLinear | VocabParallelEmbedding


@torch.no_grad()
def merge_edits(
    module: nn.Module, chosen: Collection[Edit] | None = None, *, logit_bias: nn.Parameter | None = None
) -> None:
    """Merge edits into the weights and biases that they change, and deactivate the edits.

    `chosen` are the edits (None: all active ones). The bias of a head's update is added to `logit_bias` [v]. Weights
    are computed in float32 (float64 weights in float64) and rounded once. Collective where the rows of a row-parallel
    layer have magnitudes: all ranks of the model axis. Raises `LayoutError` before anything is changed where an edit is
    not a change of a weight, needs a bias that does not exist, or would change a table shared with another layer.
    """
    wanted = {edit for edit in module.modules() if isinstance(edit, Edit) and _is_chosen(edit, chosen)}
    layers = [(name, layer, edits) for name, layer in _layers(module) if (edits := _of(layer, wanted))]
    if problems := [*_problems(module, wanted, layers, logit_bias)]:
        raise LayoutError(f"not everything can be merged: {'; '.join(problems)}")
    for _, layer, edits in layers:
        if isinstance(layer, VocabParallelEmbedding):
            _merge_table(layer, edits, logit_bias)
        else:
            _merge_linear(layer, edits)
    for edit in wanted:
        edit.active = False


def _is_chosen(edit: Edit, chosen: Collection[Edit] | None) -> bool:
    return edit.active if chosen is None else edit in chosen


def _layers(module: nn.Module) -> Iterator[tuple[str, _Layer]]:
    for name, layer in module.named_modules():
        if isinstance(layer, ColumnParallelLinear | RowParallelLinear | VocabParallelEmbedding):
            yield name, layer


def _of(layer: _Layer, wanted: Collection[Edit]) -> list[Edit]:
    return [edit for edit in layer.edits if edit in wanted]


def _problems(
    module: nn.Module,
    wanted: Collection[Edit],
    layers: Sequence[tuple[str, _Layer, Sequence[Edit]]],
    logit_bias: nn.Parameter | None,
) -> Iterator[str]:
    kinds = LowRank | AddedBias | InputScale | OutputScale | LowRankEmbedding | LowRankHead | TokenRows
    for name, edit in module.named_modules():
        if edit in wanted and not isinstance(edit, kinds):
            yield f"{name} ({type(edit).__name__}) is a computation of its own, no change of a weight"
    for name, layer, edits in layers:
        if isinstance(layer, VocabParallelEmbedding):
            if logit_bias is None and any(isinstance(edit, LowRankHead) and edit.bias is not None for edit in edits):
                yield f"{name} adds to the logit of each token, for which the head has no bias"
            if any(not isinstance(edit, TokenRows) for edit in edits) and _is_shared(layer, module):
                yield f"{name} is one table with another layer, and would become one of its own"
            continue
        needs = any(
            isinstance(edit, AddedBias) or (isinstance(edit, LowRank) and edit.bias is not None) for edit in edits
        )
        if needs and layer.bias is None:
            yield f"{name} gets a bias, and has none that it could become part of"


def _is_shared(table: VocabParallelEmbedding, module: nn.Module) -> bool:
    """Return whether other layers share the table, in this or another pipeline stage."""
    stages = meta(table.weight).placements.on(Axis.PIPE).indices or ()
    here = sum(layer.weight is table.weight for _, layer in _layers(module))
    return len(stages) > 1 or here > 1


def _merge_linear(layer: ParallelLinear, edits: Sequence[Edit]) -> None:
    wide = added_dtype(layer.place)
    weight = layer.weight.to(wide, copy=True)
    bias = None if layer.bias is None else layer.bias.to(wide, copy=True)
    for edit in edits:  # edits within the product first, in the order in which they act
        if isinstance(edit, LowRank):
            weight[edit.cut.span] = edit.merged(weight[edit.cut.span])
            if edit.bias is not None and bias is not None:
                bias[edit.cut.span] += edit.form.scale * edit.bias
        elif isinstance(edit, AddedBias) and bias is not None:
            bias[edit.cut.span] += edit.bias
    for edit in edits:  # then those around it
        if isinstance(edit, OutputScale):
            for values in (weight, bias):
                if values is not None:
                    values[edit.cut.span] = edit.merged(values[edit.cut.span])
        elif isinstance(edit, InputScale):
            weight = edit.merged(weight)
    layer.weight.copy_(weight)
    if layer.bias is not None and bias is not None:
        layer.bias.copy_(bias)


def _merge_table(table: VocabParallelEmbedding, edits: Sequence[Edit], logit_bias: nn.Parameter | None) -> None:
    rows = table.shard.length  # rows beyond are padding, whose values mean nothing
    weight: Tensor = table.weight
    update: Tensor | None = None
    for edit in edits:
        if isinstance(edit, LowRankHead):
            weight, update = edit.terms(weight)
            if edit.bias is not None and logit_bias is not None:
                logit_bias[:rows] = (logit_bias[:rows] + edit.form.scale * edit.bias[:rows]).to(logit_bias.dtype)
        elif isinstance(edit, LowRankEmbedding | TokenRows):
            weight = edit.merged(weight)
    if update is not None:
        weight = weight + update
    table.weight[:rows] = weight[:rows].to(table.weight.dtype)
