"""Tokenize files of records into a data set, and do it once for a run that names such files as its data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, final

from scaling.core import DataError, MemoryMapDatasetBuilder, open_documents, storage_errors, write_atomically
from scaling.transformer.config.records import RecordSettings
from scaling.transformer.data.built_once import built_once
from scaling.transformer.data.progress import ProgressCallback, silent
from scaling.transformer.data.record_kinds import made_by
from scaling.transformer.data.records.budget import NAMED, RecordBudget
from scaling.transformer.data.records.conversation import TrainOn
from scaling.transformer.data.records.encode import RecordEncoder
from scaling.transformer.data.records.formats import RecordFormat
from scaling.transformer.data.records.read import read_records
from scaling.transformer.data.records.template import ChatTemplate
from scaling.transformer.data.shards import token_dtype
from scaling.transformer.data.tokenizer import Tokenizer

REPORT: Final = "records.json"
_VERSION: Final = 1
"""Version of the tokenized form: a new one has files tokenized again."""
_REPORT_EVERY: Final = 1000
_BLOCK: Final = 1 << 20


@dataclass(frozen=True)
class RecordReport:
    """The outcome of tokenizing the records of some files."""

    formats: tuple[str, ...]
    """In the order of their files, each once."""
    records: int
    tokens: int
    counted: int
    """Tokens that count in the loss."""
    bad: int
    bad_named: tuple[str, ...]
    """The first few bad records, with place and reason."""
    left_out: str
    """The numbers of records left out or cut, by reason; empty where there are none."""

    def lines(self) -> Iterator[str]:
        """Yield the report line by line."""
        yield (
            f"{self.records} records ({', '.join(self.formats)}), {self.tokens} tokens, {self.counted} of which count "
            "in the loss"
        )
        yield from self.remarks()

    def remarks(self) -> Iterator[str]:
        """Yield what was left out or cut, and the first few bad records."""
        if self.left_out:
            yield self.left_out
        yield from (f"  {named}" for named in self.bad_named)


@final
class RecordTokenizer:
    """Tokenizer of files of records, into tokens and weights."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        template: ChatTemplate | None,
        format: RecordFormat | None,
        train_on: TrainOn,
        eod_token_id: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._train_on = train_on
        self._eod_token_id = eod_token_id
        self._format = format
        self._encoder = RecordEncoder(
            tokenizer, template=template, format=format, train_on=train_on, eos_token_id=eod_token_id, vocab_size=None
        )

    @property
    def identity(self) -> dict[str, object]:
        """Everything that decides which tokens and weights a record has."""
        template = self._template
        return {
            "version": _VERSION,
            "tokenizer": self._tokenizer.sha256,
            "template": None if template is None else [template.source, sorted(template.special.items())],
            "format": None if self._format is None else self._format.value,
            "train_on": self._train_on.value,
            "end": self._eod_token_id,
        }

    def write(
        self, files: Sequence[Path], prefix: Path, budget: RecordBudget, *, progress: ProgressCallback = silent
    ) -> RecordReport:
        """Write the records of files, in their order, as a data set.

        Raises:
            DataError: A file is unusable, a record is bad and none may be, or the data set exists already.
            DataRefusedError: More records are bad than allowed.
            StorageError: A file cannot be read or written.
        """
        tokens = counted = 0
        dtype = token_dtype(self._tokenizer.vocab_size)
        with MemoryMapDatasetBuilder(
            prefix,
            dtype,
            tokenizer_sha256=self._tokenizer.sha256,
            eod_token_id=self._eod_token_id,
            made_by=made_by("", self._train_on, self._template),
        ) as builder:
            for path in files:
                stage, before, lines = f"tokenizing {path.name}", budget.records, _lines(path)
                progress(stage, 0, lines)
                for record in read_records(path, self._encoder, budget):
                    builder.add(record.tokens, record.weights)
                    tokens += len(record.tokens)
                    counted += int((record.weights > 0).sum())
                    if budget.records % _REPORT_EVERY == 0:
                        progress(stage, min(budget.records - before, lines - 1), lines)
                progress(stage, lines, lines)
            formats = tuple(dict.fromkeys(form.value for form in budget.formats.values()))
            builder.made_by = made_by(" ".join(formats), self._train_on, self._template)
        return RecordReport(
            formats, budget.records, tokens, counted, budget.bad_records, tuple(budget.bad), budget.left_out()
        )


def tokenized_once(
    path: Path,
    directory: Path,
    tokenizer: RecordTokenizer,
    settings: RecordSettings,
    *,
    longest: int,
    progress: ProgressCallback = silent,
) -> Path:
    """Return the prefix of the data set made from a file, in a folder of `directory`; make it where it is missing.

    Any number of processes may call this at once. Digests identify the inputs that it was made from.

    Raises:
        DataError: The file is unusable, or more of its records are bad than allowed.
        DataRefusedError: So many records are bad that the rest was not read.
        StorageError: A file cannot be read or written.
    """
    made_of = {**tokenizer.identity, "file": _sha256(path), "longest": longest, "too_long": settings.too_long.value}
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    name = path.name.split(".")[0] or "data"

    def build(building: Path) -> None:
        budget = RecordBudget(
            max_bad=max(settings.max_bad, NAMED),
            longest=longest,
            too_long=settings.too_long,
            option="data.max_bad_records",
        )
        report = tokenizer.write([path], building / name, budget, progress=progress)
        write_atomically(building / REPORT, json.dumps(asdict(report), indent=2).encode())

    folder = built_once(
        directory / f"records-{name}-{digest[:12]}",
        intact=lambda final: _intact(final, name),
        build=build,
        what=f"the data set of {path}",
        progress=progress,
    )
    report = report_beside(folder / name)
    if report is not None and report.bad > settings.max_bad:
        named = "; ".join(report.bad_named)
        raise DataError(
            f"{report.bad} records of {path} cannot be used: {named}; mend them, or set data.max_bad_records to at "
            f"least {report.bad} to leave them out"
        )
    return folder / name


def report_beside(prefix: Path) -> RecordReport | None:
    """Return the report on the records of the file that a data set was made from; None where there is none."""
    try:
        content: Any = json.loads((prefix.parent / REPORT).read_text(encoding="utf-8"))
        for name in ("formats", "bad_named"):
            content[name] = tuple(content[name])
        return RecordReport(**content)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _intact(folder: Path, name: str) -> bool:
    try:
        open_documents(folder / name)
    except DataError:
        return False
    return report_beside(folder / name) is not None


def _lines(path: Path) -> int:
    """Return how many lines a file has, for progress: 1 where they are not records."""
    if path.suffix != ".jsonl" or not path.is_file():
        return 1
    with storage_errors(f"reading {path}"), path.open("rb") as file:
        return max(1, sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK), b"")))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with storage_errors(f"reading {path}"), path.open("rb") as file:
        for block in iter(lambda: file.read(_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()
