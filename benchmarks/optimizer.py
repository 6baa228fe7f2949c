"""Measure what an optimizer step takes: in passes over everything, in chunks, and with types of less memory.

    python3 benchmarks/optimizer.py [--parameters 100000000] [--threads 1] [--rounds 5] [--json FILE]

Weights are float32, in one process; the sides take turns, and ratios are those of a round. `at_once` is a single chunk:
gradients are scaled, AdamW is run and gradients are cleared each over everything. Seconds are the processor's, since
others may use it too. Bytes are those of weights, gradients and moments for each parameter. `parts` are passes over as
much memory one by one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from reporting import begin, parser, publish
from torch import Tensor, nn

from scaling.core import AdamWConfig, LearningRateSchedulerConfig, Optimizer, ParameterGroup, Topology
from scaling.core.nn.parameter import meta
from scaling.core.optimizer import update

OPTIONS: dict[str, dict[str, Any]] = {
    "at_once": {},
    "chunks": {},
    "exp_avg_dtype": {"exp_avg_dtype": "bfloat16"},
    "both moments": {"exp_avg_dtype": "bfloat16", "exp_avg_sq_dtype": "bfloat16"},
    "grad_dtype": {"grad_dtype": "bfloat16"},
    "all three": {"grad_dtype": "bfloat16", "exp_avg_dtype": "bfloat16", "exp_avg_sq_dtype": "bfloat16"},
}
WIDTH = 1_000_000
"""Elements of a parameter."""


class Flat(nn.Module):
    """Parameters and nothing to do with them."""

    micro_batches = 1

    def __init__(self, elements: int) -> None:
        super().__init__()
        sizes = [WIDTH] * (elements // WIDTH)
        self.parts = nn.ParameterList(nn.Parameter(torch.empty(size).normal_(std=0.02)) for size in sizes)

    def uses(self) -> dict[nn.Parameter, int]:
        """Return how many stages hold each parameter."""
        return dict.fromkeys(self.parts, 1)


def made(elements: int, options: dict[str, Any], *, at_once: bool) -> tuple[Optimizer, list[Tensor]]:
    """Return an optimizer for that many parameters, and their gradients."""
    module = Flat(elements)
    described = [(parameter, meta(parameter)) for parameter in module.parts]
    rate = LearningRateSchedulerConfig(learning_rate=1e-3)
    group = ParameterGroup(name="all", learning_rate_scheduler=rate, parameters=described)
    with mock.patch.object(update, "CPU_CHUNK", elements if at_once else update.CPU_CHUNK):
        optimizer = Optimizer(AdamWConfig(**options), [group], Topology.single(), module=module)
    return optimizer, [parameter.grad for parameter in module.parts if parameter.grad is not None]


def passes(elements: int) -> dict[str, Callable[[], Any]]:
    """Return the parts of a step, each over everything."""
    weights, gradients = torch.empty(elements).normal_(std=0.02), torch.empty(elements).normal_(std=1e-3)
    moments, squares = torch.zeros(elements), torch.zeros(elements)
    one, factor = torch.ones(()), torch.tensor(0.999)

    def adamw() -> None:
        torch._fused_adamw_(
            [weights],
            [gradients],
            [moments],
            [squares],
            [],
            [one],
            lr=1e-3,
            beta1=0.9,
            beta2=0.95,
            weight_decay=0.1,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    return {
        "norm": lambda: torch.linalg.vector_norm(gradients),
        "scale": lambda: torch._foreach_mul_([gradients], factor),
        "update": adamw,
        "clear": lambda: gradients.zero_(),
    }


def seconds(call: Callable[[], Any]) -> float:
    """Return the processor's seconds of a call."""
    began = time.process_time()
    call()
    return time.process_time() - began


def main() -> None:
    options = parser(__doc__, parameters=100_000_000, threads=1, rounds=5).parse_args()
    torch.set_num_threads(options.threads)
    report = begin() | {"parameters": options.parameters, "threads": options.threads}
    weight = torch.ones((), dtype=torch.float64)
    parts = passes(options.parameters)
    taken: dict[str, list[float]] = {name: [] for name in (*parts, *OPTIONS)}
    sides = {name: made(options.parameters, chosen, at_once=name == "at_once") for name, chosen in OPTIONS.items()}
    for step in range(1, options.rounds + 2):
        for name, call in parts.items():
            taken[name].append(seconds(call))
        for name, (optimizer, gradients) in sides.items():
            for gradient in gradients:
                gradient.fill_(1e-3)
            taken[name].append(seconds(partial(optimizer.step, step, weight=weight)))
    taken = {name: found[1:] for name, found in taken.items()}  # memory is touched first in the first
    report["parts"] = {name: statistics.median(taken[name]) for name in parts}
    for name, (optimizer, gradients) in sides.items():
        held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in gradients}
        kept = sum(view.nbytes for tensor in optimizer.global_tensors() for _, view in tensor.parts)
        ratios = [one / whole for one, whole in zip(taken[name], taken["at_once"], strict=True)]
        report[name] = {
            "seconds": statistics.median(taken[name]),
            "relative_to_at_once": statistics.median(ratios),
            "bytes_a_parameter": round(4 + (sum(held.values()) + kept) / options.parameters, 2),
        }
    publish(report, options.json)


if __name__ == "__main__":
    main()
