"""Book-keeping of masked diffusion: bounds by enumeration, and what the options mean."""

import itertools
import math
from collections import deque

import pytest
import torch
from exact import Distribution, ExactNetwork, total_variation

from corpus import Batch
from diffusion import NOISES, Affine, BlockDiffusion, Clamped, LogLinear, Masked, answer_counts
from model import Transformer
from objective import SampleOptions, generator

T = 3  # tokens of the enumerated texts


class Constant(torch.nn.Module):
    """The same logits at every place; keeps what it was shown."""

    time = None

    def __init__(self, logits):
        super().__init__()
        self.head, self.seen, self.masks = torch.nn.Linear(1, len(logits)), [], []
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.copy_(logits)

    def features(self, ids, time=None, mask=None):
        self.seen.append(ids)
        self.masks.append(mask)
        return torch.ones(*ids.shape, 1)

    def logits(self, h):
        return self.head(h)


def batch_of(ids, prompts=0, length=None):
    prompts = torch.as_tensor(prompts).expand(len(ids))
    given = torch.arange(ids.shape[1]) < prompts[:, None]
    whole = torch.full((len(ids),), ids.shape[1])
    return Batch(ids, given, whole if length is None else torch.tensor(length))


# ---- bounds --------------------------------------------------------------------------------------


def losses_of_subsets(net, text):
    """(subsets, cross entropy of the masked places given the others (2^T,))."""
    subsets = torch.tensor(list(itertools.product([False, True], repeat=T)))
    rows = text.expand(len(subsets), -1)
    z = net.features(rows.masked_fill(subsets, net.mask_id))[..., : net.data.n]
    nats = -z.log_softmax(2).gather(2, rows[..., None])[..., 0]
    return subsets, (nats * subsets).sum(1)


def enumerated(net, text, steps):
    """The bound of a sampler with so many steps: sum over its steps of the KL divergence of what
    it reveals, place i unmasked in step s with probability 1 / s (MDLM, eq. 8)."""
    subsets, nats = losses_of_subsets(net, text)
    k, total = subsets.sum(1), 0.0
    for s in range(1, steps + 1):
        chance = (s / steps) ** k * (1 - s / steps) ** (T - k)
        total += float((chance * nats).sum()) / s
    return total


def continuous(net, text):
    """The same for infinitely many: k of n masked, all sets alike, weight n / k."""
    subsets, nats = losses_of_subsets(net, text)
    k = subsets.sum(1)
    chance = torch.tensor([1 / math.comb(T, int(i)) for i in k])
    return float((chance * nats / k.clamp(min=1)).sum())


@pytest.mark.parametrize("seed", [0, 5])
def test_bounds_by_enumeration(seed):
    """Each estimate is 4 standard errors off at most, and many steps are the continuous bound,
    which is -log p for the true network (seed 0)."""
    data, process, rows = Distribution(3, T), Masked(3, None, LogLinear()), 4000
    net, text = ExactNetwork(Distribution(3, T, seed), process), data.texts[7]
    many, limit = batch_of(text.expand(rows, -1)), continuous(net, text)
    assert limit == pytest.approx(enumerated(net, text, 2000), rel=2e-3)
    for steps in (0, 1, 2, 5, 40):
        if steps:
            got = process.discrete_bound(net, many, generator(steps), steps, samples=2)
            want = enumerated(net, text, steps)
        else:
            got, want = process.bound(net, many, generator(0), samples=2), limit
        error = float(got.std()) / math.sqrt(rows)
        assert abs(float(got.mean()) - want) < 4 * error + 1e-6, steps
    if seed == 0:
        assert limit == pytest.approx(-math.log(data.p[7]), rel=1e-6)


def test_fewer_steps_cost():
    """On the data of the true network: from independent tokens down to the entropy."""
    data = Distribution(3, T)
    net, previous = ExactNetwork(data, Masked(3, None, LogLinear())), math.inf
    for steps in (1, 2, 4, 8, 64):
        each = [enumerated(net, text, steps) for text in data.texts]
        mean = float(torch.tensor(each) @ data.p.float())
        assert mean < previous
        previous = mean
    assert previous == pytest.approx(-float((data.p * data.p.log()).sum()), rel=0.01)


def test_likelihood_is_the_bound():
    """The same number by another protocol, where its counts are uniform over 1..n. With as many
    copies as here they are; halves go to even numbers otherwise."""
    data, process = Distribution(3, T), Masked(3, None, LogLinear())
    net, text = ExactNetwork(Distribution(3, T, 5), process), data.texts[11]
    given, rng = torch.tensor([True, False, False]), generator(1)
    got = [process.likelihood(net, text, given, rng, 64, 2) for _ in range(49)]
    many = batch_of(text.expand(4000, -1), 1)
    want, got = process.bound(net, many, rng, samples=2), torch.tensor(got)
    error = math.hypot(float(got.std()) / 7, float(want.std()) / math.sqrt(4000))
    assert abs(float(got.mean() + want.mean())) < 3 * error
    for n, copies in ((5, 3), (6, 9), (7, 7), (2, 2)):
        every = torch.cat([answer_counts(n, copies, k) for k in range(1, n + 1)])
        assert torch.equal(torch.bincount(every)[1:], torch.full((n,), copies))
    assert answer_counts(2, 16, 1).bincount().tolist() == [0, 7, 9]


# ---- what a loss is a mean of --------------------------------------------------------------------


def expected(process, ids, prompts, repeats=300):
    """Mean of the loss over many draws, and its standard error. Each row has its own stratum of t,
    so the rows come in either order."""
    net, rng, got = Constant(torch.tensor([0.0, 1.0, 2.0, 0.0])), generator(2), []
    for order in ([0, 1], [1, 0]):
        batch = batch_of(ids[order], torch.tensor(prompts)[order])
        losses = [process.loss(net, process.corrupt(batch, rng)) for _ in range(repeats)]
        got += [float(loss.sum.detach()) / loss.count for loss in losses]
    values = torch.tensor(got)
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def covered(noise):
    """Integral of weight times share over the times of training: 1 but for the ends."""
    t = noise.t_min + (1 - noise.t_min) * (torch.arange(100_000).double() + 0.5) / 100_000
    return float((noise.weight(t) * noise.mask_prob(t)).mean()) * (1 - noise.t_min)


TEXTS = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 2]])  # six are written, and a 2


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("kind", ["token", "answer", "sequence"])
def test_mean_of_the_loss(kind, noise):
    """By token: of all written tokens. By answer: of the rows' means. By sequence: of the rows'
    sums. With every schedule."""
    made = NOISES[noise]()
    mean, error = expected(Masked(3, None, made, loss_per=kind), TEXTS, [0, 5])
    assert 0.95 < covered(made) < 1.001
    nats = -torch.tensor([0.0, 1.0, 2.0]).log_softmax(0)
    six, one = 6 * float(nats[0]), float(nats[2])
    want = {"token": (six + one) / 7, "answer": (six / 6 + one) / 2, "sequence": (six + one) / 2}
    assert abs(mean - covered(made) * want[kind]) < 4 * error


def test_importance_has_the_same_mean_and_a_constant_weight():
    process = Masked(3, None, LogLinear(), by_importance=True)
    plain = expected(Masked(3, None, LogLinear()), TEXTS, [0, 0])
    got = expected(process, TEXTS, [0, 0])
    assert abs(plain[0] - got[0]) < 4 * math.hypot(plain[1], got[1])
    assert process.times(9, generator(0))[1].unique().numel() == 1


def test_metrics_are_the_plain_cross_entropy():
    """Sum and count over masked tokens, whatever the weights."""
    net = Constant(torch.zeros(4))
    for kind in ("token", "answer", "sequence"):
        process = Masked(3, None, Affine(), loss_per=kind)
        batch = batch_of(torch.zeros(8, 6, dtype=torch.int64))
        loss = process.loss(net, process.corrupt(batch, generator(0)))
        total, count = loss.metrics["ce"].tolist()
        assert count == (net.seen[-1] == 3).sum() > 0
        assert total == pytest.approx(count * math.log(3), rel=1e-5)


@pytest.mark.parametrize("kind, count", [("token", 4), ("answer", 1), ("sequence", 1)])
def test_rows_with_nothing_to_write_count_for_nothing(kind, count):
    process, batch = (
        Masked(3, None, Clamped(), loss_per=kind),
        batch_of(TEXTS[[0, 0, 0]], [6, 6, 2]),
    )
    assert (
        process.loss(Constant(torch.zeros(4)), process.corrupt(batch, generator(0))).count == count
    )


# ---- padding and length --------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    net = Transformer(4, n_layer=1, n_head=2, n_embd=8).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return net


def padded(width, fill=0):
    """Two rows of 5 and 3 tokens in `width` columns."""
    ids = torch.full((2, width), fill)
    ids[0, :5], ids[1, :3] = torch.tensor([1, 2, 0, 1, 2]), torch.tensor([2, 1, 0])
    return batch_of(ids, 1, [5, 3])


@pytest.mark.parametrize("padding, counts", [("learn", 14), ("crop", 8), ("ignore", 6)])
def test_padding(padding, counts):
    """learn: all columns; crop: those up to the longest row; ignore: tokens only."""
    process, net = Masked(3, None, LogLinear(), padding=padding), network()
    batch = padded(8)
    assert process.loss(net, process.corrupt(batch, generator(0))).count == counts
    assert int(process.target_mask(process.cut(batch, None)).sum()) == counts
    one = process.bound(net, batch, generator(1), samples=4)
    other = process.bound(net, padded(8, fill=2), generator(1), samples=4)
    assert torch.equal(one, other) == (padding == "ignore")
    if padding != "learn":  # columns beyond every row do not matter
        torch.testing.assert_close(one, process.bound(net, padded(5), generator(1), samples=4))
    seen, inner = [], net.features
    net.features = lambda ids, *rest: seen.append(ids) or inner(ids, *rest)
    for i in range(20):
        process.loss(net, process.corrupt(batch, generator(i)))
    hidden = torch.stack(seen) == 3
    assert hidden[..., 0].sum() == 0
    assert (hidden[:, 1, 3:].sum() == 0) == (padding == "ignore")


def test_random_lengths():
    """The share of batches that are cut, and uniform lengths from 1 on; a bound is never cut."""
    process = Masked(3, None, LogLinear(), random_length=0.25)
    batch, rng = batch_of(torch.zeros(2, 10, dtype=torch.int64)), generator(0)
    widths = [process.cut(batch, rng).ids.shape[1] for _ in range(4000)]
    counts = torch.bincount(torch.tensor(widths), minlength=11)[1:] / 4000
    assert float(counts[-1]) == pytest.approx(0.75 + 0.025, abs=0.022)
    assert ((counts[:-1] - 0.025).abs() < 0.0105).all()  # 4 standard errors
    assert process.cut(batch, None).ids.shape[1] == 10
    cut = next(c for c in iter(lambda: process.cut(batch, rng), None) if c.ids.shape[1] < 10)
    assert (cut.length == cut.ids.shape[1]).all() and cut.prompt_mask.shape == cut.ids.shape


# ---- samples of the true network -----------------------------------------------------------------


@pytest.mark.parametrize("remask", ["cap", "rescale", "conf", "loop"])
def test_doubt_keeps_the_distribution(remask):
    """ReMDM has the marginals of the process without doubt, for the true network and many steps:
    total variation of 10,000 draws, of which sampling alone gives 0.015."""
    data, process = Distribution(3, 2), Masked(3, None, LogLinear())
    ids = torch.zeros(10_000, 2, dtype=torch.int64)
    options = SampleOptions(sampler="ancestral", steps=60, remask=remask, eta=0.1)
    frames = process.sample(ExactNetwork(data, process), ids, ids > 0, generator(0), options)
    doubted = 0
    for frame in frames:
        doubted += int((frame.changed & (frame.ids == 3)).sum())
    assert total_variation(frame.ids, data) < 0.03
    assert doubted > 1000


class Told(Masked):
    """Keeps what the network is told, as a share of masked places."""

    def condition(self, net, sigma, device):
        self.shares.append(-torch.expm1(-sigma))
        return super().condition(net, sigma, device)


@pytest.mark.parametrize("block_length", [0, 3])
def test_what_is_told_of_the_noise(block_length):
    """In the ordered samplers the share of written places that are masked, in all blocks, as in
    training 0.999 of a block at most; in the reverse process that of its time."""
    process, net = Told(3, None, LogLinear()), Constant(torch.zeros(4))
    process.shares, ids = [], torch.zeros(2, 8, dtype=torch.int64)
    given = torch.arange(8) < torch.tensor([[1], [3]])
    options = SampleOptions(sampler="confidence", steps=99, block_length=block_length)
    *frames, _ = process.sample(net, ids, given, generator(0), options)
    for frame, values in zip(frames, process.shares, strict=True):
        left = (frame.ids == 3).sum(1)
        share = (left / (~given).sum(1))[left > 0].double()
        torch.testing.assert_close(values, share, rtol=0, atol=1.1e-3)
    process.shares, one = [], torch.zeros(1, 1, dtype=torch.int64)
    for seed in range(40):
        options = SampleOptions(sampler="ancestral", steps=4)
        deque(process.sample(net, one, one > 0, generator(seed), options), 0)
    grid = LogLinear().mask_prob(torch.linspace(1, 1e-5, 5).double())[:-1]
    got = torch.cat(process.shares)
    assert ((got[:, None] - grid).abs().amin(1) < 1e-6).all() and len(got.unique()) == 4


def test_a_clipped_weight_is_one_edit(monkeypatch):
    """docs/recipes.md: every masked objective that has a weight takes it from one method."""
    whole = Masked.weight
    monkeypatch.setattr(Masked, "weight", lambda self, t: whole(self, t).clamp(max=2.0))
    batch = batch_of(torch.zeros(64, 6, dtype=torch.int64))
    for process in (
        Masked(3, None, LogLinear()),
        BlockDiffusion(3, None, LogLinear(), length=3),
    ):
        noisy = process.corrupt(batch, generator(0))
        assert noisy.weight.max() == 2 and 1 <= noisy.weight.min() < 1.2
