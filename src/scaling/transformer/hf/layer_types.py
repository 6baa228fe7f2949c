"""Windows of attention in config.json: one for all layers, or `layer_types`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from scaling.core import Problem
from scaling.transformer.hf.fields import WORDS, Config, Ours, is_of, shown
from scaling.transformer.hf.settings import NO_ROTARY

SLIDING: Final = "sliding_attention"
FULL: Final = "full_attention"
MOST: Final = 2**53
"""Maximum number of keys in a window: more than any text has."""


@dataclass(frozen=True)
class OneWindow:
    """One window for all layers: `sliding_window`."""

    default: int | None

    @property
    def names(self) -> Sequence[str]:
        """Return the name."""
        return ("sliding_window",)

    def problems(self, config: Config) -> Iterator[Problem]:
        """Yield a problem for an invalid window."""
        yield from _window_problems(config)

    def read(self, config: Config) -> dict[str, Any]:
        """Return the window of each layer."""
        window = config.get("sliding_window", self.default)
        return {} if window is None else {"layers": [{"window": window}] * config["num_hidden_layers"]}

    def write(self, ours: Ours) -> dict[str, Any]:
        """Return the window of the first layer."""
        return {"sliding_window": ours["layers"][0]["window"]}


@dataclass(frozen=True)
class LayerTypes:
    """The layers that have the window of `sliding_window`, as given by `layer_types`."""

    usual: Callable[[Config, int], bool]
    """Whether a layer has the window in a file without `layer_types`; called only where there is a window."""
    default: int | None = 4096
    """Default window."""
    switch: bool = False
    """There is no window unless `use_sliding_window` is true."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """Other fields that `usual` reads (whole numbers), with their defaults."""
    least: int = 0
    """Smallest accepted value of those numbers."""

    @property
    def names(self) -> Sequence[str]:
        """Return the names."""
        return ("sliding_window", "layer_types", *(("use_sliding_window",) if self.switch else ()), *self.others)

    def window(self, config: Config) -> int | None:
        """Return the window, None where there is none."""
        used = not self.switch or config.get("use_sliding_window") is True
        window: int | None = config.get("sliding_window", self.default) if used else None
        return window

    def of(self, config: Config) -> list[str]:
        """Return the type of each layer."""
        if config.get("layer_types") is not None:
            return list(config["layer_types"])
        known = {**self.others, **{key: value for key, value in config.items() if value is not None}}
        slides = self.window(config) is not None
        layers = range(config["num_hidden_layers"])
        return [SLIDING if slides and self.usual(known, layer) else FULL for layer in layers]

    def problems(self, config: Config) -> Iterator[Problem]:
        """Yield problems for an invalid window, and for types that are not built."""
        yield from _window_problems(config)
        if self.switch and not isinstance(config.get("use_sliding_window", False), bool):
            yield Problem("use_sliding_window", f"must be true or false, not {shown(config['use_sliding_window'])}")
        for name in self.others:
            if config.get(name) is not None and (not is_of(int, config[name]) or config[name] < self.least):
                yield Problem(name, f"must be a whole number of at least {self.least}, not {shown(config[name])}")
        given = config.get("layer_types")
        if given is None:
            return
        if not isinstance(given, list):
            yield Problem("layer_types", f"must be {WORDS[list]}, not {shown(given)}")
            return
        for layer, kind in enumerate(given):
            if kind not in (SLIDING, FULL):
                yield Problem(f"layer_types.{layer}", f"is {shown(kind)}, which is not built; {FULL} and {SLIDING} are")
                return  # the others may be as wrong, and there may be many
        layers = config["num_hidden_layers"]
        if len(given) != layers:
            yield Problem("layer_types", f"has {len(given)} entries, but num_hidden_layers is {layers}; give one each")
        if SLIDING in given and self.window(config) is None:
            hint = ", and use_sliding_window to true" if self.switch else ""
            yield Problem("layer_types", f"has {SLIDING}, but there is no window; set sliding_window{hint}")

    def read(self, config: Config) -> dict[str, Any]:
        """Return the window of each layer."""
        window = self.window(config)
        types = self.of(config)
        return (
            {"layers": [{"window": window if kind == SLIDING else None} for kind in types]} if SLIDING in types else {}
        )

    def write(self, ours: Ours) -> dict[str, Any]:
        """Return the types of all layers, and the window of the first that has one."""
        windows = [layer["window"] for layer in ours["layers"]]
        first = next((window for window in windows if window is not None), None)
        types = [FULL if window is None else SLIDING for window in windows]
        switch = {"use_sliding_window": first is not None} if self.switch else {}
        return {"layer_types": types, "sliding_window": first, **switch}


@dataclass(frozen=True)
class NoRope:
    """The layers that are rotated (1) and those that are not (0), as given by `no_rope_layers`."""

    interval: int = 4
    """In files without the interval, every layer of this number is not rotated."""

    @property
    def names(self) -> Sequence[str]:
        """Return the names."""
        return ("no_rope_layers", "no_rope_layer_interval")

    def of(self, config: Config) -> list[bool]:
        """Return whether each layer is rotated."""
        given = config.get("no_rope_layers")
        if given is not None:
            return [bool(rotated) for rotated in given]
        interval = config.get("no_rope_layer_interval") or self.interval
        return [(layer + 1) % interval != 0 for layer in range(config["num_hidden_layers"])]

    def problems(self, config: Config) -> Iterator[Problem]:
        """Yield a problem for a list that does not fit."""
        given, layers = config.get("no_rope_layers"), config["num_hidden_layers"]
        interval = config.get("no_rope_layer_interval")
        if interval is not None and (not is_of(int, interval) or interval < 1):
            yield Problem("no_rope_layer_interval", f"must be a whole number of at least 1, not {shown(interval)}")
        if given is not None and (
            not isinstance(given, list) or len(given) != layers or any(one not in (0, 1) for one in given)
        ):
            yield Problem(
                "no_rope_layers",
                f"must have 1 (rotated) or 0 (not) for each of the {layers} layers (num_hidden_layers), not "
                f"{shown(given)}",
            )

    def read(self, config: Config) -> dict[str, Any]:
        """Return the rotation type "none" for the layers that are not rotated."""
        rotated = self.of(config)
        return {} if all(rotated) else {"layers": [{} if one else {"rotary": dict(NO_ROTARY)} for one in rotated]}

    def write(self, ours: Ours) -> dict[str, Any]:
        """Return the list."""
        return {"no_rope_layers": [int(layer["rotary"] != NO_ROTARY) for layer in ours["layers"]]}


def _window_problems(config: Config) -> Iterator[Problem]:
    window = config.get("sliding_window")
    if window is not None and (not is_of(int, window) or window < 1):
        yield Problem("sliding_window", f"must be a whole number of at least 1, or null, not {shown(window)}")
    elif window is not None and window > MOST:
        yield Problem("sliding_window", f"must be at most {MOST}, not {shown(window)}; null is no window")
