"""`scaling generate` continues a text with what a training has left behind, its tokenizer included."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling.cli.main import main
from scaling.transformer.data.end_token import END_OF_TEXT
from scaling.transformer.data.shards import TokenizeOptions
from scaling.transformer.data.tokenize import tokenize_files
from scaling.transformer.data.tokenizer import Tokenizer, tokenizer_digest, train_tokenizer
from scaling.transformer.inference.module import TransformerInferenceModule
from tests.transformer.finetuned import found, write_adapter
from tests.transformer.small import train_small

SENTENCE = "the cät 🙂 sat on the mat."

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "a", "--top-p", "2"], "top_p (2.0) must be above 0"),
        (["--prompt", "a", "--device", "nothing"], "device (nothing) cannot be used: there is none of this name"),
        (["--prompt", "a", "--device", "gpu"], "a GPU is called cuda; choose cpu, or where"),
        (["--prompt", "a", "--stop", ""], "a stop text is empty"),
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
