"""Observe the outputs of modules, and their gradients, in the forward and backward passes of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from scaling.core.collectives import ops, tree
from scaling.core.nn.edit import Edit
from scaling.core.nn.outputs import DescribesOutputs, Output
from scaling.core.statistics.names import ACTIVATION_GRADIENTS, ACTIVATIONS
from scaling.core.topology.layout import Axis
from scaling.core.topology.placement import CUT, SAME, Placement
from scaling.core.topology.topology import Topology

Record = Callable[[str, Tensor], None]
"""Accepts the name of a tensor, and values of it that no other rank records."""

_ROUNDING: Final = 1e-4
"""Allowed difference of an activation's sum between ranks that compute the same, as a share of its magnitudes' sum."""
_CONTAINERS: Final = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass(frozen=True)
class Watched:
    """A module whose outputs are observed."""

    module: nn.Module
    names: tuple[str, ...]
    """A name for each described output: the module's, or one with the output's label in place of its last part."""
    outputs: tuple[Output, ...]


def watched_modules(layers: Iterable[tuple[int, nn.Module]], *, usual: Placement, with_type: bool) -> list[Watched]:
    """Return the modules to observe in some layers, given with their numbers in the model. Pure.

    `usual` is the placement of activations between layers on the model axis.
    """
    found = []
    for number, layer in layers:
        stem = f"layers.{number}" + (f".{type(layer).__name__}" if with_type else "")
        for path, module, outputs in _described(layer, "", {"": (Output(usual),)}):
            name = f"{stem}.{path}" if path else stem
            around = name.rpartition(".")[0] if path else name
            names = tuple(f"{around}.{one.label}" if one.label else name for one in outputs)
            found.append(Watched(module, names, tuple(outputs)))
    return found


def _described(
    module: nn.Module, path: str, known: Mapping[str, Sequence[Output]]
) -> Iterator[tuple[str, nn.Module, Sequence[Output]]]:
    """Yield (path, module, outputs) of a module and all modules within it, except those that are not recorded.

    `known` gives the outputs of all modules below a path; the longest path that fits counts.
    """
    if isinstance(module, DescribesOutputs):
        prefix = f"{path}." if path else ""
        own = module.described_outputs()
        known = {**known, **{(prefix + name if name else path): outputs for name, outputs in own.items()}}
    outputs = known[max((start for start in known if _is_below(path, start)), key=len)]
    if outputs and not isinstance(module, _CONTAINERS):
        yield path, module, outputs
    for name, child in module.named_children():
        if not isinstance(child, Edit):  # an edit acts within its layer's own product
            yield from _described(child, f"{path}.{name}" if path else name, known)


def _is_below(path: str, start: str) -> bool:
    return not start or path == start or path.startswith(f"{start}.")


def usual_placement(topology: Topology) -> Placement:
    """Return the placement of activations between layers on the model axis."""
    return CUT if topology.sequence_parallel else SAME


@final
class ActivationWatch:
    """Hooks that pass the outputs of modules and their gradients to `record`, each value on one rank that holds it.

    The hooks are attached to the modules only between `open` and `close`. Recomputation for the backward pass is not
    recorded again; several tensors that a module returns count together. Where each rank has a part of a gradient, the
    parts are summed over these ranks first. `compares` collects what `differing` needs. The constructor is collective:
    all ranks (groups are made).
    """

    def __init__(
        self,
        watched: Sequence[Watched],
        topology: Topology,
        *,
        names: Iterable[str],
        record: Record,
        compares: bool = False,
    ) -> None:
        self._names = frozenset(names)
        self._watched = [one for one in watched if not self._names.isdisjoint(names_of(one))]
        self._topology = topology
        self._record = record
        self._handles: list[RemovableHandle] = []
        self._groups = _groups(watched, topology)
        self._alike: dict[str, Tensor] = {}
        """Sum and sum of magnitudes of outputs that should be the same on all model ranks, until they are compared."""
        self._compares = compares and topology.group(Axis.MODEL) is not None

    def open(self) -> None:
        """Start to observe."""
        for one in self._watched:
            self._handles.append(one.module.register_forward_hook(partial(self._returned, one)))

    def close(self) -> None:
        """Stop observing. Safe to call twice."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _returned(self, watched: Watched, module: nn.Module, given: Any, returned: Any) -> None:
        if not torch.is_grad_enabled() or _in_backward_pass():
            return
        for tensor in tree.tensors_of(returned):
            if tensor.is_floating_point():
                self._take(ACTIVATIONS, watched, tensor.detach())
                if tensor.requires_grad:
                    tensor.register_hook(_Once(partial(self._take, ACTIVATION_GRADIENTS, watched)))

    def _take(self, kind: str, watched: Watched, tensor: Tensor) -> None:
        names, outputs = watched.names, watched.outputs
        sizes = [tensor.shape[-1] if one.features is None else one.features for one in outputs]
        parts = tensor.split_with_sizes(sizes, dim=-1) if len(outputs) > 1 else [tensor]
        for name, output, part in zip(names, outputs, parts, strict=True):
            if kind + name not in self._names:
                continue
            if self._compares and kind == ACTIVATIONS and output.placement == SAME:
                wide = part.to(torch.float64)
                self._alike[name] = self._alike.get(name, 0.0) + torch.stack([wide.sum(), wide.abs().sum()])
            if kind == ACTIVATION_GRADIENTS and output.placement.gradient_in_parts:
                part = ops.all_reduce(part.clone(), self._groups[output.placement.copies])
            if self._counts(output.placement):
                self._record(kind + name, part)

    def differing(self) -> list[str]:
        """Return the names of observed outputs that differ between model ranks although their placement is `SAME`.

        Collective: the model axis, where the watch compares. Waits for the device.
        """
        group, alike = self._topology.group(Axis.MODEL), self._alike
        self._alike = {}
        if group is None or not alike:
            return []
        sums, magnitudes = torch.stack([alike[name] for name in sorted(alike)]).unbind(1)
        highest = ops.all_reduce(torch.stack([sums, -sums, magnitudes]), group, maximum=True)
        differ = highest[0] + highest[1] > _ROUNDING * highest[2]
        return [ACTIVATIONS + name for name, is_other in zip(sorted(alike), differ.tolist(), strict=True) if is_other]

    def _counts(self, placement: Placement) -> bool:
        index, size = self._topology.index(Axis.MODEL), self._topology.size(Axis.MODEL)
        return index == placement.holders(index, size)[0]


@final
class _Once:
    """A hook on a gradient that acts only the first time: a backward pass in two halves calls it twice."""

    def __init__(self, act: Callable[[Tensor], None]) -> None:
        self._act: Callable[[Tensor], None] | None = act

    def __call__(self, gradient: Tensor) -> None:
        act, self._act = self._act, None
        if act is not None:
            act(gradient.detach())


def names_of(watched: Watched) -> list[str]:
    """Return the names of a module's outputs and of their gradients."""
    return [kind + name for kind in (ACTIVATIONS, ACTIVATION_GRADIENTS) for name in watched.names]


def _groups(watched: Iterable[Watched], topology: Topology) -> dict[int | None, ops.Group]:
    """Return the groups of ranks that share activations, by the number of ranks. Collective: all ranks."""
    placements = [output.placement for one in watched for output in one.outputs]
    mine = sorted({one.copies for one in placements if one.gradient_in_parts and one.copies is not None})
    everyone: list[int] = topology.agree("shared activations", mine, _sorted_union)
    return {
        copies: topology.holders_group(Axis.MODEL, Placement(copies=copies, gradient_in_parts=True))
        for copies in everyone
    }


def _sorted_union(of_ranks: Sequence[Sequence[int]]) -> list[int]:
    return sorted(set().union(*of_ranks))


def _in_backward_pass() -> bool:
    """Return whether this thread runs a backward pass, in which modules run only for recomputation."""
    return torch._C._current_graph_task_id() != -1
