"""The head and its loss: what is trained, what is evaluated, and how much of the logits exists for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scaling.core import LogitTerm, MicroBatch, ParallelModule, Topology
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.batch import TextCollator
from scaling.transformer.inference.module import TransformerInferenceModule
from scaling.transformer.io import TextTargets
from scaling.transformer.layers.head import HeadOutput
from scaling.transformer.losses import CrossEntropyLoss
from scaling.transformer.recipe import recipe_of
from scaling.transformer.verify.synthetic import SyntheticText

VOCABULARY, HIDDEN, SEQUENCE, ROWS = 4001, 8, 16, 4
CHUNK = 5


class Largest(TorchDispatchMode):
    """Remembers the most elements of any tensor that is made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [
            tensor.numel() for tensor in (made if isinstance(made, tuple) else (made,)) if isinstance(tensor, Tensor)
        ]
        self.elements = max(self.elements, *sizes, 0)
        return made


def config(loss: dict[str, Any] | None = None, **architecture: Any) -> TransformerConfig:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_layers": 1, "num_attention_heads": 2}
    return TransformerConfig.from_dict(
        {
            "topology": {"device": "cpu", "global_batch_size": ROWS, "micro_batch_size": ROWS},
            "transformer_architecture": {
                **sizes,
                "sequence_length": SEQUENCE,
                "precision": "float64",
                **architecture,
            },
            "training": {"loss_function_config": loss or {}},
        },
        quiet=True,
    )


class Built:
    """A model, its loss and a micro-batch."""

    def __init__(self, loss: dict[str, Any] | None = None, **architecture: Any) -> None:
        self.config, topology = config(loss, **architecture), Topology.single()
        data = SyntheticText(ROWS, SEQUENCE, TextCollator(VOCABULARY))
        recipe = recipe_of(self.config, data)
        self.module = ParallelModule(recipe.layers(topology), topology, self.config.topology, seed=recipe.seed)
        self.loss = recipe.loss(topology)
        self._batch = data.collate([data[index] for index in range(ROWS)], range(ROWS), [True] * ROWS)

    def batches(self) -> Iterator[MicroBatch]:
        yield self._batch

    def train(self) -> dict[str, float]:
        """Return loss and metrics of a step, reported as training reports them."""
        step = self.module.train_step(self.batches(), self.loss)
        return {"loss": float(step.loss)} | {name: float(value) for name, value in step.metrics().items()}


def test_z_loss_is_trained_and_reported_and_no_part_of_an_evaluation() -> None:
    plain, penalised = Built(), Built({"z_loss": 0.5})
    alone, both = plain.train(), penalised.train()
    assert set(alone) == {"loss"}
    assert set(both) == {"loss", "z_loss"}
    assert both["z_loss"] == pytest.approx(0.5 * 8.3**2, rel=0.1)  # log 4001 = 8.3
    assert both["loss"] == pytest.approx(alone["loss"] + both["z_loss"], rel=1e-12)
    gradients = [list(built.module.parameters())[-1].grad for built in (plain, penalised)]
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert not torch.allclose(gradients[0], gradients[1])
    evaluated = penalised.module.eval_step(penalised.batches(), penalised.loss)
    assert float(evaluated.loss) == pytest.approx(alone["loss"], rel=1e-12)
    assert not evaluated.metrics()


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_what_does_not_count_adds_to_neither(chunk_size: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in ((1, 5, 4), (7, 4))
    )
    ids, weights = torch.tensor([[1, -100, 3, 4, 6]]), torch.tensor([[1.0, 1.0, 0.0, 0.5, 1.0]])
    loss = CrossEntropyLoss(z_loss=0.1, chunk_size=chunk_size)
    found = loss(HeadOutput(hidden, weight, scale=0.5), TextTargets(ids, weights))
    log_p = (0.5 * hidden @ weight.T)[0].log_softmax(-1)
    log_z = (0.5 * hidden @ weight.T)[0].logsumexp(-1)
    expected = sum(
        w * (0.1 * log_z[at] ** 2 - log_p[at, token]) for at, token, w in ((0, 1, 1.0), (3, 4, 0.5), (4, 6, 1.0))
    )
    torch.testing.assert_close(found.loss_sum, expected)
    found.loss_sum.backward()
    assert hidden.grad is not None
    assert hidden.grad[0].any(dim=-1).tolist() == [True, False, False, True, True]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("changes", [{}, {"logit_scale": 3.0}, {"logit_cap": 0.5}, {"lm_head_bias": True}], ids=str)
def test_logits_are_scaled_capped_and_biased_as_the_architecture_says(changes: dict[str, Any], tied: bool) -> None:
    built = Built(weight_tying=tied, **changes)
    tensors = {tensor.key: tensor.parts[0][1] for tensor in built.module.global_tensors()}
    bias: Tensor | float = 0.0
    if "lm_head_bias" in changes:
        bias = tensors["layers.3.logit_bias.weight"].normal_()
    (output,) = built.module.forward_step(built.batches())
    assert any(output.weight is parameter for parameter in built.module.parameters())  # a slice has a gradient more
    expected = output.hidden @ tensors["layers.0.embedding.weight" if tied else "layers.3.linear.weight"].T + bias
    expected = expected * changes.get("logit_scale", 1.0)
    if (cap := changes.get("logit_cap")) is not None:
        expected = (expected / cap).tanh() * cap
        assert output.logits().abs().max() < cap
    torch.testing.assert_close(output.logits(), expected, rtol=1e-12, atol=1e-12)


def test_scale_and_cap_act_in_float32_and_are_rounded_once() -> None:
    hidden, weight = torch.ones(1, 1, 1, dtype=torch.bfloat16), torch.tensor([[3.0], [5.03125]], dtype=torch.bfloat16)
    logits = HeadOutput(hidden, weight, scale=1.3, cap=6.0).logits()
    assert logits.dtype == torch.bfloat16
    expected = 6 * (1.3 * weight.flatten().double() / 6).tanh()
    assert torch.equal(logits.flatten(), expected.to(torch.bfloat16))


def test_terms_beside_the_matrix_belong_to_the_output_of_some_tokens_too() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 4), (7, 4), (2, 5, 3), (7, 3))
    hidden, weight, term, rows = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    output = HeadOutput(hidden, weight, terms=(LogitTerm(term, rows),), scale=0.5)
    expected = (hidden @ weight.T + term @ rows.T) * 0.5
    torch.testing.assert_close(output.logits(), expected, rtol=1e-12, atol=1e-12)
    some = output.at(torch.tensor([9, 2])).logits()
    torch.testing.assert_close(some, expected.flatten(0, 1)[[9, 2]][None], rtol=1e-12, atol=1e-12)
    targets = torch.arange(10).view(2, 5) % 7
    losses = torch.nn.functional.cross_entropy(expected.flatten(0, 1), targets.flatten(), reduction="none")
    for chunk_size in (None, 4):
        found = output.token_losses(targets, chunk_size=chunk_size).losses
        torch.testing.assert_close(found.flatten(), losses, rtol=1e-12, atol=1e-12)


def test_no_more_logits_exist_than_the_configuration_says() -> None:
    whole, chunked = Built(), Built({"chunk_size": CHUNK, "z_loss": 0.1})
    with Largest() as of_whole:
        whole.train()
    with Largest() as of_chunks:
        chunked.train()
    assert of_whole.elements == VOCABULARY * ROWS * SEQUENCE
    assert of_chunks.elements == VOCABULARY * HIDDEN  # the gradient of the weight; chunks are smaller


def test_a_prompt_makes_the_logits_of_its_last_token_only() -> None:
    model = TransformerInferenceModule(Built().config.transformer_architecture)
    with Largest() as largest:
        next(model.stream([3] * SEQUENCE))
    assert largest.elements == VOCABULARY * HIDDEN  # the weight itself
