"""Module: a module that an adapter can name in a model of a family, and the modules of ours that it consists of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias, final

from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.hf.family import Family
from scaling.transformer.hf.tensors import Rows, TensorMap

Role: TypeAlias = Literal["linear", "embedding", "head", "positions", "norm"]


@final
@dataclass(frozen=True)
class Part:
    """A module of ours."""

    name: str
    """Name in the model, such as `layers.3.self_attention.query`."""
    outputs: int
    rows: Rows | None
    """Where its outputs lie among those of their module; None: they are all of them."""
    short: str
    """Name in configurations, independent of the layer: `query`, `embedding`, `head`."""


@final
@dataclass(frozen=True)
class Module:
    """A module of theirs with a weight."""

    name: str
    """Name in the present class, in memory."""
    role: Role
    inputs: int
    """Number of input features; for an embedding, of tokens. A norm has none."""
    outputs: int
    parts: tuple[Part, ...]
    """Together they have the outputs of the module, each once."""
    tensors: tuple[TensorMap, ...]
    """Weight and bias, as far as files hold them: a tied head has none."""
    former: str | None = None
    """Name in files and in former classes, where it differs."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return all names of the module."""
        return (self.name,) if self.former is None else (self.name, self.former)

    @property
    def transposed(self) -> bool:
        """Return whether their file holds the transpose of the weight."""
        return any(tensor.transposed for tensor in self.tensors)

    def tensor(self, kind: str) -> TensorMap | None:
        """Return the map of its `weight` or `bias`."""
        return next((one for one in self.tensors if one.name.endswith(f".{kind}")), None)


@final
@dataclass(frozen=True)
class Modules:
    """All modules of a model."""

    model_type: str
    all: tuple[Module, ...]
    tied: bool
    """Whether the head is the embedding."""
    heads: int
    layers: int
    """Number of blocks."""
    prompt_scale: float = 1.0
    """Factor that the model applies to a prompt of theirs."""

    def __iter__(self) -> Iterator[Module]:
        return iter(self.all)

    def by_role(self, role: Role) -> Module | None:
        """Return the only module of a role."""
        return next((module for module in self.all if module.role == role), None)

    @cached_property
    def short(self) -> Mapping[str, str]:
        """Return the short name of each module of ours."""
        return {part.name: part.short for module in self.all for part in module.parts}

    def of(self, names: Iterable[str]) -> list[Module]:
        """Return the modules that contain any of our modules with these names."""
        wanted = set(names)
        return [module for module in self.all if any(part.name in wanted for part in module.parts)]


def modules_of(family: Family, architecture: TransformerArchitectureConfig) -> Modules:
    """Return the modules of a model of a family, without any adapter."""
    plan = plan_of(architecture)
    found: dict[str, list[TensorMap]] = {}
    for tensor in family.tensors(plan):
        found.setdefault(tensor.name.rpartition(".")[0], []).append(tensor)
    table = family.table
    roles: dict[str, Role] = {table.embedding.theirs: "embedding", table.head.theirs: "head"}
    roles |= {row.theirs: "positions" for row in table.positions}
    modules = [_module(family, name, tensors, roles.get(name)) for name, tensors in found.items()]
    tied = architecture.weight_tying and architecture.lm_head
    if tied:
        embedding = next(module for module in modules if module.role == "embedding")
        part = Part(f"layers.{plan.num_layers - 1}.embedding", embedding.inputs, None, "head")
        name = family.in_memory(table.head.theirs)
        former = table.head.theirs if name != table.head.theirs else None
        modules.append(Module(name, "head", embedding.outputs, embedding.inputs, (part,), (), former))
    scale = 1.0 if family.scales_embedding else architecture.embedding_scale
    heads, layers = architecture.num_attention_heads, architecture.num_layers
    return Modules(family.model_type, tuple(modules), tied, heads, layers, scale)


def _module(family: Family, name: str, tensors: Sequence[TensorMap], role: Role | None) -> Module:
    first = tensors[0]
    shape = first.shape[::-1] if first.transposed else first.shape
    if role is None:
        role = "norm" if len(shape) == 1 else "linear"
    is_table = role in ("embedding", "positions")
    inputs, outputs = (shape if is_table else shape[::-1]) if len(shape) == 2 else (0, shape[0])
    parts = tuple(
        Part(_module_of(source.key), outputs if is_table else source.shape[0], source.rows, _short(source.key, role))
        for source in first.sources
    )
    present = family.in_memory(name)
    return Module(present, role, inputs, outputs, parts, tuple(tensors), name if present != name else None)


def _module_of(key: str) -> str:
    return key.rpartition(".")[0]


def _short(key: str, role: Role) -> str:
    return role if role in ("embedding", "head") else _module_of(key).rpartition(".")[2]
