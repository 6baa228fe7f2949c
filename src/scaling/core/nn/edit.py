"""What all edits of layers have in common: they can be passed over."""

from __future__ import annotations

from torch import nn


class Edit(nn.Module):
    """A change of a layer from outside, with parameters of its own; those of the layer keep names and values."""

    active: bool = True
    """Whether the layer lets it act. Edits of which only some act share one layer: a model with several adapters."""

    def follow_base(self) -> None:
        """Set the values that start from those of the layer, once the layer has its own. Collective: the model axis."""
