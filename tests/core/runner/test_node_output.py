"""NodeOutput: lines of processes are passed on whole, the last ones are remembered, and nobody waits for a reader."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from scaling.core.runner.node_output import LAST_LINES

PLAY = """
import os, sys
from scaling.core.runner.node_output import NodeOutput
output = NodeOutput()
for rank, to in ((0, 1), (0, 2), (1, 1)):
    output.attach(f"{sys.argv[1]}/{rank}-{to}", rank=rank, to=to)
pipes = {key: os.open(f"{sys.argv[1]}/{key}", os.O_WRONLY) for key in ("0-1", "0-2", "1-1")}
"""


def played(tmp_path: Path, program: str) -> tuple[str, str]:
    """Return what a node prints to its standard output and error."""
    done = subprocess.run(
        [sys.executable, "-c", PLAY + program, str(tmp_path)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=True,
    )
    return done.stdout, done.stderr


def test_lines_go_where_they_came_from_and_the_last_ones_are_kept(tmp_path: Path) -> None:
    program = """
for n in range(30):
    os.write(pipes["0-1"], f"line {n}\\n".encode())
os.write(pipes["1-1"], b"no end")
os.write(pipes["1-1"], b" of line")
os.write(pipes["0-2"], b"bad \\xff\\n")
output.drain()
output.say("report")
output.close()
print(len(output.last_lines(0)), output.last_lines(1), output.last_lines(7))
"""
    out, error = played(tmp_path, program)
    *lines, report, kept = out.splitlines()
    assert [line for line in lines if line != "no end of line"] == [f"line {n}" for n in range(30)]
    assert "no end of line" in lines
    assert report == "report"
    assert kept == f"{LAST_LINES} ('no end of line',) ()"
    assert "bad " in error


def test_lines_that_nobody_takes_are_dropped_whole_and_counted(tmp_path: Path) -> None:
    program = """
import time
for n in range(30_000):
    os.write(pipes["0-1"], b"x" * 99 + b"\\n")
output.drain()
print("written", file=sys.stderr, flush=True)
output.say("report")
output.close(30.0)
"""
    command = [sys.executable, "-c", PLAY + program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline() == "written\n"  # it was not stopped by us, who have read nothing yet
        *lines, report = process.stdout.read().splitlines()
        said = process.stderr.read()
    assert report == "report"
    assert set(lines) == {"x" * 99}
    assert len(lines) < 30_000
    assert f"({30_000 - len(lines)} lines were left out" in said


def test_a_reader_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    program = "os.close(1)\nread, write = os.pipe()\nos.close(read)\nos.dup2(write, 1)\n"
    program += 'os.write(pipes["0-1"], b"lost\\n")\noutput.close()\nos.write(2, repr(output.last_lines(0)).encode())\n'
    program += "os._exit(0)\n"
    assert played(tmp_path, program)[1] == "('lost',)"
