"""`scaling chat`: talk to a model by its chat template, line by line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import typer

from scaling.cli.chat_session import Session, ending_with_terminal, is_terminal, lines_of_input, stoppable, typed
from scaling.cli.leaving import ending_with_reader
from scaling.cli.places import checkpoints_at
from scaling.core import ConfigError
from scaling.transformer import Opened, Sampling, TransformerInferenceModule
from scaling.transformer.data.tokenizer import TOKENIZER_FILE
from scaling.transformer.inference.chat import Conversation, chat_text
from scaling.transformer.inference.generation.defaults import Asked, GenerationDefaults, asked

_NAME: Final = "adapter-option"
"""Of the adapter that is named beside CHECKPOINT, which may have one of its own that is called as that one is."""
_MAX_TOKENS: Final = 512
_TEMPERATURE: Final = 0.8


def chat(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="A folder of checkpoints, one step's folder, or a run's folder."),
    ],
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="What the system says first.")] = None,
    template: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A chat template, or a tokenizer_config.json with one, in place of the one beside the checkpoints.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="End an answer after so many tokens; room for them is kept. [512]"),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0.0, metavar="T", help="The higher, the more varied; 0 takes the most likely token each time. [0.8]"
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, metavar="K", help="Draw from the k most likely tokens; 0: from all.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(metavar="P", help="Draw from the most likely tokens that together have probability p."),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(metavar="P", help="Draw from tokens at least p times as likely as the most likely one."),
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(metavar="Q", help="Make tokens that were there before less likely, above 1.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="The same number draws the same answers.")] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="What a fine-tuning on CHECKPOINT has saved: a step's folder, or its newest."
        ),
    ] = None,
    device: Annotated[
        str,
        # The name is spelled out: one version of typer takes a metavar that is the name in capitals for the option.
        typer.Option("--device", metavar="DEVICE", help="cpu, cuda for a GPU, or cuda:N for the one of number N."),
    ] = "cpu",
    precision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Convert the weights: float32, bfloat16, float16, float64.")
    ] = None,
) -> None:
    """Talk to a trained model.

    Reads a message a line and writes the answer as it comes; /help says what else can be typed. Where the input is no
    terminal, the chat ends with it. What is not given is as the model's generation configuration says.
    """
    checkpoint = checkpoints_at(checkpoint)
    model = TransformerInferenceModule.from_checkpoint(checkpoint, device=device, precision=precision)
    used = Opened.OPENED if adapter is None else model.load_adapter(checkpoints_at(adapter), _NAME)
    if model.tokenizer is None:
        raise ConfigError(
            f"there is no {TOKENIZER_FILE} beside the step folders of {checkpoint}, so that no text can be read or "
            "written; copy the tokenizer of the training (its transformer_architecture.vocab_file) there by that name"
        )
    text = chat_text(model.tokenizer, template)
    text.require_fits(system)
    options = Asked(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_tokens=max_tokens,
    )
    max_tokens, sampling = _wanted(model.defaults, options, context_length=model.context_length)
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

    for note in model.defaults.notes:
        typer.echo(f"note: {note}", err=True)
    interactive = is_terminal(sys.stdin)
    session = Session(conversation, answer, interactive=interactive)
    with ending_with_reader(), ending_with_terminal():
        if interactive:
            typer.echo("(/help says what can be typed beside messages; Ctrl-D ends)", err=True)
            with stoppable():
                session.run(typed())
        else:
            session.run(lines_of_input())


def _wanted(defaults: GenerationDefaults, options: Asked, *, context_length: int) -> tuple[int, Sampling]:
    """Return how long answers may be and how they are drawn: as asked, as the model's files say, or else varied."""
    if options.temperature is None and defaults.sampling.temperature == 0:
        options = replace(options, temperature=_TEMPERATURE)
    if options.max_tokens is None:
        most = defaults.max_tokens or _MAX_TOKENS
        options = replace(options, max_tokens=max(1, min(most, context_length // 2)))
    wanted = asked(defaults, options)
    return wanted.max_tokens or 1, wanted.sampling
