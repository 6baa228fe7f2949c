"""Products of linear layers in 8-bit floating point; each operand is scaled by its own largest element.

Each operand is multiplied by a power of two that brings its largest element below the largest number of the type, and
rounded; the product, summed in float32, is divided by these again. Scales are found anew for each product ("dynamic").
Sources: Micikevicius et al., arXiv:2209.05433 (the types, a scale per tensor); torchao.float8 (a scale per row; scales
that are powers of two, as in its rowwise recipe).

A power of two changes no digit. So if another layout or micro-batch has another largest element, numbers still round in
the same way, except those smaller than 2^-14 of it (e4m3; 2^-29 in e5m2), which lose digits at the lower end of the
range. Where the model axis cuts an operand, the largest element is that of all ranks.

On a GPU torchao multiplies (`addmm_float8_unwrapped`, over torch._scaled_mm): it knows which kernel is best for which
scale, and what that kernel requires. Its module swap is not used: it replaces `torch.nn.Linear`, and finds the scales
of tensors that tensor parallelism cuts only if they are DTensors. On a CPU the same numbers are multiplied in float32,
or in float64 if the operands were float64: an emulation for tests.

Shape suffixes: N tokens, I input features, O output features; M, K, N those of any product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, TypeAlias, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scaling.core.collectives import ops
from scaling.core.collectives.ops import Group
from scaling.core.errors import ConfigError
from scaling.core.nn.float8_recipe import Float8Recipe, FP8DType, Operands, float8_obstacle
from scaling.core.nn.place import Place

_TYPES: Mapping[FP8DType, torch.dtype] = {FP8DType.E4M3: torch.float8_e4m3fn, FP8DType.E5M2: torch.float8_e5m2}
_SMALLEST = 2.0**-100
"""Lower bound on largest elements, so that scales stay finite, even for zeros."""
_EXPONENT = -0x00800000
"""The bits of a float32 outside its mantissa."""

Multiply: TypeAlias = Callable[..., Tensor]
"""(a_MK, scale_a, b_KN, scale_b, output_dtype, use_fast_accum=...) -> (a / scale_a) (b / scale_b), as in torchao."""


def largest(x: Tensor, dim: int | None = None) -> Tensor:
    """Return the largest magnitude in float32: of all elements, or along a dimension, which becomes one of size 1."""
    found: Tensor = torch.linalg.vector_norm(x, float("inf"), dim=dim, keepdim=dim is not None)
    return found.float()


def scale_of(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the largest power of two that keeps `largest` within the range of an 8-bit type, in float32."""
    scale = torch.finfo(dtype).max / largest.clamp_min(_SMALLEST)
    return (scale.view(torch.int32) & _EXPONENT).view(torch.float32)


def rounded(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `x * scale`, rounded to an 8-bit type; beyond its range, its largest number."""
    most = torch.finfo(dtype).max
    return (x * scale).clamp(-most, most).to(dtype)


def emulated(
    a_MK: Tensor, scale_a: Tensor, b_KN: Tensor, scale_b: Tensor, output_dtype: torch.dtype, *, use_fast_accum: bool
) -> Tensor:
    """Multiply 8-bit numbers in float32, or in float64 if the output is float64."""
    wide = torch.float64 if output_dtype == torch.float64 else torch.float32
    return (torch.matmul(a_MK.to(wide), b_KN.to(wide)) / scale_a / scale_b).to(output_dtype)


def find_float8_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return what keeps this device from computing 8-bit products; None if nothing does."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return float8_obstacle(
        device=device.type,
        capability=capability,
        has_torchao=find_spec("torchao") is not None,
        precision=str(dtype).removeprefix("torch."),
    )


def _multiply_on(device: torch.device) -> Multiply:
    if device.type != "cuda":
        return emulated
    # Optional, and seconds of import.
    from torchao.float8.float8_ops import addmm_float8_unwrapped

    multiply: Multiply = addmm_float8_unwrapped
    return multiply


@final
@dataclass(frozen=True, eq=False)
class Float8Product:
    """The product of a linear layer in 8 bits: assign it to the layer's `product`.

    Communicates, where the model axis cuts the elements that share a scale: one all-reduce of the largest elements
    forward, and one backward; a number for each operand, or with `per_row` one for each row. In a row-parallel layer
    the input is cut (`inputs_cut`), in a column-parallel one the output. `ConfigError` if the device cannot do it.
    """

    recipe: Float8Recipe
    place: Place
    inputs_cut: bool
    multiply: Multiply = field(init=False)
    group: Group = field(init=False)

    def __post_init__(self) -> None:
        device = self.place.topology.device
        obstacle = find_float8_obstacle(device, self.place.dtype)
        if obstacle is not None:
            raise ConfigError(f"an fp8_config is given, but {obstacle}")
        object.__setattr__(self, "multiply", _multiply_on(device))
        object.__setattr__(self, "group", self.place.group)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x W^T + b. Collective: the model axis."""
        function: Any = _Float8Linear.apply
        y: Tensor = function(x, weight, self)
        return y if bias is None else y + bias

    def agreed(self, *found: tuple[Tensor, bool]) -> list[Tensor]:
        """Return the largest elements: over all model ranks for operands that are cut, in one message."""
        cut = [sizes.reshape(-1) for sizes, is_cut in found if is_cut]
        if self.group is None or not cut:
            return [sizes for sizes, _ in found]
        parts = iter(ops.all_reduce(torch.cat(cut), self.group, maximum=True).split([len(part) for part in cut]))
        return [next(parts).view_as(sizes) if is_cut else sizes for sizes, is_cut in found]

    def product(self, a: _Operand, b: _Operand, types: Operands, *, fast: bool, dtype: torch.dtype) -> Tensor:
        """Return a_MK b_KN of 8-bit operands: the left one laid out by rows, the right one by columns."""
        scaled = []
        for operand, which in ((a, types.left), (b, types.right)):
            of_type = _TYPES[which]
            scale = scale_of(operand.largest, of_type)
            scaled.append((rounded(operand.values, scale, of_type), scale))
        (a_MK, scale_a), (b_KN, scale_b) = scaled
        columns = b_KN.t().contiguous().t()
        return self.multiply(a_MK.contiguous(), scale_a, columns, scale_b, dtype, use_fast_accum=fast)


@dataclass(frozen=True)
class _Operand:
    values: Tensor
    largest: Tensor


class _Float8Linear(torch.autograd.Function):
    """A product that keeps input and weight unrounded for the backward pass, like the usual one: both exist anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, product: Float8Product) -> Tensor:
        recipe, by_rows = product.recipe, product.recipe.per_row
        x_NI = x.reshape(-1, x.shape[-1])
        sizes: list[Tensor] = []
        if recipe.forward is not None or not by_rows:
            dim = 1 if by_rows else None
            sizes = product.agreed(
                (largest(x_NI, dim), product.inputs_cut),
                (largest(weight_OI, dim), product.inputs_cut or not by_rows),
            )
        if recipe.forward is None:
            y_NO = _wide(x_NI, weight_OI.t())
        else:
            x_size, weight_size = sizes
            weight = _Operand(weight_OI.t(), weight_size.t() if by_rows else weight_size)
            y_NO = product.product(_Operand(x_NI, x_size), weight, recipe.forward, fast=True, dtype=x.dtype)
        of_x, of_weight, _ = ctx.needs_input_grad
        kept = [] if by_rows else sizes
        ctx.save_for_backward(x if of_weight else None, weight_OI if of_x else None, *kept)
        ctx.product = product
        return y_NO.view(*x.shape[:-1], len(weight_OI))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight_OI, *kept = ctx.saved_tensors
        product: Float8Product = ctx.product
        recipe, by_rows = product.recipe, product.recipe.per_row
        of_x, of_weight, _ = ctx.needs_input_grad
        grad_NO = grad.reshape(-1, grad.shape[-1])
        size: Tensor | None = None
        if not by_rows:
            (size,) = product.agreed((largest(grad_NO), not product.inputs_cut))
        grad_x = grad_weight = None
        if of_x:
            if recipe.grad_input is None:
                grad_NI = _wide(grad_NO, weight_OI)
            else:
                if size is None:
                    sizes = product.agreed(
                        (largest(grad_NO, 1), not product.inputs_cut), (largest(weight_OI, 0), not product.inputs_cut)
                    )
                else:
                    sizes = [size, kept[1]]
                operands = _Operand(grad_NO, sizes[0]), _Operand(weight_OI, sizes[1])
                grad_NI = product.product(*operands, recipe.grad_input, fast=False, dtype=grad.dtype)
            grad_x = grad_NI.view(*grad.shape[:-1], weight_OI.shape[1])
        if of_weight:
            x_NI = x.reshape(-1, x.shape[-1])
            if recipe.grad_weight is None:
                grad_weight = _wide(grad_NO.t(), x_NI)
            else:  # every model rank has all tokens, so the summed dimension is never cut
                if size is None:
                    sizes = [largest(grad_NO, 0).t(), largest(x_NI, 0)]
                else:
                    sizes = [size, kept[0]]
                operands = _Operand(grad_NO.t(), sizes[0]), _Operand(x_NI, sizes[1])
                of_input, of_gradient = recipe.grad_weight
                types = Operands(of_gradient, of_input)
                grad_weight = product.product(*operands, types, fast=False, dtype=grad.dtype)
        return grad_x, grad_weight, None


def _wide(a: Tensor, b: Tensor) -> Tensor:
    """Multiply in the precision of the operands; on a CPU half precision in float32, as `linear` does."""
    if a.device.type == "cpu" and a.dtype in (torch.bfloat16, torch.float16):
        return (a.float() @ b.float()).to(a.dtype)
    return a @ b
