"""GuppyLM: a small vanilla transformer, decoder-only, with a causal mask. All of it is in this file.

Left out on purpose, so that the core can be seen: GQA, RoPE, SwiGLU, KV cache, early exit.

Shapes: B batch, T time (position in the sequence), C channels (d_model), H heads, D channels of a head (C / H),
V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a model. The defaults are GuppyLM's: 8,726,016 parameters."""

    vocab_size: int = 4096  # small enough to look at, large enough that common words are one token
    context_length: int = 128  # tokens the model can see at once; fish don't write essays
    d_model: int = 384  # channels that carry a token through the network
    n_layers: int = 6
    n_heads: int = 6  # each head attends with d_model / n_heads = 64 channels
    d_ff: int = 768  # neurons of a feed-forward layer, each a pattern that switches on
    dropout: float = 0.0  # generated data can be had without end, so there is little to regularise

    def __post_init__(self):
        for name in ("vocab_size", "context_length", "d_model", "n_layers", "n_heads", "d_ff"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {getattr(self, name)!r}")
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} can't be divided among n_heads {self.n_heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout!r}")


class AttentionSteps(NamedTuple):
    """Every stage of one attention layer, in the order in which they are computed."""

    scores: torch.Tensor  # (B, H, T, T) how well each query (row) matches each key (column)
    scaled: torch.Tensor  # (B, H, T, T) divided by sqrt(D), so that softmax does not saturate
    masked: torch.Tensor  # (B, H, T, T) -inf where the key lies in the query's future
    weights: torch.Tensor  # (B, H, T, T) softmax of each row: positive, adding up to 1
    mixed: torch.Tensor  # (B, H, T, D) the values, averaged with these weights


class Attention(nn.Module):
    """Multi-head causal self-attention: the one place where positions exchange information."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_heads = config.n_heads
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)  # three projections in one matrix product
        self.out = nn.Linear(config.d_model, config.d_model)

    def split_heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Project x (B, T, C) to queries, keys and values, each (B, H, T, D)."""
        B, T, C = x.shape
        qkv = self.qkv(x)  # (B, T, C) @ (C, 3C) -> (B, T, 3C)
        qkv = qkv.view(B, T, 3, self.n_heads, C // self.n_heads)  # (B, T, 3, H, D)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # three of (B, H, T, D)
        return q, k, v

    def steps(self, x: torch.Tensor) -> AttentionSteps:
        """The attention that is taught, stage by stage, for x (B, T, C)."""
        q, k, v = self.split_heads(x)
        T, D = q.shape[-2:]
        scores = q @ k.transpose(-2, -1)  # (B, H, T, D) @ (B, H, D, T) -> (B, H, T, T)
        scaled = scores / math.sqrt(D)  # a sum of D products grows like sqrt(D)
        future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)  # True above the diagonal
        masked = scaled.masked_fill(future, -math.inf)
        weights = F.softmax(masked, dim=-1)
        mixed = weights @ v  # (B, H, T, T) @ (B, H, T, D) -> (B, H, T, D)
        return AttentionSteps(scores, scaled, masked, weights, mixed)

    def fused(self, x: torch.Tensor) -> torch.Tensor:
        """All the steps in one kernel, which never writes the T x T matrices to memory: (B, H, T, D)."""
        return F.scaled_dot_product_attention(*self.split_heads(x), is_causal=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        B, T, C = x.shape
        # `fused` is made for GPUs and long sequences; on a CPU, with rows of some 40 tokens, the steps train faster.
        mixed = self.steps(x).mixed if x.device.type == "cpu" else self.fused(x)  # (B, H, T, D)
        mixed = mixed.transpose(1, 2).reshape(B, T, C)  # (B, H, T, D) -> (B, T, H, D) -> (B, T, C): side by side
        return self.out(mixed)  # (B, T, C) @ (C, C) -> (B, T, C)


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between, applied to each position alone."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ff)
        self.down = nn.Linear(config.d_ff, config.d_model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        neurons = F.relu(self.up(x))  # (B, T, C) -> (B, T, d_ff): which patterns are there?
        return self.down(neurons)  # (B, T, d_ff) -> (B, T, C): what does each of them add?


class Block(nn.Module):
    """Communication (attention), then computation (feed-forward); each adds its result to the residual stream."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.d_model)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.d_model)
        self.ffn = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.dropout(self.attn(self.norm1(x)))  # (B, T, C)
        x = x + self.dropout(self.ffn(self.norm2(x)))  # (B, T, C)
        return x


class GuppyLM(nn.Module):
    """Token ids in, a score for every possible next token out."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.tok_emb = nn.Embedding(config.vocab_size, config.d_model)
        self.pos_emb = nn.Embedding(config.context_length, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.lm_head.weight = self.tok_emb.weight  # tied: reading a token and predicting it share one vector
        # Parts before the whole: a Linear is drawn at random before its Attention or FeedForward sets it to zero.
        self.apply(self._init_weights)
        # The residual stream begins as the token's own vector, with next to nothing of its position, which is learned.
        # The small gain of the last norm keeps the first logits small, so that the first predictions are nearly even.
        nn.init.normal_(self.tok_emb.weight, std=0.1)
        nn.init.normal_(self.pos_emb.weight, std=0.001)
        nn.init.constant_(self.norm.weight, 0.1)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, Attention | FeedForward):
            # Both write into the residual stream. From zero, each block begins as the identity and joins in as it
            # learns; begun at random, they first have to unlearn the noise that they add to each other's input.
            nn.init.zeros_((module.out if isinstance(module, Attention) else module.down).weight)

    @property
    def device(self) -> torch.device:
        return self.tok_emb.weight.device

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids (B, T) -> the residual stream before the first block (B, T, C)."""
        T = ids.shape[1]
        if T > self.config.context_length:
            raise ValueError(f"{T} tokens, but the model's context is {self.config.context_length}")
        return self.tok_emb(ids) + self.pos_emb.weight[:T]  # (B, T, C) + (T, C) -> (B, T, C)

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids (B, T) -> the last hidden states (B, T, C), ready for `lm_head`."""
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, ids: torch.Tensor, where: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids (B, T) -> logits (B, T, V): at each position, a score for each token that may come next.

        With `where` (B, T), the logits (N, V) of the N positions where it is True: the others cost the head nothing.
        """
        hidden = self.hidden(ids)  # (B, T, C)
        if where is not None:
            hidden = hidden[where]  # (B, T, C) -> (N, C)
        return self.lm_head(hidden)  # (..., C) @ (C, V) -> (..., V)

    @torch.no_grad()
    def attention(self, ids: torch.Tensor) -> list[AttentionSteps]:
        """What every layer's heads look at while reading ids (B, T): one AttentionSteps per layer."""
        x, layers = self.embed(ids), []
        for block in self.blocks:
            layers.append(block.attn.steps(block.norm1(x)))
            x = block(x)
        return layers

    def n_parameters(self) -> int:
        """How many numbers training can change; the tied matrix counts once."""
        return sum(p.numel() for p in self.parameters())
