"""The place of a process among the others: layout, launcher, rendezvous, device, process groups and random streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core.lazy import load_on_use

if TYPE_CHECKING:
    from scaling.core.topology.config import ActivationCheckpointingType as ActivationCheckpointingType
    from scaling.core.topology.config import Compile as Compile
    from scaling.core.topology.config import Device as Device
    from scaling.core.topology.config import PipePartitionMethod as PipePartitionMethod
    from scaling.core.topology.config import PipeSchedule as PipeSchedule
    from scaling.core.topology.config import TopologyConfig as TopologyConfig
    from scaling.core.topology.launch import LaunchContext as LaunchContext
    from scaling.core.topology.layout import Axis as Axis
    from scaling.core.topology.layout import Coordinate as Coordinate
    from scaling.core.topology.layout import Layout as Layout
    from scaling.core.topology.layout_svg import draw_layout as draw_layout
    from scaling.core.topology.placement import CUT as CUT
    from scaling.core.topology.placement import SAME as SAME
    from scaling.core.topology.placement import SAME_IN_PARTS as SAME_IN_PARTS
    from scaling.core.topology.placement import Placement as Placement
    from scaling.core.topology.rng import derive_seed as derive_seed
    from scaling.core.topology.topology import Topology as Topology
    from scaling.core.topology.topology import choose_device as choose_device

load_on_use(__name__)
