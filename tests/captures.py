"""What a training shows on a terminal and in a file, for docs/watching.md: `python3 -m tests.captures` renews it.

Takes tmux for the terminals. Only the shape of what the page shows is compared by a test, for every number differs.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.processes import is_running, wait_until
from tests.transformer.small import SMALL, build_corpus, command_environment, write_config

PAGE: Final = Path(__file__).parents[1] / "docs" / "watching.md"
WIDTHS: Final = (120, 60)
COMMAND: Final = ("-m", "scaling.cli.main", "train", "config.yml")
"""After the name of the interpreter; what a user types is `scaling train config.yml`."""
STOPPED: Final = {"SCALING_FAULT": "step.before_forward:46=hang"}
"""The variable that makes the training stop in its 46th step, for the terminal to be looked at."""
LAST_EVENT: Final = "step 40/60 checkpoint"
"""What is told of last before that."""


def prepare(folder: Path) -> None:
    """Write what the command reads into `folder`, where it is to run."""
    build_corpus(folder / "tokens")
    settings = {
        **SMALL,
        "data.data_prefixes": ["tokens"],
        "data.validation_fraction": 0.1,
        "logger.log_dir": "runs/first",
        "trainer.train_iterations": 60,
        "trainer.eval_interval": 20,
        "trainer.save_interval": 20,
        "trainer.save_dir": "runs/first/checkpoints",
    }
    write_config(folder / "config.yml", settings)


def piped(folder: Path) -> list[str]:
    """Return what the command writes where no terminal is."""
    prepare(folder)
    done = subprocess.run(
        [sys.executable, *COMMAND],
        cwd=folder,
        env=command_environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    return done.stderr.splitlines()


def has_live_line(lines: Sequence[str]) -> bool:
    """Return whether the last line is a live one that was drawn after the last event."""
    words = "".join(lines).replace(" ", "")
    return LAST_EVENT.replace(" ", "") in words and bool(lines) and lines[-1].startswith("step 4")


def shape(lines: Sequence[str]) -> list[str]:
    """Return lines without their numbers and spaces; those that a terminal has wrapped are joined again."""
    whole: list[str] = []
    for line in lines:
        if not whole or re.match(r"\d\d:\d\d:\d\d |step \d|\[\d{4}-", line):
            whole.append(line)
        else:
            whole[-1] += line
    return [re.sub(r"\s", "", re.sub(r"[-+]?\d[\d,.:]*(e[-+]\d+)?|\bnan\b|\binf\b", "#", line)) for line in whole]


def shown_in_page(width: int | None) -> list[str]:
    """Return what docs/watching.md shows for a width of the terminal; None: where no terminal is."""
    found = re.search(_block(width), PAGE.read_text(), re.DOTALL)
    assert found is not None, f"there is no capture of {width} columns in {PAGE.name}"
    return found[2].splitlines()


def _block(width: int | None) -> str:
    name = "piped" if width is None else f"{width} columns"
    return rf"(<!-- capture: {name} -->\n```text\n)(.*?)(```)"


def _in_tmux(folder: Path, width: int) -> list[str]:
    """Return what a terminal of tmux shows of the command when it stops."""
    prepare(folder)
    environment = {**command_environment(**STOPPED), "TERM": "screen"}

    def tmux(*arguments: str) -> str:
        command = ["tmux", "-L", f"scaling-captures-{width}", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    command = shlex.join([sys.executable, *COMMAND])
    tmux("new-session", "-d", "-x", str(width), "-y", "40", "-c", str(folder), command)
    started = int(tmux("display-message", "-p", "#{pane_pid}"))
    lines: list[str] = []

    def is_shown() -> bool:
        lines[:] = [line for line in tmux("capture-pane", "-p").splitlines() if line.strip()]
        return has_live_line(lines)

    try:
        wait_until(is_shown, "the training never came to where it stops")
    finally:
        tmux("kill-server")
        wait_until(lambda: not is_running(started), "the training does not end with its terminal")
    return lines


def main() -> None:
    """Write the captures into the page."""
    page = PAGE.read_text()
    for width in (*WIDTHS, None):
        with tempfile.TemporaryDirectory() as folder:
            lines = piped(Path(folder)) if width is None else _in_tmux(Path(folder), width)
        text = "".join(f"{line}\n" for line in lines)
        found = re.search(_block(width), page, re.DOTALL)
        assert found is not None
        page = page[: found.start(2)] + text + page[found.end(2) :]
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
