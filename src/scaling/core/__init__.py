"""The model-agnostic engine: its public names, loaded when first used so that what needs no torch starts without it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaling.core.boxes import Box as Box
    from scaling.core.boxes import GlobalTensor as GlobalTensor
    from scaling.core.checkpoint.checkpointer import Checkpointer as Checkpointer
    from scaling.core.checkpoint.communicator import StoreCommunicator as StoreCommunicator
    from scaling.core.checkpoint.folders import Retention as Retention
    from scaling.core.checkpoint.folders import list_steps as list_steps
    from scaling.core.checkpoint.folders import step_of as step_of
    from scaling.core.checkpoint.resume import ChangeRules as ChangeRules
    from scaling.core.checkpoint.verify import read_manifest as read_manifest
    from scaling.core.config.base import BaseConfig as BaseConfig
    from scaling.core.config.base import run_checks as run_checks
    from scaling.core.config.family import ConfigFamily as ConfigFamily
    from scaling.core.config.fields import (
        ConfigWarning as ConfigWarning,
    )
    from scaling.core.config.fields import (
        Derived as Derived,
    )
    from scaling.core.config.fields import (
        NoEffect as NoEffect,
    )
    from scaling.core.config.fields import (
        OnResume as OnResume,
    )
    from scaling.core.config.fields import (
        Unavailable as Unavailable,
    )
    from scaling.core.config.patterns import pattern_problems as pattern_problems
    from scaling.core.config.template import template as template
    from scaling.core.data.blended import BlendedDataset as BlendedDataset
    from scaling.core.data.config import BlendedDatasetConfig as BlendedDatasetConfig
    from scaling.core.data.documents import TokenDocuments as TokenDocuments
    from scaling.core.data.file_dataset import FileDataset as FileDataset
    from scaling.core.data.loader import DataLoader as DataLoader
    from scaling.core.data.loader import evaluation_batches as evaluation_batches
    from scaling.core.data.megatron import MegatronDataset as MegatronDataset
    from scaling.core.data.memory_map import (
        MemoryMapDataset as MemoryMapDataset,
    )
    from scaling.core.data.memory_map import (
        MemoryMapDocuments as MemoryMapDocuments,
    )
    from scaling.core.data.memory_map_builder import MemoryMapDatasetBuilder as MemoryMapDatasetBuilder
    from scaling.core.data.open_documents import open_documents as open_documents
    from scaling.core.data.sampler import (
        BatchGeometry as BatchGeometry,
    )
    from scaling.core.data.sampler import (
        evaluation_steps as evaluation_steps,
    )
    from scaling.core.data.sampler import (
        items_of as items_of,
    )
    from scaling.core.data.sampler import (
        order_of as order_of,
    )
    from scaling.core.data.sampler import (
        positions_of as positions_of,
    )
    from scaling.core.data.types import BaseDataset as BaseDataset
    from scaling.core.data.types import MicroBatch as MicroBatch
    from scaling.core.data.worker import leave_with_parent as leave_with_parent
    from scaling.core.errors import (
        CheckpointError as CheckpointError,
    )
    from scaling.core.errors import (
        ConfigError as ConfigError,
    )
    from scaling.core.errors import (
        DataError as DataError,
    )
    from scaling.core.errors import (
        DataRefusedError as DataRefusedError,
    )
    from scaling.core.errors import (
        ExitStatus as ExitStatus,
    )
    from scaling.core.errors import (
        LayoutError as LayoutError,
    )
    from scaling.core.errors import (
        Problem as Problem,
    )
    from scaling.core.errors import (
        ScalingError as ScalingError,
    )
    from scaling.core.errors import (
        ScheduleError as ScheduleError,
    )
    from scaling.core.errors import (
        StorageError as StorageError,
    )
    from scaling.core.logging.config import LoggerConfig as LoggerConfig
    from scaling.core.logging.setup import configure_logging as configure_logging
    from scaling.core.nn.attention import ParallelSelfAttention as ParallelSelfAttention
    from scaling.core.nn.attention import attention_projections as attention_projections
    from scaling.core.nn.attention_core import AttentionCore as AttentionCore
    from scaling.core.nn.attention_core import CachedAttention as CachedAttention
    from scaling.core.nn.attention_core import DroppedAttention as DroppedAttention
    from scaling.core.nn.attention_core import FlashAttention as FlashAttention
    from scaling.core.nn.attention_core import KeyValueCache as KeyValueCache
    from scaling.core.nn.attention_core import ScaledDotProduct as ScaledDotProduct
    from scaling.core.nn.attention_kernels import DocumentMasks as DocumentMasks
    from scaling.core.nn.attention_kernels import flash_attention_available as flash_attention_available
    from scaling.core.nn.config import (
        FP8LinearConfig as FP8LinearConfig,
    )
    from scaling.core.nn.config import (
        LayerNormConfig as LayerNormConfig,
    )
    from scaling.core.nn.config import (
        LoRaConfig as LoRaConfig,
    )
    from scaling.core.nn.config import (
        MaskedSoftmaxConfig as MaskedSoftmaxConfig,
    )
    from scaling.core.nn.config import (
        MaskedSoftmaxKernel as MaskedSoftmaxKernel,
    )
    from scaling.core.nn.config import (
        NormType as NormType,
    )
    from scaling.core.nn.config import (
        RelativePositionEmbeddingType as RelativePositionEmbeddingType,
    )
    from scaling.core.nn.dropout import Dropout as Dropout
    from scaling.core.nn.embedding import VocabParallelEmbedding as VocabParallelEmbedding
    from scaling.core.nn.heads import Heads as Heads
    from scaling.core.nn.init import Constant as Constant
    from scaling.core.nn.init import Normal as Normal
    from scaling.core.nn.init import Uniform as Uniform
    from scaling.core.nn.init import fill as fill
    from scaling.core.nn.init import xavier_normal as xavier_normal
    from scaling.core.nn.linear import ColumnParallelLinear as ColumnParallelLinear
    from scaling.core.nn.linear import RowParallelLinear as RowParallelLinear
    from scaling.core.nn.linear import linear as linear
    from scaling.core.nn.loss import vocab_parallel_cross_entropy as vocab_parallel_cross_entropy
    from scaling.core.nn.mlp import ParallelMLP as ParallelMLP
    from scaling.core.nn.mlp import ParallelSwiGLUMLP as ParallelSwiGLUMLP
    from scaling.core.nn.norm import LayerNorm as LayerNorm
    from scaling.core.nn.norm import RMSNorm as RMSNorm
    from scaling.core.nn.parameter import Initializer as Initializer
    from scaling.core.nn.parameter import ParameterMeta as ParameterMeta
    from scaling.core.nn.parameter import Piece as Piece
    from scaling.core.nn.parameter import Shard as Shard
    from scaling.core.nn.parameter import annotate as annotate
    from scaling.core.nn.parameter import even_shard as even_shard
    from scaling.core.nn.parameter import fused_parameter as fused_parameter
    from scaling.core.nn.parameter import meta as meta
    from scaling.core.nn.parameter import new_parameter as new_parameter
    from scaling.core.nn.parameter import padded_shard as padded_shard
    from scaling.core.nn.place import Place as Place
    from scaling.core.nn.place import enter_model_parallel as enter_model_parallel
    from scaling.core.nn.place import leave_model_parallel as leave_model_parallel
    from scaling.core.nn.rotary import RotaryEmbedding as RotaryEmbedding
    from scaling.core.optimizer.config import AdamWConfig as AdamWConfig
    from scaling.core.optimizer.config import LossScalerConfig as LossScalerConfig
    from scaling.core.optimizer.config import OptimizerConfig as OptimizerConfig
    from scaling.core.optimizer.groups import (
        GroupPattern as GroupPattern,
    )
    from scaling.core.optimizer.groups import (
        ParameterGroup as ParameterGroup,
    )
    from scaling.core.optimizer.groups import (
        assign as assign,
    )
    from scaling.core.optimizer.loss_scaler import LossScaler as LossScaler
    from scaling.core.optimizer.lr_schedule import (
        LearningRateScheduler as LearningRateScheduler,
    )
    from scaling.core.optimizer.lr_schedule import (
        LearningRateSchedulerConfig as LearningRateSchedulerConfig,
    )
    from scaling.core.optimizer.optimizer import Optimizer as Optimizer
    from scaling.core.optimizer.optimizer import StepReport as StepReport
    from scaling.core.optimizer.rule import AdamW as AdamW
    from scaling.core.optimizer.rule import Pace as Pace
    from scaling.core.optimizer.rule import UpdateRule as UpdateRule
    from scaling.core.optimizer.shard import FlatShard as FlatShard
    from scaling.core.optimizer.shard import Matrix as Matrix
    from scaling.core.pipeline.layer_spec import LayerSpec as LayerSpec
    from scaling.core.pipeline.layer_spec import TiedLayerSpec as TiedLayerSpec
    from scaling.core.pipeline.loss import LossFunction as LossFunction
    from scaling.core.pipeline.loss import LossOutput as LossOutput
    from scaling.core.pipeline.loss import StepLoss as StepLoss
    from scaling.core.pipeline.module import ParallelModule as ParallelModule
    from scaling.core.profiler.config import ProfilerConfig as ProfilerConfig
    from scaling.core.profiler.profiler import Profiler as Profiler
    from scaling.core.runner.command import (
        RunConfig as RunConfig,
    )
    from scaling.core.runner.command import (
        run_in_processes as run_in_processes,
    )
    from scaling.core.runner.command import (
        run_training_process as run_training_process,
    )
    from scaling.core.runner.config import RunnerConfig as RunnerConfig
    from scaling.core.runner.config import RunnerType as RunnerType
    from scaling.core.runner.main import runner_main as runner_main
    from scaling.core.runner.process import run_process as run_process
    from scaling.core.storage.lock import file_lock as file_lock
    from scaling.core.storage.writing import storage_errors as storage_errors
    from scaling.core.storage.writing import sync_folder as sync_folder
    from scaling.core.storage.writing import write_atomically as write_atomically
    from scaling.core.topology.config import Device as Device
    from scaling.core.topology.config import TopologyConfig as TopologyConfig
    from scaling.core.topology.launch import LaunchContext as LaunchContext
    from scaling.core.topology.layout import Axis as Axis
    from scaling.core.topology.layout import Coordinate as Coordinate
    from scaling.core.topology.layout import Layout as Layout
    from scaling.core.topology.topology import Topology as Topology
    from scaling.core.trainer.config import TrainerConfig as TrainerConfig
    from scaling.core.trainer.hooks import TrainerHook as TrainerHook
    from scaling.core.trainer.hooks import TrainerView as TrainerView
    from scaling.core.trainer.run import run_training as run_training
    from scaling.core.trainer.state import RunIdentity as RunIdentity
    from scaling.core.trainer.state import TrainState as TrainState
    from scaling.core.trainer.trainer import Trainer as Trainer
    from scaling.core.training.data import TrainingData as TrainingData
    from scaling.core.training.learner import Learner as Learner
    from scaling.core.training.loading import Loading as Loading
    from scaling.core.training.recipe import Recipe as Recipe
    from scaling.core.verify.layouts import (
        Gap as Gap,
    )
    from scaling.core.verify.layouts import (
        LayoutReport as LayoutReport,
    )
    from scaling.core.verify.layouts import (
        Parting as Parting,
    )
    from scaling.core.verify.layouts import (
        single_process as single_process,
    )
    from scaling.core.verify.layouts import (
        verify_layout as verify_layout,
    )
    from scaling.core.verify.session import Session as Session

_NAMES: Mapping[str, tuple[str, ...]] = {
    "errors": (
        "CheckpointError",
        "ConfigError",
        "DataError",
        "DataRefusedError",
        "ExitStatus",
        "LayoutError",
        "Problem",
        "ScalingError",
        "ScheduleError",
        "StorageError",
    ),
    "config.base": ("BaseConfig", "run_checks"),
    "config.family": ("ConfigFamily",),
    "config.fields": ("ConfigWarning", "Derived", "NoEffect", "OnResume", "Unavailable"),
    "config.patterns": ("pattern_problems",),
    "config.template": ("template",),
    "storage.lock": ("file_lock",),
    "storage.writing": ("storage_errors", "sync_folder", "write_atomically"),
    "topology.config": ("Device", "TopologyConfig"),
    "topology.launch": ("LaunchContext",),
    "topology.layout": ("Axis", "Coordinate", "Layout"),
    "topology.topology": ("Topology",),
    "nn.config": (
        "LayerNormConfig",
        "FP8LinearConfig",
        "LoRaConfig",
        "MaskedSoftmaxConfig",
        "MaskedSoftmaxKernel",
        "NormType",
        "RelativePositionEmbeddingType",
    ),
    "nn.parameter": (
        "Initializer",
        "ParameterMeta",
        "Piece",
        "Shard",
        "annotate",
        "even_shard",
        "fused_parameter",
        "meta",
        "new_parameter",
        "padded_shard",
    ),
    "nn.place": ("Place", "enter_model_parallel", "leave_model_parallel"),
    "nn.init": ("Constant", "Normal", "Uniform", "fill", "xavier_normal"),
    "nn.heads": ("Heads",),
    "nn.linear": ("ColumnParallelLinear", "RowParallelLinear", "linear"),
    "nn.embedding": ("VocabParallelEmbedding",),
    "nn.norm": ("LayerNorm", "RMSNorm"),
    "nn.loss": ("vocab_parallel_cross_entropy",),
    "nn.dropout": ("Dropout",),
    "nn.rotary": ("RotaryEmbedding",),
    "nn.attention": ("ParallelSelfAttention", "attention_projections"),
    "nn.attention_core": (
        "AttentionCore",
        "CachedAttention",
        "DroppedAttention",
        "FlashAttention",
        "KeyValueCache",
        "ScaledDotProduct",
    ),
    "nn.attention_kernels": ("DocumentMasks", "flash_attention_available"),
    "nn.mlp": ("ParallelMLP", "ParallelSwiGLUMLP"),
    "data.config": ("BlendedDatasetConfig",),
    "data.types": ("BaseDataset", "MicroBatch"),
    "data.documents": ("TokenDocuments",),
    "data.memory_map": ("MemoryMapDataset", "MemoryMapDocuments"),
    "data.memory_map_builder": ("MemoryMapDatasetBuilder",),
    "data.megatron": ("MegatronDataset",),
    "data.file_dataset": ("FileDataset",),
    "data.open_documents": ("open_documents",),
    "data.blended": ("BlendedDataset",),
    "data.loader": ("DataLoader", "evaluation_batches"),
    "data.worker": ("leave_with_parent",),
    "data.sampler": ("BatchGeometry", "evaluation_steps", "items_of", "order_of", "positions_of"),
    "boxes": ("Box", "GlobalTensor"),
    "checkpoint.checkpointer": ("Checkpointer",),
    "checkpoint.communicator": ("StoreCommunicator",),
    "checkpoint.folders": ("Retention", "list_steps", "step_of"),
    "checkpoint.resume": ("ChangeRules",),
    "checkpoint.verify": ("read_manifest",),
    "profiler.config": ("ProfilerConfig",),
    "profiler.profiler": ("Profiler",),
    "pipeline.layer_spec": ("LayerSpec", "TiedLayerSpec"),
    "pipeline.loss": ("LossFunction", "LossOutput", "StepLoss"),
    "pipeline.module": ("ParallelModule",),
    "optimizer.config": ("AdamWConfig", "LossScalerConfig", "OptimizerConfig"),
    "optimizer.groups": ("GroupPattern", "ParameterGroup", "assign"),
    "optimizer.loss_scaler": ("LossScaler",),
    "optimizer.lr_schedule": ("LearningRateScheduler", "LearningRateSchedulerConfig"),
    "optimizer.optimizer": ("Optimizer", "StepReport"),
    "optimizer.rule": ("AdamW", "Pace", "UpdateRule"),
    "optimizer.shard": ("FlatShard", "Matrix"),
    "logging.config": ("LoggerConfig",),
    "logging.setup": ("configure_logging",),
    "trainer.config": ("TrainerConfig",),
    "training.data": ("TrainingData",),
    "training.learner": ("Learner",),
    "training.loading": ("Loading",),
    "training.recipe": ("Recipe",),
    "trainer.hooks": ("TrainerHook", "TrainerView"),
    "trainer.state": ("RunIdentity", "TrainState"),
    "trainer.trainer": ("Trainer",),
    "trainer.run": ("run_training",),
    "verify.layouts": ("Gap", "LayoutReport", "Parting", "single_process", "verify_layout"),
    "verify.session": ("Session",),
    "runner.main": ("runner_main",),
    "runner.process": ("run_process",),
    "runner.command": ("RunConfig", "run_in_processes", "run_training_process"),
    "runner.config": ("RunnerConfig", "RunnerType"),
}
_HOMES: Mapping[str, str] = {name: home for home, names in _NAMES.items() for name in names}

__all__ = list(_HOMES)  # the table above is the list


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
