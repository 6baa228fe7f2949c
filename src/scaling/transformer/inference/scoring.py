"""Probabilities of given texts, of many lengths, without padding and without more logits than are needed.

Every method must be called in the same way on all ranks of the pipe and model axes. If not said otherwise, it returns
the same on all of them: the rank with the last layer computes the result and broadcasts it over the pipe axis.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.core import ConfigError, DataRefusedError, MicroBatch, ParallelModule, Topology
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.inference.prompts import token_ids
from scaling.transformer.io import TextInputs, TransformerIO
from scaling.transformer.layers.head import HeadOutput

_PACK = 1024
"""Number of tokens of rows of several lengths that run together. Attention with a mask costs its square: 40 rows of 20
to 200 tokens, 576 features, one thread, take 3.3 s with 512 at a time, 3.6 s with 1024, 7.3 s with 4096, 3.9 s alone.
"""

_LOGITS = 2**24
"""Number of logits that exist at a time where only the probability of a token is needed: 64 MiB of float32."""


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of a continuation after its context."""

    log_probabilities: Tensor
    """log p [n] of each token of the continuation, given all tokens before it, in at least float32, on the CPU."""
    is_greedy: bool
    """Whether each of its tokens is the most likely one; of equally likely tokens, that with the lowest id counts."""
    total: float
    """The sum of the log-probabilities, added in float64."""


@dataclass(frozen=True)
class Packed:
    """The output of the last layer for rows of tokens, one after another, on ranks that run this layer."""

    output: HeadOutput | None
    starts: tuple[int, ...]
    """Index of the first token of each row, among all tokens that ran."""


def plan_packs(lengths: Sequence[int], limit: int) -> list[tuple[int, ...]]:
    """Return the rows that run together: the longest first, up to `limit` tokens; a longer row runs alone."""
    packs: list[tuple[int, ...]] = []
    pack: list[int] = []
    free = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if lengths[row] > free and pack:
            packs.append(tuple(pack))
            pack = []
        free = (free if pack else limit) - lengths[row]
        pack.append(row)
    return [*packs, tuple(pack)] if pack else packs


@final
class Scoring:
    """Scoring of texts with a model, split over any ranks. Nothing is kept between calls.

    `placeholders`: number of positions of a soft prompt in front of each text; results leave them out.
    """

    def __init__(self, module: ParallelModule, config: TransformerArchitectureConfig, topology: Topology) -> None:
        if topology.sequence_parallel:
            raise ConfigError(
                "texts of any length cannot be cut over ranks along their positions; set topology.sequence_parallel "
                "to false"
            )
        self._module = module
        self._config = config
        self._topology = topology
        self._dtype = torch.promote_types(config.precision.dtype, torch.float32)

    @torch.no_grad()
    def logits(self, input_ids: Tensor, *, placeholders: int = 0) -> Tensor:
        """Return the logits [b, s, vocabulary] of token ids int64 [b, s]; each row is one text."""
        output = self.output(self.require_known(input_ids), placeholders=placeholders)
        logits = None if output is None else output.all_logits(self._config.vocab_size)
        return self._from_last(logits, (*input_ids.shape, self._config.vocab_size), self._config.precision.dtype)

    @torch.no_grad()
    def log_likelihood(self, input_ids: Tensor, *, placeholders: int = 0) -> Tensor:
        """Return log p(token | tokens before it) of all but the first token, [b, s - 1] in at least float32."""
        self.require_known(input_ids)
        rows, length = input_ids.shape
        if length < 2:
            return torch.zeros(rows, 0, dtype=self._dtype, device=self._topology.device)
        output = self.output(input_ids[:, :-1], placeholders=placeholders)
        found = None
        if output is not None:
            targets = input_ids[:, 1:].to(output.hidden.device, torch.int64)
            found = -output.token_losses(targets, chunk_size=self._chunk).losses
        return self._from_last(found, (rows, length - 1), self._dtype)

    @torch.no_grad()
    def log_likelihoods(
        self,
        contexts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        *,
        placeholders: int = 0,
        pack: int = _PACK,
    ) -> list[Likelihood]:
        """Return the likelihood of each continuation after its context: token ids, rows of any lengths.

        Texts that differ only in their last token run once. `pack`: number of tokens that run at a time; longer rows
        run alone. `DataRefusedError` where a log-probability is nan.
        """
        asked = self._asked(contexts, continuations)
        rows = list(dict.fromkeys(text[:-1] for text, new in asked if new))
        number = {row: place for place, row in enumerate(rows)}
        wanted: list[list[int]] = [[] for _ in rows]
        for request, (text, new) in enumerate(asked):
            if new:
                wanted[number[text[:-1]]].append(request)
        order: list[int] = []  # indices of the requests, in the order of their scores
        scores: list[Tensor] = []
        for members in plan_packs([placeholders + len(row) for row in rows], pack):
            ran = self.packed([rows[member] for member in members], placeholders=placeholders)
            requests = [request for member in members for request in wanted[member]]
            order += requests
            if ran.output is None:
                continue
            places: list[int] = []
            targets: list[int] = []
            for member, start in zip(members, ran.starts, strict=True):
                for text, new in (asked[request] for request in wanted[member]):
                    places += range(start + len(text) - 1 - new, start + len(text) - 1)
                    targets += text[-new:]
            device = ran.output.hidden.device
            chosen = torch.tensor(targets, device=device)
            found = ran.output.at(torch.tensor(places, device=device)).token_scores(chosen, chunk_size=self._chunk)
            scores.append(torch.stack([found.log_probabilities.double(), (found.most_likely == chosen).double()]))
        total = sum(asked[request][1] for request in order)
        joined = torch.cat(scores, dim=1) if scores else None
        return self._likelihoods(asked, order, joined, total)

    @torch.no_grad()
    def hidden_states(self, input_ids: Tensor, layers: Sequence[int], *, placeholders: int = 0) -> Mapping[int, Tensor]:
        """Return the outputs [b, s, hidden] of layers of the model for token ids int64 [b, s], by the layers' numbers.

        Layer 0 is the embedding, 1 to n are the n blocks, whose output is the residual stream after them, and n + 1 is
        the final norm. The next layer, the head, has logits instead.
        """
        self.require_known(input_ids)
        last = self._module.num_layers - 2
        wanted = [operator.index(layer) for layer in layers]
        outside = [layer for layer in wanted if not 0 <= layer <= last]
        if outside:
            raise ConfigError(
                f"layer {outside[0]} has no hidden states; choose from 0 (the embedding) to {last} (the final norm)"
            )
        kept: dict[int, Tensor] = {}
        handles = [
            layer.register_forward_hook(_keeper(kept, number))
            for number, layer in self._module.layers()
            if number in wanted
        ]
        try:
            self.output(input_ids, placeholders=placeholders)
        finally:
            for handle in handles:
                handle.remove()
        shape = (*input_ids.shape, self._config.hidden_size)
        found: dict[int, Tensor] = {}
        for layer in wanted:
            own = kept[layer][:, placeholders:] if layer in kept else None
            found[layer] = self._module.share(own, layer, shape, self._config.precision.dtype)
        return found

    def output(self, input_ids: Tensor, *, placeholders: int = 0) -> HeadOutput | None:
        """Run token ids int64 [b, s], each row a text; return the output on ranks that run the last layer."""
        input_ids = F.pad(input_ids.to(self._topology.device), (placeholders, 0))
        rows, length = input_ids.shape
        self._require_positions(length)
        positions = torch.arange(length, device=input_ids.device).expand(rows, length)
        output = self._run(input_ids, positions, None)
        return output.behind(placeholders) if output is not None and placeholders else output

    def packed(self, rows: Sequence[Sequence[int]], *, placeholders: int = 0) -> Packed:
        """Run rows of any lengths together, none of them empty: each attends only to itself, at positions from 0."""
        lengths = [placeholders + len(row) for row in rows]
        ends = list(accumulate(lengths))
        starts = tuple(end - len(row) for end, row in zip(ends, rows, strict=True))
        self._require_positions(max(lengths))
        device = self._topology.device
        padded = torch.tensor([token for row in rows for token in (*([0] * placeholders), *row)], device=device)
        if len(set(lengths)) == 1:
            positions = torch.arange(lengths[0], device=device).expand(len(rows), lengths[0])
            return Packed(self._run(padded.view(len(rows), lengths[0]), positions, None), starts)
        sizes = torch.tensor(lengths, device=device)
        documents = torch.repeat_interleave(torch.arange(len(rows), dtype=torch.int32, device=device), sizes)
        firsts = torch.tensor(ends, device=device) - sizes
        positions = torch.arange(ends[-1], device=device) - torch.repeat_interleave(firsts, sizes)
        return Packed(self._run(padded[None], positions[None], documents[None]), starts)

    def require_known(self, input_ids: Tensor) -> Tensor:
        """Return token ids [b, s]; raise `ConfigError` for ids that the model has no embeddings for."""
        if not isinstance(input_ids, Tensor):
            raise ConfigError(
                f"input_ids is of type {type(input_ids).__name__}; give token ids as a tensor, int64 [batch, sequence]"
            )
        if input_ids.dim() != 2 or input_ids.dtype not in (torch.int64, torch.int32):
            raise ConfigError(
                f"input_ids has shape {list(input_ids.shape)} and type {input_ids.dtype}; give token ids, int64 "
                "[batch, sequence]"
            )
        outside = input_ids[(input_ids < 0) | (input_ids >= self._config.vocab_size)]
        if outside.numel():
            raise ConfigError(
                f"input_ids has token {int(outside[0])}, outside the vocabulary of {self._config.vocab_size}"
            )
        return input_ids

    @property
    def _chunk(self) -> int:
        return max(1, _LOGITS // max(1, self._config.vocab_size))

    def _run(self, input_ids: Tensor, positions: Tensor, documents: Tensor | None) -> HeadOutput | None:
        samples = torch.zeros(len(input_ids), dtype=torch.int64, device=input_ids.device)
        inputs = TextInputs(input_ids.to(torch.int64), positions, documents, samples)
        outputs = self._module.forward_step(iter([MicroBatch(inputs, None)]))
        return outputs[0] if outputs else None

    def _from_last(self, value: Tensor | None, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self._module.share(value, self._module.num_layers - 1, shape, dtype)

    def _require_positions(self, length: int) -> None:
        learned = self._config.absolute_positions
        if learned is not None and length > learned:
            raise ConfigError(
                f"the text has {length} tokens, but the model knows {learned} positions "
                "(transformer_architecture.absolute_positions); give it a shorter one"
            )

    def _asked(
        self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[tuple[tuple[int, ...], int]]:
        """Return each text and the number of its last tokens that are to be scored."""
        if len(contexts) != len(continuations):
            raise ConfigError(
                f"there are {len(contexts)} contexts and {len(continuations)} continuations; give as many of one as of "
                "the other"
            )
        asked: list[tuple[tuple[int, ...], int]] = []
        for row, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
            before, new = token_ids(context, f"contexts[{row}]"), token_ids(continuation, f"continuations[{row}]")
            text = (*before, *new)
            outside = [token for token in text if not 0 <= token < self._config.vocab_size]
            if outside:
                raise ConfigError(
                    f"row {row} has token {outside[0]}, outside the vocabulary of {self._config.vocab_size}"
                )
            if len(continuation) and not len(context):
                raise ConfigError(
                    f"row {row} has an empty context, and nothing gives the first token of a text a probability; put "
                    "a beginning-of-text token into the context"
                )
            asked.append((text, len(continuation)))
        return asked

    def _likelihoods(
        self, asked: Sequence[tuple[tuple[int, ...], int]], order: Sequence[int], scores: Tensor | None, total: int
    ) -> list[Likelihood]:
        """Return the likelihoods; `scores` float64 [2, total] are in `order`, on ranks that run the last layer."""
        empty = Likelihood(torch.zeros(0, dtype=self._dtype), is_greedy=True, total=0.0)
        found = [empty] * len(asked)
        if not total:
            return found
        scores = self._from_last(scores, (2, total), torch.float64).to("cpu")
        for request, each in zip(order, scores.split([asked[request][1] for request in order], dim=1), strict=True):
            if each.isnan().any():
                raise DataRefusedError(
                    f"the model gives row {request} probabilities that are no numbers (nan); its weights are not "
                    "finite, or its activations are too large for its precision: try precision float32"
                )
            logs, hits = each
            found[request] = Likelihood(logs.to(self._dtype), is_greedy=bool(hits.all()), total=float(logs.sum()))
        return found


def _keeper(kept: dict[int, Tensor], number: int) -> Any:
    """Return a hook that keeps the output of a layer."""

    def keep(_layer: nn.Module, _inputs: Any, output: TransformerIO) -> None:
        kept[number] = output.activations

    return keep
