"""The settings of a run that are not the defaults, and the settings that differ between runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scaling.core.config.base import BaseConfig
from scaling.core.config.fields import Derived, marker
from scaling.core.config.yaml_text import dump_yaml
from scaling.core.errors import ConfigError


@dataclass(frozen=True)
class Setting:
    """A setting whose value is not the default."""

    path: str
    value: str
    default: str


def changed_settings(config: BaseConfig, usual: BaseConfig | None = None, path: str = "") -> Iterator[Setting]:
    """Yield the settings of `config` that differ from those of `usual`, with dotted paths. Pure.

    Without `usual`, or where it has no such section or one of another kind, a section is compared with its own
    defaults.
    """
    usual, plain = usual or _usual(type(config)), config.as_dict()
    for name, field in type(config).model_fields.items():
        if name not in plain:
            continue
        value = getattr(config, name)
        default = getattr(usual, name) if usual else field.get_default(call_default_factory=True)
        if isinstance(value, BaseConfig):
            yield from changed_settings(value, _alike(default, value), f"{path}{name}.")
        elif isinstance(value, list) and value and all(isinstance(item, BaseConfig) for item in value):
            known = default if isinstance(default, list) else []
            for index, item in enumerate(value):
                other = known[index] if index < len(known) else None
                yield from changed_settings(item, _alike(other, item), f"{path}{name}.{index}.")
        elif value != default:
            shown = "none" if field.is_required() else shown_value(_plain(default))
            follows = f"{shown}, or what follows from others" if marker(field, Derived) else shown
            yield Setting(path + name, shown_value(plain[name]), follows)


def _usual(kind: type[BaseConfig]) -> BaseConfig | None:
    """Return the defaults of a section; None where it has required settings."""
    try:
        return kind()
    except ConfigError:
        return None


def _alike(default: Any, value: BaseConfig) -> BaseConfig | None:
    return default if isinstance(default, type(value)) else None


def flat_settings(values: Mapping[str, Any], path: str = "") -> dict[str, str]:
    """Return every setting of a file by its dotted path, as text. Pure."""
    found: dict[str, str] = {}
    for name, value in values.items():
        items = value if isinstance(value, list) and any(isinstance(item, dict) for item in value) else None
        if items is not None:
            value = {str(index): item for index, item in enumerate(items)}
        if isinstance(value, dict) and value:
            found |= flat_settings(value, f"{path}{name}.")
        else:
            found[f"{path}{name}"] = shown_value(value)
    return found


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[str | None]]]:
    """Yield each path whose values differ between configurations, with the values; None for a missing setting."""
    flat = [flat_settings(config) for config in configs]
    for path in dict.fromkeys(path for settings in flat for path in settings):
        values = [settings.get(path) for settings in flat]
        if len(set(values)) > 1:
            yield path, values


def shown_value(value: Any) -> str:
    """Return a value as YAML."""
    return dump_yaml(value).removesuffix("...\n").strip()


def _plain(value: Any) -> Any:
    """Return a default in the form it would have in a file."""
    match value:
        case None | bool() | int() | float():
            return value
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case BaseConfig():
            return value.as_dict()
        case _:
            return str(getattr(value, "value", value))
