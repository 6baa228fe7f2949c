"""Measure how long training data take to open, to mix, to resume in the middle of, and to read.

    python3 benchmarks/data.py [--documents 10000000] [--samples 1000000000] [--sources 4] [--length 2048]
                               [--step 1000000] [--text_mb 32] [--dir DIR] [--json FILE]

The data sets are memory maps of so many documents in all, with a full index (16 bytes a document) and tokens that take
no place on the disk (sparse files of zeros), so that a mixture of 10^9 samples fits a laptop. Reported are seconds,
and the memory that each part adds (anonymous memory: pages of the files themselves are the kernel's to keep or drop);
then, on a small data set with real tokens, samples a second of one process that reads and collates, against one that
only slices as many rows out of a NumPy memory map. Last, the text of Python's standard library and of the installed
packages, `--text_mb` of it and none twice, is tokenized by commands with one process, by `tokenizers` and by gigatoken
in turn: MB a second of processor time, from the start of the command to its end, the check of gigatoken included, and
the ratio pair by pair. The start of a command is much of its time where there is little text.
"""

from __future__ import annotations

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from reporting import begin, parser, publish

from scaling.core import (
    BaseDataset,
    BlendedDataset,
    BlendedDatasetConfig,
    DataLoader,
    TokenDocuments,
    open_documents,
)
from scaling.core.data.memory_map_meta import MemoryMapMeta
from scaling.transformer.data.batch import TextCollator
from scaling.transformer.data.encoders import Engine
from scaling.transformer.data.packing import Packing
from scaling.transformer.data.text_dataset import TextDataset
from scaling.transformer.data.tokenizer import train_tokenizer

BLOCK = 1 << 20
SMALL = 1 << 24
"""Tokens of the data set that is read, in documents of about 1000."""
GLOBAL_BATCH = 1024
MICRO_BATCH = 8
READ = 200
"""Micro-batches for the rate of reading."""


def make_source(prefix: Path, documents: int, tokens: int, seed: int, *, sparse: bool) -> None:
    """Write a memory map of documents of random sizes, `tokens` in all on average; their ids are all 0 if `sparse`."""
    generator = np.random.default_rng(seed)
    mean, total = max(tokens // documents, 2), 0
    with Path(f"{prefix}.idx").open("wb") as index:
        for start in range(0, documents, BLOCK):
            sizes = generator.integers(2, 2 * mean, min(BLOCK, documents - start), dtype=np.int64)
            starts = np.cumsum(sizes) - sizes + total
            np.stack([starts, sizes], axis=1).astype("<i8").tofile(index)
            total += int(sizes.sum())
    with Path(f"{prefix}.bin").open("wb") as file:
        if sparse:
            os.truncate(file.fileno(), 2 * total)
        else:
            generator.integers(2, 65536, total, dtype=np.uint16).tofile(file)
    meta = MemoryMapMeta("uint16", "int64", documents, token_count=total, max_token=65535, dropped_documents=0)
    Path(f"{prefix}.meta.json").write_text(meta.to_json())


def anonymous_memory() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


@contextmanager
def measured(report: dict[str, Any], name: str) -> Iterator[None]:
    memory, begin = anonymous_memory(), time.perf_counter()
    yield
    report[name] = {"seconds": time.perf_counter() - begin, "bytes": anonymous_memory() - memory}


def loader_of(dataset: BaseDataset[Any], step: int) -> DataLoader:
    return DataLoader(
        dataset,
        seed=1,
        data_parallel_size=8,
        data_parallel_rank=3,
        micro_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=GLOBAL_BATCH // 8 // MICRO_BATCH,
        consumed_samples=step * GLOBAL_BATCH,
    )


def samples_per_second(loader: DataLoader) -> float:
    begin = time.perf_counter()
    for _ in islice(loader, READ):
        pass
    return READ * MICRO_BATCH / (time.perf_counter() - begin)


def slices_per_second(prefix: Path, length: int) -> float:
    """Return how many rows a second plain slicing of the file makes, in random order, stacked as micro-batches."""
    tokens = np.memmap(f"{prefix}.bin", "<u2", "r")
    starts = np.random.default_rng(0).integers(0, len(tokens) - length - 1, (READ, MICRO_BATCH))
    begin = time.perf_counter()
    for row in starts:
        np.stack([tokens[start : start + length + 1].astype(np.int64) for start in row])
    return READ * MICRO_BATCH / (time.perf_counter() - begin)


def texts_of(size: int) -> list[str]:
    """Return sources and documentation that this Python has, about `size` bytes, none of them twice."""
    texts: dict[str, None] = {}
    left = size
    for root in (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"]):
        for path in sorted(Path(root).rglob("*.py")):
            text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
            if text not in texts:
                texts[text] = None
                left -= len(text)
            if left <= 0:
                return list(texts)
    return list(texts)


def tokenize_seconds(file: Path, tokenizer: Path, output: Path, engine: Engine) -> float:
    """Return the processor time of a command from its start to its end, in a process of its own: nothing is warm."""
    command = [sys.executable, "-m", "scaling.cli.main", "data", "tokenize", str(file), "--output", str(output)]
    command += ["--tokenizer", str(tokenizer), "--engine", engine.value, "--workers", "1"]
    path = str(Path(__file__).parents[1] / "src")
    variables = {**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=variables, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def tokenization(folder: Path, megabytes: int, rounds: int) -> dict[str, Any]:
    """Tokenize the same file by one library and the other, in turn, and compare what they write."""
    texts, file = texts_of(megabytes * 10**6), folder / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    train_tokenizer(texts[:: max(1, len(texts) // 500)], 32000).save(folder / "tokenizer.json")
    size = file.stat().st_size / 1e6
    rates: dict[Engine, list[float]] = {Engine.TOKENIZERS: [], Engine.GIGATOKEN: []}
    for number in range(rounds):
        written = []
        for engine, found in rates.items():
            output = folder / f"{engine.value}_{number}"
            found.append(size / tokenize_seconds(file, folder / "tokenizer.json", output, engine))
            written.append([Path(f"{output}{suffix}").read_bytes() for suffix in (".bin", ".idx", ".meta.json")])
        assert written[0] == written[1], "the files differ"
    ratios = [fast / slow for slow, fast in zip(*rates.values(), strict=True)]
    return {
        "text_megabytes": size,
        "megabytes_per_core_second": {engine.value: statistics.median(found) for engine, found in rates.items()},
        "gigatoken_relative_to_tokenizers": statistics.median(ratios),
    }


def main() -> None:
    arguments = parser(
        __doc__, documents=10**7, samples=10**9, sources=4, length=2048, step=10**6, rounds=5, text_mb=32
    )
    arguments.add_argument("--dir", type=Path, help="where to make the files; default: a temporary folder")
    options = arguments.parse_args()
    report = begin()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        prefixes = [Path(folder, f"source_{number}") for number in range(options.sources)]
        for number, prefix in enumerate(prefixes):
            tokens = options.samples * options.length // options.sources
            make_source(prefix, options.documents // options.sources, tokens, number, sparse=True)
        small = Path(folder, "small")
        make_source(small, SMALL // 1000, SMALL, 0, sparse=False)
        collator = TextCollator(vocab_size=65536)

        def dataset(documents: TokenDocuments) -> TextDataset:
            return TextDataset(
                documents, Packing(options.length), collator=collator, name=str(documents.prefix), eod_token_id=1
            )

        with measured(report, "open"):
            documents = [open_documents(prefix) for prefix in prefixes]
        with measured(report, "index"):
            datasets = [dataset(one) for one in documents]
        with measured(report, "resume"):
            names = [one.name for one in datasets]
            mixture = BlendedDataset(datasets, BlendedDatasetConfig(weighted_sampler_alpha=0.7), names=names)
            next(loader_of(mixture, options.step))
        reading = loader_of(dataset(open_documents(small)), 0)
        pairs = [
            (samples_per_second(reading), slices_per_second(small, options.length)) for _ in range(options.rounds + 1)
        ][1:]  # the first one warms up
        report["tokenization"] = tokenization(Path(folder), options.text_mb, max(1, options.rounds // 2))
    report |= {
        "documents": sum(len(one) for one in documents),
        "samples": sum(len(one) for one in datasets),
        "samples_per_second": statistics.median(own for own, _ in pairs),
        "reading_speed_relative_to_slicing": statistics.median(own / plain for own, plain in pairs),
    }
    publish(report, options.json)


if __name__ == "__main__":
    main()
