"""The products of matrices that a step is made of, and what a step would take if it were only these.

A roofline of the model's own: every product of a linear layer (forward, gradient of the input, gradient of the weight),
of attention and of the head runs at its own shape, as often as a step needs it, and nothing else does. `train_step.py`
lets each process run its share in turn with the steps it measures. What a pipeline waits is not in it, and neither is
recomputation: stages count as if they shared the work evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scaling.core import TopologyConfig
from scaling.transformer.plan.attention import AttentionPlan
from scaling.transformer.plan.model import LayerPlan, ModelPlan
from scaling.transformer.plan.parts import FeedForwardPlan, LinearPlan, PartPlan, TablePlan


@dataclass(frozen=True)
class Product:
    """A product [rows, inner] x [inner, columns] of one process, `batch` of them in one call."""

    name: str
    rows: int
    inner: int
    columns: int
    batch: int = 1
    transposed: tuple[bool, bool] = (False, False)
    """Which of the two lies in memory the other way round."""

    @property
    def operations(self) -> int:
        """Return its multiplications and additions."""
        return 2 * self.batch * self.rows * self.inner * self.columns

    def made(self, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
        """Return what runs it once, on operands and into a result that are there already."""
        shapes = ((self.rows, self.inner), (self.inner, self.columns))
        left, right = (
            torch.randn(self.batch, *(shape[::-1] if turned else shape), dtype=dtype, device=device)
            for shape, turned in zip(shapes, self.transposed, strict=True)
        )
        left = left.transpose(1, 2) if self.transposed[0] else left
        right = right.transpose(1, 2) if self.transposed[1] else right
        out = torch.empty(self.batch, self.rows, self.columns, dtype=dtype, device=device)
        if self.batch == 1:
            return lambda: torch.mm(left[0], right[0], out=out[0])
        return lambda: torch.bmm(left, right, out=out)


def products_of(plan: ModelPlan, topology: TopologyConfig, *, causal: bool) -> dict[Product, float]:
    """Return how often one process runs each product in a step.

    With several stages a mean: a process has its part of every layer's products. `causal`: half of attention's, as a
    kernel computes that leaves out what is masked.
    """
    rows, parts = topology.micro_batch_size, topology.model_parallel_size
    found: dict[Product, float] = {}
    for count, layer in plan.runs:
        for product in layer_products(layer, rows=rows, sequence=plan.sequence, parts=parts, causal=causal):
            times = count * topology.gradient_accumulation_steps / topology.pipe_parallel_size
            found[product] = found.get(product, 0) + times
    return found


def layer_products(layer: LayerPlan, *, rows: int, sequence: int, parts: int, causal: bool) -> Iterator[Product]:
    """Yield the products of one layer for one micro-batch of `rows` sequences, on one of `parts` model ranks."""
    for name, part in layer.parts:
        for linear, outputs, inputs in matrices(part, parts):
            yield from linear_products(f"{name}.{linear}", rows * sequence, inputs, outputs)
        if isinstance(part, AttentionPlan):
            batch = rows * part.heads // parts
            yield from score_products(name, -(-batch // 2) if causal else batch, sequence, part.head_size)


def matrices(part: PartPlan, parts: int) -> Iterator[tuple[str, int, int]]:
    """Yield (name, outputs, inputs) of a model rank's part of each matrix that is multiplied with."""
    match part:
        case AttentionPlan(fused=True):
            yield "query_key_value", sum(one.outputs for one in part.projections) // parts, part.hidden
            yield _cut(part.dense, parts, along_inputs=True)
        case AttentionPlan():
            yield from (_cut(one, parts, along_inputs=False) for one in part.projections)
            yield _cut(part.dense, parts, along_inputs=True)
        case FeedForwardPlan():
            yield from (_cut(one, parts, along_inputs=False) for one in part.inputs)
            yield _cut(part.output, parts, along_inputs=True)
        case TablePlan(multiplied=True):
            yield "weight", -(-part.vocabulary // parts), part.hidden


def _cut(linear: LinearPlan, parts: int, *, along_inputs: bool) -> tuple[str, int, int]:
    if along_inputs:
        return linear.name, linear.outputs, linear.inputs // parts
    return linear.name, linear.outputs // parts, linear.inputs


def linear_products(name: str, tokens: int, inputs: int, outputs: int) -> Iterator[Product]:
    """Yield the three products of a linear layer whose weight is [outputs, inputs]."""
    yield Product(f"{name}: forward", tokens, inputs, outputs, transposed=(False, True))
    yield Product(f"{name}: gradient of the input", tokens, outputs, inputs)
    yield Product(f"{name}: gradient of the weight", outputs, tokens, inputs, transposed=(True, False))


def score_products(name: str, batch: int, sequence: int, head_size: int) -> Iterator[Product]:
    """Yield the six products of attention: two forward, four backward. Scores are not computed twice."""
    wide, deep = (sequence, head_size, sequence), (sequence, sequence, head_size)
    yield Product(f"{name}: scores", *wide, batch, (False, True))
    yield Product(f"{name}: values", *deep, batch)
    yield Product(f"{name}: gradient of the probabilities", *wide, batch, (False, True))
    yield Product(f"{name}: gradient of the queries", *deep, batch)
    yield Product(f"{name}: gradient of the keys", *deep, batch, (True, False))
    yield Product(f"{name}: gradient of the values", *deep, batch, (True, False))


def only_products(products: dict[Product, float], dtype: torch.dtype, device: torch.device) -> Callable[[], float]:
    """Return what runs all products of a step, each as often as it comes in one. A count that is broken is rounded up
    or down from step to step, so that it comes out on the average."""
    made = [(product.made(dtype, device), count) for product, count in products.items()]
    owed = [0.0] * len(made)

    def step() -> float:
        for number, (run, count) in enumerate(made):
            owed[number] += count
            while owed[number] >= 1:
                run()
                owed[number] -= 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 0.0

    return step
