"""Where a model fails: how well it predicts tokens, by how much of the text was corrupted.

Rows are corrupted to some level, and for the lost tokens nats are averaged, and how often the most
probable token is right. The level depends on the objective:

    masked, bd3, mlm, sedd   the share of written tokens (of a block) that are MASK
    sedd, uniform graph      the share that noise has moved; the guess is the denoiser's
    ilm, idlm, it            the share that is missing; the guess is one token and its gap (it: a
                             token for each gap, or none), nats are those beyond log n, as any of n
                             missing tokens may come first (it: its loss, for each gap)
    flex                     the time that is left, 1 - t; the guesses are for what is MASK
    ar, xlnet                no noise: the place of the token, all before it known
"""

from typing import Any, Callable, Iterable, NamedTuple

import torch
from torch import Tensor

from autoregressive import Ordered
from checkpoint import Model
from corpus import Batch
from diffusion import BlockDiffusion, Masked, ScoreEntropy, denoise_weights
from insertion import IDLM, FlexMDM, Insertion, InsertionTransformer, drop_tokens, noised, pick
from model import chunks, features_at
from objective import Objective, generator, mask_k_tokens

PROBE = 7  # stream of randomness; train.py, sample.py, evaluate.py and evaluate.py have others
LEVELS = 10
LEAST = 1e-12  # of a probability: that of a score may be 0


class Guesses(NamedTuple):
    """Predictions at some level, all (R,) float64 on the CPU."""

    nats: Tensor
    right: Tensor
    level: Tensor  # 0..1, or a place


class Point(NamedTuple):
    level: float  # mean of it
    nats: float  # per guess
    right: float  # share of the guesses
    guesses: int


def judge_logits(model: Model, h: Tensor, target: Tensor, banned: Any) -> tuple[Tensor, Tensor]:
    """Features (R, C) and the true tokens (R,) -> nats (R,), and is it the best token (R,)?"""
    parts = [torch.zeros(2, 0, dtype=torch.float64)]
    for part in chunks(len(h), len(model.net.head.weight), h.device):
        z = model.net.logits(h[part]).double()
        z[:, banned] = -torch.inf
        wanted = target[part].to(z.device)
        cost = -z.log_softmax(1).gather(1, wanted[:, None])[:, 0]
        parts.append(torch.stack([cost, (z.argmax(1) == wanted).double()]).cpu())
    nats, right = torch.cat(parts, 1)
    return nats, right


def levels_of(rows: int, i: int, rng: torch.Generator) -> Tensor:
    """(rows,) float64, evenly spaced in interval `i` of LEVELS."""
    return (i + torch.rand(rows, generator=rng, dtype=torch.float64)) / LEVELS


# ---- one batch at one level --------------------------------------------------------------------


def probe_masked(model: Model, batch: Batch, i: int, rng: torch.Generator) -> Guesses:
    o: Masked = model.objective
    batch = o.cut(batch, None)
    written = o.target_mask(batch)
    masked, k, share = mask_k_tokens(written, levels_of(len(batch.ids), i, rng), rng)
    noisy = o.noisy(batch, masked, torch.ones(len(k)), -torch.log1p(-share))
    h, row, col = o.features(model.net, noisy)
    nats_right = judge_logits(model, h, batch.ids[row, col], o.mask_id)
    return Guesses(*nats_right, (k / written.sum(1).clamp(min=1))[row].double())


def probe_scores(model: Model, batch: Batch, i: int, rng: torch.Generator) -> Guesses:
    """For scores: the distribution of the clean token that they imply (Tweedie's rule)."""
    o: ScoreEntropy = model.objective
    x0, written, level = batch.ids, ~batch.prompt_mask, levels_of(len(batch.ids), i, rng)
    if o.graph.absorbing:
        scored, k, share = mask_k_tokens(written, level, rng)
        level, sigma = k / written.sum(1).clamp(min=1), -torch.log1p(-share)
        xt = x0.masked_fill(scored, o.mask_id)
    else:
        end = -torch.expm1(-o.noise.total(torch.tensor(1.0, dtype=torch.float64)))
        scored, sigma = written, -torch.log1p(-(end * level).clamp(min=1e-9))
        xt = o.perturb(x0, batch.prompt_mask, sigma, rng)
    h, row, col = features_at(
        model.net, xt, scored, o.condition(model.net, sigma, model.net.head.weight.device)
    )
    nats, right = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.float64)]
    for part in chunks(len(h), len(model.net.head.weight), h.device):
        x, s = xt[row, col][part].to(h.device), sigma[row][part].to(h.device)
        score = o.log_score(model.net, h[part], x, s).double().exp()
        p = denoise_weights(o.graph, x, score, s).clamp(min=0)
        wanted = x0[row, col][part].to(h.device)
        p_x0 = p.gather(1, wanted[:, None])[:, 0] / p.sum(1).clamp(min=LEAST)
        nats.append(-p_x0.clamp(min=LEAST).log().cpu())
        right.append((p.argmax(1) == wanted).double().cpu())
    return Guesses(torch.cat(nats), torch.cat(right), level[row].double())


def probe_insertion(model: Model, batch: Batch, i: int, rng: torch.Generator) -> Guesses:
    o: Insertion = model.objective
    ids, droppable, length = o.with_cls(batch)
    L = droppable.sum(1)
    n = 1 + (levels_of(len(ids), i, rng) * L).long().clamp(max=(L - 1).clamp(min=0))
    rows = drop_tokens(ids, droppable, length, pick(droppable, n, rng), o.pad_id)
    time, level = None, None
    if isinstance(o, IDLM):  # when so many are missing on average
        ends = o.noise.total(torch.tensor([o.noise.t_min, 1.0], dtype=torch.float64))
        time = o.noise.time_of(n.double().clamp(float(ends[0]), float(ends[1])))
        level = o.condition(model.net, time)
    _, h, number = o.gap_features(model.net, rows, level, rows.gaps)
    if isinstance(o, InsertionTransformer):
        return guesses_by_gap(model, rows, h, number)
    kept = L > 0
    cost = o.mean_missing(model.net, rows, level)[0] - n.double().log()
    right = best_is_missing(model, rows, h)
    return Guesses(cost[kept], right[kept], (n / L.clamp(min=1)).double()[kept])


def best_is_missing(model: Model, rows: Any, h: Tensor) -> Tensor:
    """(B,) float64: is the most probable pair of gap and token, over the editable gaps with
    features (G, C), one of the missing ones?"""
    best, token = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.int64)]
    for part in chunks(len(h), len(model.net.head.weight), h.device):
        z = model.net.logits(h[part]).double()
        z[:, model.objective.never] = -torch.inf
        top = z.max(1)
        best.append(top.values.cpu())
        token.append(top.indices.cpu())
    best, token = torch.cat(best), torch.cat(token)
    table = torch.full(rows.gaps.shape, -torch.inf, dtype=torch.float64)
    table[rows.gaps] = best
    tokens = torch.zeros(rows.gaps.shape, dtype=torch.int64)
    tokens[rows.gaps] = token
    col = table.argmax(1)
    pairs = zip(
        range(len(col)), col.tolist(), tokens.gather(1, col[:, None])[:, 0].tolist(), strict=True
    )
    missing = set(zip(rows.row.tolist(), rows.col.tolist(), rows.token.tolist(), strict=True))
    return torch.tensor([one in missing for one in pairs], dtype=torch.float64)


def guesses_by_gap(model: Model, rows: Any, h: Tensor, number: Tensor) -> Guesses:
    """Insertion Transformer: a prediction for each editable gap, a missing token or EOS."""
    at, token, weight = model.objective.targets(rows, rows.gaps, number)
    z = model.net.logits(h).double().cpu().log_softmax(1)
    nats = torch.zeros(len(z), dtype=torch.float64).index_add_(0, at, -weight * z[at, token])
    wanted = set(zip(at.tolist(), token.tolist(), strict=True))
    right = [(k, best) in wanted for k, best in enumerate(z.argmax(1).tolist())]
    level = (rows.n / rows.L.clamp(min=1)).double()[rows.gaps.nonzero()[:, 0]]
    return Guesses(nats, torch.tensor(right, dtype=torch.float64), level)


def probe_flex(model: Model, batch: Batch, i: int, rng: torch.Generator) -> Guesses:
    o: FlexMDM = model.objective
    rows, left = o.with_eos(batch), levels_of(len(batch.ids), i, rng).clamp(min=1e-6)
    x = noised(rows, *o.times(rows, rng), 1 - left, o.mask_id, o.pad_id)
    h, _ = o.scored_features(model.net, x, 1 - left)
    nats_right = judge_logits(model, h, x.target[x.masked], o.never)
    return Guesses(*nats_right, left[x.masked.nonzero()[:, 0]])


def probe_places(model: Model, batch: Batch, i: int, rng: torch.Generator) -> Guesses:
    """All positions in one pass, done at the first level only."""
    o: Ordered = model.objective
    read = o.corrupt(batch, None)
    h, row = o.features(model.net, read)
    place = torch.arange(len(row)) - torch.searchsorted(row, row) + 1
    return Guesses(*judge_logits(model, h, read.target, slice(o.tokens, None)), place.double())


PROBES: tuple[tuple[type[Objective], Callable, str], ...] = (
    (Masked, probe_masked, "share of the written tokens that are masked"),
    (ScoreEntropy, probe_scores, "share of the written tokens that are masked or moved"),
    (Insertion, probe_insertion, "share of the written tokens that are missing"),
    (FlexMDM, probe_flex, "time that is left, 1 - t"),
    (Ordered, probe_places, "place in what is written"),
)


# ---- all of them -------------------------------------------------------------------------------


def axis(objective: Objective) -> str | None:
    """Label of the level; None for an objective without a probe."""
    if isinstance(objective, BlockDiffusion):
        return "share of the written tokens of a block that are masked"
    return next((name for kind, _, name in PROBES if isinstance(objective, kind)), None)


@torch.no_grad()
def by_level(model: Model, batches: Iterable[Batch]) -> list[Point]:
    """Points in the order of their levels, LEVELS at most."""
    probe = next(call for kind, call, _ in PROBES if isinstance(model.objective, kind))
    places = isinstance(model.objective, Ordered)
    groups = [
        probe(model, batch, i, generator(PROBE, number, i))
        for number, batch in enumerate(batches)
        for i in range(1 if places else LEVELS)
    ]
    every = Guesses(*map(torch.cat, zip(*groups, strict=True)))
    if not len(every.level):
        return []
    width = max(1, -(-int(every.level.max()) // LEVELS)) if places else 1 / LEVELS
    # levels are the ends of intervals: a place, or all that could be lost
    group = ((every.level / width - 1e-9).ceil() - 1).clamp(min=0).long()
    parts = [Guesses(*(x[group == k] for x in every)) for k in group.unique()]
    return [Point(*(float(x.mean()) for x in (g[2], g[0], g[1])), len(g.nats)) for g in parts]
