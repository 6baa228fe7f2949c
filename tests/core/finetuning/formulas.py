"""Methods of fine-tuning by toy sizes, each with its dense formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scaling.core.finetuning.added_bias import AddedBias
from scaling.core.finetuning.form import LowRankForm
from scaling.core.finetuning.input_dropout import InputDropout, SampleNote
from scaling.core.finetuning.low_rank import LowRank
from scaling.core.finetuning.scale import InputScale, OutputScale
from scaling.core.finetuning.table import LowRankEmbedding, LowRankHead, TokenRows
from scaling.core.nn.dropout import Dropout
from scaling.core.nn.embedding import TableEdit, VocabParallelEmbedding
from scaling.core.nn.linear import ColumnParallelLinear, LinearEdit, RowParallelLinear
from tests.reference.sharding import Weights

DOUBLE = torch.float64
IN, OUT, RANK, TOKENS, SCALE = 12, 8, 3, 16, 0.7
PLAIN = LowRankForm(rank=RANK, scale=SCALE)
BIASED = LowRankForm(rank=RANK, scale=SCALE, bias=True)
DORA = LowRankForm(rank=RANK, scale=SCALE, magnitude=True)
SAMPLES = torch.tensor([5, 9])
ROWS = (7, 0, 15, 8)

Linear = ColumnParallelLinear | RowParallelLinear
Formula = Callable[[Weights, Tensor], Tensor]


def dropout_of(layer: Linear | None = None) -> InputDropout:
    """Return dropout of an input of this layer, or of a whole one."""
    note, features = SampleNote(), None
    note.samples = SAMPLES
    if isinstance(layer, RowParallelLinear) and layer.place.parts > 1:
        features = range(layer.inputs.offset, layer.inputs.offset + layer.inputs.length)
    return InputDropout(Dropout(0.4, seed=3, site="here"), note, features=features)


def whole(weights: Weights) -> Tensor:
    """Return the updated matrix."""
    return weights["weight"] + SCALE * weights["added.b"] @ weights["added.a"]


def gain(weights: Weights) -> Tensor:
    gains: Tensor = weights["added.magnitude"] / whole(weights).norm(dim=1).detach()
    return gains


def usual(weights: Weights, x: Tensor, matrix: Tensor | None = None) -> Tensor:
    y = x @ (weights["weight"] if matrix is None else matrix).t()
    return y + weights["bias"] if "bias" in weights else y


def low_rank(weights: Weights, x: Tensor) -> Tensor:
    y = usual(weights, x, whole(weights))
    return y + SCALE * weights["added.bias"] if "added.bias" in weights else y


def dropped(weights: Weights, x: Tensor) -> Tensor:
    y: Tensor = usual(weights, x) + SCALE * dropout_of()(x) @ weights["added.a"].t() @ weights["added.b"].t()
    return y


def dora(weights: Weights, x: Tensor) -> Tensor:
    return usual(weights, x, gain(weights).unsqueeze(1) * whole(weights))


def dora_dropped(weights: Weights, x: Tensor) -> Tensor:
    """As in the `peft` library: the layer's own product sees all inputs, what is added to it those that are left."""
    kept = dropout_of()(x)
    y: Tensor = usual(weights, x) + kept @ (gain(weights).unsqueeze(1) * whole(weights) - weights["weight"]).t()
    return y


@dataclass(frozen=True)
class Method:
    """An edit of a linear layer, and what the layer then computes."""

    make: Callable[[Linear, str], LinearEdit]
    """Called with a layer and the output of it that is meant."""
    formula: Formula
    merges: bool = True
    sums: int = 0
    """Messages beside those of the base, in a row-parallel layer."""


METHODS = {
    "LoRA": Method(lambda layer, output: LowRank(layer, PLAIN, output=output), low_rank),
    "LoRA with bias": Method(lambda layer, output: LowRank(layer, BIASED, output=output), low_rank, merges=False),
    "LoRA, dropped": Method(
        lambda layer, output: LowRank(layer, PLAIN, output=output, dropout=dropout_of(layer)), dropped, merges=False
    ),
    "DoRA": Method(lambda layer, output: LowRank(layer, DORA, output=output), dora, sums=1),
    "DoRA, dropped": Method(
        lambda layer, output: LowRank(layer, DORA, output=output, dropout=dropout_of(layer)),
        dora_dropped,
        merges=False,
        sums=1,
    ),
    "IA3 of outputs": Method(
        lambda layer, output: OutputScale(layer, output=output),
        lambda weights, x: weights["added.scale"] * usual(weights, x),
    ),
    "IA3 of inputs": Method(
        lambda layer, _: InputScale(layer), lambda weights, x: usual(weights, weights["added.scale"] * x)
    ),
    "BitFit": Method(
        lambda layer, output: AddedBias(layer, output=output),
        lambda weights, x: usual(weights, x) + weights["added.bias"],
        merges=False,
    ),
}


def with_rows(weights: Weights) -> Tensor:
    """Return the table with the rows of some tokens."""
    return weights["weight"].index_copy(0, torch.tensor(ROWS), weights["added.weight"])


def embedding_update(weights: Weights, ids: Tensor) -> Tensor:
    return (weights["weight"] + SCALE * (weights["added.b"] @ weights["added.a"]).t())[ids]


@dataclass(frozen=True)
class TableMethod:
    """An edit of a table, and what the table then gives, as embeddings or as logits."""

    make: Callable[[VocabParallelEmbedding], TableEdit]
    embedded: Formula | None = None
    multiplied: Formula | None = None
    merges: bool = True


TABLES = {
    "LoRA of the embedding": TableMethod(lambda table: LowRankEmbedding(table, PLAIN), embedded=embedding_update),
    "LoRA of the head": TableMethod(lambda table: LowRankHead(table, PLAIN), multiplied=low_rank),
    "LoRA with bias": TableMethod(lambda table: LowRankHead(table, BIASED), multiplied=low_rank, merges=False),
    "LoRA of the head, dropped": TableMethod(
        lambda table: LowRankHead(table, PLAIN, dropout=dropout_of()), multiplied=dropped, merges=False
    ),
    "DoRA of the head": TableMethod(lambda table: LowRankHead(table, DORA), multiplied=dora),
    "DoRA of the head, dropped": TableMethod(
        lambda table: LowRankHead(table, DORA, dropout=dropout_of()), multiplied=dora_dropped, merges=False
    ),
    "token rows": TableMethod(
        lambda table: TokenRows(table, ROWS, std=0.1),
        embedded=lambda weights, ids: with_rows(weights)[ids],
        multiplied=lambda weights, x: x @ with_rows(weights).t(),
    ),
}
