"""The inside of a worker process: take a task, be one rank, report, and be clean for the next task."""

from __future__ import annotations

import faulthandler
import gc
import importlib
import importlib.util
import os
import pickle
import random
import reprlib
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

STACK_SIGNAL = signal.SIGUSR2
"""Makes a worker write the stacks of all its threads to its stack file, whatever it is doing."""

READY = b"ready"

WarningFilter = tuple[Any, ...]


@dataclass(frozen=True)
class Task:
    """A function to run as one rank, by file and name, and the surroundings to run it in."""

    module: str
    path: str
    name: str
    arguments: bytes
    """Pickled (positional arguments, warning filters): they may need the module to be loaded."""
    environment: dict[str, str]
    directory: str
    search_path: list[str]
    give_up_after: int
    """Seconds after which a worker whose parent has died is ended by the kernel."""


@dataclass(frozen=True)
class Reply:
    """What became of a task."""

    time: float
    value: bytes | None = None
    error: bytes | None = None
    """The pickled exception, None where it cannot be pickled."""
    traceback: str = ""
    """Empty where the task succeeded."""


def serve(connection: Connection, stack_path: str) -> None:
    """Carry out tasks until the parent hangs up."""
    os.setsid()  # one signal reaches the worker and whatever it starts
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    clean()
    gc.freeze()  # what the fork server has imported is never garbage: collecting between tasks stays cheap
    with open(stack_path, "w") as stacks:
        faulthandler.enable(file=stacks)
        faulthandler.register(STACK_SIGNAL, file=stacks, all_threads=True)
        connection.send_bytes(READY)
        while True:
            try:
                task: Task = connection.recv()
            except EOFError:
                return
            # Without a thread, which would make forks in the task unsafe.
            signal.alarm(task.give_up_after)
            reply = perform(task)
            signal.alarm(0)
            for number, handler in signals.items():
                signal.signal(number, handler)
            connection.send_bytes(pickle.dumps(reply))


def perform(task: Task) -> Reply:
    """Run the task's function in its surroundings, and undo what it may have left behind."""
    os.environ.clear()
    os.environ.update(task.environment)
    os.chdir(task.directory)
    sys.path[:] = task.search_path
    try:
        with warnings.catch_warnings():
            function = load(task.module, task.path, task.name)
            arguments, filters = pickle.loads(task.arguments)
            restore(filters)
            value = function(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), *arguments)
            return Reply(time.monotonic(), value=pickle.dumps(value))
    except BaseException as error:
        return Reply(time.monotonic(), error=pickled(error), traceback=describe(error))
    finally:
        clean()
        gc.collect()
        sys.stdout.flush()
        sys.stderr.flush()


def clean() -> None:
    """Give the next task the state of a fresh process."""
    import torch  # here, because the parent imports this file too and may not need torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    if torch.are_deterministic_algorithms_enabled():  # setting it imports for more than a second
        torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)


def load(module: str, path: str, name: str) -> Callable[..., Any]:
    """Return a function of a module, which is imported under its own name even where only its file is known."""
    found: Any = sys.modules.get(module)
    if found is None:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not module.startswith(error.name or "?"):
                raise
    if not isinstance(found, ModuleType) or Path(found.__file__ or "").resolve() != Path(path).resolve():
        spec = importlib.util.spec_from_file_location(module, path)
        assert spec is not None
        assert spec.loader is not None
        found = sys.modules[module] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(found)
        except BaseException:
            del sys.modules[module]
            raise
    for part in name.split("."):
        found = getattr(found, part)
    function: Callable[..., Any] = found
    return function


def restore(filters: list[WarningFilter]) -> None:
    """Install the warning filters of the parent: a warning that is an error there is one here."""
    warnings.resetwarnings()
    for action, message, category, module, line in reversed(filters):
        warnings.filterwarnings(action, message, category, module, line)


def pickled(error: BaseException) -> bytes | None:
    """Return the exception as bytes, None where it would not survive the way."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:
        return None
    return data


def describe(error: BaseException) -> str:
    """Return the traceback, for a failed assertion with the values of the variables around it."""
    text = "".join(traceback.format_exception(error))
    if isinstance(error, AssertionError) and error.__traceback__ is not None:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        short = reprlib.Repr()
        short.maxother = short.maxstring = 200
        text += "".join(f"    {name} = {short.repr(value)}\n" for name, value in frame.f_locals.items())
    return text
