"""What all faults share: the undisturbed runs, and the table at the end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.engine import FLOAT64, TWO, Scene, Source, Undisturbed, make_source
from tests.faults.matrix import table, to_json
from tests.faults.results import RESULTS

JSON_VARIABLE = "SCALING_FAULTS_JSON"
"""Names a file for the results."""


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A tokenizer and a corpus."""
    return make_source(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def undisturbed(source: Source) -> Undisturbed:
    """The run that those with faults are compared with."""
    return Undisturbed.run(source, source.folder / "undisturbed", TWO)


@pytest.fixture(scope="session")
def wide(source: Source) -> Undisturbed:
    """The same in float64."""
    return Undisturbed.run(source, source.folder / "wide", TWO, FLOAT64)


@pytest.fixture
def scene(tmp_path: Path, undisturbed: Undisturbed, wide: Undisturbed) -> Scene:
    """A folder to play a case in."""
    return Scene(tmp_path, undisturbed, wide)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table and the figure."""
    if not RESULTS:
        return
    terminalreporter.section("fault matrix")
    for line in table(RESULTS):
        terminalreporter.write_line(line)
    if where := os.environ.get(JSON_VARIABLE):
        Path(where).write_text(to_json(RESULTS))
