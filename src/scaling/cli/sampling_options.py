"""Options of commands for how tokens are chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Final

import typer

from scaling.transformer import Sampling
from scaling.transformer.inference.generation.sampling_options import SamplingOptions

TEMPERATURE: Final = 0.8
"""Default where neither the command nor the model's generation configuration sets one."""

_AS_THE_MODEL: Final = "the model's, else off"

Temperature = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        metavar="T",
        help="Higher values make the text more varied; 0 always takes the most likely token.",
        show_default=f"the model's where it draws, else {TEMPERATURE}",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(min=0, metavar="K", help="Draw from the k most likely tokens; 0: off.", show_default=_AS_THE_MODEL),
]
TopP = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        help="Draw from the most likely tokens that together have probability p; 1: off.",
        show_default=_AS_THE_MODEL,
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        help="Draw from the tokens at least p times as likely as the most likely one; 0: off.",
        show_default=_AS_THE_MODEL,
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Divide the logits of tokens that are in the text already by this; 1: off.",
        show_default=_AS_THE_MODEL,
    ),
]


def sampling_of(options: SamplingOptions, model: Sampling) -> Sampling:
    """Return how tokens are chosen: by the options, else by the model's configuration, else by command defaults."""
    if model.temperature == 0:  # also where the configuration says nothing
        model = replace(model, temperature=TEMPERATURE)
    return options.over(model)
