"""Each method's edit against its dense formula, however the layer is cut; merged, it is the layer without an edit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.core.errors import LayoutError
from scaling.core.finetuning.bottleneck import Bottleneck
from scaling.core.finetuning.cut import Cut
from scaling.core.finetuning.form import LowRankForm
from scaling.core.finetuning.input_dropout import InputDropout, SampleNote
from scaling.core.finetuning.low_rank import LowRank
from scaling.core.finetuning.scale import InputScale, OutputScale
from scaling.core.finetuning.soft_prompt import SoftPrompt
from scaling.core.finetuning.table import LowRankEmbedding, LowRankHead, TokenRows
from scaling.core.nn.dropout import Dropout
from scaling.core.nn.edit import Edit
from scaling.core.nn.embedding import TableEdit, VocabParallelEmbedding
from scaling.core.nn.init import fill
from scaling.core.nn.linear import ColumnParallelLinear, LinearEdit, RowParallelLinear, project_all
from scaling.core.nn.loss import linear_logits
from scaling.core.nn.parameter import named_parameters_with_meta
from scaling.core.nn.place import Place, enter_model_parallel
from scaling.core.topology.topology import Topology
from tests.core.finetuning.formulas import (
    DORA,
    DOUBLE,
    IN,
    METHODS,
    OUT,
    PLAIN,
    ROWS,
    TABLES,
    TOKENS,
    Formula,
    Linear,
    usual,
)
from tests.distributed import run_distributed
from tests.reference.compare import close
from tests.reference.sharding import GATHER, SCATTER, SUM, Weights, compare_layer
from tests.reference.worlds import connected, random


class Entered(nn.Module):
    """A layer, or one output of a fused one, behind the way in that it shares with others."""

    def __init__(self, layer: ColumnParallelLinear, place: Place, output: int = 0) -> None:
        super().__init__()
        self.layer = layer
        self.place = place
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        return project_all(self, ["layer"], enter_model_parallel(x, self.place))[self.output]


class Head(nn.Module):
    """A table of tokens as the matrix of a head."""

    def __init__(self, table: VocabParallelEmbedding) -> None:
        super().__init__()
        self.table = table

    def forward(self, x: Tensor) -> Tensor:
        found = self.table.products(enter_model_parallel(x, self.table.place))
        return linear_logits(found.hidden, found.weight, found.bias, terms=found.terms)


def below(prefix: str, formula: Formula) -> Formula:
    """Return the formula of a layer that is the child `prefix` of the module compared."""
    return lambda weights, x: formula({name.removeprefix(f"{prefix}."): w for name, w in weights.items()}, x)


def compare_linears(topology: Topology, place: Place, x: Tensor) -> None:
    cut, several = 1 if place.sequence_parallel else None, place.parts > 1
    both = [SCATTER, GATHER] if place.sequence_parallel else [SUM]
    way_in = [GATHER, SCATTER] if place.sequence_parallel else [SUM]
    for (name, method), bias in product(METHODS.items(), (True,) if several else (True, False)):
        what = f"{name}, bias {bias}, {place.parts} ranks, sequence-parallel {place.sequence_parallel}:"
        row = RowParallelLinear(IN, OUT, place=place, bias=bias)
        row.edit("added", edit := method.make(row, ""))
        messages = compare_layer(row, method.formula, x, topology, cut_input=-1, cut_output=cut, what=f"row {what}")
        assert messages == ([SUM] * method.sums + both if several else []), what
        if method.merges:
            assert_merges(row, edit, own_part(x, place), f"merged row {what}")

        column = ColumnParallelLinear(IN, OUT, place=place, bias=bias)
        column.edit("added", edit := method.make(column, ""))
        messages = compare_layer(
            *(Entered(column, place), below("layer", method.formula), x, topology),
            cut_input=cut,
            cut_output=-1,
            what=f"column {what}",
        )
        assert messages == (way_in if several else []), what
        if method.merges:
            assert_merges(column, edit, x, f"merged column {what}")


def own_part(x: Tensor, place: Place) -> Tensor:
    return x.chunk(place.parts, -1)[place.index]


@torch.no_grad()
def assert_merges(layer: Linear, edit: LinearEdit, x: Tensor, what: str) -> None:
    """What the layer computes with the edit, it computes with the merged matrix without. Collective: the model axis."""
    assert isinstance(edit, LowRank | OutputScale | InputScale)
    edited = layer(x)
    layer.weight.copy_(edit.merged(layer.weight))
    if layer.bias is not None and not isinstance(edit, LowRank):
        layer.bias.copy_(edit.merged(layer.bias))
    edit.active = False
    close(layer(x), edited, what)


def compare_parts_of_fused_layers(topology: Topology, place: Place, x: Tensor) -> None:
    """One output of several has an edit; its parameters go by the name that it has where it is alone."""
    names = ("first", "second")
    for (name, method), chosen, shown in product(METHODS.items(), names, names):
        if name == "IA3 of inputs":  # there is one input for both
            continue
        if shown != chosen and place.parts > 1:  # nothing of that is cut otherwise
            continue
        fused, owner = ColumnParallelLinear(IN, {"first": OUT, "second": 2 * OUT}, place=place), nn.Module()
        fused.edit("added", method.make(fused, chosen), owner=owner)
        module = Entered(fused, place, names.index(shown))
        module.add_module(chosen, owner)
        compare_layer(
            module,
            with_nothing_of_others(shown, method.formula if shown == chosen else usual),
            x,
            topology,
            cut_input=1 if place.sequence_parallel else None,
            cut_output=-1,
            what=f"{name} of {chosen}, shown {shown}, {place.parts} ranks:",
        )


def with_nothing_of_others(prefix: str, formula: Formula) -> Formula:
    """Return the formula of one output, in which the weights of others occur and do nothing."""
    return lambda weights, x: below(prefix, formula)(weights, x) + 0.0 * sum(w.sum() for w in weights.values())


def compare_tables(topology: Topology, place: Place, x: Tensor) -> None:
    cut, several = 1 if place.sequence_parallel else None, place.parts > 1
    ids = torch.tensor([[7, 0, 3, 15], [1, 7, 14, 8]])
    for name, method in TABLES.items():
        what = f"{name}, {place.parts} ranks, sequence-parallel {place.sequence_parallel}:"
        if method.embedded is not None:
            table = VocabParallelEmbedding(TOKENS, IN, place=place)
            table.edit("added", edit := method.make(table))
            messages = compare_layer(table, method.embedded, ids, topology, cut_output=cut, what=f"table {what}")
            assert messages == (([SCATTER, GATHER] if cut else [SUM]) if several else []), what
            assert_table_merges(table, edit, lambda: table(ids), f"merged table {what}")  # noqa: B023
        if method.multiplied is not None:
            table = VocabParallelEmbedding(TOKENS, IN, place=place)
            table.edit("added", edit := method.make(table))
            head = Head(table)
            messages = compare_layer(
                head, below("table", method.multiplied), x, topology, cut_input=cut, cut_output=-1, what=f"head {what}"
            )
            assert messages == (([GATHER, SCATTER] if cut else [SUM]) if several else []), what
            if method.merges:
                assert_table_merges(table, edit, lambda: head(x.chunk(place.parts, 1)[place.index] if cut else x), what)  # noqa: B023


@torch.no_grad()
def assert_table_merges(
    table: VocabParallelEmbedding, edit: TableEdit, compute: Callable[[], Tensor], what: str
) -> None:
    assert isinstance(edit, LowRankEmbedding | LowRankHead | TokenRows)
    edited, merged = compute(), edit.merged(table.weight)
    table.weight.copy_(merged if isinstance(merged, Tensor) else merged[0] + merged[1])
    edit.active = False
    close(compute(), edited, what)


def compare_between_layers(topology: Topology, place: Place, x: Tensor) -> None:
    cut = 1 if place.sequence_parallel else None

    def bottleneck(weights: Weights, x: Tensor) -> Tensor:
        return x + F.gelu(x @ weights["dense_in.weight"].t()) @ weights["dense_out.weight"].t()

    module = Bottleneck(IN, 5, std=0.1, place=place)
    assert compare_layer(module, bottleneck, x, topology, cut_input=cut, cut_output=cut, what="bottleneck") == []

    positions = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 0]])  # a short text may cut its prompt

    def prompted(weights: Weights, x: Tensor) -> Tensor:
        vectors = weights["weight"][positions.clamp(max=1)]
        return torch.where((positions < 2).unsqueeze(-1), vectors, x)

    prompt = SoftPrompt(2, IN, std=0.1, place=place)
    messages = compare_layer(prompt, prompted, x, topology, positions, cut_input=cut, cut_output=cut, what="prompt")
    assert messages == []


def follow_bases(place: Place, x: Tensor) -> None:
    """What starts from the base does so, whatever the layout: at first an edit changes nothing."""
    for layer in (RowParallelLinear(IN, OUT, place=place), ColumnParallelLinear(IN, OUT, place=place)):
        edit = LowRank(layer, DORA)
        layer.edit("added", edit)
        fill(layer, seed=3)
        edit.follow_base()
        local = own_part(x, place) if isinstance(layer, RowParallelLinear) else x
        edited = layer(local)
        edit.active = False
        close(edited, layer(local), "DoRA at first")
        alone = RowParallelLinear(IN, OUT, place=Place(dtype=DOUBLE))
        fill(alone, seed=3)
        assert edit.magnitude is not None
        norms = alone.weight.norm(dim=1)
        expected = norms if isinstance(layer, RowParallelLinear) else own_part(norms, place)
        assert torch.equal(edit.magnitude, expected), "the same bits in every layout"
    table = VocabParallelEmbedding(TOKENS, IN, place=place)
    rows, update = TokenRows(table, ROWS, std=0.1), LowRankHead(table, DORA)
    for name, each in (("rows", rows), ("update", update)):
        table.edit(name, each)
    fill(table, seed=3)
    for each in (rows, update):
        each.follow_base()
    ids = torch.tensor([[7, 0, 3, 15]])
    edited, logits = table(ids), Head(table)(x)
    rows.active = update.active = False
    close(edited, table(ids), "rows at first", tolerance=0.0)
    close(logits, Head(table)(x), "DoRA of the head at first")


def compare_methods(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        x = random(2, 4, IN, seed=1)
        for sequence_parallel in (False, True):
            place = Place(topology, DOUBLE, sequence_parallel)
            compare_linears(topology, place, x)
            compare_parts_of_fused_layers(topology, place, x)
            compare_tables(topology, place, x)
            compare_between_layers(topology, place, x)
        follow_bases(Place(topology, DOUBLE), x)


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_methods_compute_their_formulas_and_send_no_message_but_the_sum_of_squares(world_size: int) -> None:
    if world_size == 1:
        compare_methods(0, 1)
    else:
        run_distributed(compare_methods, world_size)


def edited_layers(dtype: torch.dtype) -> Iterator[tuple[str, nn.Module, Edit, Tensor]]:
    """Yield layers with an edit each, and an input."""
    place, x = Place(dtype=dtype), random(2, 4, IN, seed=1).to(dtype)
    ids = torch.tensor([[7, 0, 3, 15], [1, 7, 14, 8]])
    for name, method in METHODS.items():
        for layer in (ColumnParallelLinear(IN, OUT, place=place), RowParallelLinear(IN, OUT, place=place)):
            layer.edit("added", made := method.make(layer, ""))
            yield name, layer, made, x
    for name, table_method in TABLES.items():
        table = VocabParallelEmbedding(TOKENS, IN, place=place)
        table.edit("added", row_edit := table_method.make(table))
        yield name, table if table_method.embedded else Head(table), row_edit, ids if table_method.embedded else x
    bottleneck = Bottleneck(IN, 5, std=0.1, place=place)
    yield "bottleneck", bottleneck, bottleneck, x


def test_beside_a_base_of_half_precision_what_is_added_is_float32() -> None:
    """Results have the type of the base, and are those of a float32 base, but for its rounding."""
    exact = {f"{name} {number}": layer for number, (name, layer, _, _) in enumerate(edited_layers(torch.float32))}
    for number, (name, layer, edit, x) in enumerate(edited_layers(torch.bfloat16)):
        fill(layer, seed=3)
        added = list(edit.parameters())
        assert {parameter.dtype for parameter in added} == {torch.float32}, name
        others = {parameter.dtype for parameter in layer.parameters() if all(parameter is not one for one in added)}
        assert others <= {torch.bfloat16}, name
        for parameter in layer.parameters():
            parameter.requires_grad_(any(parameter is one for one in added))
        y = layer(x)
        assert y.dtype == (torch.float32 if isinstance(layer, Head) else torch.bfloat16), name
        y.sum().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in added), name
        other = exact[f"{name} {number}"]
        for (_, mine, _), (_, theirs, _) in zip(
            named_parameters_with_meta(layer), named_parameters_with_meta(other), strict=True
        ):
            if theirs.is_meta:
                fill(other, seed=3)
            theirs = dict(other.named_parameters())[next(n for n, p in layer.named_parameters() if p is mine)]
            with torch.no_grad():
                theirs.copy_(mine)
        close(y, other(x.float() if x.is_floating_point() else x), name, tolerance=0.02)


def test_dropping_an_input_of_unknown_samples_is_refused() -> None:
    layer = ColumnParallelLinear(IN, OUT)
    layer.edit("added", LowRank(layer, PLAIN, dropout=InputDropout(Dropout(0.5, seed=1, site="a"), SampleNote())))
    fill(layer)
    x = random(2, 4, IN, seed=1, dtype=torch.float32)
    with pytest.raises(LayoutError, match="nothing has said of which samples it is; run the layer by calling it"):
        layer(x)
    assert layer.eval()(x).shape == (2, 4, OUT)


def test_an_output_that_a_fused_layer_lacks_is_refused() -> None:
    layer = ColumnParallelLinear(IN, {"query": 4, "key": 4})
    with pytest.raises(LayoutError, match="has no output 'value'; it has 'query', 'key'"):
        Cut.of(layer, "value")


@pytest.mark.parametrize("slope", [0.0, 5**0.5])
def test_a_starts_within_the_bound_of_kaiming(slope: float) -> None:
    form = LowRankForm(rank=64, scale=1.0, kaiming_a=slope)
    layer = ColumnParallelLinear(256, OUT)
    layer.edit("added", edit := LowRank(layer, form))
    fill(layer)
    bound = (6 / (1 + slope**2) / 256) ** 0.5
    assert form.initial_bound(256) == pytest.approx(bound)
    assert 0.99 * bound < float(edit.a.detach().abs().max()) <= bound
    assert not edit.b.any()
