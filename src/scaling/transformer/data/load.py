"""From the configuration to data sets: prepare once per run what all processes read, then open it in each."""

from __future__ import annotations

from scaling.core import BlendedDataset, BlendedDatasetConfig, ConfigError, Problem, TokenDocuments
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.batch import TextCollator, TextSample
from scaling.transformer.data.corpus import CorpusLimits, build_stdlib_corpus
from scaling.transformer.data.packing import Packing
from scaling.transformer.data.progress import ProgressCallback, silent
from scaling.transformer.data.source import Sources
from scaling.transformer.data.split import Part, Split
from scaling.transformer.data.text_dataset import TextDataset
from scaling.transformer.data.tokenizer import Tokenizer

TextMixture = BlendedDataset[TextSample]


def prepare_data(config: TransformerConfig, *, progress: ProgressCallback = silent) -> TransformerConfig:
    """Build the corpus where one is asked for, and fill in what follows from the data and the tokenizer.

    The result names `data_prefixes`, `vocab_size` and `eod_token_id`, and `vocab_file` where there is a tokenizer; for
    it this function has nothing more to do. Call it before the processes of a run are started; where several call it,
    one builds and the others wait.

    Raises:
        ConfigError: No data is named, or vocabulary, tokenizer and end-of-document token do not fit together.
        DataError: The tokenizer file is unusable.
        StorageError: The corpus cannot be written.
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
    config = resolve_tokens(config, tokenizer)
    return config.model_copy(
        update={
            "transformer_architecture": config.transformer_architecture.model_copy(update={"vocab_file": vocab_file}),
            "data": config.data.model_copy(update={"corpus": None, "data_prefixes": prefixes}),
        }
    )


def resolve_tokens(config: TransformerConfig, tokenizer: Tokenizer | None) -> TransformerConfig:
    """Fill in `vocab_size` and `eod_token_id` where the configuration leaves them to its tokenizer.

    Raises:
        ConfigError: Vocabulary, tokenizer and end-of-document token do not fit together.
        DataError: The tokenizer has no end-of-document token, and none is named.
    """
    architecture, data = config.transformer_architecture, config.data
    vocab_size = _vocab_size(architecture.vocab_size, tokenizer)
    eod_token_id = data.eod_token_id
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


def load_datasets(config: TransformerConfig) -> tuple[TextMixture, TextMixture | None]:
    """Open the training data and, where there is any, the validation data of a configuration from `prepare_data`.

    Every process opens the files for itself; nothing is communicated.

    Raises:
        DataError: A file is missing, damaged, made for another vocabulary, or makes no sequence.
    """
    data = config.data
    if data.corpus is not None or not (data.data_prefixes and config.transformer_architecture.vocab_size):
        raise ValueError("load_datasets takes the configuration that prepare_data returns")
    held_out = data.validation_fraction > 0 and not data.validation_data_prefixes
    architecture = config.transformer_architecture
    sources = Sources(data, vocab_size=architecture.vocab_size, vocab_file=architecture.vocab_file)
    opened = [(str(prefix), sources.open(prefix)) for prefix in data.data_prefixes]

    def part(which: Part, *, drop_last: bool) -> list[TextDataset]:
        split = Split(which, data.validation_fraction)
        return [_text_dataset(name, documents, config, split, drop_last=drop_last) for name, documents in opened]

    training = _blend(part(Part.TRAIN if held_out else Part.ALL, drop_last=True), data.blended_dataset)
    if held_out:
        validation = part(Part.VALIDATION, drop_last=False)
        # A data set of few documents may have none in this part, as long as another one has some.
        not_empty = [dataset for dataset in validation if len(dataset) > 0]
        return training, _blend(not_empty or validation, BlendedDatasetConfig())
    if not data.validation_data_prefixes:
        return training, None
    separate = [
        _text_dataset(str(prefix), sources.open(prefix), config, Split(), drop_last=False)
        for prefix in data.validation_data_prefixes
    ]
    return training, _blend(separate, data.validation_blended_dataset or data.blended_dataset)


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


def _text_dataset(
    name: str, documents: TokenDocuments, config: TransformerConfig, split: Split, *, drop_last: bool
) -> TextDataset:
    architecture, data = config.transformer_architecture, config.data
    packing = Packing(
        architecture.sequence_length,
        only_full_sequences=data.only_full_sequences,
        allow_incomplete_sequences_every_n=data.allow_incomplete_sequences_every_n,
        drop_last=drop_last,
    )
    collator = TextCollator(
        architecture.vocab_size or 0,
        data.eod_token_id or 0,
        reset_attention_mask=architecture.reset_attention_mask,
        reset_position_ids=architecture.reset_position_ids,
    )
    return TextDataset(documents, packing, collator=collator, name=name, split=split)


def _blend(datasets: list[TextDataset], mixture: BlendedDatasetConfig) -> TextMixture:
    for dataset in datasets:
        dataset.require_sequences()
    return BlendedDataset(datasets, mixture, names=[dataset.name for dataset in datasets])
