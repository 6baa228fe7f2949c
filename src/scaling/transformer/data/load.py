"""Open the data sets of a prepared configuration: each process opens those that `prepare_data` has named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from scaling.core import BlendedDataset, BlendedDatasetConfig, MemoryMapDocuments, TokenDocuments
from scaling.transformer.config.records import RecordSettings
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.amount import packing_of
from scaling.transformer.data.batch import TextCollator, TextSample
from scaling.transformer.data.record_dataset import RecordDataset
from scaling.transformer.data.record_files import report_beside
from scaling.transformer.data.record_prefixes import row_rules
from scaling.transformer.data.record_rows import Records
from scaling.transformer.data.record_source import PromptCompletionRecords, StoredRecords
from scaling.transformer.data.records.conversation import TrainOn
from scaling.transformer.data.source import Sources
from scaling.transformer.data.split import Part, Split
from scaling.transformer.data.text_dataset import TextDataset

TextMixture = BlendedDataset[TextSample]

_TOLD: Final = 8


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
    sources = _sources(config)
    opened = _open(data.data_prefixes, sources)

    def part(which: Part, *, drop_last: bool) -> Sequence[TextDataset | RecordDataset]:
        split = Split(which, data.validation_fraction)
        return [_dataset(name, documents, config, split, drop_last=drop_last) for name, documents in opened]

    training = _blend(part(Part.TRAIN if held_out else Part.ALL, drop_last=True), data.blended_dataset)
    if held_out:
        validation = part(Part.VALIDATION, drop_last=False)
        # A data set of few documents may have none in this part, as long as another one has some.
        not_empty = [dataset for dataset in validation if len(dataset) > 0]
        return training, _blend(not_empty or validation, BlendedDatasetConfig())
    if not data.validation_data_prefixes:
        return training, None
    mixture = data.validation_blended_dataset or data.blended_dataset
    return training, _whole(data.validation_data_prefixes, sources, config, mixture)


def load_for_evaluation(config: TransformerConfig) -> TextMixture:
    """Open `data_prefixes` as `load_datasets` opens validation data: all of it, including a last row that is not full.

    Raises:
        DataError: As for `load_datasets`.
    """
    return _whole(config.data.data_prefixes or (), _sources(config), config, BlendedDatasetConfig())


def told(data: TextMixture) -> Iterator[str]:
    """Yield what became of the records of the data, for the first few data sets of a large mixture."""
    for dataset in data.datasets[:_TOLD]:
        if isinstance(dataset, RecordDataset):
            yield dataset.told()
            report = report_beside(Path(dataset.name))
            yield from () if report is None else report.remarks()


def _sources(config: TransformerConfig) -> Sources:
    architecture = config.transformer_architecture
    return Sources(config.data, vocab_size=architecture.vocab_size, vocab_file=architecture.vocab_file)


def _whole(
    prefixes: Sequence[Path], sources: Sources, config: TransformerConfig, mixture: BlendedDatasetConfig
) -> TextMixture:
    """Open data whose every token is to be seen once."""
    opened = _open(prefixes, sources)
    return _blend([_dataset(name, found, config, Split(), drop_last=False) for name, found in opened], mixture)


def _open(prefixes: Sequence[Path], sources: Sources) -> list[tuple[str, TokenDocuments]]:
    """Open data sets, each under a name of its own: a prefix that is listed twice makes two."""
    times: Counter[Path] = Counter()
    opened = []
    for prefix in prefixes:
        times[prefix] += 1
        name = str(prefix) if times[prefix] == 1 else f"{prefix} ({times[prefix]})"
        opened.append((name, sources.open(prefix)))
    return opened


def _dataset(
    name: str, documents: TokenDocuments, config: TransformerConfig, split: Split, *, drop_last: bool
) -> TextDataset | RecordDataset:
    if (settings := config.data.records) is not None:
        return _record_dataset(name, documents, config, settings, split)
    architecture, data = config.transformer_architecture, config.data
    packing = packing_of(data, architecture, drop_last=drop_last)
    collator = TextCollator(
        architecture.vocab_size or 0,
        reset_attention_mask=architecture.reset_attention_mask,
        reset_position_ids=architecture.reset_position_ids,
    )
    return TextDataset(
        documents, packing, collator=collator, eod_token_id=data.eod_token_id or 0, name=name, split=split
    )


def _record_dataset(
    name: str, documents: TokenDocuments, config: TransformerConfig, settings: RecordSettings, split: Split
) -> RecordDataset:
    architecture, end = config.transformer_architecture, config.data.eod_token_id or 0
    # The settings for boundaries of documents concern texts: records never attend to each other.
    collator = TextCollator(architecture.vocab_size or 0)
    records: Records
    if settings.prompt_lengths or not isinstance(documents, MemoryMapDocuments):
        records = PromptCompletionRecords(
            documents,
            eod_token_id=end,
            vocab_size=architecture.vocab_size,
            every_token=settings.train_on is TrainOn.ALL,
        )
    else:
        records = StoredRecords(documents)
    rules = row_rules(architecture, settings, padding=end)
    return RecordDataset(records, rules, collator=collator, name=name, split=split)


def _blend(datasets: Sequence[TextDataset | RecordDataset], mixture: BlendedDatasetConfig) -> TextMixture:
    for dataset in datasets:
        dataset.require_sequences()
    return BlendedDataset(datasets, mixture, names=[dataset.name for dataset in datasets])
