"""Tasks of lm-eval give the numbers that its own model class gives for the exported model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from scaling.core import ConfigError, Topology
from scaling.core.checkpoint.search import find_newest
from scaling.transformer import TransformerInferenceModule
from scaling.transformer.evaluation.tasks import TaskScore, names_of, run_tasks, scores_of
from scaling.transformer.hf.exporter import export_model
from scaling.transformer.hf.importer import import_model
from tests.transformer.hf.by_hand import write_model

QUESTIONS = (
    {"question": "the cat sat on", "choices": [" the mat", " the cat", " it"], "label": 0},
    {"question": "the mat sat on ", "choices": ["the", "a cat", "that"], "label": 2},
    {"question": "on the", "choices": [" cat", " mat"], "label": 1},
)
TEXTS = ({"text": "the cat sat on the mat. " * 6}, {"text": "a hat"})
TASKS: Mapping[str, Mapping[str, Any]] = {
    "choosing": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "reading": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def write_tasks(folder: Path) -> Path:
    """Write the tasks and their data."""
    for name, task in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in (TEXTS if name == "reading" else QUESTIONS)))
        described = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **described, **task}))
    return folder


def answers(results: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the answers to all requests, task by task."""
    return {name: [sample["resps"] for sample in results["samples"][name]] for name in sorted(TASKS)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(find_spec("lm_eval") is None, reason='lm-eval is not installed; pip install "scaling[eval]"')
def test_tasks_give_the_numbers_of_the_exported_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import lm_eval  # brings 640 MB, and takes seconds
    from lm_eval.models.huggingface import HFLM

    folder = write_model(tmp_path / "hf", config={"max_position_embeddings": 48})
    for name in ("tokenizer_config.json", "special_tokens_map.json"):  # the end of a text as config.json has it
        (folder / name).write_text((folder / name).read_text().replace("<|endoftext|>", "<|im_end|>"))
    import_model(folder, tmp_path / "checkpoint")
    export_model(find_newest(tmp_path / "checkpoint").require(), tmp_path / "exported")
    included = write_tasks(tmp_path)
    names = ["choosing", str(included / "writing.yaml"), "reading"]
    model = TransformerInferenceModule.from_checkpoint(tmp_path / "checkpoint")
    found = run_tasks(model, names, include_path=included, samples=True)
    expected = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(tmp_path / "exported"), device="cpu", dtype="float32", batch_size=1),
        tasks=sorted(TASKS),
        task_manager=lm_eval.tasks.TaskManager(include_path=str(included)),
    )
    ours, theirs = answers(found), answers(expected)
    assert ours["writing"] == theirs["writing"]
    assert any(text for ((text,),) in ours["writing"])
    for mine, other in zip(ours["choosing"], theirs["choosing"], strict=True):
        for ((total, greedy),), ((other_total, other_greedy),) in zip(mine, other, strict=True):
            assert (total, greedy) == (pytest.approx(other_total, rel=1e-5), other_greedy)
    for ((total,),), ((other_total,),) in zip(ours["reading"], theirs["reading"], strict=True):
        assert total == pytest.approx(other_total, rel=1e-5)
    scores = {(score.task, score.metric): score.value for score in scores_of(found)}
    assert scores == {(score.task, score.metric): pytest.approx(score.value, rel=1e-5) for score in scores_of(expected)}
    assert {("choosing", "acc"), ("choosing", "acc_norm"), ("reading", "bits_per_byte")} <= scores.keys()
    (included / "choosing.jsonl").unlink()
    with pytest.raises(ConfigError, match="choosing cannot be loaded"):
        run_tasks(model, ["choosing"], include_path=included)


def test_tasks_are_named_by_files_names_or_patterns(tmp_path: Path) -> None:
    known = ["arc_easy", "mmlu_law", "mmlu_art", "arc_hard"]
    assert names_of("arc_easy", known) == ["arc_easy"]
    assert names_of("mmlu_*", known) == ["mmlu_law", "mmlu_art"]
    (tmp_path / "own.yaml").touch()
    assert names_of(tmp_path / "own.yaml", known) == [str(tmp_path / "own.yaml")]
    with pytest.raises(ConfigError, match=r"no task arc_eas \(did you mean arc_easy"):
        names_of("arc_eas", known)
    with pytest.raises(ConfigError, match="no task zzz_\\*; give the name of a task, a YAML file"):
        names_of("zzz_*", known)
    with pytest.raises(ConfigError, match=r"there is no file .*other.yaml"):
        names_of(tmp_path / "other.yaml", known)


def test_numbers_of_tasks_are_listed_one_by_one() -> None:
    results = {
        "results": {
            "law": {
                "alias": " - law",
                "acc,none": 0.5,
                "acc_stderr,none": 0.1,
                "f1,strict": 1,
                "f1_stderr,strict": "N/A",
            },
            "all": {"alias": "all", "acc,none": 0.25, "acc_stderr,none": float("nan")},
        },
        "n-samples": {"law": {"original": 9, "effective": 4}},
        "n-shot": {"law": 5},
        "higher_is_better": {"law": {"acc": True}},
    }
    assert scores_of(results) == [
        TaskScore("law", "acc", 0.5, 0.1, "none", 5, 4, True),
        TaskScore("law", "f1", 1.0, None, "strict", 5, 4, None),
        TaskScore("all", "acc", 0.25, None, "none", None, None, None),
    ]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr("importlib.import_module", import_module)
    with pytest.raises(ConfigError, match=r'pip install "scaling\[eval\]"'):
        run_tasks(SimpleNamespace(topology=Topology.single()), ["any"])  # type: ignore[arg-type]
