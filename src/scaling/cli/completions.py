"""Completions on standard output: as text with headings for a person, or as JSON lines for a program."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from scaling.cli.json_text import json_text
from scaling.transformer.data.tokenizer import Tokenizer
from scaling.transformer.inference.generation.completion import Completion
from scaling.transformer.inference.generation.options import Prompt
from scaling.transformer.inference.text import escaped


def write(text: str) -> None:
    """Write a piece of arbitrary text; on a terminal, control characters appear as escapes."""
    sys.stdout.write(escaped(text) if sys.stdout.isatty() else text)  # typer drops what looks like control sequences
    sys.stdout.flush()


def prompt_text(prompt: Prompt, tokenizer: Tokenizer) -> str:
    """Return a prompt as text, special tokens included."""
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt, skip_special_tokens=False)


def heading(prompt: int, sample: int, *, prompts: int, samples: int) -> str:
    """Return the line above one of several texts."""
    of_samples = f", sample {sample + 1} of {samples}" if samples > 1 else ""
    return f"--- prompt {prompt + 1} of {prompts}{of_samples} ---"


def write_texts(prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], tokenizer: Tokenizer) -> None:
    """Write each prompt with each of its completions."""
    for number, (prompt, samples) in enumerate(zip(prompts, completions, strict=True)):
        for sample, completion in enumerate(samples):
            typer.echo(heading(number, sample, prompts=len(prompts), samples=len(samples)))
            write(prompt_text(prompt, tokenizer) + completion.completion_text + "\n")


def write_json(prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]) -> None:
    """Write a JSON object for each completion, one per line; on a terminal everything but ASCII is escaped."""
    row = 0
    for prompt, samples in zip(prompts, completions, strict=True):
        for sample, completion in enumerate(samples):
            found: dict[str, object] = {
                "row": row,
                "prompt": prompt,
                **({"sample": sample} if len(samples) > 1 else {}),
                "text": completion.completion_text,
                "tokens": completion.completion_tokens,
                "finish_reason": completion.finish_reason,
            }
            if completion.log_probabilities is not None:
                found |= {"log_probabilities": completion.log_probabilities, "best": completion.best}
            typer.echo(json_text(found, ascii_only=sys.stdout.isatty()))
            row += 1
