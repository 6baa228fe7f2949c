"""The yardstick: the same language model in plain PyTorch, with fused AdamW and DistributedDataParallel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(hidden, 3 * hidden, bias=False)
        self.dense = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = rotate(q, angles), rotate(k, angles)
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        projected: Tensor = self.dense(out.transpose(1, 2).flatten(2))
        return projected


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = angles
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class Block(nn.Module):
    def __init__(self, hidden: int, heads: int, intermediate: int) -> None:
        super().__init__()
        self.norm_1 = nn.RMSNorm(hidden, eps=1e-5)
        self.attention = Attention(hidden, heads)
        self.norm_2 = nn.RMSNorm(hidden, eps=1e-5)
        self.gate = nn.Linear(hidden, intermediate, bias=False)
        self.up = nn.Linear(hidden, intermediate, bias=False)
        self.down = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attention(self.norm_1(x), angles)
        y = self.norm_2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class BareModel(nn.Module):
    cosine: Tensor
    sine: Tensor

    def __init__(
        self, *, vocabulary: int, hidden: int, layers: int, heads: int, intermediate: int, sequence: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads, intermediate) for _ in range(layers))
        self.norm = nn.RMSNorm(hidden, eps=1e-5)
        self.head = nn.Linear(hidden, vocabulary, bias=False)
        dimensions = hidden // heads
        frequencies = 10000.0 ** (-torch.arange(0, dimensions, 2) / dimensions)
        angles = torch.outer(torch.arange(sequence), frequencies)
        self.register_buffer("cosine", angles.cos().unsqueeze(1), persistent=False)
        self.register_buffer("sine", angles.sin().unsqueeze(1), persistent=False)

    def forward(self, token_ids: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(token_ids)
        for block in self.blocks:
            x = block(x, (self.cosine, self.sine))
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
