"""The runner: starts the processes of a run, and turns their ends into one message and one exit status."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core.lazy import load_on_use

if TYPE_CHECKING:
    from scaling.core.runner.command import RunConfig as RunConfig
    from scaling.core.runner.command import needed_folders as needed_folders
    from scaling.core.runner.command import run_in_processes as run_in_processes
    from scaling.core.runner.command import run_training_process as run_training_process
    from scaling.core.runner.config import RunnerConfig as RunnerConfig
    from scaling.core.runner.config import RunnerDockerConfig as RunnerDockerConfig
    from scaling.core.runner.config import RunnerKubernetesConfig as RunnerKubernetesConfig
    from scaling.core.runner.config import RunnerSlurmConfig as RunnerSlurmConfig
    from scaling.core.runner.config import RunnerType as RunnerType
    from scaling.core.runner.early_signals import listen_early as listen_early
    from scaling.core.runner.local import run_program as run_program
    from scaling.core.runner.main import runner_main as runner_main
    from scaling.core.runner.numa import bind_to_numa_node as bind_to_numa_node
    from scaling.core.runner.plan import HostNeeds as HostNeeds
    from scaling.core.runner.process import run_process as run_process

load_on_use(__name__)
