"""Logits of every family, with weights taken over by its table, against transformers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import pytest
import torch
from torch import Tensor

from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.hf.choose import family_of
from scaling.transformer.hf.tensors import TensorMap
from tests.transformer.hf.in_memory import architecture_of, config_json, imported, our_tensors, their_tensors
from tests.transformer.hf.tiny_models import FAMILIES, tiny_model, tokens


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost such small products more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@torch.no_grad()
def theirs(name: str, ids: Tensor) -> Tensor:
    logits: Tensor = tiny_model(name)(ids).logits
    return logits


def distance(logits: Tensor, reference: Tensor) -> float:
    """Return the largest difference, relative to the largest logit."""
    assert reference.abs().max() > 1  # smaller ones would hide a lost bias
    return ((logits - reference).abs().max() / reference.abs().max()).item()


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(name: str) -> None:
    assert distance(imported(name).logits(tokens()), theirs(name, tokens())) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "olmo3"])
def test_logits_of_many_tokens_are_those_of_transformers(name: str) -> None:
    ids = tokens(2048)
    assert distance(imported(name).logits(ids), theirs(name, ids)) < 1e-5


def exchanges(maps: tuple[TensorMap, ...], *, everywhere: bool) -> Iterator[tuple[TensorMap, TensorMap]]:
    """Yield the pairs of one shape; unless `everywhere`, those within a layer and those of a name in two layers."""
    for one, other in combinations(maps, 2):
        if one.shape != other.shape or one.transposed != other.transposed:
            continue
        first, second = (next(iter(each.sources)).key.split(".") for each in (one, other))
        near = (first[1] == second[1] == "2") or (first[2:] == second[2:] and (first[1], second[1]) == ("1", "2"))
        if everywhere or near or "embedding" in first:
            yield one, other


BOTH_ADDED = {
    (f"gpt_neox.layers.{layer}.attention.dense.bias", f"gpt_neox.layers.{layer}.mlp.dense_4h_to_h.bias")
    for layer in range(4)
}
"""In parallel wiring these two are added to one sum; that each stays with its weight is a test of the tables."""


def require_that_exchanges_are_seen(name: str, *, everywhere: bool) -> None:
    config = config_json(name)
    family = family_of(config)
    maps = family.tensors(plan_of(architecture_of(config)))
    tensors, model, ids = their_tensors(name, family), imported(name), tokens(17)
    places = {tensor.key: tensor.parts[0][1] for tensor in model.module.global_tensors()}
    before, count = model.logits(ids), 0
    for one, other in exchanges(maps, everywhere=everywhere):
        if name == "gpt_neox" and (one.name, other.name) in BOTH_ADDED:
            continue
        swapped = {**tensors, one.name: tensors[other.name], other.name: tensors[one.name]}
        for key, values in our_tensors(swapped, (one, other)).items():
            places[key].copy_(values)
        assert distance(model.logits(ids), before) > 1e-4, f"{one.name} in place of {other.name}"
        for key, values in our_tensors(tensors, (one, other)).items():
            places[key].copy_(values)
        count += 1
    assert count > 5
    assert torch.equal(model.logits(ids), before)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_exchange_of_two_tensors_of_a_layer_or_of_two_layers_is_seen(name: str) -> None:
    require_that_exchanges_are_seen(name, everywhere=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_an_exchange_of_any_two_tensors_is_seen(name: str) -> None:
    require_that_exchanges_are_seen(name, everywhere=True)
