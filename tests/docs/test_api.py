"""The Python reference has every public name once."""

from __future__ import annotations

import importlib
import re

from docs.generator import api


def test_every_public_name_has_one_entry() -> None:
    pattern = r"^\.\. (?:auto\w+|py:data):: (\S+)$"
    found: dict[str, list[str]] = {package: [] for package in api.PACKAGES}
    for name, text in api.pages():
        package = f"scaling.{name.partition('.')[0]}"
        found[package] += [entry.removeprefix(f"{package}.") for entry in re.findall(pattern, text, re.MULTILINE)]
    for package in api.PACKAGES:
        assert sorted(found[package]) == sorted(importlib.import_module(package).__all__)


def test_names_are_grouped_as_they_are_exported() -> None:
    groups = api.groups("scaling.core")
    assert groups["scaling.core.checkpoint"] == list(importlib.import_module("scaling.core.checkpoint").__all__)
    assert groups["scaling.core.boxes"] == ["Box", "GlobalTensor", "whole"]


def test_each_kind_of_name_has_its_directive() -> None:
    assert api.described("scaling.core", "Topology", "")[0] == ".. autoclass:: scaling.core.Topology"
    assert api.described("scaling.core", "ConfigError", "")[0] == ".. autoexception:: scaling.core.ConfigError"
    assert api.described("scaling.core", "fill", "")[0] == ".. autofunction:: scaling.core.fill"
    metrics = api.described("scaling.core", "METRICS_FILE", api.homes("scaling.core")["METRICS_FILE"])
    assert ".. py:data:: METRICS_FILE" in metrics
    assert "   In `logger.log_dir`, a line for each step." in metrics


def test_definitions_lead_to_public_names() -> None:
    assert api.public_names()["scaling.core.boxes.Box"] == "scaling.core.Box"
