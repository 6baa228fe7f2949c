"""Start a training from a configuration file: check it, prepare the data once, start the processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from scaling.core import HostNeeds, LaunchContext, RunnerType, needed_folders, read_config, runner_main
from scaling.transformer.config.environment import TransformerConfigHere
from scaling.transformer.config.notes import notes
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.prepare import prepare_data
from scaling.transformer.data.progress import ConsoleProgress

_DATA_FILES: Final = (".bin", ".idx", ".meta.json")


def launch_training(
    config_path: Path, overrides: Sequence[str] = (), *, dry_run: bool = False
) -> tuple[TransformerConfig, int]:
    """Train in as many processes as the topology asks for; return the configuration and the exit status.

    Raises `ConfigError` with all problems before anything starts. Inside torchrun or srun no process is started: the
    current one trains. The file is read once, so that the checked configuration is the one that is trained, except on
    machines that read the file themselves. If there are no problems, one process prints notes on settings that are
    allowed but probably not meant. For Kubernetes, the files and GPUs of this machine are not checked. `dry_run` prints
    what would be started, and prepares no data.
    """
    text = read_config(config_path)
    source = str(config_path)
    config = TransformerConfig.from_str(text, overrides, source=source, quiet=True)  # the first rank warns
    if config.runner.runner_type is not RunnerType.KUBERNETES:
        config = TransformerConfigHere.from_str(text, overrides, source=source, quiet=True)
    prepared = config
    if not dry_run and config.runner.runner_type is not RunnerType.KUBERNETES:
        with ConsoleProgress() as progress:
            prepared = prepare_data(config, progress=progress)
    if LaunchContext.from_environment().rank == 0:
        for note in notes(prepared):
            sys.stderr.write(f"note: {note}\n")
    status = runner_main(
        config.runner,
        module_or_script="scaling.transformer.train",
        config_path=config_path,
        config_text=text,
        overrides=overrides,
        processes=config.topology.world_size,
        log_dir=config.logger.log_dir,
        needs=host_needs(prepared),
        dry_run=dry_run,
    )
    return config, status


def host_needs(config: TransformerConfig) -> HostNeeds:
    """Return the needs of each machine of a training: tokenizer, token data sets, device, and the folders it writes to.

    Of each data set, only the files that exist on this machine are included.
    """
    return HostNeeds(
        files=tuple(map(str, _files(config))),
        folders=needed_folders(config.logger, config.trainer),
        device=config.topology.device.value,
    )


def _files(config: TransformerConfig) -> Iterator[Path]:
    if config.transformer_architecture.vocab_file is not None:
        yield config.transformer_architecture.vocab_file
    for prefix in (*(config.data.data_prefixes or ()), *(config.data.validation_data_prefixes or ())):
        candidates = [prefix.with_name(prefix.name + suffix) for suffix in _DATA_FILES]
        yield from (path for path in (prefix, *candidates) if path.is_file())
