"""Measure the memory and time that cross entropy takes with its gradients: of whole logits, and in chunks of tokens.

    python3 benchmarks/loss_memory.py [--vocabulary 131072] [--tokens 2048] [--hidden 256] [--ranks 1] [--chunk 0]
        [--rounds 3] [--json FILE]

`whole` are whole logits, `again` chunks of logits that are multiplied again in the backward pass, `same_pass` chunks
with gradients made beside them, which is what training does. `--chunk 0`: as many tokens as training takes. `--ranks 2`
cuts the vocabulary over two processes.

Each case has processes of its own. Its memory is the peak of one above what it holds with hidden states and weight in
place, so the gradients of both are in it. Seconds are those of forward and backward, `cpu` those that the processor
worked for the first process.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from reporting import begin, parser, publish

CHILD = """
import json, resource, sys, time
import torch
import torch.distributed as dist
from scaling.core import linear_cross_entropy, linear_cross_entropy_sum, tokens_per_chunk

def used():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime

def gradients(hidden, weight, targets):
    where = {"group": group, "offset": rank * weight.shape[0]}
    weights = torch.ones(targets.shape)
    if how == "same_pass":
        loss = linear_cross_entropy_sum(hidden, weight, targets, weights, chunk_size=chunk, **where).loss
    else:
        losses, _ = linear_cross_entropy(
            hidden, weight, targets, chunk_size=None if how == "whole" else chunk, **where
        )
        loss = (losses * weights).sum()
    loss.backward()
    return loss.item() / targets.numel()

how, vocabulary, tokens, features, chunk, ranks, rank, store = json.loads(sys.argv[1])
group = None
if ranks > 1:
    dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=ranks)
    group = dist.group.WORLD
    torch.set_num_threads(1)
part = vocabulary // ranks
chunk = chunk or tokens_per_chunk(tokens, part, torch.device("cpu"))
torch.manual_seed(0)
small = torch.ones(4, 4, requires_grad=True)
gradients(small, torch.ones(8, 4, requires_grad=True), torch.arange(4))  # libraries are loaded, threads started
hidden = torch.empty(tokens, features).normal_().requires_grad_()
targets = torch.randint(vocabulary, (tokens,))
torch.manual_seed(1 + rank)
weight = torch.empty(part, features).normal_(std=features**-0.5).requires_grad_()
if group is not None:
    dist.barrier()
(before, worked), began = used(), time.perf_counter()
loss = gradients(hidden, weight, targets)
seconds, (after, works) = time.perf_counter() - began, used()
norms = [tensor.grad.double().norm().item() for tensor in (hidden, weight)]
figures = {"mib": (after - before) / 2**20, "loss": loss, "gradient_norms": norms, "seconds": seconds}
print(json.dumps(figures | {"cpu": works - worked, "chunk": chunk}))
"""
CASES = ("whole", "again", "same_pass")


def measured(how: str, *sizes: int) -> dict[str, Any]:
    """Return the figures of one case, those of its first process."""
    path, ranks = str(Path(__file__).parents[1] / "src"), sizes[-1]
    with tempfile.TemporaryDirectory() as directory:
        children = [
            subprocess.Popen(
                [sys.executable, "-c", CHILD, json.dumps([how, *sizes, rank, f"{directory}/store"])],
                env={**os.environ, "PYTHONPATH": path},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        written = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise SystemExit(f"{how}: a process failed; see above")
    found: dict[str, Any] = json.loads(written[0])
    return found


def main() -> None:
    options = parser(__doc__, vocabulary=131072, tokens=2048, hidden=256, chunk=0, ranks=1, rounds=3).parse_args()
    sizes = options.vocabulary, options.tokens, options.hidden, options.chunk, options.ranks
    rounds = [{how: measured(how, *sizes) for how in CASES} for _ in range(options.rounds)]
    report = begin() | {"logits_mib": options.vocabulary // options.ranks * options.tokens * 4 / 2**20} | rounds[0]
    whole, chunked = rounds[0]["whole"], rounds[0]["same_pass"]
    report["loss_apart"] = abs(chunked["loss"] - whole["loss"]) / whole["loss"]
    for name, figure in (("memory", "mib"), ("time", "seconds"), ("cpu", "cpu")):
        for how in CASES[1:]:
            ratios = [each[how][figure] / each["whole"][figure] for each in rounds]
            report[f"{name}_of_{how}_relative_to_whole"] = statistics.median(ratios)
    publish(report, options.json)


if __name__ == "__main__":
    main()
