"""LayerSpec: what is built, with which edits, and what is refused."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from torch import nn

from scaling.core.errors import ConfigError
from scaling.core.pipeline.layer_spec import LayerSpec, TiedLayerSpec, check_ties


def unexpected(*args: Any, **kwargs: Any) -> nn.Module:
    raise AssertionError("a spec must not build anything by itself")


def wrapped(module: nn.Module) -> nn.Module:
    return nn.Sequential(module)


def test_a_spec_builds_with_its_arguments_each_time_anew() -> None:
    spec = LayerSpec(nn.Linear, 3, 4, bias=False)
    first, second = spec.build(), spec.build()
    assert isinstance(first, nn.Linear)
    assert (first.in_features, first.out_features, len(list(first.parameters()))) == (3, 4, 1)
    assert first is not second


def test_nothing_is_built_before_build() -> None:
    LayerSpec(unexpected, 1, two=2).then(unexpected)
    TiedLayerSpec(unexpected, tie="embedding", tied_parameters=["weight"])


def test_edits_run_in_the_order_they_are_added_and_leave_the_first_spec_alone() -> None:
    plain = LayerSpec(nn.Linear, 3, 4, cost=2.5, name="head")
    edited = plain.then(lambda module: nn.Sequential(module, nn.ReLU())).then(wrapped)
    built = edited.build()
    assert isinstance(built, nn.Sequential)
    assert isinstance(built[0], nn.Sequential)
    assert isinstance(built[0][1], nn.ReLU)
    assert isinstance(plain.build(), nn.Linear)
    assert (edited.cost, edited.name) == (2.5, "head")


def test_a_tied_spec_stays_tied_through_an_edit() -> None:
    spec = TiedLayerSpec(nn.Embedding, 10, 4, tie="embedding", tied_parameters=["weight"]).then(wrapped)
    assert isinstance(spec, TiedLayerSpec)
    assert (spec.tie, spec.tied_parameters) == ("embedding", ("weight",))
    assert isinstance(spec.build(), nn.Sequential)


def test_one_tied_parameter_may_be_given_as_a_string() -> None:
    assert TiedLayerSpec(nn.Embedding, 10, 4, tie="embedding", tied_parameters="weight").tied_parameters == ("weight",)


def test_names_are_readable() -> None:
    assert repr(LayerSpec(nn.Linear, 3, 4)) == "LayerSpec(Linear)"
    assert LayerSpec(functools.partial(nn.Linear, 3), 4).name == "Linear"
    assert LayerSpec(nn.Linear, 3, 4, name="embedding").name == "embedding"


def test_a_layer_that_takes_cost_itself_gets_it_through_partial() -> None:
    class Priced(nn.Module):
        def __init__(self, cost: str) -> None:
            super().__init__()
            self.cost = cost

    spec = LayerSpec(functools.partial(Priced, cost="mine"), cost=3.0)
    built = spec.build()
    assert isinstance(built, Priced)
    assert (built.cost, spec.cost) == ("mine", 3.0)


def test_wrong_specs_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs a module class"):
        LayerSpec(3)  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(ConfigError, match="layer Linear has cost -1"):
        LayerSpec(nn.Linear, 3, 4, cost=-1)
    with pytest.raises(ConfigError, match="layer Linear has cost nan"):
        LayerSpec(nn.Linear, 3, 4, cost=float("nan"))
    with pytest.raises(ConfigError, match="layer dict: dict returned a dict instead of a module"):
        LayerSpec(dict).build()  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(ConfigError, match="layer Linear: list returned a list instead of a module"):
        LayerSpec(nn.Sequential, nn.ReLU(), name="Linear").then(list).build()  # type: ignore[arg-type]  # likewise


def test_wrong_ties_are_refused() -> None:
    with pytest.raises(ConfigError, match="the tie of layer Linear needs a name"):
        TiedLayerSpec(nn.Linear, 3, 4, tie="", tied_parameters=["weight"])
    with pytest.raises(ConfigError, match="needs the names of the parameters"):
        TiedLayerSpec(nn.Linear, 3, 4, tie="head", tied_parameters=[])
    with pytest.raises(ConfigError, match="names parameter 'weight' 2 times"):
        TiedLayerSpec(nn.Linear, 3, 4, tie="head", tied_parameters=["weight", "bias", "weight"])
    with pytest.raises(ConfigError, match="no parameter 'weigth'; its parameters are: weight, bias"):
        TiedLayerSpec(nn.Linear, 3, 4, tie="head", tied_parameters=["weigth"]).build()
    with pytest.raises(ConfigError, match="its parameters are: none"):
        TiedLayerSpec(nn.ReLU, tie="head", tied_parameters=["weight"]).build()


def test_layers_of_a_tie_must_match() -> None:
    embedding = TiedLayerSpec(nn.Embedding, 10, 4, tie="embedding", tied_parameters=["weight"])
    head = TiedLayerSpec(nn.Linear, 4, 10, tie="embedding", tied_parameters=["weight"])
    check_ties([embedding, LayerSpec(nn.ReLU), head])
    with pytest.raises(
        ConfigError, match=r"the tie 'embedding' of layer 1 \(Embedding\) .* joins it to no other layer"
    ):
        check_ties([LayerSpec(nn.ReLU), embedding])
    two = TiedLayerSpec(nn.Linear, 4, 10, tie="embedding", tied_parameters=["weight", "bias"])
    with pytest.raises(
        ConfigError, match=r"different numbers of parameters: layer 0 .*layer 1 \(Linear\) \['weight', 'b"
    ):
        check_ties([embedding, two])
