"""Checks of the environment that a configuration needs: files, GPUs, training data, and a checkpoint to start from."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from scaling.core import (
    ConfigError,
    DataError,
    Device,
    LoggerConfig,
    Problem,
    RunnerConfig,
    RunnerType,
    TokenDocuments,
    TopologyConfig,
    float8_obstacle,
    missing_logger_packages,
    run_checks,
)
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.checks import CHECKS
from scaling.transformer.config.data import DataConfig
from scaling.transformer.config.float8 import FLOAT8_SECTIONS
from scaling.transformer.config.methods import token_problems
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.config.start import START_CHECKS
from scaling.transformer.data.amount import amount_problems
from scaling.transformer.data.record_prefixes import FIELDS, RECORD_FILES, named_files
from scaling.transformer.data.records.template import ChatTemplate
from scaling.transformer.data.source import Sources, missing_files, recorded_end
from scaling.transformer.data.tokenizer import Tokenizer


def data_and_tokenizer_fit(
    data: DataConfig, transformer_architecture: TransformerArchitectureConfig
) -> Iterator[Problem]:
    """Check that data sets and tokenizer exist, are complete at a quick look, and fit each other and the vocabulary."""
    tokens, problems = _look_at_tokenizer(transformer_architecture)
    quickly = data.model_copy(update={"load_mmap_index_to_memory": False})
    sources = Sources(
        quickly,
        vocab_size=transformer_architecture.vocab_size or tokens,
        vocab_file=None if tokens is None else transformer_architecture.vocab_file,
    )
    files = dict(named_files(data))
    opened: dict[str, tuple[Path, TokenDocuments]] = {}
    lacks = False
    for name in FIELDS:
        for index, prefix in enumerate(getattr(data, name) or ()):
            place = f"data.{name}.{index}"
            if place in files:
                continue
            if missing := missing_files(prefix):
                if data.records is not None and prefix.name.endswith(RECORD_FILES) and not os.path.isfile(prefix):
                    lack = "which is a folder; name the files of records in it"
                    lack = lack if os.path.isdir(prefix) else "but there is no such file; correct it"
                    yield Problem(place, f"is {str(prefix)!r}, {lack}")
                    continue
                if prefix.suffix in (".bin", ".idx") and os.path.isfile(prefix):
                    remedy = f"leave out {prefix.suffix}"
                elif os.path.isfile(prefix):
                    remedy = "set record_format to auto if it holds records, or tokenize its texts"
                else:
                    remedy = f"make it with `scaling data tokenize INPUT --output {prefix} --tokenizer FILE`"
                lacks = True
                yield Problem(place, f"is {str(prefix)!r}, but there is no {' and no '.join(missing)} file; {remedy}")
                continue
            try:
                opened[place] = prefix, sources.open(prefix)
            except DataError as error:
                lacks = True
                yield Problem(place, str(error))
    if data.records is None and not lacks:
        yield from amount_problems(opened, data, transformer_architecture)
    yield from problems
    methods = transformer_architecture
    if tokens and not methods.vocab_size and not any(token_problems(0, methods)):  # else already reported
        for problem in token_problems(tokens, methods):
            yield Problem(f"transformer_architecture.{problem.path}", problem.message)
    yield from _records_can_be_tokenized(data, transformer_architecture, files)


def _records_can_be_tokenized(
    data: DataConfig, architecture: TransformerArchitectureConfig, files: Mapping[str, Path]
) -> Iterator[Problem]:
    """Check that files of records have a tokenizer, and that the chat template is valid."""
    if files and architecture.vocab_file is None:
        place, path = next(iter(files.items()))
        yield Problem(
            "transformer_architecture.vocab_file",
            f"is not given, and {place} ({path}) is a file of records, which it tokenizes; name one",
        )
    template = data.chat_template
    if missing := list(_missing_file("data.chat_template", template)):
        yield from missing
    elif template is not None:
        try:
            ChatTemplate.from_file(template)
        except DataError as error:
            yield Problem("data.chat_template", str(error))


def _look_at_tokenizer(architecture: TransformerArchitectureConfig) -> tuple[int | None, list[Problem]]:
    """Return the number of tokens of the tokenizer, None without a usable one, and the problems with it."""
    size, file = architecture.vocab_size, architecture.vocab_file
    if missing := list(_missing_file("transformer_architecture.vocab_file", file)):
        return None, missing
    if file is None:
        return None, []
    try:
        tokens = Tokenizer.from_file(file).vocab_size
    except DataError as error:
        return None, [Problem("transformer_architecture.vocab_file", str(error))]
    if not size or size >= tokens:
        return tokens, []
    too_small = f"is {size}, less than the {tokens} tokens of vocab_file; set it to null, or to at least that"
    return tokens, [Problem("transformer_architecture.vocab_size", too_small)]


def documents_end_alike(data: DataConfig) -> Iterator[Problem]:
    """Check that data sets and configuration agree on the token that ends documents."""
    try:
        recorded_end(data)
    except ConfigError as error:
        yield from error.problems


def machines_and_script_exist(runner: RunnerConfig) -> Iterator[Problem]:
    """Check that the files that the runner reads exist."""
    yield from _missing_file("runner.hostsfile", runner.hostsfile)
    yield from _missing_file("runner.script", runner.script)


def packages_are_installed(logger: LoggerConfig) -> Iterator[Problem]:
    """Check that the optional packages that send metrics are installed."""
    yield from missing_logger_packages(logger)


def float8_has_its_package(
    transformer_architecture: TransformerArchitectureConfig, topology: TopologyConfig
) -> Iterator[Problem]:
    """Check for torchao and bfloat16, which 8-bit products on a GPU need. The start of a run checks the GPU itself."""
    given = [name for name in FLOAT8_SECTIONS if getattr(transformer_architecture, name) is not None]
    if not given or topology.device is not Device.CUDA:
        return
    obstacle = float8_obstacle(
        device="cuda",
        capability=None,
        has_torchao=find_spec("torchao") is not None,
        precision=transformer_architecture.precision.value,
    )
    if obstacle is not None:
        yield Problem(f"transformer_architecture.{given[0]}", f"is given, but {obstacle}")


def gpus_suffice(topology: TopologyConfig, runner: RunnerConfig) -> Iterator[Problem]:
    """Check that each process that the runner starts on this machine has a GPU, where GPUs are asked for."""
    gpus = visible_gpus()
    if topology.device is not Device.CUDA or runner.runner_type is not RunnerType.LOCAL or gpus is None:
        return
    if topology.world_size > gpus:
        yield Problem(
            "topology.device",
            f"is cuda and each of the {topology.world_size} processes needs a GPU, but {gpus} are visible here; "
            "reduce the sizes, or set device to cpu or auto",
        )


ENVIRONMENT_CHECKS: tuple[Callable[..., Iterable[Problem]], ...] = (
    data_and_tokenizer_fit,
    documents_end_alike,
    machines_and_script_exist,
    *START_CHECKS,
    packages_are_installed,
    float8_has_its_package,
    gpus_suffice,
)


class TransformerConfigHere(TransformerConfig):
    """A configuration that is also checked against the files and devices of this machine."""

    cross_checks = (*CHECKS, *ENVIRONMENT_CHECKS)


def environment_problems(config: TransformerConfig) -> list[Problem]:
    """Return what this machine lacks for a valid configuration."""
    return list(run_checks(ENVIRONMENT_CHECKS, dict(config)))


def visible_gpus(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> int | None:
    """Return how many NVIDIA GPUs a process here can use, without importing PyTorch. None: unknown on this system."""
    if "CUDA_VISIBLE_DEVICES" in environment:
        chosen = [name.strip() for name in environment["CUDA_VISIBLE_DEVICES"].split(",")]
        return next((index for index, name in enumerate(chosen) if name in ("", "-1")), len(chosen))
    if not sys.platform.startswith("linux") or (devices / "dxg").exists():
        return None
    return sum(path.name.removeprefix("nvidia").isdecimal() for path in devices.glob("nvidia*"))


def _missing_file(path: str, file: Path | None) -> Iterator[Problem]:
    if file is not None and not os.path.isfile(file):
        yield Problem(path, f"is {str(file)!r}, but there is no such file; correct it")
