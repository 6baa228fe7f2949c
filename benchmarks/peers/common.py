"""What every peer trains: the shapes of the model, its tokens, and a step of fused AdamW with clipping."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CPU = torch.device("cpu")
ADAMW: dict[str, Any] = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 1e-4}
CLIPPING = 1.0

Step = Callable[[], float]
"""Takes one optimizer step and returns the loss, or 0 on a rank that does not know it."""


@dataclass(frozen=True)
class Job:
    """A model and how it is laid out."""

    layout: str
    """one, data, tensor or pipe."""
    sequences: int
    """Of one step, of all ranks."""
    micro_batches: int
    """Of one step."""
    first_blocks: int
    """On the first of two stages."""
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    sequence: int
    epsilon: float = 1e-5

    def rows(self, world_size: int) -> int:
        """Return the sequences of one micro-batch."""
        return self.sequences // self.micro_batches // (world_size if self.layout == "data" else 1)


def tokens(job: Job, world_size: int) -> tuple[Tensor, Tensor]:
    """Return token ids and targets of a micro-batch, [rows, sequence], the same each time and on each rank."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(job.vocabulary, (job.rows(world_size), job.sequence + 1), generator=generator)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def connect(place: Any) -> None:
    """Join the processes of this side with gloo."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{place.port}", rank=place.rank, world_size=place.world_size
    )


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def fused_adamw(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, fused=True, **ADAMW)


def training(
    loss_of: Callable[[], Tensor], parameters: Iterable[Tensor], optimizer: torch.optim.Optimizer | None = None
) -> Step:
    """Return a step: gradients, clipping by their norm, fused AdamW."""
    trained = list(parameters)
    update = optimizer or fused_adamw(trained)

    def step() -> float:
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIPPING)
        update.step()
        update.zero_grad()
        return float(loss.detach())

    return step


def clip_across_ranks(sharded: list[Tensor], whole: list[Tensor]) -> None:
    """Clip gradients by the norm over all ranks, of which `whole` are held by each rank alike.

    Collective: all ranks.
    """
    square = torch.zeros(())
    for number, gradients in enumerate((sharded, whole)):
        if gradients:
            square += torch.nn.utils.get_total_norm(gradients) ** 2
        if number == 0:
            torch.distributed.all_reduce(square)
    factor = (CLIPPING / (square.sqrt() + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(sharded + whole, factor)
