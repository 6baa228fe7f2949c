"""Every command in README, docs and examples is run, in a scratch copy of small sizes, or listed with the reason."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from scaling.transformer.data import corpus
from tests.commands.pages import PAGES, REPOSITORY, blocks, commands_of, indented, name_of, split
from tests.commands.server import CLIENT
from tests.commands.table import FIRST, SMALL, TABLE, VOCABULARY, By, Page
from tests.processes import wait_until
from tests.transformer.small import command_environment, metrics, state, values

WITH_COMMANDS = [path for path in PAGES if commands_of(path)]
LONGEST = 200
"""Seconds that a command may take on a busy machine; none needs more than ten on an idle one."""
SAID = "first_command.txt"
"""What the first command said."""
ALONE = "a page whose commands are run has none that are set by indentation"
TEMPLATE = "{% for m in messages %}{{ m.role[0] + m.content + '<|endoftext|>' }}{% endfor %}a"
"""Short: a question has to fit into half of a small context, letter by letter, if need be."""
ADAPTER = (
    "scaling train runs/smollm2/config.yml 'transformer_architecture.lora_config={rank: 2}' data.record_format=auto "
    "'data.data_prefixes=[records.jsonl]' data.too_long=drop trainer.train_iterations=2 "
    "trainer.save_dir=runs/lora/checkpoints logger.log_dir=runs/lora"
)
TEXTS = ("Once upon a time there was a fjord.", "The capital of France is Paris.", "import os\n\nprint(os.getcwd())\n")


def one_of(named: Mapping[str, object], command: str) -> str | None:
    """Return the part by which a table names a command; None where it does not."""
    return next((part for part in named if part in command), None)


def run_here(path: Path) -> list[str]:
    """Return the commands of a page that are run."""
    page = TABLE[name_of(path)]
    return [command for command in commands_of(path) if one_of(page.not_run, command) is None and command != FIRST]


RUN = [path for path in WITH_COMMANDS if (page := TABLE.get(name_of(path))) and page.run and run_here(path)]


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=name_of)
def test_every_command_is_run_or_listed_with_its_reason(path: Path) -> None:
    name, page = name_of(path), TABLE.get(name_of(path), Page(run=False))
    left = [] if page.run else run_here(path) if name in TABLE else commands_of(path)
    shown = "\n".join(f"  {command}" for command in left)
    assert not left, (
        f"{name} shows commands that no test runs:\n{shown}\n"
        f"Give the page an entry in tests/commands/table.py: Page() has them run in a scratch copy with a small "
        "trained model (`furnish` in tests/commands/test_commands.py says what lies there); Page(not_run={part of the "
        "command: reason or By(test)}) says why one is not run."
    )


def test_the_table_speaks_of_what_is_there() -> None:
    pages = {name_of(path): path for path in WITH_COMMANDS}
    assert not set(TABLE) - set(pages), "pages that are gone, or show no commands any more"
    for name, page in TABLE.items():
        commands = commands_of(pages[name])
        for part in (*page.not_run, *page.status, *page.added):
            assert any(part in command for command in commands), f"{name} has no command with {part!r} any more"
        for test in (reason.test for reason in page.not_run.values() if isinstance(reason, By)):
            file, _, function = test.partition("::")
            assert f"\ndef {function}(" in (REPOSITORY / file).read_text(), f"{name}: there is no test {test} any more"
    for file, changes in SMALL.items():
        text = (REPOSITORY / file).read_text()
        assert not [former for former in changes if text.count(former) != 1], f"{file} reads otherwise now; see SMALL"


@pytest.mark.parametrize("path", RUN, ids=name_of)
def test_no_command_hides_outside_of_the_blocks_of_a_page_that_is_run(path: Path) -> None:
    assert not indented(path), ALONE


def test_a_block_is_split_into_commands_as_a_shell_reads_them() -> None:
    block = "a 'x && y' && b\n# nothing\nc \\\n  --d\npython3 - <<'END'\nprint('''\n''')\nEND\ne -c \"1\n2\"\n"
    assert list(split(block)) == [
        "a 'x && y'",
        "b",
        "c \\\n  --d",
        "python3 - <<'END'\nprint('''\n''')\nEND",
        'e -c "1\n2"',
    ]


@dataclass(frozen=True)
class Scratch:
    """A folder in which the first command has been run, and what the commands find on their PATH."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, command: str, *, expected: int = 0, folder: Path | None = None) -> str:
        """Run a command in bash and return what it said; fail where it ends otherwise than expected."""
        with subprocess.Popen(
            ["bash", "-c", command],
            cwd=folder or self.folder,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                said, _ = process.communicate(timeout=LONGEST)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        assert process.returncode == expected, f"{command}\nended with {process.returncode}:\n{said[-4000:]}"
        return said


def small_configuration(file: str) -> str:
    """Return a configuration of the repository with the sizes of `SMALL`."""
    text = (REPOSITORY / file).read_text()
    for former, new in SMALL[file].items():
        text = text.replace(former, new)
    return text


def build_small_corpus(folder: Path) -> None:
    """Build the corpus of the first command from a few modules: its name says what the configuration asks for."""
    documents = [document for document, _ in zip(corpus.stdlib_documents(), range(40), strict=False)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "stdlib_documents", lambda: iter(documents))
        corpus.build_stdlib_corpus(folder / ".data/python_stdlib", corpus.CorpusLimits(vocab_size=VOCABULARY))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scratch]:
    """Copy the examples, run the first command, and make what pages take for granted."""
    top = tmp_path_factory.mktemp("commands")
    folder, programs, address = top / "clone", top / "bin", str(top / "server")
    shutil.copytree(REPOSITORY / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "docs", folder / "docs")
    for file in SMALL:
        (folder / file).write_text(small_configuration(file))
    programs.mkdir()
    for name in ("python3", "scaling"):
        (programs / name).write_text(CLIENT.format(python=sys.executable, address=address))
        (programs / name).chmod(0o755)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**command_environment(PATH=path, OMP_NUM_THREADS="1"), "PYTHONPATH": str(REPOSITORY / "src")}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.commands.server", address], start_new_session=True, env=command_environment()
    )
    try:
        build_small_corpus(folder)
        wait_until(lambda: Path(address).exists(), "the server of commands did not start", seconds=120)
        made = Scratch(folder, environment)
        furnish(made)
        yield made
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def furnish(scratch: Scratch) -> None:
    """Run the first command, import a model, train an adapter on it, and write the data that pages speak of."""
    folder = scratch.folder
    (folder / SAID).write_text(scratch.run(FIRST))
    (folder / "chatml.jinja").write_text(TEMPLATE)
    for model in ("path/to/SmolLM2-135M", "models/SmolLM2-135M"):
        scratch.run(f"scaling hf export runs/transformer_example/checkpoints {model}")
        (folder / model / "chat_template.jinja").write_text(TEMPLATE)
    records = [
        {"prompt": f"What is {word}?", "completion": f"It is {word}."} for text in TEXTS for word in text.split()
    ]
    messages = [{"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "There."}]}] * 20
    files: dict[str, Sequence[object]] = {
        "records.jsonl": records,
        "data/questions.jsonl": records[:4],
        "conversations.jsonl": messages,
        "texts.jsonl": [{"text": text} for text in TEXTS * 4],
        "prompts.jsonl": [{"prompt": text} for text in TEXTS],
    }
    (folder / "data").mkdir()
    (folder / "texts").mkdir()
    for name, lines in files.items():
        (folder / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for number, text in enumerate(TEXTS * 20):
        (folder / f"texts/{number}.txt").write_text(text * 20)
    (folder / "questions.txt").write_text("Where is it?\n")
    shutil.copy(folder / "runs/transformer_example/checkpoints/vocab.json", folder / "tokenizer.json")
    shutil.copy(folder / "examples/transformer_example/config.yml", folder / "config.yml")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    scratch.run("scaling hf import path/to/SmolLM2-135M runs/smollm2")
    scratch.run(ADAPTER)
    scratch.run("scaling hf export runs/lora/checkpoints adapters/theirs --adapter")
    for name in ("held_out", "code"):
        scratch.run(f"scaling data tokenize texts.jsonl --output data/{name} --tokenizer tokenizer.json")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_first_command_trains_saves_and_speaks(scratch: Scratch) -> None:
    run = scratch.folder / "runs/transformer_example"
    losses = values(metrics(run))
    assert losses[0] == pytest.approx(math.log(VOCABULARY), abs=0.5)
    assert losses[-1] < losses[0]
    assert len(values(metrics(run), "evaluation/perplexity")) == 1
    assert state(run)["state"] == "finished"
    assert (run / "checkpoints/latest").read_text() == f"global_step{len(losses)}"
    _, _, spoken = (scratch.folder / SAID).read_text().partition("The model continues:")
    for prompt in ("def ", "import ", "The following"):
        assert f"\n  {prompt}" in spoken
    assert "scaling generate runs/transformer_example/checkpoints --prompt" in spoken


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", RUN, ids=name_of)
def test_the_commands_of_a_page_run(path: Path, scratch: Scratch, tmp_path: Path) -> None:
    page, folder = TABLE[name_of(path)], tmp_path / "clone"
    shutil.copytree(scratch.folder, folder, symlinks=True)
    for name, number in page.files.items():
        (folder / name).write_text(blocks(path, "yaml")[number])
    scratch.run(page.before or ":", folder=folder)
    for command in run_here(path):
        part, added = one_of(page.status, command), one_of(page.added, command)
        text = command if added is None else f"{command} {page.added[added]}"
        scratch.run(text, expected=0 if part is None else page.status[part], folder=folder)
