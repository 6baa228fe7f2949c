"""Start a training from a configuration file: check it, prepare the data once, start the processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from scaling.core import LaunchContext, read_config, runner_main
from scaling.transformer.config.environment import TransformerConfigHere
from scaling.transformer.config.notes import notes
from scaling.transformer.data.prepare import prepare_data
from scaling.transformer.data.progress import ConsoleProgress


def launch_training(config_path: Path, overrides: Sequence[str] = ()) -> tuple[TransformerConfigHere, int]:
    """Train in as many processes as the topology asks for; return the configuration and the exit status.

    `ConfigError` with everything that is wrong before anything starts. Inside torchrun or srun no process is started:
    this one trains. The file is read once: what was checked is what is trained. What is allowed and probably not meant
    is said by one process, once nothing is wrong.
    """
    text = read_config(config_path)
    source = str(config_path)
    config = TransformerConfigHere.from_str(text, overrides, source=source, quiet=True)  # the first rank warns
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
    )
    return config, status
