"""TensorStatisticsRecorder: collect each rank's parts of tensors, and compute statistics of the whole tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from scaling.core.collectives import ops
from scaling.core.statistics.config import Statistic
from scaling.core.statistics.names import GRADIENTS, metric_names
from scaling.core.statistics.order import QUANTILES, ordered_statistics
from scaling.core.statistics.sums import FORMULAS, add_part, columns_of, columns_scaled, empty_sums
from scaling.core.topology.topology import Topology


@final
class TensorStatisticsRecorder:
    """A recorder of parts of tensors, in any order and number, that merges the parts of all ranks.

    Each value must be recorded on one rank only. `statistics` gives the statistics of each tensor by its name, the
    same on all ranks.
    """

    def __init__(self, statistics: Mapping[str, Sequence[Statistic]], topology: Topology) -> None:
        self.statistics = statistics
        self._topology = topology
        self._rows = {name: row for row, name in enumerate(statistics)}
        self._columns = [columns_of(of) for of in statistics.values()]
        self._ordered = {
            name: own for name, of in statistics.items() if (own := tuple(s for s in of if s in QUANTILES))
        }
        self._numbers = metric_names(statistics)
        gradients = [name.startswith(GRADIENTS) for name in statistics]
        self._is_gradient = torch.tensor(gradients, dtype=torch.bool, device=topology.device)
        self._places = {statistic: self._places_of(statistic) for statistic in FORMULAS}
        self._forget()

    def _places_of(self, statistic: Statistic) -> tuple[Tensor, Tensor]:
        """Return the places of a statistic among the numbers, and the rows it is computed from, on the device."""
        numbers = [number for number, (_, one) in enumerate(self._numbers) if one is statistic]
        rows = [self._rows[self._numbers[number][0]] for number in numbers]
        at, of = torch.tensor([numbers, rows], dtype=torch.int64, device=self._topology.device)
        return at, of

    @property
    def names(self) -> list[str]:
        """Return the name of each recorded number."""
        return [f"{name}/{statistic.value}" for name, statistic in self._numbers]

    @property
    def seen(self) -> list[str]:
        """Return the names of the tensors of which this rank has recorded parts since the last `merged`."""
        return sorted(self._seen)

    def narrowed(self, names: Sequence[str]) -> TensorStatisticsRecorder:
        """Return a recorder for some of the tensors, with their parts recorded so far."""
        other = TensorStatisticsRecorder({name: self.statistics[name] for name in names}, self._topology)
        rows = [self._rows[name] for name in other.statistics]
        other._sums, other._maxima = self._sums[rows], self._maxima[rows]
        other._kept = {name: self._kept[name] for name in other._kept}
        other._seen = self._seen & other._rows.keys()
        return other

    def _forget(self) -> None:
        self._sums, self._maxima = empty_sums(len(self._rows), self._topology.device)
        self._kept: dict[str, list[Tensor]] = {name: [] for name in self._ordered}
        self._seen: set[str] = set()

    @torch.no_grad()
    def record(self, name: str, part: Tensor) -> None:
        """Record a part of a tensor, of any shape and type, that no other rank records. Never waits for the device."""
        if (row := self._rows.get(name)) is None:
            return
        self._seen.add(name)
        add_part(self._sums[row], self._maxima[row], part, self._columns[row])
        if name in self._kept:
            self._kept[name].append(part.detach().flatten().to(torch.float64, copy=True))

    @torch.no_grad()
    def merged(self, gradient_factor: Tensor) -> Tensor:
        """Return a number for each of `names`, float64 on the device and the same on all ranks, and forget all parts.

        Gradients are the recorded values times `gradient_factor` (0-d). The number is NaN for a tensor that no rank
        has recorded. Collective: all ranks. Two all-reduces, of 12 and 4 numbers for each tensor; for statistics that
        depend on the order of elements, each tensor is also gathered on rank 0 and the results are broadcast.
        """
        world = self._topology.world
        sums, maxima = ops.all_reduce(self._sums, world), ops.all_reduce(self._maxima, world, maximum=True)
        factors = torch.where(self._is_gradient, gradient_factor.to(torch.float64), 1.0)
        columns = columns_scaled(sums, maxima, factors)
        found = torch.full((len(self._numbers),), torch.nan, dtype=torch.float64, device=self._topology.device)
        for statistic, formula in FORMULAS.items():
            at, rows = self._places[statistic]
            if len(at):
                of = {name: columns[name][rows] for name in {*formula.needs, "count"}}
                found[at] = torch.where(of["count"] > 0, formula.of(of), torch.nan)
        if self._ordered:
            self._add_ordered(found, factors)
        self._forget()
        return found

    def _add_ordered(self, found: Tensor, factors: Tensor) -> None:
        """Fill in the statistics that follow from the order of elements. Collective: all ranks."""
        topology = self._topology
        mine = [sum(part.numel() for part in parts) for parts in self._kept.values()]
        sizes: list[list[int]] = topology.agree("sizes of gathered tensors", mine, list)
        places = {number: place for place, number in enumerate(self._numbers)}
        for index, (name, statistics) in enumerate(self._ordered.items()):
            of_ranks = [of_rank[index] for of_rank in sizes]
            if not sum(of_ranks):
                continue
            padded = torch.zeros(max(of_ranks), dtype=torch.float64, device=topology.device)
            if parts := self._kept[name]:
                padded[: of_ranks[topology.rank]] = torch.cat(parts)
            stacked = ops.gather(padded, topology.world, to=0)
            if stacked is not None:
                whole = torch.cat([own[:size] for own, size in zip(stacked, of_ranks, strict=True)])
                degrees = [0.0 if one is Statistic.MAX_SPARSITY else 1.0 for one in statistics]
                scale = factors[self._rows[name]] ** torch.tensor(degrees, dtype=torch.float64, device=topology.device)
                found[[places[name, one] for one in statistics]] = ordered_statistics(whole, statistics) * scale
        ops.broadcast(found, topology.world, source=0)
