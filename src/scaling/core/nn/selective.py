"""Selective activation checkpointing: expensive results are kept, and handed out when a segment is run again.

A table (`KEPT`) says which results are expensive. All others are computed again: norms, activation functions,
rotations, scaling, dropout masks. The idea is that of arXiv:2205.05198 section 5, by operation rather than by part of a
layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor
from torch._C._distributed_c10d import FakeWork  # communication that is done already
from torch.utils._python_dispatch import TorchDispatchMode

from scaling.core.errors import ScheduleError


class Kind(str, Enum):
    """Why the results of an operation are kept."""

    PRODUCT = "products"
    FUSED = "fused attention"
    COLLECTIVE = "collectives"


KEPT: Mapping[str, Kind] = MappingProxyType(
    {
        **dict.fromkeys(("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear"), Kind.PRODUCT),
        **dict.fromkeys(("aten::_scaled_mm", "aten::_int_mm", "aten::convolution"), Kind.PRODUCT),
        "aten::_scaled_dot_product_flash_attention_for_cpu": Kind.FUSED,
        "aten::_scaled_dot_product_flash_attention": Kind.FUSED,
        "aten::_scaled_dot_product_efficient_attention": Kind.FUSED,
        "aten::_scaled_dot_product_cudnn_attention": Kind.FUSED,
        "aten::_scaled_dot_product_fused_attention_overrideable": Kind.FUSED,
        "flash_attn::_flash_attn_forward": Kind.FUSED,
        "flash_attn::_flash_attn_varlen_forward": Kind.FUSED,
        "torch_attn::_varlen_attn": Kind.FUSED,
        "flex_attention": Kind.FUSED,
        "c10d::*": Kind.COLLECTIVE,
        "scaling_shared_memory::*": Kind.COLLECTIVE,
    }
)
"""The results that selective checkpointing keeps, by the name of the operation; a star means all of a namespace."""

_HANDED_ON = frozenset({"aten::add", "aten::sub", "aten::clone", "aten::copy_", "aten::_to_copy", "aten::cat"})
"""Operations whose backward pass needs none of the tensors they read: reading a result does not make it needed."""


def kept_by_selective() -> str:
    """Return, in one line, which results selective activation checkpointing keeps and which not."""
    kinds = {kind: [name for name, of in KEPT.items() if of is kind] for kind in Kind}
    kept = "; ".join(f"{kind.value}: {', '.join(_short(names))}" for kind, names in kinds.items())
    return f"selective, which keeps {kept}; all else is computed again"


def _short(names: Iterable[str]) -> list[str]:
    short = (name.split("::")[-1].removeprefix("_") if not name.endswith("*") else "all" for name in names)
    return list(dict.fromkeys(short))


@dataclass
class _Result:
    """The result of one operation of the first run, as long as it is to be kept."""

    function: Any
    kind: Kind
    value: Any
    needed: bool
    """Whether it was read by an operation that may save its inputs, so that the second run has to have it."""


@dataclass(frozen=True)
class _Manner:
    """How an operation is treated."""

    kind: Kind | None
    """Why its result is kept. None: it is not."""
    view: bool
    """Whether its result is a view of a tensor that it reads."""
    handed_on: bool
    written: tuple[int, ...]
    """Arguments that it changes."""
    dropout: int | None = None
    """The argument with the probability of a dropout within. None: there is none."""

    def keeps(self, args: Sequence[Any], keywords: Mapping[str, Any]) -> Kind | None:
        """Return why a call's result is kept; None for random numbers, which the second run has to draw again."""
        if self.dropout is not None:
            probability = args[self.dropout] if len(args) > self.dropout else keywords.get("dropout_p", 0.0)
            return None if probability else self.kind
        return self.kind


@final
@dataclass
class Policy:
    """The decisions about operations, each made once and remembered. One policy serves all layers of a model."""

    kept: Mapping[str, Kind] = field(default_factory=lambda: KEPT)
    _manners: dict[Any, _Manner] = field(default_factory=dict)

    def of(self, function: Any) -> _Manner:
        """Return how an operation is treated."""
        manner = self._manners.get(function)
        if manner is None:
            manner = self._manners[function] = self._decided(function)
        return manner

    def _decided(self, function: Any) -> _Manner:
        schema = getattr(function, "_schema", None)
        if schema is None:  # a higher-order operation, known by its name
            return _Manner(self.kept.get(str(function)), view=False, handed_on=False, written=())
        kind = self.kept.get(schema.name) or self.kept.get(schema.name.split("::")[0] + "::*")
        names = [argument.name for argument in schema.arguments]
        aliases = [argument.alias_info for argument in schema.arguments]
        writes = [number for number, alias in enumerate(aliases) if alias is not None and alias.is_write]
        if kind is Kind.COLLECTIVE:  # schemas do not say that they write to their first argument
            writes = [0]
        shares = any(given.alias_info and not given.alias_info.is_write for given in schema.returns)
        return _Manner(
            kind,
            view=shares or schema.name in ("aten::_unsafe_view", "aten::detach"),
            handed_on=schema.name in _HANDED_ON,
            written=tuple(writes),
            dropout=names.index("dropout_p") if "dropout_p" in names else None,
        )


@final
class FirstRun(TorchDispatchMode):
    """The first run: notes the results that are kept, in order, and at the end drops those the second run won't need.

    A product that has only been added to something, or summed over ranks, is in no tensor of the backward pass: the
    last product of a layer, and partial products under tensor parallelism. If the second run comes to such a product,
    it computes the product again. Collectives are always kept: all ranks of a group would have to agree on running one
    again.
    """

    supports_higher_order_operators = True

    def __init__(self, policy: Policy, results: list[_Result]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types there
        self._policy = policy
        self._results = results
        self._origins: dict[int, tuple[_Result, ...]] = {}
        """Results that a tensor is, or is a sum of, by the tensor's storage."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """A compiled part is run again as a whole."""
        return True

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # torch has no types there
        self._origins = {}
        for result in self._results:
            if not result.needed and result.kind is Kind.PRODUCT:
                result.value = None

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        manner = self._policy.of(function)
        if manner.view:
            return function(*args, **keywords)
        if function is torch.ops.aten.copy_.default:
            into = self._origins.get(_place(args[0]), ())
            if into and all(result.kind is Kind.COLLECTIVE and not result.needed for result in into):
                return function(*args, **keywords)  # the wait for gloo's work fills its output
        kind = manner.keeps(args, keywords)
        read = {}
        for tensor in _tensors(args):
            read.update({id(result): result for result in self._origins.get(_place(tensor), ())})
        if kind is not Kind.COLLECTIVE and not manner.handed_on:
            for result in read.values():
                result.needed = True
        for result in read.values():
            result.needed |= result.kind is Kind.COLLECTIVE
        written = [tensor for number in manner.written if number < len(args) for tensor in _tensors(args[number])]
        self.part_from(written, by_collective=kind is Kind.COLLECTIVE)
        out = function(*args, **keywords)
        made = written if kind is Kind.COLLECTIVE else list(_tensors(out))
        if kind is not None:
            value = (
                (isinstance(out, tuple), [tensor.detach() for tensor in written])
                if kind is Kind.COLLECTIVE
                else _detached(out)
            )
            result = _Result(function, kind, value, needed=kind is Kind.FUSED)
            self._results.append(result)
            found: tuple[_Result, ...] = (result,)
        else:
            found = tuple(read.values()) if manner.handed_on else ()
        for tensor in made:
            if found:
                self._origins[_place(tensor)] = found
            else:
                self._origins.pop(_place(tensor), None)
        return out

    def part_from(self, tensors: Iterable[Tensor], *, by_collective: bool = False) -> None:
        """Keep a copy of needed results that are about to be changed, or may be changed once they leave the segment.

        A partial product that a sum over ranks replaces is dropped: the sum is kept.
        """
        for tensor in tensors:
            place = _place(tensor)
            for result in self._origins.get(place, ()):
                if result.kind is Kind.PRODUCT and (by_collective or not result.needed):
                    result.value = None
                else:
                    result.value = _copied(result.value, place)


@final
class SecondRun(TorchDispatchMode):
    """The second run: hands out the kept results in their order. Can be re-entered, as by a backward pass in halves."""

    supports_higher_order_operators = True

    def __init__(self, policy: Policy, results: list[_Result]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types there
        self._policy = policy
        self._results = results
        self._next: Iterator[_Result] = iter(())

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """A compiled part is run again as a whole."""
        return True

    def __enter__(self) -> SecondRun:
        self._next = iter(self._results)
        super().__enter__()  # type: ignore[no-untyped-call]  # torch has no types there
        return self

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        if self._policy.of(function).keeps(args, keywords) is None:
            return function(*args, **keywords)
        result = next(self._next, None)
        if result is None or result.function is not function:
            had = "nothing" if result is None else str(result.function)
            raise ScheduleError(
                f"a layer that is run again for the backward pass computes {function} where it computed {had} the "
                "first time; let it do the same whenever its input is the same, or set "
                "topology.activation_checkpointing_type to disabled"
            )
        if result.value is None:
            return function(*args, **keywords)
        if result.kind is not Kind.COLLECTIVE:
            return _detached(result.value)
        with_tensors, values = result.value
        for tensor, value in zip(_tensors(args[0]), values, strict=True):
            tensor.copy_(value)
        if not function._schema.returns:
            return None
        # The first run's work is not waited for again: gloo's would copy its buffers, which others use by now.
        work = FakeWork().boxed()
        return (args[0], work) if with_tensors else work


def selective_contexts(policy: Policy) -> tuple[FirstRun, SecondRun]:
    """Return the contexts in which a segment is to run the first time, and again."""
    results: list[_Result] = []
    return FirstRun(policy, results), SecondRun(policy, results)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(_mapped(change, item) for item in value) if isinstance(value, (tuple, list)) else value


def _detached(value: Any) -> Any:
    # Without the graph, which holds the segment, which holds the results.
    return _mapped(torch.detach, value)


def _copied(value: Any, place: int) -> Any:
    return _mapped(lambda tensor: tensor.clone() if _place(tensor) == place else tensor, value)
