"""Tokenize files into a memory map: in parallel, in a fixed order, resuming where an interrupted run stopped.

The input is cut into chunks; each becomes a shard in `<output>.partial/`, and when all exist they are joined in order
into the memory map. A second run with the same inputs and options reuses the shards that exist.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections import Counter, deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from scaling.core import (
    DataError,
    DataRefusedError,
    MemoryMapDatasetBuilder,
    ScalingError,
    leave_with_parent,
    storage_errors,
    write_atomically,
)
from scaling.transformer.data.chunks import Chunk, plan_chunks
from scaling.transformer.data.engine import choose_engine, sample_of
from scaling.transformer.data.left_out import SKIPPED_SUFFIX, LeftOut
from scaling.transformer.data.progress import ProgressCallback, silent
from scaling.transformer.data.readers import BadRecord, find_inputs
from scaling.transformer.data.shards import Loaded, Shard, ShardReport, TokenizeOptions, token_dtype
from scaling.transformer.data.tokenizer import Tokenizer

CHUNK_BYTES = 8 << 20
"""Least input per chunk, some seconds of work: about as much as an interrupted run has to repeat."""
CHUNKS = 4096
"""Most chunks into which divisible input is divided."""


@dataclass(frozen=True)
class TokenizeResult:
    """The documents that went into a memory map, and those that did not."""

    documents: int
    tokens: int
    empty: int
    """Documents without text, left out."""
    bad: tuple[BadRecord, ...]
    """Records that were skipped."""
    reused_chunks: int
    """Chunks that an earlier run, stopped before its end, had tokenized."""
    eod_token: str | None = None
    """The token that each document ends with, if any."""
    left_out: tuple[LeftOut, ...] = ()
    """Files in folders that look like text and were not read."""
    engine: str = ""
    """The engine that encoded, and why."""


def tokenize_files(
    inputs: Sequence[Path],
    output: Path,
    options: TokenizeOptions,
    *,
    workers: int = 1,
    progress: ProgressCallback = silent,
    chunk_bytes: int | None = None,
) -> TokenizeResult:
    """Tokenize files into the memory map `output`; the same bytes for any number of workers.

    Records that are skipped are also listed in `<output>.skipped.jsonl`. `chunk_bytes` is for tests.

    Raises:
        DataError: An input or the tokenizer is missing or unusable, a record is bad and none may be, nothing is left to
            write, or the memory map exists already.
        DataRefusedError: More records are bad than `options.max_bad` (which is above 0).
        StorageError: A file cannot be written.
    """
    left_out: list[LeftOut] = []
    files = [(path, path.stat()) for path in find_inputs(inputs, left_out=left_out.append)]
    if options.eod_token is not None and not options.append_eod:
        raise DataError(
            f"the end token {options.eod_token!r} is named, and no document is to end with it; leave one out"
        )
    tokenizer = Tokenizer.from_file(options.tokenizer, plain_text=True, end_token=options.eod_token)
    end = tokenizer.eos_token_id if options.append_eod else None
    if end is not None:  # determined here, once for all workers and for the digest of the plan
        options = replace(options, eod_token=tokenizer.eos_token)
        if end not in tokenizer.kept_from_texts:  # named by another file: from now on no text may spell it either
            tokenizer = Tokenizer.from_file(options.tokenizer, plain_text=True, end_token=options.eod_token)
    dtype = token_dtype(tokenizer.vocab_size)
    chunk_bytes = chunk_bytes or max(CHUNK_BYTES, sum(status.st_size for _, status in files) // CHUNKS)
    sizes = [(path, status.st_size) for path, status in files]
    chunks = plan_chunks(sizes, chunk_bytes)
    directory = _file(output, ".partial")
    # The builder comes first: it refuses an output that exists, or that another process is writing.
    with MemoryMapDatasetBuilder(output, dtype, tokenizer_sha256=tokenizer.sha256, eod_token_id=end) as builder:
        choice = choose_engine(
            options.engine,
            tokenizer,
            lambda: sample_of(sizes, field=options.field, max_document_bytes=options.max_document_bytes),
        )
        options = replace(options, engine=choice.engine)
        _prepare(directory, _plan_digest(files, options, tokenizer, chunk_bytes))
        result = _tokenize_chunks(
            chunks, _Work(directory, options, dtype, workers, Loaded(choice.encoder, end)), progress
        )
        for chunk in chunks:
            documents = Shard(directory, chunk.index).documents(dtype)
            builder.add_documents(documents.tokens, documents.lengths)
            progress("writing", chunk.index + 1, len(chunks))
        if result.bad:
            lines = "".join(json.dumps({**vars(record), "path": str(record.path)}) + "\n" for record in result.bad)
            with storage_errors("writing the list of skipped records"):
                write_atomically(_file(output, SKIPPED_SUFFIX), lines.encode())
    shutil.rmtree(directory, ignore_errors=True)
    return replace(result, left_out=tuple(left_out), engine=str(choice))


def _file(output: Path, suffix: str) -> Path:
    return output.parent / (output.name + suffix)


def _plan_digest(
    files: Sequence[tuple[Path, os.stat_result]], options: TokenizeOptions, tokenizer: Tokenizer, chunk_bytes: int
) -> str:
    """Return a digest of everything that decides the contents of the shards (the limit of bad records does not)."""
    inputs = [(str(path.resolve()), status.st_size, status.st_mtime_ns) for path, status in files]
    rules = replace(options, tokenizer=Path(tokenizer.sha256), max_bad=0)
    return hashlib.sha256(json.dumps([inputs, repr(rules), chunk_bytes]).encode()).hexdigest()


def _prepare(directory: Path, plan: str) -> None:
    """Keep the shards of an earlier run of the same plan, and no others."""
    marker = directory / "plan"
    with storage_errors(f"preparing {directory}"):
        if directory.exists() and not (marker.exists() and marker.read_text() == plan):
            shutil.rmtree(directory)
        directory.mkdir(exist_ok=True)
        write_atomically(marker, plan.encode())


@dataclass(frozen=True)
class _Work:
    """How chunks become shards."""

    directory: Path
    options: TokenizeOptions
    dtype: np.dtype[Any]
    workers: int
    loaded: Loaded
    """For chunks that this process tokenizes."""

    def shard(self, chunk: Chunk) -> Shard:
        return Shard(self.directory, chunk.index)


def _tokenize_chunks(chunks: Sequence[Chunk], work: _Work, progress: ProgressCallback) -> TokenizeResult:
    finished = {chunk.index: report for chunk in chunks if (report := work.shard(chunk).report())}
    missing = [chunk for chunk in chunks if chunk.index not in finished]
    reports: list[ShardReport] = []
    bad: list[BadRecord] = []
    lines_before: Counter[Path] = Counter()
    done, total = 0, sum(chunk.size for chunk in chunks)
    progress("tokenizing", done, total)
    with closing(_make_shards(missing, work)) as made:
        for chunk in chunks:
            report = finished.get(chunk.index) or next(made)
            reports.append(report)
            bad += [replace(record, line=record.line + lines_before[record.path]) for record in report.bad]
            check_budget(bad, work.options.max_bad)
            for piece, lines in zip(chunk.pieces, report.lines, strict=True):
                lines_before[piece.path] += lines
            done += chunk.size
            progress("tokenizing", done, total)
    return TokenizeResult(
        documents=sum(report.documents for report in reports),
        tokens=sum(report.tokens for report in reports),
        empty=sum(report.empty for report in reports),
        bad=tuple(bad),
        reused_chunks=len(finished),
        eod_token=work.options.eod_token,
    )


def check_budget(bad: Sequence[BadRecord], max_bad: int) -> None:
    """Refuse more bad records than allowed.

    Raises:
        DataError: There is one, and there may be none.
        DataRefusedError: There are more than `max_bad`, which is above 0.
    """
    if len(bad) <= max_bad:
        return
    if max_bad == 0:
        raise DataError(f"{bad[0]}. Mend it, or skip up to n such records with --max-bad n")
    raise DataRefusedError(
        f"more than {max_bad} {'record is' if max_bad == 1 else 'records are'} bad, the last one: {bad[max_bad]}. Mend "
        "the data, or raise --max-bad"
    )


def _make_shards(chunks: Sequence[Chunk], work: _Work) -> Generator[ShardReport, None, None]:
    """Yield the report of each chunk in order, while worker processes tokenize some chunks ahead of it."""
    if work.workers == 1 or len(chunks) <= 1:
        for chunk in chunks:
            yield work.shard(chunk).write(chunk, work.options, work.dtype, work.loaded)
        return
    pool = ProcessPoolExecutor(
        min(work.workers, len(chunks)), mp_context=get_context("forkserver"), initializer=_start_worker
    )
    waiting: deque[Future[ShardReport]] = deque()
    upcoming = iter(chunks)
    try:
        while True:
            for chunk in islice(upcoming, 2 * work.workers - len(waiting)):
                waiting.append(pool.submit(work.shard(chunk).write, chunk, work.options, work.dtype))
            if not waiting:
                return
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ScalingError(
            "a worker process died while tokenizing, most often for want of memory; run the same command again, "
            "perhaps with fewer --workers: it goes on where it stopped."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """End quietly on Ctrl-C, use one core, and do not outlive the main process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    leave_with_parent()
