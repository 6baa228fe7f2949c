"""A plan's parameters are those of the stages that are built, on every rank of every layout."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaling.core import LayoutError, TopologyConfig
from scaling.core.boxes import Box
from scaling.core.nn.init import Constant, Normal, Uniform
from scaling.core.nn.parameter import Piece, meta
from scaling.core.nn.shard import Heads
from scaling.core.pipeline.build import describe_layers
from scaling.core.pipeline.module import partition_of
from scaling.core.pipeline.planned import schedule_of
from scaling.core.pipeline.stage_map import StageMap
from scaling.core.topology.layout import Axis
from scaling.core.topology.placement import Placement
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.model import LAYERS, Layers, specs_of
from scaling.transformer.plan.attention import AttentionPlan
from scaling.transformer.plan.model import ModelPlan
from scaling.transformer.plan.parameters import Even, Padded, ParameterPlan, Start, Whole
from scaling.transformer.plan.parts import FeedForwardPlan, PartPlan
from tests.contract.finetuning import FINETUNING_LAYOUTS, finetuned
from tests.contract.layouts import LAYOUTS, LayoutCase
from tests.contract.models import MODELS, config_of
from tests.contract.options import OPTION_LAYOUTS, OPTION_MODELS
from tests.reference.worlds import topology_config, view_of


@dataclass
class Held:
    """What a rank holds of a stage."""

    tensors: dict[str, tuple[tuple[int, ...], Start, Box, Placement]] = field(default_factory=dict)
    """By name: shape of the whole, first values, this rank's part, placement on the model axis."""
    elements: int = 0
    """Of all local tensors, with padding."""


def stage_map_of(topology: TopologyConfig) -> StageMap:
    return schedule_of(topology).stages.over(topology.pipe_parallel_size)


def stages_of(plan: ModelPlan, topology: TopologyConfig) -> tuple[range, ...]:
    return partition_of(plan.costs, topology, schedule_of(topology), ranks=topology.pipe_parallel_size)


def planned(plan: ModelPlan, layers: range, topology: TopologyConfig, rank: int) -> Held:
    """Return what the plan says a rank holds of the layers of a stage."""
    ranks, held = topology.model_parallel_size, Held()
    for parameter in plan.parameters(layers):
        offset, part, local = [0] * len(parameter.shape), list(parameter.shape), list(parameter.shape)
        if (shard := parameter.shard(ranks, rank % ranks)) is not None:
            offset[shard.dim], part[shard.dim], local[shard.dim] = shard.offset, shard.length, shard.local_length
        placement = parameter.placement(ranks, sequence_parallel=topology.sequence_parallel)
        box = Box(tuple(offset), tuple(part))
        held.tensors[parameter.name] = parameter.shape, parameter.start, box, placement
        held.elements += prod(local)
    return held


def described(plan: ModelPlan, topology: TopologyConfig, rank: int, layers: Layers = LAYERS) -> dict[int, Held]:
    """Return what the stages of a rank hold, by number, when they are described and not yet filled."""
    sizes = {axis: getattr(topology, f"{axis}_parallel_size") for axis in ("pipe", "data", "model")}
    view = view_of(rank, sequence_parallel=topology.sequence_parallel, **sizes)
    specs = specs_of(plan, view, seed=0, layers=layers)
    found: dict[int, Held] = {}
    stages, stage_map = stages_of(plan, topology), stage_map_of(topology)
    for number, _, layer in describe_layers(specs, stages, stage_map, topology=view, seed=0):
        held = found.setdefault(number, Held())
        for parameter in layer.parameters():
            assert parameter.is_meta
            pieces = {piece.key: piece for piece in meta(parameter).pieces}
            if not pieces.keys() & held.tensors.keys():  # what is tied is one parameter in two layers
                held.elements += parameter.numel()
            for name, piece in pieces.items():
                placement = meta(parameter).placements.on(Axis.MODEL)
                held.tensors[name] = piece.shape, start_of(piece), piece.box, placement
    return found


def start_of(piece: Piece) -> Start:
    match piece.initializer:
        case Normal(std):
            return Start("normal", std)
        case Constant(value):
            return Start("constant", value)
        case Uniform(bound):
            return Start("uniform", bound)
    raise AssertionError(piece)


def assert_planned_as_built(plan: ModelPlan, topology: TopologyConfig, layers: Layers = LAYERS) -> None:
    stages = stages_of(plan, topology)
    for rank in range(topology.world_size):
        for number, held in described(plan, topology, rank, layers).items():
            assert held == planned(plan, stages[number], topology, rank), f"rank {rank}, stage {number}"


@pytest.mark.parametrize(
    ("model", "case"),
    [
        pytest.param(model, case, id=f"{model} {case}")
        for model, cases in {**LAYOUTS, **dict.fromkeys(OPTION_MODELS, OPTION_LAYOUTS)}.items()
        for case in cases
    ],
)
def test_every_rank_holds_what_the_plan_says(model: str, case: LayoutCase) -> None:
    config = config_of(model, case.settings, case.optimizer)
    assert_planned_as_built(plan_of(config.transformer_architecture), config.topology)


@pytest.mark.parametrize("model", FINETUNING_LAYOUTS)
def test_every_rank_holds_of_methods_of_fine_tuning_what_the_plan_says(model: str) -> None:
    for case in FINETUNING_LAYOUTS[model]:
        config = finetuned(model, case.settings, case.optimizer)
        assert_planned_as_built(plan_of(config.transformer_architecture), config.topology)


@st.composite
def architectures(draw: st.DrawFn, ranks: int) -> TransformerArchitectureConfig:
    heads, size = ranks * draw(st.integers(1, 3)), draw(st.sampled_from([2, 4, 6]))
    shared = [
        number for number in range(1, heads + 1) if heads % number == 0 and not (number % ranks and ranks % number)
    ]
    flags = ("attention_bias", "mlp_bias", "weight_tying", "lm_head", "lm_head_bias")
    norm = draw(st.sampled_from(["layernorm", "rms"]))
    parallel, std = draw(st.booleans()), draw(st.none() | st.just(0.1))
    values: dict[str, Any] = {
        "vocab_size": draw(st.integers(1, 70)),
        "hidden_size": heads * size,
        "num_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "attention_num_kv_heads": draw(st.none() | st.sampled_from(shared)),
        "mlp_type": draw(st.sampled_from(["default", "swiglu", "geglu"])),
        "mlp_factor": draw(st.integers(1, 3)),
        "norm_type": norm,
        "layernorm": {"weight_offset": draw(st.integers(0, 1))} if norm == "rms" else {"bias": draw(st.booleans())},
        "key_query_norm": draw(st.sampled_from([False, "per_head", *(["all_heads"] if norm == "rms" else [])])),
        "parallel_residual": parallel,
        "norm_placement": "pre" if parallel else draw(st.sampled_from(["pre", "post", "sandwich", "after_sum"])),
        "parallel_residual_norms": draw(st.integers(1, 2)) if parallel else 2,
        "absolute_positions": draw(st.none() | st.just(2048)),
        "attention_qkv_bias": draw(st.none() | st.booleans()),
        "attention_dense_bias": draw(st.none() | st.booleans()),
        "attention_head_size": draw(st.none() | st.sampled_from([2, 10])),
        "initialization": {"scheme": draw(st.sampled_from(["normal", "depth_scaled"])), "std": std},
        **{flag: draw(st.booleans()) for flag in flags},
    }
    if values["attention_num_kv_heads"] is None:
        values["attention_qkv_in_one"] = draw(st.booleans())
    return TransformerArchitectureConfig.from_dict(values)


@given(st.data())
def test_every_model_is_built_as_it_is_planned(data: st.DataObject) -> None:
    ranks, pipe = data.draw(st.sampled_from([1, 2, 3, 4])), data.draw(st.integers(1, 3))
    topology = topology_config(pipe=pipe, model=ranks, sequence_parallel=ranks > 1 and data.draw(st.booleans()))
    assert_planned_as_built(plan_of(data.draw(architectures(ranks))), topology)


@given(st.data())
def test_what_the_section_cannot_say_is_built_as_it_is_planned_too(data: st.DataObject) -> None:
    """Heads of any size, biases and deviations by part, layers that differ."""
    plan = plan_of(data.draw(architectures(2)))
    runs = []
    for count, layer in plan.runs:
        size, width = data.draw(st.sampled_from([2, 10])), 2 * data.draw(st.integers(1, 9))
        biases = [data.draw(st.booleans()) for _ in range(4)]
        parts: list[tuple[str, PartPlan]] = []
        for name, part in layer.parts:
            if isinstance(part, AttentionPlan):
                part = replace(part, head_size=size, projection_bias=biases[0], output_bias=biases[1], output_std=0.3)
                if part.norm is not None:
                    part = replace(part, norm=replace(part.norm, norm=replace(part.norm.norm, features=size)))
            elif isinstance(part, FeedForwardPlan):
                part = replace(part, width=width, input_bias=biases[2], output_bias=biases[3], input_std=0.2)
            parts.append((name, part))
        runs += [(count, layer), (1, replace(layer, parts=tuple(parts)))] if "mlp" in dict(parts) else [(count, layer)]
    assert_planned_as_built(replace(plan, runs=tuple(runs)), topology_config(model=2, pipe=2))


@pytest.mark.parametrize(
    ("cut", "shape"),
    [
        *((Whole(), (12,)), (Even(0), (12, 2)), (Even(1), (2, 12)), (Padded(), (11, 2))),
        *((Heads(4, 3), (12,)), (Heads(2, 6), (12,))),
    ],
    ids=str,
)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_parts_of_all_ranks_are_the_whole(cut: Any, shape: tuple[int, ...], ranks: int) -> None:
    parameter = ParameterPlan(name="w", shape=shape, cut=cut, start=Start("constant", 0.0))
    holders = len(parameter.placement(ranks, sequence_parallel=False).holders(0, ranks))
    count = torch.zeros(shape)
    for index in range(ranks):
        part = count
        if (shard := parameter.shard(ranks, index)) is not None:
            part = count.narrow(shard.dim, shard.offset, shard.length)
        part += 1
    assert set(count.flatten().tolist()) == {holders}


@pytest.mark.parametrize(("cut", "shape"), [(Even(0), (12, 2)), (Heads(4, 3), (12,)), (Heads(2, 6), (12,))], ids=str)
def test_a_cut_with_a_remainder_is_refused(cut: Any, shape: tuple[int, ...]) -> None:
    parameter = ParameterPlan(name="w", shape=shape, cut=cut, start=Start("constant", 0.0))
    with pytest.raises(LayoutError, match=r"model_parallel_size \(5\)"):
        parameter.shard(5, 0)


def test_the_models_of_the_contract_have_every_cut() -> None:
    plans = [plan_of(config_of(model).transformer_architecture) for model in MODELS]
    cuts = {type(parameter.cut) for plan in plans for parameter in plan.parameters()}
    assert cuts == {Whole, Even, Heads, Padded}


LARGE = {
    "vocab_size": 128256,
    "hidden_size": 8192,
    "num_layers": 80,
    "num_attention_heads": 64,
    "attention_num_kv_heads": 8,
    "attention_bias": False,
    "mlp_type": "swiglu",
    "mlp_factor": 3.5,
    "mlp_bias": False,
    "norm_type": "rms",
    "weight_tying": False,
    "precision": "bfloat16",
    "sequence_length": 8192,
}


def test_the_stage_of_any_of_1024_ranks_of_70_billion_parameters_is_described_within_a_second() -> None:
    plan = plan_of(TransformerArchitectureConfig.from_dict(LARGE))
    topology = topology_config(pipe=8, data=16, model=8, sequence_parallel=True)
    assert sum(prod(parameter.shape) for parameter in plan.parameters()) == 70_553_706_496
    stages = stages_of(plan, topology)
    for rank in (0, 517, 1023):
        began = time.process_time()
        ((number, held),) = described(plan, topology, rank).items()
        seconds = time.process_time() - began
        assert held == planned(plan, stages[number], topology, rank)
        assert seconds < 1.0
