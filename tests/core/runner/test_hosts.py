"""Machines of a run: how they are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaling.core.errors import ConfigError, StorageError
from scaling.core.runner.hosts import Host, host_line_problem, read_hosts


def test_hosts_are_read_from_lines_or_a_file(tmp_path: Path) -> None:
    expected = [Host("a", 8), Host("me@b", 4), Host("c", 2, (0, 3)), Host("d", 1, (0,))]
    lines = ["a", "me@b slots=4", "c slots=0,3", "d slots=0,"]
    assert read_hosts(lines, None, default_slots=8) == expected
    path = tmp_path / "hosts"
    path.write_text("\n".join(["# machines", *lines, "", "  "]))
    assert read_hosts(None, path, default_slots=8) == expected
    assert read_hosts(None, None, default_slots=8) == []


@pytest.mark.parametrize(
    "line",
    ["a slots=x", "a slots=1,x", "a;rm", "$(id)", "a b", "a slots=1 b", "-oProxyCommand=x", "", "a`id`", "a|b", "a,b"],
)
def test_a_line_that_is_no_host_is_named(tmp_path: Path, line: str) -> None:
    """Nothing that a shell or ssh would take for more than a name gets through."""
    assert repr(line) in (host_line_problem(line) or "")
    path = tmp_path / "hosts"
    path.write_text(f"good\n{line or '-'}\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_hosts(None, path, default_slots=8)


def test_slots_name_each_gpu_once_and_offer_one() -> None:
    assert "names GPU 0 more than once" in (host_line_problem("a slots=0,0") or "")
    assert "offers no process" in (host_line_problem("a slots=0") or "")
    assert host_line_problem("a slots=0,") is None


def test_all_bad_lines_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("a;b\nc\nd slots=0,0\n")
    with pytest.raises(ConfigError) as caught:
        read_hosts(None, path, default_slots=8)
    assert [problem.path for problem in caught.value.problems] == ["runner.hostsfile line 1", "runner.hostsfile line 3"]


@pytest.mark.parametrize("content", [None, b"\xff", b"# nobody\n"])
def test_a_file_without_hosts_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "hosts"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((StorageError, ConfigError), match=r"runner\.hostsfile"):
        read_hosts(None, path, default_slots=8)


def test_a_machine_is_named_once() -> None:
    with pytest.raises(ConfigError, match="names a more than once"):
        read_hosts(["a", "b", "a slots=2"], None, default_slots=8)
