"""Loss and every gradient of one step of training against transformers, for every family, packed rows too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Final
from unittest import mock

import pytest
import torch
from torch import Tensor

from scaling.core import AttentionKernel
from scaling.core.boxes import whole
from scaling.core.verify.deviation import Distance, distances, measure
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.hf.choose import NOT_THE_MODEL, family_of
from scaling.transformer.layers import kernels
from scaling.transformer.losses import CrossEntropyLoss
from tests.transformer.hf.in_memory import architecture_of, config_json, our_tensors, their_tensors
from tests.transformer.hf.tiny_models import FAMILIES, tiny_model
from tests.transformer.hf.training import (
    Documents,
    as_theirs,
    gradients,
    labels_of,
    micro_batch,
    module_of,
    positions_of,
    rows_of_tokens,
)

Step = tuple[float, dict[str, Tensor]]
"""Loss, and gradients by the names in their files."""

# Windows of 8 hide keys within documents of 12 and more. The longest is longer than 16 tokens, the length before an
# extension: `longrope` of transformers follows the longest document of the batch.
ONE_DOCUMENT: Final = ((33,),)
PACKED: Final = ((5, 1, 19, 8), (12, 20, 1))

TOLERANCE: Final = 1e-5
FUSED_TOLERANCE: Final = 5e-5
"""Fused attention sums in another order. The gradient of a bias of keys is what is left of numbers that cancel out: two
orders differ by up to 1.3e-5, and the gradients of transformers from its own in float64 by as much."""


def their_step(name: str, rows: Sequence[Documents]) -> Step:
    """Return a step of transformers: its packed mask comes from positions that restart, without a cache."""
    model, token_ids = deepcopy(tiny_model(name)).requires_grad_(True), rows_of_tokens(rows)
    found = model(
        input_ids=token_ids, position_ids=positions_of(rows), labels=labels_of(token_ids, rows), use_cache=False
    )
    found.loss.backward()
    renamed = family_of(config_json(name)).renamed
    return found.loss.item(), {renamed(key): parameter.grad for key, parameter in model.named_parameters()}


def our_step(name: str, rows: Sequence[Documents], **changes: Any) -> Step:
    """Return a step of ours. The gradient is the mean's, as the optimizer makes it."""
    config = config_json(name)
    family, architecture = family_of(config), architecture_of(config, **NOT_THE_MODEL, **changes)
    maps = family.tensors(plan_of(architecture))
    module = module_of(architecture, our_tensors(their_tensors(name, family), maps))
    batch = micro_batch(rows_of_tokens(rows), rows)
    loss = module.train_step(
        iter([batch]),
        CrossEntropyLoss(),
        gradient_scale=1 / batch.targets.loss_weights.double().sum(),
    )
    return float(loss.loss), as_theirs(gradients(module), maps)


def farthest(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Distance:
    """Return the tensor that is farthest off, by the measure of the layout contract."""
    assert actual.keys() == expected.keys()
    found = distances(
        measure(key, 0, [(whole(tuple(tensor.shape)), actual[key].double().numpy(), tensor.detach().double().numpy())])
        for key, tensor in expected.items()
    )
    return max(found, key=lambda distance: distance.relative)


def require_same_step(name: str, rows: Sequence[Documents], **changes: Any) -> None:
    their_loss, theirs = their_step(name, rows)
    for spelled_out in (True, False):
        if spelled_out:  # as `eager` does
            with mock.patch.object(kernels, "choose_kernel", return_value=AttentionKernel.SPELLED_OUT):
                our_loss, ours = our_step(name, rows, **changes)
        else:
            our_loss, ours = our_step(name, rows, **changes)
        assert our_loss == pytest.approx(their_loss, rel=TOLERANCE)
        apart = farthest(ours, theirs)
        assert apart.relative <= (TOLERANCE if spelled_out else FUSED_TOLERANCE), apart


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_has_the_loss_and_the_gradients_of_transformers(name: str) -> None:
    for rows in (ONE_DOCUMENT, PACKED):
        require_same_step(name, rows)


def test_what_follows_the_length_follows_the_configured_one() -> None:
    """In transformers it follows the batch: the two are the same where the batch has that length."""
    require_same_step("phi3", [(16,)], sequence_length=16)
    require_same_step("llama_dynamic", [(100,)], sequence_length=100)


def test_a_packed_step_is_that_of_its_documents() -> None:
    """The comparison with transformers holds no loss over the ends of documents, nor any look across them."""
    loss, together = our_step("gemma2", PACKED)
    token_ids = rows_of_tokens(PACKED)
    pieces = [
        piece
        for row, documents in zip(token_ids, PACKED, strict=True)
        for piece in row.split(list(documents))
        if len(piece) > 1
    ]
    model = deepcopy(tiny_model("gemma2")).requires_grad_(True)
    total = torch.zeros(())
    for piece in pieces:
        logits = model(input_ids=piece[None, :-1], use_cache=False).logits[0]
        total = total + torch.nn.functional.cross_entropy(logits, piece[1:], reduction="sum")
    mean = total / sum(len(piece) - 1 for piece in pieces)
    mean.backward()
    assert loss == pytest.approx(mean.item(), rel=TOLERANCE)
    alone = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert farthest(together, alone).relative <= TOLERANCE
