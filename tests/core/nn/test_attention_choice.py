"""The table of kernels: the first that can is chosen, and where none can, why, and which could."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.errors import ConfigError
from scaling.core.nn.attention_choice import (
    KERNELS,
    USUAL,
    AttentionKernel,
    AttentionNeeds,
    Feature,
    choose_kernel,
    kernel_order,
    obstacles,
)
from scaling.core.nn.config import MaskedSoftmaxKernel
from scaling.core.nn.scores import Scores

SDP, VARLEN, FLEX, FLASH, SPELLED = (
    AttentionKernel.SCALED_DOT_PRODUCT,
    AttentionKernel.VARIABLE_LENGTH,
    AttentionKernel.FLEX,
    AttentionKernel.FLASH_ATTN,
    AttentionKernel.SPELLED_OUT,
)
FUSED = (VARLEN, FLEX, FLASH)
TORCH, FLASHES = (
    tuple(kernel_order(kernel)) for kernel in (MaskedSoftmaxKernel.TORCH, MaskedSoftmaxKernel.FLASH_ATTENTION)
)


def needs(*features: Feature, head_size: int = 64, dtype: str = "bfloat16", device: str = "cuda") -> AttentionNeeds:
    return AttentionNeeds(features=frozenset(features), head_size=head_size, dtype=dtype, device=device)


asked = st.builds(
    AttentionNeeds,
    features=st.frozensets(st.sampled_from([*sorted(USUAL), "a cap", "dropout"])),
    head_size=st.integers(1, 300),
    dtype=st.sampled_from(["float64", "float32", "bfloat16", "float16"]),
    device=st.sampled_from(["cpu", "cuda"]),
)


@given(needs=asked, order=st.sampled_from([TORCH, FLASHES]), found=st.sets(st.sampled_from(FUSED)))
def test_the_first_that_can_is_chosen_and_there_always_is_one(
    needs: AttentionNeeds, order: tuple[AttentionKernel, ...], found: set[AttentionKernel]
) -> None:
    chosen = choose_kernel(needs, order, found=found)
    assert not list(obstacles(chosen, needs, found))
    assert needs.features <= KERNELS[chosen].features
    assert chosen not in FUSED or (needs.device == "cuda" and needs.dtype != "float64" and chosen in found)
    for earlier in order[: order.index(chosen)]:
        assert list(obstacles(earlier, needs, found))


@pytest.mark.parametrize(
    ("asked", "found", "chosen"),
    [
        (needs("a window"), FUSED, FLASH),
        (needs("a window"), (VARLEN, FLEX), VARLEN),
        (needs("a cap"), (VARLEN, FLEX), FLEX),
        (needs("a cap", "packed rows"), FUSED, FLASH),
        (needs(dtype="float32"), FUSED, FLEX),
        (needs(dtype="float64"), FUSED, SDP),
        (needs(head_size=12), (VARLEN,), SDP),
        (needs(head_size=12), (VARLEN, FLEX), SDP),
        (needs(head_size=20), (VARLEN, FLEX), FLEX),
        (needs(head_size=256), FUSED, FLASH),
        (needs(head_size=264), FUSED, SDP),
        (needs(device="cpu"), FUSED, SDP),
        (needs("a cap", device="cpu"), FUSED, SPELLED),
        (needs("a cap"), (), SPELLED),
        (needs("dropout"), FUSED, SPELLED),
    ],
)
def test_flash_attention_is_the_fastest_there_is(
    asked: AttentionNeeds, found: tuple[AttentionKernel, ...], chosen: AttentionKernel
) -> None:
    assert choose_kernel(asked, FLASHES, found=found) is chosen
    assert choose_kernel(asked, TORCH, found=found) is (SPELLED if asked.features & {"a cap", "dropout"} else SDP)


def test_what_cannot_be_computed_is_refused_with_every_reason() -> None:
    asked = needs("causal", "a cap", head_size=300, dtype="float32")
    with pytest.raises(ConfigError) as refused:
        choose_kernel(asked, (SDP, VARLEN, FLEX, FLASH), found=(FLEX,))
    assert str(refused.value) == (
        "no kernel that may be used computes attention (a cap, causal; heads of 300 features, float32, on cuda): "
        "scaled-dot-product (PyTorch) does not do a cap; varlen (PyTorch) does not do a cap, needs an NVIDIA GPU of "
        "compute capability 8.0 or later, and windows in torch.nn.attention.varlen, computes in bfloat16 or float16 "
        "only, takes heads of 8 to 256 features in steps of 8; flex (PyTorch) takes heads of 16 to 256 features; "
        "flash-attn needs the package flash-attn and a GPU of compute capability 8.0 or later, computes in bfloat16 or "
        "float16 only, takes heads of 1 to 256 features; choose spelled-out, which can"
    )
    with pytest.raises(ConfigError, match=r"flash-attn does not do dropout, runs on cuda only; choose spelled-out,"):
        choose_kernel(needs("dropout", device="cpu"), (FLASH,), found=(FLASH,))


@given(
    causal=st.booleans(),
    window=st.none() | st.just(4),
    cap=st.none() | st.just(2.0),
    windowed=st.booleans(),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_needs_are_those_of_the_scores(
    causal: bool, window: int | None, cap: float | None, windowed: bool, flags: tuple[bool, bool, bool]
) -> None:
    some = 2 if windowed and window else None
    scores, (grouped, packed, dropout) = (
        Scores(scale=1.0, causal=causal, window=window, cap=cap, windowed_heads=some),
        flags,
    )
    found = AttentionNeeds.of(
        scores, grouped=grouped, packed=packed, dropout=dropout, head_size=8, dtype="float32", device="cpu"
    )
    assert found.features == {
        *(["causal"] if causal else ["bidirectional"]),
        *(["a window"] if window else []),
        *(["a window for some heads"] if some else []),
        *(["a cap"] if cap else []),
        *(["grouped heads"] if grouped else []),
        *(["packed rows"] if packed else []),
        *(["dropout"] if dropout else []),
    }
