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
    """Stands for the adapter whose checkpoint `from_checkpoint` opened; for none where that was a whole model's."""

    OPENED = "opened"


Adapter: TypeAlias = str | Opened | None
"""Which adapter acts in a call: by its name, the one that was opened, or none."""


@final
class TransformerInferenceModule:
    """Scores and continues texts. Make one with `from_checkpoint`.

    With a `topology` of several ranks the model is cut over its pipe and model axes, each rank holds its part alone,
    and all calls are collective: made alike on all ranks of these two axes, on each of which they return the same.
    Replicas along the data axis know nothing of each other, and may be given texts of their own.

    Every call takes the name of the `adapter` that acts in it, or None for the base alone. Left out it is the one that
    `from_checkpoint` opened, where it opened one.
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
        """How texts are continued where a call does not say."""
        if eod_token_id is None and tokenizer is not None and tokenizer.eos_token is not None:
            eod_token_id = tokenizer.eos_token_id
        ends = () if eod_token_id is None else (eod_token_id,)
        self.end_token_ids = frozenset((*self.defaults.end_token_ids, *ends))
        """Tokens that end a text."""
        if topology is None:
            require_device(device)
            topology = Topology.single(device)
        self.topology = topology
        # A token costs what reading the weights costs, so stages of a pipeline get as many of these each.
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

        Where the checkpoint holds only what was trained on a base, that is loaded too, from where it was or else from
        `base`, and the adapter acts in each call that names no other. `precision` converts the weights (`float32`,
        `bfloat16`, `float16`, `float64`); None keeps the trained one. `sequence_length` is the length that rotations of
        the types `dynamic` and `longrope` follow, in place of the trained one. The tokenizer is the one the run left
        beside its checkpoints, if any, or else that of the base. With a `topology`, collective: all ranks, each of
        which reads its own part; `device` is the topology's then. A training may go on meanwhile: a checkpoint that it
        removes is passed over for the next. `CheckpointError` if there is none to load, the base is not there or
        another one, or the tokenizer is another one than the run's, `ConfigError` for a precision or device that does
        not exist.
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
        """Return the most tokens of a text that the model was made for, a soft prompt's placeholders not counted."""
        return self.config.absolute_positions or self.config.sequence_length

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

    def logits(self, input_ids: Tensor, *, adapter: Adapter = Opened.OPENED) -> Tensor:
        """Return the logits [b, s, vocabulary] of token ids int64 [b, s]; each row is one document."""
        return self._scoring.logits(input_ids, placeholders=self._use(adapter))

    def hidden_states(
        self, input_ids: Tensor, layers: Sequence[int], *, adapter: Adapter = Opened.OPENED
    ) -> Mapping[int, Tensor]:
        """Return what some layers put out, [b, s, hidden], for token ids int64 [b, s].

        Layer 0 is the embedding, layer i the i-th block, the next one the final norm.
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

        Of equal rows int64 [b, s]: for all but the first token, [b, s - 1]. Of contexts and as many continuations,
        token ids of any lengths: for each continuation the log-probabilities of its tokens, their sum, and whether they
        are the most likely ones.
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
        """Continue prompts, each a text or the ids of its tokens, until they end or have as many tokens as asked for.

        One prompt gives a completion, several give a list of them; with `samples`, so many texts from one reading of
        the prompt, each of these is a list. `Asked` has the options. A text is the same alone, among others and in any
        layout. The former way to call it still works: `generate(max_tokens, input_text=...)`, or `input_tokens`.
        `ConfigError` for a prompt or an option that cannot be, `DataRefusedError` where the model gives no numbers.
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
        """Yield (row, token) of new tokens as they come, of row prompt * samples + sample; options as in `generate`.

        Between two tokens the model is free for other calls. What is kept of the texts is given back when the iterator
        ends or is closed. Collective: all ranks take as many tokens.
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
        """Return what `generate` would keep in memory for these prompts and options; nothing is computed."""
        ready, tokens, options = self._asked(prompts, asked, samples, adapter)
        return self._completing.plan(tokens, options, placeholders=ready())

    def _asked(
        self, prompts: Prompt | Sequence[Prompt], asked: Asked, samples: int | None, adapter: Adapter
    ) -> tuple[Callable[[], int], list[list[int]], Options]:
        """Return what lets the adapter act and counts its placeholders, the tokens of the prompts, and the options."""
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
        """Let an adapter act from now on, and return how many placeholders it wants in front of a text."""
        if isinstance(adapter, Opened):
            adapter = None if self._adapters.merged else self._opened
        return self._adapters.use(adapter)
