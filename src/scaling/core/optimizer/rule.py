"""Update rules: how weights follow from gradients, however these are summed and wherever the state is kept."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, final

if TYPE_CHECKING:
    from torch import Tensor

    from scaling.core.optimizer.shard import FlatShard


@dataclass(frozen=True)
class Pace:
    """The size of one update; the tensors are on the device, and the host does not wait for them."""

    rate: float
    """The learning rate."""
    decay: float
    """Weight decay: every weight loses `decay` times `rate` of its value."""
    updates: Tensor
    """Which update this is, from 1 (0-d float32). Steps that were skipped do not count."""
    skip: Tensor
    """1.0 where gradients overflowed somewhere, else 0.0 (0-d float32)."""


class UpdateRule(Protocol):
    """How the weights of a parameter group are updated. A rule keeps no state itself: its state is in slots.

    Rules are chosen by the configuration (`optimizer.method`), or for one group by `ParameterGroup.rule`.
    """

    @property
    def slots(self) -> tuple[str, ...]:
        """Return the names of the state, which starts at zero: one number per weight and slot, cut as the weights are.

        A checkpoint holds each as `optimizer.<slot>.<parameter>`. The name `master` is that of the weights themselves.
        """
        ...

    @property
    def bfloat16_slots(self) -> Container[str]:
        """Return the slots that are kept in bfloat16, rounded to nearest; with float64 weights, none is."""
        ...

    @property
    def whole_matrices(self) -> bool:
        """Return whether the rule needs whole parameters, in `FlatShard.matrices`, or accepts any range of a buffer.

        With ZeRO each parameter then lies in the shard of one data rank.
        """
        ...

    def update(self, shards: Sequence[FlatShard], pace: Pace) -> None:
        """Update `master` and `slots` of the shards, which are of one group and type, by their summed `gradients`.

        A rule that accepts any range is called for one range after another; the number of calls in a step depends on
        the sizes of this rank's shards, so the rule must not communicate. All tensors that it sees are of the master's
        type; gradients and slots that are stored in a narrower type are converted before and rounded again afterwards.

        A rule of whole matrices is called once in a step for every kind of buffer, on all ranks of the axes that cut
        its parameters, and sees gradients and slots as they are stored.

        Both are called also where `pace.skip` is 1.0: weights and slots must then stay as they are, bit for bit,
        although gradients may be nan.
        """
        ...


@final
@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101), in one kernel for all shards."""

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    bfloat16_slots: tuple[str, ...] = ()

    slots: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    """The running means of gradients and of their squares."""
    whole_matrices: ClassVar[bool] = False
    """Every weight is updated by itself."""

    def update(self, shards: Sequence[FlatShard], pace: Pace) -> None:
        """Update the shards with PyTorch's fused kernel, which reads `skip` on the device."""
        import torch  # here, because checking a configuration names the rule, and importing torch takes seconds

        torch._fused_adamw_(
            [shard.master for shard in shards],
            [shard.gradients for shard in shards],
            [shard.slots["exp_avg"] for shard in shards],
            [shard.slots["exp_avg_sq"] for shard in shards],
            [],
            [pace.updates] * len(shards),
            lr=pace.rate,
            beta1=self.beta1,
            beta2=self.beta2,
            weight_decay=pace.decay,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
            found_inf=pace.skip,
        )
