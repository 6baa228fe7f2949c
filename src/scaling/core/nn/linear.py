"""Linear layers cut over the model axis: by output features (column) or by input features (row).

Shape suffixes: B leading dimensions, I input features, O output features, o and i the local parts of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scaling.core.collectives.autograd import copy_to_model
from scaling.core.nn.edit import Edit
from scaling.core.nn.init import Constant, xavier_normal
from scaling.core.nn.outputs import Output, placement_of
from scaling.core.nn.parameter import Initializer, fused_parameter, new_parameter
from scaling.core.nn.place import Place, leave_model_parallel
from scaling.core.nn.shard import Heads, even_shard

_HALF = (torch.bfloat16, torch.float16)

Product: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x_BI, weight_OI, bias_O or None) -> x W^T + b: the arithmetic of a linear layer."""

Features: TypeAlias = "int | Heads"


class LinearEdit(Edit):
    """A change to the computation of a linear layer from outside (a low-rank update, say). This base changes nothing.

    A column-parallel layer hands over this rank's output features; a row-parallel layer hands over a partial result,
    which is summed over the model axis after `within`. A value added in `within` therefore joins that sum, in the
    layer's own message, and has to be this rank's term of it.
    """

    def before(self, x: Tensor) -> Tensor:
        """Return the input of this rank's part of the product, in place of `x`."""
        return x

    def within(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the product of the input `x`, without bias, in place of `y`."""
        return y

    def after(self, y: Tensor) -> Tensor:
        """Return the output, with bias, in place of `y`; in a row-parallel layer `y` is the sum over model ranks."""
        return y


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply as `torch.nn.functional.linear`; half precision on a CPU is multiplied in float32 and rounded once.

    CPUs without AMX or AVX512-BF16 take 20 to 80 times longer for a half-precision product than for the same in
    float32; the rounding of operands and result is that of the half-precision product either way.
    """
    if x.device.type == "cpu" and x.dtype in _HALF:
        function: Any = _WideLinear.apply
        widened: Tensor = function(x, weight, bias)
        return widened
    return F.linear(x, weight, bias)


class _WideLinear(torch.autograd.Function):
    """The product of half-precision operands in float32, which keeps them as they are for the backward pass.

    Autograd would keep float32 copies: twice the memory of a base that is frozen in half precision to save memory.
    """

    @staticmethod
    def forward(ctx: Any, x_BI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x_BI if of_weight else None, weight_OI if of_x else None)
        y_BO = F.linear(x_BI.float(), weight_OI.float(), None if bias_O is None else bias_O.float())
        return y_BO.to(x_BI.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_BI, weight_OI = ctx.saved_tensors
        wide_BO = grad_BO.float()
        grad_BI = None if weight_OI is None else (wide_BO @ weight_OI.float()).to(grad_BO.dtype)
        wide_NO = wide_BO.reshape(-1, wide_BO.shape[-1])
        grad_OI = None
        if x_BI is not None:
            grad_OI = (wide_NO.t() @ x_BI.float().reshape(-1, x_BI.shape[-1])).to(grad_BO.dtype)
        return grad_BI, grad_OI, wide_NO.sum(dim=0).to(grad_BO.dtype) if ctx.needs_input_grad[2] else None


class _Edited(nn.Module):
    """A layer with a product, and edits of it that are made from outside."""

    weight: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self.product: Product = linear
        """Computes the layer's own term; replace it for other arithmetic."""
        self._edits: tuple[LinearEdit, ...] = ()

    @final
    def edit(self, name: str, edit: LinearEdit, *, owner: nn.Module | None = None) -> None:
        """Let an edit change what the layer computes, after earlier edits.

        The parameters of the edit are prefixed with `name.` within `owner`, by default the layer; those of the layer
        keep their names.
        """
        (owner or self).add_module(name, edit)
        self._edits = (*self._edits, edit)

    @property
    def edits(self) -> tuple[LinearEdit, ...]:
        """Return all edits, including inactive ones, in the order in which they act."""
        return self._edits

    @final
    def _active(self) -> list[LinearEdit]:
        return [edit for edit in self._edits if edit.active]

    @final
    def _partial(self, x: Tensor, bias: Tensor | None, edits: Sequence[LinearEdit]) -> Tensor:
        """Return this rank's term of the output, or its part of the output; `bias` is given where it is to be added."""
        if not edits:
            return self.product(x, self.weight, bias)
        for edit in edits:
            x = edit.before(x)
        y = self.product(x, self.weight, None)
        for edit in edits:
            y = edit.within(y, x)
        return y if bias is None else y + bias


@final
class ColumnParallelLinear(_Edited):
    """y_Bo = x_BI W_oI^T + b_o: each model rank computes its part of the output features.

    Input: [..., in_features], the same on all model ranks. Output: [..., out_features / model_parallel_size], which
    `gather_features` joins. Communicates: all-reduce of the input gradient. Source: Megatron-LM, arXiv:1909.08053,
    section 3.

    `out_features` is a number, which is cut evenly, or `Heads`, or a mapping from names to these: then one weight
    computes several outputs, one after the other, and checkpoints hold each under its name, beside this layer, as if it
    were a layer of its own. `LayoutError` if the features cannot be cut.
    """

    def __init__(
        self,
        in_features: int,
        out_features: Features | Mapping[str, Features],
        *,
        place: Place | None = None,
        bias: bool = True,
        initializer: Initializer | None = None,
    ) -> None:
        super().__init__()
        self.place = place = place or Place()
        outputs = out_features if isinstance(out_features, Mapping) else {"": out_features}
        sizes = {name: out if isinstance(out, int) else out.features for name, out in outputs.items()}
        shards = {
            name: even_shard(out, place.parts, place.index, dim=0, what="out_features of ColumnParallelLinear")
            if isinstance(out, int)
            else out.shard(place.parts, place.index)
            for name, out in outputs.items()
        }
        self.in_features = in_features
        self.outputs = {name: (size, shards[name]) for name, size in sizes.items()}
        """By output, the number of features of all ranks, and which of them this rank has."""
        self.output_sizes = [shard.length for shard in shards.values()]
        """Local features of each output."""
        shared = any(shard.replicas > 1 for shard in shards.values())
        self.weight = fused_parameter(
            {
                name: ((size, in_features), shards[name], initializer or xavier_normal(in_features, size))
                for name, size in sizes.items()
            },
            dtype=place.dtype,
            gradient_in_parts=shared,
        )
        self.bias = (
            fused_parameter(
                {name: ((size,), shards[name], Constant(0.0)) for name, size in sizes.items()},
                dtype=place.dtype,
                gradient_in_parts=shared,
            )
            if bias
            else None
        )

    def forward(self, x: Tensor, *, entered: bool = False) -> Tensor:
        """Return the local output features. `entered`: the input has been through `enter_model_parallel`."""
        edits = self._active()
        y = self._partial(x if entered else copy_to_model(x, self.place.group), self.bias, edits)
        for edit in edits:
            y = edit.after(y)
        return y

    def described_outputs(self) -> Mapping[str, Sequence[Output]]:
        """Return the outputs, labelled with their names."""
        parts = self.outputs.items()
        return {"": [Output(placement_of(shard), label, shard.length) for label, (_, shard) in parts]}


def project_all(owner: nn.Module, names: Iterable[str], entered: Tensor) -> list[Tensor]:
    """Return the outputs of the column-parallel layers `names` of a module on one input, in order, fused ones split."""
    outputs: list[Tensor] = []
    for name in names:
        layer = cast(ColumnParallelLinear, owner._modules[name])
        joined: Tensor = layer(entered, entered=True)
        outputs += [joined] if len(layer.output_sizes) == 1 else joined.split_with_sizes(layer.output_sizes, dim=-1)
    return outputs


@final
class RowParallelLinear(_Edited):
    """y_BO = sum over model ranks of x_Bi W_Oi^T, + b_O: each model rank holds a part of the input features.

    Input: [..., in_features / model_parallel_size] as a column-parallel layer returns it (`split_features` cuts a
    tensor that all ranks hold). Output: [..., out_features] on all model ranks; under sequence parallelism this rank's
    slice of the sequence. The bias is added once, after the sum. Communicates: one all-reduce (or reduce-scatter) of
    the output.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        place: Place | None = None,
        bias: bool = True,
        initializer: Initializer | None = None,
    ) -> None:
        super().__init__()
        self.place = place = place or Place()
        shard = even_shard(in_features, place.parts, place.index, dim=1, what="in_features of RowParallelLinear")
        self.in_features, self.out_features = in_features, out_features
        self.inputs = shard
        """Which input features this rank has."""
        self.weight = new_parameter(
            (out_features, in_features),
            initializer or xavier_normal(in_features, out_features),
            shard=shard,
            dtype=place.dtype,
        )
        self.bias = (
            new_parameter((out_features,), Constant(0.0), dtype=place.dtype, gradient_in_parts=place.sequence_parallel)
            if bias
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return all output features, summed over the model axis."""
        edits = self._active()
        if self.place.group is None:
            y = self._partial(x, self.bias, edits)
        else:
            y = leave_model_parallel(self._partial(x, None, edits), self.place)
            y = y if self.bias is None else y + self.bias
        for edit in edits:
            y = edit.after(y)
        return y
