"""ClientProcess: one running ssh or pdsh, the threads that read its output, and the thread that writes its input."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, final

from scaling.core.errors import ConfigError
from scaling.core.runner import keeper
from scaling.core.runner.transports.client import Client

BEAT_SECONDS: Final = 5.0
"""Interval at which a machine is told that the runner is alive."""
_LONGEST_LINE: Final = 1 << 20
_READ_ON_SECONDS: Final = 1.0
"""How long the output of an ended client is still read: a process that it left in the background keeps it open."""

OnLine = Callable[[Client, str, bool], None]
"""Called for each line with the client that printed it, and whether it was on standard error."""


@final
class ClientProcess:
    """A client that has been started. Threads of its own pass its output lines to `on_line`.

    `lines` are written to its standard input first. A client that takes input then gets a beat every `BEAT_SECONDS`;
    one that takes none runs under a keeper. Methods may be called from a signal handler.
    """

    def __init__(self, client: Client, on_line: OnLine, *, lines: Sequence[str] = ()) -> None:
        if shutil.which(client.argv[0]) is None:
            raise ConfigError(
                f"{client.argv[0]} is not installed on this machine; install it, or set runner.runner_type"
            )
        self.client = client
        argv = client.argv if client.takes_input else (sys.executable, "-I", str(Path(keeper.__file__)), *client.argv)
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **client.environment},
            start_new_session=True,  # Ctrl-C is for the runner, which passes it on
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._on_line = on_line
        self._ended_at: float | None = None
        self._outbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for line in lines:
            self._outbox.put(line)
        beats = client.takes_input
        self._readers = [
            _start(self._read, self._process.stdout, False),
            _start(self._read, self._process.stderr, True),
        ]
        self._writer = _start(self._write, self._process.stdin, beats)

    def send(self, values: Mapping[str, Any]) -> None:
        """Write a line of JSON to the client's standard input, as soon as the client reads it."""
        self._outbox.put(json.dumps(values))

    def close(self) -> None:
        """Close the client's standard input."""
        self._outbox.put(None)

    def kill(self) -> None:
        """End the client at once."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    @property
    def status(self) -> int | None:
        """Return the client's exit status as a shell shows it; None while the client runs or has unread lines."""
        code = self._process.poll()
        if code is None:
            return None
        if self._ended_at is None:
            self._ended_at = time.monotonic()
        if any(reader.is_alive() for reader in self._readers) and not self._is_read_long_enough():
            return None
        return code if code >= 0 else 128 - code

    def finish(self, *, deadline: float | None = None) -> None:
        """Kill the client if it is running, and wait until its threads have ended.

        A process that it has left in the background may keep its output open: that is waited for until `deadline`, by
        the monotonic clock, or for a second.
        """
        self.close()
        self.kill()
        self._process.wait()
        deadline = time.monotonic() + _READ_ON_SECONDS if deadline is None else deadline
        for thread in (*self._readers, self._writer):
            thread.join(max(0.0, deadline - time.monotonic()))

    def _is_read_long_enough(self) -> bool:
        return self._ended_at is not None and time.monotonic() - self._ended_at > _READ_ON_SECONDS

    def _read(self, stream: IO[bytes], is_error: bool) -> None:
        with stream:
            while line := stream.readline(_LONGEST_LINE):
                self._on_line(self.client, line.decode("utf-8", "replace").rstrip("\r\n"), is_error)

    def _write(self, stream: IO[bytes], beats: bool) -> None:
        with contextlib.suppress(OSError), stream:
            while True:
                try:
                    line = self._outbox.get(timeout=BEAT_SECONDS if beats else None)
                except queue.Empty:
                    line = json.dumps({"beat": True})
                if line is None:
                    return
                stream.write(f"{line}\n".encode())
                stream.flush()


def run_clients(
    clients: Sequence[Client], *, seconds: float, lines: Sequence[str] = (), on_line: OnLine = lambda *_: None
) -> list[int | None]:
    """Run clients at the same time; return their exit statuses, None for those killed after `seconds`."""
    running: list[ClientProcess] = []
    deadline = time.monotonic() + seconds
    try:
        with _signals_held_back():
            running.extend(ClientProcess(client, on_line, lines=lines) for client in clients)
        # a list, since asking a client for its status starts the time for which its output is still read
        while None in [process.status for process in running] and time.monotonic() < deadline:
            time.sleep(0.02)
        return [process.status for process in running]
    finally:
        for process in running:
            process.kill()
            process.close()
        deadline = time.monotonic() + _READ_ON_SECONDS  # one for all clients: there may be a thousand
        for process in running:
            process.finish(deadline=deadline)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Delay signals until after the block: an exception from a handler inside it would leave a client unrecorded.

    Processes started inside do not inherit this, as they would inherit a signal mask.
    """
    held: list[int] = []
    former: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for asking in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
                if callable(handler := signal.getsignal(asking)):
                    former[asking] = handler
                    signal.signal(asking, lambda number, frame: held.append(number))
        yield
    finally:
        for asking, handler in former.items():
            signal.signal(asking, handler)
        for number in dict.fromkeys(held):
            signal.raise_signal(number)


def _start(work: Callable[[IO[bytes], bool], None], stream: IO[bytes], flag: bool) -> threading.Thread:
    thread = threading.Thread(target=work, args=(stream, flag), daemon=True)
    thread.start()
    return thread
