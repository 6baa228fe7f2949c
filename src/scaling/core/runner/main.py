"""runner_main: start the processes of a run where its configuration says, wait for them, and say how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import runpy
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from scaling.core.config.config_file import handed_on
from scaling.core.errors import ConfigError, ExitStatus, Problem
from scaling.core.runner.attempts import run_attempts
from scaling.core.runner.config import RunnerConfig, RunnerType
from scaling.core.runner.dry_run import describe_local, describe_plan
from scaling.core.runner.hosts import Host, read_hosts
from scaling.core.runner.local import LocalJob, environment_variables
from scaling.core.runner.plan import DEFAULT_PORT, HostNeeds, LaunchPlan, launch_plan
from scaling.core.runner.remote import RemoteJob
from scaling.core.runner.transports import transport_of
from scaling.core.topology.launch import CONFIG_COPY_VARIABLE, LaunchContext

_NOTHING: Final = HostNeeds()


def runner_main(
    config: RunnerConfig,
    *,
    module_or_script: str,
    config_path: Path | str,
    config_text: str | None = None,
    overrides: Sequence[str] = (),
    processes: int,
    log_dir: Path | None = None,
    needs: HostNeeds = _NOTHING,
    dry_run: bool = False,
) -> int:
    """Run `module_or_script CONFIG [KEY=VALUE ...]` in `processes` processes; return the exit status.

    `config` says where they run: on this machine, on others, or as a job of Slurm; for Kubernetes a manifest is
    written. The processes resolve the configuration themselves, from the same overrides and from `config_text`, the
    text of the file as it was read and checked before (`read_config` finds it for them). Where that is None, or cannot
    be sent, they read the file. When a process fails, the first cause is printed here, once, and written to
    `run_state.json` in `log_dir`. Where `config` allows restarts, the whole run is restarted after a failure; the
    outcome of each attempt is written to `run.json`. Signals are passed on; no process is left behind, on any machine.
    Inside torchrun or srun nothing is started: the work is done in this process.

    `needs` is what other machines must have; this is checked before anything starts. `dry_run` prints what would be
    started, and starts nothing.

    Raises:
        ConfigError: The machines do not fit the number of processes, or cannot do the work. Nothing was started.
    """
    target = str(config.script or module_or_script)
    arguments = [str(config_path), *overrides]
    if LaunchContext.from_environment().launched and not dry_run:
        with _config_for_processes(config_path, config_text):
            return _run_here(target, arguments)
    script = _is_script(target)
    program = [target, *arguments] if script else ["-m", target, *arguments]
    match config.runner_type:
        case RunnerType.SLURM:
            run_job: Callable[..., int] = importlib.import_module("scaling.core.runner.slurm").run_job
            return run_job(config, program, processes=processes, log_dir=log_dir, dry_run=dry_run)
        case RunnerType.KUBERNETES:
            write: Callable[..., int] = importlib.import_module("scaling.core.runner.kubernetes").write_manifest
            text = Path(config_path).read_text(encoding="utf-8") if config_text is None else config_text
            return write(
                config,
                program,
                processes=processes,
                config_path=config_path,
                config_text=text,
                log_dir=log_dir,
                dry_run=dry_run,
            )
    hosts = _hosts(config, processes)
    _require_ports(config, remote=hosts is not None)
    if hosts is None:
        named = read_hosts(config.hosts, config.hostsfile, default_slots=config.default_gpu_count)
        gpus = named[0].gpus if named else None
        job = LocalJob(program=program, processes=processes, gpus=gpus, master_port=config.master_port, script=script)
        if dry_run:
            sys.stdout.write(f"{describe_local(program, processes=processes, gpus=gpus)}\n")
            return ExitStatus.DONE
        with _config_for_processes(config_path, config_text):
            return run_attempts(job, max_restarts=config.max_restarts, log_dir=log_dir)
    transport = transport_of(config)
    plan = launch_plan(
        config,
        hosts,
        program,
        run_id=f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}",
        processes=processes,
        config_path=config_path,
        needs=needs,
    )
    if transport.needs_file or config_text is None:  # the configuration is not sent
        plan = _with_file(plan, str(config_path))
    if dry_run:
        sys.stdout.write(f"{describe_plan(plan, transport)}\n")
        return ExitStatus.DONE
    remote = RemoteJob(plan, transport, config, config_text=config_text)
    return run_attempts(remote, max_restarts=config.max_restarts, log_dir=log_dir)


def _hosts(config: RunnerConfig, processes: int) -> list[Host] | None:
    """Return the machines to be reached by a transport; None where this machine runs everything.

    Raises `ConfigError` where other machines are named but the configuration does not say how to reach them.
    """
    hosts = read_hosts(config.hosts, config.hostsfile, default_slots=config.default_gpu_count)
    if config.runner_type is RunnerType.PDSH_DOCKER:
        return hosts or [Host("localhost", processes)]
    others = [host.name for host in hosts if not host.is_here]
    if config.runner_type is not RunnerType.LOCAL:
        return hosts if others or len(hosts) > 1 else None
    if others:
        raise ConfigError(
            Problem(
                "runner.runner_type",
                f"is local, which starts processes on this machine alone, but {', '.join(others)} "
                f"{'is' if len(others) == 1 else 'are'} named; set runner.runner_type to ssh or pdsh, or start "
                "torchrun on each (docs/launching.md)",
            )
        )
    return None


def _require_ports(config: RunnerConfig, *, remote: bool) -> None:
    """Check that there is a port for every attempt."""
    first = config.master_port or (DEFAULT_PORT if remote else None)
    if first is not None and first + config.max_restarts > 65535:
        raise ConfigError(
            Problem(
                "runner.master_port",
                f"is {first}, and each of max_restarts ({config.max_restarts}) attempts needs the next one, but ports "
                f"end at 65535; set it to at most {max(1, 65535 - config.max_restarts)}, or lower max_restarts",
            )
        )


def _with_file(plan: LaunchPlan, path: str) -> LaunchPlan:
    files = tuple(dict.fromkeys((path, *plan.needs.files)))
    return dataclasses.replace(plan, needs=dataclasses.replace(plan.needs, files=files))


def _run_here(target: str, arguments: Sequence[str]) -> int:
    """Run `target` as if Python had been started with it; a script may also import from the working directory."""
    argv, handlers = sys.argv, {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    path = list(sys.path)
    sys.argv = [target, *arguments]
    try:
        if _is_script(target):
            sys.path[:0] = [str(Path(target).resolve().parent), str(Path.cwd())]
            runpy.run_path(target, run_name="__main__")
        else:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            sys.stderr.write(f"{leaving.code}\n")
            return ExitStatus.FAILURE
        return leaving.code or ExitStatus.DONE
    finally:
        sys.argv = argv
        sys.path[:] = path
        with contextlib.suppress(ValueError):  # not the main thread, the only one that has changed them
            for number, handler in handlers.items():  # a process that is done ignores these signals
                signal.signal(number, handler)
    return ExitStatus.DONE


def _is_script(target: str) -> bool:
    return target.endswith(".py") or os.sep in target


@contextlib.contextmanager
def _config_for_processes(path: Path | str, text: str | None) -> Iterator[None]:
    """Let the processes find the configuration as it was read; not on their command lines, which all users see."""
    if text is None:
        yield
        return
    with handed_on(path, text) as copy, environment_variables({CONFIG_COPY_VARIABLE: str(copy)}):
        yield
