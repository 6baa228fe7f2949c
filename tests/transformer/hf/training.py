"""Rows of documents for models of transformers and for ours, and our gradients by the names of theirs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from scaling.core import MicroBatch, ParallelModule, Topology, TopologyConfig
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.data.batch import TextCollator, TextSample
from scaling.transformer.data.packing import Span
from scaling.transformer.hf.tensors import TensorMap
from scaling.transformer.model import layer_specs
from tests.transformer.hf.in_memory import fill, rows_of

Documents = Sequence[int]
"""Lengths of the documents of one row."""

VOCABULARY = 131
NO_LOSS = -100
"""What transformers calls a target that does not count."""


def rows_of_tokens(rows: Sequence[Documents]) -> Tensor:
    """Return random tokens [rows, s] without token 0, which ends documents."""
    generator = torch.Generator().manual_seed(len(rows))
    return torch.randint(1, VOCABULARY, (len(rows), sum(rows[0])), generator=generator)


def positions_of(rows: Sequence[Documents]) -> Tensor:
    """Return positions [rows, s] that restart with each document."""
    return torch.stack([torch.cat([torch.arange(length) for length in documents]) for documents in rows])


def labels_of(token_ids: Tensor, rows: Sequence[Documents]) -> Tensor:
    """Return what transformers predicts, place by place: no first token of a document."""
    return token_ids.masked_fill(positions_of(rows) == 0, NO_LOSS)


def micro_batch(token_ids: Tensor, rows: Sequence[Documents]) -> MicroBatch:
    """Return the same as the data of a training give it; behind the last token there is padding."""
    samples = [
        TextSample.of_documents(np.array([*row, 0]), _spans(documents), "documents", eod_token_id=0)
        for row, documents in zip(token_ids.tolist(), rows, strict=True)
    ]
    return TextCollator(VOCABULARY).collate(samples, range(len(rows)), [True] * len(rows))


def _spans(documents: Documents) -> tuple[Span, ...]:
    return tuple(Span(index, 0, length) for index, length in enumerate(documents))


def module_of(architecture: TransformerArchitectureConfig, tensors: Mapping[str, Tensor]) -> ParallelModule:
    """Return a model to train with these weights, each of which it must have."""
    topology = Topology.single()
    module = ParallelModule(layer_specs(architecture, topology, seed=0), topology, TopologyConfig(), seed=0)
    fill(module, tensors)
    return module


def gradients(module: ParallelModule) -> dict[str, Tensor]:
    """Return the gradients of a model in one process, by the names of checkpoints."""
    return {
        piece.key: piece.local(parameter.grad).reshape(piece.shape)
        for parameter, description in module.parameters_with_meta()
        if parameter.grad is not None
        for piece in description.pieces
    }


def as_theirs(ours: Mapping[str, Tensor], maps: Iterable[TensorMap]) -> dict[str, Tensor]:
    """Return tensors of theirs, made of ours row by row: the way back of `our_tensors`."""
    theirs = {}
    for one in maps:
        found = torch.full(one.shape, torch.nan)
        whole = found.T if one.transposed else found
        for source in one.sources:
            whole[torch.tensor(rows_of(source.shape[0], source.rows))] = ours[source.key]
        theirs[one.name] = found
    return theirs
