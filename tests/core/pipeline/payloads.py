"""Two floating-point tensors and ids, packed in every way in which layers may exchange them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Extra:
    b: Tensor
    ids: Tensor
    note: str = "constant"


@dataclass
class State:
    a: Tensor
    extra: Extra
    nothing: None = None


class Named(NamedTuple):
    a: Tensor
    b: Tensor
    ids: Tensor


KINDS = ("tensor", "tuple", "list", "dict", "dataclass", "named tuple")


def pack(kind: str, a: Tensor, b: Tensor, ids: Tensor) -> Any:
    """Return the payload."""
    match kind:
        case "tensor":
            return a
        case "tuple":
            return a, (b, ids, 3)
        case "list":
            return [a, b, ids, None]
        case "dict":
            return {"ids": ids, "a": a, "more": {"b": b}}
        case "dataclass":
            return State(a, Extra(b, ids))
    return Named(a, b, ids)


def unpack(kind: str, payload: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return (a, b, ids) of a payload."""
    match kind:
        case "tensor":
            return payload, torch.ones_like(payload), torch.zeros(payload.shape[0], dtype=torch.int64)
        case "tuple":
            return payload[0], payload[1][0], payload[1][1]
        case "list":
            return payload[0], payload[1], payload[2]
        case "dict":
            return payload["a"], payload["more"]["b"], payload["ids"]
        case "dataclass":
            return payload.a, payload.extra.b, payload.extra.ids
    return payload.a, payload.b, payload.ids
