"""What an objective is, and what all of them share: seeded randomness, safe categorical draws, and
the options of samplers.

    noisy = objective.corrupt(batch, rng)   # on the CPU, from integers alone
    loss = objective.loss(net, noisy)       # a sum in nats, on the device of the network
    objective.bound(net, batch, rng)        # (B,) nats: the same at evaluation's noise levels
    objective.sample(net, ids, prompt_mask, rng, options)  # frames of a canvas that is written

An objective owns the process (how text is destroyed and written again) and no parameters; the
network is handed to it. To add one, write a class and a line in checkpoint.py's OBJECTIVES.
"""

from dataclasses import dataclass, replace
from typing import Any, Callable, Collection, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from configurator import Config, UserError, one_of, require
from corpus import Batch


class Loss(NamedTuple):
    """Sums over a micro-batch; the caller divides once, over all micro-batches and ranks."""

    sum: Tensor  # () float32 nats, differentiable
    count: int  # divisor of the sum for a mean, such as the number of target positions
    metrics: dict[str, Tensor]  # name -> (2,) float32: sum and count, detached


class Frame(NamedTuple):
    """The canvas of a sampler after one step."""

    ids: Tensor  # (B, T) int64
    length: Tensor  # (B,) int64
    changed: Tensor  # (B, T) bool: written in this step
    draws: "Draws | None" = None  # drawn in this step, if options.candidates > 0


class Draws(NamedTuple):
    """Tokens and the distributions that they were drawn from, before temperature, top_k and
    top_p."""

    row: Tensor  # (D,) int64
    col: Tensor  # (D,) int64
    id: Tensor  # (D,) int64
    p: Tensor  # (D,) float64
    best: Tensor  # (D, K) int64: the most probable ids
    best_p: Tensor  # (D, K) float64: their probabilities, descending


class Objective:
    """The interface. `network_kwargs` are requirements of the network: causal, time (may it have a
    time input), vocab_size (extra symbols such as MASK included)."""

    network_kwargs: dict[str, Any]
    mask_id: int | None = None  # never left in a finished sample
    samplers: tuple[str, ...] = ()  # names of samplers, the default first
    bounded: bool = True  # has `bound`
    exact: bool = False  # `bound` is the likelihood itself, for any number of samples
    estimator: str = "variational bound"  # description of what `bound` estimates
    epsilon: float = 0.0  # share of the time range that `bound` leaves out at its ends
    inserts: bool = False  # tokens are inserted: a canvas has holes of unknown length
    crops_padding: bool = False  # rows end where their text does, in any batch
    # fields of Config that are for this objective, or for some; train.py refuses others of this
    # kind. None: not declared, so that all are taken
    config_fields: Collection[str] | None = None

    @classmethod
    def from_config(cls, cfg: Config, vocab_size: int, specials: dict[str, int]) -> "Objective":
        """The objective of a config for a corpus with these special ids. Raises UserError for
        options that do not go together."""
        return cls(vocab_size, specials)

    @property
    def criterion(self) -> str:
        """Name of the number that the validation split is judged by."""
        if not self.bounded:
            return "loss"
        return "nll" if self.exact else "bound"

    def target_mask(self, batch: Batch) -> Tensor:
        """(B, T) bool: target positions, by default all outside the prompt."""
        return ~batch.prompt_mask

    def corrupt(self, batch: Batch, rng: torch.Generator) -> Any:
        """The corrupted batch, a NamedTuple of tensors on the CPU: input of the network, scored
        positions, noise levels and weights. All draws are from `rng`, so a background thread can
        call it while the device works on the step before."""
        raise NotImplementedError

    def loss(self, net: Any, noisy: Any) -> Loss:
        """Training loss of what `corrupt` returned, on the device of the network."""
        raise NotImplementedError

    def bound(self, net: Any, batch: Batch, rng: torch.Generator, samples: int = 1) -> Tensor:
        """(B,) float64 nats: unbiased estimate of an upper bound on -log p(target | prompt)."""
        raise NotImplementedError

    def sampler(self, options: "SampleOptions") -> type["Sampler"]:
        """The class of options.sampler, which is one of `samplers`. An objective with a `sample` of
        its own needs none, and reads what every sampler does."""
        return Sampler

    def options_used(self, options: "SampleOptions") -> set[str]:
        """Names of the options that have an effect on samples beside these options."""
        sampler = self.sampler(options)
        return sampler.options_read(self, options) - sampler.without_effect(self, options)

    @torch.no_grad()
    def sample(
        self,
        net: Any,
        ids: Tensor,
        prompt_mask: Tensor,
        rng: torch.Generator,
        options: "SampleOptions",
    ) -> Iterator[Frame]:
        """ids (B, T) with `prompt_mask` (B, T) kept, the rest ignored and sampled; yields the
        start and then a frame per step. `rng` lives on the device of ids."""
        options = choose_sampler(self, options)
        refuse_unread(self, options)
        yield from self.sampler(options)(self, net, ids, prompt_mask, rng, options).frames()


# ---- randomness --------------------------------------------------------------------------------


def seed_of(*integers: int) -> int:
    """Integers -> one well-mixed 63-bit seed: (seed, stream, step, micro-batch) in that order."""
    value = 0x243F6A8885A308D3
    for i in integers:
        value = ((value ^ i) * 0x9E3779B97F4A7C15) % (1 << 64)
        value ^= value >> 31
        value = (value * 0xD6E8FEB86659FD93) % (1 << 64)
        value ^= value >> 32
    return value >> 1


def generator(*integers: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator that depends on the integers alone. Noise for training is drawn on the CPU
    on every machine: the draws are then the same, and nothing waits for the device."""
    return torch.Generator(device=device).manual_seed(seed_of(*integers))


def low_discrepancy_uniform(B: int, rng: torch.Generator) -> Tensor:
    """(B,) uniforms in [0, 1), one in each of B equal strata (MDLM's low-discrepancy sampler)."""
    return (torch.arange(B) + torch.rand(B, generator=rng)) / B


def mask_k_tokens(
    target_mask: Tensor, u: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Mask exactly k of the n target positions (B, T) of each row, k = floor(u n) + 1, u (B,) in
    [0, 1): less variance than masking positions independently. -> masked (B, T) bool, k (B,),
    mask_prob (B,) float64.

    mask_prob is the k-th smallest of n uniforms: its distribution given k if the weight of k masked
    positions in the bound is n / k.
    """
    n = target_mask.sum(1)
    v = torch.rand(target_mask.shape, generator=rng, dtype=torch.float64)
    index = (u * n).long().clamp(max=(n - 1).clamp(min=0))  # k - 1, (B,)
    mask_prob = v.masked_fill(~target_mask, 2.0).sort(1).values.gather(1, index[:, None])[:, 0]
    mask_prob = mask_prob.clamp(1e-9, 1 - 1e-9)  # 2.0 in rows without target
    return target_mask & (v <= mask_prob[:, None]), index + 1, mask_prob


def metric(total: Tensor, count: float) -> Tensor:
    """A metric of a loss, (2,) detached: the sum () over `count` things, and the count."""
    return torch.stack([total.detach(), torch.full_like(total, count)])


class NotFinite(UserError):
    """A loss, a gradient or a bound is not finite: not an error of the user's, so exit code 1."""

    code = 1


def require_finite(nats: Tensor, what: str) -> Tensor:
    """nats (N,) of texts as they are. Raises NotFinite where one is not finite: no mean of such
    numbers is printed or saved."""
    bad = (~nats.isfinite()).nonzero().flatten()
    if len(bad):
        raise NotFinite(
            f"{what} is not finite: {float(nats[bad[0]])} nats for row {int(bad[0])}, and "
            f"{len(bad)} of {len(nats)} rows are like that; nothing was written"
        )
    return nats


def pad_to_multiple(width: int, longest: int) -> int:
    """Columns of a batch whose longest row is `width` long, at most `longest`: `width` rounded up
    so that there are at most 32 widths. With a new shape in every step, bfloat16 on a CPU would
    keep kernels for each (`model.pad_rows`), and a compiled network be compiled for each."""
    step = max(16, longest // 256 * 16)
    return min(longest, -(-width // step) * step)


# ---- draws -------------------------------------------------------------------------------------


def categorical(weights: Tensor, u: Tensor) -> Tensor:
    """Draw by inverting the cumulative sum: weights (..., V) >= 0, not normalised; u (...) uniform
    in [0, 1), float64 -> ids (...) int64. Negative weights count as 0, and 0 is never drawn.

    One uniform and sums in float64: float32 Gumbel noise over a large vocabulary truncates the
    tails and lowers the temperature (Zheng et al. 2024, arXiv 2409.02908). First over sums of
    blocks of 256 weights, then within one block: a running sum over all V takes far longer.
    """
    V = weights.shape[-1]
    n = -(-V // 256)  # number of blocks
    size = -(-V // n)
    blocks = F.pad(weights, (0, n * size - V)).clamp_(min=0).unflatten(-1, (n, size))
    block, rest = _invert(blocks.sum(-1).double().cumsum(-1), u.double())
    chosen = block[..., None, None].expand(*block.shape, 1, size)
    place, _ = _invert(blocks.gather(-2, chosen)[..., 0, :].double().cumsum(-1), rest)
    return (size * block + place).clamp(max=V - 1)


def _invert(sums: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Index (...) of the first of the running sums (..., n) above u (...) times the last one, and
    how far between the sum before and that one u times the last lies, in [0, 1)."""
    last = sums[..., -1:]
    below = torch.nextafter(last, torch.zeros_like(last))  # u * last may round up to last
    level = torch.minimum(u[..., None] * last, below)
    place = torch.searchsorted(sums, level, right=True).clamp(max=sums.shape[-1] - 1)
    before = F.pad(sums, (1, 0)).gather(-1, place)
    return place[..., 0], ((level - before) / (sums.gather(-1, place) - before))[..., 0]


def gumbel_argmax(weights: Tensor, u: Tensor) -> Tensor:
    """Draw as SEDD's code does: argmax of weights / Exp(1), u uniforms of the shape of weights.

    The same distribution as `categorical`, with V draws instead of one; it replays recorded runs.
    """
    return (weights.double() / (1e-10 - (u.double() + 1e-10).log())).argmax(-1)


class Allowed(NamedTuple):
    """Which ids may be written, and where."""

    ids: Tensor  # (K, V) bool: K lists of ids
    at: Tensor | None = None  # (B, T) int64: the list of each place; None: the first, everywhere


@dataclass(frozen=True)
class SampleOptions:
    """How to sample. Each sampler names those that it reads (`Sampler.reads`)."""

    steps: int = 64  # of the reverse process, where it has a grid
    sampler: str = "auto"  # auto: the first of the objective's that reads what is not default
    temperature: float = 1.0  # 0 takes the most probable token
    top_k: int = 0  # 0 keeps all tokens
    top_p: float = 1.0  # smallest set of tokens that holds this probability; 0 keeps the best one
    unmask_schedule: str = "uniform"  # how many places per step, in the ordered samplers
    threshold: float = 0.9  # unmask_schedule=threshold: places that score so much
    factor: float = 1.0  # unmask_schedule=factor: the r best while they score 1 - factor / (r + 1)
    entropy_bound: float = 0.1  # unmask_schedule=entropy_bound: of the best but one, summed, nats
    block_length: int = 0  # tokens that are written before those to their right; 0: all at once
    cfg: float = 0.0  # guidance towards the prompt; 0 is none
    remask: str = "none"  # mask written tokens again: cap, rescale, conf, loop (ReMDM)
    eta: float | None = None  # how much; None: as published
    cache: str = "none"  # keys and values from the start of a block: prefix, dual
    draft: bool = False  # what is not given is a text to be corrected, not ignored
    draft_time: float = 0.1  # udlm: the time t from which a draft is denoised
    renoise: bool = True  # udlm: noise the draft to that time first; False: it is as noisy as it is
    corrector_steps: int = 0  # udlm: how often some tokens are drawn anew after each step
    corrector_places: int = 1  # udlm: how many of each row
    corrector_order: str = "margin"  # udlm: which: margin, those furthest behind the best; random
    stop: int | None = None  # id that ends a text; what comes after it is not sampled
    delay: tuple[int, ...] = ()  # ids that are written after all others, in confidence order
    banned: tuple[int, ...] = ()  # ids that are never written
    allowed: Allowed | None = None  # ids that may be written, by place; None: all but banned ones
    strict_p: bool = False  # top_p leaves out the token that crosses it (ILM's code)
    candidates: int = 0  # frames tell what tokens were drawn from: so many of the most probable
    gap: "SampleOptions | None" = None  # insertion: how a gap is chosen; None: with its token
    capacity: int = 0  # insertion: tokens of the longest text; 0: places of the canvas
    exact: bool = False  # insertion: every hole gets as many tokens as it has places
    stop_threshold: float | None = None  # insertion: stop when so sure; None: 0.9, or 0.5 by length
    stop_temperature: float = 1.0  # insertion: of the readout that stops
    delete: int = 0  # insertion: at most so many tokens are deleted again from a text
    length_temperature: float = 1.0  # idlm: of the readout of how many tokens are missing
    first_step_factor: bool = True  # idlm: the exact rate of the first token of a text
    # (net, rows (r,) of the canvas) -> the network that is called for them: tasks/mirror.py
    wrap: Callable[[Any, Any], Any] | None = None
    length: Tensor | None = None  # (B,) int64: where rows end that are shorter than T

    def __post_init__(self):
        require(self, "steps", self.steps >= 1, "at least 1")
        for key in ("temperature", "top_k", "block_length", "cfg", "factor", "entropy_bound"):
            require(self, key, getattr(self, key) >= 0, "at least 0")
        for key in ("top_p", "threshold"):
            require(self, key, 0 <= getattr(self, key) <= 1, "between 0 and 1")
        require(self, "draft_time", 0 < self.draft_time <= 1, "above 0 and at most 1")
        require(self, "delete", self.delete >= 0, "at least 0")
        require(self, "corrector_steps", self.corrector_steps >= 0, "at least 0")
        require(self, "corrector_places", self.corrector_places >= 1, "at least 1")
        for key, choices in CHOICES.items():
            require(self, key, getattr(self, key) in choices, one_of(choices))
        require(self, "eta", self.eta is None or 0 <= self.eta <= 1, "between 0 and 1")


# What these options may be. diffusion.py adds `unmask_schedule` and `remask`, the names of its
# registries.
CHOICES: dict[str, Collection[str]] = {
    "cache": ("none", "prefix", "dual"),
    "corrector_order": ("margin", "random"),
}


CHANGES = (  # options of which each has an effect with some samplers only
    *("steps", "unmask_schedule", "threshold", "factor", "entropy_bound", "block_length", "cfg"),
    *("remask", "eta", "cache", "delay", "gap", "stop_threshold", "stop_temperature"),
    *("length_temperature", "first_step_factor", "delete", "draft", "draft_time", "renoise"),
    *("corrector_steps", "corrector_places", "corrector_order"),
)


def choose_sampler(objective: Objective, options: SampleOptions) -> SampleOptions:
    """The options with `auto` resolved: the first of the objective's samplers that has a use for
    the most of what is not its default. Raises UserError for a sampler that is not known."""
    names, plain = objective.samplers, SampleOptions()
    if options.sampler == "auto":
        changed = {key for key in CHANGES if getattr(options, key) != getattr(plain, key)}
        each = [replace(options, sampler=name) for name in names]
        if not changed:
            return each[0]
        return min(each, key=lambda own: len(changed - objective.options_used(own)))
    if options.sampler not in names:
        raise UserError(f"sampler must be {one_of(names)} here, got {options.sampler!r}")
    return options


def refuse_unread(objective: Objective, options: SampleOptions) -> None:
    """Raise UserError for an option that changes the law of samples, and that this sampler would
    pass over."""
    read, plain = objective.sampler(options).options_read(objective, options), SampleOptions()
    law = ("unmask_schedule", "block_length", "cfg", "remask", "cache", "delay", "stop")
    for key in (*law, "draft", "corrector_steps", "delete"):
        if key not in read and getattr(options, key) != getattr(plain, key):
            name = "delay_eos" if key == "delay" else key
            raise UserError(f"sampler={options.sampler} has no use for {name}; leave it out")


class Sampler:
    """What samplers share: they draw tokens, and where options.candidates asks for it, they keep
    what from, for the next frame."""

    # options that have an effect, for some values of the others
    reads: tuple[str, ...] = (
        *("temperature", "top_k", "top_p", "strict_p", "banned", "allowed", "candidates"),
    )

    x: Tensor  # (B, T) int64: the canvas

    @classmethod
    def options_read(cls, objective: Objective, o: SampleOptions) -> set[str]:
        """`reads`, with those that depend on o.sampler."""
        return {*cls.reads}

    @classmethod
    def without_effect(cls, objective: Objective, o: SampleOptions) -> set[str]:
        """Options that are read, but change nothing beside the others of these options."""
        return set()

    def __init__(self, o: SampleOptions, rng: torch.Generator):
        self.o, self.rng = o, rng
        self.unplaced: list[tuple[Tensor, ...]] = []  # drawn, but not yet written
        self.draws: list[Draws] = []

    def forbid(self, z: Tensor, *place: Tensor) -> Tensor:
        """Logits z (R, V), in place: -inf at ids that may not be written. place: rows and columns
        (R,) of the canvas; samplers whose places move have none."""
        z[:, list(self.o.banned)] = -torch.inf
        if self.o.allowed is not None:
            ids, at = self.o.allowed
            ids = ids[:1] if at is None else ids[at[place]]
            z.masked_fill_(~ids[:, : z.shape[1]], -torch.inf)
        return z

    def sample_categorical(self, logits: Tensor) -> Tensor:
        """logits (R, V) -> ids (R,) of tokens that are written next."""
        ids = sample_categorical(logits, self.o, self.rng)
        self.keep(logits, ids)
        return ids

    def keep(self, logits: Tensor, ids: Tensor) -> None:
        """Tokens ids (R,) were drawn from logits (R, V)."""
        if self.o.candidates:
            p = logits.double().softmax(-1)
            best = p.topk(min(self.o.candidates, p.shape[-1]))
            self.unplaced.append((ids, p.gather(-1, ids[:, None])[:, 0], best.indices, best.values))

    def place(self, row: Tensor, col: Tensor) -> None:
        """What was drawn since the last call stands now at rows (R,) and columns (R,) of the
        canvas, in the order of the draws."""
        if self.unplaced:
            parts = [torch.cat(part) for part in zip(*self.unplaced, strict=True)]
            assert len(parts[0]) == len(row), (len(parts[0]), len(row))
            self.draws.append(Draws(row, col, *parts))
            self.unplaced = []

    def take_draws(self) -> Draws | None:
        """What was written since the last call."""
        taken, self.draws = self.draws, []
        return Draws(*map(torch.cat, zip(*taken, strict=True))) if taken else None

    def run(self) -> Iterator[None]:
        """Write the canvas x (B, T); yields after each step."""
        raise NotImplementedError

    def frames(self) -> Iterator[Frame]:
        """The canvas at first and after every step of `run`."""
        before = self.x.clone()
        length = torch.full_like(before[:, 0], before.shape[1])
        if self.o.length is not None:
            length = self.o.length
        yield Frame(before, length, torch.zeros_like(before, dtype=torch.bool))
        for _ in self.run():
            after = self.x.clone()
            yield Frame(after, length, after != before, self.take_draws())
            before = after


def process_logits(logits: Tensor, o: SampleOptions) -> Tensor:
    """logits (R, V) -> float64 log-weights (R, V) under temperature, top-k and top-p."""
    z = logits.double()
    if o.temperature == 0:
        best = z.argmax(-1, keepdim=True)
        return torch.full_like(z, -torch.inf).scatter_(-1, best, 0.0)
    z = z / o.temperature
    if 0 < o.top_k < z.shape[-1]:
        least = z.topk(o.top_k).values[:, -1:]
        z = z.masked_fill(z < least, -torch.inf)
    if o.top_p < 1:
        ordered, order = z.sort(-1, descending=True)
        p = F.softmax(ordered, -1)
        late = p.cumsum(-1) - (0 if o.strict_p else p)  # the token that crosses top_p stays, or not
        late = late > o.top_p if o.strict_p else late >= o.top_p
        late[:, 0] = False
        z = z.masked_fill(late.scatter(-1, order, late), -torch.inf)
    return z


def sample_categorical(logits: Tensor, o: SampleOptions, rng: torch.Generator) -> Tensor:
    """logits (R, V) -> ids (R,) int64 from softmax(logits), processed as the options say."""
    plain = o.temperature == 1 and not o.top_k and o.top_p == 1
    z = logits if plain else process_logits(logits, o)
    u = torch.rand(len(z), generator=rng, device=z.device, dtype=torch.float64)
    return categorical((z - z.amax(-1, keepdim=True)).exp_(), u)
