"""Measure the memory that cross entropy takes with its gradients: of whole logits, and in chunks of tokens.

    python3 benchmarks/loss_memory.py [--vocabulary 131072] [--tokens 2048] [--hidden 256] [--chunk 64] [--rounds 3]
        [--json FILE]

Each case has a process of its own. Its memory is the peak above what it holds with hidden states and weight in place,
so the gradients of both are in it. Seconds are those of forward and backward.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from reporting import begin, parser, publish

CHILD = """
import json, resource, sys, time
import torch
from scaling.core import linear_cross_entropy

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def gradients(hidden, weight, targets):
    losses, _ = linear_cross_entropy(hidden, weight, targets, chunk_size=chunk)
    losses.sum().backward()
    return losses.mean().item()

vocabulary, tokens, features, chunk = json.loads(sys.argv[1])
torch.manual_seed(0)
small = torch.ones(4, 4, requires_grad=True)
gradients(small, torch.ones(8, 4, requires_grad=True), torch.arange(4))  # libraries are loaded, threads started
hidden = torch.empty(tokens, features).normal_().requires_grad_()
weight = torch.empty(vocabulary, features).normal_(std=features**-0.5).requires_grad_()
targets = torch.randint(vocabulary, (tokens,))
before, began = peak(), time.perf_counter()
loss = gradients(hidden, weight, targets)
seconds, after = time.perf_counter() - began, peak()
norms = [tensor.grad.double().norm().item() for tensor in (hidden, weight)]
print(json.dumps({"mib": (after - before) / 2**20, "loss": loss, "gradient_norms": norms, "seconds": seconds}))
"""


def measured(*sizes: int | None) -> dict[str, Any]:
    """Return the figures of one case."""
    path = str(Path(__file__).parents[1] / "src")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(sizes)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    options = parser(__doc__, vocabulary=131072, tokens=2048, hidden=256, chunk=64, rounds=3).parse_args()
    sizes = options.vocabulary, options.tokens, options.hidden
    rounds = [[measured(*sizes, chunk) for chunk in (None, options.chunk)] for _ in range(options.rounds)]
    whole, chunked = rounds[0]
    report = begin() | {
        "logits_mib": options.vocabulary * options.tokens * 4 / 2**20,
        "whole": whole,
        "chunked": chunked,
        "loss_apart": abs(chunked["loss"] - whole["loss"]) / whole["loss"],
    }
    for name, figure in (("memory", "mib"), ("time", "seconds")):
        ratios = [chunked[figure] / whole[figure] for whole, chunked in rounds]
        report[f"{name}_relative_to_whole"] = statistics.median(ratios)
    publish(report, options.json)


if __name__ == "__main__":
    main()
