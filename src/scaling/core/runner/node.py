"""The node: the program that runs on each machine of a run, and starts and watches the processes there.

python3 -m scaling.core.runner.node VERB --index N --run RUN_ID [--order FILE] [--signal NAME] [--no-lifeline]

The runner starts it through ssh, or another program that reaches the machine. Its standard input is the lifeline: when
that ends, for whatever reason, the processes are asked to leave. So nothing is left on any machine, whatever happens to
the runner.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, so that a signal during them is handled
    from scaling.core.runner.early_signals import listen_early

    listen_early()

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from scaling.core.config.config_file import handed_on
from scaling.core.errors import ConfigError, ExitStatus, ScalingError, StorageError
from scaling.core.runner.environment import process_defaults, script_variables
from scaling.core.runner.leftovers import ask_node, clear, temporary_folder
from scaling.core.runner.lifeline import Lifeline
from scaling.core.runner.node_output import NodeOutput
from scaling.core.runner.node_report import NodeReport
from scaling.core.runner.outcome import ProcessEnd, outcome
from scaling.core.runner.plan import Order
from scaling.core.runner.report import Report
from scaling.core.runner.supervisor import Supervisor
from scaling.core.topology.launch import CONFIG_COPY_VARIABLE, RUNNER_VARIABLE

_NAMES = ("TERM", "USR1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one verb; return the exit status."""
    options = _options(arguments)
    try:
        match options.verb:
            case "run":
                return _run(options)
            case "look":
                return _look(options)
            case "ask":
                if not ask_node(options.run, options.index, signal.Signals[f"SIG{options.signal}"]):
                    sys.stderr.write(f"run {options.run} has no node {options.index} here; it has ended\n")
                    return ExitStatus.FAILURE
            case "clear":
                if left := clear(options.run, options.index):
                    raise ScalingError(f"processes {', '.join(map(str, left))} of run {options.run} do not end")
    except ScalingError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_status.value
    return ExitStatus.DONE


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m scaling.core.runner.node", description=__doc__)
    parser.add_argument("verb", choices=["run", "look", "ask", "clear"])
    parser.add_argument("--index", type=int, required=True, help="number of this machine in the plan")
    parser.add_argument("--run", required=True, help="name of the run")
    parser.add_argument("--order", type=Path, help="file with the order; without it, the first line of standard input")
    parser.add_argument("--signal", choices=_NAMES, default="TERM", help="what to ask with")
    parser.add_argument("--no-lifeline", action="store_true", help="take no notice of standard input")
    return parser.parse_args(arguments)


def _look(options: argparse.Namespace) -> int:
    order = _order(options.order, Lifeline(sys.stdin.buffer, on_ask=lambda name: None, on_end=lambda: None))
    look = importlib.import_module("scaling.core.runner.look").look
    facts = look(order.plan, options.index, port=order.plan.port(order.attempt))
    sys.stdout.write(f"{facts.to_line(options.run)}\n")
    sys.stdout.flush()
    return ExitStatus.DONE


def _order(path: Path | None, lifeline: Lifeline) -> Order:
    if path is None:
        return Order.from_json(lifeline.first_line())
    try:
        return Order.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(
            f"the order in {path} cannot be read here: {error.strerror}; the folder has to be shared by all machines"
        ) from error


def _run(options: argparse.Namespace) -> NoReturn:
    """Run the processes of this machine, report how they ended, and exit without waiting for anything that hangs."""
    supervisor = Supervisor(may_save=False)  # the runner has told the user what a signal does

    def ask(name: str) -> None:
        if supervisor.asked is None:  # the end of the input, after a signal, is no second request
            os.kill(os.getpid(), signal.Signals[name])

    def end() -> None:
        supervisor.forced = True

    lifeline = Lifeline(sys.stdin.buffer, on_ask=ask, on_end=end)
    output = NodeOutput()
    try:
        order = _order(options.order, lifeline)
        with supervisor, temporary_folder(options.run, options.index):
            if not options.no_lifeline:
                lifeline.start()
            ends = _processes(order, options.index, supervisor, output)
        result = outcome(ends, asked=supervisor.asked, forced=supervisor.forced)
        report = NodeReport(run_id=options.run, index=options.index, ends=tuple(ends))
        status = int(result.status)
    except Exception as error:
        problem = Report.of(error)
        report = NodeReport(run_id=options.run, index=options.index, problem=problem)
        status = problem.status
    output.drain()
    output.say(report.to_line())
    output.close()
    os._exit(status)


def _processes(order: Order, index: int, supervisor: Supervisor, output: NodeOutput) -> list[ProcessEnd]:
    """Start the processes of machine `index`, and wait until all have ended."""
    plan, host = order.plan, order.plan.hosts[index]
    if plan.directory:
        try:
            os.chdir(plan.directory)
        except OSError as error:
            raise ConfigError(f"the working directory {plan.directory} is not there: {error.strerror}") from error
    os.environ.update(plan.environment)
    os.environ.update(host.environment)
    os.environ.update(order.secrets)
    os.environ.update(process_defaults(os.environ, host.processes, gpus=host.gpus))
    os.environ[RUNNER_VARIABLE] = str(os.getpid())
    if plan.program[0] != "-m":
        os.environ.update(script_variables(os.environ))
    text = order.config_text
    with nullcontext() if text is None else handed_on(plan.config_path, text) as copy:
        if copy is not None:
            os.environ[CONFIG_COPY_VARIABLE] = str(copy)
        elastic = importlib.import_module(
            "scaling.core.runner.elastic"
        )  # torch takes seconds; signals are handled by now
        site = elastic.Site(
            run_id=f"{plan.run_id}-{order.attempt}",
            index=index,
            machines=len(plan.hosts),
            first_rank=host.first_rank,
            address=plan.master_addr,
            port=plan.port(order.attempt),
        )
        ends: list[ProcessEnd] = elastic.run_processes(
            [sys.executable, "-u", *plan.program],
            supervisor,
            processes=host.processes,
            master_port=None,
            site=None if len(plan.hosts) == 1 else site,
            output=output,
        )
    output.drain()
    return [
        replace(end, host=host.name, last_lines=output.last_lines(end.rank) if end.exit_code else ()) for end in ends
    ]


if __name__ == "__main__":
    sys.exit(main())
