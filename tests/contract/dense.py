"""The whole training run once more, plain and obvious: a row for each document, AdamW by hand, nothing of the engine.

Layouts that agree with each other may still be wrong together; here is what they have to agree with.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from scaling.core import AdamWConfig, GlobalTensor, ParallelModule, Recipe, Topology, items_of, order_of
from scaling.core.boxes import whole
from scaling.core.verify.deviation import HeldBoxes
from scaling.core.verify.session import StepNumbers
from scaling.core.verify.shared_tensors import SharedTensors
from scaling.transformer import TransformerConfig
from scaling.transformer.config.training import CrossEntropyLossConfig
from scaling.transformer.data.batch import TextSample
from tests.contract.runs import Reference, Run
from tests.reference.dense import Weights, affine, cross_entropy, layer_norm, mlp, rms_norm, rotate, swiglu


def dense_run(config: TransformerConfig, recipe: Recipe, directory: Path, *, steps: int) -> Reference:
    """Train without the engine, from its initial weights, and write down what `record` does."""
    model = DenseModel(config, initial_weights(config, recipe))
    assert recipe.evaluation is not None
    _write(directory / "initial reference", model.weights)
    numbers = []
    for step in range(1, steps + 1):
        loss, count = model.loss(samples(config, recipe, step), trained=True)
        gradients = dict(zip(model.weights, torch.autograd.grad(loss, list(model.weights.values())), strict=True))
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
        _write(directory / "reference" / f"gradients {step}", gradients)
        model.update(step, gradients, norm)
        numbers.append(StepNumbers(loss=loss.item(), gradient_norm=norm, weight=float(count), overflow=False))
    _write(directory / "reference" / f"weights {steps}", model.weights)
    evaluation, _ = model.loss([recipe.evaluation[index] for index in range(len(recipe.evaluation))], trained=False)
    held = [
        HeldBoxes(key=key, shape=tuple(weight.shape), boxes=(whole(weight.shape),), owned=True)
        for key, weight in model.weights.items()
    ]
    return Reference(recipe, directory, Run(held, numbers, evaluation.item()))


def initial_weights(config: TransformerConfig, recipe: Recipe) -> Weights:
    """Return the weights a single process begins with."""
    topology = Topology.single()
    module = ParallelModule(recipe.layers(topology), topology, config.topology, seed=recipe.seed)
    return {tensor.key: tensor.parts[0][1].clone().requires_grad_() for tensor in module.global_tensors()}


def samples(config: TransformerConfig, recipe: Recipe, step: int) -> list[TextSample]:
    """Return what the global batch of a step consists of, as the data loader's first rank alone would read it."""
    size = config.topology.global_batch_size
    order = order_of(recipe.training, key=(recipe.seed,), shuffle=True)
    return [recipe.training[item] for item in items_of(order, range((step - 1) * size, step * size))]


def documents(sample: TextSample, end_of_document: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (inputs, targets) of each document in a sequence that has a target; its last input may have none."""
    starts = {0, *np.cumsum([span.stop - span.start for span in sample.spans]).tolist()}
    starts |= {place + 1 for place, token in enumerate(sample.tokens) if token == end_of_document}
    bounds = [*sorted(start for start in starts if start < sample.length), sample.length]
    tokens = torch.from_numpy(sample.tokens)
    for start, stop in pairwise(bounds):
        if stop - start > 1:
            yield tokens[start : min(stop, len(tokens) - 1)], tokens[start + 1 : stop]


class DenseModel:
    """The language model as a function of named weights."""

    def __init__(self, config: TransformerConfig, weights: Weights) -> None:
        self.config = config
        self.architecture = config.transformer_architecture
        self.weights = weights
        loss = config.training.loss_function_config
        assert isinstance(loss, CrossEntropyLossConfig)
        self._z_loss = loss.z_loss
        self._means = {key: torch.zeros_like(weight) for key, weight in weights.items()}
        self._squares = {key: torch.zeros_like(weight) for key, weight in weights.items()}

    def loss(self, batch: list[TextSample], *, trained: bool) -> tuple[Tensor, int]:
        """Return the mean over all tokens that count, of what is trained or evaluated, and their number."""
        end = self.config.data.eod_token_id or 0
        cut = [document for sample in batch for document in documents(sample, end)]
        inputs_DS = pad_sequence([inputs for inputs, _ in cut], batch_first=True)
        logits_DSV = self.logits(inputs_DS, torch.tensor([len(inputs) for inputs, _ in cut]))
        losses = [
            cross_entropy(logits_SV[: len(targets)], targets)
            for logits_SV, (_, targets) in zip(logits_DSV, cut, strict=True)
        ]
        if trained:
            losses += [
                self._z_loss * logits_SV[: len(targets)].exp().sum(-1).log().square()
                for logits_SV, (_, targets) in zip(logits_DSV, cut, strict=True)
            ]
        count = sum(len(targets) for _, targets in cut)
        return torch.cat(losses).sum() / count, count

    def logits(self, tokens_DS: Tensor, lengths_D: Tensor) -> Tensor:
        """Return the logits [d, s, v] of documents of these lengths; what comes after a document's end is ignored."""
        last = self.architecture.num_layers
        places = torch.arange(tokens_DS.shape[1])
        seen_DQK = (places < lengths_D[:, None])[:, None, :]
        if self.architecture.causal:
            seen_DQK = seen_DQK & (places <= places[:, None])
        x = self.weights["layers.0.embedding.weight"][tokens_DS]
        for layer in range(1, last + 1):
            x = x + self._attention(layer, self._norm(f"layers.{layer}.input_layernorm", x), seen_DQK)
            inside = self._norm(f"layers.{layer}.post_attention_layernorm", x)
            x = x + (swiglu if self.architecture.mlp_type.value == "swiglu" else mlp)(
                self._within(f"layers.{layer}.mlp"), inside
            )
        x = self._norm(f"layers.{last + 1}.norm", x)
        tied = self.architecture.weight_tying
        logits = x @ self.weights["layers.0.embedding.weight" if tied else f"layers.{last + 2}.linear.weight"].T
        if self.architecture.lm_head_bias:
            logits = logits + self.weights[f"layers.{last + 2}.logit_bias.weight"]
        logits, cap = logits * self.architecture.logit_scale, self.architecture.logit_cap
        return logits if cap is None else cap * (logits / cap).tanh()

    def update(self, step: int, gradients: Weights, norm: float) -> None:
        """Clip, then take one step of AdamW (Loshchilov and Hutter, algorithm 2)."""
        optimizer = self.config.optimizer
        assert isinstance(optimizer, AdamWConfig)
        clip = min(1.0, optimizer.gradient_clipping / norm)
        for key, weight in self.weights.items():
            (group,) = (
                group
                for group in self.config.training_groups
                if (not group.parameters_include or re.search("|".join(group.parameters_include), key))
                and not (group.parameters_exclude and re.search("|".join(group.parameters_exclude), key))
            )
            schedule = group.learning_rate_scheduler
            rate = schedule.learning_rate * min(1.0, step / max(1, schedule.learning_rate_warmup_steps))
            gradient = gradients[key] * clip
            self._means[key] = optimizer.beta1 * self._means[key] + (1 - optimizer.beta1) * gradient
            self._squares[key] = optimizer.beta2 * self._squares[key] + (1 - optimizer.beta2) * gradient**2
            mean = self._means[key] / (1 - optimizer.beta1**step)
            square = self._squares[key] / (1 - optimizer.beta2**step)
            decayed = weight.detach() * (1 - rate * group.weight_decay)
            self.weights[key] = (decayed - rate * mean / (square.sqrt() + optimizer.eps)).requires_grad_()

    def _within(self, prefix: str) -> Weights:
        return {
            key.removeprefix(f"{prefix}."): weight
            for key, weight in self.weights.items()
            if key.startswith(f"{prefix}.")
        }

    def _norm(self, name: str, x: Tensor) -> Tensor:
        if self.architecture.norm_type.value == "rms":
            return rms_norm(x, self.weights[f"{name}.weight"])
        return layer_norm(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _attention(self, layer: int, x_DSE: Tensor, seen_DQK: Tensor) -> Tensor:
        shape, weights = self.architecture, self._within(f"layers.{layer}.self_attention")
        heads = shape.num_attention_heads
        kv_heads, size = shape.attention_num_kv_heads or heads, shape.hidden_size // heads
        q = affine(weights, "query", x_DSE).unflatten(-1, (heads, size))
        k, v = (affine(weights, name, x_DSE).unflatten(-1, (kv_heads, size)) for name in ("key", "value"))
        if shape.key_query_norm:
            q = self._norm(f"layers.{layer}.self_attention.norm_query", q)
            k = self._norm(f"layers.{layer}.self_attention.norm_key", k)
        positions_DS = torch.arange(x_DSE.shape[1]).expand(x_DSE.shape[:2])
        interleaved = shape.relative_position_embedding_type.value == "rotary_complex"
        rotated = int(size * shape.rotary_percentage)
        q, k = (rotate(t, positions_DS, rotated, interleaved=interleaved) for t in (q, k))
        k, v = (t.repeat_interleave(heads // kv_heads, dim=2) for t in (k, v))
        scores = torch.einsum("dqhf,dkhf->dhqk", q, k) / math.sqrt(size)
        probabilities = scores.masked_fill(~seen_DQK[:, None], -math.inf).softmax(-1)
        return affine(weights, "dense", torch.einsum("dhqk,dkhf->dqhf", probabilities, v).flatten(2))


def _write(directory: Path, tensors: Weights) -> None:
    SharedTensors(directory).write(
        GlobalTensor(key, tuple(tensor.shape), [(whole(tensor.shape), tensor)]) for key, tensor in tensors.items()
    )
