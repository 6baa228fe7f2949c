"""The kernels for the attention of each layer of a plan: chosen for the whole model, the same on all ranks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from scaling.core import (
    AttentionKernel,
    AttentionNeeds,
    MaskedSoftmaxKernel,
    Scores,
    choose_kernel,
    kernel_order,
)
from scaling.transformer.plan.attention import AttentionPlan
from scaling.transformer.plan.model import Arithmetic, ModelPlan


@dataclass(frozen=True)
class Choice:
    """The kernels of a layer: while it trains, and otherwise. They differ where probabilities are dropped."""

    training: AttentionKernel
    otherwise: AttentionKernel

    def __str__(self) -> str:
        """Return the choice in the words that users see."""
        if self.training is self.otherwise:
            return self.training.value
        return f"{self.training.value} while probabilities are dropped, else {self.otherwise.value}"


def scores_of(part: AttentionPlan) -> Scores:
    """Return the description of a layer's scores."""
    return Scores(
        scale=part.scale, causal=part.causal, window=part.window, cap=part.cap, windowed_heads=part.windowed_heads
    )


def choices(plan: ModelPlan, device: str, found: Collection[AttentionKernel]) -> Mapping[AttentionPlan, Choice]:
    """Return the kernels of each kind of layer on a type of device; `ConfigError` where none can compute it.

    `found`: the kernels that this machine has in addition to those that every machine has.
    """
    return {part: _choice(part, plan.arithmetic, device, found) for part in plan.parts(AttentionPlan)}


def needs_of(part: AttentionPlan, precision: str, device: str, *, dropout: bool) -> AttentionNeeds:
    """Return the requirements of a layer for a kernel; rows may always be packed."""
    return AttentionNeeds.of(
        scores_of(part),
        grouped=part.heads != part.kv_heads,
        packed=True,
        dropout=dropout,
        head_size=part.head_size,
        dtype=precision,
        device=device,
    )


def _choice(part: AttentionPlan, arithmetic: Arithmetic, device: str, found: Collection[AttentionKernel]) -> Choice:
    order = kernel_order(MaskedSoftmaxKernel(arithmetic.kernel))
    training, otherwise = (
        choose_kernel(needs_of(part, arithmetic.precision, device, dropout=dropout), order, found=found)
        for dropout in (part.dropout > 0, False)
    )
    return Choice(training, otherwise)


def told_of_linears(plan: ModelPlan, device: str) -> str:
    """Return the arithmetic of the linear layers, in one line."""
    arithmetic = plan.arithmetic
    if not arithmetic.float8.recipes:
        return arithmetic.precision
    how = "torchao" if device == "cuda" else "emulated, which is slow"
    return f"{arithmetic.float8} ({how}); others {arithmetic.precision}"


def told(plan: ModelPlan, device: str, found: Collection[AttentionKernel]) -> str:
    """Return the choice in one line; where layers differ, with the number of layers of each kernel."""
    chosen = choices(plan, device, found)
    layers: dict[str, int] = {}
    for count, layer in plan.runs:
        for _, part in layer.parts:
            if isinstance(part, AttentionPlan):
                name = str(chosen[part])
                layers[name] = layers.get(name, 0) + count
    if len(layers) == 1:
        return next(iter(layers))
    return ", ".join(f"{name} in {count} {'layer' if count == 1 else 'layers'}" for name, count in layers.items())


def told_of_kernels(plan: ModelPlan, device: str, found: Collection[AttentionKernel]) -> str:
    """Return the line on the kernels chosen for this device that a training begins with: no others are tried."""
    return f"kernels: attention {told(plan, device, found)}; linear layers {told_of_linears(plan, device)}"
