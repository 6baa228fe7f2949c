"""LayerSpec: everything needed to build one pipeline layer, nothing built yet."""

from __future__ import annotations

import copy
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

from torch import nn
from typing_extensions import Self

from scaling.core.errors import ConfigError

Edit = Callable[[nn.Module], nn.Module]


class LayerSpec:
    """A layer of the pipeline: what to call to build it, and with which arguments.

    Only the rank on whose stage the layer lies builds it. `cost` is its time relative to the other layers, for the
    balanced partition; `name` appears in logs and errors. A layer that itself takes an argument `cost` or `name` gets
    it through `functools.partial`. The built module has one `forward(x) -> y`; x and y are tensors, or tuples, lists,
    dicts or dataclasses of them. It must not change x: an input that a stage receives, or keeps for recomputation,
    cannot be changed in place.
    """

    def __init__(
        self, layer: Callable[..., nn.Module], *args: Any, cost: float = 1.0, name: str | None = None, **kwargs: Any
    ) -> None:
        self.layer = layer
        self.args = args
        self.kwargs = kwargs
        self.cost = cost
        self.name = _name_of(layer) if name is None else name
        self.edits: tuple[Edit, ...] = ()
        if not callable(layer):
            raise ConfigError(f"a layer spec needs a module class or a function that builds one, not {layer!r}")
        if not math.isfinite(cost) or cost < 0:
            raise ConfigError(f"layer {self.name} has cost {cost}; a cost is a finite number of at least 0")

    @final
    def then(self, edit: Edit) -> Self:
        """Return a spec whose layer goes through `edit` after it is built: adapters, wrappers.

        `edit` takes the module and returns it, changed or wrapped. Edits run in the order in which they are added.
        Parameters get their global names afterwards: those of a wrapped layer have other names than before, so other
        initial values and another place in checkpoints. Compile a layer in place, `layer.compile()`, not with
        `torch.compile(layer)`, which wraps it and is refused.
        """
        edited = copy.copy(self)
        edited.edits = (*self.edits, edit)
        return edited

    @final
    def build(self) -> nn.Module:
        """Build the layer and apply the edits."""
        module = self._checked(self.layer(*self.args, **self.kwargs), maker=self.layer)
        for edit in self.edits:
            module = self._checked(edit(module), maker=edit)
        return module

    def _checked(self, made: Any, *, maker: Callable[..., Any]) -> nn.Module:
        """Return what `maker` made if it is a module, and none of it is wrapped by torch.compile."""
        if not isinstance(made, nn.Module):
            what = f"returned a {type(made).__name__} instead of a module"
            raise ConfigError(f"layer {self.name}: {_name_of(maker)} {what}")
        dynamo = sys.modules.get("torch._dynamo")  # seconds to import, and nothing is compiled before it is
        if dynamo is not None and any(isinstance(part, dynamo.OptimizedModule) for part in made.modules()):
            raise ConfigError(
                f"layer {self.name}: {_name_of(maker)} returned a module that torch.compile has wrapped, which renames "
                "its parameters (_orig_mod.), so that they start from other values and have other names in "
                "checkpoints; compile in place, which leaves the names alone: layer.compile() in an edit that returns "
                "the layer"
            )
        return made

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"


@final
class TiedLayerSpec(LayerSpec):
    """A layer that shares parameters with the other layers of the same `tie`, wherever in the pipeline they are.

    `tied_parameters` are dotted names within the layer: the first name of every spec of a tie is one parameter, the
    second another, and so on.
    """

    def __init__(
        self, layer: Callable[..., nn.Module], *args: Any, tie: str, tied_parameters: Sequence[str], **kwargs: Any
    ) -> None:
        super().__init__(layer, *args, **kwargs)
        self.tie = tie
        self.tied_parameters = (tied_parameters,) if isinstance(tied_parameters, str) else tuple(tied_parameters)
        if not tie:
            raise ConfigError(f"the tie of layer {self.name} needs a name")
        if not self.tied_parameters or not all(self.tied_parameters):
            raise ConfigError(f"tie {tie!r} of layer {self.name} needs the names of the parameters to share")
        for name, count in Counter(self.tied_parameters).items():
            if count > 1:
                raise ConfigError(f"tie {tie!r} of layer {self.name} names parameter {name!r} {count} times")
        # The first edit, so that a wrong name is found where the layer is built, before anything wraps it.
        self.edits = (self._check,)

    @property
    def _check(self) -> Edit:
        return partial(_check_names, tie=self.tie, names=self.tied_parameters, layer=self.name)

    def also_tying(self, *names: str) -> Self:
        """Return a spec that shares further parameters with the tie: ones that earlier edits have added."""
        more = copy.copy(self)
        more.tied_parameters = (*self.tied_parameters, *names)
        more.edits = (*self.edits, more._check)
        return more


def check_ties(specs: Sequence[LayerSpec]) -> None:
    """Refuse a tie that joins nothing, and layers of one tie that share different numbers of parameters."""
    members: dict[str, dict[int, TiedLayerSpec]] = {}
    for index, spec in enumerate(specs):
        if isinstance(spec, TiedLayerSpec):
            members.setdefault(spec.tie, {})[index] = spec
    for tie, layers in members.items():
        listed = ", ".join(
            f"layer {index} ({spec.name}) {list(spec.tied_parameters)}" for index, spec in layers.items()
        )
        if len(layers) == 1:
            raise ConfigError(
                f"the tie {tie!r} of {listed} joins it to no other layer; give the other layer the same tie, "
                f"or use a LayerSpec"
            )
        if len({len(spec.tied_parameters) for spec in layers.values()}) > 1:
            raise ConfigError(f"the layers of tie {tie!r} share different numbers of parameters: {listed}")


def _check_names(module: nn.Module, *, tie: str, names: Sequence[str], layer: str) -> nn.Module:
    """Return `module` if it has all parameters named."""
    known = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    for name in names:
        if name not in known:
            has = ", ".join(known) or "none"
            raise ConfigError(f"tie {tie!r}: layer {layer} has no parameter {name!r}; its parameters are: {has}")
    return module


def _name_of(function: Callable[..., Any]) -> str:
    """Return a readable name of a class, function or partial."""
    if isinstance(function, partial):
        return _name_of(function.func)
    name: str = getattr(function, "__name__", type(function).__name__)
    return name
