"""Trees of tensors: what flattening sees, and that rebuilding keeps the rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scaling.core.collectives.tree import flatten, map_tensors, to_device
from scaling.core.errors import ScheduleError


@dataclass(frozen=True)
class Pair:
    left: Any
    right: Any = None


@dataclass
class Mutable:
    values: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Counted:
    """A class that makes one of its fields itself."""

    value: Any
    more: Any = field(default=None, init=False)


class Point(NamedTuple):
    x: Any
    y: Any


LEAVES = (
    st.integers(0, 3).map(lambda n: torch.arange(n)) | st.none() | st.integers() | st.text(max_size=3) | st.booleans()
)


def containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(children, max_size=3)
    return (
        several
        | several.map(tuple)
        | st.dictionaries(st.sampled_from("abcd"), children, max_size=3)
        | st.builds(Pair, children, children)
        | st.builds(Mutable, several)
        | st.builds(Point, children, children)
    )


TREES = st.recursive(LEAVES, containers, max_leaves=12)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a is b
    if isinstance(a, (Pair, Mutable)):
        return type(a) is type(b) and same(vars(a), vars(b))
    if isinstance(a, dict):
        return isinstance(b, dict) and set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and bool(a == b)


def test_fields_that_a_class_makes_itself_are_kept_too() -> None:
    counted = Counted(torch.zeros(1))
    object.__setattr__(counted, "more", {"x": torch.ones(2)})
    moved = map_tensors(lambda tensor: tensor + 1, counted)
    assert isinstance(moved, Counted)
    assert moved.value.tolist() == [1.0]
    assert moved.more["x"].tolist() == [2.0, 2.0]


@given(TREES)
def test_mapping_the_tensors_of_a_tree_to_themselves_gives_the_tree(tree: Any) -> None:
    assert same(map_tensors(lambda tensor: tensor, tree), tree)


@given(TREES)
def test_mapping_visits_the_tensors_in_the_order_of_flatten(tree: Any) -> None:
    visited: list[Tensor] = []

    def visit(tensor: Tensor) -> Tensor:
        visited.append(tensor)
        return tensor.clone()

    mapped = map_tensors(visit, tree)
    leaves = [tensor for _, tensor in flatten(tree)]
    assert all(a is b for a, b in zip(visited, leaves, strict=True))
    assert [path for path, _ in flatten(mapped)] == [path for path, _ in flatten(tree)]
    assert not any(new is old for (_, new), old in zip(flatten(mapped), leaves, strict=True))


def test_paths_say_where_a_tensor_is() -> None:
    tree = {"b": torch.zeros(1), "a": (torch.zeros(1), Pair(left=[torch.zeros(1)], right=3))}
    assert [path for path, _ in flatten(tree)] == ["['a'][0]", "['a'][1].left[0]", "['b']"]
    assert flatten(torch.zeros(1))[0][0] == ""


def test_the_order_of_a_dict_is_that_of_its_keys() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    assert flatten({"x": one, "y": two}) == flatten({"y": two, "x": one})


def test_what_is_no_tree_is_named_with_its_place() -> None:
    with pytest.raises(ScheduleError, match=r"\['x'\]\[1\] is a set; layers may exchange tensors"):
        flatten({"x": (torch.zeros(1), {1, 2})})


def test_a_tree_moves_to_a_device_as_a_whole() -> None:
    moved = to_device(Pair(torch.zeros(2), [torch.ones(1), 5]), torch.device("meta"))
    assert moved.left.device.type == moved.right[0].device.type == "meta"
    assert moved.right[1] == 5
