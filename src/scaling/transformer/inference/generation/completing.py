"""From prompts of tokens to a generation on this rank: plan, caches, work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import final

import torch

from scaling.core import (
    Axis,
    ConfigError,
    Heads,
    KeyValueCaches,
    ParallelModule,
    ParallelSelfAttention,
    RingEngine,
    Topology,
)
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import base_plan_of
from scaling.transformer.data.tokenizer import Tokenizer
from scaling.transformer.inference.generation.batching import Batching, Request
from scaling.transformer.inference.generation.decider import Decider, numbers_of
from scaling.transformer.inference.generation.free_memory import free_bytes
from scaling.transformer.inference.generation.options import Options
from scaling.transformer.inference.generation.plan import (
    SHARE_OF_FREE,
    GenerationPlan,
    Need,
    attention_layers,
    plan_generation,
    row_bytes,
)
from scaling.transformer.inference.generation.running import Generation, GenerationWork
from scaling.transformer.layers.kernels import scores_of


@final
class Completing:
    """A factory of generations of one model. Creating it is collective: all ranks of the pipe and model axes."""

    def __init__(
        self,
        module: ParallelModule,
        config: TransformerArchitectureConfig,
        topology: Topology,
        *,
        tokenizer: Tokenizer | None,
    ) -> None:
        self._config = config
        self._topology = topology
        self._tokenizer = tokenizer
        self._ring = RingEngine(module, topology)
        self.groups = topology.size(Axis.PIPE)
        """Number of groups that the rows are divided into: one for each pipe rank, which keeps all of these busy."""
        self._dtype = getattr(torch, config.precision.value)
        plan = base_plan_of(config)
        self._stages = [attention_layers(plan, layers) for layers in module.partition]
        self._own = list(zip(_attentions(module), self._stages[topology.index(Axis.PIPE)], strict=True))

    def plan(self, prompts: Sequence[Sequence[int]], options: Options, *, placeholders: int = 0) -> GenerationPlan:
        """Return the memory plan of a generation, for any rank. Collective if the free memory has to be found out.

        `ConfigError` if the generation does not fit.
        """
        if options.max_tokens == 0:
            return GenerationPlan((), groups=1, chunk=options.chunk_size, bytes=0)
        needs = [Need(placeholders + len(prompt) + options.max_tokens - 1, options.samples) for prompt in prompts]
        return plan_generation(
            needs,
            groups=self.groups,
            chunk=options.chunk_size,
            bytes_of=row_bytes(self._stages, self._topology.size(Axis.MODEL), self._dtype.itemsize),
            limit=options.max_cache_bytes or self._free_share(),
        )

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        options: Options,
        *,
        placeholders: int = 0,
        ready: Callable[[], object],
    ) -> Generation:
        """Return a generation that has not begun, with its caches allocated.

        `prompts` are token ids; each is preceded by `placeholders` positions of a soft prompt. `ready` is called before
        each step.
        """
        if not self._config.causal:
            raise ConfigError(
                "this model has been trained with transformer_architecture.causal false, to see the tokens after the "
                "one it predicts, so it cannot continue a text; use logits or log_likelihood"
            )
        plan = self.plan(prompts, options, placeholders=placeholders)
        requests = [Request((0,) * placeholders + tuple(prompt), options.samples) for prompt in prompts]
        batching, caches = Batching(plan, requests), self._caches(plan)
        work = GenerationWork(
            batching,
            caches,
            Decider(options, self._tokenizer, placeholders=placeholders),
            self._topology,
            groups=plan.groups,
            hidden=self._config.hidden_size,
            vocabulary=self._config.vocab_size,
            numbers=numbers_of(options),
            dtype=self._dtype,
        )
        return Generation(self._ring, batching, caches, work, ready=ready)

    def _caches(self, plan: GenerationPlan) -> KeyValueCaches:
        parts, index = self._topology.size(Axis.MODEL), self._topology.index(Axis.MODEL)
        caches = KeyValueCaches(dtype=self._dtype, device=self._topology.device)
        for attention, layer in self._own if plan.pools else ():
            heads = Heads(layer.heads, layer.head_size).local(parts, index)
            caches.add(attention, plan.cache_shapes(layer, parts), scores_of(layer), heads=heads)
        return caches

    def _free_share(self) -> int | None:
        """Return the bytes that caches may take on each rank: a share of the free memory of the rank that has least."""
        topology = self._topology
        free = free_bytes(topology.device)
        if free is not None and topology.device.type == "cpu":
            free //= topology.layout.world_size  # the ranks may all be on this machine
        unknown = torch.iinfo(torch.int64).max
        share = unknown if free is None else int(SHARE_OF_FREE * free)
        least = topology.smallest(share, Axis.PIPE, Axis.MODEL)
        return None if least == unknown else least


def _attentions(module: ParallelModule) -> Iterator[ParallelSelfAttention]:
    """Yield the attention of this rank's layers, in their order."""
    for _, layer in module.layers():
        for part in layer.modules():
            if isinstance(part, ParallelSelfAttention):
                yield part
