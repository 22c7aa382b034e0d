"""FlexMDM against enumeration, closed forms and brute force."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as any_of
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn

from checkpoint import build_network, build_objective
from configurator import Config, UserError
from corpus import Batch
from insertion import END, TIME_SCALE, FlexMDM, FlexRows, FlexSampler, deviance, noised
from objective import SampleOptions, categorical, generator

A, B, PAD, EOS, BOS, MASK = range(6)
SPECIALS = {"pad": PAD, "eos": EOS, "bos": BOS}
LETTERS = 2
LONGEST = 6


def flex(**options):
    return FlexMDM(5, SPECIALS, longest=LONGEST, **options)


# ---- a small world and its exact network ---------------------------------------------------------


class World:
    """Any distribution over texts of A and B, for each prompt: `p[prompt]` is that of `texts`."""

    def __init__(self, lengths, seed=0):
        rng = generator(seed)
        self.texts = [t for n in lengths for t in itertools.product(range(LETTERS), repeat=n)]
        p = torch.rand(LETTERS, len(self.texts), generator=rng, dtype=torch.float64) ** 2 + 0.02
        self.p = p / p.sum(1, keepdim=True)
        self.longest = max(lengths)

    def batch(self, which, prompt, width=LONGEST):
        """Rows: prompt, BOS | text, EOS, of the texts numbered (N,), prompts (N,)."""
        rows = [[int(c), BOS, *self.texts[i], EOS] for c, i in zip(prompt, which, strict=True)]
        length = torch.tensor([len(r) for r in rows])
        ids = torch.tensor([r + [PAD] * (width - len(r)) for r in rows])
        given = torch.arange(width) < 2
        return Batch(ids, given | (torch.arange(width) >= length[:, None]), length)

    def index(self, ids):
        """(N, T) finished canvases -> numbers (N,) of their texts, one more for all others."""
        number = {t: i for i, t in enumerate(self.texts)}
        texts = [tuple(r[2 : r.index(EOS)]) for r in ids.tolist()]
        return torch.tensor([number.get(t, len(number)) for t in texts])

    def posterior(self, prompt, seen):
        """Of MASK, A and B (c) seen, with k more missing: weight (K,), expected number in every gap
        (K, c + 1) and tokens (K, c, 2) times it, by going through texts and where `seen` is."""
        c, K = len(seen), self.longest + 1
        weight, gaps = torch.zeros(K).double(), torch.zeros(K, c + 1).double()
        tokens = torch.zeros(K, c, LETTERS).double()
        for text, p in zip(self.texts, self.p[prompt].tolist(), strict=True):
            for at in itertools.combinations(range(len(text)), c):
                if any(s not in (MASK, text[i]) for s, i in zip(seen, at, strict=True)):
                    continue
                k = len(text) - c
                ends = [-1, *at, len(text)]
                weight[k] += p
                gaps[k] += p * (torch.tensor(ends).diff() - 1)
                for j, i in enumerate(at):
                    tokens[k, j, text[i]] += p
        return weight, gaps, tokens


class ExactNetwork(nn.Module):
    """The posterior of a World: features are log p of the letters, -inf for other ids, and what the
    readout needs for the expected number of missing tokens to the left."""

    def __init__(self, world, objective):
        super().__init__()
        self.world, self.process, self.known = world, objective, {}
        self.time = nn.Identity()
        V = MASK + 1
        self.head = nn.Linear(V + 1, V, dtype=torch.float64)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(V, V + 1))
            self.head.bias.zero_()
        self.heads = {"gaps": lambda h: h[..., -1:]}

    def logits(self, h):
        return self.head(h)

    def features(self, ids, time, mask=None):
        out = torch.full((*ids.shape, MASK + 2), -1e9, dtype=torch.float64)
        distinct, which = ids.unique(dim=0, return_inverse=True)
        late = 1 - time.double() / TIME_SCALE
        for u, row in enumerate(distinct.tolist()):
            of = (which == u).nonzero()[:, 0]
            end = row.index(EOS)
            key = row[0], tuple(row[2:end])
            if key not in self.known:
                self.known[key] = self.world.posterior(*key)
            weight, gaps, tokens = self.known[key]
            share = late[of, None] ** torch.arange(len(weight))
            norm = (share @ weight).clamp(min=1e-300)  # leaps may go where no text is
            y = (share @ gaps) / norm[:, None]
            out[of, 2 : end + 1, -1] = (y / self.process.longest).expm1().log()  # softplus^-1
            p = torch.einsum("nk,kcv->ncv", share, tokens) / norm[:, None, None]
            out[of, 2:end, :LETTERS] = p.log().clamp(min=-1e9)
        return out.clamp(min=-1e9)


class Flat(nn.Module):
    """Every letter is as probable, and every gap lacks `mean` tokens."""

    time = None

    def __init__(self, mean):
        super().__init__()
        self.head = nn.Linear(1, MASK + 1)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.zero_()
        z = math.log(math.expm1(mean / LONGEST))
        self.heads = {"gaps": lambda h: torch.full((*h.shape[:-1], 1), z).double()}

    def logits(self, h):
        return self.head(h)

    def features(self, ids, time, mask=None):
        return torch.ones(*ids.shape, 1)


def network(
    gap_loss="expectation", vocab_size=9, specials=SPECIALS, width=12, seed=0, positions="rotary"
):
    """An untrained network with random outputs, and its objective."""
    cfg = Config(
        objective="flex", gap_loss=gap_loss, block_size=width, n_layer=1, n_head=2, n_embd=16,
        cond_dim=8, positions=positions,
    )  # fmt: skip
    torch.manual_seed(seed)
    objective = build_objective(cfg, {"vocab_size": vocab_size, "specials": specials})
    net = build_network(cfg, objective)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return net.eval(), objective


def rows_of(texts, prompts, width, ended=True):
    """Rows BOS text EOS with `prompts` given tokens each."""
    rows = [[BOS, *t, *([EOS] if ended else [])] for t in texts]
    length = torch.tensor([len(r) for r in rows])
    ids = torch.tensor([r + [PAD] * (width - len(r)) for r in rows])
    given = torch.arange(width) < torch.tensor(prompts)[:, None]
    return Batch(ids, given | (torch.arange(width) >= length[:, None]), length)


# ---- noising -------------------------------------------------------------------------------------


@settings(max_examples=40)
@any_of(st.integers(0, 10**6))
def test_noising_token_by_token(seed):
    rng = generator(seed)
    sizes = torch.randint(0, 6, (4,), generator=rng).tolist()
    texts = [torch.randint(6, 9, (n,), generator=rng).tolist() for n in sizes]
    batch = rows_of(texts, [1, 2, 1, 2], 9, ended=seed % 2 == 0)
    objective = FlexMDM(9, SPECIALS, longest=9)
    rows = objective.with_eos(batch)
    insert, unmask = objective.times(rows, rng)
    time = torch.rand(4, generator=rng).double()
    x = noised(rows, insert, unmask, time, objective.mask_id, PAD)
    for b, text in enumerate(texts):
        row, first = [BOS, *text, EOS], [1, 2, 1, 2][b]
        want, gaps, places, missing = [], [], [], 0
        for j, token in enumerate(row):
            free = j >= first and token != EOS
            if free and time[b] < insert[b, j]:
                missing += 1
                continue
            want.append(objective.mask_id if free and time[b] < unmask[b, j] else token)
            gaps.append(missing)
            places.append(j)
            missing = 0
        n = len(want)
        assert x.length[b] == n and x.ids[b, :n].tolist() == want
        assert x.gap[b].tolist() == gaps + [0] * (x.gap.shape[1] - n)
        assert x.source[b, :n].tolist() == places
        assert (x.ids[b, n:] == PAD).all() and not x.masked[b, n:].any()
        # open: to the left of, or behind, what is written; EOS is written unless it is given, and
        # one that the row lacks is nobody's
        end = len(row) - 1
        mine = range(first, end + 1 if seed % 2 == 0 else end)
        assert x.editable[b, :n].tolist() == [j in mine or j - 1 in mine for j in places]


def test_times_have_the_law_of_the_schedule():
    """At time t a token is missing with probability 1 - t, masked with -(1 - t) log(1 - t)."""
    n, objective = 40000, flex()
    rows = FlexRows(torch.zeros(1, n, dtype=torch.int64), None, None, None)
    insert, unmask = objective.times(rows, generator(0))
    for t in (0.1, 0.5, 0.9):
        for got, p in (
            ((insert > t), 1 - t),
            ((insert <= t) & (t < unmask), -(1 - t) * math.log(1 - t)),
        ):
            assert abs(float(got.double().mean()) - p) < 4 * math.sqrt(p * (1 - p) / n)
    assert unmask.max() < 1 and (unmask >= insert).all()


def test_what_is_given_is_never_noised_nor_open():
    net, objective = network()
    batch = rows_of([[6, 7, 8, 7], [6, 7, 8, 8]], [5, 3], 6)
    batch.prompt_mask[0] = True  # EOS as well
    seen, inner = [], net.features
    net.features = lambda ids, *a, **k: (seen.append(ids), inner(ids, *a, **k))[1]
    loss = objective.loss(net, objective.corrupt(batch, generator(0)))
    assert loss.count == objective.longest
    for ids in seen:
        assert torch.equal(ids[0, :6], batch.ids[0]) and torch.equal(ids[1, :3], batch.ids[1, :3])
    rows = objective.with_eos(batch)
    assert not rows.editable[0].any() and not rows.free[0].any()
    assert rows.editable[1].tolist() == [False] * 3 + [True] * 3 + [False]
    one = Batch(*(x[:1] for x in batch))
    loss = objective.loss(net, objective.corrupt(one, generator(0)))
    assert loss.count == 0 and float(loss.sum.detach()) == 0
    assert float(objective.bound(net, one, generator(0))) == 0


# ---- loss ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap_loss", ["expectation", "distribution"])
def test_loss_by_hand(gap_loss):
    """Value and gradients against a loop over tokens and gaps that reads like the paper."""
    net, objective = network(gap_loss)
    batch = rows_of([[6, 7, 8, 6, 8], [7], [], [8, 8, 7, 6]], [1, 1, 1, 3], 7)
    rows = objective.with_eos(batch)
    insert, unmask = objective.times(rows, generator(3))
    time = torch.tensor([0.3, 0.6, 0.2, 0.5], dtype=torch.float64)
    x = noised(rows, insert, unmask, time, objective.mask_id, PAD)
    assert x.masked.any() and (x.gap > 1).any()
    loss = objective.loss(net, x._replace(target_rows=4))
    assert loss.count == 4 * 12
    grads = torch.autograd.grad(loss.sum, list(net.parameters()), allow_unused=True)
    total = 0.0
    for b in range(4):
        n = int(x.length[b])
        h = net.features(x.ids[b : b + 1, :n], TIME_SCALE * time[b : b + 1].float())[0]
        readout = net.heads["gaps"](h)
        for j in range(n):
            w = 1 / (1 - float(time[b]))
            if x.masked[b, j]:
                z = net.logits(h[j])
                z = torch.cat([z[: objective.mask_id], z[objective.mask_id + 1 :]])
                total = total - w * z.log_softmax(0)[rows.ids[b, x.source[b, j]]]
            if x.editable[b, j]:
                k = int(x.gap[b, j])
                if gap_loss == "distribution":
                    total = total - w * readout[j].log_softmax(0)[k]
                else:
                    y = 12 * F.softplus(readout[j, 0])
                    total = total + w * (y - k + (k * (k / y).log() if k else 0))
    torch.testing.assert_close(loss.sum, total, rtol=1e-4, atol=1e-4)
    want = torch.autograd.grad(total, list(net.parameters()), allow_unused=True)
    for (name, _), g, v in zip(net.named_parameters(), grads, want, strict=True):
        assert g is not None, name
        torch.testing.assert_close(g, v, rtol=1e-3, atol=1e-3, msg=name)


def test_deviance():
    count = torch.arange(4.0)
    assert (deviance(count.clamp(min=1e-30), count).abs() < 1e-6).all()
    rate = torch.linspace(0.1, 6, 50)[:, None]
    assert (deviance(rate, count) >= 0).all()
    assert float(deviance(torch.tensor(2.0), torch.tensor(1.0))) == pytest.approx(1 - math.log(2))


def test_rows_are_independent_and_seeds_decide():
    net, objective = network()
    batch = rows_of([[6, 7, 8], [7, 8], []], [1, 2, 1], 6)
    other = rows_of([[6, 7, 8], [8, 8, 6], [7]], [1, 1, 1], 6)
    a, b = (objective.bound(net, x, generator(1), 2) for x in (batch, other))
    assert float(a[0]) == pytest.approx(float(b[0]), rel=1e-5) and float(a[1]) != float(b[1])
    losses = [
        float(objective.loss(net, objective.corrupt(batch, generator(i))).sum.detach())
        for i in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]


# ---- bound ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [range(3), range(1, 4), [2]])
def test_bound_of_the_exact_network_is_the_likelihood(lengths):
    """For every text and prompt, the mean of the estimate is -log p(text | prompt)."""
    world, objective, repeat = World(lengths), flex(), 2000
    net = ExactNetwork(world, objective)
    which = torch.arange(len(world.texts)).repeat_interleave(repeat)
    for prompt in range(LETTERS):
        batch = world.batch(which, torch.full_like(which, prompt))
        got = objective.bound(net, batch, generator(prompt), samples=3).view(-1, repeat)
        error = got.mean(1) + world.p[prompt].log()
        noise = got.std(1) / math.sqrt(repeat)
        assert (error.abs() < 4.5 * noise + 4e-3).all(), (error, noise)
        mean, spread = float(error.mean()), float(noise.square().sum().sqrt()) / len(error)
        assert abs(mean) < 4 * spread + 3e-3 and spread < 0.05, (mean, spread)


def test_bound_of_a_wrong_network_is_larger():
    world, objective = World(range(3)), flex()
    which = categorical(world.p[0].expand(6000, -1), torch.rand(6000, generator=generator(4)))
    batch = world.batch(which, torch.zeros_like(which))
    wrong = ExactNetwork(World(range(3), seed=7), objective)
    got = objective.bound(wrong, batch, generator(1), samples=2).mean()
    assert got > -(world.p[0] * world.p[0].log()).sum() + 0.05


@pytest.mark.parametrize("mean", [0.3, 2.0])
@pytest.mark.parametrize("L", [0, 3])
def test_bound_of_a_flat_network_in_closed_form(mean, L):
    """y in each of the 1 + L s gaps that there are on average at time s END; missing L (1 - s),
    masked -L (1 - s) log(1 - s); the integrals over s by Simpson's rule in -log(1 - s)."""
    objective, repeat = flex(), 20000 if L else 40000
    batch = rows_of([[A, B, A][:L]], [1], LONGEST)
    many = Batch(*(x.expand(repeat, *x.shape[1:]) for x in batch))
    got = objective.bound(Flat(mean), many, generator(1), samples=3)
    v = torch.linspace(0, 45, 90001, dtype=torch.float64)  # 1 - s = e^-v
    late = (-v).exp()
    ours = 1 / (END * late + 1 - END)
    lag = (1 / (END * late) / ours).log()
    missing, masked = L * late, L * late * v
    cost = missing * (lag - math.log(mean)) + masked * (lag + math.log(LETTERS))
    slope = END * ours * (mean * (1 + L * (1 - late)) + masked) - (missing + masked) / late
    inside = (slope + cost / late) * late  # d s = e^-v d v
    simpson = inside[0] + inside[-1] + 4 * inside[1:-1:2].sum() + 2 * inside[2:-1:2].sum()
    want = float(simpson * v[1] / 3)
    error = float(got.std()) / math.sqrt(repeat)
    assert abs(float(got.mean()) - want) < 4 * error + 1e-6, (got.mean(), want, error)


def test_rates_near_the_end():
    """Where the rate of the model is half of the other's: what the mean does not show."""
    objective = flex()
    rows = objective.with_eos(rows_of([[A, B, A, A]], [1], LONGEST))
    insert = torch.tensor([[0, 0.1, 2, 0.2, 2, 0, 0]], dtype=torch.float64)
    unmask = torch.tensor([[0, 0.3, 2, 2, 2, 0, 0]], dtype=torch.float64)
    left = torch.tensor([1 - END], dtype=torch.float64)
    x = noised(rows, insert, unmask, END - left, MASK, PAD)
    assert x.ids[:, :4].tolist() == [[BOS, A, MASK, EOS]]  # two are missing; three gaps
    got, rate, mean = objective.slope(Flat(0.7), x, left), 1 / (1 - END), 0.7
    want = rate / 2 * (3 * mean + 1) - 3 * rate
    want += rate * (2 * math.log(2 / mean) + math.log(2 * LETTERS))
    assert float(got.detach()) == pytest.approx(want, rel=1e-5)


# ---- samplers ------------------------------------------------------------------------------------


def canvas(prompts, width, after=()):
    """Canvases of BOS behind a prompt, one hole, and `after`."""
    n = len(prompts)
    ids = torch.zeros(n, width, dtype=torch.int64)
    ids[:, 0], ids[:, 1] = prompts, BOS
    given = (torch.arange(width) < 2).expand(n, -1).clone()
    for k, token in enumerate(reversed(after), 1):
        ids[:, -k], given[:, -k] = token, True
    return ids, given


def run(objective, net, ids, given, seed=0, **options):
    rng = generator(seed)
    return list(objective.sample(net, ids, given, rng, SampleOptions(**options)))


def distance(got, p):
    count = torch.bincount(got, minlength=len(p) + 1).double() / len(got)
    return float((count - F.pad(p, (0, 1))).abs().sum() / 2)


@pytest.mark.parametrize("sampler", FlexMDM.samplers)
def test_law_of_the_samplers(sampler):
    """Total variation from the world, for each of two prompts; sampling alone gives about 0.015.
    Confidence order is another law of texts, but not of lengths, where letters do not matter."""
    world, objective = World(range(3)), flex()
    if sampler == "confidence":
        size = torch.tensor([len(t) for t in world.texts])
        world.p = torch.tensor([0.2, 0.3, 0.5]).double()[size] / 2.0**size
        world.p = world.p.expand(LETTERS, -1)
    prompts = torch.arange(6000) % 2
    ids, given = canvas(prompts, 8)
    last = run(objective, ExactNetwork(world, objective), ids, given, sampler=sampler, steps=100)[
        -1
    ]
    got = world.index(last.ids)
    for prompt in range(LETTERS):
        assert distance(got[prompts == prompt], world.p[prompt]) < 0.04
    coarse = run(objective, ExactNetwork(world, objective), ids, given, sampler=sampler, steps=2)[
        -1
    ]
    assert (coarse.length - 3).double().mean() == pytest.approx(
        sum(float(world.p[:, i].mean()) * len(t) for i, t in enumerate(world.texts)), rel=0.15
    )  # of few steps as well


def test_law_where_the_length_is_known():
    world, objective = World([2]), flex()
    net = ExactNetwork(world, objective)
    ids, given = canvas(torch.zeros(6000, dtype=torch.int64), 5, [EOS])
    last = run(objective, net, ids, given, exact=True, steps=100)[-1]
    assert distance(world.index(last.ids), world.p[0]) < 0.035


def random_canvas(seed, width):
    """Given tokens are distinct, and no others are them: where they are is beyond doubt."""
    rng = generator(seed)
    n = int(torch.randint(2, width + 1, (), generator=rng))
    ids = torch.arange(10, 10 + width).expand(3, -1).clone()
    ids[:, 0] = BOS
    given = torch.rand(3, width, generator=rng) < torch.rand(3, 1, generator=rng)
    given[:, 0] = True
    ids[:, n - 1 :], given[:, n - 1 :] = PAD, True
    ids[:, n - 1] = EOS
    return ids, given


@settings(max_examples=30)
@any_of(st.integers(0, 10**6), st.sampled_from(FlexMDM.samplers), st.booleans())
def test_given_text_never_changes(seed, sampler, exact):
    width = 9
    net, objective = network(vocab_size=30, seed=seed % 3)
    ids, given = random_canvas(seed, width)
    frames = run(
        objective, net, ids, given, seed, sampler=sampler, exact=exact, steps=1 + seed % 5,
        capacity=0 if exact else width + seed % 12, banned=tuple(range(10, 10 + width)),
    )  # fmt: skip
    end = max(width, 0 if exact else width + seed % 12)
    for k, frame in enumerate(frames):
        assert frame.ids.shape == (3, end)
        for b in range(3):
            row, n = frame.ids[b].tolist(), int(frame.length[b])
            text = [i for i in ids[b][given[b]].tolist() if i not in (EOS, PAD)]
            assert row[n - 1] == EOS and all(i == PAD for i in row[n:])
            assert [i for i in row[: n - 1] if 10 <= i < 10 + width or i == BOS] == text
            # neighbours without a hole between them stay neighbours
            for j in range(1, width):
                if given[b, j - 1] and given[b, j] and int(ids[b, j]) not in (EOS, PAD):
                    assert row[row.index(ids[b, j]) - 1] == ids[b, j - 1]
            if k == len(frames) - 1:
                assert objective.mask_id not in row
                assert not {EOS, PAD, BOS} & set(row[1 : n - 1])
                if exact:
                    assert torch.equal(frame.ids[b][given[b]], ids[b][given[b]])
                if given[b].all():
                    assert torch.equal(frame.ids[b, :width], ids[b])
            fresh = frame.changed[b].nonzero()[:, 0].tolist()
            assert k or not fresh
            assert all(j < n - 1 and not 10 <= row[j] < 10 + width for j in fresh)


@pytest.mark.parametrize("sampler", FlexMDM.samplers)
def test_seeds_bans_and_steps(sampler):
    net, objective = network(vocab_size=9, width=20)
    ids, given = canvas(torch.full((16,), 6), 20)
    many = {"sampler": sampler, "steps": 6, "banned": (7,)}
    first, again = (run(objective, net, ids, given, **many) for _ in range(2))
    other = run(objective, net, ids, given, seed=1, **many)[-1].ids
    assert len(first) == len(again) <= 1 + 6 + 1 + 1
    for a, b in zip(first, again, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))
    assert not torch.equal(first[-1].ids, other)
    written = first[-1].ids[:, 2:]
    assert not (written == 7).any() and (written > EOS).any()
    for before, after in itertools.pairwise(first):
        assert (after.length >= before.length).all()
    greedy = [run(objective, net, ids, given, i, sampler=sampler, temperature=0.0) for i in (1, 1)]
    assert torch.equal(greedy[0][-1].ids, greedy[1][-1].ids)


def test_no_more_columns_than_positions():
    """Learnt positions end with the block: a full row and a full canvas have room in it."""
    net, objective = network(width=7, positions="both")
    assert net.place.num_embeddings == 7 + 1  # EOS, behind a row that has none
    full = rows_of([[6, 7, 8, 7, 6, 6]], [1], 7, ended=False)
    assert objective.loss(net, objective.corrupt(full, generator(0))).sum.isfinite()
    net.place = nn.Embedding.from_pretrained(net.place.weight[:7])
    ids, given = canvas(torch.full((64,), 6), 7)
    last = run(objective, net, ids, given, steps=20)[-1]
    assert last.length.max() == 7


class Wanted:
    """A Leaper on rows of one hole whose network sees nothing, and what its process says."""

    def __init__(self, mean_gap, **options):
        objective = FlexMDM(9, SPECIALS, longest=40)
        objective.mean_gap = lambda net, h: mean_gap(h)
        net = SimpleNamespace(head=SimpleNamespace(weight=torch.zeros(10, 1)), logits=lambda h: h)
        rows, width = options.pop("rows", 4000), options.pop("width", 6)
        ids = torch.full((rows, width), BOS)
        o = SampleOptions(sampler=options.pop("sampler", "tau"), **options)
        given = (torch.arange(width) < 1).expand(rows, -1)
        self.leaper = FlexSampler(objective, net, ids, given, generator(0), o)
        self.rows, self.objective = torch.arange(rows), objective


def test_insertions_are_poisson_and_all_or_nothing():
    leaper = (w := Wanted(lambda h: torch.full(h.shape[:-1], 5.0), width=6)).leaper
    assert (leaper.left == 4).all()  # of six places, BOS and EOS take two
    h = torch.zeros(len(w.rows), 2, 10)
    more = leaper.num_insertions(w.rows, h, 0.4, False)
    assert not more[:, 0].any()  # in front of BOS there is no hole
    p = [math.exp(-2) * 2**k / math.factorial(k) for k in range(5)]
    want = torch.tensor([p[0] + 1 - sum(p), *p[1:]])  # too many count as none
    got = torch.bincount(more[:, 1], minlength=5).double() / len(more)
    assert (got - want).abs().max() < 0.03 and len(got) == 5


def test_insertions_where_the_number_is_known():
    """Each of four comes with the chance, all of them at the last leap, to gaps as they lack."""
    mean_gap = lambda h: h[..., 0]  # noqa: E731
    leaper = (w := Wanted(mean_gap, width=5, exact=True)).leaper
    leaper.insert(w.rows, torch.tensor([0, 1]).expand(len(w.rows), -1), leaper.objective.mask_id)
    h = torch.tensor([0.0, 1.0, 3.0]).expand(len(w.rows), -1)[..., None]
    more = leaper.num_insertions(w.rows, h, 0.25, False)
    for got, p in ((more.sum(1), 0.25), (more[:, 2], 0.25 * 3 / 4)):
        assert float(got.double().mean()) == pytest.approx(3 * p, rel=0.06)
    more = leaper.num_insertions(w.rows, h, 0.25, True)
    assert (more.sum(1) == 3).all() and float(more[:, 1].double().mean()) == pytest.approx(
        0.75, 0.06
    )


def test_insertions_are_rounded_at_random():
    leaper = (w := Wanted(lambda h: torch.full(h.shape[:-1], 3.5), sampler="ancestral")).leaper
    more = leaper.num_insertions(w.rows, torch.zeros(len(w.rows), 2, 10), 0.5, False)[:, 1]
    assert set(more.tolist()) == {1, 2}
    assert float(more.double().mean()) == pytest.approx(1.75, abs=0.03)


@pytest.mark.parametrize("sampler", ["ancestral", "tau"])
def test_how_often_a_mask_is_unmasked(sampler):
    """With the chance, or if a Poisson number of that mean is one."""
    leaper = (w := Wanted(lambda h: h[..., 0], sampler=sampler)).leaper
    masked = torch.tensor([True, True, False, True]).expand(len(w.rows), -1)
    h = torch.zeros(len(w.rows), 4, 10)
    for chance in (0.1, 0.6, 1.0):
        fires = leaper.unmask_step(h, masked, chance)
        assert not fires[:, 2].any()
        rate = fires.double().mean(0)[[0, 1, 3]]
        p = chance * math.exp(-chance) if sampler == "tau" else chance
        assert (rate - p).abs().max() < 0.035


def test_confidence_takes_as_many_but_the_surest():
    leaper = (w := Wanted(lambda h: h[..., 0], sampler="confidence", banned=(7,))).leaper
    masked = torch.tensor([True, True, False, True]).expand(len(w.rows), -1)
    h = torch.zeros(len(w.rows), 4, 10)
    h[:, 0, 6], h[:, 1, 7], h[:, 2, 6], h[:, 3, 8] = 1.0, 9.0, 5.0, 2.0  # 7 is banned
    fires = leaper.unmask_step(h, masked, 0.6)
    assert not fires[:, 2].any()
    assert (fires[:, 0] <= fires[:, 3]).all() and (fires[:, 1] <= fires[:, 0]).all()
    p = 0.6
    assert float(fires[:, 3].double().mean()) == pytest.approx(1 - (1 - p) ** 3, abs=0.03)
    assert float(fires[:, 1].double().mean()) == pytest.approx(p**3, abs=0.03)


@settings(max_examples=40)
@any_of(st.integers(0, 10**6))
def test_growing_like_a_list(seed):
    """Again and again, so that buffers grow; holes are inherited, and rooms shrink."""
    rng, objective = generator(seed), FlexMDM(30, SPECIALS, longest=40)
    ids, given = random_canvas(seed, 9)
    o = SampleOptions(sampler="tau", capacity=60)
    leaper = FlexSampler(objective, None, ids, given, rng, o)
    texts = [x[:n].tolist() for x, n in zip(leaper.x, leaper.length, strict=True)]
    holes = [x[:n].tolist() for x, n in zip(leaper.hole, leaper.length, strict=True)]
    room, left = leaper.room.clone(), leaper.left.clone()
    rows = torch.tensor([0, 2])
    for _ in range(3):
        W = int(leaper.length.max())
        more = torch.randint(0, 4, (2, W), generator=rng) * (leaper.hole[rows, :W] >= 0)
        if ((leaper.left[rows] - more.sum(1)) < 0).any():
            continue
        leaper.insert(rows, more, objective.mask_id)
        for r, b in enumerate(rows.tolist()):
            times = more[r].tolist() + [0] * 99
            for old in (texts, holes):
                was, old[b] = old[b], []
                for j, value in enumerate(was):
                    new = objective.mask_id if old is texts else value
                    old[b] += [value] + [new] * times[j]
            left[b] -= sum(times)
    for b in range(3):
        n = int(leaper.length[b])
        assert leaper.x[b, :n].tolist() == texts[b] and leaper.hole[b, :n].tolist() == holes[b]
        assert (leaper.x[b, n:] == PAD).all() and (leaper.hole[b, n:] == -1).all()
        assert n == len(texts[b]) and leaper.left[b] == left[b]
        assert torch.equal(leaper.fresh[b, :n], leaper.x[b, :n] == objective.mask_id)
        for k in range(room.shape[1]):
            new = sum(t == objective.mask_id and h == k for t, h in zip(texts[b], holes[b]))  # noqa: B905
            assert leaper.room[b, k] == room[b, k] - new


# ---- mistakes ------------------------------------------------------------------------------------


def test_refusals():
    for specials in ({"pad": 1}, {"pad": 1, "eos": 1}, {"eos": 1}):
        with pytest.raises(UserError, match="eos"):
            FlexMDM(5, specials, longest=4)
    net, objective = network()
    batch = rows_of([[6, 7]], [0], 5)
    with pytest.raises(UserError, match="prompt"):
        objective.loss(net, objective.corrupt(batch, generator(0)))
    ids, given = canvas(torch.tensor([6]), 5)
    with pytest.raises(UserError, match="sampler"):
        run(objective, net, ids, given, sampler="serial")
    ids[:, 0] = objective.mask_id
    with pytest.raises(UserError, match="MASK"):
        run(objective, net, ids, given)
