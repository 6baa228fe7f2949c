"""docs/read_the_code.md: its lines run in order and print what it shows; the times add up to its hour."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator

import pytest
import torch

from tests.test_documentation import REPOSITORY

PAGE = REPOSITORY / "docs/read_the_code.md"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The tensors are so small that a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_the_lines_of_the_tour_print_what_it_shows() -> None:
    stops = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(stops) == PAGE.read_text().count("```python")
    session: dict[str, object] = {"__name__": "tour"}
    for lines, shown in stops:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(lines, PAGE.name, "exec"), session)
        assert printed.getvalue() == shown


def test_the_tour_takes_an_hour_and_has_a_stop_for_each_line_of_its_table() -> None:
    rows = re.findall(r"^\| \[(.+?)\]\(.+?\) \| (\d+) \|$", PAGE.read_text(), re.MULTILINE)
    assert sum(int(minutes) for _, minutes in rows) == 60
    assert [stop for stop, _ in rows] == re.findall(r"^## (\d.*)$", PAGE.read_text(), re.MULTILINE)
