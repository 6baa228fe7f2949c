"""What the documentation says exists: its links, files, settings and commands, and its code runs.

The page on inference has tests of its own: `tests/test_inference_page.py`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scaling.core
from examples.finetuning_example.run import next_commands as after_finetuning
from examples.inference_example.run import next_commands as after_inference
from examples.mlp_example.config import MLPConfig
from examples.transformer_example.run import next_commands
from examples.tutorials.characters.train import CharactersConfig
from scaling.cli.main import SUB_COMMANDS
from scaling.core import Learner, Recipe, RunConfig, RunIdentity, Topology, fill, run_training
from scaling.core.config.explain import sections_of
from scaling.transformer.config.first_version import FirstTrainingConfig
from scaling.transformer.config.root import TransformerConfig
from tests.commands.pages import REPOSITORY as REPOSITORY
from tests.commands.pages import blocks as blocks
from tests.commands.pages import prose

PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "AGENTS.md")),
    *sorted(REPOSITORY.glob("docs/**/*.md")),
    *sorted(REPOSITORY.glob("examples/**/*.md")),
]
SOURCES = ("", "src", "src/scaling", "src/scaling/core", "src/scaling/transformer")
"""Where a file that is named may lie."""
OTHERS: dict[str, type[RunConfig]] = {
    "examples/mlp_example/README.md": MLPConfig,
    "examples/tutorials/your_own_model.md": CharactersConfig,
}
"""Pages that speak of another configuration than that of language models."""
WRITTEN_BY_RUNS = {"config.yml", "run_state.json", "run.json", "manifest.json"}


def page(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def spans(path: Path) -> Iterator[str]:
    """Yield what stands between single backticks."""
    yield from (re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", prose(path)))


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", prose(path))
    broken = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not broken


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_files_that_are_named_exist(path: Path) -> None:
    named = [span for span in spans(path) if re.fullmatch(r"[\w./-]+/[\w.-]+\.(py|yml|md|json)|[\w/]+\.py", span)]
    for name in named:
        found = [base for base in SOURCES if (REPOSITORY / base / name).exists()]
        anywhere = "/" not in name and next(REPOSITORY.glob(f"src/**/{name}"), None)
        assert found or anywhere or name in WRITTEN_BY_RUNS or name.startswith("runs/"), name


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_no_conflict_of_git_is_left_in_a_page(path: Path) -> None:
    assert not re.findall(r"^(?:<{7} .*|\|{7} .*|={7}|>{7} .*)$", path.read_text(), re.MULTILINE)


def is_setting(parts: list[str], annotation: Any) -> bool:
    """Return whether a dotted path leads to a field of a configuration."""
    if not parts:
        return True
    if parts[0].isdecimal() or parts[0] == "*":
        return is_setting(parts[1:], annotation)
    return any(
        parts[0] in member.model_fields and is_setting(parts[1:], member.model_fields[parts[0]].annotation)
        for section in sections_of(annotation)
        for member in (section, *section.__subclasses__())  # of a family
    )


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_settings_that_are_named_exist(path: Path) -> None:
    configuration = OTHERS.get(page(path), TransformerConfig)
    sections = "|".join(configuration.model_fields)
    # Attributes look alike, and so do names in files of other tools, which are the blocks of yml.
    # Fields of the predecessor are tested in tests/test_coming_from.py.
    other = r"^```(python|yml)\n.*?^```|^<!-- table: fields -->.*?^<!-- end -->"
    text = re.sub(other, "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    named = re.findall(rf"(?<![\w/.-])((?:{sections})(?:\.\w+)+)", text)
    settings = [name for name in named if not re.search(r"\.(py|md|yml)$|^optimizer\.(exp_avg|master)", name)]
    settings = [name for name in settings if name.removeprefix("training.") not in FirstTrainingConfig.model_fields]
    assert not [name for name in settings if not is_setting(name.split("."), configuration)]


def test_a_setting_that_does_not_exist_is_noticed() -> None:
    assert is_setting(["training_groups", "0", "learning_rate_scheduler", "learning_rate"], TransformerConfig)
    assert not is_setting(["trainer", "train_iteration"], TransformerConfig)


def commands(path: Path) -> Iterator[list[str]]:
    """Yield the words of every command of `scaling` that a page shows, in a block or between backticks."""
    shown = [*blocks(path, "bash"), "\n".join(spans(path))]
    shown += re.findall(r"^    (scaling .*)$", path.read_text(), re.MULTILINE)
    for text in shown:
        yield from commands_in(text)


def commands_in(text: str) -> Iterator[list[str]]:
    """Yield the words of every line that is a command of `scaling`."""
    for line in text.replace("\\\n", " ").splitlines():
        if found := re.match(r" *scaling( [a-z].*)", line):
            yield found[1].partition(" #")[0].split()


def options_of(words: list[str]) -> set[str]:
    """Return the options of the command that these words call, which has to exist."""
    assert words[0] in SUB_COMMANDS, words
    command = SUB_COMMANDS[words[0]].load(words[0])
    for word in words[1:]:
        if not hasattr(command, "commands"):
            break
        assert all(name in command.commands for name in word.split("|")), words
        command = command.commands[word.split("|")[0]]
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


def are_accepted(words: list[str]) -> bool:
    """Return whether a command has the options that are given to it."""
    return {word for word in words if re.fullmatch(r"--[a-z-]+", word)} <= options_of(words)


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_commands_and_their_options_exist(path: Path) -> None:
    for words in commands(path):
        assert are_accepted(words), words


def test_commands_that_examples_end_with_exist() -> None:
    folder = Path("runs/mine")
    ends = (next_commands("config.yml", folder), after_finetuning(folder, folder), after_inference(folder))
    for end in ends:
        shown = list(commands_in(end))
        assert shown
        assert all(map(are_accepted, shown)), end


def trainings(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield configuration and settings of every command with the configuration of an example."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        for found in re.finditer(r"(examples/\w+/config\.yml)((?: +[\w.]+=\S+)*)", line):
            yield found[1], found[2].split()


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_trainings_that_are_shown_are_accepted(path: Path) -> None:
    for name, settings in trainings(path.read_text()):
        configuration = MLPConfig if "mlp_example" in name else TransformerConfig
        configuration.from_yaml(REPOSITORY / name, settings)


def test_the_training_that_the_first_command_ends_with_is_accepted() -> None:
    shown = list(trainings(next_commands("examples/transformer_example/config.yml", Path("runs/first"))))
    assert len(shown) == 1
    for name, settings in shown:
        TransformerConfig.from_yaml(REPOSITORY / name, settings)
        assert settings


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_settings_that_are_shown_in_a_block_are_accepted(path: Path) -> None:
    for block in blocks(path, "yaml"):
        TransformerConfig.from_str(block)


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_code_is_python(path: Path) -> None:
    for number, block in enumerate(blocks(path, "python")):
        compile(block, f"{path.name}, block {number}", "exec")


def test_the_model_of_the_tutorial_is_shown_as_it_is() -> None:
    source = (REPOSITORY / "examples/tutorials/characters/model.py").read_text()
    shown = blocks(REPOSITORY / "examples/tutorials/your_own_model.md", "python")
    assert len(shown) == 4
    assert all(block in source for block in shown)


def test_the_schedule_that_contributors_are_shown_is_drawn_so() -> None:
    path = REPOSITORY / "CONTRIBUTING.md"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(blocks(path, "python")[0], {})
    assert printed.getvalue().strip() == blocks(path, "text")[0].strip()


def test_the_layer_of_the_readme_works() -> None:
    used = ("ColumnParallelLinear", "Place", "RowParallelLinear", "Topology")
    names = {name: getattr(scaling.core, name) for name in used}
    names |= {"nn": nn, "Tensor": Tensor, "F": torch.nn.functional}
    exec(blocks(REPOSITORY / "README.md", "python")[0], names)
    layer = fill(names["Hidden"](8, Topology.single()))
    assert layer(torch.ones(2, 8)).shape == (2, 8)


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The code of docs/recipes.md as a module, which other processes can import too."""
    (tmp_path / "recipes_of_the_page.py").write_text("\n\n".join(blocks(REPOSITORY / "docs/recipes.md", "python")))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "recipes_of_the_page", raising=False)
    return importlib.import_module("recipes_of_the_page")


def test_layer_loss_data_optimizer_and_groups_that_are_shown_train_alike_in_two_layouts(recipes: ModuleType) -> None:
    assert recipes.agrees()


def test_the_hook_that_is_shown_counts_skipped_steps(recipes: ModuleType) -> None:
    added: list[dict[str, Tensor]] = []
    state = SimpleNamespace(step=1)
    trainer = SimpleNamespace(state=state, metrics=SimpleNamespace(add=lambda step, values: added.append(values)))
    hook = recipes.SkippedSteps()
    for overflow in (0.0, 1.0, 1.0):
        hook.after_step(trainer, SimpleNamespace(overflow=torch.tensor(overflow)))
    assert [float(values["training/skipped_steps"]) for values in added] == [0.0, 1.0, 2.0]


def test_the_sink_that_is_shown_gets_every_step(recipes: ModuleType, tmp_path: Path) -> None:
    sizes = {"device": "cpu", "micro_batch_size": 2, "gradient_accumulation_steps": 1}
    config = RunConfig.from_dict({"topology": sizes, "trainer": {"train_iterations": 3, "log_interval": 2}})
    recipe = Recipe(layers=recipes.layers, loss=recipes.make_loss, training=recipes.Sines(), groups=recipes.GROUPS)
    with Topology.single() as topology:
        learner = Learner(recipe, config.topology, topology)
        sinks = recipes.sinks_of(topology, tmp_path / "losses.csv")
        run_training(config, learner, RunIdentity(config, {}), sinks=sinks)
    rows = [line.split(",") for line in (tmp_path / "losses.csv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert all(float(value) > 0.0 for row in rows for value in row[1:])


def test_the_schedule_that_is_shown_runs(recipes: ModuleType) -> None:
    assert recipes.PICTURE.startswith("rank 0  F0 F1 F2 ")


def test_every_command_is_shown_somewhere() -> None:
    assert {words[0] for path in PAGES for words in commands(path)} == set(SUB_COMMANDS)
