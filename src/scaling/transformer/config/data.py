"""DataConfig: the texts a model is trained and evaluated on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated

from pydantic import Field

from scaling.core import BlendedDatasetConfig, NoEffect, OnResume, Problem, Unavailable
from scaling.transformer.config.records import RecordDataConfig


class Corpus(str, Enum):
    """A corpus that the library builds itself."""

    PYTHON_STDLIB = "python_stdlib"


class DataConfig(RecordDataConfig):
    """Training and validation data."""

    on_resume = OnResume.RUNTIME

    corpus: Corpus | None = None
    """python_stdlib: build a corpus and its tokenizer, once, from the source and documentation of the running Python's
    standard library. null: use data_prefixes."""
    corpus_dir: Path = Path(".data")
    """Folder in which the corpus is built, or found if it was built before."""
    eod_token_id: Annotated[int | None, OnResume.IDENTITY] = Field(default=None, ge=0)
    """Token that ends a document: attention and positions restart after it, and generation stops there. null: the token
    that the data sets record, else the tokenizer's; 0 without a tokenizer."""
    legacy_dataset: bool = False
    """Read the .bin/.idx files of Megatron."""
    blended_dataset: BlendedDatasetConfig = Field(default_factory=BlendedDatasetConfig)
    """How several training data sets are mixed."""
    validation_blended_dataset: BlendedDatasetConfig | None = None
    """How several validation data sets are mixed. An evaluation sees every sample once whatever the weights, so only
    minimum_dataset_size has an effect. null: as blended_dataset."""
    only_full_sequences: bool = False
    """Drop the rest of each document after its last full sequence, instead of packing it with the next document."""
    allow_incomplete_sequences_every_n: int = Field(default=0, ge=0)
    """With only_full_sequences: for every n full sequences, pack at most one that starts with the rest of a document.
    0: none."""
    use_mmap: bool = True
    """Map the files into memory; false reads them instead, with retries, for unreliable network file systems."""
    load_mmap_index_to_memory: bool = False
    """Read the index of documents into memory instead of mapping it."""
    load_data_item_mmap_index_to_memory: Annotated[bool, NoEffect("samples are computed, not stored in an index")] = (
        False
    )
    """Formerly: read the index of samples into memory."""
    embedding_dataset: Annotated[bool, Unavailable()] = False
    """Queries with positives and negatives as JSON lines."""
    embedding_dataset_memory_map: Annotated[bool, Unavailable()] = False
    """Queries with positives and negatives as memory maps."""

    def problems(self) -> Iterator[Problem]:
        """Check that the data are named once and the mixtures fit them."""
        yield from self.record_problems()
        if self.records is not None:
            yield from self._problems_of_texts()
        if self.corpus is not None:
            for name in ("data_prefixes", "validation_data_prefixes"):
                if getattr(self, name):
                    yield Problem(name, f"and corpus ({self.corpus.value}) are both given; remove one")
            if self.legacy_dataset:
                yield Problem(
                    "legacy_dataset", f"is true, but corpus ({self.corpus.value}) is no .bin/.idx; remove one"
                )
        elif self.data_prefixes == []:
            yield Problem("data_prefixes", "is empty; name token data sets, or set corpus to python_stdlib")
        if self.validation_data_prefixes and self.validation_fraction > 0:
            yield Problem(
                "validation_fraction",
                f"is {self.validation_fraction:g}, but validation_data_prefixes are given; set it to 0",
            )
        yield from self._mixture_problems("blended_dataset", self.blended_dataset, self.data_prefixes)
        if self.validation_blended_dataset is None:
            yield from self._mixture_problems(
                "validation_blended_dataset", self.blended_dataset, self.validation_data_prefixes
            )
        else:
            yield from self._mixture_problems(
                "validation_blended_dataset", self.validation_blended_dataset, self.validation_data_prefixes
            )

    def notes(self) -> Iterator[Problem]:
        """Yield data sets that are named more than once, and settings that have no effect."""
        for name in ("data_prefixes", "validation_data_prefixes"):
            times = Counter(getattr(self, name) or ())
            for prefix, count in times.items():
                if count > 1:
                    yield Problem(name, f"names {prefix} {count} times: it counts as so many data sets")
        if self.allow_incomplete_sequences_every_n and not self.only_full_sequences:
            yield Problem(
                "allow_incomplete_sequences_every_n",
                f"is {self.allow_incomplete_sequences_every_n}, but only_full_sequences is false: all sequences are "
                "packed",
            )

    def _problems_of_texts(self) -> Iterator[Problem]:
        """Refuse settings for a stream of texts where the data are records."""
        given = {
            "corpus": None if self.corpus is None else self.corpus.value,
            "legacy_dataset": self.legacy_dataset or None,
            "only_full_sequences": self.only_full_sequences or None,
        }
        for name, value in given.items():
            if value is not None:
                yield Problem(name, f"is {str(value).lower()}, but the data are records (record_format); remove one")

    @staticmethod
    def _mixture_problems(name: str, mixture: BlendedDatasetConfig, prefixes: list[Path] | None) -> Iterator[Problem]:
        if prefixes is None or mixture.weight_by_num_documents or mixture.weights is None or len(prefixes) == 1:
            return
        if len(mixture.weights) != len(prefixes):
            yield Problem(
                f"{name}.weights",
                f"has {len(mixture.weights)} weights for {len(prefixes)} data sets; give one for each",
            )
