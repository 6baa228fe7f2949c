"""Edits of layers for fine-tuning: a few trained parameters beside a frozen base, cut the way its layers are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core.lazy import load_on_use

if TYPE_CHECKING:
    from scaling.core.finetuning.added_bias import AddedBias as AddedBias
    from scaling.core.finetuning.bottleneck import Bottleneck as Bottleneck
    from scaling.core.finetuning.config import LoRaConfig as LoRaConfig
    from scaling.core.finetuning.config import LoRaModuleType as LoRaModuleType
    from scaling.core.finetuning.form import LowRankForm as LowRankForm
    from scaling.core.finetuning.input_dropout import InputDropout as InputDropout
    from scaling.core.finetuning.input_dropout import SampleNote as SampleNote
    from scaling.core.finetuning.low_rank import LowRank as LowRank
    from scaling.core.finetuning.merge import merge_edits as merge_edits
    from scaling.core.finetuning.scale import InputScale as InputScale
    from scaling.core.finetuning.scale import OutputScale as OutputScale
    from scaling.core.finetuning.soft_prompt import SoftPrompt as SoftPrompt
    from scaling.core.finetuning.table import LowRankEmbedding as LowRankEmbedding
    from scaling.core.finetuning.table import LowRankHead as LowRankHead
    from scaling.core.finetuning.table import TokenRows as TokenRows

load_on_use(__name__)
