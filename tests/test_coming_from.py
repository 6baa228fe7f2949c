"""docs/coming_from*.md: each row of their tables names a setting or a name that exists, and the program trains."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from scaling.core import ExitStatus, LaunchContext, verify_layout
from scaling.transformer.config.root import TransformerConfig
from tests.predecessor.field_table import FIELDS, Fate, fate, with_table
from tests.test_documentation import REPOSITORY, blocks, is_setting

PAGE = REPOSITORY / "docs/coming_from.md"
NAMES = {name for package in ("core", "transformer") for name in importlib.import_module(f"scaling.{package}").__all__}


def rows(heading: str) -> list[tuple[str, str]]:
    """Return left and right of each row below a heading of the first page, up to the next one."""
    section = re.split(r"^#+ ", PAGE.read_text().partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"^\| (.+?) \| (.+) \|$", section, re.MULTILINE)
    assert len(found) > 4, heading
    return found[1:]


def settings_in(cell: str) -> list[str]:
    spans = [span.partition(":")[0] for span in re.findall(r"`([^`]+)`", cell)]
    return [span for span in spans if span.partition(".")[0] in TransformerConfig.model_fields]


@pytest.mark.parametrize(
    "heading",
    [
        *("What is trained, since 0.1", "What a file means otherwise here"),
        "The Trainer of Hugging Face",
    ],
)
def test_each_row_names_settings_that_exist(heading: str) -> None:
    for left, right in rows(heading):
        found = settings_in(right)
        assert found, (left, right)
        assert [name for name in found if not is_setting(name.split("."), TransformerConfig)] == [], left


def names_of_others(page: str) -> list[tuple[str, str, str]]:
    """Return each row of the tables of a page that is about one other library: theirs, ours, what differs."""
    found = re.findall(r"^\| (`.+?) \| (.+?) \| (.*?) ?\|$", (PAGE.parent / page).read_text(), re.MULTILINE)
    assert len(found) > 30
    return found


@pytest.mark.parametrize(
    ("page", "theirs"),
    [("coming_from_megatron.md", r"--[a-z0-9-]+"), ("coming_from_torchtitan.md", r"\[[a-z_]+\] [a-z_0-9]+")],
)
def test_each_name_of_another_library_stands_beside_settings_that_exist(page: str, theirs: str) -> None:
    for left, right, remark in names_of_others(page):
        assert all(re.fullmatch(theirs, name) for name in re.findall(r"`([^`]+)`", left)), left
        assert settings_in(right), (left, right)
        for name in settings_in(right) + settings_in(remark):
            assert is_setting(name.split("."), TransformerConfig), (left, name)


@pytest.mark.parametrize("page", ["coming_from_megatron.md", "coming_from_torchtitan.md"])
def test_no_name_of_another_library_comes_twice(page: str) -> None:
    lefts = [left for left, _, _ in names_of_others(page)]
    assert len(set(lefts)) == len(lefts)


def test_every_field_of_the_predecessor_is_told_the_fate_of() -> None:
    assert len(set(FIELDS)) == len(FIELDS) > 200
    assert [path for path in FIELDS if fate(path) is None] == []
    text = PAGE.read_text()
    assert with_table(text) == text, "run python -m tests.predecessor.field_table"


def test_a_field_that_nobody_knows_has_no_fate() -> None:
    assert fate("trainer.train_iteration") is None
    assert fate("runner.hostfile") == Fate("renamed", "`hostsfile`; the old name is read, too")


def test_each_row_of_names_has_one_that_exists() -> None:
    for left, right in rows("Names in Python"):
        words = re.findall(r"`(\w+)", right)
        assert NAMES & set(words) or "nn.Module" in right, (left, right)
        # A name with a capital is one of ours; others are arguments, methods and modules.
        assert {word for word in words if word[0].isupper() and word != "X"} <= NAMES, left


@pytest.fixture
def ported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program of the page as a module, which other processes can import too."""
    (tmp_path / "ported_program.py").write_text("\n\n".join(blocks(PAGE, "python")))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "ported_program", raising=False)
    return importlib.import_module("ported_program")


def test_the_ported_program_trains_alike_in_two_layouts(ported: ModuleType) -> None:
    sizes = {"model_parallel_size": 2, "pipe_parallel_size": 2, "data_parallel_size": 1}
    config = ported.MLPConfig.from_dict(
        {
            "topology": {**sizes, "micro_batch_size": 2, "gradient_accumulation_steps": 2},
            "learning_rate_scheduler": {"learning_rate": 0.01},
            "architecture": {"hidden_dim": 8},
        }
    )
    report = verify_layout(ported.recipe_of(config), config.topology, steps=2, timeout=120)
    assert report.agrees, report


def test_the_ported_program_trains(ported: ModuleType, tmp_path: Path) -> None:
    launch = LaunchContext.from_environment()
    config = ported.MLPConfig.from_dict(
        {
            "topology": {"device": "cpu", "micro_batch_size": 8, "gradient_accumulation_steps": 1},
            "trainer": {"train_iterations": 2, "eval_interval": 2, "eval_iterations": 1, "save_dir": str(tmp_path)},
        }
    )
    assert ported.train(config, launch) == ExitStatus.DONE
