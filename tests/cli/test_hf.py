"""`scaling hf`: a model of `transformers` is taken in, asked, trained, written out and loaded again: five commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scaling.cli.main import main
from tests.transformer.hf.by_hand import COMPANIONS, END, read_weights, write_model
from tests.transformer.small import run_module

Scaling = Callable[..., tuple[int, str, str]]


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Scaling:
    """Run `scaling ARGUMENTS` in this process; return status, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["scaling", *map(str, arguments)])
        capsys.readouterr()  # of what came before
        with pytest.raises(SystemExit) as leaving:
            main()
        shown = capsys.readouterr()
        return int(leaving.value.code or 0), shown.out, shown.err

    return run


def test_a_model_is_imported_asked_trained_exported_and_loaded(scaling: Scaling, tmp_path: Path) -> None:
    """The commands of docs/huggingface.md."""
    source, run, texts = tmp_path / "s", tmp_path / "c", tmp_path / "texts.jsonl"
    by_hand = write_model(tmp_path / "m")
    AutoModelForCausalLM.from_pretrained(by_hand).save_pretrained(source)
    AutoTokenizer.from_pretrained(by_hand).save_pretrained(source)
    texts.write_text(f"{json.dumps({'text': 'the cat sat on the mat, the cat sat on the mat'})}\n" * 40)
    status, said, shown = scaling("hf", "import", source, run)
    assert (status, shown) == (0, "")
    assert f"wrote {run / 'global_step0'}, a model of the family llama" in said
    assert f"scaling train {run / 'config.yml'}" in said
    assert scaling("config", "check", run / "config.yml")[0] == 0
    assert scaling("checkpoint", "verify", run)[0] == 0

    status, said, _ = scaling("generate", run, "--prompt", "the cat", "--max-tokens", 3, "--temperature", 0)
    assert status == 0
    assert said.startswith("the cat")

    tokenized = scaling(
        "data", "tokenize", texts, "--output", tmp_path / "data", "--tokenizer", run / "vocab.json", "--workers", 1
    )
    assert tokenized[0] == 0, tokenized
    ended = run_module(
        "scaling.transformer.train",
        run / "config.yml",
        f"data.data_prefixes=[{tmp_path / 'data'}]",
        "trainer.train_iterations=2",
        "topology.device=cpu",
        "learning_rate_scheduler.learning_rate=0.01",
        RANK="0",
        WORLD_SIZE="1",
        LOCAL_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",
    )
    assert ended.returncode == 0, ended.stderr

    status, said, shown = scaling("hf", "export", run / "trained", tmp_path / "e", "--max-shard-size", "20KB")
    assert status == 0
    assert f"wrote {tmp_path / 'e'}, a model of the family llama in 3 files of weights" in said
    assert "checked: logits of 32 tokens differ by " in said
    assert "running a few tokens through both" in shown

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "e")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "e")
    assert model.config.eos_token_id == END
    assert model.generation_config.temperature == 0.5
    assert tokenizer.chat_template["default"] == COMPANIONS["chat_template.jinja"]
    assert tokenizer.chat_template["tools"] == COMPANIONS["additional_chat_templates/tools.jinja"]
    assert not torch.equal(model.lm_head.weight, read_weights(source)["lm_head.weight"])


def test_a_type_is_rounded_to_and_a_check_left_out(scaling: Scaling, tmp_path: Path) -> None:
    scaling("hf", "import", write_model(tmp_path / "m"), tmp_path / "c")
    status, said, shown = scaling("hf", "export", tmp_path / "c", tmp_path / "e", "--dtype", "float16", "--no-check")
    assert (status, shown) == (0, "")
    assert said == f"wrote {tmp_path / 'e'}, a model of the family llama in 1 file of weights\n"
    assert {tensor.dtype for tensor in read_weights(tmp_path / "e").values()} == {torch.float16}
    assert scaling("checkpoint", "cast", tmp_path / "c", tmp_path / "d", "--dtype", "bfloat16")[0] == 0
    assert {"chat_template.jinja", "huggingface.json", "vocab.json"} <= {
        path.name for path in (tmp_path / "d").iterdir()
    }


def test_mistakes_get_a_message(scaling: Scaling, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", tokenizer=False)
    status, _, shown = scaling("hf", "import", tmp_path / "nothing", tmp_path / "c")
    assert status == 2
    assert shown.startswith(f"error: {tmp_path / 'nothing'} is not there; name the folder of a downloaded model")
    assert "note: there is no tokenizer.json" in scaling("hf", "import", source, tmp_path / "c")[2]
    (tmp_path / "e").touch()
    for arguments, message in (
        ((tmp_path / "c", tmp_path / "e"), "is there already and not an empty folder"),
        ((tmp_path / "c", tmp_path / "f", "--max-shard-size", "big"), "--max-shard-size (big) is no number of bytes"),
        ((source, tmp_path / "f"), "there is no checkpoint in"),
    ):
        status, _, shown = scaling("hf", "export", *arguments)
        assert status == 2
        assert message in " ".join(shown.replace("│", " ").split())
    assert not (tmp_path / "f").exists()
