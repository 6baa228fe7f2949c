"""`scaling generate` continues a text with what a training has left behind, its tokenizer included."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling.cli import generate as generating
from scaling.cli.main import main
from scaling.cli.prompt_file import Request
from scaling.cli.ranks import Here
from scaling.core.errors import OUTPUT_CLOSED
from scaling.transformer.data.end_token import END_OF_TEXT
from scaling.transformer.data.shards import TokenizeOptions
from scaling.transformer.data.tokenize import tokenize_files
from scaling.transformer.data.tokenizer import Tokenizer, tokenizer_digest, train_tokenizer
from scaling.transformer.inference.module import TransformerInferenceModule
from tests.processes import descendants, is_running
from tests.transformer.finetuned import found, write_adapter
from tests.transformer.small import command_environment, train_small

SENTENCE = "the cät 🙂 sat on the mat."

COMMAND = (sys.executable, "-m", "scaling.cli.main", "generate")

Generate = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Learn one sentence by heart, which ends with a token of an unusual name that only the data tell of."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = Tokenizer.from_str(train_tokenizer([SENTENCE], 270).to_str().replace(END_OF_TEXT, "<done>"))
    tokenizer.save(folder / "tokenizer.json")
    texts = folder / "text.jsonl"
    texts.write_text(f"{json.dumps({'text': SENTENCE})}\n" * 40)
    tokenize_files([texts], folder / "data", TokenizeOptions(folder / "tokenizer.json", eod_token="<done>"))
    settings = {
        "transformer_architecture.vocab_size": None,
        "transformer_architecture.vocab_file": str(folder / "tokenizer.json"),
        "trainer.save_dir": str(folder / "checkpoints"),
        "trainer.train_iterations": 40,
    }
    train_small(folder / "data", folder, settings)
    return folder / "checkpoints"


@pytest.fixture
def generate(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Generate:
    """Run `scaling generate CHECKPOINT ARGUMENTS`; return status, output and errors."""
    learnt = checkpoint

    def run(*arguments: str, checkpoint: Path = learnt) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["scaling", "generate", str(checkpoint), *arguments])
        with pytest.raises(SystemExit) as leaving:
            main()
        shown = capsys.readouterr()
        return int(leaving.value.code or 0), shown.out, shown.err

    return run


def test_what_was_learnt_is_said_up_to_the_end_of_the_document(generate: Generate, checkpoint: Path) -> None:
    assert (checkpoint / "vocab.json").exists()
    assert generate("--prompt", "the cät", "--temperature", "0") == (0, f"{SENTENCE}\n", "")


def test_a_folder_that_is_nearly_right_is_found_and_said(generate: Generate, checkpoint: Path) -> None:
    arguments = ("--prompt", "the cät", "--temperature", "0")
    for given, meant in ((checkpoint.parent, checkpoint), (checkpoint / "latest", checkpoint / "global_step40")):
        assert generate(*arguments, checkpoint=given) == (0, f"{SENTENCE}\n", f"note: taking {meant}\n")
    status, said, shown = generate(*arguments, checkpoint=checkpoint / "global_step4")
    assert (status, said) == (2, "")
    assert f"name one of those in {checkpoint}: global_step40" in shown


def test_a_stop_text_ends_it_before(generate: Generate) -> None:
    said = generate("--prompt", "the cät", "--temperature", "0", "--stop", "on", "--stop", "mat")
    assert said == (0, "the cät 🙂 sat \n", "")


def test_at_most_so_many_tokens_are_said(generate: Generate) -> None:
    status, said, _ = generate("--prompt", "the", "--temperature", "0", "--max-tokens", "1")
    assert status == 0
    assert SENTENCE.startswith(said.removesuffix("\n"))
    assert len(said) < len(SENTENCE)


def test_a_seed_says_the_same_again(generate: Generate) -> None:
    arguments = ("--prompt", "the", "--temperature", "3", "--top-k", "50", "--top-p", "0.99", "--max-tokens", "20")
    assert generate(*arguments, "--seed", "1") == generate(*arguments, "--seed", "1")
    assert generate(*arguments, "--seed", "1") != generate(*arguments, "--seed", "2")


def test_several_texts_have_headings(generate: Generate) -> None:
    status, said, _ = generate("--prompt", "the cät", "--prompt", "the", "--temperature", "0", "--samples", "2")
    assert status == 0
    assert said == "".join(
        f"--- prompt {prompt} of 2, sample {sample} of 2 ---\n{SENTENCE}\n" for prompt in (1, 2) for sample in (1, 2)
    )


def rows(said: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.splitlines()]


def test_prompts_of_a_file_become_lines_of_json_in_any_number_of_processes(
    generate: Generate, checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    tokens = Tokenizer.from_file(checkpoint / "vocab.json").encode("the")
    file.write_text(json.dumps({"prompt": "the cät"}) + "\n" + json.dumps({"tokens": tokens, "seed": 5}) + "\n")
    arguments = ("--json", "--temperature", "3", "--seed", "4", "--max-tokens", "5", "--log-probabilities", "1")
    status, said, shown = generate("--prompts", str(file), *arguments)
    assert (status, shown) == (0, "")
    found = rows(said)
    assert [(row["row"], row["prompt"]) for row in found] == [(0, "the cät"), (1, tokens)]
    for row in found:
        assert len(row["tokens"]) == len(row["log_probabilities"]) == len(row["best"]) <= 5
        assert row["finish_reason"] == ("length" if len(row["tokens"]) == 5 else "stop")
    assert rows(generate("--prompt", "the", *arguments, "--seed", "5")[1])[0]["tokens"] == found[1]["tokens"]
    process = subprocess.run(
        [*COMMAND, str(checkpoint), "--prompts", "-", *arguments, "--pipe-parallel-size", "2"],
        env=command_environment(),
        input=file.read_bytes(),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, b"")
    for alone, cut in zip(found, rows(process.stdout.decode()), strict=True):
        assert {**cut, "log_probabilities": 0, "best": 0} == {**alone, "log_probabilities": 0, "best": 0}
        assert cut["log_probabilities"] == pytest.approx(alone["log_probabilities"], abs=1e-5)


def prompts_keep_their_seeds(rank: int, world_size: int) -> None:
    """Mix prompts with seeds and without. The arguments are those of a check of a bug."""
    here, requests = Here(device="cpu"), [Request("a"), Request("b", 5), Request("c")]
    assert generating.asked_seeds(requests, 4, here) == [4, 5, 4]
    assert generating.asked_seeds(requests[:1], 4, here) == 4
    assert generating.asked_seeds(requests[:1], None, here) is None
    drawn = generating.asked_seeds(requests, None, here)
    assert isinstance(drawn, list)
    assert drawn[1] == 5
    assert drawn[0] != drawn[2]


def test_a_prompt_may_have_a_seed_of_its_own() -> None:
    prompts_keep_their_seeds(0, 1)


class Terminal:
    """A command that has a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self.keyboard, self.screen = os.openpty()
        self.settings = termios.tcgetattr(self.screen)
        stream = self.screen
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command], env=command_environment(), stdin=stream, stdout=stream, stderr=stream
        )

    def read_until(self, wanted: bytes) -> bytes:
        shown = b""
        while wanted not in shown:
            ready, _, _ = select.select([self.keyboard], [], [], 60)
            assert ready, shown
            shown += os.read(self.keyboard, 4096)
        return shown

    def wait(self) -> int:
        """Wait for the end, and read what is written before: who writes to a full terminal waits."""
        while self.process.poll() is None:
            if select.select([self.keyboard], [], [], 0.05)[0]:
                os.read(self.keyboard, 4096)
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.keyboard)
        os.close(self.screen)


ENDLESS = ("--min-tokens", "100000", "--max-tokens", "100000")
SOON = 4.0
"""Twice what is promised: other tests may have the cores."""


@pytest.mark.parametrize(
    "processes",
    [pytest.param(()), pytest.param(("--pipe-parallel-size", "2"), marks=pytest.mark.slow)],
    ids=["one", "two"],
)
def test_ctrl_c_in_the_middle_of_a_text_ends_it_and_leaves_the_terminal_usable(
    checkpoint: Path, processes: tuple[str, ...]
) -> None:
    terminal = Terminal(*COMMAND, str(checkpoint), "--prompt", "the cät", *ENDLESS, *processes)
    try:
        shown = terminal.read_until("🙂 sat".encode())
        below = descendants(terminal.process.pid)
        assert bool(below) == bool(processes)
        os.write(terminal.keyboard, b"\x03")
        asked = time.monotonic()
        assert terminal.wait() == 130
        assert time.monotonic() - asked < SOON
        assert termios.tcgetattr(terminal.screen) == terminal.settings
        assert b"Traceback" not in shown
        assert not any(map(is_running, below))
    finally:
        terminal.close()


@pytest.mark.slow
def test_ctrl_c_while_prompts_are_read_ends_it(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"the cät sat on the mat."\n' * 50000)
    with subprocess.Popen(
        [*COMMAND, str(checkpoint), "--prompts", str(file), "--json", "--max-tokens", "1"],
        env=command_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        time.sleep(8)  # nothing shows how far it is
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        asked = time.monotonic()
        said, shown = process.communicate(timeout=30)
        assert time.monotonic() - asked < SOON
        assert (process.returncode, said) == (130, b"")
        assert b"Traceback" not in shown


def test_a_reader_that_goes_ends_it_quietly(checkpoint: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, str(checkpoint), "--prompt", "the cät", *ENDLESS],
        env=command_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(3) == b"the"
        process.stdout.close()
        asked = time.monotonic()
        assert process.wait(30) == OUTPUT_CLOSED
        assert time.monotonic() - asked < SOON
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "a", "--top-p", "2"], "top_p (2.0) must be above 0"),
        (["--prompt", "a", "--device", "nothing"], "device (nothing) cannot be used: there is none of this name"),
        (["--prompt", "a", "--device", "gpu"], "a GPU is called cuda; choose cpu, or where"),
        (["--prompt", "a", "--stop", ""], "a stop text is empty"),
        (["--prompt", "caf\udce9"], "is not UTF-8: it has the byte 0xe9 at character 3, behind 'caf'"),
        (
            ["--prompt", "a", "--prompts", "-"],
            "prompts are given twice; give either --prompt TEXT, once or several times, or --prompts FILE",
        ),
        (["--prompts", "/dev/null"], "/dev/null has no prompts"),
        (["--prompt", "a", "--log-probabilities", "1"], "--log-probabilities (1) are written as JSON; give --json"),
        (["--prompt", "a", "--max-cache-bytes", "much"], "--max-cache-bytes (much) is no number of bytes"),
        (["--prompt", "a", "--max-cache-bytes", "1kB"], "max_cache_bytes"),
        (["--prompt", "a", "--min-p", "2"], "min_p (2.0) must be above 0"),
        (["--prompt", "a", "--precision", "half"], "precision (half) does not exist"),
        (["--prompt", "a", "--pipe-parallel-size", "2", "--device", "gpu"], "a GPU is called cuda"),
    ],
)
def test_a_mistake_gets_a_message(generate: Generate, arguments: list[str], message: str) -> None:
    status, said, shown = generate(*arguments)
    assert status == 2
    assert said == ""
    assert shown.startswith("error: ")
    assert message in shown
    assert "Traceback" not in shown


def test_an_adapter_speaks_beside_its_base_or_opened_itself(
    generate: Generate, checkpoint: Path, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "adapter", found(checkpoint), {"lora_config": {"rank": 2, "alpha": 20.0}})
    arguments = ("--prompt", "the cät", "--temperature", "0", "--max-tokens", "9")
    tuned = TransformerInferenceModule.from_checkpoint(tmp_path / "adapter")
    said = "the cät" + "".join(tuned.stream_text("the cät", max_tokens=9)) + "\n"
    assert not SENTENCE.startswith(said.strip())
    assert generate(*arguments, "--adapter", str(tmp_path / "adapter")) == (0, said, "")
    assert generate(*arguments, checkpoint=tmp_path / "adapter") == (0, said, "")
    status, _, shown = generate(*arguments, "--adapter", str(checkpoint))
    assert status == 2
    assert "holds a whole model, not what was trained on one" in shown


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def test_another_tokenizer_is_refused(generate: Generate, copy: Path) -> None:
    own, other = tokenizer_digest(copy / "vocab.json"), train_tokenizer(["something else"], 270)
    other.save(copy / "vocab.json")
    for place in (copy, copy / "global_step40"):
        status, said, shown = generate("--prompt", "the", checkpoint=place)
        assert (status, said) == (2, "")
        assert f"{copy / 'vocab.json'} is not the tokenizer that {copy / 'global_step40'} was trained with" in shown
        assert f"its digest is {other.sha256}, the checkpoint's {own}" in shown
        assert "Put the tokenizer of the training there" in shown


def test_without_a_tokenizer_the_message_says_where_to_put_it(generate: Generate, copy: Path) -> None:
    (copy / "vocab.json").unlink()
    status, said, shown = generate("--prompt", "the", checkpoint=copy)
    assert (status, said) == (2, "")
    assert f"there is no vocab.json beside the step folders of {copy}" in shown
    assert "copy the tokenizer of the training" in shown
