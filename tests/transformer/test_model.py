"""The list of layers, what it costs, and what the model as a whole may and may not see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from scaling.core import ParallelModule, Topology, TopologyConfig
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.flops import flops_per_token
from scaling.transformer.io import TextInputs, TextTargets
from scaling.transformer.layers.head import HeadOutput
from scaling.transformer.losses import CrossEntropyLoss
from scaling.transformer.model import layer_specs

VOCABULARY, HIDDEN, SEQUENCE = 50, 16, 12
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_layers": 2,
    "num_attention_heads": 4,
    "sequence_length": SEQUENCE,
    "precision": "float64",
}
LLAMA = {
    "attention_num_kv_heads": 2,
    "mlp_type": "swiglu",
    "mlp_factor": 2,
    "norm_type": "rms",
    "attention_bias": False,
    "mlp_bias": False,
}
MODELS = [{}, LLAMA, {"weight_tying": False}, {"key_query_norm": True, "relative_position_embedding_type": "none"}]


def architecture(**changes: Any) -> TransformerArchitectureConfig:
    return TransformerArchitectureConfig.from_dict({**SMALL, **changes})


def build(config: TransformerArchitectureConfig, *, seed: int = 0) -> ParallelModule:
    topology = Topology.single()
    return ParallelModule(layer_specs(config, topology, seed=seed), topology, TopologyConfig(), seed=seed)


def run(module: ParallelModule, token_ids: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """Return the logits, positions counted from 0 in each document."""
    rows, length = token_ids.shape
    positions = torch.arange(length).expand(rows, length)
    if document_ids is not None:
        starts = torch.cat([torch.ones(rows, 1, dtype=torch.bool), document_ids.diff(dim=1) != 0], dim=1)
        positions = positions - torch.where(starts, positions, 0).cummax(dim=1).values
    (stage,) = module.stages.values()
    with torch.no_grad():
        logits: Tensor = stage(TextInputs(token_ids, positions, document_ids, torch.arange(rows))).logits()
    return logits


def tokens(rows: int = 2, length: int = SEQUENCE) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("changes", [{}, {"num_layers": 5}, {"weight_tying": False}, {"lm_head": False}])
def test_there_are_as_many_layers_as_the_configuration_counts(changes: dict[str, Any]) -> None:
    config = architecture(**changes)
    assert len(layer_specs(config, Topology.single(), seed=0)) == plan_of(config).num_layers


def test_parameters_have_the_names_that_checkpoints_and_groups_know_them_by() -> None:
    names = [description.name for _, description in build(architecture(**LLAMA, num_layers=1)).parameters_with_meta()]
    assert sorted(names) == [
        "layers.0.embedding.weight",
        "layers.1.input_layernorm.weight",
        "layers.1.mlp.dense_in.weight",
        "layers.1.mlp.dense_out.weight",
        "layers.1.mlp.siglu_weight.weight",
        "layers.1.post_attention_layernorm.weight",
        "layers.1.self_attention.dense.weight",
        "layers.1.self_attention.key.weight",
        "layers.1.self_attention.query.weight",
        "layers.1.self_attention.value.weight",
        "layers.2.norm.weight",
    ]


@pytest.mark.parametrize("changes", MODELS)
def test_operations_are_those_of_the_matrix_products(changes: dict[str, Any]) -> None:
    config = architecture(**changes)
    module = build(config)
    with FlopCounterMode(display=False) as counter:
        run(module, tokens())
    products = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)
    counted = sum(counter.get_flop_counts()["Global"].get(product, 0) for product in products)
    matrices = plan_of(config).multiply_adds.matrices
    assert counted == 2 * matrices * tokens().numel()
    assert flops_per_token(config) == 6 * matrices + 12 * 2 * HIDDEN * SEQUENCE


@pytest.mark.parametrize("changes", MODELS)
def test_no_token_sees_what_comes_after_it(changes: dict[str, Any]) -> None:
    module = build(architecture(**changes))
    changed = tokens()
    changed[:, 7:] = (changed[:, 7:] + 1) % VOCABULARY
    before, after = run(module, tokens()), run(module, changed)
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=1e-12, atol=1e-12)
    assert not torch.isclose(after[:, 7:], before[:, 7:]).all()


@pytest.mark.parametrize("changes", MODELS)
def test_packed_documents_are_computed_as_if_each_were_alone(changes: dict[str, Any]) -> None:
    module = build(architecture(**changes))
    row = tokens(rows=1)
    lengths = (5, 1, 6)
    documents = torch.repeat_interleave(torch.arange(3, dtype=torch.int32), torch.tensor(lengths)).unsqueeze(0)
    packed = run(module, row, documents)
    alone = torch.cat([run(module, piece) for piece in row.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-12, atol=1e-12)


def test_the_seed_alone_decides_the_weights() -> None:
    one, same, other = (run(build(architecture(), seed=seed), tokens()) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


def test_an_untrained_model_knows_nothing() -> None:
    logits = run(build(architecture()), tokens())
    loss = functional.cross_entropy(logits.flatten(0, 1), tokens().flatten())
    assert loss.item() == pytest.approx(torch.tensor(float(VOCABULARY)).log().item(), abs=0.5)


def test_the_loss_is_the_sum_over_what_counts() -> None:
    logits = torch.randn(2, 3, VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = TextTargets(tokens(2, 3), torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    output = CrossEntropyLoss()(HeadOutput(logits, torch.eye(VOCABULARY).double()), targets)
    each = functional.cross_entropy(logits.flatten(0, 1), targets.token_ids.flatten(), reduction="none").view(2, 3)
    expected = each[0, 0] + each[0, 2] + each[1, 0]
    torch.testing.assert_close(output.loss_sum, expected)
    assert float(output.weight) == 3.0


def test_the_width_is_rounded_up_and_never_0() -> None:
    assert [architecture(mlp_factor=factor, mlp_size_multiple_of=6).mlp_width for factor in (0.01, 0.5)] == [6, 12]


def test_costs_follow_the_widths() -> None:
    embedding, block, _, norm, head = (spec.cost for spec in layer_specs(architecture(), Topology.single(), seed=0))
    assert embedding == norm == 0.0
    assert head == HIDDEN * VOCABULARY
    assert block == HIDDEN * (4 * HIDDEN + 8 * HIDDEN + SEQUENCE)
