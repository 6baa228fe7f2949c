"""The base of all edits of layers: an edit can be switched off."""

from __future__ import annotations

from torch import nn


class Edit(nn.Module):
    """A change to a layer from outside, with parameters of its own; the layer's own keep their names and values."""

    active: bool = True
    """Whether the layer applies the edit. In a model with several adapters, only some of a layer's edits are active."""

    def follow_base(self) -> None:
        """Set the values that derive from those of the layer, once the layer has them. Collective: the model axis."""
