"""What methods of fine-tuning name is checked against the model, its vocabulary, the groups and the files there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaling.core.errors import ConfigError
from scaling.transformer.config import TransformerConfig
from scaling.transformer.config.environment import environment_problems
from scaling.transformer.data.tokenizer import train_tokenizer


@pytest.fixture(autouse=True)
def in_a_folder_with_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train_tokenizer([], 257).save(Path("v.json"))
    Path("base").mkdir()


def problems_of(architecture: dict[str, Any], **sections: Any) -> list[str]:
    values = {"trainer": {"load_dir": "base"}, "transformer_architecture": architecture, **sections}
    try:
        return [str(problem) for problem in environment_problems(TransformerConfig.from_dict(values))]
    except ConfigError as error:
        return [str(problem) for problem in error.problems]


def test_tables_take_updates_where_only_the_tokenizer_tells_the_vocabulary() -> None:
    lora = {"lora_config": {"rank": 8, "parallel_modules": ["embedding", "head"]}}
    assert problems_of({"vocab_file": "v.json", **lora}) == []
    (problem,) = problems_of(
        {"vocab_file": "v.json", **lora, "lora_config": {"rank": 300, **{"parallel_modules": ["head"]}}}
    )
    assert "transformer_architecture.lora_config.rank: is 300" in problem


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([3, 256], None),
        ([257], "has 257, outside the vocabulary (vocab_size 257); use 0 to 256, or raise vocab_size"),
        ([-1], "has -1; tokens are numbered from 0"),
        ([5, 5], "has 5 more than once"),
    ],
)
def test_token_rows_are_held_to_the_vocabulary_that_the_tokenizer_tells(tokens: list[int], said: str | None) -> None:
    found = problems_of({"vocab_file": "v.json", "finetunable_token_ids": tokens})
    assert len(found) == (said is not None)
    assert said is None or found[0].startswith(f"transformer_architecture.finetunable_token_ids: {said}")


@pytest.mark.parametrize("group", [{"parameters_include": [r"lora_lora\.b"]}, {"parameters_exclude": [r"\.key\."]}])
def test_what_a_method_adds_is_trained_as_a_whole(group: dict[str, Any]) -> None:
    architecture = {"lora_config": {"rank": 8}, "vocab_size": 300}
    groups = [{"group_name": "g", "parameters_include": ["lora_"]}]
    assert problems_of(architecture, training_groups=groups) == []
    (problem,) = problems_of(architecture, training_groups=[{"group_name": "g", **group}])
    assert problem.startswith(
        "training_groups: leave out part of what the methods of fine-tuning add, such as layers.1."
    )


def test_names_say_of_what_they_may_be_made() -> None:
    (name,) = problems_of({"softprompt_config": {"name": "a.b", "n_tokens": 3}})
    assert name.endswith("softprompt_config.name: must be text of letters, digits, _ and -, not 'a.b'")
    (modules,) = problems_of({"lora_config": {"parallel_modules": []}})
    assert modules.endswith("lora_config.parallel_modules: must be a list that is not empty, each item text, not []")


@pytest.mark.parametrize("name", ["x.jsonl", "x.json.gz"])
def test_a_file_of_records_that_is_not_there_is_named_as_such(name: str) -> None:
    data = {"data_prefixes": [name], "record_format": "auto"}
    (problem,) = problems_of({"vocab_file": "v.json", "lora_config": {"rank": 8}}, data=data)
    assert problem == f"data.data_prefixes.0: is {name!r}, but there is no such file; correct it"
    Path(name).mkdir()
    (problem,) = problems_of({"vocab_file": "v.json", "lora_config": {"rank": 8}}, data=data)
    assert problem == f"data.data_prefixes.0: is {name!r}, which is a folder; name the files of records in it"
