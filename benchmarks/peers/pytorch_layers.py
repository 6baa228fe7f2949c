"""The decoder of `bare_loop` with separate query, key and value layers, which can be split over ranks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from bare_loop import rotate
from torch import Tensor, nn

from peers.common import Job


class Block(nn.Module):
    cosine: Tensor
    sine: Tensor

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.head_size = job.hidden // job.heads
        self.norm_1 = nn.RMSNorm(job.hidden, eps=job.epsilon)
        self.query = nn.Linear(job.hidden, job.hidden, bias=False)
        self.key = nn.Linear(job.hidden, job.hidden, bias=False)
        self.value = nn.Linear(job.hidden, job.hidden, bias=False)
        self.dense = nn.Linear(job.hidden, job.hidden, bias=False)
        self.norm_2 = nn.RMSNorm(job.hidden, eps=job.epsilon)
        self.gate = nn.Linear(job.hidden, job.intermediate, bias=False)
        self.up = nn.Linear(job.hidden, job.intermediate, bias=False)
        self.down = nn.Linear(job.intermediate, job.hidden, bias=False)
        frequencies = 10000.0 ** (-torch.arange(0, self.head_size, 2) / self.head_size)
        angles = torch.outer(torch.arange(job.sequence), frequencies)
        self.register_buffer("cosine", angles.cos().unsqueeze(1), persistent=False)
        self.register_buffer("sine", angles.sin().unsqueeze(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_1(x)
        q, k, v = (layer(y).unflatten(-1, (-1, self.head_size)) for layer in (self.query, self.key, self.value))
        q, k = rotate(q, (self.cosine, self.sine)), rotate(k, (self.cosine, self.sine))
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        x = x + self.dense(out.transpose(1, 2).flatten(2))
        y = self.norm_2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Embedding, blocks, norm and head; a part of it has None for what other stages hold."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.embedding: nn.Module | None = nn.Embedding(job.vocabulary, job.hidden)
        self.blocks = nn.ModuleList(Block(job) for _ in range(job.layers))
        self.norm: nn.Module | None = nn.RMSNorm(job.hidden, eps=job.epsilon)
        self.head: nn.Module | None = nn.Linear(job.hidden, job.vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [rows, sequence, vocabulary], or hidden states from a part without the head."""
        if self.embedding is not None:
            x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return x if self.norm is None or self.head is None else self.head(self.norm(x))

    def part(self, stage: int, first: int) -> Decoder:
        """Return this, with the layers of the first or the second of two stages: `first` blocks are on the first."""
        self.blocks = self.blocks[first:] if stage else self.blocks[:first]
        if stage:
            self.embedding = None
        else:
            self.norm = self.head = None
        return self
