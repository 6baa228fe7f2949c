"""What lies beside a model's weights travels with them, and only that."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scaling.core import CheckpointError
from scaling.transformer.hf import companions
from scaling.transformer.hf.companions import (
    Companions,
    Origin,
    companions_of_checkpoints,
    companions_of_model,
    companions_of_tokenizer,
    read_origin,
    require_place,
)
from tests.transformer.hf.by_hand import COMPANIONS, write_model


def test_what_is_there_is_written_elsewhere_and_what_is_there_stays(tmp_path: Path) -> None:
    found = companions_of_model(write_model(tmp_path / "m"))
    assert found.others.keys() == COMPANIONS.keys()
    target = tmp_path / "runs" / "c"
    found.write(target, tokenizer_name="vocab.json")
    assert (target / "additional_chat_templates" / "tools.jinja").exists()
    (target / "chat_template.jinja").write_text("my own")
    (target / "vocab.json").write_text("an old one")
    found.write(target, tokenizer_name="vocab.json")
    assert (target / "chat_template.jinja").read_text() == "my own"
    assert (target / "vocab.json").read_bytes() == found.tokenizer
    assert companions_of_checkpoints(target).others.keys() == COMPANIONS.keys()


def test_what_belongs_to_a_tokenizer_is_known_by_its_name(tmp_path: Path) -> None:
    """A file of another name may be anybody's; `vocab.json` of an old GPT-2 is no tokenizer by itself."""
    folder = write_model(tmp_path / "m")
    assert companions_of_tokenizer(folder / "tokenizer.json").others.keys() == COMPANIONS.keys()
    content = (folder / "tokenizer.json").read_bytes()
    for name in ("mine.json", "vocab.json"):
        (folder / name).write_bytes(content)
        assert companions_of_tokenizer(folder / name) == Companions(content)
    (folder / "huggingface.json").write_bytes(Origin("llama").encode())
    assert companions_of_tokenizer(folder / "vocab.json").others.keys() == {*COMPANIONS, "huggingface.json"}


def test_a_training_takes_no_notice_of_what_is_no_plain_file(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "chat_template.jinja").rename(tmp_path / "elsewhere.jinja")
    (folder / "chat_template.jinja").symlink_to(tmp_path / "elsewhere.jinja")
    (folder / "special_tokens_map.json").unlink()
    os.mkfifo(folder / "special_tokens_map.json")
    others = companions_of_tokenizer(folder / "tokenizer.json").others
    assert others.keys() == COMPANIONS.keys() - {"chat_template.jinja", "special_tokens_map.json"}
    with pytest.raises(CheckpointError, match=r"special_tokens_map.json is not a regular file"):
        companions_of_model(folder)


def test_an_origin_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_origin(tmp_path) is None
    origin = Origin("llama", (1, 2), {"initializer_range": 0.02, "name": "ü"})
    (tmp_path / "huggingface.json").write_bytes(origin.encode())
    assert read_origin(tmp_path) == origin
    assert origin.encode().startswith(b'{\n  "model_type": "llama",\n')  # for people, too


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "llama"}'])
def test_an_origin_that_no_import_wrote_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "huggingface.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"huggingface\.json"):
        read_origin(tmp_path)


def test_an_empty_folder_has_room_for_anything(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("another")
    require_place(Companions(b"one"), tmp_path, tmp_path)


def test_files_and_folders_that_are_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "m")
    monkeypatch.setattr(companions, "MAX_TEMPLATES", 0)
    with pytest.raises(CheckpointError, match="holds 1 templates; at most 0 are taken"):
        companions_of_model(folder)
    monkeypatch.setattr(companions, "MAX_BYTES", 10)
    with pytest.raises(CheckpointError, match=r"tokenizer.json has \d+ bytes; at most 10 are accepted"):
        companions_of_model(folder)
