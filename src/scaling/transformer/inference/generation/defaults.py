"""The defaults of a model's generation, from the files beside its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from scaling.core import CheckpointError, ConfigError
from scaling.transformer.hf.companions import read_origin
from scaling.transformer.hf.folder import GENERATION_FILE, read_stored_object
from scaling.transformer.inference.generation.sampling import Sampling

TOP_K: Final = 50
"""Default of transformers where tokens are drawn."""


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """The options of generation that a model's files give."""

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    """Largest number of new tokens. None: the files give none."""
    min_tokens: int = 0
    """No token that ends the text is chosen before this number of new tokens."""
    end_token_ids: tuple[int, ...] = ()
    """Tokens that end a text; the end of a document comes first."""
    notes: tuple[str, ...] = ()
    """Requests of a file that are not supported here, one sentence each."""


def read_defaults(folder: Path) -> GenerationDefaults:
    """Return the generation defaults of the model in a folder of step folders, as imported and as edited since.

    Without a file, the most likely token is chosen each time. Tokens that end a text are those of the import, followed
    by those of the file.

    Raises:
        CheckpointError: A file is damaged, or has an invalid value.
    """
    path = folder / GENERATION_FILE
    origin = read_origin(folder)
    found = read_stored_object(path)
    ends = () if origin is None else origin.end_token_ids
    if found is None:
        return GenerationDefaults(end_token_ids=ends)
    file = _File(path, found)
    return GenerationDefaults(
        sampling=file.sampling(),
        max_tokens=file.whole("max_new_tokens", least=1),
        min_tokens=file.whole("min_new_tokens", least=0) or 0,
        end_token_ids=tuple(dict.fromkeys([*ends, *file.ends()])),
        notes=file.notes(),
    )


def _first(given: Any, otherwise: Any) -> Any:
    return otherwise if given is None else given


def _above(bound: float) -> Callable[[Any], bool]:
    return lambda value: not _is_number(value) or value > bound


def _below(bound: float) -> Callable[[Any], bool]:
    return lambda value: not _is_number(value) or value < bound


def _other_than(*usual: object) -> Callable[[Any], bool]:
    return lambda value: value not in usual


_NOT_DONE: Final[Mapping[str, Callable[[Any], bool]]] = {
    "num_beams": _above(1),
    "num_beam_groups": _above(1),
    "num_return_sequences": _above(1),
    "penalty_alpha": _above(0),
    "dola_layers": _other_than(),
    "encoder_repetition_penalty": _other_than(1),
    "no_repeat_ngram_size": _above(0),
    "encoder_no_repeat_ngram_size": _above(0),
    "bad_words_ids": _other_than([]),
    "force_words_ids": _other_than([]),
    "constraints": _other_than([]),
    "sequence_bias": _other_than({}, []),
    "suppress_tokens": _other_than([]),
    "begin_suppress_tokens": _other_than([]),
    "forced_bos_token_id": _other_than(),
    "forced_eos_token_id": _other_than(),
    "exponential_decay_length_penalty": _other_than(),
    "guidance_scale": _other_than(1),
    "watermarking_config": _other_than(),
    "token_healing": _other_than(False),
    "stop_strings": _other_than([]),
    "max_time": _other_than(),
}
"""Fields that change a text in ways not supported here, with a test for the values that do so; null never does."""
_NOT_DRAWN: Final[Mapping[str, Callable[[Any], bool]]] = {
    "typical_p": _below(1),
    "epsilon_cutoff": _above(0),
    "eta_cutoff": _above(0),
    "top_h": _other_than(),
}
"""Such fields that act only where tokens are drawn."""
_LENGTHS: Final = {"max_length": "max_new_tokens", "min_length": "min_new_tokens"}
"""Limits of whole texts, prompts included, and the fields that take precedence over them."""


@dataclass(frozen=True)
class _File:
    """The fields of a generation configuration, whose values may be anything."""

    path: Path
    fields: Mapping[str, Any]

    def sampling(self) -> Sampling:
        """Return how tokens are chosen, as `transformers` understands the fields; a null field counts as absent."""
        penalty = _first(self.number("repetition_penalty"), 1.0)
        numbers = {name: self.number(name) for name in ("temperature", "top_p", "min_p")}
        top_k = self.whole("top_k", least=0)
        # A value that is out of range is refused even where it has no effect yet.
        drawn = Sampling(
            temperature=self.within("temperature", _first(numbers["temperature"], 1.0)),
            top_k=_first(top_k, TOP_K) or None,
            # With 0, the most likely token remains.
            top_p=self.within("top_p", numbers["top_p"] if numbers["top_p"] != 0 else _LEAST_SHARE),
            min_p=self.within("min_p", numbers["min_p"] or None),
            repetition_penalty=self.within("repetition_penalty", penalty),
        )
        return drawn if self.is_drawn() else Sampling(repetition_penalty=drawn.repetition_penalty)

    def within(self, name: str, value: Any) -> Any:
        """Return the value of this field; refuse one that `Sampling` does not accept."""
        try:
            Sampling(**{name: value})
        except ConfigError as error:
            raise CheckpointError(f"{self.path}: {error}") from error
        return value

    def is_drawn(self) -> bool:
        """Return whether tokens are drawn by their probabilities."""
        given = self.fields.get("do_sample")
        if given is not None and type(given) is not bool:
            raise self.wrong("do_sample", "true or false")
        return bool(given)

    def number(self, name: str) -> float | None:
        """Return a number, or None where there is none."""
        given = self.fields.get(name)
        if given is not None and not _is_number(given):
            raise self.wrong(name, "a number")
        return None if given is None else float(given)

    def whole(self, name: str, *, least: int) -> int | None:
        """Return a whole number, or None where there is none."""
        given = self.fields.get(name)
        if given is None:
            return None
        if type(given) is not int or given < least:
            raise self.wrong(name, f"a whole number of at least {least}")
        return given

    def ends(self) -> tuple[int, ...]:
        """Return the tokens that end a text."""
        given = self.fields.get("eos_token_id")
        values = [] if given is None else given if isinstance(given, list) else [given]
        if any(type(value) is not int or value < 0 for value in values):
            raise self.wrong("eos_token_id", "a token id or a list of them")
        return tuple(values)

    def notes(self) -> tuple[str, ...]:
        """Return the requests that are not supported."""
        acting = {**_NOT_DONE, **(_NOT_DRAWN if self.is_drawn() else {})}
        acting |= {name: _above(0) for name, other in _LENGTHS.items() if self.fields.get(other) is None}
        return tuple(
            f"{GENERATION_FILE} asks for {name} {_shown(value)}, which is not done here"
            for name, value in self.fields.items()
            if value is not None and name in acting and acting[name](value)
        )

    def wrong(self, name: str, needed: str) -> CheckpointError:
        """Return the error for a field with an invalid value."""
        given = _shown(self.fields.get(name))
        return CheckpointError(f"{self.path}: {name} is {given}; it has to be {needed}, or null")


_LEAST_SHARE: Final = 5e-324
_MOST_SHOWN: Final = 60


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
