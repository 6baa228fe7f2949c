"""Import an adapter of PEFT as an adapter checkpoint on a base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scaling.core import (
    BaseReference,
    ConfigError,
    LazyTensor,
    Problem,
    StoredCheckpoint,
    new_step_folder,
    save_pieces,
    storage_errors,
    whole,
)
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.data import DataConfig
from scaling.transformer.config.methods import method_problems
from scaling.transformer.config.model_plan import base_plan_of
from scaling.transformer.config.record_checks import soft_prompt_has_its_places
from scaling.transformer.finetuning.stored import require_whole
from scaling.transformer.hf.peft.base import BaseTensors, modules_on, sections_of
from scaling.transformer.hf.peft.folder import kept_fields, read_adapter
from scaling.transformer.hf.peft.translate import from_peft
from scaling.transformer.stored_model import architecture_of

STEP: Final = 0
"""Step of the written checkpoint: nothing has been trained here yet."""
KEPT: Final = "adapter_config"
"""Entry in the checkpoint's information with fields that change nothing, for an export."""


@dataclass(frozen=True)
class ImportedAdapter:
    """The result of an import."""

    checkpoint: Path
    method: str
    base: BaseReference


def import_adapter(source: Path, target: Path, base: StoredCheckpoint) -> ImportedAdapter:
    """Write the adapter in a folder of PEFT as the checkpoint of step 0 in `target`, on the checkpoint `base`.

    Raises:
        ConfigError: The adapter is not of a kind that is built, or no family of Hugging Face can express the base.
        CheckpointError: The tensors are not those of the configuration and the base; or `target` has one.
        StorageError: Something cannot be read or written.
    """
    new_step_folder(target, STEP)
    if target.exists() and target.resolve() in (source.resolve(), base.path.parent.resolve()):
        raise ConfigError(f"{target} is the folder of the adapter or of its base; name another one to write into")
    require_whole(base, instead="name the base of that adapter")
    architecture, settings = architecture_of(base)
    with read_adapter(source) as folder, BaseTensors(lambda: base) as tensors_of_base:
        ours = from_peft(
            folder.adapter,
            modules_on(architecture, base.path.absolute().parent),
            tensors_of_base,
            config_file=str(folder.config_file),
            weights_file=str(folder.weights_file),
        )
        of_base = settings["transformer_architecture"]
        methods = _methods({**of_base, **ours.sections}, source=str(folder.config_file))
        config: dict[str, Any] = {**settings, "transformer_architecture": {**of_base, **methods}}
        reference, given = BaseReference.to(base), folder.adapter.config
        with storage_errors(f"importing {source}"):
            target.mkdir(parents=True, exist_ok=True)
            path = save_pieces(
                target,
                STEP,
                [
                    LazyTensor(key, values.shape, values.dtype, [(whole(values.shape), values.load)])
                    for key, values in ours.tensors.items()
                ],
                scalars={"config": config, "base": reference.as_dict()},
                information={"imported_from": str(source), KEPT: kept_fields(given), "ranks": 1},
            )
    return ImportedAdapter(path, given["peft_type"], reference)


def _methods(section: dict[str, Any], *, source: str) -> dict[str, Any]:
    """Return the sections of methods, with their defaults.

    Settings that our configuration would not accept, such as a prompt that leaves no room for a text, are refused.
    """
    architecture = TransformerArchitectureConfig.from_dict({**section, "vocab_file": None})
    problems = [
        Problem(f"transformer_architecture.{problem.path}", problem.message)
        for problem in method_problems(base_plan_of(architecture), architecture)
    ]
    problems += soft_prompt_has_its_places(architecture, DataConfig())
    if problems:
        raise ConfigError([Problem("", "makes a configuration that cannot work here"), *problems], source=source)
    return sections_of(architecture)
