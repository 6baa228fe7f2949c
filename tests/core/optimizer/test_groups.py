"""Parameter groups: every parameter in exactly one, or the same message on every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from scaling.core.errors import ConfigError
from scaling.core.nn.parameter import ParameterMeta, annotate, meta
from scaling.core.optimizer.groups import GroupPattern, ParameterGroup, assign, check_groups
from scaling.core.optimizer.lr_schedule import LearningRateSchedulerConfig
from scaling.core.optimizer.patterns import name_in_layer
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology
from tests.distributed import run_distributed
from tests.reference.worlds import connected

Described = list[tuple[nn.Parameter, ParameterMeta]]

NAMES = ("layers.0.embedding.weight", "layers.1.norm.weight", "layers.1.dense.weight", "layers.1.dense.bias")


def parameters(*names: str) -> Described:
    found = [nn.Parameter(torch.zeros(2)) for _ in names]
    for parameter, name in zip(found, names, strict=True):
        annotate(parameter, meta(parameter).named(name))
    return [(parameter, meta(parameter)) for parameter in found]


def group(name: str, *, rate: float = 1e-3, **options: Any) -> ParameterGroup:
    schedule = LearningRateSchedulerConfig(learning_rate=rate)
    return ParameterGroup(name=name, learning_rate_scheduler=schedule, **options)


def pattern(name: str, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> GroupPattern:
    return GroupPattern(group=group(name, weight_decay=0.5), include=include, exclude=exclude)


def names_of(groups: list[ParameterGroup]) -> dict[str, list[str]]:
    return {group.name: [description.name for _, description in group.parameters] for group in groups}


def test_patterns_are_searched_in_the_name_within_the_layer() -> None:
    vectors = ("bias", "norm")
    groups = assign(
        parameters(*NAMES), [pattern("matrices", exclude=vectors), pattern("vectors", vectors)], Topology.single()
    )
    assert names_of(groups) == {"matrices": [NAMES[0], NAMES[2]], "vectors": [NAMES[1], NAMES[3]]}
    assert groups[0].weight_decay == 0.5


@pytest.mark.parametrize(
    ("include", "exclude", "taken"),
    [
        ((), (), list(NAMES)),
        ((r"weight$",), (), [NAMES[0], NAMES[1], NAMES[2]]),
        ((r"^norm",), (), [NAMES[1]]),
        ((r"\.weight$", r"bias"), (r"norm", r"embedding"), [NAMES[2], NAMES[3]]),
        (("layers", "0"), (), []),  # the layer's number is no part of the name
    ],
)
def test_a_pattern_takes_what_it_includes_and_does_not_exclude(
    include: tuple[str, ...], exclude: tuple[str, ...], taken: list[str]
) -> None:
    one = pattern("g", include, exclude)
    assert [name for name in NAMES if one.matches(name_in_layer(name))] == taken


@pytest.mark.parametrize("allow_missing", [False, True])
@pytest.mark.parametrize(
    "patterns",
    [
        [pattern("rest", ("dense",))],
        [pattern("a", ("weight",)), pattern("b", ("norm", "embedding"))],
        [pattern("a"), pattern("never", ("never",))],
        [pattern("a", (), ("bias",)), pattern("b", ("bias",))],
    ],
)
def test_groups_are_checked_by_names_alone_as_they_are_with_parameters(
    patterns: list[GroupPattern], allow_missing: bool
) -> None:
    def said(check: Callable[[], object]) -> list[str]:
        try:
            check()
        except ConfigError as error:
            return [problem.message for problem in error.problems]
        return []

    by_name = said(lambda: check_groups(NAMES, patterns, allow_missing=allow_missing))
    assert by_name == said(lambda: assign(parameters(*NAMES), patterns, Topology.single(), allow_missing=allow_missing))


def test_a_tie_is_named_by_its_first_layer() -> None:
    assert name_in_layer("layers.12.mlp.dense_in.weight") == "mlp.dense_in.weight"
    assert name_in_layer("something") == "something"


def assign_wrongly(rank: int, world_size: int) -> str:
    """Each stage has another mistake."""
    with connected(pipe=2, data=2) as topology:
        own = NAMES[:2] if topology.index(Axis.PIPE) == 0 else NAMES[2:]
        patterns = [pattern("a", ("norm",)), pattern("b", ("weight",), ("embedding",)), pattern("c", ("never",))]
        with pytest.raises(ConfigError) as raised:
            assign(parameters(*own), patterns, topology)
        return str(raised.value)


def test_all_mistakes_of_all_stages_are_one_error_on_every_rank() -> None:
    found = run_distributed(assign_wrongly, 4)
    assert len(set(found)) == 1
    assert found[0].splitlines()[0] == "3 problems:"
    for problem in (
        "layers.0.embedding.weight, layers.1.dense.bias are in no group; include what is trained, and freeze the "
        "rest with training.allow_missing_params_in_optimizer (in a program: assign(..., allow_missing=True))",
        "layers.1.norm.weight is taken by several groups (a, b); exclude it from all but one",
        "group 'c' takes no parameter; correct its patterns, which are searched in names without `layers.<index>.`, or "
        "remove it",
    ):
        assert f"training_groups: {problem}" in found[0]


@pytest.mark.parametrize(
    ("include", "exclude", "said"),
    [
        (("norm", "dens.weight"), (), ["group 'g': 'dens.weight' matches no parameter; did you mean dense.weight?"]),
        (("norm", r"^nothing\.like$"), (), [r"group 'g': '^nothing\\.like$' matches no parameter"]),
        (("norm", "bias"), ("bias",), []),  # what is excluded afterwards is there
        (
            (r"embeding\.weight$",),
            (),
            [
                "group 'g' takes no parameter; correct its patterns, which are searched in names without "
                "`layers.<index>.`, or remove it",
                r"group 'g': 'embeding\\.weight$' matches no parameter; did you mean embedding.weight?",
            ],
        ),
    ],
)
def test_a_pattern_that_matches_nothing_is_named_although_the_group_takes_something(
    include: tuple[str, ...], exclude: tuple[str, ...], said: list[str]
) -> None:
    one = pattern("g", include, exclude)
    if said:
        with pytest.raises(ConfigError) as raised:
            assign(parameters(*NAMES), [one], Topology.single(), allow_missing=True)
        assert [problem.message for problem in raised.value.problems] == said
    else:
        assign(parameters(*NAMES), [one], Topology.single(), allow_missing=True)


def assign_with_a_pattern_for_each_stage(rank: int, world_size: int) -> dict[str, list[str]]:
    with connected(pipe=2) as topology:
        own = NAMES[:2] if rank == 0 else NAMES[2:]
        return names_of(assign(parameters(*own), [pattern("all", ("norm", "embedding", "dense"))], topology))


def test_of_many_parameters_in_no_group_the_first_are_named() -> None:
    many = parameters(*(f"layers.{index}.weight" for index in range(10, 23)))
    with pytest.raises(
        ConfigError, match=r"layers\.10\.weight, .*, layers\.19\.weight and 3 more parameters are in no"
    ):
        assign(many, [pattern("a", ("never",))], Topology.single())


def assign_by_stage(rank: int, world_size: int) -> dict[str, list[str]]:
    with connected(pipe=2) as topology:
        own = NAMES[:2] if rank == 0 else NAMES[2:]
        patterns = [pattern("dense", ("dense",)), pattern("rest", (), ("dense",))]
        return names_of(assign(parameters(*own), patterns, topology))


def test_a_group_may_be_empty_on_a_stage_but_not_everywhere() -> None:
    assert run_distributed(assign_by_stage, 2) == [
        {"dense": [], "rest": list(NAMES[:2])},
        {"dense": list(NAMES[2:]), "rest": []},
    ]


def test_a_pattern_may_match_on_another_stage() -> None:
    assert run_distributed(assign_with_a_pattern_for_each_stage, 2) == [{"all": [*NAMES[:2]]}, {"all": [*NAMES[2:]]}]


def test_parameters_in_no_group_are_frozen_where_that_is_allowed() -> None:
    described = parameters(*NAMES)
    groups = assign(described, [pattern("bias", ("bias",))], Topology.single(), allow_missing=True)
    assert names_of(groups) == {"bias": [NAMES[3]]}
    assert [parameter.requires_grad for parameter, _ in described] == [False, False, False, True]


def test_parameters_that_need_no_gradient_belong_to_no_group() -> None:
    """Weight decay would change them."""
    described = parameters(*NAMES)
    described[0][0].requires_grad_(False)
    groups = assign(described, [pattern("all")], Topology.single())
    assert names_of(groups) == {"all": list(NAMES[1:])}


def test_independent_decay_does_not_depend_on_the_peak_of_the_learning_rate() -> None:
    assert group("g", rate=1e-3, weight_decay=0.1).decay_coefficient == 0.1
    assert group("g", rate=1e-3, weight_decay=0.1, independent_weight_decay=True).decay_coefficient == pytest.approx(
        100
    )
    assert group("g", rate=0.0, weight_decay=0.1, independent_weight_decay=True).decay_coefficient == 0.1
