"""Update rules: how weights follow from gradients, whoever summed these and wherever the state is kept."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, final

if TYPE_CHECKING:
    from torch import Tensor

    from scaling.core.optimizer.shard import FlatShard


@dataclass(frozen=True)
class Pace:
    """How far a rule goes in one update; the tensors are on the device, and nobody waits for them."""

    rate: float
    """The learning rate."""
    decay: float
    """Weight decay: every weight loses this times the rate of itself."""
    updates: Tensor
    """Which update this is, from 1 (0-d float32). Steps that were skipped do not count."""
    skip: Tensor
    """1.0 where gradients overflowed somewhere, else 0.0 (0-d float32)."""


class UpdateRule(Protocol):
    """How the weights of a parameter group are updated. It keeps nothing itself: its state lies in slots.

    Rules are chosen by the configuration (`optimizer.method`), or for one group by `ParameterGroup.rule`.
    """

    @property
    def slots(self) -> tuple[str, ...]:
        """Return the names of its state, which starts at zero: one number per weight and slot, cut as the weights are.

        A checkpoint holds each as `optimizer.<slot>.<parameter>`. `master` is the name of the weights themselves.
        """
        ...

    @property
    def bfloat16_slots(self) -> Container[str]:
        """Return which of its slots are kept in bfloat16, rounded to nearest; beside float64 weights none is."""
        ...

    @property
    def whole_matrices(self) -> bool:
        """Return whether it needs whole parameters, in `FlatShard.matrices`, or takes any range of a buffer.

        With ZeRO each parameter then lies in the shard of one data rank.
        """
        ...

    def update(self, shards: Sequence[FlatShard], pace: Pace) -> None:
        """Update `master` and `slots` of the shards, which are of one group and type, by their summed `gradients`.

        A rule that takes any range is called for one range after another, as many times a step as the sizes of this
        rank's shards make it, so it does not communicate. All it sees is of the master's type; gradients and slots that
        are stored in less were converted before and are rounded again afterwards.

        A rule of whole matrices is called once a step for every kind of buffers, on all ranks of the axes that cut its
        parameters alike, and sees gradients and slots as they are stored.

        Both are called with `pace.skip` too: weights and slots must then stay as they are, bit for bit, although
        gradients may be nan.
        """
        ...


@final
@dataclass(frozen=True)
class AdamW:
    """Adam with weight decay apart from the gradient (Loshchilov and Hutter, arXiv:1711.05101), one kernel for all."""

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    bfloat16_slots: tuple[str, ...] = ()

    slots: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    """The running means of gradients and of their squares."""
    whole_matrices: ClassVar[bool] = False
    """Every weight is updated by itself."""

    def update(self, shards: Sequence[FlatShard], pace: Pace) -> None:
        """Update the shards with PyTorch's fused kernel, which looks at `skip` on the device."""
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
