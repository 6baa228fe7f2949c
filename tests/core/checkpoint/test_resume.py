"""Which settings may change when a run is resumed: rules of paths, and where they stand."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from scaling.core.checkpoint.resume import (
    ABSENT,
    Change,
    ChangeRules,
    behind_digests,
    compare,
    covers,
    differing_values,
)
from scaling.core.config.base import BaseConfig
from scaling.core.config.family import ConfigFamily
from scaling.core.config.fields import NoEffect, OnResume
from scaling.core.errors import ConfigError
from scaling.core.storage.json_values import Json
from tests.core.checkpoint.test_manifest import json_values

RULES = ChangeRules(
    identity=["transformer_architecture", "data.fingerprint", "seed"],
    schedule=["training", "training_groups.*.learning_rate", "transformer_architecture.dropout*"],
    runtime=["transformer_architecture.kernel", "topology"],
)

STORED: dict[str, Json] = {
    "transformer_architecture": {"hidden_size": 64, "dropout_attention": 0.0, "kernel": "torch", "lora": None},
    "training_groups": [{"learning_rate": 1e-3, "name": "all"}],
    "data": {"fingerprint": "abc"},
    "topology": {"data_parallel_size": 2},
    "seed": 1,
}


def changed(**sections: Json) -> dict[str, Json]:
    return {**STORED, **sections}


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_a_configuration_does_not_differ_from_itself(config: dict[str, Json]) -> None:
    comparison = compare(config, config, ChangeRules(identity=["*"]))
    assert comparison.refused == comparison.schedule == comparison.runtime == ()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("transformer_architecture.hidden_size", OnResume.IDENTITY),
        ("transformer_architecture.dropout_attention", OnResume.SCHEDULE),
        ("transformer_architecture.kernel", OnResume.RUNTIME),
        ("transformer_architecture", OnResume.IDENTITY),
        ("training_groups.0.learning_rate", OnResume.SCHEDULE),
        ("training_groups.0.name", OnResume.IDENTITY),
        ("seed", OnResume.IDENTITY),
        ("seeds", OnResume.IDENTITY),
    ],
)
def test_the_most_specific_path_decides(path: str, kind: OnResume) -> None:
    assert RULES.kind(path) is kind


def test_of_equally_specific_paths_the_stricter_kind_wins() -> None:
    assert ChangeRules(identity=["a.*"], schedule=["a.b"]).kind("a.b") is OnResume.IDENTITY


class Norm(BaseConfig):
    epsilon: float = 1e-5
    kernel: Annotated[str, OnResume.RUNTIME] = "torch"


class Rule(ConfigFamily):
    on_resume = OnResume.SCHEDULE
    default_kind = "adamw"


class AdamW(Rule):
    type: str = "adamw"
    fused: Annotated[bool, OnResume.RUNTIME] = True


class Batch(BaseConfig):
    on_resume = OnResume.RUNTIME

    size: Annotated[int, OnResume.SCHEDULE] = 1
    ranks: int = 1


class Program(BaseConfig):
    norms: list[Norm] = Field(default_factory=list)
    rule: Rule = AdamW()
    batch: Batch = Batch()
    debug: Annotated[Batch | None, OnResume.RUNTIME] = None
    seed: Annotated[int, OnResume.ORDER] = 1
    name: str = ""
    former: Annotated[int, NoEffect("it is not used any more")] = 0


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("norms.1.epsilon", None),
        ("norms.1.kernel", OnResume.RUNTIME),
        ("rule", OnResume.SCHEDULE),
        ("rule.beta1", OnResume.SCHEDULE),
        ("rule.fused", OnResume.RUNTIME),
        ("batch.size", OnResume.SCHEDULE),
        ("batch.ranks", OnResume.RUNTIME),
        ("debug.ranks", OnResume.RUNTIME),
        ("debug.size", OnResume.SCHEDULE),
        ("seed", OnResume.ORDER),
        ("name", None),
    ],
)
def test_fields_and_their_sections_say_what_a_change_means(path: str, kind: OnResume | None) -> None:
    rules = ChangeRules.of(Program)
    assert rules.find(path) is kind
    assert rules.kind(path) is (kind or OnResume.IDENTITY)


def test_a_section_that_is_the_whole_configuration_speaks_for_its_fields() -> None:
    rules = ChangeRules.of(Batch)
    assert (rules.find("ranks"), rules.find("size")) == (OnResume.RUNTIME, OnResume.SCHEDULE)


def test_rules_of_a_program_come_before_those_of_the_fields() -> None:
    rules = ChangeRules(runtime=["rule", "name"], identity=["batch"]).over(ChangeRules.of(Program))
    assert rules.find("rule.beta1") is rules.find("name") is OnResume.RUNTIME
    assert rules.find("batch.ranks") is OnResume.IDENTITY
    assert rules.find("batch.size") is OnResume.SCHEDULE  # the longer path decides
    assert rules.find("seed") is OnResume.ORDER


def test_differences_are_sorted_by_what_they_mean() -> None:
    present = changed(
        transformer_architecture={
            "hidden_size": 128,
            "dropout_attention": 0.1,
            "kernel": "flash_attention",
            "lora": None,
        },
        training_groups=[{"learning_rate": 2e-3, "name": "all"}],
        topology={"data_parallel_size": 4},
    )
    comparison = compare(STORED, present, RULES)
    assert comparison.refused == (Change("transformer_architecture.hidden_size", 64, 128, OnResume.IDENTITY),)
    assert [change.path for change in comparison.schedule] == [
        "training_groups.0.learning_rate",
        "transformer_architecture.dropout_attention",
    ]
    assert [str(change) for change in comparison.runtime] == [
        "topology.data_parallel_size: 2 in the checkpoint, 4 now",
        "transformer_architecture.kernel: 'torch' in the checkpoint, 'flash_attention' now",
    ]


def test_refused_changes_are_all_named_with_the_way_out() -> None:
    present = changed(seed=2, data={"fingerprint": "xyz"})
    with pytest.raises(ConfigError) as caught:
        compare(STORED, present, RULES).require()
    assert [problem.path for problem in caught.value.problems] == ["data.fingerprint", "seed"]
    assert "'xyz', but 'abc' in the checkpoint" in str(caught.value)
    assert "add 'seed' to trainer.accept_changes" in str(caught.value)


def test_a_digest_is_explained_by_the_settings_that_decide_it() -> None:
    rules = ChangeRules(order=["fingerprints"], runtime=["data"])
    stored: dict[str, Any] = {"data": {"prefixes": ["a"], "map": True}, "fingerprints": {"data": "abc", "words": "x"}}
    present: dict[str, Any] = {"data": {"prefixes": ["a", "b"], "map": False}}
    present["fingerprints"] = {"data": "xyz", "words": "y"}
    found = compare(stored, present, rules)
    reasons = behind_digests(found, {"data": ["data.prefixes"], "words": ["words.file"]})
    with pytest.raises(ConfigError) as caught:
        found.require(reasons=reasons)
    data, words = map(str, caught.value.problems)
    assert "It follows from settings that have changed: data.prefixes was ['a'], is ['a', 'b']. Set it back" in data
    assert "data.map" not in data
    assert "words.file are as they were, so files have changed. Set it back" in words


def test_a_change_accepted_by_name_is_let_through() -> None:
    comparison = compare(STORED, changed(seed=2, data={"fingerprint": "xyz"}), RULES, accept=["data", "seed"])
    comparison.require()
    assert [change.path for change in comparison.accepted] == ["data.fingerprint", "seed"]


def test_other_data_are_refused_only_where_the_run_goes_on_from_its_place_in_them() -> None:
    rules = ChangeRules(identity=["topology"], order=["seed", "data.fingerprint"])
    present = changed(seed=2, data={"fingerprint": "xyz"}, topology={"data_parallel_size": 4})
    other_data, all_of_it = ["data.fingerprint", "seed"], ["data.fingerprint", "seed", "topology.data_parallel_size"]
    assert [change.path for change in compare(STORED, present, rules).refused] == all_of_it
    anew = compare(STORED, present, rules, continues=False)
    assert [change.path for change in anew.refused] == all_of_it[2:]
    assert [change.path for change in anew.schedule] == other_data


def test_a_section_that_was_empty_is_one_change() -> None:
    architecture = {**STORED["transformer_architecture"], "lora": {"rank": 8}}  # type: ignore[dict-item]
    (change,) = compare(STORED, changed(transformer_architecture=architecture), RULES).refused
    assert (change.path, change.stored, change.present) == ("transformer_architecture.lora", None, {"rank": 8})


def test_settings_that_one_side_does_not_know_are_listed_and_not_refused() -> None:
    without = {key: value for key, value in STORED.items() if key != "seed"}
    for stored, present in ((without, STORED), (STORED, without)):
        comparison = compare(stored, present, RULES)
        assert comparison.refused == ()
        (change,) = comparison.schedule
        assert ABSENT in (change.stored, change.present)
        assert "not there" in str(change)


@pytest.mark.parametrize(
    ("stored", "present", "differs"), [(1, 1.0, False), (True, 1, True), ([1], [1, 2], True), ((1,), [1], False)]
)
def test_values_are_compared_as_a_person_would(stored: Json, present: Json, differs: bool) -> None:
    assert bool(list(differing_values({"a": stored}, {"a": present}))) is differs
    assert bool(compare({"a": stored}, {"a": present}, ChangeRules()).refused) is differs


def test_a_path_covers_what_lies_below_it_and_nothing_beside_it() -> None:
    assert covers("a.*", "a.b.c")
    assert covers("a", "a")
    assert not covers("a.b", "a")
    assert not covers("a", "ab")
