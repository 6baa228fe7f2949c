"""The options of a generation, beside its prompts."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, TypeAlias, TypedDict, final

from scaling.core import ConfigError, derive_seed
from scaling.transformer.inference.generation.defaults import GenerationDefaults
from scaling.transformer.inference.generation.sampling import Sampling
from scaling.transformer.inference.prompts import require_known, token_ids

Prompt: TypeAlias = "str | Sequence[int]"
"""A text, or the ids of its tokens."""
CHUNK = 1024
"""Default number of prompt tokens that are computed at a time."""
NEW_TOKENS = 128
"""Largest number of new tokens, where neither the caller nor the model gives one."""


class Asked(TypedDict, total=False):
    """Options of a caller. An option that is left out, or None, follows the model's generation configuration."""

    max_tokens: int | None
    """Largest number of new tokens. If neither the caller nor the model gives one: 128."""
    min_tokens: int | None
    """No token that ends the text is chosen before this number of new tokens."""
    sampling: Sampling | None
    """How a token is chosen. If neither the caller nor the model says: the most likely one."""
    seed: int | Sequence[int] | None
    """Seed of the draws: one for all prompts, or one each. The seed and the position of a token in its text decide its
    draw, so a seed gives a prompt the same text, whatever else is generated. None: another text each time."""
    stop: str | Sequence[str]
    """A text before which a completion ends, or several."""
    stop_tokens: Sequence[int] | None
    """Tokens that end a text, in place of the model's."""
    log_probabilities: int | None
    """Report log p of each new token, and of this many most likely tokens in its place. None: report none."""
    truncate_left: bool
    """Leave out the beginning of a prompt that is too long, instead of refusing it."""
    max_cache_bytes: int | None
    """Limit for the bytes of keys and values on a rank; prompts that do not fit wait. None: half the free memory."""
    chunk_size: int | None
    """Largest number of prompt tokens that are computed at a time. None: 1024."""


@final
@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a call, the same for all its prompts. They are checked: `ConfigError` for an invalid one."""

    max_tokens: int
    min_tokens: int = 0
    """No token that ends the text is chosen before this number of new tokens."""
    sampling: Sampling = field(default_factory=Sampling)
    ends: frozenset[int] = frozenset()
    """Tokens that end a text."""
    stop: tuple[str, ...] = ()
    """Texts before which a completion ends."""
    seeds: tuple[int, ...] = (0,)
    """Seed of each prompt."""
    samples: int = 1
    best: int | None = None
    """Report the log-probabilities of the chosen tokens and of this many most likely ones. None: report none."""
    truncate_left: bool = False
    """Leave out the beginning of a prompt that is too long, instead of refusing it."""
    max_cache_bytes: int | None = None
    """Largest number of bytes of keys and values on a rank. None: half the free memory."""
    chunk_size: int = CHUNK

    def __post_init__(self) -> None:
        """Refuse invalid options."""
        at_least = {"max_tokens": 0, "min_tokens": 0, "samples": 1, "chunk_size": 1, "max_cache_bytes": 1}
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and require_whole(name, value) < least:
                raise ConfigError(f"{name} ({value}) must be at least {least}")
        if not isinstance(self.sampling, Sampling):
            raise ConfigError(f"sampling ({self.sampling!r}) must be a Sampling: Sampling(temperature=0.8)")
        if self.min_tokens > self.max_tokens:
            raise ConfigError(
                f"min_tokens ({self.min_tokens}) is above max_tokens ({self.max_tokens}); lower one or raise the other"
            )
        if self.best is not None and require_whole("log_probabilities", self.best) < 0:
            raise ConfigError(
                f"log_probabilities ({self.best}) must be at least 0, which reports those of the chosen tokens alone"
            )
        for text in self.stop:
            if not isinstance(text, str):
                raise ConfigError(f"a stop text is {text!r}; give text, and ids of tokens as stop_tokens")
        if "" in self.stop:
            raise ConfigError("a stop text is empty; leave it out, or give the text to end before")

    def seed_of(self, prompt: int, sample: int) -> int:
        """Return the seed of a sample: the prompt's for the first, one derived from it for further samples."""
        seed = self.seeds[prompt]
        return seed if sample == 0 else derive_seed(seed, "sample", sample)


def require_whole(name: str, value: Any) -> int:
    """Return a whole number of any type as an int; refuse anything else."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name} ({value!r}) must be a whole number")
    return int(value)


def is_one(prompts: Any) -> bool:
    """Return whether this is one prompt: a text, or numbers. An empty list is a prompt without tokens."""
    if isinstance(prompts, str | bytes):
        return True
    if not isinstance(prompts, Sequence) and not getattr(prompts, "ndim", 0):
        raise ConfigError(f"prompts is of type {type(prompts).__name__}; give a text, token ids, or a list of these")
    return len(prompts) == 0 or isinstance(prompts[0], int | float) or getattr(prompts[0], "ndim", None) == 0


def one_prompt(text: str | None, tokens: Sequence[int] | None) -> Prompt:
    """Return the prompt of a call that names it: exactly one of the two must be given."""
    if (text is None) == (tokens is None):
        raise ConfigError("give the prompt either as input_text or as input_tokens")
    return tokens if text is None else text  # type: ignore[return-value]


def options_of(
    asked: Asked, defaults: GenerationDefaults, *, ends: frozenset[int], vocab_size: int, prompts: int, samples: int
) -> Options:
    """Return the options of a caller, with the model's defaults for those that are not given.

    `ends`: tokens that end a text of this model. `ConfigError` for invalid options.
    """
    if unknown := asked.keys() - Asked.__annotations__.keys():
        known = ", ".join(Asked.__annotations__)
        raise ConfigError(f"there is no option {', '.join(sorted(unknown))}; there are {known}")
    max_tokens, min_tokens, stop_tokens = asked.get("max_tokens"), asked.get("min_tokens"), asked.get("stop_tokens")
    stop, chunk_size = asked.get("stop"), asked.get("chunk_size")
    if max_tokens is None:
        max_tokens = NEW_TOKENS if defaults.max_tokens is None else defaults.max_tokens
    max_tokens = require_whole("max_tokens", max_tokens)
    return Options(
        max_tokens=max_tokens,
        min_tokens=min(defaults.min_tokens, max_tokens) if min_tokens is None else min_tokens,
        sampling=asked.get("sampling") or defaults.sampling,
        ends=ends if stop_tokens is None else _ends(stop_tokens, vocab_size),
        stop=_texts(() if stop is None else stop),
        seeds=seeds_of(asked.get("seed"), prompts, fresh=secrets.randbits(63)),
        samples=samples,
        best=asked.get("log_probabilities"),
        truncate_left=bool(asked.get("truncate_left")),
        max_cache_bytes=asked.get("max_cache_bytes"),
        chunk_size=CHUNK if chunk_size is None else chunk_size,
    )


def _ends(tokens: Sequence[int], vocab_size: int) -> frozenset[int]:
    return frozenset(require_known(token_ids(tokens, "stop_tokens"), "stop_tokens", vocab_size=vocab_size))


def _texts(stop: str | Sequence[str]) -> tuple[str, ...]:
    if not isinstance(stop, Iterable):
        raise ConfigError(f"stop is {stop!r}; give a text or a list of texts, and ids of tokens as stop_tokens")
    return (stop,) if isinstance(stop, str) else tuple(stop)


def seeds_of(seed: Any, prompts: int, *, fresh: int) -> tuple[int, ...]:
    """Return the seed of each prompt: one for all, one each, or derived from a `fresh` one where none is given."""
    if seed is None:
        return tuple(derive_seed(fresh, "prompt", number) for number in range(prompts))
    seeds = tuple(seed) if isinstance(seed, Sequence) and not isinstance(seed, str) else (seed,) * prompts
    if len(seeds) != prompts:
        raise ConfigError(f"there are {len(seeds)} seeds for {prompts} prompts; give one, or one for each prompt")
    for one in seeds:
        if not -(2**63) <= require_whole("seed", one) < 2**64:
            raise ConfigError(f"seed ({one}) must be at least -2^63 and below 2^64")
    return tuple(map(int, seeds))
