"""The llama architecture in PyTorch, as small as it can be said: RMS norm, RoPE, grouped-query attention, SwiGLU.

Parameters carry the names that they have in a GGUF file (dots for tensors, see `NeuralModel.tensors`), and
RoPE turns neighbouring pairs, as llama.cpp expects of this architecture: nothing is permuted on export.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.models.gguf_model import Array, Shape


class RMSNorm(nn.Module):
    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self.epsilon)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of neighbouring elements of the last axis by its angle."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, kv_width = shape.width, shape.kv_heads * shape.head_dim
        self.attn_norm, self.ffn_norm = RMSNorm(width, shape.rms_epsilon), RMSNorm(width, shape.rms_epsilon)
        self.attn_q = nn.Linear(width, width, bias=False)
        self.attn_k = nn.Linear(width, kv_width, bias=False)
        self.attn_v = nn.Linear(width, kv_width, bias=False)
        self.attn_output = nn.Linear(width, width, bias=False)
        self.ffn_gate = nn.Linear(width, shape.feed_forward, bias=False)
        self.ffn_up = nn.Linear(width, shape.feed_forward, bias=False)
        self.ffn_down = nn.Linear(shape.feed_forward, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self._attend(self.attn_norm(x), cos, sin)
        h = self.ffn_norm(x)
        fed: Tensor = self.ffn_down(functional.silu(self.ffn_gate(h)) * self.ffn_up(h))
        return x + fed

    def _attend(self, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = h.shape

        def by_head(projected: Tensor, heads: int) -> Tensor:
            return projected.view(batch, length, heads, self.shape.head_dim).transpose(1, 2)

        q = rotate(by_head(self.attn_q(h), self.shape.heads), cos, sin)
        k = rotate(by_head(self.attn_k(h), self.shape.kv_heads), cos, sin)
        v = by_head(self.attn_v(h), self.shape.kv_heads)
        shared = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        attended: Tensor = self.attn_output(mixed.transpose(1, 2).reshape(batch, length, width))
        return attended


class NeuralModel(nn.Module):
    """A decoder whose output matrix is its token embedding."""

    def __init__(self, shape: Shape, n_vocab: int) -> None:
        super().__init__()
        if shape.architecture != "llama" or not shape.tied:
            raise ValueError("only tied llama models are trained here")
        self.shape = shape
        self.token_embd = nn.Embedding(n_vocab, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = RMSNorm(shape.width, shape.rms_epsilon)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                embedding = parameter.shape == (n_vocab, shape.width)
                nn.init.normal_(parameter, std=0.02 if embedding else 0.7 / math.sqrt(parameter.shape[1]))

    def forward(self, tokens: Tensor, first_position: Tensor) -> Tensor:
        """Logits ``(batch, length, n_vocab)`` of ``tokens (batch, length)``; row i begins at ``first_position[i]``."""
        dim = self.shape.head_dim
        frequencies = self.shape.rope_freq_base ** (-torch.arange(0, dim, 2) / dim)
        positions = torch.arange(tokens.shape[1])[None] + first_position[:, None]
        angles = positions[..., None] * frequencies
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        x = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, cos, sin)
        return functional.linear(self.output_norm(x), self.token_embd.weight)

    def tensors(self) -> dict[str, Array]:
        """All weights as float32 arrays under their names in a GGUF file."""
        return {name: value.detach().numpy() for name, value in self.state_dict().items()}
