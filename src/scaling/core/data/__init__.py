"""Data: token files, mixtures, the order of samples as a function of their position, and the loader."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core.lazy import load_on_use

if TYPE_CHECKING:
    from scaling.core.data.blended import BlendedDataset as BlendedDataset
    from scaling.core.data.config import BlendedDatasetConfig as BlendedDatasetConfig
    from scaling.core.data.documents import TokenDocuments as TokenDocuments
    from scaling.core.data.file_dataset import FileDataset as FileDataset
    from scaling.core.data.formats import open_documents as open_documents
    from scaling.core.data.formats import recorded_eod_token_id as recorded_eod_token_id
    from scaling.core.data.loader import DataLoader as DataLoader
    from scaling.core.data.loader import evaluation_batches as evaluation_batches
    from scaling.core.data.megatron import MegatronDataset as MegatronDataset
    from scaling.core.data.memory_map import MemoryMapDataset as MemoryMapDataset
    from scaling.core.data.memory_map import MemoryMapDocuments as MemoryMapDocuments
    from scaling.core.data.memory_map_builder import MemoryMapDatasetBuilder as MemoryMapDatasetBuilder
    from scaling.core.data.sampler import BatchGeometry as BatchGeometry
    from scaling.core.data.sampler import EvenOrder as EvenOrder
    from scaling.core.data.sampler import evaluation_steps as evaluation_steps
    from scaling.core.data.sampler import items_of as items_of
    from scaling.core.data.sampler import order_of as order_of
    from scaling.core.data.sampler import positions_of as positions_of
    from scaling.core.data.types import BaseDataset as BaseDataset
    from scaling.core.data.types import MicroBatch as MicroBatch
    from scaling.core.data.worker import leave_with_parent as leave_with_parent

load_on_use(__name__)
