"""Measure what a token costs far into a text, and what many prompts of very different lengths take of the memory.

    python3 benchmarks/generate_costs.py [--prompt 64] [--new 1024] [--trained 512] [--layers 30] [--prompts 64]
                                         [--longest 2000] [--memory_layers 6] [--json FILE]

The model has the shape of SmolLM2-135M, in float32, one thread. What grows with a text is attention: it is timed within
the same tokens, and the rest is compared, at the beginning and at the end of a text that goes beyond the length that
the model was trained for. The memory is the growth of the process's peak while the prompts are continued, and beside it
what is planned: keys and values, and what one chunk of prompts and the logits of all rows take meanwhile.
"""

from __future__ import annotations

import resource
import statistics
import time
from typing import Any

import torch
from generate import ours
from reporting import begin, parser, publish

from scaling.core import Past
from scaling.transformer.inference import TransformerInferenceModule

WINDOW = 48
"""Tokens whose median stands for a place in a text."""


def token_seconds(model: TransformerInferenceModule, prompt: list[int], new: int) -> tuple[list[float], list[float]]:
    """Return the CPU seconds of each token but the first, and of attention in each."""
    attend, spent = Past.__call__, [0.0]

    def timed(past: Past, *arguments: Any) -> Any:
        start = time.process_time()
        out = attend(past, *arguments)
        spent[0] += time.process_time() - start
        return out

    Past.__call__ = timed  # type: ignore[method-assign]
    try:
        every, attention = [], []
        stream = model.stream(prompt, max_tokens=new)
        next(stream)
        start, before = time.process_time(), spent[0]
        for _ in stream:
            every.append(time.process_time() - start)
            attention.append(spent[0] - before)
            start, before = time.process_time(), spent[0]
    finally:
        Past.__call__ = attend  # type: ignore[method-assign]
    return every, attention


def growth(model: TransformerInferenceModule, prompt: int, new: int) -> dict[str, Any]:
    """Return what a token costs at the beginning and at the end of a text."""
    every, attention = token_seconds(model, list(range(1, prompt + 1)), new)
    found: dict[str, Any] = {}
    for name, place in (("first", slice(0, WINDOW)), ("last", slice(-WINDOW, None))):
        rest = [whole - part for whole, part in zip(every[place], attention[place], strict=True)]
        found[name] = {
            "token": statistics.median(every[place]),
            "attention": statistics.median(attention[place]),
            "rest": statistics.median(rest),
        }
    found["growth_of_the_rest"] = found["last"]["rest"] / found["first"]["rest"] - 1
    return found


def memory(layers: int, prompts: int, longest: int) -> dict[str, Any]:
    """Return the growth of the peak while many prompts are continued, and what was planned."""
    model = ours(layers, 2048)
    config = model.config
    generator = torch.Generator().manual_seed(0)
    lengths = [1, longest, *torch.randint(1, longest + 1, (prompts - 2,), generator=generator).tolist()]
    texts = [torch.randint(0, config.vocab_size, (length,), generator=generator).tolist() for length in lengths]
    model.generate([[1, 2], [3] * 1024], max_tokens=2)  # what libraries take once
    plan = model.plan(texts, max_tokens=32)
    alone = sum(model.plan(text, max_tokens=32).bytes for text in texts)
    width = 4 * (2 * config.mlp_width + 6 * config.hidden_size)
    workspace = plan.chunk * width + 2 * 4 * prompts * config.vocab_size
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    model.generate(texts, max_tokens=32)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {
        "planned_cache_bytes": plan.bytes,
        "over_what_the_rows_need": plan.bytes / alone,
        "over_padding_to_the_longest": plan.bytes / (prompts * model.plan(texts[1], max_tokens=32).bytes),
        "workspace_bytes": workspace,
        "peak_growth_bytes": peak,
        "peak_over_plan": peak / (plan.bytes + workspace),
    }


def main() -> None:
    counts = {"prompt": 64, "new": 1024, "trained": 512, "layers": 30}
    arguments = parser(__doc__, **counts, prompts=64, longest=2000, memory_layers=6)
    options = arguments.parse_args()
    report = begin()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    report["tokens"] = growth(ours(options.layers, options.trained), options.prompt, options.new)
    report["memory"] = memory(options.memory_layers, options.prompts, options.longest)
    publish(report, options.json)


if __name__ == "__main__":
    main()
