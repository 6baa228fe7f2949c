"""Flatten and rebuild tuples, lists, dicts and dataclasses of tensors: the values that layers may exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from scaling.core.errors import ScheduleError

Leaf = tuple[str, Tensor]


def flatten(tree: Any, path: str = "") -> list[Leaf]:
    """Return (path, tensor) of every tensor in `tree`, in a fixed order. `None` holds no tensor."""
    match tree:
        case None:
            return []
        case Tensor():
            return [(path, tree)]
        case tuple() | list():
            return [leaf for index, item in enumerate(tree) for leaf in flatten(item, f"{path}[{index}]")]
        case dict():
            return [leaf for key in sorted(tree) for leaf in flatten(tree[key], f"{path}[{key!r}]")]
        case _ if is_dataclass(tree) and not isinstance(tree, type):
            return [leaf for item in fields(tree) for leaf in flatten(getattr(tree, item.name), f"{path}.{item.name}")]
        case bool() | int() | float() | str():
            return []
    raise ScheduleError(
        f"{path or 'the value'} is a {type(tree).__name__}; layers may exchange tensors, and tuples, lists, dicts and "
        "dataclasses of them (numbers and strings may ride along as constants)"
    )


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of any value in a fixed order; a value of any other type holds none."""
    match value:
        case Tensor():
            yield value
        case tuple() | list():
            for item in value:
                yield from tensors_of(item)
        case dict():
            yield from tensors_of(list(value.values()))
        case _ if is_dataclass(value) and not isinstance(value, type):
            yield from tensors_of([getattr(value, item.name) for item in fields(value)])


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Return `tree` with `function` applied to every tensor."""
    match tree:
        case Tensor():
            return function(tree)
        case tuple() if hasattr(tree, "_fields"):
            return type(tree)(*(map_tensors(function, item) for item in tree))
        case tuple() | list():
            return type(tree)(map_tensors(function, item) for item in tree)
        case dict():
            return {key: map_tensors(function, tree[key]) for key in sorted(tree)}
        case _ if is_dataclass(tree) and not isinstance(tree, type):
            values = {item.name: map_tensors(function, getattr(tree, item.name)) for item in fields(tree)}
            return new_dataclass(type(tree), values)
    return tree


def new_dataclass(kind: type, values: Mapping[str, Any]) -> Any:
    """Return an instance with these fields; `kind` need not accept all as arguments (`field(init=False)`)."""
    own = [item.name for item in fields(kind) if not item.init]
    made = kind(**{name: value for name, value in values.items() if name not in own})
    for name in own:
        object.__setattr__(made, name, values[name])  # a frozen class has no other way
    return made


def to_device(tree: Any, device: torch.device) -> Any:
    """Return `tree` on `device`; copies from pinned memory do not block."""
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), tree)
