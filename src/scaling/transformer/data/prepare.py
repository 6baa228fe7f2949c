"""Resolve a configuration before its processes start: build the data it names, fill in vocabulary and tokens."""

from __future__ import annotations

from scaling.core import ConfigError, Problem
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.corpus import CorpusLimits, build_stdlib_corpus
from scaling.transformer.data.progress import ProgressCallback, silent
from scaling.transformer.data.record_prefixes import tokenized_records
from scaling.transformer.data.source import recorded_end
from scaling.transformer.data.tokenizer import Tokenizer


def prepare_data(config: TransformerConfig, *, progress: ProgressCallback = silent) -> TransformerConfig:
    """Build the corpus, tokenize files of records, and fill in what follows from the data and the tokenizer.

    The result names `data_prefixes`, `vocab_size` and `eod_token_id`, and `vocab_file` where there is a tokenizer;
    given the result, this function has nothing more to do. Call it before the processes of a run are started; where
    several call it, one builds and the others wait.

    Raises:
        ConfigError: No data is named, or vocabulary, tokenizer and end-of-document token do not fit together.
        DataError: The tokenizer file, or a file of records, is unusable.
        StorageError: The corpus, or a data set made from records, cannot be written.
    """
    architecture, data = config.transformer_architecture, config.data
    vocab_file, prefixes = architecture.vocab_file, data.data_prefixes
    if data.corpus is not None:
        if vocab_file is not None:
            raise ConfigError(
                Problem(
                    "transformer_architecture.vocab_file",
                    f"({vocab_file}) and data.corpus ({data.corpus.value}) are both given, but the corpus comes with a "
                    "tokenizer of its own; remove one",
                )
            )
        limits = CorpusLimits(vocab_size=architecture.vocab_size) if architecture.vocab_size else CorpusLimits()
        paths = build_stdlib_corpus(data.corpus_dir, limits, progress=progress)
        vocab_file, prefixes = paths.tokenizer, [paths.prefix]
    if not prefixes:
        raise ConfigError(
            Problem("data.data_prefixes", "names no data; give token data sets, or set data.corpus to python_stdlib")
        )
    tokenizer = None if vocab_file is None else Tokenizer.from_file(vocab_file)
    named = config.data.model_copy(update={"data_prefixes": prefixes})
    named = named.model_copy(update=tokenized_records(named, config.transformer_architecture, tokenizer, progress))
    config = resolve_tokens(config, tokenizer, recorded=recorded_end(named))
    kept = {name: getattr(named, name) for name in ("data_prefixes", "validation_data_prefixes")}
    return config.model_copy(
        update={
            "transformer_architecture": config.transformer_architecture.model_copy(update={"vocab_file": vocab_file}),
            "data": config.data.model_copy(update={"corpus": None, **kept}),
        }
    )


def resolve_tokens(
    config: TransformerConfig, tokenizer: Tokenizer | None, *, recorded: int | None = None
) -> TransformerConfig:
    """Fill in `vocab_size` and `eod_token_id` where the configuration leaves them to its data and its tokenizer.

    `recorded` is the end-of-document token that the data sets record.

    Raises:
        ConfigError: Vocabulary, tokenizer and end-of-document token do not fit together.
        DataError: The tokenizer has no end-of-document token, and none is named.
    """
    architecture, data = config.transformer_architecture, config.data
    vocab_size = _vocab_size(architecture.vocab_size, tokenizer)
    eod_token_id = data.eod_token_id
    if eod_token_id is None:
        eod_token_id = recorded
    if eod_token_id is None:
        eod_token_id = 0 if tokenizer is None else tokenizer.eos_token_id
    if eod_token_id >= vocab_size:
        raise ConfigError(
            Problem(
                "data.eod_token_id", f"({eod_token_id}) is outside the vocabulary, 0 to {vocab_size - 1}; correct one"
            )
        )
    return config.model_copy(
        update={
            "transformer_architecture": architecture.model_copy(update={"vocab_size": vocab_size}),
            "data": data.model_copy(update={"eod_token_id": eod_token_id}),
        }
    )


def _vocab_size(given: int | None, tokenizer: Tokenizer | None) -> int:
    field = "transformer_architecture.vocab_size"
    if tokenizer is None:
        if not given:
            raise ConfigError(Problem(field, "is not given, nor is a transformer_architecture.vocab_file; set one"))
        return given
    if given and given < tokenizer.vocab_size:
        raise ConfigError(
            Problem(
                field,
                f"({given}) is less than the {tokenizer.vocab_size} tokens of transformer_architecture.vocab_file; set "
                "it to null, or to at least that",
            )
        )
    return given or tokenizer.vocab_size
