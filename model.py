"""The network: a transformer whose output is projected to the vocabulary only where it is scored.

    h = net.features(ids, time)   # (B, T, C): everything up to the last normalisation
    z = net.logits(h[somewhere])  # (R, V): the head, on the rows that are scored or may change

Blocks are pre-normalised, attend in both directions (or causally), and are conditioned on the
noise level by adaptive layer norm (DiT, Peebles & Xie 2023) unless built without time. With time
and rotary positions it is the network of SEDD (Lou et al. 2024) and MDLM (Sahoo et al. 2024).
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

FREQUENCIES = 128  # cosines and as many sines of the noise level (SEDD)
ROTARY_BASE = 10000.0


class Norm(nn.Module):
    """Layer norm with a weight and no bias, in float32, then x * (1 + scale) + shift if given."""

    def __init__(self, n_embd: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd))

    def forward(
        self, x: Tensor, shift: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        """x (B, T, C); shift, scale (B, 1, C)."""
        x = x.float()
        if shift is None:
            return F.layer_norm(x, self.weight.shape, self.weight)
        # both factors are per channel: multiply the small ones first, touch (B, T, C) once
        return torch.addcmul(
            shift.float(), F.layer_norm(x, self.weight.shape), self.weight * (1 + scale.float())
        )


class TimeEmbedding(nn.Module):
    """Noise level (B,) -> conditioning vector (B, C): sinusoids, then a two-layer MLP."""

    def __init__(self, cond_dim: int):
        super().__init__()
        self.fc = nn.Linear(2 * FREQUENCIES, cond_dim)
        self.proj = nn.Linear(cond_dim, cond_dim)

    def sinusoids(self, time: Tensor) -> Tensor:
        """(B,) -> (B, 256): cosines of the 128 frequencies 10000^(-k/128), then their sines."""
        power = torch.arange(FREQUENCIES, device=time.device, dtype=torch.float32) / FREQUENCIES
        angle = time.float()[:, None] * torch.exp(-math.log(10000.0) * power)
        return torch.cat([angle.cos(), angle.sin()], -1)

    def forward(self, time: Tensor) -> Tensor:
        return F.silu(self.proj(F.silu(self.fc(self.sinusoids(time)))))


class Attention(nn.Module):
    """Multi-head self-attention by PyTorch's own scaled_dot_product_attention; no biases."""

    def __init__(self, n_embd: int, n_head: int, causal: bool):
        super().__init__()
        self.n_head, self.causal = n_head, causal
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.proj = nn.Linear(n_embd, n_embd, bias=False)

    def forward(self, x: Tensor, rotation: tuple | None, mask: Tensor | None) -> Tensor:
        """x (B, T, C); rotation (cos, sin) of shape (B or 1, T, 1, 1, d/2); mask as `features`."""
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head)
        # bfloat16 attention has a slow backward on a CPU
        if x.device.type == "cpu":
            qkv = qkv.float()
        if rotation is not None:
            qk, v = rotate(qkv[:, :, :2], *rotation), qkv[:, :, 2]
        else:
            qk, v = qkv[:, :, :2], qkv[:, :, 2]
        q, k, v = qk[:, :, 0].transpose(1, 2), qk[:, :, 1].transpose(1, 2), v.transpose(1, 2)
        with torch.autocast(x.device.type, enabled=False):  # q, k, v have the dtype they should
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=self.causal and mask is None
            )  # (B, H, T, d)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021), halves paired: x (..., d), cos and sin (..., d/2)."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


class MLP(nn.Module):
    """C -> 4C -> C with the tanh form of GELU."""

    def __init__(self, n_embd: int):
        super().__init__()
        self.fc = nn.Linear(n_embd, 4 * n_embd)
        self.proj = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.gelu(self.fc(x), approximate="tanh"))


class Block(nn.Module):
    """h + attention(norm(h)), then h + mlp(norm(h)); with time, both are modulated and gated."""

    def __init__(self, n_embd: int, n_head: int, causal: bool, dropout: float):
        super().__init__()
        self.norm1, self.attn = Norm(n_embd), Attention(n_embd, n_head, causal)
        self.norm2, self.mlp = Norm(n_embd), MLP(n_embd)
        self.dropout = dropout

    def forward(
        self, h: Tensor, modulation: Tensor | None, rotation: tuple | None, mask: Tensor | None
    ) -> Tensor:
        """h (B, T, C) float32; modulation (B, 6, C): shift, scale, gate of each branch."""
        if modulation is None:
            h = h + self.drop(self.attn(self.norm1(h), rotation, mask))
            return h + self.drop(self.mlp(self.norm2(h)))
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unsqueeze(2).unbind(1)
        branch = self.attn(self.norm1(h, shift1, scale1), rotation, mask)
        h = torch.addcmul(h, gate1, self.drop(branch).to(h.dtype))
        branch = self.mlp(self.norm2(h, shift2, scale2))
        return torch.addcmul(h, gate2, self.drop(branch).to(h.dtype))

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Transformer(nn.Module):
    """Token ids (B, T) in [0, vocab_size) and a noise level (B,) -> features -> logits.

    cond_dim=0 builds it without time. block_size bounds T only where positions are learnt.
    """

    def __init__(
        self,
        vocab_size: int,
        n_layer: int,
        n_head: int,
        n_embd: int,
        cond_dim: int = 0,
        positions: str = "rotary",
        block_size: int = 0,
        causal: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.vocab_size, self.n_embd, self.n_layer, self.n_head = (
            vocab_size,
            n_embd,
            n_layer,
            n_head,
        )
        self.rotary, self.causal = positions != "learned", causal
        self.embed = nn.Embedding(vocab_size, n_embd)
        self.place = nn.Embedding(block_size, n_embd) if positions != "rotary" else None
        self.time = TimeEmbedding(cond_dim) if cond_dim else None
        # shift, scale and gate of all blocks and of the last norm in one matrix: one small GEMM
        self.modulation = nn.Linear(cond_dim, (6 * n_layer + 2) * n_embd) if cond_dim else None
        self.blocks = nn.ModuleList(Block(n_embd, n_head, causal, dropout) for _ in range(n_layer))
        self.norm = Norm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Every block starts as the identity and every logit at 0: by gates of zero with time (as
        published), by residual matrices of zero without."""
        bound = 1 / math.sqrt(self.n_embd)
        for zero in (self.head, self.modulation):
            if zero is not None:
                nn.init.zeros_(zero.weight)
                nn.init.zeros_(zero.bias)
        if self.time is not None:
            nn.init.uniform_(self.embed.weight, -bound, bound)
        else:
            nn.init.normal_(self.embed.weight, std=0.5)
            for block in self.blocks:
                nn.init.normal_(block.attn.qkv.weight, std=bound)
                nn.init.normal_(block.mlp.fc.weight, std=bound)
                nn.init.zeros_(block.attn.proj.weight)
                nn.init.zeros_(block.mlp.proj.weight)
                nn.init.zeros_(block.mlp.proj.bias)
                nn.init.zeros_(block.mlp.fc.bias)
        if self.place is not None:
            nn.init.normal_(self.place.weight, std=0.5)

    def features(
        self,
        ids: Tensor,
        time: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """ids (B, T) int64, time (B,) noise level, mask bool broadcastable to (B, T, T): may query
        attend to key, positions (B, T) int64 if not 0..T-1 -> (B, T, C) float32."""
        B, T = ids.shape
        if positions is None:
            positions = torch.arange(T, device=ids.device)[None]  # (1, T)
        h = self.embed(ids)
        if self.place is not None:
            assert T <= self.place.num_embeddings, (T, self.place.num_embeddings)
            h = h + self.place(positions)
        modulation = self.modulate(time, B)  # (B, 6 n_layer + 2, C) or None
        rotation = self.rotation(positions) if self.rotary else None
        if mask is not None:
            mask = mask.unsqueeze(-3)  # the same for all heads
            if self.causal:
                mask = mask & torch.ones(T, T, dtype=torch.bool, device=ids.device).tril()
        for i, block in enumerate(self.blocks):
            own = None if modulation is None else modulation[:, 6 * i : 6 * i + 6]
            h = block(h, own, rotation, mask)
        if modulation is None:
            return self.norm(h)
        return self.norm(h, *modulation[:, -2:].unsqueeze(2).unbind(1))

    def modulate(self, time: Tensor | None, B: int) -> Tensor | None:
        assert (time is None) == (self.time is None), "built with time, called without, or reverse"
        if time is None:
            return None
        return self.modulation(self.time(time)).view(B, -1, self.n_embd)

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) -> cos, sin, each (B, T, 1, 1, d/2)."""
        half = self.n_embd // self.n_head // 2
        power = torch.arange(half, device=positions.device, dtype=torch.float32) / half
        angle = positions[..., None].float() * ROTARY_BASE**-power
        return angle.cos()[:, :, None, None], angle.sin()[:, :, None, None]

    def logits(self, h: Tensor) -> Tensor:
        """(..., C) -> (..., V)."""
        return self.head(h)

    def matrices(self) -> list[nn.Parameter]:
        """The weight matrices inside the blocks: what Muon is for."""
        return [p for p in self.blocks.parameters() if p.ndim == 2]

    def flops_per_token(self, T: int) -> int:
        """Training FLOPs per token, forward and backward, of a pass over T positions in which
        every position is projected to the vocabulary; multiply-add counts two."""
        body = 12 * self.n_layer * self.n_embd**2 + self.vocab_size * self.n_embd
        return 6 * body + 12 * self.n_layer * self.n_embd * T
