"""TransformerInferenceModule: a trained model that scores and continues texts, in one process or over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TypeAlias, final, overload

from torch import Tensor
from typing_extensions import Self, Unpack

from scaling.core import (
    Checkpointer,
    ConfigError,
    ParallelModule,
    PipePartitionMethod,
    StoredCheckpoint,
    Topology,
    TopologyConfig,
    communicator,
    folder_meant,
    join_layers,
    load_newest,
)
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.groups import grown_tables
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.data.tokenizer import Tokenizer
from scaling.transformer.finetuning.stored import StoredAdapter
from scaling.transformer.inference.adapters import Adapters
from scaling.transformer.inference.device import require_device
from scaling.transformer.inference.generation.batching import End
from scaling.transformer.inference.generation.completing import Completing
from scaling.transformer.inference.generation.completion import Completion, completion_of
from scaling.transformer.inference.generation.defaults import GenerationDefaults
from scaling.transformer.inference.generation.options import Asked, Options, Prompt, is_one, one_prompt, options_of
from scaling.transformer.inference.generation.plan import GenerationPlan
from scaling.transformer.inference.opening import OpenedModel, open_model, require_precision
from scaling.transformer.inference.prompts import prompt_tokens, require_fits
from scaling.transformer.inference.scoring import Likelihood, Scoring
from scaling.transformer.inference.text import TextStream
from scaling.transformer.model import specs_of

_BALANCED = TopologyConfig(pipe_partition_method=PipePartitionMethod.BALANCED)


class Opened(Enum):
    """Marker for the adapter that `from_checkpoint` opened, or for none where it opened a whole model."""

    OPENED = "opened"


Adapter: TypeAlias = str | Opened | None
"""The adapter that acts in a call: by its name, the one that was opened, or none."""


@final
class TransformerInferenceModule:
    """A trained model that scores and continues texts. Create one with `from_checkpoint`.

    With a `topology` of several ranks, the model is split over its pipe and model axes, and each rank holds only its
    part. All calls are collective: they must be made in the same way on all ranks of these two axes, and return the
    same on each. Replicas along the data axis are independent, and may be given different texts.

    Every call accepts the name of the `adapter` that acts in it, or None for the base alone. If it is left out, the
    adapter that `from_checkpoint` opened acts, if any.
    """

    def __init__(
        self,
        config: TransformerArchitectureConfig,
        *,
        device: str = "cpu",
        topology: Topology | None = None,
        tokenizer: Tokenizer | None = None,
        eod_token_id: int | None = None,
        defaults: GenerationDefaults | None = None,
        seed: int = 0,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.defaults = defaults or GenerationDefaults()
        """Options of generation where a call does not say."""
        if eod_token_id is None and tokenizer is not None and tokenizer.eos_token is not None:
            eod_token_id = tokenizer.eos_token_id
        ends = () if eod_token_id is None else (eod_token_id,)
        self.end_token_ids = frozenset((*self.defaults.end_token_ids, *ends))
        """Tokens that end a text."""
        if topology is None:
            require_device(device)
            topology = Topology.single(device)
        self.topology = topology
        # The cost of a token is that of reading the weights, so the stages of a pipeline get equal shares of these.
        specs = specs_of(replace(plan_of(config), sequence=1), topology, seed=seed)
        self.module = ParallelModule(specs, topology, _BALANCED, seed=seed)
        self.module.eval()
        join_layers(self.module)
        self._scoring = Scoring(self.module, config, topology)
        self._completing = Completing(self.module, config, topology, tokenizer=tokenizer)
        self._adapters = Adapters(self.module, config, topology)
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
        topology: Topology | None = None,
    ) -> Self:
        """Load the newest checkpoint of a directory, or one step folder, of any layout; a run's folder is searched.

        If the checkpoint holds only parameters trained on a base, the base is loaded too, from its former place or else
        from `base`, and the adapter acts in each call that names no other. `precision` converts the weights (`float32`,
        `bfloat16`, `float16`, `float64`); None keeps the trained one. `sequence_length` is the length that rotations of
        the types `dynamic` and `longrope` follow, in place of the trained one. The tokenizer is the one the run left
        beside its checkpoints, if any, or else that of the base. With a `topology`, the call is collective: all ranks,
        each of which reads its own part; `device` is then the topology's. A training may continue meanwhile: if it
        removes a checkpoint, the next one is loaded. `CheckpointError` if there is none to load, the base is missing or
        another one, or the tokenizer is not the run's; `ConfigError` for a precision or device that does not exist.
        """
        require_precision(precision)
        if topology is None:
            require_device(device)
        load = partial(
            cls._load,
            base=None if base is None else Path(base),
            precision=precision,
            sequence_length=sequence_length,
            topology=Topology.single(device) if topology is None else topology,
        )
        return load_newest(folder_meant(Path(path)), load, None if topology is None else communicator(topology))

    @classmethod
    def _load(
        cls,
        stored: StoredCheckpoint,
        *,
        base: Path | None,
        precision: str | None,
        sequence_length: int | None,
        topology: Topology,
    ) -> Self:
        found: OpenedModel = open_model(stored, base=base, precision=precision, sequence_length=sequence_length)
        adapter = found.adapter
        model = cls(
            found.architecture,
            topology=topology,
            tokenizer=found.tokenizer,
            eod_token_id=found.eod_token_id,
            defaults=found.defaults,
            seed=0 if adapter is None else adapter.seed,
        )
        if found.whole is not None:
            grown = () if adapter is None else grown_tables(adapter.architecture)
            model._adapters.read_base(found.whole, grown=grown)
        if adapter is not None:
            model._opened = model._adapters.load(adapter, None)
        return model

    @property
    def context_length(self) -> int:
        """Return the longest text, in tokens, that the model was made for, without a soft prompt's placeholders."""
        return self.config.absolute_positions or self.config.sequence_length

    def load_adapter(self, path: Path | str, name: str | None = None) -> str:
        """Load the newest adapter of a directory, or that of a step folder, beside the base, and return its name.

        The name is the given one, or that of its configuration; calls select the adapter by name. `CheckpointError` for
        an adapter that was trained on another base, `ConfigError` for a name that is already taken.
        """
        stored = Checkpointer(None).find(folder_meant(Path(path)), weights_only=True).require()
        return self._adapters.load(StoredAdapter.of(stored), name)

    def merge_adapter(self, name: str) -> None:
        """Merge an adapter into the weights, so that it acts in each call; several can be merged one after another.

        Merged weights are computed in float32 (float64 ones in float64) and rounded once. `ConfigError` for an adapter
        that is not a change of weights, or is merged already.
        """
        self._adapters.merge(name)

    def unmerge_adapter(self) -> None:
        """Remove all merged adapters from the weights: those of the base are read again, exact to the last bit."""
        self._adapters.unmerge()

    def logits(self, input_ids: Tensor, *, adapter: Adapter = Opened.OPENED) -> Tensor:
        """Return the logits [b, s, vocabulary] of token ids int64 [b, s]; each row is one document."""
        return self._scoring.logits(input_ids, placeholders=self._use(adapter))

    def hidden_states(
        self, input_ids: Tensor, layers: Sequence[int], *, adapter: Adapter = Opened.OPENED
    ) -> Mapping[int, Tensor]:
        """Return the outputs [b, s, hidden] of some layers for token ids int64 [b, s], by layer.

        Layer 0 is the embedding, layer i the i-th block; the layer after the last block is the final norm.
        """
        return self._scoring.hidden_states(input_ids, layers, placeholders=self._use(adapter))

    @overload
    def log_likelihood(self, input_ids: Tensor, /, *, adapter: Adapter = ...) -> Tensor: ...
    @overload
    def log_likelihood(
        self,
        contexts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        *,
        adapter: Adapter = ...,
    ) -> list[Likelihood]: ...
    def log_likelihood(
        self,
        contexts: Tensor | Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]] | None = None,
        *,
        adapter: Adapter = Opened.OPENED,
    ) -> Tensor | list[Likelihood]:
        """Return log p(token | tokens before it), in at least float32.

        For rows of equal length int64 [b, s]: of all but the first token, [b, s - 1]. For contexts and as many
        continuations, token ids of any lengths: for each continuation, the log-probabilities of its tokens, their sum,
        and whether they are the most likely ones.
        """
        placeholders = self._use(adapter)
        if isinstance(contexts, Tensor):
            if continuations is None:
                return self._scoring.log_likelihood(contexts, placeholders=placeholders)
            contexts = contexts.tolist()
        if continuations is None:
            raise ConfigError("give a continuation for each context, or rows of token ids, int64 [batch, sequence]")
        return self._scoring.log_likelihoods(contexts, continuations, placeholders=placeholders)

    @overload
    def generate(  # type: ignore[overload-overlap]  # a text is a sequence of texts, and means one here
        self, prompts: Prompt, *, samples: None = ..., adapter: Adapter = ..., **asked: Unpack[Asked]
    ) -> Completion: ...
    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompts: Prompt, *, samples: int, adapter: Adapter = ..., **asked: Unpack[Asked]
    ) -> list[Completion]: ...
    @overload
    def generate(
        self, prompts: Sequence[Prompt], *, samples: None = ..., adapter: Adapter = ..., **asked: Unpack[Asked]
    ) -> list[Completion]: ...
    @overload
    def generate(
        self, prompts: Sequence[Prompt], *, samples: int, adapter: Adapter = ..., **asked: Unpack[Asked]
    ) -> list[list[Completion]]: ...
    @overload
    def generate(
        self,
        prompts: int | None = ...,
        *,
        input_text: str | None = ...,
        input_tokens: Sequence[int] | None = ...,
        adapter: Adapter = ...,
        **asked: Unpack[Asked],
    ) -> Completion: ...
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | int | None = None,
        *,
        input_text: str | None = None,
        input_tokens: Sequence[int] | None = None,
        samples: int | None = None,
        adapter: Adapter = Opened.OPENED,
        **asked: Unpack[Asked],
    ) -> Completion | list[Completion] | list[list[Completion]]:
        """Continue prompts, each a text or token ids, until they end or have as many new tokens as asked for.

        One prompt gives a completion, several give a list of completions. With `samples`, each of these is a list of
        this many texts, from one reading of the prompt. `Asked` has the options. A text is the same alone, among others
        and in any layout. The former call still works: `generate(max_tokens, input_text=...)`, or `input_tokens`.
        `ConfigError` for an invalid prompt or option, `DataRefusedError` where the model's logits are not finite.
        """
        if isinstance(prompts, int) or prompts is None:
            if isinstance(prompts, int):
                asked["max_tokens"] = prompts
            prompts = one_prompt(input_text, input_tokens)
        elif input_text is not None or input_tokens is not None:
            raise ConfigError("give the prompt once: as the first argument, as input_text, or as input_tokens")
        ready, tokens, options = self._asked(prompts, asked, samples, adapter)
        generation = self._completing.start(tokens, options, placeholders=ready(), ready=ready)
        for _ in generation:
            pass
        every = [completion_of(row, options, self.tokenizer) for row in generation.rows]
        by_prompt = [every[start : start + options.samples] for start in range(0, len(every), options.samples)]
        if samples is None:
            return every[0] if is_one(prompts) else every
        return by_prompt[0] if is_one(prompts) else by_prompt

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        samples: int | None = None,
        adapter: Adapter = Opened.OPENED,
        **asked: Unpack[Asked],
    ) -> Iterator[tuple[int, int]]:
        """Yield (row, token) of new tokens as they come; row is prompt * samples + sample. Options as in `generate`.

        Between two tokens, the model can serve other calls. The memory of the texts is released when the iterator
        ends or is closed. Collective: all ranks must take the same number of tokens.
        """
        ready, tokens, options = self._asked(prompts, asked, samples, adapter)
        for row, decision in self._completing.start(tokens, options, placeholders=ready(), ready=ready):
            yield row.number, decision.token

    def stream_text(self, prompt: Prompt, *, adapter: Adapter = Opened.OPENED, **asked: Unpack[Asked]) -> Iterator[str]:
        """Yield the continuation of a prompt piece by piece, up to its end or the first of the `stop` texts.

        A piece is held back while it may still be part of a character or of a stop text. Options as in `generate`.
        """
        if self.tokenizer is None:
            raise ConfigError("this checkpoint has no tokenizer beside it; use generate or stream with token ids")
        ready, tokens, options = self._asked(prompt, asked, None, adapter)
        text, cut = TextStream(self.tokenizer, options.stop), True
        for _, decision in self._completing.start(tokens, options, placeholders=ready(), ready=ready):
            cut = decision.end is not End.STOP
            if decision.token not in options.ends and (piece := text.push(decision.token)):
                yield piece
        if piece := text.finish(cut=cut):
            yield piece

    def plan(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        samples: int | None = None,
        adapter: Adapter = Opened.OPENED,
        **asked: Unpack[Asked],
    ) -> GenerationPlan:
        """Return the memory plan of `generate` for these prompts and options; nothing is computed."""
        ready, tokens, options = self._asked(prompts, asked, samples, adapter)
        return self._completing.plan(tokens, options, placeholders=ready())

    def _asked(
        self, prompts: Prompt | Sequence[Prompt], asked: Asked, samples: int | None, adapter: Adapter
    ) -> tuple[Callable[[], int], list[list[int]], Options]:
        """Return the tokens of the prompts, the options, and first a function that makes the adapter act."""
        every: list[Prompt] = [prompts] if is_one(prompts) else list(prompts)  # type: ignore[list-item, arg-type]
        options = options_of(
            asked,
            self.defaults,
            ends=self.end_token_ids,
            vocab_size=self.config.vocab_size,
            prompts=len(every),
            samples=1 if samples is None else samples,
        )
        if options.stop and self.tokenizer is None:
            raise ConfigError("this checkpoint has no tokenizer beside it, so no text can be found to stop at")
        ready = partial(self._use, adapter)
        learned = self.config.absolute_positions is not None
        opening = () if self.tokenizer is None else self.tokenizer.opening
        placeholders, tokens = ready(), []
        for place, prompt in enumerate(every):
            number = None if is_one(prompts) else place
            found = prompt_tokens(prompt, self.tokenizer, vocab_size=self.config.vocab_size, number=number)
            tokens.append(
                require_fits(
                    found,
                    options.max_tokens,
                    self.context_length,
                    learned=learned,
                    placeholders=placeholders,
                    opening=opening,
                    truncate_left=options.truncate_left,
                    number=number,
                )
            )
        return ready, tokens, options

    def _use(self, adapter: Adapter) -> int:
        """Make an adapter act from now on, and return the number of placeholders that it needs in front of a text."""
        if isinstance(adapter, Opened):
            adapter = None if self._adapters.merged else self._opened
        return self._adapters.use(adapter)
