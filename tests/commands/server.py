"""Run Python programs in forks of one process that has imported torch and this library.

`python -m tests.commands.server SOCKET`. A page of commands starts dozens of programs, and each would spend two seconds
of a processor on imports. What is called `python3` and `scaling` on the PATH of the commands asks here instead
(`CLIENT`): the program runs in a fork, with the arguments, environment, folder and open files of its caller, and the
client ends with its status.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from typing import Any, NoReturn

CLIENT = """\
#!{python} -ISE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    task = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(task).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(task)
    status = server.recv(1)
sys.exit(status[0] if status else "the server of commands is gone")
"""
"""Stands on the PATH as `python3` and as `scaling`."""


def main(address: str) -> NoReturn:
    """Serve until killed."""
    importlib.import_module("tests.preload")
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _serve(connection)
            connection.close()


def _serve(connection: socket.socket) -> NoReturn:
    """Run one program in a process of its own, and send its status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    header, files, _, _ = socket.recv_fds(connection, 4, 3)
    size, task = int.from_bytes(header, "big"), b""
    while len(task) < size:
        task += connection.recv(size - len(task))
    worker = os.fork()
    if worker == 0:
        connection.close()
        _run(files, *json.loads(task))
    for file in files:
        os.close(file)
    _, status = os.waitpid(worker, 0)
    code = os.waitstatus_to_exitcode(status)
    connection.sendall(bytes([code if code >= 0 else 128 - code]))
    os._exit(0)


def _run(files: list[int], argv: list[str], folder: str, environment: dict[str, str]) -> NoReturn:
    """Be the program."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    gc.unfreeze()
    code: Any = 0
    try:
        _program(argv)
    except SystemExit as leaving:
        code = leaving.code
        if isinstance(code, str):
            sys.stderr.write(f"{code}\n")
            code = 1
    except BaseException:
        importlib.import_module("traceback").print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _program(argv: list[str]) -> None:
    name, arguments = os.path.basename(argv[0]), argv[1:]
    sys.path[:] = [entry for entry in sys.path if entry]
    if name == "scaling":
        sys.argv = ["scaling", *arguments]
        importlib.import_module("scaling.cli.main").main()
        return
    sys.path.insert(0, os.getcwd())
    match arguments:
        case ["-m", module, *rest]:
            sys.argv = [module, *rest]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *rest]:
            sys.argv = ["-c", *rest]
            exec(code, {"__name__": "__main__"})
        case ["-", *rest]:
            sys.argv = ["-", *rest]
            exec(sys.stdin.read(), {"__name__": "__main__"})
        case _:
            sys.exit(f"python3 {' '.join(arguments)} is not done by tests/commands/server.py")


if __name__ == "__main__":
    main(sys.argv[1])
