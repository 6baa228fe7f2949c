"""`scaling generate`: continue prompts with a trained model, in one process or over several."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from scaling.cli.byte_sizes import bytes_of
from scaling.cli.completions import prompt_text, write, write_json, write_texts
from scaling.cli.model_options import AdapterPath, CheckpointPath, PrecisionName, opened_model, required_tokenizer
from scaling.cli.places import checkpoints_at
from scaling.cli.prompt_file import Request, kept_for_processes, read_requests
from scaling.cli.ranks import DeviceName, Here, ModelParallelSize, PipeParallelSize, Ranks
from scaling.cli.sampling_options import MinP, RepetitionPenalty, Temperature, TopK, TopP, sampling_of
from scaling.core import ConfigError
from scaling.transformer.inference.generation import options
from scaling.transformer.inference.generation.sampling_options import SamplingOptions


def generate(
    checkpoint: CheckpointPath,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Text to continue. May be given several times.")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help='Prompts, one a line: {"prompt": "..."}, {"tokens": [...]} or "...", perhaps with a "seed". '
            "- is standard input.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write a line of JSON for each text.")] = False,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Stop after this many new tokens.", show_default="the model's, else 128"),
    ] = None,
    min_tokens: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Do not end before this many new tokens.", show_default="the model's"),
    ] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed: the same number gives the same text.")] = None,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Number of texts for each prompt.")] = 1,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before this text. May be given several times.")
    ] = None,
    log_probabilities: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="K",
            help="With --json: the log-probability of each new token, and of the k most likely ones in its place.",
        ),
    ] = None,
    truncate_left: Annotated[
        bool, typer.Option("--truncate-left", help="Cut the beginning of a prompt that is too long.")
    ] = False,
    adapter: AdapterPath = None,
    precision: PrecisionName = None,
    max_cache_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory of each process for keys and values, such as 2GB or 512MiB; prompts without room wait.",
            show_default="half of what is free",
        ),
    ] = None,
    chunk_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Maximum number of prompt tokens to compute at a time.")
    ] = options.CHUNK,
    model_parallel_size: ModelParallelSize = 1,
    pipe_parallel_size: PipeParallelSize = 1,
    device: DeviceName = "cpu",
) -> None:
    """Continue texts with a trained model. The continuation of a single text is printed as it is generated.

    CHECKPOINT may be that of a fine-tuning; its base is found automatically. The run may continue training meanwhile.

    Special tokens spelled out in a text are read as special tokens.

    Exit status: 0 done, 2 the request is invalid, 65 the model's
    logits are not finite; 130 after Ctrl-C, 141 where the reader of the output has gone.
    """
    if prompt is None and prompts is None:
        raise typer.BadParameter("give --prompt TEXT, once or several times, or --prompts FILE")
    if prompt is not None and prompts is not None:
        raise ConfigError(
            "prompts are given twice; give either --prompt TEXT, once or several times, or --prompts FILE"
        )
    if log_probabilities is not None and not as_json:
        raise ConfigError(f"--log-probabilities ({log_probabilities}) are written as JSON; give --json too")
    work = partial(
        _work,
        _Wanted(
            checkpoint=checkpoint,
            adapter=adapter,
            precision=precision,
            source=prompts,
            texts=tuple(prompt or ()),
            as_json=as_json,
            samples=samples,
            seed=seed,
            sampling=SamplingOptions(
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
            ),
            others={
                "max_tokens": max_tokens,
                "min_tokens": min_tokens,
                "stop": tuple(stop or ()),
                "log_probabilities": log_probabilities,
                "truncate_left": truncate_left,
                "max_cache_bytes": None
                if max_cache_bytes is None
                else bytes_of(max_cache_bytes, option="--max-cache-bytes"),
                "chunk_size": chunk_size,
            },
        ),
    )
    ranks = Ranks(device=device, model_parallel_size=model_parallel_size, pipe_parallel_size=pipe_parallel_size)
    if not ranks.are_to_be_started:
        ranks.run(work)
        return
    for folder in (checkpoint, adapter):
        if folder is not None:
            checkpoints_at(folder)
    if prompts is None:
        ranks.run(work)
        return
    with kept_for_processes(read_requests(prompts)) as variables:
        ranks.run(work, variables=variables)


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """The options of the command, except those about processes."""

    checkpoint: Path
    adapter: Path | None
    precision: str | None
    source: str | None
    texts: tuple[str, ...]
    as_json: bool
    samples: int
    seed: int | None
    sampling: SamplingOptions
    others: options.Asked

    def requests(self, here: Here) -> list[Request]:
        """Return the prompts."""
        if self.source is None:
            return [Request(text) for text in self.texts]
        return read_requests(self.source, alone=here.topology is None or here.topology.layout.world_size == 1)


def _work(wanted: _Wanted, here: Here) -> None:
    requests = wanted.requests(here)
    model, adapter = opened_model(wanted.checkpoint, wanted.adapter, here, precision=wanted.precision)
    prompts = [request.prompt for request in requests]
    tokenizer = model.tokenizer
    if not (wanted.as_json and all(isinstance(prompt, list) for prompt in prompts)):
        tokenizer = required_tokenizer(model, wanted.checkpoint)
    chosen = options.Asked(
        **wanted.others,
        sampling=sampling_of(wanted.sampling, model.defaults.sampling),
        seed=asked_seeds(requests, wanted.seed, here),
    )
    if tokenizer is not None and len(prompts) == wanted.samples == 1 and not wanted.as_json:
        pieces = model.stream_text(prompts[0], adapter=adapter, **chosen)
        first = next(pieces, "")  # raises errors about the arguments before anything is printed
        if not here.speaks:
            for _ in pieces:
                pass
            return
        write(prompt_text(prompts[0], tokenizer) + first)
        for piece in pieces:
            write(piece)
        write("\n")
        return
    completions = model.generate(prompts, samples=wanted.samples, adapter=adapter, **chosen)
    if here.speaks and (wanted.as_json or tokenizer is None):
        write_json(prompts, completions)
    elif here.speaks and tokenizer is not None:
        write_texts(prompts, completions, tokenizer)


def asked_seeds(requests: Sequence[Request], seed: int | None, here: Here) -> int | list[int] | None:
    """Return a seed for each prompt if any has its own; the others get the common seed, or a random one.

    Collective where some prompt has a seed: all processes of the command.
    """
    if all(request.seed is None for request in requests):
        return seed
    fresh = [secrets.randbits(63) if seed is None else seed for _ in requests]
    if here.topology is not None:
        fresh = here.topology.broadcast("seeds", fresh)
    return [one if request.seed is None else request.seed for request, one in zip(requests, fresh, strict=True)]
