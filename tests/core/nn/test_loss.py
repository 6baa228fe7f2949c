"""Cross entropy over a cut vocabulary against cross entropy over whole logits."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from scaling.core.nn.embedding import VocabParallelEmbedding
from scaling.core.nn.init import Constant
from scaling.core.nn.linear import linear
from scaling.core.nn.loss import (
    LogitTerm,
    ProductGradients,
    linear_cross_entropy,
    linear_logits,
    vocab_parallel_cross_entropy,
)
from scaling.core.nn.parameter import new_parameter
from scaling.core.nn.place import Place, enter_model_parallel
from scaling.core.nn.shard import padded_shard
from tests.distributed import run_distributed
from tests.reference import dense
from tests.reference.compare import backward, close, gradient_of
from tests.reference.sharding import GATHER, SCATTER, SUM, compare_layer
from tests.reference.worlds import connected, model_group, random

SHAPES = ((6,), (2, 3), (2, 3, 2))


def compare_losses(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        for vocabulary in (1, 2, 5, 8, 101):
            shard = padded_shard(vocabulary, world_size, rank, dim=0)
            for shape in SHAPES:
                # Far from zero, so that a maximum taken of the wrong ranks overflows or vanishes.
                logits = (random(*shape, vocabulary, seed=3) * 50 + 1000).requires_grad_()
                targets = torch.arange(logits[..., 0].numel()).view(shape) * 7 % vocabulary
                expected = dense.cross_entropy(logits, targets)
                weights = random(*shape, seed=4)
                backward(expected, weights)

                local = logits.detach().narrow(-1, shard.offset, shard.length).clone().requires_grad_()
                losses = vocab_parallel_cross_entropy(local, targets, group=model_group(topology), offset=shard.offset)
                what = f"vocabulary {vocabulary}, shape {shape}:"
                close(losses, expected, f"{what} loss")
                backward(losses, weights)
                close(
                    gradient_of(local), gradient_of(logits).narrow(-1, shard.offset, shard.length), f"{what} gradient"
                )


@pytest.mark.parametrize("world_size", [2, 4])
def test_loss_and_gradient_are_those_of_whole_logits(world_size: int) -> None:
    run_distributed(compare_losses, world_size)


def test_one_rank_alone_computes_cross_entropy() -> None:
    logits, targets = random(2, 3, 11, seed=1), torch.tensor([[0, 10, 5], [3, 3, 1]])
    close(vocab_parallel_cross_entropy(logits, targets), dense.cross_entropy(logits, targets))


def lose_in_half_precision(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        logits = random(64, 96, seed=1, dtype=torch.bfloat16)
        targets = torch.arange(64)
        own = logits.chunk(world_size, dim=-1)[rank].clone().requires_grad_()
        losses = vocab_parallel_cross_entropy(own, targets, group=model_group(topology), offset=rank * 96 // world_size)
        assert losses.dtype == torch.float32
        close(losses, F.cross_entropy(logits.double(), targets, reduction="none"), tolerance=1e-5)
        backward(losses, torch.ones(64))
        assert gradient_of(own).dtype == torch.bfloat16


def test_half_precision_logits_are_summed_in_float32() -> None:
    run_distributed(lose_in_half_precision, 2)
    whole = random(64, 96, seed=1, dtype=torch.float16)
    losses = vocab_parallel_cross_entropy(whole, torch.arange(64))
    assert losses.dtype == torch.float32
    close(losses, F.cross_entropy(whole.double(), torch.arange(64), reduction="none"), tolerance=1e-5)


def lose_with_an_impossible_token(rank: int, world_size: int) -> list[float]:
    with connected(model=world_size) as topology:
        logits = torch.tensor([[0.0, -torch.inf, 1.0, 2.0]]).expand(2, 4)[:, 2 * rank : 2 * rank + 2]
        losses = vocab_parallel_cross_entropy(
            logits, torch.tensor([0, 1]), group=model_group(topology), offset=2 * rank
        )
        found: list[float] = losses.tolist()
        return found


def test_a_logit_of_minus_infinity_is_probability_zero() -> None:
    expected = torch.tensor([0.0, 1.0, 2.0]).logsumexp(0).item()
    for losses in run_distributed(lose_with_an_impossible_token, 2):
        assert losses == [pytest.approx(expected), torch.inf]


def ignore_positions(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        whole = random(5, 8, seed=1).requires_grad_()
        local = whole.detach().chunk(world_size, dim=-1)[rank].clone().requires_grad_()
        targets = torch.tensor([3, -100, 7, -100, 0])
        expected = vocab_parallel_cross_entropy(whole, targets)
        losses = vocab_parallel_cross_entropy(
            local, targets, group=model_group(topology), offset=rank * 8 // world_size
        )
        close(losses, expected)
        assert not losses[targets == -100].any()
        for loss in (expected, losses):
            backward(loss.sum())
        close(gradient_of(local), gradient_of(whole).chunk(world_size, dim=-1)[rank])


def test_positions_that_torch_ignores_are_ignored_in_every_layout() -> None:
    run_distributed(ignore_positions, 2)


HIDDEN = 6
RANK = 2
PLAIN: dict[str, Any] = {"bias": False, "terms": 0, "scale": 1.0, "cap": None}
EVERYTHING: dict[str, Any] = {"bias": True, "terms": 2, "scale": 1.7, "cap": 2.5}
TARGETS = torch.tensor([[0, 3, -100, 1, 2], [4, 0, 1, 0, 3]])


class Head(nn.Module):
    """A matrix, perhaps a bias and low-rank terms, and what they say of the targets: losses above log Z."""

    def __init__(
        self,
        vocabulary: int,
        place: Place,
        *,
        bias: bool,
        terms: int,
        scale: float,
        cap: float | None,
        chunk_size: int | None,
    ) -> None:
        super().__init__()
        self.table = VocabParallelEmbedding(vocabulary, HIDDEN, place=place)
        zeros, shard = Constant(0.0), self.table.shard
        self.bias = new_parameter((vocabulary,), zeros, shard=shard, dtype=place.dtype) if bias else None
        self.a = nn.ParameterList(
            # Each rank sees the gradient of its own part of the vocabulary only.
            new_parameter((RANK, HIDDEN), zeros, dtype=place.dtype, gradient_in_parts=place.parts > 1)
            for _ in range(terms)
        )
        self.b = nn.ParameterList(
            new_parameter((vocabulary, RANK), zeros, shard=shard, dtype=place.dtype) for _ in range(terms)
        )
        self.options: dict[str, Any] = {"scale": scale, "cap": cap, "chunk_size": chunk_size}

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        place, shard = self.table.place, self.table.shard
        entered = enter_model_parallel(x, place)
        found = linear_cross_entropy(
            entered,
            self.table.weight[: shard.length],
            targets,
            bias=None if self.bias is None else self.bias[: shard.length],
            terms=[LogitTerm(linear(entered, a), b[: shard.length]) for a, b in zip(self.a, self.b, strict=True)],
            group=place.group,
            offset=shard.offset,
            normalisers=True,
            **self.options,
        )
        assert found.log_normalisers is not None
        return torch.stack([found.losses, found.log_normalisers])


def dense_losses(weights: dense.Weights, x: Tensor, targets: Tensor, scale: float, cap: float | None) -> Tensor:
    low_rank = [weights[f"b.{i}"] @ weights[f"a.{i}"] for i in range(2) if f"a.{i}" in weights]
    logits = torch.einsum("bsh,vh->bsv", x, sum(low_rank, weights["table.weight"]))
    logits = (logits + weights["bias"] if "bias" in weights else logits) * scale
    logits = logits if cap is None else cap * (logits / cap).tanh()
    counts = targets >= 0
    losses = dense.cross_entropy(logits, targets.clamp_min(0))
    return torch.stack([losses, logits.exp().sum(-1).log()]) * counts


def compare_heads(rank: int, world_size: int, sequence_parallel: bool) -> None:
    with connected(model=world_size, sequence_parallel=sequence_parallel) as topology:
        place, cut = Place(topology, torch.float64, sequence_parallel), 1 if sequence_parallel else None
        x = random(2, TARGETS.shape[1], HIDDEN, seed=1) if not sequence_parallel else random(2, 6, HIDDEN, seed=1)
        targets = F.pad(TARGETS, (0, x.shape[1] - TARGETS.shape[1]), value=0)
        for vocabulary, options, chunk_size in product((2, 5, 23), (PLAIN, EVERYTHING), (None, 1, 4, 100)):
            own = torch.where(targets >= 0, targets % vocabulary, targets)
            scale, cap = options["scale"], options["cap"]
            messages = compare_layer(
                Head(vocabulary, place, chunk_size=chunk_size, **options),
                lambda weights, x: dense_losses(weights, x, own, scale, cap),  # noqa: B023  # called at once
                x,
                topology,
                own,
                cut_input=cut,
                what=f"vocabulary {vocabulary}, {options}, chunks of {chunk_size}:",
            )
            entering, leaving = ([GATHER], [SCATTER]) if sequence_parallel else ([], [SUM])
            assert messages == ([*entering, SUM, SUM, *leaving] if world_size > 1 else [])


@pytest.mark.parametrize(("world_size", "sequence_parallel"), [(1, False), (2, True), (3, False)])
def test_losses_of_hidden_states_are_those_of_whole_logits(world_size: int, sequence_parallel: bool) -> None:
    """In chunks too, with two messages: also where a rank's part of the vocabulary is all padding."""
    if world_size == 1:
        compare_heads(0, 1, sequence_parallel)
    else:
        run_distributed(compare_heads, world_size, sequence_parallel)


def of_a_head(
    dtype: torch.dtype, *, chunk_size: int | None, positions: int = 300, trained: str = "hwb"
) -> list[Tensor | None]:
    """Return loss, log Z and the gradients of hidden states, weight and bias of a head with everything."""
    hidden, weight, bias = (
        random(*shape, seed=seed).to(dtype).requires_grad_(name in trained)
        for name, seed, shape in (("h", 1, (positions, 32)), ("w", 2, (500, 32)), ("b", 3, (500,)))
    )
    found = linear_cross_entropy(
        hidden,
        weight,
        torch.arange(positions) * 7 % 500,
        bias=bias,
        scale=0.5,
        cap=6.0,
        chunk_size=chunk_size,
        normalisers=True,
    )
    assert found.log_normalisers is not None
    backward(found.losses.sum() + 0.01 * found.log_normalisers.square().sum())
    return [*found, hidden.grad, weight.grad, bias.grad]


def test_chunks_change_no_number() -> None:
    for dtype, loss, gradient in ((torch.float64, 1e-12, 1e-12), (torch.float32, 1e-6, 1e-5)):
        whole, chunked, reference = (
            of_a_head(each, chunk_size=size) for each, size in ((dtype, None), (dtype, 77), (torch.float64, None))
        )
        for expected in (whole, reference):
            for place, (one, other) in enumerate(zip(chunked, expected, strict=True)):
                assert one is not None
                assert other is not None
                assert one.dtype == dtype
                apart = (one - other).abs().max() / other.abs().max()
                assert apart <= (loss if place < 2 else gradient), (dtype, place, float(apart))


def test_only_the_gradients_that_are_wanted_are_made() -> None:
    expected = of_a_head(torch.float64, chunk_size=77)[2:]
    for place, trained in enumerate("hwb"):
        found = of_a_head(torch.float64, chunk_size=77, trained=trained)[2:]
        assert [one is not None for one in found] == [index == place for index in range(3)]
        assert torch.equal(found[place], expected[place])  # type: ignore[arg-type]


class Products(TorchDispatchMode):
    """Writes down the shapes of the results of matrix products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::mm", "aten::addmm", "aten::addmm_"):
            self.shapes.append(tuple(result.shape))
        return result


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_a_frozen_matrix_costs_no_product_of_a_gradient(chunk_size: int | None) -> None:
    """Beside a trained term it is multiplied for the logits and for the gradient of the hidden states, or not even."""
    n, v, h, r = 3, 11, HIDDEN, RANK
    for hidden_wanted in (True, False):
        leaves = [random(*shape, seed=1) for shape in ((n, h), (v, h), (n, r), (v, r))]
        hidden, weight, term, rows = leaves
        for leaf, wanted in zip(leaves, (hidden_wanted, False, True, True), strict=True):
            leaf.requires_grad_(wanted)
        with Products() as products:
            losses, _ = linear_cross_entropy(
                hidden, weight, torch.arange(n), terms=(LogitTerm(term, rows),), chunk_size=chunk_size
            )
            logits = list(products.shapes)
            backward(losses.sum())
        assert logits == [(n, v)] * 2
        again = [] if chunk_size is None else logits
        of_gradients = [(n, r), (v, r), *([(n, h)] if hidden_wanted else [])]
        assert sorted(products.shapes[2:]) == sorted([*again, *of_gradients])
        assert weight.grad is None


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_terms_in_float32_beside_a_matrix_in_half_precision_are_not_rounded(chunk_size: int | None) -> None:
    hidden, weight = (random(*shape, seed=1, dtype=torch.bfloat16) for shape in ((8, HIDDEN), (11, HIDDEN)))
    term, rows = (random(*shape, seed=2, dtype=torch.float32).requires_grad_() for shape in ((8, RANK), (11, RANK)))
    terms, targets = (LogitTerm(term, rows),), torch.arange(8)
    expected = F.linear(hidden, weight).double() + term.double() @ rows.double().T
    close(linear_logits(hidden, weight, terms=terms), expected, tolerance=1e-6)
    losses, _ = linear_cross_entropy(hidden, weight, targets, terms=terms, chunk_size=chunk_size)
    close(losses, F.cross_entropy(expected, targets, reduction="none"), tolerance=1e-6)
    backward(losses.sum())
    of_logits = expected.softmax(-1) - F.one_hot(targets, 11)
    for leaf, gradient in ((term, of_logits @ rows.double()), (rows, of_logits.T @ term.double())):
        assert gradient_of(leaf).dtype == torch.float32
        close(gradient_of(leaf), gradient, tolerance=1e-6)


def test_half_precision_is_summed_over_chunks_in_float32() -> None:
    hidden, weight = torch.ones(1000, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16)
    weight.requires_grad_()
    losses, _ = linear_cross_entropy(hidden, weight, torch.zeros(1000, dtype=torch.int64), chunk_size=1)
    assert losses.dtype == torch.float32
    backward(losses.sum())
    assert gradient_of(weight).flatten().tolist() == [-500.0, 500.0]  # in bfloat16, 128 + 0.5 is 128


def test_a_product_of_half_precision_is_added_to_float32_a_few_rows_at_a_time() -> None:
    hidden, weight = (random(*shape, seed=1, dtype=torch.bfloat16) for shape in ((6, 4), (10, 4)))
    gradients = ProductGradients(hidden, weight, True, True)
    gradients._operands, gradients._weight = torch.bfloat16, weight  # as on a GPU
    of_logits = random(6, 10, seed=2, dtype=torch.bfloat16)
    with mock.patch("scaling.core.nn.loss._ROWS", 4):
        for chunk in (slice(0, 4), slice(4, 6)):
            gradients.add(chunk, of_logits[chunk].float())
    of_hidden, of_weight = gradients.rounded()
    assert of_hidden is not None
    assert of_weight is not None
    assert of_hidden.dtype == of_weight.dtype == torch.bfloat16
    close(of_hidden, of_logits.double() @ weight.double(), tolerance=1e-2)
    close(of_weight, of_logits.double().T @ hidden.double(), tolerance=1e-2)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_bias_of_minus_infinity_rules_a_token_out(chunk_size: int | None) -> None:
    hidden, weight = random(3, HIDDEN, seed=1), random(4, HIDDEN, seed=2).requires_grad_()
    bias = torch.tensor([0.0, -torch.inf, 0.0, -torch.inf], dtype=torch.float64)
    targets = torch.tensor([0, 2, 1])
    losses, _ = linear_cross_entropy(hidden, weight, targets, bias=bias, chunk_size=chunk_size)
    expected = F.cross_entropy((hidden @ weight.T)[:, ::2], torch.tensor([0, 1, 0]), reduction="none")
    close(losses[:2], expected[:2])
    assert losses[2] == torch.inf
    backward(losses[:2].sum())
    assert not gradient_of(weight)[1::2].any()


def rule_out_a_rank(rank: int, world_size: int) -> None:
    """All tokens of the second rank are impossible."""
    with connected(model=world_size) as topology:
        hidden, weight = random(3, HIDDEN, seed=1), random(2, HIDDEN, seed=2 + rank).requires_grad_()
        bias = torch.zeros(2, dtype=torch.float64) if rank == 0 else torch.full((2,), -torch.inf, dtype=torch.float64)
        targets = torch.tensor([0, 1, 0])
        losses, _ = linear_cross_entropy(
            hidden, weight, targets, bias=bias, group=model_group(topology), offset=2 * rank, chunk_size=2
        )
        backward(losses.sum())
        possible = linear_logits(hidden, random(2, HIDDEN, seed=2))
        close(losses, F.cross_entropy(possible, targets, reduction="none"))
        assert rank == 0 or not gradient_of(weight).any()


def test_a_rank_without_a_possible_token_takes_no_part() -> None:
    run_distributed(rule_out_a_rank, 2)


@pytest.mark.slow
def test_chunks_take_a_fifth_of_the_memory_of_whole_logits(tmp_path: Path) -> None:
    """At a vocabulary of 131072 and 2048 tokens in float32, each in a process of its own."""
    report = tmp_path / "report.json"
    script = Path(__file__).parents[3] / "benchmarks" / "loss_memory.py"
    subprocess.run([sys.executable, script, "--rounds", "1", "--json", report], check=True, stdout=subprocess.DEVNULL)
    found = json.loads(report.read_text())
    assert found["same_pass"]["mib"] <= found["logits_mib"] / 5 < found["whole"]["mib"] / 5
    assert found["loss_apart"] <= 1e-6
    assert found["same_pass"]["gradient_norms"] == pytest.approx(found["whole"]["gradient_norms"], rel=1e-5)
