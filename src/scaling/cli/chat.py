"""`scaling chat`: talk to a model by its chat template, line by line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from scaling.cli.chat_session import Session, ending_with_terminal, is_terminal, lines_of_input, stoppable, typed
from scaling.cli.leaving import ending_with_reader
from scaling.cli.model_options import AdapterPath, CheckpointPath, PrecisionName, opened_model, required_tokenizer
from scaling.cli.ranks import Here
from scaling.cli.sampling_options import MinP, RepetitionPenalty, Temperature, TopK, TopP, sampling_of
from scaling.transformer.inference.chat import Conversation, chat_text
from scaling.transformer.inference.generation.sampling_options import SamplingOptions

_MAX_TOKENS: Final = 512
"""Default for an answer where neither the command nor the model sets it; at most half of the context."""


def chat(
    checkpoint: CheckpointPath,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message at the start of the chat.")] = None,
    template: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A chat template, or a tokenizer_config.json with one, instead of the one beside the checkpoints.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="End an answer after this many tokens; room for them is reserved.",
            show_default=f"the model's, else {_MAX_TOKENS}",
        ),
    ] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed: the same number gives the same answers.")] = None,
    adapter: AdapterPath = None,
    device: Annotated[
        str,
        # The name is given explicitly: one version of typer mistakes a metavar that is the name in capitals for it.
        typer.Option("--device", metavar="DEVICE", help="cpu, cuda for a GPU, or cuda:N for GPU number N."),
    ] = "cpu",
    precision: PrecisionName = None,
) -> None:
    """Talk to a trained model.

    Reads one message per line and writes the answer as it is generated; /help lists further commands. Where the input
    is not a terminal, the chat ends with the input. Options default to the model's generation configuration.
    """
    model, used = opened_model(checkpoint, adapter, Here(device=device), precision=precision)
    text = chat_text(required_tokenizer(model, checkpoint), template)
    text.require_fits(system)
    options = SamplingOptions(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    sampling = sampling_of(options, model.defaults.sampling)
    if max_tokens is None:
        max_tokens = max(1, min(model.defaults.max_tokens or _MAX_TOKENS, model.context_length // 2))
    conversation = Conversation(
        text,
        messages=[] if system is None else [{"role": "system", "content": system}],
        context_length=model.context_length,
        max_tokens=max_tokens,
    )
    ends = sorted({*model.end_token_ids, *text.end_token_ids})

    def answer(tokens: Sequence[int]) -> Iterator[str]:
        return model.stream_text(
            tokens,
            max_tokens=max_tokens,
            sampling=sampling,
            seed=seed,
            stop_tokens=ends,
            adapter=used,
        )

    interactive = is_terminal(sys.stdin)
    session = Session(conversation, answer, interactive=interactive)
    with ending_with_reader(), ending_with_terminal():
        if interactive:
            typer.echo("(/help says what can be typed beside messages; Ctrl-D ends)", err=True)
            with stoppable():
                session.run(typed())
        else:
            session.run(lines_of_input())
