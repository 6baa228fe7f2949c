"""Carry out the edits that a plan has for a layer, once the layer is built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from scaling.core import (
    AddedBias,
    Bottleneck,
    ColumnParallelLinear,
    Dropout,
    InputDropout,
    InputScale,
    LayoutError,
    LinearEdit,
    LowRank,
    LowRankEmbedding,
    LowRankHead,
    OutputScale,
    RowParallelLinear,
    SampleNote,
    SoftPrompt,
    TokenRows,
    VocabParallelEmbedding,
)
from scaling.transformer.layers.embedding import EmbeddingInput
from scaling.transformer.layers.parts import PartMaker
from scaling.transformer.layers.residual import Residual
from scaling.transformer.plan.edits import (
    AddedBiasPlan,
    BottleneckPlan,
    EditPlan,
    LowRankEmbeddingPlan,
    LowRankHeadPlan,
    LowRankLinearPlan,
    SoftPromptPlan,
    TokenRowsPlan,
    VectorPlan,
)


def edit_layer(module: nn.Module, *, edits: Sequence[EditPlan], make: PartMaker, layer: int) -> nn.Module:
    """Return the layer of index `layer` with the edits made; their parameters are described but not filled."""
    editor = _Editor(module, make, layer)
    for edit in edits:
        editor.carry_out(edit)
    return module


class _Editor:
    def __init__(self, module: nn.Module, make: PartMaker, layer: int) -> None:
        self._module = module
        self._make = make
        self._layer = layer
        self._note = SampleNote()
        self._noted = False

    def carry_out(self, edit: EditPlan) -> None:
        place = self._make.place
        match edit:
            case LowRankLinearPlan() | VectorPlan() | AddedBiasPlan():
                self._edit_linear(edit)
            case LowRankEmbeddingPlan():
                table = self._table(edit.module)
                table.edit(edit.name, LowRankEmbedding(table, edit.form))
            case LowRankHeadPlan():
                table = self._table(edit.module)
                dropout = self._dropout(edit.name, edit.module, edit.dropout)
                table.edit(edit.name, LowRankHead(table, edit.form, dropout=dropout))
            case TokenRowsPlan():
                table = self._table(edit.module)
                table.edit(edit.name, TokenRows(table, edit.tokens, std=edit.table.std))
            case BottleneckPlan():
                residual = self._module.get_submodule(edit.module)
                assert isinstance(residual, Residual)
                residual.put_behind(edit.name, Bottleneck(edit.hidden, edit.width, std=edit.std, place=place))
            case SoftPromptPlan():
                assert isinstance(self._module, EmbeddingInput)
                prompt = SoftPrompt(edit.length, edit.hidden, std=edit.std, place=place)
                self._module.put_prompt(edit.name, prompt)
            case _:
                raise LayoutError(f"a layer has a {type(edit).__name__}, which nothing carries out")

    def _edit_linear(self, edit: LowRankLinearPlan | VectorPlan | AddedBiasPlan) -> None:
        linear, output, owner = self._linear(edit.module)
        made: LinearEdit
        match edit:
            case LowRankLinearPlan():
                features = None
                if isinstance(linear, RowParallelLinear) and linear.place.parts > 1:
                    features = range(linear.inputs.offset, linear.inputs.offset + linear.inputs.length)
                dropout = self._dropout(edit.name, edit.module, edit.dropout, features)
                made = LowRank(linear, edit.form, output=output, dropout=dropout)
            case VectorPlan():
                made = InputScale(linear) if edit.of_inputs else OutputScale(linear, output=output)
            case AddedBiasPlan():
                made = AddedBias(linear, output=output)
        linear.edit(edit.name, made, owner=owner)

    def _linear(self, path: str) -> tuple[ColumnParallelLinear | RowParallelLinear, str, nn.Module]:
        """Return a linear layer, the name of the output that is meant, and the module that has its name.

        An output of a fused layer has the name that it would have as a layer of its own. A module of that name is
        created, which holds nothing but edits.
        """
        above, _, name = path.rpartition(".")
        parent = self._module.get_submodule(above)
        found = parent._modules.get(name)
        if isinstance(found, ColumnParallelLinear | RowParallelLinear):
            return found, "", found
        for other in parent.children():
            if isinstance(other, ColumnParallelLinear) and name in other.outputs:
                if found is None:
                    found = nn.Module()
                    parent.add_module(name, found)
                return other, name, found
        raise LayoutError(f"layer {self._layer} has no linear layer {path}")

    def _table(self, path: str) -> VocabParallelEmbedding:
        table = self._module.get_submodule(path)
        assert isinstance(table, VocabParallelEmbedding)
        return table

    def _dropout(
        self, name: str, module: str, probability: float, features: range | None = None
    ) -> InputDropout | None:
        if not probability:
            return None
        if not self._noted:  # the hook runs before each micro-batch, in recomputation too
            self._noted = True
            self._module.register_forward_pre_hook(self._take_note)
        dropout = Dropout(
            probability,
            seed=self._make.seed,
            site=f"{name}.{self._layer}.{module}",
            place=self._make.place,
            stream=self._make.plan.arithmetic.dropout_stream,
        )
        return InputDropout(dropout, self._note, features=features)

    def _take_note(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._note.samples = cast(Any, arguments[0]).sample_positions
