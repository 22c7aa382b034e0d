"""The network: a transformer whose output is projected to the vocabulary only where needed.

    h = net.features(ids, time)   # (B, T, C): everything up to the last normalisation
    z = net.logits(h[mask])       # (R, V): the head, only at positions that are scored or sampled

Blocks are pre-normalised, attend in both directions (or causally), and are conditioned on the
noise level by adaptive layer norm (DiT, Peebles & Xie 2023) unless built without time. With time
and rotary positions it is the network of SEDD (Lou et al. 2024) and MDLM (Sahoo et al. 2024).
"""

import math
import os
import shutil
import sys
import time
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any, Callable, Iterator

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from configurator import UserError

# Large CPU tensors in huge pages: Linux clears pages of 4 KB one by one, which took longer than the
# arithmetic of a loss over 50,257 ids (docs/performance.md). Read at PyTorch's first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

FREQUENCIES = 128  # cosines and as many sines of the noise level (SEDD)
ROTARY_BASE = 10000.0


class Norm(nn.Module):
    """Layer norm with a weight, in float32, then x * (1 + scale) + shift if given."""

    def __init__(self, n_embd: int, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd))
        self.bias = nn.Parameter(torch.zeros(n_embd)) if bias else None

    def forward(
        self, x: Tensor, shift: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        """x (B, T, C); shift, scale (B, 1 or T, C)."""
        x = x.float()
        if shift is None:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias)
        if self.bias is not None:
            shift = shift + self.bias * (1 + scale)
        # both factors are per channel: multiply the small ones first, touch (B, T, C) once
        return torch.addcmul(
            shift.float(), F.layer_norm(x, self.weight.shape), self.weight * (1 + scale.float())
        )


class TimeEmbedding(nn.Module):
    """Noise level (...) -> conditioning vector (..., C): sinusoids, then a two-layer MLP."""

    def __init__(self, cond_dim: int):
        super().__init__()
        self.fc = nn.Linear(2 * FREQUENCIES, cond_dim)
        self.proj = nn.Linear(cond_dim, cond_dim)

    def sinusoids(self, time: Tensor) -> Tensor:
        """(...) -> (..., 256): cosines of the 128 frequencies 10000^(-k/128), then their sines."""
        power = torch.arange(FREQUENCIES, device=time.device, dtype=torch.float32) / FREQUENCIES
        angle = time.float()[..., None] * torch.exp(-math.log(10000.0) * power)
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

    def forward(
        self,
        x: Tensor,
        rotation: tuple | None,
        mask: Tensor | None,
        cache: "Cache | None" = None,
        layer: int = 0,
    ) -> Tensor:
        """x (B, T, C); rotation (cos, sin) of shape (B or 1, T, 1, 1, r/2); mask as `features`;
        with a cache, the keys and values are those that it keeps for this layer."""
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
        if cache is not None:
            k, v = cache.store(layer, k, v)
        with torch.autocast(x.device.type, enabled=False):  # q, k, v have the dtype they should
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=self.causal and mask is None
            )  # (B, H, T, d)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021), halves paired: x (..., d), cos and sin (..., r/2), which
    turn the first r of the d channels."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1).to(x.dtype)


class Cache:
    """Keys and values of every block for B rows of S columns, so that a forward pass over some
    columns can attend to the others without computing them again. For no_grad only.

        cache = Cache(B, S)
        cache.at, cache.visible = slice(8, 12), 12  # ids of columns 8 to 11, which see 0 to 11
        h = net.features(ids, time, cache=cache)  # ids (B, 4); stores these columns in place

    Columns that were never stored must not be visible. `rows` (R,) int64 are the cache rows of a
    batch of R; None: all B of them.
    """

    def __init__(self, B: int, S: int):
        self.size = (B, S)
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}  # of a layer: keys, values (B, H, S, d)
        self.at, self.visible = slice(0, S), S
        self.rows: Tensor | None = None

    def move(self, at: slice, rows: Tensor | None) -> None:
        """The next pass is over these columns, which see all up to their end."""
        self.at, self.visible, self.rows = at, at.stop, rows

    def places(self, device: torch.device) -> Tensor:
        """(T,) int64: the columns of this pass."""
        return torch.arange(self.at.start, self.at.stop, device=device)

    def store(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (R, H, T, d) of the columns `at` -> those of all visible columns,
        (R, H, visible, d)."""
        _, H, T, d = k.shape
        B, S = self.size
        assert self.at.start + T == self.at.stop <= self.visible <= S, (T, self.at, S)
        if layer not in self.kept:
            self.kept[layer] = k.new_zeros(B, H, S, d), v.new_zeros(B, H, S, d)
        rows = slice(None) if self.rows is None else self.rows
        for kept, new in zip(self.kept[layer], (k, v), strict=True):
            kept[rows, :, self.at] = new
        keys, values = self.kept[layer]
        return keys[rows, :, : self.visible], values[rows, :, : self.visible]


class StaticCache(Cache):
    """A cache for a compiled causal network: one graph serves all passes, as the columns of a pass
    are a tensor, not numbers in Python. Rows are always all B; all S columns are visible, but for
    those that the causal mask hides."""

    def __init__(self, net: "Transformer", B: int, S: int):
        super().__init__(B, S)
        weight, size = net.head.weight, (B, net.n_head, S, net.n_embd // net.n_head)
        # as Attention computes them: in float32 on a CPU
        dtype = torch.float32 if weight.device.type == "cpu" else autocast_dtype(weight)
        new = partial(torch.zeros, size, device=weight.device, dtype=dtype)
        self.kept = {i: (new(), new()) for i in range(net.n_layer)}
        self.columns = torch.arange(S, device=weight.device)

    def move(self, at: slice, rows: None) -> None:
        self.columns = torch.arange(at.start, at.stop, device=self.columns.device)

    def places(self, device: torch.device) -> Tensor:
        return self.columns

    def store(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        for kept, new in zip(self.kept[layer], (k, v), strict=True):
            kept.index_copy_(2, self.columns, new)
        return self.kept[layer]


class MLP(nn.Module):
    """C -> inner -> C with the tanh form of GELU, or with ReLU."""

    def __init__(self, n_embd: int, inner: int = 0, activation: str = "gelu"):
        super().__init__()
        self.fc = nn.Linear(n_embd, inner or 4 * n_embd)
        self.proj = nn.Linear(inner or 4 * n_embd, n_embd)
        self.relu = activation == "relu"

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        return self.proj(F.relu(x) if self.relu else F.gelu(x, approximate="tanh"))


class Readout(nn.Module):
    """Features (..., C) -> n numbers (..., n), such as the logits of whether the text is complete:
    linear(h + W2 tanh(W1 norm(h))), the head of insertion models (ILM)."""

    def __init__(self, n_embd: int, n: int):
        super().__init__()
        self.norm = Norm(n_embd, bias=True)
        self.fc = nn.Linear(n_embd, 2 * n_embd)
        self.proj = nn.Linear(2 * n_embd, n_embd)
        self.linear = nn.Linear(n_embd, n, bias=False)
        nn.init.zeros_(self.linear.weight)  # equal logits at first

    def forward(self, h: Tensor) -> Tensor:
        h = h.float()
        return self.linear(h + self.proj(torch.tanh(self.fc(self.norm(h))))).float()


class Block(nn.Module):
    """h + attention(norm(h)), then h + mlp(norm(h)); with time, both are modulated and gated."""

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        causal: bool,
        dropout: float,
        inner: int = 0,
        activation: str = "gelu",
        bias: bool = False,
    ):
        super().__init__()
        self.norm1, self.attn = Norm(n_embd, bias), Attention(n_embd, n_head, causal)
        self.norm2, self.mlp = Norm(n_embd, bias), MLP(n_embd, inner, activation)
        self.dropout = dropout

    def forward(
        self,
        h: Tensor,
        modulation: Tensor | None,
        rotation: tuple | None,
        mask: Tensor | None,
        *cache: Any,
    ) -> Tensor:
        """h (B, T, C) float32; modulation (B, 6, 1 or T, C): shift, scale, gate of each branch;
        cache: nothing, or a `Cache` and the number of this block."""
        if modulation is None:
            h = h + self.drop(self.attn(self.norm1(h), rotation, mask, *cache))
            return h + self.drop(self.mlp(self.norm2(h)))
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(1)
        branch = self.attn(self.norm1(h, shift1, scale1), rotation, mask, *cache)
        h = torch.addcmul(h, gate1, self.drop(branch).to(h.dtype))
        branch = self.mlp(self.norm2(h, shift2, scale2))
        return torch.addcmul(h, gate2, self.drop(branch).to(h.dtype))

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Transformer(nn.Module):
    """Token ids (B, T) in [0, vocab_size) and a noise level (B,) -> features -> logits.

    cond_dim=0 builds it without time. block_size bounds T only where positions are learnt.
    n_inner, norm_bias, activation, final_norm and rotary_dims (rotated channels of a head; 0: all)
    are for published weights. heads: name -> number of outputs of a `Readout`.
    """

    gradient_checkpointing = False
    compiled = False  # by `compile_network`

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
        n_inner: int = 0,
        norm_bias: bool = False,
        activation: str = "gelu",
        final_norm: bool = True,
        rotary_dims: int = 0,
        heads: dict[str, int] | None = None,
    ):
        super().__init__()
        self.vocab_size, self.n_embd = vocab_size, n_embd
        self.n_layer, self.n_head = n_layer, n_head
        self.n_inner, self.turned = n_inner or 4 * n_embd, rotary_dims or n_embd // n_head
        self.rotary, self.causal = positions != "learned", causal
        self.embed = nn.Embedding(vocab_size, n_embd)
        self.place = nn.Embedding(block_size, n_embd) if positions != "rotary" else None
        self.time = TimeEmbedding(cond_dim) if cond_dim else None
        # shift, scale and gate of all blocks and of the last norm in one matrix: one small GEMM
        self.modulation = nn.Linear(cond_dim, (6 * n_layer + 2) * n_embd) if cond_dim else None
        kind = (n_embd, n_head, causal, dropout, n_inner, activation, norm_bias)
        self.blocks = nn.ModuleList(Block(*kind) for _ in range(n_layer))
        self.norm = Norm(n_embd, norm_bias) if final_norm else nn.Identity()
        self.head = nn.Linear(n_embd, vocab_size)
        self.heads = nn.ModuleDict({k: Readout(n_embd, n) for k, n in (heads or {}).items()})
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
        cache: Cache | None = None,
    ) -> Tensor:
        """ids (B, T) int64, time noise level (B,) or of each position (B, T), mask bool
        broadcastable to (B, T, T): may query attend to key, positions (B, T) int64 if not 0..T-1
        -> (B, T, C) float32. With a cache, ids are its columns `at` (and so are the positions),
        and the keys are its visible columns."""
        B, T = ids.shape
        places = torch.arange(T, device=ids.device) if cache is None else cache.places(ids.device)
        keys = T if cache is None else cache.visible
        if positions is None:
            assert self.place is None or keys <= self.place.num_embeddings, keys
            positions = places[None]  # (1, T)
        h = self.embed(ids)
        if self.place is not None:
            h = h + self.place(positions)
        modulation = self.modulate(time, B)  # (B, 6 n_layer + 2, 1 or T, C)
        rotation = self.rotation(positions) if self.rotary else None
        if mask is not None:
            mask = mask.unsqueeze(-3)  # the same for all heads
        if self.causal and (mask is not None or cache is not None):
            before = torch.arange(keys, device=ids.device) <= places[:, None]  # (T, keys)
            mask = before if mask is None else mask & before
        for i, block in enumerate(self.blocks):
            shifts = None if modulation is None else modulation[:, 6 * i : 6 * i + 6]
            kept = () if cache is None else (cache, i)
            h = self.run(block, h, shifts, rotation, mask, *kept)
        if modulation is None:
            return self.norm(h)
        return self.norm(h, *modulation[:, -2:].unbind(1))

    def run(self, block: nn.Module, *inputs: Any) -> Tensor:
        """The block, recomputed in the backward pass with gradient_checkpointing."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def modulate(self, time: Tensor | None, B: int) -> Tensor | None:
        assert (time is None) == (self.time is None), "time is given exactly if built with time"
        if time is None:
            return None
        m = self.modulation(self.time(time))  # (B, [T,] (6 n_layer + 2) C)
        return m.view(B, -1, 6 * self.n_layer + 2, self.n_embd).transpose(1, 2)

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) -> cos, sin, each (B, T, 1, 1, r/2)."""
        half = self.turned // 2
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
        body = self.n_layer * self.n_embd * (4 * self.n_embd + 2 * self.n_inner)
        body += self.vocab_size * self.n_embd
        return 6 * body + 12 * self.n_layer * self.n_embd * T


# ==================================================================================================
# What losses need: features at the scored places; the vocabulary without all logits at once
# ==================================================================================================


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """x on the device of the network, without waiting. A copy to a GPU from pageable memory would
    synchronise with it; from pinned memory it is queued."""
    if torch.device(device).type == "cuda" and not x.is_cuda:
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def features_at(
    net: Any,
    ids: Tensor,
    scored: Tensor,
    time: Tensor | None,
    mask: Tensor | None = None,
    **more: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of the network on ids (B, T) at the scored positions (B, T) bool -> (h (R, C) on the
    network's device, row (R,), column (R,)). `more` are further arguments of `features`.

    ids, scored, row and column are on the CPU, so that indexing never synchronises with a GPU.
    """
    device = net.head.weight.device
    row, col = scored.nonzero(as_tuple=True)
    more = {name: to_device(x, device) for name, x in more.items()}
    masks = [] if mask is None else [to_device(mask, device)]
    h = net.features(to_device(ids, device), time, *masks, **more)
    index = to_device(row * scored.shape[1] + col, device)
    return h.flatten(0, 1).index_select(0, index), row, col


@lru_cache(8)
def memory_of(device: torch.device) -> int:
    """Bytes of memory of a GPU, or of this machine (16 GiB if unknown)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if hasattr(os, "sysconf") and {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(os.sysconf_names):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 16 << 30


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """Rows of logits to compute at a time. In float32 they take 1/16 of a GPU's memory, which is
    usually enough for all, or 1/512 of a CPU's; plain autograd holds about four times as much. At
    least 128 rows, so that matrix products stay large."""
    share = 16 if device.type == "cuda" else 512
    return max(128, memory_of(device) // (4 * share * vocab_size))


def chunks(rows: int, vocab_size: int, device: torch.device) -> Iterator[slice]:
    """Slices of range(rows), `chunk_rows` long."""
    size = chunk_rows(vocab_size, device)
    return (slice(k, min(k + size, rows)) for k in range(0, rows, size))


def autocast_dtype(h: Tensor) -> torch.dtype:
    """The dtype of products with h on its device."""
    kind = h.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else h.dtype


def pad_rows(h: Tensor) -> Tensor:
    """h (R, C), padded with zero rows to a multiple of 64 in bfloat16 on a CPU, where PyTorch keeps
    a compiled kernel for every shape that it has seen, 2 MB for each (measured)."""
    pads = h.device.type == "cpu" and autocast_dtype(h) != torch.float32
    return F.pad(h, (0, 0, 0, -len(h) % 64)) if pads else h


def project(
    h: Tensor,
    weight: Tensor,
    bias: Tensor,
    banned: int | slice | None = None,
    rows: int | None = None,
) -> Tensor:
    """h (R, C), weight (V, C), bias (V,) -> logits (R, V), at least float32, or of the first `rows`
    only; -inf for `banned` ids, set in the bias, which saves a pass over the logits. On a GPU V is
    padded to a multiple of 64: with 50,257 columns no tensor core is used."""
    if banned is not None:
        is_banned = torch.zeros_like(bias, dtype=torch.bool)
        is_banned[banned] = True
        bias = bias.masked_fill(is_banned, -torch.inf)
    rows, V = len(h) if rows is None else rows, len(weight)
    if h.is_cuda and V % 64:
        weight, bias = F.pad(weight, (0, 0, 0, -V % 64)), F.pad(bias, (0, -V % 64))
    logits = F.linear(pad_rows(h), weight, bias)
    if logits.shape != (rows, V):  # a slice costs its backward pass a copy
        logits = logits[:rows, :V]
    return logits if logits.dtype == torch.float64 else logits.float()


def needs_grad(h: Tensor, head: Any) -> bool:
    """Do the features or the head need gradients?"""
    return torch.is_grad_enabled() and (h.requires_grad or head.weight.requires_grad)


class _Chunks(torch.autograd.Function):
    """Base of both functions below: gradients of the first three inputs (features, weight and bias)
    are computed together with the losses, so the backward pass only scales them."""

    @staticmethod
    def finish(ctx, grads, losses):
        ctx.grads = grads
        losses = torch.cat(losses)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx, scale, _):
        grads, ctx.grads = ctx.grads, None
        return *(g.mul_(scale) for g in grads), *[None] * (len(ctx.needs_input_grad) - 3)


class _ChunkedLoss(_Chunks):
    """Gradients of a sum of losses in chunks, each with its own forward and backward pass."""

    @staticmethod
    def forward(ctx, h, weight, bias, loss_fn, parts, banned, learn):
        grads = [torch.zeros_like(x, dtype=torch.float32) for x in (h, weight, bias) if learn]
        losses = [h.new_zeros(0)]
        for part in parts:
            with torch.set_grad_enabled(learn):
                leaves = [x.detach().requires_grad_(learn) for x in (h[part], weight, bias)]
                loss = loss_fn(project(*leaves, banned), part)
                losses.append(loss.detach())
                grad = torch.autograd.grad(loss.sum(), leaves) if learn else ()
            if learn:
                grads[0][part] = grad[0]
                grads[1] += grad[1]
                grads[2] += grad[2]
        return _Chunks.finish(ctx, grads, losses)


def projected_loss(
    loss_fn: Callable[[Tensor, slice], Tensor],
    h: Tensor,
    weight: Tensor,
    bias: Tensor,
    part: slice,
    banned: int | slice | None,
) -> Tensor:
    """loss_fn(logits, part) of the rows of a part, which are the first of h (R, C)."""
    return loss_fn(project(h, weight, bias, banned, part.stop - part.start), part)


def loss_rows(head: Any, device: torch.device) -> int:
    """Rows whose logits and gradients a loss has in memory at once: `chunk_rows`, or twice as many
    in one graph, which keeps no float32 copies of them."""
    return chunk_rows(len(head.weight), device) * (2 if hasattr(head, "projected_loss") else 1)


def chunked_loss(
    head: Any,
    h: Tensor,
    loss_fn: Callable[[Tensor, slice], Tensor],
    parts: list[slice] | None = None,
    banned: int | slice | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum () of loss_fn(logits (r, V), part) over the rows of h (R, C), and its results
    concatenated, detached. loss_fn gets the float32 logits of a chunk, which it may overwrite, and
    the slice of rows of the chunk; logits of `banned` ids are -inf. Only the logits of one chunk
    are in memory at a time: `loss_rows` rows, or one of the `parts`. Gradients are autograd's.
    head: weight (V, C) and bias (V,)."""
    if parts is None:
        size = loss_rows(head, h.device)
        parts = [slice(k, min(k + size, len(h))) for k in range(0, len(h), size)]
    if len(parts) == 1:  # no memory to save
        run = getattr(head, "projected_loss", projected_loss)  # or compiled
        losses = run(loss_fn, h, head.weight, head.bias, parts[0], banned)
        return losses.sum(), losses.detach()
    learn = needs_grad(h, head)
    return _ChunkedLoss.apply(h, head.weight, head.bias, loss_fn, parts, banned, learn)


class _CrossEntropyOnCPU(_Chunks):
    """Weighted cross entropy with its gradient, weight * (softmax - one-hot), computed in place of
    the logits of each chunk: the only hand-written gradient. It is faster than autograd for masked
    and left-to-right models with 50,257 ids (docs/performance.md)."""

    @staticmethod
    def forward(ctx, h, matrix, bias, target, weight, banned, dtype, learn):
        grads = [torch.zeros_like(x, dtype=torch.float32) for x in (h, matrix, bias) if learn]
        parts = list(chunks(len(h), len(matrix), h.device))
        w, losses = matrix.to(dtype), [h.new_zeros(0)]
        size = max((part.stop - part.start for part in parts), default=0)
        size += -size % 64 if dtype != torch.float32 else 0
        # one buffer for all chunks: clearing new pages takes as long as the arithmetic
        product = h.new_empty(size, len(matrix), dtype=dtype)
        logits = None if dtype == torch.float32 else torch.empty_like(product, dtype=torch.float32)
        for part in parts:
            rows, x = part.stop - part.start, pad_rows(h[part].to(dtype))
            y = torch.addmm(bias.to(dtype), x, w.t(), out=product[: len(x)])
            z = y if logits is None else logits[: len(x)].copy_(y)
            z[rows:] = 0
            z = z[:rows]
            if banned is not None:
                z[:, banned] = -torch.inf
            y0, scale = target[part, None], weight[part, None]
            at_target, top = z.gather(1, y0), z.amax(1, keepdim=True)
            total = z.sub_(top).exp_().sum(1, keepdim=True)  # a third of the time of logsumexp
            losses.append((scale * (top + total.log() - at_target))[:, 0])
            if learn:
                z.mul_(scale / total).scatter_add_(1, y0, -scale)
                grads[2] += z.sum(0)
                y = y if logits is None else y.copy_(logits[: len(x)])
                grads[0][part] = (y @ w)[:rows]
                if dtype == torch.float32:
                    grads[1].addmm_(y.t(), x)
                else:
                    grads[1] += y.t() @ x
        return _Chunks.finish(ctx, grads, losses)


def fuses_cross_entropy(h: Tensor) -> bool:
    """On CPUs only: on a GPU the fused function was never measured against plain code."""
    return h.device.type == "cpu" and h.dtype == torch.float32


def chunked_cross_entropy(
    head: Any, h: Tensor, target: Tensor, weight: Tensor, banned: int | slice | None = None
) -> tuple[Tensor, Tensor]:
    """weight * -log softmax(logits)[target] for features h (R, C), target and weight (R,) -> (sum
    (), per row (R,) detached), in nats. `banned` ids are left out of the softmax."""
    if fuses_cross_entropy(h):
        dtype = autocast_dtype(h)
        with torch.autocast("cpu", enabled=False):
            return _CrossEntropyOnCPU.apply(
                h, head.weight, head.bias, target, weight, banned, dtype, needs_grad(h, head)
            )

    def loss_fn(logits: Tensor, part: slice) -> Tensor:
        return weight[part] * F.cross_entropy(logits, target[part], reduction="none")

    return chunked_loss(head, h, loss_fn, banned=banned)


# ==================================================================================================
# Device and dtype
# ==================================================================================================


def pick_device(name: str) -> torch.device:
    """`auto` (CUDA if there is one, else the CPU) or an explicit name, which must exist. Apple's
    GPU is not supported: it has no float64, which exact draws need."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = [*(f"cuda:{i}" for i in range(gpus)), "cpu"]
    if name == "auto":
        name = devices[0]
    if name == "cuda" and gpus:
        name = "cuda:0"
    if name not in devices:
        raise UserError(f"device {name!r} is not available; this machine has {', '.join(devices)}")
    return torch.device(name)


def wants_compile(choice: str, device: torch.device) -> bool:
    """Whether to compile the network: `auto` is on CUDA only. Without a compiler, no, with one
    warning."""
    if choice == "false" or (choice == "auto" and device.type != "cuda"):
        return False
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    compiler = find_spec("triton") if device.type == "cuda" else any(filter(shutil.which, names))
    if not compiler:
        print("warning: no compiler found; running without --compile", file=sys.stderr)
    return bool(compiler)


def bucket(rows: int) -> int:
    """One of few numbers above `rows`, by at most a 32nd of it or 64: a multiple of 64, as fast
    matrix products want."""
    step = max(64, 1 << max(0, rows.bit_length() - 6))
    return (rows // step + 1) * step


def compile_network(net: Any, whole: bool = True) -> None:
    """Compile a network in place: no name of a parameter changes. A `Transformer` becomes one graph
    of all its blocks, and projection and loss another one, whose rows, of which every batch has
    another number, are padded to a `bucket`. A network of transformers, or with whole=False (for
    shards of FSDP, which are gathered block by block), is compiled block by block."""
    torch._dynamo.config.recompile_limit = 64  # with and without mask, gradients, dropout, ...
    if not (whole and isinstance(net, Transformer)):
        for block in net.blocks:
            block.compile()
        return
    graph = torch.compile(projected_loss, dynamic=True)

    def padded(loss_fn: Callable, h: Tensor, *inputs: Any) -> Tensor:
        return graph(loss_fn, F.pad(h, (0, 0, 0, bucket(len(h)) - len(h))), *inputs)

    net.compiled, net.features, net.head.projected_loss = True, torch.compile(net.features), padded
    for head in net.heads.values():
        head.compile(dynamic=True)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast: `auto` is bfloat16 on a GPU that has it, float32 anywhere else."""
    if name == "auto":
        cuda = device.type == "cuda"
        bfloat16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if bfloat16 else torch.float32
    return getattr(torch, name)


def autocast(name: str, device: torch.device) -> torch.autocast:
    """The autocast context for a dtype as in `pick_dtype`."""
    dtype = pick_dtype(name, device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def gemm_peak(device: torch.device, name: str) -> float:
    """FLOP/s of a large matrix product on this device, the best of 8: the 100 % of MFU."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.ones(n, n, device=device, dtype=pick_dtype(name, device))
    times = []
    for _ in range(8):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times)
