"""Choice of the attention kernel: a table of abilities, and the first kernel that can do what a layer needs. Pure.

Without torch: types and devices are given by the names that torch has for them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from scaling.core.errors import ConfigError
from scaling.core.nn.config import MaskedSoftmaxKernel
from scaling.core.nn.scores import Scores

Feature = Literal[
    "causal", "bidirectional", "packed rows", "grouped heads", "a window", "a window for some heads", "a cap", "dropout"
]
"""A feature that a layer may need from a kernel."""

USUAL: frozenset[Feature] = frozenset(
    ("causal", "bidirectional", "packed rows", "grouped heads", "a window", "a window for some heads")
)
"""The features of all kernels. A window for some heads takes two calls: one for these heads, one for the others."""


class AttentionKernel(str, Enum):
    """The kernels that compute attention, by the names that messages use."""

    SCALED_DOT_PRODUCT = "scaled-dot-product (PyTorch)"
    VARIABLE_LENGTH = "varlen (PyTorch)"
    FLEX = "flex (PyTorch)"
    FLASH_ATTN = "flash-attn"
    SPELLED_OUT = "spelled-out"


@dataclass(frozen=True, kw_only=True)
class AttentionNeeds:
    """The needs of a layer as a whole, independent of the layout, so that all ranks choose the same kernel."""

    features: frozenset[Feature]
    head_size: int
    dtype: str
    device: str

    @classmethod
    def of(
        cls,
        scores: Scores,
        *,
        grouped: bool,
        packed: bool,
        dropout: bool,
        head_size: int,
        dtype: str,
        device: str,
    ) -> AttentionNeeds:
        """Return the needs of `scores`, for heads grouped or not, with or without dropout of the probabilities."""
        asked: Mapping[Feature, bool] = {
            "causal": scores.causal,
            "bidirectional": not scores.causal,
            "packed rows": packed,
            "grouped heads": grouped,
            "a window": scores.window is not None,
            "a window for some heads": scores.windowed_heads is not None,
            "a cap": scores.cap is not None,
            "dropout": dropout,
        }
        features = frozenset(feature for feature, is_asked in asked.items() if is_asked)
        return cls(features=features, head_size=head_size, dtype=dtype, device=device)

    def __str__(self) -> str:
        """Return the needs as part of a message."""
        features = ", ".join(sorted(self.features))
        return f"attention ({features}; heads of {self.head_size} features, {self.dtype}, on {self.device})"


@dataclass(frozen=True, kw_only=True)
class KernelAbilities:
    """The abilities of a kernel. An empty tuple means no restriction."""

    features: frozenset[Feature]
    devices: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    head_sizes: range | None = None
    needs: str = ""
    """What the kernel requires of the machine (`attention_fused.find_kernels`), in words."""


KERNELS: Mapping[AttentionKernel, KernelAbilities] = {
    AttentionKernel.SCALED_DOT_PRODUCT: KernelAbilities(features=USUAL),
    AttentionKernel.VARIABLE_LENGTH: KernelAbilities(
        features=USUAL,
        devices=("cuda",),
        dtypes=("bfloat16", "float16"),
        head_sizes=range(8, 257, 8),
        needs="an NVIDIA GPU of compute capability 8.0 or later, and windows in torch.nn.attention.varlen",
    ),
    # On a CPU, flex attention has no gradient, and without a compiler it would hold all scores, as spelled-out does.
    AttentionKernel.FLEX: KernelAbilities(
        features=USUAL | {"a cap"},
        devices=("cuda",),
        dtypes=("bfloat16", "float16", "float32"),
        head_sizes=range(16, 257),
        needs="the package triton",
    ),
    AttentionKernel.FLASH_ATTN: KernelAbilities(
        features=USUAL | {"a cap"},
        devices=("cuda",),
        dtypes=("bfloat16", "float16"),
        head_sizes=range(1, 257),
        needs="the package flash-attn and a GPU of compute capability 8.0 or later",
    ),
    AttentionKernel.SPELLED_OUT: KernelAbilities(features=USUAL | {"a cap", "dropout"}),
}
"""All kernels. Dropout has masks of its own, the same in every layout, which no fused kernel accepts."""

_PYTORCH: Sequence[AttentionKernel] = (AttentionKernel.SCALED_DOT_PRODUCT, AttentionKernel.SPELLED_OUT)
_FUSED: Sequence[AttentionKernel] = (
    AttentionKernel.FLASH_ATTN,
    AttentionKernel.VARIABLE_LENGTH,
    AttentionKernel.FLEX,
)


def kernel_order(asked: MaskedSoftmaxKernel) -> Sequence[AttentionKernel]:
    """Return the kernels that a configuration allows, the fastest first."""
    return _PYTORCH if asked is MaskedSoftmaxKernel.TORCH else (*_FUSED, *_PYTORCH)


def obstacles(kernel: AttentionKernel, needs: AttentionNeeds, found: Collection[AttentionKernel]) -> Iterator[str]:
    """Yield the reasons why a kernel cannot do what is needed. `found`: the kernels that this machine has."""
    can = KERNELS[kernel]
    yield from (f"does not do {feature}" for feature in sorted(needs.features - can.features))
    if can.devices and needs.device not in can.devices:
        yield f"runs on {' or '.join(can.devices)} only"
    elif can.needs and kernel not in found:
        yield f"needs {can.needs}"
    if can.dtypes and needs.dtype not in can.dtypes:
        yield f"computes in {' or '.join(can.dtypes)} only"
    if can.head_sizes is not None and needs.head_size not in can.head_sizes:
        sizes, step = can.head_sizes, can.head_sizes.step
        steps = "" if step == 1 else f" in steps of {step}"
        yield f"takes heads of {sizes.start} to {sizes[-1]} features{steps}"


def choose_kernel(
    needs: AttentionNeeds, order: Sequence[AttentionKernel], *, found: Collection[AttentionKernel]
) -> AttentionKernel:
    """Return the first kernel of `order` that can do what is needed; else `ConfigError` with those that can."""
    reasons = {kernel: list(obstacles(kernel, needs, found)) for kernel in KERNELS}
    for kernel in order:
        if not reasons[kernel]:
            return kernel
    why = "; ".join(f"{kernel.value} {', '.join(reasons[kernel])}" for kernel in order)
    able = [kernel.value for kernel in KERNELS if not reasons[kernel]]
    advice = f"choose {' or '.join(able)}, which can" if able else "there is none that can"
    raise ConfigError(f"no kernel that may be used computes {needs}: {why}; {advice}")
