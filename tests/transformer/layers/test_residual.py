"""What stands between the parts: branches are scaled, factors are rounded to the type they multiply."""

from __future__ import annotations

import pytest
import torch

from scaling.core import Dropout
from scaling.transformer.layers.residual import Residual, Scale


def test_a_branch_is_dropped_out_scaled_and_added() -> None:
    x, branch, samples = torch.randn(2, 3, 8), torch.randn(2, 3, 8), torch.arange(2)
    dropout = Dropout(0.5, seed=1, site="after_mlp")
    assert torch.equal(Residual(dropout, scale=0.25)(x, branch, samples), x + 0.25 * dropout(branch, samples))
    assert not torch.equal(dropout(branch, samples), branch)
    assert torch.equal(Residual(dropout)(x, branch, samples), x + dropout(branch, samples))


@pytest.mark.parametrize(("dtype", "factor"), [(torch.bfloat16, 55.5), (torch.float64, 3072**0.5)])
def test_a_factor_is_rounded_to_the_type_it_multiplies(dtype: torch.dtype, factor: float) -> None:
    assert torch.equal(Scale(3072**0.5)(torch.ones(2, dtype=dtype)), torch.full((2,), factor, dtype=dtype))
