"""Which masked places are written next: how many, which, and which are doubted again.

Pure functions; decode.py runs them. Scores are in [0, 1], 1 for certainty.

    MaskGIT    Chang et al. 2022, arXiv 2202.04200     LLaDA  Nie et al. 2025, arXiv 2502.09992
    Fast-dLLM  Wu et al. 2025, arXiv 2505.22618        Dream  Ye et al. 2025, arXiv 2508.15487
    ReMDM      Wang et al. 2025, arXiv 2503.00307
"""

import math
from typing import Callable, NamedTuple

import torch
from torch import Tensor

# ---- how many ----------------------------------------------------------------------------------


def _uniform(left: Tensor, step: int, steps: int) -> Tensor:
    """Equal shares, the larger ones first (LLaDA)."""
    return -(-left // (steps - step))


def _by_share(text: Callable[[Tensor], Tensor]) -> Callable:
    """As many as takes the share of written places from text(t) to text(s), in equal steps. In
    float32, as published (dllm): where that is half a place, its rounding decides."""

    def count(left: Tensor, step: int, steps: int) -> Tensor:
        masked = 1 - text(torch.tensor([steps - step, steps - step - 1]) / steps)
        moves = (1 - masked[1] / masked[0]).item()
        return (left.double() * moves).round().long() if step < steps - 1 else left

    return count


SCHEDULES: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "uniform": _uniform,
    "linear": _by_share(lambda t: 1 - t),
    "cosine": _by_share(lambda t: 1 - torch.cos(math.pi / 2 * (1 - t))),  # few at first (MaskGIT)
}


def quotas(count: Tensor, steps: int, schedule: str) -> Tensor:
    """count (B,) masked places -> (B, steps) int64: how many are written in each step."""
    left, parts = count, []
    for step in range(steps):
        parts.append(SCHEDULES[schedule](left, step, steps).clamp(max=left))
        left = left - parts[-1]
    return torch.stack(parts, 1)


def ranks(row: Tensor, value: Tensor) -> Tensor:
    """row (R,) ascending, value (R,) -> (R,) int64: 0 for the highest value of each row; ties go
    to the first."""
    by_value = value.argsort(descending=True, stable=True)
    order = by_value[row[by_value].argsort(stable=True)]  # by row, then by value
    sizes = torch.bincount(row)
    start = sizes.cumsum(0) - sizes
    rank = torch.arange(len(row), device=row.device) - start[row]
    return torch.empty_like(row).index_put((order,), rank)


def above_threshold(row: Tensor, score: Tensor, threshold: float) -> Tensor:
    """(R,) bool: places that score at least `threshold`, and the best of each row (Fast-dLLM)."""
    return (score >= threshold) | (ranks(row, score) == 0)


def within_factor(row: Tensor, score: Tensor, factor: float) -> Tensor:
    """(R,) bool: the r best of each row, as long as the r-th scores at least 1 - factor / (r + 1);
    always the best (Fast-dLLM)."""
    rank = ranks(row, score)
    fails = (score < 1 - factor / (rank + 2)) & (rank > 0)
    first = torch.full_like(torch.bincount(row), len(row))
    first = first.scatter_reduce(0, row, torch.where(fails, rank, len(row)), "amin")
    return rank < first[row]


# ---- which -------------------------------------------------------------------------------------


def confidence(logp: Tensor) -> Tensor:
    """logp (R, V) normalised -> probability of the best token (R,)."""
    return logp.amax(1).exp()


def margin(logp: Tensor) -> Tensor:
    """Probability of the best token less that of the second."""
    first, second = logp.topk(2).values.exp().unbind(1)
    return first - second


def entropy(logp: Tensor) -> Tensor:
    """e^-H, H the entropy in nats."""
    return torch.special.entr(logp.exp()).sum(1).neg().exp()


ORDERS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "random": None,  # needs no look at the tokens
    "confidence": confidence,
    "margin": margin,
    "entropy": entropy,
}

# ---- doubt -------------------------------------------------------------------------------------


class Doubt(NamedTuple):
    """ReMDM: shares of text at the ends of a step, and the probability of masking it again."""

    alpha_t: float
    alpha_s: float
    sigma: Tensor  # (B, T) float64

    def reveal(self) -> Tensor:
        """Probability (B, T) that a masked place is written in this step (ReMDM, eq. 4)."""
        kept = (1 - self.sigma) * self.alpha_t
        return (self.alpha_s - kept) / (1 - self.alpha_t)


def doubt(kind: str, t: float, s: float, eta: float, trust: Tensor) -> Doubt:
    """One step from t to s, the share of text 1 - t. trust (B, T) float64: the probability that
    each token had when it was written, infinite where it is MASK or given; eta scales."""
    if kind == "loop":
        return _loop(t, s, eta, trust)
    alpha_t, alpha_s = 1 - t, 1 - s
    most = min(1.0, (1 - alpha_s) / alpha_t) if alpha_t > 0 else 1.0
    sigma = torch.zeros_like(trust)
    if kind == "cap":
        sigma += min(eta, most)
    elif kind == "rescale":
        sigma += eta * most
    elif kind == "conf":
        sigma = trust.neg().softmax(1).nan_to_num() * most
    return Doubt(alpha_t, alpha_s, sigma)


LOOP_ON, LOOP_OFF, LOOP_ALPHA = 0.55, 0.05, 0.9  # ReMDM's loop on OpenWebText


def _loop(t: float, s: float, eta: float, trust: Tensor) -> Doubt:
    """Write down to a share of 0.9, then doubt and rewrite at that share, then finish."""

    def alpha(time: float) -> float:
        if time > LOOP_ON:
            return (1 - time) * LOOP_ALPHA / (1 - LOOP_ON)
        return LOOP_ALPHA if time > LOOP_OFF else 1 - time * (1 - LOOP_ALPHA) / LOOP_OFF

    looping = LOOP_OFF < t <= LOOP_ON
    sigma = torch.full_like(trust, eta if looping else 0.0)
    return Doubt(alpha(t), LOOP_ALPHA if looping else alpha(s), sigma)


ETA = {"cap": 0.008, "rescale": 0.015, "conf": 0.0, "loop": 0.02}  # ReMDM's choices
