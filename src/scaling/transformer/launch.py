"""Start a training from a configuration file: check it, prepare the data once, start the processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from scaling.core import LaunchContext, runner_main
from scaling.transformer.config.environment import TransformerConfigHere
from scaling.transformer.config.notes import notes
from scaling.transformer.data.prepare import prepare_data
from scaling.transformer.data.progress import ConsoleProgress


def launch_training(config_path: Path, overrides: Sequence[str] = ()) -> tuple[TransformerConfigHere, int]:
    """Train in as many processes as the topology asks for; return the configuration and the exit status.

    `ConfigError` with everything that is wrong before anything starts. Inside torchrun or srun no process is started:
    this one trains. What is allowed and probably not meant is said by one process, once nothing is wrong.
    """
    config = TransformerConfigHere.from_yaml(config_path, overrides, quiet=True)  # the first rank warns, where it reads
    with ConsoleProgress() as progress:
        prepared = prepare_data(config, progress=progress)
    if LaunchContext.from_environment().rank == 0:
        for note in notes(prepared):
            sys.stderr.write(f"note: {note}\n")
    status = runner_main(
        config.runner,
        module_or_script="scaling.transformer.train",
        config_path=config_path,
        overrides=overrides,
        processes=config.topology.world_size,
        log_dir=config.logger.log_dir,
    )
    return config, status
