"""Measure generation over two processes: two groups of rows against one along the pipeline, and what travels.

    python3 benchmarks/generate_ranks.py [--rows 16] [--prompt 64] [--new 48] [--rounds 3] [--layers 30] [--json FILE]

The model has the shape of SmolLM2-135M, in float32, one thread for each process. Over two stages of a pipeline the rows
go around in two groups, and then all in one, in turns: the ratio is that of tokens per second of wall time, and the
simulator's figure stands beside it, for stages whose time goes with the number of rows and for stages that spend all of
it reading weights. Over two model ranks (with 8 heads, which two ranks can share) the bytes handed to collectives are
counted, per token of a row, beside what follows from the plan.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from generate import architecture
from reporting import begin, parser, publish

from scaling.core import Topology, TopologyConfig, gathered_bytes, predicted_gain
from scaling.transformer.inference import TransformerInferenceModule

RANKS = 2
COLLECTIVES = ("all_reduce", "broadcast", "gather")


def on_ranks(work: Callable[..., dict[str, Any]], options: Any) -> dict[str, Any]:
    """Return what `work` returns on rank 0 of two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answers = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_as_rank, args=(port, work, options, answers), nprocs=RANKS)
    found: dict[str, Any] = answers.get()
    return found


def _as_rank(rank: int, port: int, work: Callable[..., dict[str, Any]], options: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    found = work(options)
    if rank == 0:
        answers.put(found)


def layout(*, pipe: int = 1, model: int = 1) -> TopologyConfig:
    sizes = {"pipe_parallel_size": pipe, "model_parallel_size": model, "data_parallel_size": 1}
    return TopologyConfig.from_dict({**sizes, "device": "cpu"})


def prompts(options: Any, vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    made: list[list[int]] = torch.randint(0, vocabulary, (options.rows, options.prompt), generator=generator).tolist()
    return made


def along_the_pipeline(options: Any) -> dict[str, Any]:
    """Return tokens per second with two groups and with one."""
    config = layout(pipe=RANKS)
    with Topology.connect(config) as topology:
        model = TransformerInferenceModule(architecture(options.layers, 2048), topology=topology)
        texts = prompts(options, model.config.vocab_size)
        rates: dict[int, list[float]] = {RANKS: [], 1: []}
        for number in range(options.rounds + 1):
            for groups in (RANKS, 1) if number % 2 else (1, RANKS):
                model._completing.groups = groups
                stream = model.stream(texts, max_tokens=options.new)
                for _ in range(options.rows):  # the prompts are read
                    next(stream)
                start = time.perf_counter()
                for _ in stream:
                    pass
                rates[groups].append(options.rows * (options.new - 1) / (time.perf_counter() - start))
    gains = [two / one for two, one in zip(rates[RANKS][1:], rates[1][1:], strict=True)]
    return {
        "tokens_per_second": {"two_groups": rates[RANKS][1:], "one_group": rates[1][1:]},
        "gain": {"median": statistics.median(gains), "by_round": gains},
        "predicted_gain": {
            "time_goes_with_rows": predicted_gain(RANKS, RANKS),
            "time_goes_with_weights": predicted_gain(RANKS, RANKS, part=1.0),
        },
    }


def over_model_ranks(options: Any) -> dict[str, Any]:
    """Return the bytes that collectives are handed per token of a row, and what is planned."""
    config = layout(model=RANKS)
    shape = architecture(options.layers, 2048)
    shape = shape.model_copy(
        update={"hidden_size": 512, "num_attention_heads": 8, "attention_num_kv_heads": 4, "vocab_size": 49152}
    )
    counted = dict.fromkeys(COLLECTIVES, 0)
    with Topology.connect(config) as topology:
        model = TransformerInferenceModule(type(shape).from_dict(shape.as_dict()), topology=topology)
        texts = prompts(options, model.config.vocab_size)
        stream = model.stream(texts, max_tokens=9)
        for _ in range(options.rows):
            next(stream)
        usual = {name: getattr(dist, name) for name in COLLECTIVES}
        for name in COLLECTIVES:
            setattr(dist, name, _counting(usual[name], name, counted))
        for _ in stream:
            pass
        for name in COLLECTIVES:
            setattr(dist, name, usual[name])
        hidden, layers, vocabulary = shape.hidden_size, shape.num_layers, shape.vocab_size
    tokens = options.rows * 8
    planned = {
        "all_reduce": 4 * hidden * (2 * layers + 1),
        "broadcast": 8 * 2,
        "gather": gathered_bytes(vocabulary, RANKS, 4),
    }
    return {"bytes_per_token": {name: counted[name] / tokens for name in COLLECTIVES}, "planned": planned}


def _counting(collective: Callable[..., Any], name: str, counted: dict[str, int]) -> Callable[..., Any]:
    def call(tensor: Any, *arguments: Any, **options: Any) -> Any:
        counted[name] += tensor.nbytes
        return collective(tensor, *arguments, **options)

    return call


def main() -> None:
    options = parser(__doc__, rows=16, prompt=64, new=48, rounds=3, layers=30).parse_args()
    report = begin()
    report["pipeline"] = on_ranks(along_the_pipeline, options)
    report["tensor"] = on_ranks(over_model_ranks, options)
    publish(report, options.json)


if __name__ == "__main__":
    main()
