"""Adapters of `peft` on tiny models of transformers, their tensors by our names, and steps of training of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import peft
import torch
from torch import Tensor

from scaling.core import AdamWConfig, AttentionKernel, Topology
from scaling.core.boxes import GlobalTensor
from scaling.core.optimizer.groups import GroupPattern
from scaling.transformer.config.groups import group_patterns
from scaling.transformer.config.model_plan import base_plan_of
from scaling.transformer.config.training import TrainingGroupConfig
from scaling.transformer.hf.choose import NOT_THE_MODEL, family_of
from scaling.transformer.hf.tensors import TensorMap
from scaling.transformer.layers import kernels
from scaling.transformer.losses import CrossEntropyLoss
from scaling.transformer.model import layer_specs
from tests.reference.assembly import module_and_optimizer
from tests.reference.worlds import topology_config
from tests.transformer.hf.in_memory import architecture_of, config_json, fill, our_tensors, rows_of, their_tensors
from tests.transformer.hf.tiny_models import tiny_model
from tests.transformer.hf.training import (
    Documents,
    labels_of,
    micro_batch,
    positions_of,
    rows_of_tokens,
)

RATE, EPSILON, STEPS = 3e-3, 3e-2, 3

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Steps:
    """What a training did, by our names."""

    losses: list[float]
    gradients: list[Tensors]
    weights: Tensors


@dataclass(frozen=True)
class Source:
    """Where a tensor of ours is within one of theirs."""

    name: str
    read: Callable[[Tensor], Tensor]


def their_adapter(name: str, config: Any) -> Any:
    """Return a tiny model with an adapter, none of whose values is neutral."""
    model = peft.get_peft_model(deepcopy(tiny_model(name)), config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                if "magnitude" in key or "ia3" in key:
                    parameter.mul_(1 + 0.2 * noise)
                else:
                    parameter.copy_(0.05 * noise)
    return model


def sources(model: Any, maps: Iterable[TensorMap]) -> dict[str, Source]:
    """Return where each tensor of ours is, by the tables of the family: rows of B as those of the matrix."""
    theirs = {key.removeprefix("base_model.model."): key for key, p in model.named_parameters() if p.requires_grad}
    found: dict[str, Source] = {}
    for one in maps:
        module = one.name.removesuffix(".weight")
        for number, source in enumerate(one.sources):
            ours, rows = source.key.removesuffix(".weight"), torch.tensor(rows_of(source.shape[0], source.rows))
            share = slice(None)
            if (a := theirs.get(f"{module}.lora_A.default.weight")) is not None:
                rank = model.get_parameter(a).shape[0] // len(one.sources)
                share = slice(number * rank, (number + 1) * rank)
                found[f"{ours}.lora_lora.a"] = Source(a, lambda t, share=share: t[share])  # type: ignore[misc]  # a default
            for suffix, own, read in (
                ("lora_B.default.weight", "lora_lora.b", lambda t, rows=rows, share=share: t[rows][:, share]),
                ("lora_magnitude_vector.default.weight", "lora_lora.magnitude", lambda t, rows=rows: t[rows]),
                ("lora_embedding_A.default", "lora_lora.a", lambda t: t),
                ("lora_embedding_B.default", "lora_lora.b", lambda t: t),
                ("ia3_l.default", "ia3_ia3.scale", lambda t, rows=rows: t[0] if t.shape[0] == 1 else t[rows, 0]),
            ):
                if (key := theirs.get(f"{module}.{suffix}")) is not None:
                    found[f"{ours}.{own}"] = Source(key, read)
    if (key := theirs.get("prompt_encoder.default.embedding.weight")) is not None:
        found["layers.0.softprompt_prompt.weight"] = Source(key, lambda t: t)
    assert {source.name for source in found.values()} == set(theirs.values())
    return found


def read(found: Mapping[str, Source], tensors: Mapping[str, Tensor]) -> Tensors:
    """Return tensors of ours, taken out of theirs."""
    return {ours: source.read(tensors[source.name].detach()).clone() for ours, source in found.items()}


def keep_blocks(model: Any, maps: Iterable[TensorMap]) -> None:
    """Let an adapter of a fused matrix be one of each part: B is zero, and stays so, where it joins two of them."""
    for one in maps:
        key = f"base_model.model.{one.name.removesuffix('.weight')}.lora_B.default.weight"
        if len(one.sources) > 1 and key in dict(model.named_parameters()):
            parameter = model.get_parameter(key)
            mask, rank = torch.zeros_like(parameter), parameter.shape[1] // len(one.sources)
            for number, source in enumerate(one.sources):
                rows = torch.tensor(rows_of(source.shape[0], source.rows))
                mask[rows, number * rank : (number + 1) * rank] = 1
            with torch.no_grad():
                parameter.mul_(mask)
            parameter.register_hook(lambda gradient, mask=mask: gradient * mask)


def their_steps(model: Any, found: Mapping[str, Source], rows: Sequence[Documents], *, prompt: int = 0) -> Steps:
    """Train an adapter of theirs."""
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, eps=EPSILON, betas=(0.9, 0.95), weight_decay=0.0)
    token_ids, steps = rows_of_tokens(rows), Steps([], [], {})
    inputs: dict[str, Any] = {"position_ids": positions_of(rows), "labels": labels_of(token_ids, rows)}
    if prompt:  # whose last vector predicts the first token
        inputs = {"labels": token_ids}
    for _ in range(STEPS):
        loss = model(input_ids=token_ids, use_cache=False, **inputs).loss
        optimizer.zero_grad()
        loss.backward()
        steps.losses.append(loss.item())
        gradients = {key: parameter.grad for key, parameter in trained.items()}
        steps.gradients.append(read(found, gradients))
        optimizer.step()
    steps.weights.update(read(found, trained))
    return steps


def our_steps(
    name: str, adapter: Mapping[str, Tensor], rows: Sequence[Documents], *, prompt: int = 0, **methods: Any
) -> Steps:
    """Train the same adapter of ours on the same model."""
    config = config_json(name)
    architecture = architecture_of(config, **{**NOT_THE_MODEL, "precision": "float64"}, **methods)
    stored = our_tensors(their_tensors(name, family_of(config)), family_of(config).tensors(base_plan_of(architecture)))
    base = {key: tensor.double() for key, tensor in stored.items()}
    batch = micro_batch(*with_placeholders(rows, prompt))
    if prompt:
        weights = batch.targets.loss_weights.clone()
        weights[:, : prompt - 1] = 0
        batch = replace(batch, targets=replace(batch.targets, loss_weights=weights))
    topology = Topology.single()
    groups: Sequence[GroupPattern] = group_patterns([group()], architecture)
    with mock.patch.object(kernels, "choose_kernel", return_value=AttentionKernel.SPELLED_OUT):
        module, optimizer = module_and_optimizer(
            layer_specs(architecture, topology, seed=0),
            topology,
            topology_config(),
            AdamWConfig(eps=EPSILON, beta1=0.9, beta2=0.95, gradient_clipping=0.0),
            groups=groups,
            allow_missing=True,
            usual_weight=float(batch.targets.loss_weights.sum()),
        )
        fill(module, {**base, **adapter})
        steps = Steps([], [], {})

        def keep(gradients: Iterable[GlobalTensor], factor: Tensor) -> None:
            steps.gradients.append({one.key: one.parts[0][1].clone() * factor for one in gradients})

        optimizer.observer = keep
        for step in range(1, STEPS + 1):
            loss = module.train_step(iter([batch]), CrossEntropyLoss(), gradient_scale=optimizer.gradient_scale)
            optimizer.step(step, weight=loss.weight)
            steps.losses.append(float(loss.loss))
    for tensor in module.global_tensors():
        if tensor.key in adapter:
            steps.weights[tensor.key] = tensor.parts[0][1].detach().clone()
        else:
            assert torch.equal(tensor.parts[0][1], base[tensor.key]), f"{tensor.key} has moved"
    return steps


def group() -> TrainingGroupConfig:
    return TrainingGroupConfig.from_dict(
        {"group_name": "all", "weight_decay": 0.0, "learning_rate_scheduler": {"learning_rate": RATE}}
    )


def with_placeholders(rows: Sequence[Documents], prompt: int) -> tuple[Tensor, Sequence[Documents]]:
    """Return the tokens and documents with so many placeholders in front of each row, which is one document."""
    token_ids = rows_of_tokens(rows)
    if not prompt:
        return token_ids, rows
    front = torch.full((len(rows), prompt), 5)
    return torch.cat([front, token_ids], dim=1), [(prompt + sum(documents),) for documents in rows]
