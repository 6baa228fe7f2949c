"""The machines of a run, as its user names them: a line for each, in the configuration or in a file."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scaling.core.errors import ConfigError, Problem, StorageError

_FORMS = "write `name`, `name slots=4` or `name slots=0,2`"
_LINE = re.compile(r"(?P<name>[A-Za-z0-9_][A-Za-z0-9_.:@-]*)(?:\s+slots=(?P<slots>\d+(?:,\d*)*))?")


@dataclass(frozen=True)
class Host:
    """One machine: its name, its number of processes, and its GPUs where the line names them."""

    name: str
    slots: int
    gpus: tuple[int, ...] | None = None

    @property
    def is_here(self) -> bool:
        """Return whether this is the machine that the runner runs on."""
        return self.name in ("localhost", "127.0.0.1", "::1", socket.gethostname(), socket.gethostname().split(".")[0])


def host_line_problem(line: str) -> str | None:
    """Return what is wrong with the line of a host, None where nothing is."""
    found = _LINE.fullmatch(line.strip())
    if found is None:
        return f"is {line!r}; {_FORMS}"
    numbers = _numbers(found)
    if numbers is None:
        return None
    if "," not in found["slots"]:
        return f"is {line!r}, which offers no process; {_FORMS}" if numbers[0] == 0 else None
    if doubles := sorted({number for number in numbers if numbers.count(number) > 1}):
        return f"is {line!r}, which names GPU {doubles[0]} more than once; name each GPU once"
    return None


def read_hosts(hosts: Sequence[str] | None, hostsfile: Path | None, *, default_slots: int) -> list[Host]:
    """Return the machines that `hosts` or the file name; none where neither is given.

    Raises:
        ConfigError: Lines of the file are malformed (those of the configuration are checked with it), or a machine has
            several lines. Carries all of them.
        StorageError: The file cannot be read.
    """
    lines = [(f"hosts.{index}", line) for index, line in enumerate(hosts or ())]
    if hostsfile is not None:
        try:
            text = hostsfile.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"runner.hostsfile {str(hostsfile)!r} cannot be read: {error}") from error
        numbered = enumerate((line.partition("#")[0].strip() for line in text.splitlines()), start=1)
        lines = [(f"hostsfile line {number}", line) for number, line in numbered if line]
        if not lines:
            raise ConfigError(Problem("runner.hostsfile", f"{str(hostsfile)!r} names no machine; {_FORMS}"))
    problems = [Problem(f"runner.{place}", what) for place, line in lines if (what := host_line_problem(line))]
    if problems:
        raise ConfigError(problems)
    found = [_host(line, default_slots) for _, line in lines]
    names = [host.name for host in found]
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            Problem("runner.hosts", f"names {', '.join(doubles)} more than once; give each machine one line")
        )
    return found


def _host(line: str, default_slots: int) -> Host:
    found = _LINE.fullmatch(line.strip())
    assert found is not None
    numbers = _numbers(found)
    if numbers is None:
        return Host(found["name"], default_slots)
    if "," in found["slots"]:
        return Host(found["name"], len(numbers), tuple(numbers))
    return Host(found["name"], numbers[0])


def _numbers(found: re.Match[str]) -> list[int] | None:
    """Return the numbers after `slots=`; None where there are none."""
    if found["slots"] is None:
        return None
    return [int(number) for number in found["slots"].split(",") if number]
