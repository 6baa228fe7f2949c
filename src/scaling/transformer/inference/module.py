"""TransformerInferenceModule: a trained model in one process, whatever layout it was trained in, and its adapters."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from scaling.core import (
    AttentionCore,
    CachedAttention,
    Checkpointer,
    ConfigError,
    KeyValueCache,
    MicroBatch,
    ParallelModule,
    ParallelSelfAttention,
    StoredCheckpoint,
    Topology,
    TopologyConfig,
    folder_meant,
    is_on_base,
)
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.choices import Precision
from scaling.transformer.config.groups import grown_tables
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.data.tokenizer import Tokenizer
from scaling.transformer.finetuning.stored import StoredAdapter
from scaling.transformer.hf.companions import ends_of_turns
from scaling.transformer.inference.adapters import Adapters
from scaling.transformer.inference.device import require_device
from scaling.transformer.inference.sampling import Sampling, choose
from scaling.transformer.io import TextInputs
from scaling.transformer.layers.head import HeadOutput
from scaling.transformer.layers.kernels import scores_of
from scaling.transformer.model import layer_specs
from scaling.transformer.plan.attention import AttentionPlan
from scaling.transformer.stored_model import architecture_of, tokenizer_beside

_CHUNK = 1024
"""Tokens whose logits exist at a time where only the probability of a token is wanted."""


class Opened(Enum):
    """Stands for the adapter whose checkpoint `from_checkpoint` opened; for none where that was a whole model's."""

    OPENED = "opened"


_BASE_REMEDY = (
    "name the folder that the base is in now: from_checkpoint(path, base=...), or open the base and load this"
)


@dataclass(frozen=True)
class Completion:
    """What `generate` returns."""

    completion_tokens: list[int]
    """The new tokens, without the prompt; with the stop token, if one ended them."""
    completion_text: str
    """Their text, without the stop token; empty for a model without a tokenizer."""


@final
class TransformerInferenceModule:
    """Scores and generates text on one device. Make one with `from_checkpoint`.

    Every call takes the name of the `adapter` that acts in it, or None for the base alone. Left out it is the one that
    `from_checkpoint` opened, where it opened one.
    """

    def __init__(
        self,
        config: TransformerArchitectureConfig,
        *,
        device: str = "cpu",
        tokenizer: Tokenizer | None = None,
        eod_token_id: int | None = None,
        end_token_ids: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        if eod_token_id is None and tokenizer is not None and tokenizer.eos_token is not None:
            eod_token_id = tokenizer.eos_token_id
        self._end_token_ids = {*end_token_ids, *(() if eod_token_id is None else (eod_token_id,))}
        require_device(device)
        self._topology = Topology.single(device)
        self.module = ParallelModule(
            layer_specs(config, self._topology, seed=seed), self._topology, TopologyConfig(), seed=seed
        )
        self.module.eval()
        self._adapters = Adapters(self.module, config, self._topology)
        self._opened: str | None = None

    @classmethod
    def from_checkpoint(
        cls,
        path: Path | str,
        *,
        base: Path | str | None = None,
        device: str = "cpu",
        precision: str | None = None,
        sequence_length: int | None = None,
    ) -> Self:
        """Load the newest checkpoint of a directory, or one step folder, of any layout; a run's folder is searched.

        Where the checkpoint holds only what was trained on a base, that is loaded too, from where it was or else from
        `base`, and the adapter acts in each call that names no other. `precision` converts the weights (`float32`,
        `bfloat16`, `float16`, `float64`); None keeps the trained one. `sequence_length` is the length that rotations of
        the types `dynamic` and `longrope` follow, in place of the trained one. The tokenizer is the one the run left
        beside its checkpoints, if any, or else that of the base. `CheckpointError` if there is none to load, the base
        is not there or another one, or the tokenizer is another one than the run's, `ConfigError` for a precision or
        device that does not exist.
        """
        precisions = [known.value for known in Precision]
        if precision is not None and precision not in precisions:
            raise ConfigError(f"precision ({precision}) does not exist; choose one of {', '.join(precisions)}")
        stored = Checkpointer(None).find(folder_meant(Path(path)), weights_only=True).require()
        architecture, settings = architecture_of(stored)
        adapter = StoredAdapter.of(stored) if is_on_base(stored.manifest) else None
        if base is not None and adapter is None:
            raise ConfigError(f"base ({base}) is given, but {stored.path} holds a whole model, which needs none")
        whole: StoredCheckpoint | None = stored
        if adapter is not None:
            elsewhere = None if base is None else folder_meant(Path(base))
            architecture, whole = adapter.base_architecture, adapter.find_base(elsewhere, remedy=_BASE_REMEDY)
        if precision is not None:
            architecture = architecture.model_copy(update={"precision": Precision(precision)})
        beside = [found.path.absolute() for found in (stored, whole) if found is not None]
        tokenizers = (tokenizer_beside(folder, settings) for folder in beside)
        model = cls(
            architecture if sequence_length is None else architecture.at_length(sequence_length),
            device=device,
            tokenizer=next((found for found in tokenizers if found is not None), None),
            eod_token_id=settings.get("data", {}).get("eod_token_id"),
            end_token_ids=tuple(dict.fromkeys(end for folder in beside for end in ends_of_turns(folder.parent))),
            seed=0 if adapter is None else adapter.seed,
        )
        if whole is not None:
            grown = () if adapter is None else grown_tables(adapter.architecture)
            model._adapters.read_base(whole, grown=grown)
        if adapter is not None:
            model._opened = model._adapters.load(adapter, None)
        return model

    def load_adapter(self, path: Path | str, name: str | None = None) -> str:
        """Load the newest adapter of a directory beside the base, or that of a step folder, and return its name.

        The name is that of its configuration, or the given one; calls choose by it. `CheckpointError` for an adapter
        that was trained on another base, `ConfigError` for a name that there is already.
        """
        stored = Checkpointer(None).find(folder_meant(Path(path)), weights_only=True).require()
        return self._adapters.load(StoredAdapter.of(stored), name)

    def merge_adapter(self, name: str) -> None:
        """Make an adapter part of the weights, which then act in each call; several one after the other.

        Weights are computed in float32, or float64 where they are that, and rounded once. `ConfigError` for an adapter
        that is no change of weights, or is merged already.
        """
        self._adapters.merge(name)

    def unmerge_adapter(self) -> None:
        """Take all that is merged out of the weights: those of the base are read again, to the last bit."""
        self._adapters.unmerge()

    @torch.no_grad()
    def logits(self, input_ids: Tensor, *, adapter: str | Opened | None = Opened.OPENED) -> Tensor:
        """Return the logits [b, s, vocabulary] of token ids int64 [b, s]; each row is one document."""
        return self._run(self._known(input_ids), self._use(adapter)).logits()

    @torch.no_grad()
    def log_likelihood(self, input_ids: Tensor, *, adapter: str | Opened | None = Opened.OPENED) -> Tensor:
        """Return log p(token | tokens before it) of all but the first token, [b, s - 1] in at least float32."""
        output = self._run(self._known(input_ids)[:, :-1], self._use(adapter))
        targets = input_ids[:, 1:].to(output.hidden.device, torch.int64)
        return -output.token_losses(targets, chunk_size=_CHUNK).losses

    def generate(
        self,
        max_tokens: int,
        *,
        input_text: str | None = None,
        input_tokens: Sequence[int] | None = None,
        sampling: Sampling | None = None,
        seed: int | None = None,
        stop_tokens: Sequence[int] | None = None,
        adapter: str | Opened | None = Opened.OPENED,
    ) -> Completion:
        """Continue a prompt given as text or as tokens, until a stop token or `max_tokens` new ones.

        The default stops at the end of the document, or of a turn, and takes the most likely token each time.
        """
        if max_tokens < 0:
            raise ConfigError(f"max_tokens ({max_tokens}) must be at least 0")
        tokens: list[int] = []
        stop = self._stop_tokens(stop_tokens)
        prompt = self._prompt(input_text, input_tokens)
        self._require_positions(len(prompt), max_tokens, adapter)
        streamed = self.stream(prompt, sampling=sampling, seed=seed, adapter=adapter)
        for token in itertools.islice(streamed, max_tokens):
            tokens.append(token)
            if token in stop:
                break
        shown = tokens[:-1] if tokens and tokens[-1] in stop else tokens
        return Completion(tokens, self.tokenizer.decode(shown) if self.tokenizer is not None else "")

    @torch.no_grad()
    def stream(
        self,
        prompt: Sequence[int],
        *,
        sampling: Sampling | None = None,
        seed: int | None = None,
        adapter: str | Opened | None = Opened.OPENED,
    ) -> Iterator[int]:
        """Yield new tokens one by one, without end; keys and values of earlier tokens are kept, not computed again.

        `ConfigError` at the end of learned positions, which no token goes beyond.
        """
        if not self.config.causal:
            raise ConfigError(
                "this model has been trained with transformer_architecture.causal false, to see the tokens after the "
                "one it predicts, so it cannot continue a text; use logits or log_likelihood"
            )
        if seed is not None and not -(2**63) <= seed < 2**64:
            raise ConfigError(f"seed ({seed}) must be at least -2^63 and below 2^64")
        sampling = sampling or Sampling()
        generator = torch.Generator(device=self._topology.device)
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        attentions = [module for module in self.module.modules() if isinstance(module, ParallelSelfAttention)]
        usual = [attention.core for attention in attentions]
        parts = [part for layer in plan_of(self.config).layers() for _, part in layer.parts]
        cached: list[AttentionCore] = [
            CachedAttention(KeyValueCache(), scores_of(part), heads=range(part.heads))
            for part in parts
            if isinstance(part, AttentionPlan)
        ]
        tokens = self._prompt(None, prompt)
        first, is_first = self._use(adapter), True
        while True:
            self._use(adapter)
            for attention, core in zip(attentions, cached, strict=True):
                attention.attend_with(core)
            try:
                logits = self._run(torch.tensor([tokens]), first, is_first=is_first).last().logits()
            finally:  # between tokens the model is free for other calls
                for attention, core in zip(attentions, usual, strict=True):
                    attention.attend_with(core)
            first, is_first = first + len(tokens), False
            tokens = [int(choose(logits[:, -1], sampling, generator))]
            yield tokens[0]

    def stream_text(
        self,
        prompt: str,
        *,
        max_tokens: int,
        sampling: Sampling | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        adapter: str | Opened | None = Opened.OPENED,
    ) -> Iterator[str]:
        """Yield the continuation of a text piece by piece, up to the end of the document or the first of `stop`.

        A piece is held back while it may still be part of a character or of a stop text.
        """
        if self.tokenizer is None:
            raise ConfigError("this checkpoint has no tokenizer beside it; use generate with input_tokens")
        if "" in stop:
            raise ConfigError("a stop text is empty; leave it out, or give the text to end before")
        given = self._prompt(prompt, None)
        self._require_positions(len(given), max_tokens, adapter)
        tokens: list[int] = []
        shown = 0
        streamed = self.stream(given, sampling=sampling, seed=seed, adapter=adapter)
        for token in itertools.islice(streamed, max_tokens):
            if token in self._end_token_ids:
                break
            tokens.append(token)
            text = self.tokenizer.decode(tokens)
            ends = [place for place in (text.find(end) for end in stop) if place >= 0]
            if ends:
                yield text[shown : min(ends)]
                return
            held = max((_overlap(text, end) for end in stop), default=0)
            ready = len(text) - held
            if ready > shown and not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[shown:ready]
                shown = ready
        text = self.tokenizer.decode(tokens)
        if len(tokens) == max_tokens:
            text = text.rstrip("\N{REPLACEMENT CHARACTER}")  # the limit may have cut a character
        yield text[shown:]

    def _use(self, adapter: str | Opened | None) -> int:
        """Let an adapter act from now on, and return how many placeholders it wants in front of a text."""
        if isinstance(adapter, Opened):
            adapter = None if self._adapters.merged else self._opened
        return self._adapters.use(adapter)

    def _run(self, input_ids: Tensor, first: int, *, is_first: bool = True) -> HeadOutput:
        """Return the output for tokens [b, s] at the positions from `first` on.

        `is_first`: they are the beginning of the text, and what is before them are placeholders of a soft prompt.
        """
        device = self._topology.device
        input_ids = input_ids.to(device)
        placeholders = first if is_first else 0
        if placeholders:
            input_ids = F.pad(input_ids, (placeholders, 0))
            first = 0
        rows, length = input_ids.shape
        learned = self.config.absolute_positions
        if learned is not None and first + length > learned:
            raise ConfigError(
                f"the text has {first + length} tokens, but the model knows {learned} positions "
                "(transformer_architecture.absolute_positions); give it a shorter one"
            )
        positions = torch.arange(first, first + length, device=device).expand(rows, length)
        samples = torch.zeros(rows, dtype=torch.int64, device=device)
        output: HeadOutput
        (output,) = self.module.forward_step(iter([MicroBatch(TextInputs(input_ids, positions, None, samples), None)]))
        return output.behind(placeholders) if placeholders else output

    def _require_positions(self, prompt: int, new: int, adapter: str | Opened | None) -> None:
        """Refuse what would go beyond the learned positions; the last new token is not read, so it needs none."""
        learned = self.config.absolute_positions
        prompt += self._use(adapter)
        if learned is not None and new and prompt + new - 1 > learned:
            most = learned - prompt + 1
            advice = f"set max_tokens to at most {most}" if most > 0 else "shorten it"
            raise ConfigError(
                f"the prompt has {prompt} tokens and max_tokens is {new}, but the model knows {learned} positions "
                f"(transformer_architecture.absolute_positions); {advice}"
            )

    def _prompt(self, text: str | None, tokens: Sequence[int] | None) -> list[int]:
        if (text is None) == (tokens is None):
            raise ConfigError("give the prompt either as input_text or as input_tokens")
        if tokens is None:
            if self.tokenizer is None:
                raise ConfigError("this checkpoint has no tokenizer beside it; give the prompt as input_tokens")
            tokens = self.tokenizer.encode(text or "")
        tokens = [operator.index(token) for token in tokens]
        if not tokens:
            raise ConfigError("the prompt is empty; give at least one token")
        outside = [token for token in tokens if not 0 <= token < (self.config.vocab_size or 0)]
        if outside:
            raise ConfigError(f"the prompt has token {outside[0]}, outside the vocabulary of {self.config.vocab_size}")
        return tokens

    def _known(self, input_ids: Tensor) -> Tensor:
        """Return token ids [b, s] that the model has embeddings for."""
        if input_ids.dim() != 2 or input_ids.dtype not in (torch.int64, torch.int32):
            raise ConfigError(
                f"input_ids has shape {list(input_ids.shape)} and type {input_ids.dtype}; give token ids, int64 "
                "[batch, sequence]"
            )
        outside = input_ids[(input_ids < 0) | (input_ids >= self.config.vocab_size)]
        if outside.numel():
            raise ConfigError(
                f"input_ids has token {int(outside[0])}, outside the vocabulary of {self.config.vocab_size}"
            )
        return input_ids

    def _stop_tokens(self, given: Sequence[int] | None) -> set[int]:
        if given is not None:
            return set(given)
        return self._end_token_ids


def _overlap(text: str, end: str) -> int:
    """Return how many characters at the end of `text` could begin `end`."""
    return next((size for size in range(min(len(end) - 1, len(text)), 0, -1) if text.endswith(end[:size])), 0)
