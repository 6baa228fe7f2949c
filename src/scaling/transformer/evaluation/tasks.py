"""Run tasks of lm-eval with a model. The package is an extra, imported only when a task is run."""

from __future__ import annotations

import importlib
import logging
import math
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from scaling.core import ConfigError
from scaling.transformer.data.progress import ProgressCallback, silent
from scaling.transformer.evaluation.harness import HarnessAnswers
from scaling.transformer.inference.module import TransformerInferenceModule

_SEED: Final = 0
_SEED_OF_OTHERS: Final = 1234
"""The seeds of lm-eval, so that it draws the same examples."""


@dataclass(frozen=True)
class TaskScore:
    """One number of a task."""

    task: str
    metric: str
    value: float
    error: float | None
    """Standard error of the number; None where there is none."""
    filter: str
    """The filter applied to the answers before they were scored; `none` for no filter."""
    shots: int | None
    """Number of examples in front of each question."""
    samples: int | None
    higher_is_better: bool | None


def run_tasks(
    model: TransformerInferenceModule,
    tasks: Sequence[str | Path],
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    samples: bool = False,
    progress: ProgressCallback = silent,
) -> dict[str, Any]:
    """Return what `lm_eval.evaluate` returns for tasks, each a name (or pattern of names) or a YAML file.

    `include_path`: a folder of further tasks. `limit`: only the first `limit` documents of each task. `shots`:
    examples in front of each question, unless the task forbids any. `samples`: also return each document's answer.
    Collective: all ranks of the pipe and model axes, which return the same. `ConfigError` where the package is missing,
    or there is no such task.
    """
    if model.topology.rank:
        _mute()
    lm_eval, manager_class, template = _package()
    if include_path is not None and not include_path.is_dir():
        raise ConfigError(f"--include-path {include_path} is no folder; name one that holds YAML files of tasks")
    random.seed(_SEED)
    np.random.seed(_SEED_OF_OTHERS)
    torch.manual_seed(_SEED_OF_OTHERS)
    answers = type("Scaling", (HarnessAnswers, template), {})(model, progress=progress)
    loaded = _loaded(manager_class, tasks, include_path)
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (shots is not None and own != 0):
            task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=_SEED_OF_OTHERS)
    found: dict[str, Any] = lm_eval.evaluate(lm=answers, task_dict=loaded, limit=limit, log_samples=samples)
    return found


def _loaded(manager_class: Any, tasks: Sequence[str | Path], include_path: Path | None) -> Any:
    """Return tasks as lm-eval loads them. Its own tasks, whose search takes 10 seconds, are only searched if needed."""
    for with_its_own in (True,) if any("*" in str(task) for task in tasks) else (False, True):
        manager = manager_class(
            include_path=None if include_path is None else str(include_path), include_defaults=with_its_own
        )
        try:
            return manager.load([name for task in tasks for name in names_of(task, manager.all_tasks)])
        except Exception as error:  # from any library that reads files and data sets for lm-eval
            if not with_its_own:
                continue
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"{', '.join(map(str, tasks))} cannot be loaded: {type(error).__name__}: {error}; a task is a YAML "
                "file of lm-eval, whose data are files named there, or a data set of the Hugging Face Hub"
            ) from error
    raise AssertionError("one of the two returns or raises")


def names_of(task: str | Path, known: Sequence[str]) -> list[str]:
    """Return the names of a task in lm-eval: the path of a file, or the known names that match."""
    path = Path(task)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"there is no file {path}; name the YAML file of a task, or a task by its name")
        return [str(path)]
    names = [name for name in known if fnmatchcase(name, str(task))] if "*" in str(task) else [str(task)]
    if not names or names[0] not in known:
        close = get_close_matches(str(task), known, n=3)
        meant = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise ConfigError(
            f"lm-eval has no task {task}{meant}; give the name of a task, a YAML file, or --include-path with the "
            "folder of your own"
        )
    return names


def scores_of(results: Mapping[str, Any]) -> list[TaskScore]:
    """Return the numbers in the results of `run_tasks`, task by task."""
    scores: list[TaskScore] = []
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            number = results["n-samples"].get(task, {}).get("effective")
            scores.append(
                TaskScore(
                    task=task,
                    metric=metric,
                    value=float(value),
                    error=float(error) if isinstance(error, int | float) and math.isfinite(error) else None,
                    filter=kind,
                    shots=results["n-shot"].get(task),
                    samples=number,
                    higher_is_better=results["higher_is_better"].get(task, {}).get(metric),
                )
            )
    return scores


def _mute() -> None:
    """Silence lm-eval on this rank: rank 0 reports."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("lm_eval").setLevel(logging.CRITICAL)


def _package() -> tuple[Any, Any, Any]:
    """Return the package, its class of task managers, and its class of models that receive tokens."""
    try:
        lm_eval = importlib.import_module("lm_eval")
        tasks, model = importlib.import_module("lm_eval.tasks"), importlib.import_module("lm_eval.api.model")
    except ImportError as error:
        raise ConfigError(
            f'tasks are run by lm-eval, which cannot be imported ({error}); install it: pip install "scaling[eval]"'
        ) from error
    return lm_eval, tasks.TaskManager, model.TemplateLM
