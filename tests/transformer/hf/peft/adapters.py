"""Adapters made by peft on tiny models, with random values, and the same models of ours with and without them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import peft
import torch
from torch import Tensor

from scaling.core import MicroBatch
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.hf.choose import family_of
from scaling.transformer.hf.peft.base import sections_of
from scaling.transformer.hf.peft.base_tensors import Base
from scaling.transformer.hf.peft.folder import read_adapter, write_adapter
from scaling.transformer.hf.peft.modules import Modules, modules_of
from scaling.transformer.hf.peft.translate import Ours, Theirs, from_peft, to_peft
from scaling.transformer.hf.peft.values import Values
from scaling.transformer.inference.module import TransformerInferenceModule
from scaling.transformer.io import TextInputs
from tests.transformer.hf.in_memory import architecture_of, config_json, filled, our_tensors, their_tensors
from tests.transformer.hf.tiny_models import tiny_model, tokens

LENGTH: Final = 33


def base_of(name: str) -> dict[str, Tensor]:
    """Return the tensors of a tiny model of ours."""
    family = family_of(config_json(name))
    return our_tensors(their_tensors(name, family), family.tensors(plan_of(architecture_of(config_json(name)))))


def modules_in(name: str) -> Modules:
    """Return the modules of a tiny model."""
    return modules_of(family_of(config_json(name)), architecture_of(config_json(name)))


def base_values(name: str) -> Base:
    """Return the tensors of a tiny model as an import reads them."""
    tensors = base_of(name)
    return lambda key: Values.of(tensors[key])


def adapted(name: str, config: peft.PeftConfig) -> Any:
    """Return a tiny model with an adapter of random values."""
    generator = torch.Generator().manual_seed(1)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)  # what peft starts from
        model = peft.get_peft_model(copy.deepcopy(tiny_model(name)), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
                parameter.requires_grad_(False)
    return model


def saved(name: str, config: peft.PeftConfig, folder: Path) -> Any:
    """Save such an adapter; return the model."""
    model = adapted(name, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(folder))
    return model


def loaded(name: str, folder: Path) -> Any:
    """Return a tiny model with the adapter in a folder, as peft reads it: with no doubt about any tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*missing adapter keys")
        return peft.PeftModel.from_pretrained(copy.deepcopy(tiny_model(name)), str(folder)).eval()


def state(model: Any) -> dict[str, Tensor]:
    """Return the tensors that peft would save of an adapter, without copies of what is the base's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: dict[str, Tensor] = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    return found


def forms(model: Any) -> dict[str, tuple[object, ...]]:
    """Return what peft makes of a configuration, module by module."""
    return {
        name: tuple(str(getattr(module, of, None)) for of in ("r", "scaling", "lora_dropout", "is_feedforward"))
        for name, module in model.named_modules()
        if hasattr(module, "base_layer")
    }


@torch.no_grad()
def their_logits(model: Any) -> Tensor:
    """Return logits of the usual tokens; those of a prompt's places are left out."""
    logits: Tensor = model(tokens(LENGTH)).logits
    return logits[:, -LENGTH:]


def read(name: str, folder: Path) -> Ours:
    """Translate the adapter in a folder."""
    with read_adapter(folder) as found:
        config_file, weights_file = str(found.config_file), str(found.weights_file)
        ours = from_peft(
            found.adapter, modules_in(name), base_values(name), config_file=config_file, weights_file=weights_file
        )
        return Ours(ours.sections, {key: Values.of(tensor) for key, tensor in loads(ours.tensors).items()})


def written(name: str, ours: Ours, folder: Path) -> Theirs:
    """Translate an adapter of ours, and write it."""
    theirs = to_peft(
        Ours(sections_of(architecture_with(name, ours)), ours.tensors), modules_in(name), base_values(name)
    )
    write_adapter(folder, theirs)
    return theirs


def architecture_with(name: str, ours: Ours) -> TransformerArchitectureConfig:
    """Return the architecture of a tiny model with methods."""
    return architecture_of(config_json(name), **ours.sections)


def loads(tensors: Mapping[str, Values]) -> dict[str, Tensor]:
    """Return the tensors of an adapter."""
    return {key: values.load() for key, values in tensors.items()}


def our_logits(name: str, ours: Ours) -> Tensor:
    """Return logits of our model with an adapter."""
    architecture = architecture_with(name, ours)
    model = filled(architecture, {**base_of(name), **loads(ours.tensors)})
    prompt = architecture.softprompt_config
    return logits_behind(model, 0 if prompt is None else prompt.n_tokens)


@torch.no_grad()
def logits_behind(model: TransformerInferenceModule, prompt: int) -> Tensor:
    """Return the logits of the usual tokens behind so many placeholders."""
    ids = torch.cat([torch.zeros(1, prompt, dtype=torch.int64), tokens(LENGTH)], dim=1)
    inputs = TextInputs(ids, torch.arange(ids.shape[1])[None], None, torch.tensor([0]))
    [output] = model.module.forward_step(iter([MicroBatch(inputs, None)]))
    logits: Tensor = output.logits()
    return logits[:, prompt:]
