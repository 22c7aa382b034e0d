"""Processes small enough to be enumerated, with their exact networks: what samplers and bounds of
every objective are tested against."""

import itertools
import math

import torch
from torch import Tensor, nn


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
    every token but the first `prompt` ones, which are given and clean. The head is the identity.
    """

    def __init__(self, data: Distribution, graph, prompt: int = 0):
        super().__init__()
        self.data, self.graph, self.prompt = data, graph, prompt
        self.time = None if graph.absorbing else nn.Identity()
        self.head = nn.Linear(graph.states, graph.states, dtype=torch.float64)
        self.norm = nn.Identity()
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(graph.states))
            self.head.bias.zero_()

    def logits(self, h: Tensor) -> Tensor:
        return self.head(h)

    def features(self, ids: Tensor, time: Tensor | None = None) -> Tensor:
        out = self.masked(ids) if self.graph.absorbing else self.noised(ids, time)
        return self.norm(out)

    def masked(self, ids: Tensor) -> Tensor:
        data, hidden = self.data, ids == self.graph.mask_id
        agrees = (hidden[:, None] | (data.texts == ids[:, None])).all(-1)  # (B, n^T)
        weight = agrees * data.p
        one_hot = nn.functional.one_hot(data.texts, self.graph.states).double()
        p = torch.einsum("bk,ktv->btv", weight, one_hot)
        return (p / p.sum(-1, keepdim=True)).clamp(min=1e-300).log() + math.log(self.graph.n)

    def noised(self, ids: Tensor, sigma: Tensor) -> Tensor:
        data, B = self.data, len(ids)
        every = torch.arange(self.graph.n)
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
            out.append(torch.einsum("k,bk,bky->by", data.p, rest.prod(-1), freed))
        p = torch.stack(out, 1)  # (B, T, n): joint probability with y at place t
        here = p.gather(2, ids[..., None])
        return (p / here).log()


class Given(nn.Module):
    """A network whose outputs are given: they are the features, and the head is the identity."""

    time = None

    def __init__(self, outputs):
        super().__init__()
        V = outputs.shape[-1]
        self.outputs, self.head = outputs, nn.Linear(V, V)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(V))
            self.head.bias.zero_()

    def features(self, ids, time=None):
        return self.outputs

    def logits(self, h):
        return self.head(h)


def total_variation(found: Tensor, data: Distribution) -> float:
    """Half the L1 distance of the frequencies of texts (N, T) from the distribution."""
    counts = torch.bincount(data.index(found), minlength=len(data.p)).double()
    return float((counts / len(found) - data.p).abs().sum() / 2)
