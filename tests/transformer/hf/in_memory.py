"""Models of ours made of tiny models of transformers, in memory, by the tables of the families."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from scaling.core import ParallelModule
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.hf.choose import family_of
from scaling.transformer.hf.family import Family
from scaling.transformer.hf.tensors import Rows, TensorMap
from scaling.transformer.inference.module import TransformerInferenceModule
from tests.transformer.hf.tiny_models import tiny_config, tiny_model


@cache
def config_text(name: str) -> str:
    """Return the config.json of a tiny model, as transformers writes it."""
    text: str = tiny_config(name).to_json_string()
    return text


def config_json(name: str) -> dict[str, Any]:
    """Return the fields of the config.json of a tiny model, to be changed freely."""
    fields: dict[str, Any] = json.loads(config_text(name))
    return fields


def architecture_of(config: Mapping[str, Any], **changes: Any) -> TransformerArchitectureConfig:
    """Return the architecture that a config.json describes."""
    return TransformerArchitectureConfig.from_dict({**family_of(config).section(config), **changes})


def their_tensors(name: str, family: Family) -> dict[str, Tensor]:
    """Return the tensors of a tiny model by the names in files."""
    state = {family.renamed(key): tensor for key, tensor in tiny_model(name).state_dict().items()}
    if tiny_model(name).config.tie_word_embeddings:
        del state[family.head]
    return state


def our_tensors(theirs: Mapping[str, Tensor], maps: Iterable[TensorMap]) -> dict[str, Tensor]:
    """Return our tensors, taken out of theirs row by row."""
    ours = {}
    for one in maps:
        whole = theirs[one.name].T if one.transposed else theirs[one.name]
        for source in one.sources:
            ours[source.key] = whole[torch.tensor(rows_of(source.shape[0], source.rows))]
    return ours


def rows_of(count: int, at: Rows | None) -> list[int]:
    """Return the rows of theirs that so many rows of a tensor of ours fill."""
    if at is None:
        return list(range(count))
    return [at.offset + n * at.stride + row for n in range(count // at.block) for row in range(at.block)]


def fill(module: ParallelModule, tensors: Mapping[str, Tensor]) -> None:
    """Give a model in one process these weights, each of which it must have."""
    left = dict(tensors)
    with torch.no_grad():
        for tensor in module.global_tensors():
            [(_, local)] = tensor.parts
            local.copy_(left.pop(tensor.key))
    assert not left


def filled(architecture: TransformerArchitectureConfig, tensors: Mapping[str, Tensor]) -> TransformerInferenceModule:
    """Return a model with these weights, each of which it must have."""
    model = TransformerInferenceModule(architecture)
    fill(model.module, tensors)
    return model


def imported(name: str, **changes: Any) -> TransformerInferenceModule:
    """Return a tiny model as ours; `changes` are settings of the architecture."""
    config = config_json(name)
    family = family_of(config)
    architecture = architecture_of(config, **changes)
    maps = family.tensors(plan_of(architecture))
    return filled(architecture, our_tensors(their_tensors(name, family), maps))
