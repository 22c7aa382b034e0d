"""Processes small enough to be enumerated, with their exact networks: what samplers and bounds of
every objective are tested against."""

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from diffusion import UDLM


class Distribution:
    """Any distribution over texts of length T on n tokens."""

    def __init__(self, n: int, T: int, seed: int = 0):
        rng = torch.Generator().manual_seed(seed)
        self.n, self.T = n, T
        self.texts = torch.tensor(list(itertools.product(range(n), repeat=T)))  # (n^T, T)
        p = torch.rand(len(self.texts), generator=rng, dtype=torch.float64) ** 2 + 0.02
        self.p = p / p.sum()

    def index(self, texts: Tensor) -> Tensor:
        """(N, T) -> (N,) positions in `texts`."""
        power = self.n ** torch.arange(self.T - 1, -1, -1)
        return (texts * power).sum(-1)

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        picked = torch.multinomial(self.p, count, replacement=True, generator=rng)
        return self.texts[picked]


class ExactNetwork(nn.Module):
    """The true score of a Distribution as a network: its features are its outputs.

    Absorbing: log P(x_i = y | the unmasked tokens) + log n, which needs no time and suits both
    parametrisations. Uniform: log p_sigma(y at i, rest) - log p_sigma(x), from the transition of
    every token but the first `prompt` ones, which are given and clean; for UDLM, plus a constant,
    log P(clean y at i | the noisy tokens but i), or given all of them if it predicts the denoiser.
    The head is the identity.
    In an order: log P(x_i = y | the tokens that the query sees), behind START or not.
    """

    compiled = False

    def __init__(self, data: Distribution, process, prompt: int = 0):
        """process: an objective, or a graph."""
        super().__init__()
        self.data, self.prompt = data, prompt
        self.graph = getattr(process, "graph", process)
        self.leave_one_out = isinstance(process, UDLM)
        self.predict = getattr(process, "predict", "")
        self.start, self.next = getattr(process, "start", None), 0
        self.mask_id = getattr(self.graph, "mask_id", None)
        if self.start is not None:  # START tells nothing, as MASK; a causal network is one ahead
            self.mask_id, self.next = self.start, int(process.network_kwargs["causal"])
        self.time = nn.Identity() if self.mask_id is None else None
        V = data.n + (self.mask_id is not None)
        self.head = nn.Linear(V, V, dtype=torch.float64)
        self.norm = nn.Identity()
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(V))
            self.head.bias.zero_()

    def logits(self, h: Tensor) -> Tensor:
        return self.head(h)

    def features(
        self,
        ids: Tensor,
        time: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Any = None,
        columns: Tensor | None = None,
    ) -> Tensor:
        positions = columns if positions is None else positions
        if self.mask_id is None:
            return self.norm(self.noised(ids, time))
        if self.start is not None:
            return self.norm(self.ordered(ids, mask, positions, cache))
        places = torch.arange(ids.shape[1]) if positions is None else positions[0]
        if cache is None:
            return self.norm(self.masked(places, mask, ids, places))
        # a cache of tokens: the only keys that the exact network needs
        keys, _ = cache.store(0, *2 * [ids[:, None, :, None].double()])
        places = torch.arange(cache.at.start, cache.at.stop)
        seen = torch.arange(cache.visible)
        return self.norm(self.masked(places, mask, keys[:, 0, :, 0].long(), seen))

    def ordered(
        self, ids: Tensor, mask: Tensor | None, columns: Tensor | None, cache: Any
    ) -> Tensor:
        """Of a causal network at its columns (B, T), of queries at `columns` (B, M) alone."""
        first = 0 if cache is None else cache.at.start
        if cache is not None:
            ids = cache.store(0, *2 * [ids[:, None, :, None].double()])[0][:, 0, :, 0].long()
        text = torch.arange(ids.shape[1]) - int((ids[:, 0] == self.start).all())  # of each column
        if mask is None:
            mask = torch.ones(len(text), len(text), dtype=torch.bool).tril()[None]
        last = self.data.T - 1  # beyond it nothing is asked
        own = (text + self.next).clamp(0, last)
        h = self.masked(own, mask, ids, text.clamp(0, last))[:, first:]
        return h if columns is None else h.gather(1, columns[..., None].expand(-1, -1, h.shape[2]))

    def masked(self, places: Tensor, mask: Tensor | None, keys: Tensor, seen: Tensor) -> Tensor:
        """The law of the tokens at places (T,), given those of keys (B, K), at places `seen` (K,),
        that are not MASK and that the mask (B or 1, T or 1, K) admits."""
        data = self.data
        clash = (keys[:, None] != data.texts[:, seen]) & (keys != self.mask_id)[:, None]
        may = torch.ones(1, 1, len(seen)) if mask is None else mask.float()
        may = may.expand(len(keys), len(places), -1)
        agrees = torch.einsum("bkj,btj->btk", clash.float(), may) == 0  # (B, T, n^T)
        one_hot = nn.functional.one_hot(data.texts[:, places], data.n + 1).double()
        p = torch.einsum("btk,k,ktv->btv", agrees.double(), data.p, one_hot)
        return (p / p.sum(-1, keepdim=True)).clamp(min=1e-300).log() + math.log(data.n)

    def noised(self, ids: Tensor, sigma: Tensor) -> Tensor:
        data, B = self.data, len(ids)
        every = torch.arange(data.n)
        kernel = self.graph.transition(every, sigma.double()[:, None])  # (B, n from, n to)
        # P(x_0 = text) prod_i P(x_i | text_i), with place t freed to any y
        own = torch.stack(
            [
                kernel[torch.arange(B)[:, None], data.texts[:, t], ids[:, t, None]]
                for t in range(data.T)
            ],
            -1,
        )  # (B, n^T, T)
        clean = (data.texts == ids[:, None]).double()
        own[..., : self.prompt] = clean[..., : self.prompt]
        out = []
        for t in range(data.T):
            rest = own.clone()
            rest[..., t] = 1
            freed = kernel[:, data.texts[:, t]]  # (B, n^T, n to)
            if self.leave_one_out:
                freed = nn.functional.one_hot(data.texts[:, t], data.n).double().expand(B, -1, -1)
            out.append(torch.einsum("k,bk,bky->by", data.p, rest.prod(-1), freed))
        p = torch.stack(out, 1)  # (B, T, n): joint probability with y at place t
        if self.leave_one_out:  # or the denoiser: times the probability of the token that stands
            to_own = kernel.transpose(1, 2)[torch.arange(B)[:, None], ids]  # (B, T, n from)
            return (p if self.predict == "leave_one_out" else p * to_own).log()
        here = p.gather(2, ids[..., None])
        return (p / here).log()


class Given(nn.Module):
    """A network whose outputs are given: they are the features, and the head is the identity."""

    time = None

    def __init__(self, outputs):
        super().__init__()
        V = outputs.shape[-1]
        self.outputs, self.head = outputs, nn.Linear(V, V, dtype=outputs.dtype)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(V))
            self.head.bias.zero_()

    def features(self, ids, time=None, mask=None):
        return self.outputs

    def logits(self, h):
        return self.head(h)


class Table(Given):
    """The network of the recorded masked runs: place i has the logits A[i, x_i] + B[x_(i-1)] +
    C[x_(i+1)] + mean_j G[x_j], neighbours around the ends, and time S if there is an S. `calls`
    keeps the ids of every call."""

    def __init__(self, A, B, C, G, S=None):
        super().__init__(A)  # (T, V, V) float64
        self.B, self.C, self.G, self.time, self.calls = B, C, G, S, []

    def features(self, ids, time=None, mask=None):
        self.calls.append(ids)
        h = self.outputs[torch.arange(ids.shape[1]), ids]
        h = h + self.B[ids.roll(1, 1)] + self.C[ids.roll(-1, 1)]
        h = h + self.G[ids].mean(1, keepdim=True)
        return h if time is None else h + time[:, None, None] * self.time


def total_variation(found: Tensor, data: Distribution) -> float:
    """Half the L1 distance of the frequencies of texts (N, T) from the distribution."""
    counts = torch.bincount(data.index(found), minlength=len(data.p)).double()
    return float((counts / len(found) - data.p).abs().sum() / 2)
