"""Optimizer: gradients in, one update of this rank's shards on the device, weights out (ZeRO-1)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol, final

import torch
from torch import Tensor, nn

from scaling.core.boxes import GlobalTensor
from scaling.core.errors import CheckpointError, ConfigError
from scaling.core.optimizer.clip import squared_norm
from scaling.core.optimizer.config import OptimizerConfig, vanishing_constants
from scaling.core.optimizer.flat_buffer import BufferKind, build_buffers, left_out
from scaling.core.optimizer.grad_sync import GradientSync
from scaling.core.optimizer.groups import ParameterGroup
from scaling.core.optimizer.loss_scaler import LossScaler, scaler_state_problems
from scaling.core.optimizer.lr_schedule import LearningRateScheduler
from scaling.core.optimizer.rule import Pace
from scaling.core.optimizer.shard import FlatShard, make_shard
from scaling.core.optimizer.update import ChunkedUpdate, scratch_for
from scaling.core.storage.json_values import is_count
from scaling.core.topology.placement import Placements
from scaling.core.topology.topology import Topology

MASTERS: Final = "optimizer.master."
"""Prefix of the names of the float32 copies of half-precision weights in a checkpoint."""


class Model(Protocol):
    """The part of a model that the optimizer needs; `ParallelModule` has it."""

    micro_batches: int

    def uses(self) -> dict[nn.Parameter, int]:
        """Return how many stages of this rank hold each parameter."""
        ...


@dataclass(frozen=True)
class StepReport:
    """Results of one optimizer step: device scalars (0-d float64), for which the host has not waited, and the rates."""

    global_grad_norm: Tensor
    overflow: Tensor
    """1.0 where the gradients were not finite and the step was skipped."""
    loss_scale: Tensor
    learning_rates: Mapping[str, float]


GradientObserver = Callable[[Iterator[GlobalTensor], Tensor], None]
"""Receives this rank's parts of a step's summed gradients, as views, and the factor (0-d, on the device) that makes
them gradients of the mean loss."""


@final
class Optimizer:
    """An update rule for each group over flat shards; with `zero`, its state is sharded over the data axis.

    ZeRO stage 1 (Rajbhandari et al., arXiv:1910.02054): gradients are reduce-scattered, each data rank updates its
    slice and the weights are all-gathered; without `zero` gradients are all-reduced and every data rank updates
    everything. Weights in half precision have float32 masters. All ranks must construct it; parameters then live in its
    buffers. Groups without a rule of their own use that of the configuration.

    `usual_weight` is the usual weight of a global batch in the loss (its number of tokens): backward passes are scaled
    by one over it, which keeps float16 in range, and `step` corrects for the actual weight.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        groups: Sequence[ParameterGroup],
        topology: Topology,
        *,
        module: Model,
        usual_weight: float = 1.0,
    ) -> None:
        self.config = config
        self.topology = topology
        self.groups = tuple(groups)
        self.observer: GradientObserver | None = None
        """Sees each step's gradients after they have been summed over ranks and before they are clipped."""
        self._schedules = [LearningRateScheduler(group.learning_rate_scheduler) for group in groups]
        rule = config.rule()
        self._rules = [group.rule or rule for group in groups]
        self._buffers = build_buffers(
            [group.parameters for group in groups],
            topology.layout,
            bucket_size=config.allreduce_bucket_size,
            whole=[number for number, rule in enumerate(self._rules) if config.zero and rule.whole_matrices],
            grad_dtype=getattr(torch, config.grad_dtype),
        )
        uses = module.uses()
        self._sync = GradientSync(
            self._buffers,
            topology,
            contributions={parameter: count * module.micro_batches for parameter, count in uses.items()},
            zero=config.zero,
        )
        self._shards = [
            make_shard(buffer, owned, self._rules[buffer.kind.group], self._placements(number), topology)
            for number, buffer in enumerate(self._buffers)
            for owned in self._sync.owned(number)
        ]
        # Gradients pass through frozen parameters too. Ranks must agree whether *any* of them has float16 parameters:
        # the scale multiplies the loss on the last stage only.
        half = any(parameter.dtype == torch.float16 for parameter in uses)
        scaled = config.loss_scaler.enabled(float16=topology.agree("float16", half, any))
        self.loss_scaler = LossScaler(config.loss_scaler, topology.device, enabled=scaled)
        self._usual_weight = usual_weight
        if problems := list(vanishing_constants(config, precision="float32")):  # the same on all ranks
            single = any(shard.master.dtype == torch.float32 for shard in self._shards)
            if topology.agree("float32", single, any):
                raise ConfigError(problems)
        self._counted = [
            shard for shard in self._shards if shard.placements.stands_for(topology.layout, topology.coordinate)
        ]
        alike: dict[BufferKind, list[FlatShard]] = {}
        for shard in self._shards:
            alike.setdefault(shard.buffer.kind, []).append(shard)
        scratch = scratch_for(self._shards)
        self._updaters = {
            kind: ChunkedUpdate(shards, self._rules[kind.group], scratch) for kind, shards in alike.items()
        }
        self._of_others = [
            buffer.gradients[left]
            for number, buffer in enumerate(self._buffers)
            for left in left_out(self._sync.owned(number), len(buffer.gradients))
        ]
        """Gradients of ranges that other data ranks update; those of this rank's ranges are cleared with the update."""
        self._updates = torch.zeros((), dtype=torch.float64, device=topology.device)
        """Updates so far, counted also on ranks that have nothing to train: a checkpoint stores the count of rank 0."""

    def _placements(self, number: int) -> Placements:
        placements = self._buffers[number].kind.placements
        cut = placements.batch_axes(self.topology.layout) if self._sync.sharded(number) else ()
        return placements.cut(cut)

    @property
    def gradient_scale(self) -> Tensor:
        """Return the factor applied to loss sums before they are differentiated, 0-d float64 on the device."""
        return self.loss_scaler.scale / self._usual_weight

    def step(self, step: int, *, weight: Tensor) -> StepReport:
        """Update the weights with the gradients of one global batch and clear the gradients.

        `step` counts from 1; it fixes the learning rates. `weight` is the weight of the whole global batch. Collective:
        all ranks. Communicates the gradients over the data axis (those that the backward pass has not sent already),
        one number over the world for the norm, and with ZeRO the weights over the data axis. The host waits for
        nothing. If gradients are not finite on any rank, all ranks skip the update.
        """
        self._sync.finish()
        squared = squared_norm([shard.gradients for shard in self._counted], self.topology)
        unscale = torch.where(weight > 0, 1.0 / (self.gradient_scale * weight.clamp_min(1e-30)), 0.0)
        norm = squared.sqrt() * unscale
        if self.observer is not None:
            self.observer(self._boxed("", lambda shard: shard.gradients), unscale)
        overflow = (~torch.isfinite(squared)).to(torch.float64)
        coefficient = unscale
        if self.config.gradient_clipping > 0:
            coefficient = unscale * (self.config.gradient_clipping / norm).clamp_max(1.0)
        rates = {
            group.name: schedule.learning_rate(step)
            for group, schedule in zip(self.groups, self._schedules, strict=True)
        }
        if self.groups:
            self._update(coefficient, overflow, rates)
        self._sync.gather_weights()
        if self._of_others:
            torch._foreach_zero_(self._of_others)
        scale = self.loss_scaler.scale
        self.loss_scaler.update(overflow)
        return StepReport(norm, overflow, scale, rates)

    def _update(self, coefficient: Tensor, overflow: Tensor, rates: Mapping[str, float]) -> None:
        updates, skip = (self._updates + 1).to(torch.float32), overflow.to(torch.float32)
        for kind, updater in self._updaters.items():
            group = self.groups[kind.group]
            # lr_scale changes the learning rate and leaves the decay as it is.
            rate, decay = rates[group.name] * kind.lr_scale, group.decay_coefficient / kind.lr_scale
            updater.update(coefficient, Pace(rate, decay, updates, skip))
        self._updates += 1 - overflow

    def refresh(self) -> None:
        """Copy the present weights to the masters (after loading weights without optimizer state)."""
        for shard in self._shards:
            if shard.separate:
                shard.master.copy_(shard.weights)

    def global_tensors(self) -> Iterator[GlobalTensor]:
        """Yield this rank's parts of the optimizer's tensors: `optimizer.<slot>.<parameter>`, as views.

        Slots: those of the rules, and `master` where the weights are narrower than float32.
        """
        for slot in dict.fromkeys(("master", *(slot for rule in self._rules for slot in rule.slots))):
            yield from self._boxed(f"optimizer.{slot}.", partial(_stored, slot))

    def _boxed(self, prefix: str, values_of: Callable[[FlatShard], Tensor | None]) -> Iterator[GlobalTensor]:
        """Yield the global tensors that lie in one vector per shard; a shard without one has no part in them."""
        found: dict[str, GlobalTensor] = {}
        for shard in self._shards:
            if (values := values_of(shard)) is None:
                continue
            for piece, parts in shard.buffer.boxes(shard.owned, values):
                if parts:
                    former = piece.former and replace(piece.former, key=prefix + piece.former.key)
                    tensor = found.setdefault(
                        piece.key,
                        GlobalTensor(
                            prefix + piece.key, piece.shape, owned=self._owns(shard, piece.key), former=former
                        ),
                    )
                    tensor.parts.extend(parts)
        yield from found.values()

    def _owns(self, shard: FlatShard, key: str) -> bool:
        topology = self.topology
        return shard.placements.stands_for(topology.layout, topology.coordinate, spread=zlib.crc32(key.encode()))

    def state(self) -> dict[str, Any]:
        """Return the state outside parameter tensors: the update count and the loss scaler (reads the device)."""
        return {"updates": int(self._updates.item()), "loss_scaler": self.loss_scaler.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state returned by `state`; the tensors are loaded through `global_tensors`."""
        if problems := optimizer_state_problems(state):
            raise CheckpointError(
                f"the checkpoint's optimizer state is malformed ({'; '.join(problems)}); load another one"
            )
        self._updates.fill_(state["updates"])
        self.loss_scaler.restore(state["loss_scaler"])

    def close(self) -> None:
        """Detach from the parameters."""
        self._sync.close()


def optimizer_state_problems(stored: Any) -> list[str]:
    """Return why a stored value is not a valid result of `Optimizer.state`. Pure."""
    if not isinstance(stored, Mapping):
        return [f"optimizer is {stored!r:.100}, not a table"]
    found = scaler_state_problems(stored.get("loss_scaler"))
    if not is_count(updates := stored.get("updates")):
        found.append(f"optimizer.updates is {updates!r:.100}, not a whole number from 0 to 2^62")
    return found


def _stored(slot: str, shard: FlatShard) -> Tensor | None:
    return shard.stored.get(slot)
