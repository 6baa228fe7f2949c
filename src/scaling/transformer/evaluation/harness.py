"""The answers of a model to lm-eval (github.com/EleutherAI/lm-evaluation-harness), as its model class `hf` gives them.

Nothing here imports that package: `tasks.py` makes one of its model classes from these answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from scaling.core import ConfigError
from scaling.transformer.data.progress import ProgressCallback, silent
from scaling.transformer.data.tokenizer import Tokenizer
from scaling.transformer.inference.generation.defaults import TOP_K
from scaling.transformer.inference.generation.sampling import Sampling
from scaling.transformer.inference.generation.sampling_options import SamplingOptions
from scaling.transformer.inference.module import TransformerInferenceModule

_NEW_TOKENS: Final = 256
"""Number of tokens to generate where a task does not give one."""
_NAMES_OF_NEW_TOKENS: Final = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the limit of new tokens; the first that a task gives is used."""
_CHANGE_NOTHING: Final[Mapping[str, Any]] = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True}
_BLOCK: Final = 2**15
"""Number of tokens between two reports of progress, or a little more."""

Pair = tuple[list[int], list[int]]
"""Tokens of a context, and of the continuation that is scored after it."""


def rolling_windows(tokens: Sequence[int], prefix: int, length: int) -> Iterator[Pair]:
    """Yield windows in which each token of a text is scored once; a window has at most `length` inputs.

    The first token comes after `prefix`; the last window is as full as the others, and scores the remaining tokens.
    """
    if tokens:
        yield [prefix], list(tokens[:length])
    for start in range(length, len(tokens), length):
        end = min(start + length, len(tokens))
        yield list(tokens[end - length - 1 : start]), list(tokens[start:end])


def shortened(context: Sequence[int], continuation: Sequence[int], length: int) -> Pair:
    """Return a pair of which no more than `length` tokens are read, by leaving out the first ones.

    `ConfigError` where nothing would remain in front of the continuation.
    """
    if len(continuation) > length:
        raise ConfigError(
            f"a task scores a text of {len(continuation)} tokens, and this model reads {length} at most; choose a task "
            "with shorter answers"
        )
    kept = [*context, *continuation][-(length + 1) :]
    new = len(continuation)
    return kept[: len(kept) - new], kept[len(kept) - new :]


def until_first(text: str, ends: Sequence[str]) -> str:
    """Return the text before the first of `ends`."""
    return text[: min((place for place in map(text.find, filter(None, ends)) if place >= 0), default=len(text))]


def sampling_of_task(wanted: Mapping[str, Any], model: Sampling) -> Sampling:
    """Return how a task's `generation_kwargs` choose tokens: greedily, unless they ask for more.

    Options that they leave open follow `model`, the model's generation configuration, as in transformers.
    """
    temperature = float(wanted.get("temperature") or 0.0)
    drawn = wanted.get("do_sample")
    if drawn and not temperature:
        raise ConfigError("a task asks for do_sample with temperature 0; give it a temperature above 0")
    if not (drawn or (drawn is None and temperature)):
        return SamplingOptions(temperature=0.0).over(model)
    top_k = wanted.get("top_k")
    if top_k is None and model.top_k is None:
        top_k = TOP_K
    others = {name: wanted.get(name) for name in ("top_p", "min_p", "repetition_penalty")}
    return SamplingOptions(temperature=temperature, top_k=top_k, **others).over(model)


class HarnessAnswers:
    """The answers of a model: a mixin for `lm_eval.api.model.TemplateLM`, which asks for them.

    Every method must be called in the same way on all ranks of the pipe and model axes. Texts become tokens as with
    `--model hf`: with the tokens that the tokenizer puts around a text, unless the text begins with the first of them.
    """

    cache_hook: Any
    """Object of lm-eval that receives the answers."""

    def __init__(self, model: TransformerInferenceModule, *, progress: ProgressCallback = silent) -> None:
        super().__init__()
        if model.tokenizer is None:
            raise ConfigError("tasks consist of texts, and this checkpoint has no tokenizer beside it; put it there")
        self._model = model
        self._tokenizer: Tokenizer = model.tokenizer
        self._progress = progress

    @property
    def eot_token_id(self) -> int:
        """Return the token that ends a text."""
        return self._tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """Return the token that precedes the first token of a text: the one that begins texts, or else ends them."""
        begins = self._tokenizer.bos_token_id
        return self.eot_token_id if begins is None else begins

    @property
    def max_length(self) -> int:
        """Return the largest number of tokens that the model reads."""
        return self._model.context_length

    @property
    def tokenizer_name(self) -> str:
        """Return a string that distinguishes tokenizers, for caches of requests."""
        return self._tokenizer.sha256

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_others: Any) -> list[int]:
        """Return the tokens of a text. None: with special tokens, unless it begins with the prefix token already."""
        if add_special_tokens is None:
            prefix = self._tokenizer.decode([self.prefix_token_id], skip_special_tokens=False)
            add_special_tokens = not string.startswith(prefix)
        return self._tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_how: Any) -> Any:
        """Return (log-likelihood, whether it is greedy) of each continuation, given (key, context, continuation).

        A context of only spaces has no tokens, since its spaces begin the continuation: the prefix token takes its
        place.
        """
        pairs = [(context or [self.prefix_token_id], continuation) for _, context, continuation in requests]
        answers = self._scores(pairs)
        for (key, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", key, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text."""
        windows: list[Pair] = []
        counts: list[int] = []
        for (text,) in (request.args for request in requests):
            found = rolling_windows(self.tok_encode(text), self.prefix_token_id, self.max_length)
            counts.append(-len(windows))
            windows += found
            counts[-1] += len(windows)
        scores = iter(self._scores(windows))
        answers = [sum(next(scores)[0] for _ in range(count)) for count in counts]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
        return answers

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the continuation of each context, up to the first text that ends it."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
        answers = [""] * len(requests)
        for numbers in groups.values():
            wanted: Mapping[str, Any] = requests[numbers[0]].args[1]
            contexts = [self._prompt(requests[number].args[0]) for number in numbers]
            for number, text in zip(numbers, self._continued(contexts, wanted, numbers), strict=True):
                answers[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return answers

    def _scores(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Score pairs, the longest first, so that those with the same beginning run together."""
        cut = [shortened(context, continuation, self.max_length) for context, continuation in pairs]
        order = sorted(range(len(cut)), key=lambda place: (-sum(map(len, cut[place])), cut[place]))
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(cut)
        done = 0
        for block in _blocks(order, [sum(map(len, pair)) for pair in cut]):
            found = self._model.log_likelihood([cut[place][0] for place in block], [cut[place][1] for place in block])
            for place, likelihood in zip(block, found, strict=True):
                answers[place] = likelihood.total, likelihood.is_greedy
            done += len(block)
            self._progress("scoring texts", done, len(order))
        return answers

    def _prompt(self, text: str) -> list[int]:
        """Return the tokens of a context; the model's own BOS decides whether the context begins with it already."""
        begins = self._tokenizer.bos_token_id
        if begins is None:
            return self.tok_encode(text, add_special_tokens=True)
        name = self._tokenizer.decode([begins], skip_special_tokens=False)
        return self.tok_encode(text, add_special_tokens=not text.startswith(name))

    def _continued(
        self, contexts: Sequence[list[int]], wanted: Mapping[str, Any], numbers: Sequence[int]
    ) -> Iterator[str]:
        """Yield the continuations of contexts with the same `generation_kwargs`."""
        new_tokens = next((int(wanted[name]) for name in _NAMES_OF_NEW_TOKENS if wanted.get(name) is not None), None)
        new_tokens = _NEW_TOKENS if new_tokens is None else new_tokens
        room = self.max_length - new_tokens
        if room < 1:
            raise ConfigError(
                f"a task generates {new_tokens} tokens, and this model knows texts of {self.max_length} at most; let "
                f"its generation_kwargs have max_gen_toks of at most {self.max_length - 1}"
            )
        known = {"until", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"}
        known |= {
            *_NAMES_OF_NEW_TOKENS,
            *(name for name, value in _CHANGE_NOTHING.items() if wanted.get(name) == value),
        }
        unknown = sorted(wanted.keys() - known)
        if unknown:
            raise ConfigError(
                f"a task's generation_kwargs ask for {unknown[0]} {wanted[unknown[0]]!r}, which is not done here; "
                "remove it from the task"
            )
        until = wanted.get("until") or []
        ends = [until] if isinstance(until, str) else [str(end) for end in until]
        if (name := self._tokenizer.eos_token) is not None:
            ends.append(name)
        tokens = {end: self._tokenizer.token_id(end) for end in ends if end}
        own_token = {token for token in tokens.values() if token is not None}
        sampling = sampling_of_task(wanted, self._model.defaults.sampling)
        for block in _blocks(range(len(contexts)), [len(context) + new_tokens for context in contexts]):
            completions = self._model.generate(
                [contexts[place][-room:] for place in block],
                max_tokens=new_tokens,
                sampling=sampling,
                seed=[numbers[place] for place in block],
                stop=tuple(tokens),
                stop_tokens=sorted(self._model.end_token_ids | own_token),
            )
            for completion in completions:
                yield until_first(self._tokenizer.decode(completion.completion_tokens), ends)
            self._progress("continuing texts", block[-1] + 1, len(contexts))


def _blocks(places: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Yield places in their order, in blocks of about `_BLOCK` tokens."""
    block: list[int] = []
    total = 0
    for place in places:
        block.append(place)
        total += sizes[place]
        if total >= _BLOCK:
            yield block
            block, total = [], 0
    if block:
        yield block
