"""Insertion models against enumeration: every text of a small world, every subset of its tokens.

Texts have no two equal tokens, so that each way to build one is one order of its tokens; ties are
tested on their own.
"""

import functools
import itertools
import math

import pytest
import torch
from hypothesis import given as cases
from hypothesis import strategies as st
from torch import nn

from checkpoint import build_network, build_objective, load
from configurator import ROOT, Config, UserError
from configurator import load as load_config
from corpus import Batch
from diffusion import Exponential, Geometric, Linear
from insertion import (
    IDLM,
    TIME_SCALE,
    Insertion,
    InsertionSampler,
    InsertionTransformer,
    drop_tokens,
    pick,
)
from objective import SampleOptions, generator
from pretrained import published
from pretrained.ilm import BLOCK, READOUT
from sample import SampleConfig, generate, sample_options
from sample import canvas as canvas_of

N = 3  # real tokens; then bos, eos, pad, and CLS of the objective
SPECIALS = {"bos": 3, "eos": 4, "pad": 5}
VOCAB, CLS = 6, 6
SMALL = ["--n_layer=1", "--n_head=2", "--n_embd=8", "--cond_dim=4"]
TEXTS = [list(t) for k in range(4) for t in itertools.permutations(range(N), k)]
WORLD = torch.Generator().manual_seed(0)
P = torch.rand(len(TEXTS), generator=WORLD, dtype=torch.float64) + 0.1
P = P / P.sum()


def batch_of(texts, width=6, prompt=0):
    """BOS and `prompt` tokens given, then the text, EOS and padding."""
    rows = [[3, *t, 4] for t in texts]
    ids = torch.tensor([r + [5] * (width - len(r)) for r in rows])
    length = torch.tensor([len(r) for r in rows])
    return Batch(ids, torch.arange(width).expand_as(ids) <= prompt, length)


def subsets(text, k):
    """Every way to keep k of the tokens: kept tokens, and (gap, token) of the others."""
    for kept in itertools.combinations(range(len(text)), k):
        missing = [i for i in range(len(text)) if i not in kept]
        pairs = [(sum(j < i for j in kept), text[i]) for i in missing]
        yield tuple(text[i] for i in kept), pairs


class Exact(nn.Module):
    """The posterior of the world as a network: logits at (gap, token), and the law of the number of
    missing tokens. `law(n, L, t)` is the probability that n of L are missing at time t; `pull(n, L,
    t)`, how much such a state counts for the token that comes back."""

    def __init__(self, law, pull, classes, timed=False):
        super().__init__()
        self.law, self.pull, self.classes = law, pull, classes
        self.time = nn.Identity() if timed else None
        self.head = nn.Linear(VOCAB + 1, VOCAB + 1, dtype=torch.float64)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(VOCAB + 1))
            self.head.bias.zero_()
        self.norm = nn.Identity()
        self.heads = {"stop": self.readout, "length": self.readout}
        self.kept = {}

    def logits(self, h):
        return self.head(h)

    def table(self, state, t):
        """Logits (len(state) + 1, V) at BOS and the tokens, and of the number of missing ones."""
        key = (state, t)
        if key not in self.kept:
            z = torch.zeros(len(state) + 1, VOCAB + 1, dtype=torch.float64)
            count = torch.zeros(4, dtype=torch.float64)
            for (n, L), (mass, pairs) in ways_to(state).items():
                weight = self.law(n, L, t) / math.comb(L, n)
                count[n] += weight * mass
                if n:
                    z += weight * self.pull(n, L, t) * pairs
            if self.classes == 2:
                count = torch.stack([count[0], count[1:].sum()])
            self.kept[key] = z.clamp(min=1e-300).log(), count.clamp(min=1e-300).log()
        return self.kept[key]

    def features(self, ids, time=None, mask=None):
        out = torch.zeros(*ids.shape, VOCAB + 1, dtype=torch.float64)
        for b, row in enumerate(ids.tolist()):
            assert row[:2] == [CLS, 3], row
            state = tuple(i for i in row[2:] if i < N)
            t = None if time is None else float(time[b]) / TIME_SCALE
            z, count = self.table(state, t)
            out[b, 1 : len(state) + 2] = z
            out[b, 0, : len(count)] = count
        return self.norm(out)

    def readout(self, cls):
        return cls[:, : self.classes]


@functools.cache
def ways_to(state):
    """(n, L) -> of the texts of L tokens that leave the state without n of them, over all subsets:
    the probability of the text, and how often each (gap, token) is missing times that."""
    got = {}
    for text, p in zip(TEXTS, P.tolist(), strict=True):
        for kept, pairs in subsets(text, len(state)):
            if kept == state:
                zero = torch.zeros(len(state) + 1, VOCAB + 1, dtype=torch.float64)
                mass, table = got.get((len(pairs), len(text)), (0.0, zero))
                for gap, token in pairs:
                    table[gap, token] += p
                got[len(pairs), len(text)] = (mass + p, table)
    return got


def exact_ilm():
    return Exact(lambda n, L, t: 1 / (L + 1), lambda n, L, t: 1 / n, 2)


def law_of_samples(net, stop):
    """Probability of every text under the sampler that draws from the network, by recursion over
    states; stop(state) is the probability to stop there."""
    reach, done = {(): 1.0}, {}
    for _ in range(4):
        later = {}
        for state, mass in reach.items():
            z, _ = net.table(state, None)
            done[state] = done.get(state, 0.0) + mass * stop(state)
            p = z[:, :N].flatten().softmax(0).view(-1, N)
            for gap, token in itertools.product(range(len(state) + 1), range(N)):
                new = (*state[:gap], token, *state[gap:])
                step = mass * (1 - stop(state)) * float(p[gap, token])
                later[new] = later.get(new, 0.0) + step
        reach = later
    return done


def stop_law(net):
    return lambda state: float(net.table(state, None)[1].softmax(0)[0]) if len(state) < 3 else 1.0


# ---- rows ----------------------------------------------------------------------------------------


@cases(st.data())
def test_dropped_tokens_can_be_put_back(data):
    """Inserting the missing tokens at their columns, leftmost first, restores the row."""
    L, prompt = data.draw(st.integers(0, 7)), data.draw(st.integers(0, 3))
    ids = torch.tensor([[CLS, *data.draw(st.lists(st.integers(0, 2), min_size=9, max_size=9))]])
    length = torch.tensor([1 + prompt + L]).clamp(max=10)
    droppable = (torch.arange(10) > prompt) & (torch.arange(10) < length)
    n = torch.tensor([data.draw(st.integers(0, int(droppable.sum())))])
    drop = pick(droppable[None], n, generator(data.draw(st.integers(0, 99))))
    assert drop.sum() == n
    rows = drop_tokens(ids, droppable[None], length, drop, 5)
    text = rows.ids[0, : rows.length[0]].tolist()
    for k, (col, token) in enumerate(zip(rows.col.tolist(), rows.token.tolist(), strict=True)):
        text.insert(col + 1 + k, token)
        assert rows.gaps[0, col]
    assert text == ids[0, : length[0]].tolist()


def test_every_number_and_every_subset_is_equally_likely():
    batch = batch_of([[0, 1, 2]] * 40000)
    rows = Insertion(VOCAB, SPECIALS).corrupt(batch, generator(0))
    share = torch.bincount(rows.n, minlength=4) / len(rows.n)
    assert (share - 0.25).abs().max() < 0.01
    one = rows.ids[rows.n == 2, 2]  # the one that is left
    assert (torch.bincount(one, minlength=3) / len(one) - 1 / 3).abs().max() < 0.015


def test_the_row_of_an_insertion_model():
    """CLS in front, no EOS, no padding; nothing given is ever dropped; gaps of the prompt are open
    in none of them."""
    objective = Insertion(VOCAB, SPECIALS)
    batch = batch_of([[0, 1, 2], [2, 1], [0]], prompt=1)
    for seed in range(20):
        rows = objective.corrupt(batch, generator(seed))
        for b, text in enumerate(([0, 1, 2], [2, 1], [0])):
            row = rows.ids[b, : rows.length[b]].tolist()
            assert row[:3] == [CLS, 3, text[0]] and not {4, 5} & set(row)
            assert not rows.gaps[b, :2].any() and rows.gaps[b, 2] == (len(text) > 1)
            assert rows.L[b] == len(text) - 1


def test_rows_without_a_beginning_are_refused():
    batch = batch_of([[0, 1]])
    open_rows = batch._replace(prompt_mask=torch.zeros_like(batch.prompt_mask))
    with pytest.raises(UserError, match="begin with a prompt"):
        Insertion(VOCAB, SPECIALS).corrupt(open_rows, generator(0))
    with pytest.raises(UserError, match="pad id"):
        Insertion(VOCAB, {})


# ---- loss and bound of ilm -----------------------------------------------------------------------


def test_loss_is_the_mean_over_numbers_and_subsets():
    """Against a sum written out by hand, with any network: here, one that is random."""
    net = exact_ilm()
    net.table = lambda state, t: random_table(state)
    objective = Insertion(VOCAB, SPECIALS, stop_weight=0.3, class_weight=0.8)
    text = [2, 0, 1]
    want = 0.0
    for n in range(4):
        ways = list(subsets(text, 3 - n))
        for kept, pairs in ways:
            z, count = random_table(kept)
            logp = z.flatten().log_softmax(0).view(z.shape)
            ce = -sum(logp[g, v] for g, v in pairs) / max(1, n)
            stop = -count[:2].log_softmax(0)[int(n > 0)] * 0.3 * (0.8 if n == 0 else 0.2)
            want += (ce + stop) / len(ways) / 4
    loss = objective.loss(net, objective.corrupt(batch_of([text] * 40000), generator(1)))
    assert loss.count == 40000
    assert float(loss.sum.detach() / loss.count) == pytest.approx(float(want), rel=0.01)


def random_table(state):
    rng = torch.Generator().manual_seed(hash(state) % 2**31)
    z = torch.randn(len(state) + 1, VOCAB + 1, generator=rng, dtype=torch.float64)
    return z, torch.randn(4, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("exact", [True, False])
def test_bound_is_the_sum_over_all_orders_and_above_the_likelihood(exact):
    net = exact_ilm()
    if not exact:
        net.table = lambda state, t: random_table(state)
    objective = Insertion(VOCAB, SPECIALS)
    ids = [t for t in TEXTS for _ in range(400)]
    got = objective.bound(net, batch_of(ids), generator(2), samples=3).view(len(TEXTS), 400)

    def stop(state):
        return float(net.table(state, None)[1][:2].softmax(0)[0])

    law = law_of_samples(net, stop)
    for text, some in zip(TEXTS, got, strict=True):
        want = -math.log(stop(tuple(text)))
        for n in range(1, len(text) + 1):
            ways = list(subsets(text, len(text) - n))
            for kept, pairs in ways:
                z = net.table(kept, None)[0][:, :N]
                logp = z.flatten().log_softmax(0).view(z.shape)
                cost = -sum(float(logp[g, v]) for g, v in pairs) / n
                want += (cost - math.log(1 - stop(kept)) - math.log(n)) / len(ways)
        error = 4.5 * float(some.std()) / 20 + 1e-6
        assert abs(float(some.mean()) - want) < error, text
        assert want > -math.log(law[tuple(text)]) - 1e-9, text


def test_bound_counts_ties_once():
    """A text of equal tokens: every order inserts the same token into some gap, p = 1/(k + 1)
    each, and all gaps lead to the same text. The bound must not be below -log p = 0, and counting
    missing equals as one event keeps it from being far above."""
    net = exact_ilm()
    even = torch.full((1, 2), math.log(0.5), dtype=torch.float64)

    def table(state, t):
        z = torch.full((len(state) + 1, VOCAB + 1), -1e3, dtype=torch.float64)
        z[:, 0] = 0.0
        return z, even[0] + torch.tensor([0.0 if len(state) == 3 else -99, 0.0])

    net.table = table
    objective = Insertion(VOCAB, SPECIALS)
    got = objective.bound(net, batch_of([[0, 0, 0]] * 3000), generator(0), samples=3)
    stop = math.log(2)  # at the whole text; going on before it is free
    # n = 3: one gap, m = 3. n = 2: kept first, middle or last: both missing in one gap of two, or
    # one in each. n = 1: any gap of three
    by_hand = {3: 0.0 + math.log(3), 2: 0.0, 1: math.log(3)}
    by_hand[2] = (2 * (math.log(2) + math.log(2)) + math.log(2)) / 3
    want = stop + sum(cost - math.log(n) for n, cost in by_hand.items())
    assert float(got.mean()) == pytest.approx(want, abs=0.02)
    assert want >= stop


def test_length_readout():
    """Classes of the number of missing tokens: 0 is `complete`, all others are not."""
    objective = Insertion(VOCAB, SPECIALS, stop="length", longest=6)
    net, _ = network({"stop": "length"})
    z = torch.randn(5, 16)
    two = objective.complete(net, z)
    p = net.heads["length"](z).softmax(-1)
    torch.testing.assert_close(two.exp(), torch.stack([p[:, 0], 1 - p[:, 0]], 1))
    n = torch.tensor([0, 1, 2, 3, 6])
    torch.testing.assert_close(objective.stop_loss(net, z, n), -p.log()[torch.arange(5), n])


# ---- samplers of ilm -----------------------------------------------------------------------------


def network(options, name="ilm", seed=0):
    sizes = {"block_size": 6, "n_layer": 2, "n_head": 2, "n_embd": 16, "cond_dim": 8}
    cfg = Config(objective=name, **(sizes | options))
    torch.manual_seed(seed)
    objective = build_objective(cfg, {"vocab_size": VOCAB, "specials": SPECIALS})
    net = build_network(cfg, objective)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return net.eval(), objective


def run(objective, net, ids, given, seed=0, **options):
    return list(objective.sample(net, ids, given, generator(seed), SampleOptions(**options)))


def canvas(count, width=6):
    ids = torch.full((count, width), 3)
    return ids, (torch.arange(width) == 0).expand_as(ids)


def texts_of(frame):
    """The texts of a frame: between BOS and EOS, padding behind."""
    got = []
    for row, n in zip(frame.ids.tolist(), frame.length.tolist(), strict=True):
        assert row[0] == 3 and row[n - 1] == 4 and set(row[n:]) <= {5}, (row, n)
        got.append(tuple(row[1 : n - 1]))
    return got


def test_ancestral_sampling_follows_the_law_of_the_network():
    """Frequencies of 8,000 draws against the recursion over states, joint draws and, with gap and
    token each at temperature 1, the same."""
    net, objective = exact_ilm(), Insertion(VOCAB, SPECIALS)
    want = law_of_samples(net, stop_law(net))
    for gap in (None, SampleOptions()):
        frames = run(objective, net, *canvas(8000), sampler="ancestral", gap=gap)
        got = texts_of(frames[-1])
        distance = sum(abs(got.count(t) / len(got) - p) for t, p in want.items()) / 2
        assert distance < 0.03
        assert set(got) <= set(map(tuple, TEXTS))


def test_threshold_stops_when_sure():
    net, objective = network({})[0], Insertion(VOCAB, SPECIALS)
    never = texts_of(run(objective, net, *canvas(5, 20), stop_threshold=1.1)[-1])
    assert all(len(t) == 18 for t in never)
    at_once = texts_of(run(objective, net, *canvas(5, 20), stop_threshold=0.0)[-1])
    assert all(t == () for t in at_once)


def test_rules_of_ilm_choose_the_gap_first():
    """second_top = 1 takes the likeliest gap although the likeliest pair is in another."""
    net, objective = exact_ilm(), Insertion(VOCAB, SPECIALS)
    z = torch.full((8, VOCAB + 1), -20.0, dtype=torch.float64)
    z[0, 0], z[1, :3] = 2.0, 1.5  # the best pair is (0, 0); gap 1 holds more
    stop = torch.tensor([-9.0, 9.0], dtype=torch.float64)
    net.table = lambda state, t: (z[: len(state) + 1], stop)
    ids = torch.tensor([[3, 9, 1, 9]]).expand(50, 4)
    given = torch.tensor([True, False, True, False]).expand(50, 4)
    z[2:] = -30
    first = run(objective, net, ids, given, temperature=0.0, capacity=8)[1]
    assert (first.ids[:, 1] == 0).all()  # jointly
    rule = {"gap": SampleOptions(top_k=1), "temperature": 0.0, "capacity": 8}
    both = run(objective, net, ids, given, **rule)[1]
    assert (both.ids[:, 1] == 1).all() and (both.ids[:, 2] < 3).all()


@pytest.mark.parametrize("seed", range(3))
def test_both_readings_of_greedy_against_enumeration(seed):
    """The law of all pairs of gap and token, row by row in plain loops: its largest entry, and the
    largest entry of the gap with the largest sum. Random networks, in some rows of which the two
    readings differ."""
    net, objective = network({"block_size": 20}, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 3, (40, 9), generator=rng)
    ids[:, 0] = 3
    given = (torch.arange(9) % 3 != 2).expand_as(ids)
    found, rows = {}, torch.arange(len(ids))
    for name, gap in {"joint": None, "first": SampleOptions(temperature=0.0)}.items():
        options = SampleOptions(temperature=0.0, gap=gap, capacity=20)
        sampler = InsertionSampler(objective, net, ids, given, generator(0), options)
        with torch.no_grad():
            h = sampler.forward(rows)
            gaps = sampler.gaps(rows, h.shape[1])
            found[name] = torch.stack(sampler.choose(h, gaps), 1).tolist()
            z = sampler.logits(h.flatten(0, 1)).view(*gaps.shape, -1).double()
    differ = 0
    for r in range(len(ids)):
        gap_ids = gaps[r].nonzero()[:, 0].tolist()
        total = torch.cat([z[r, g] for g in gap_ids]).logsumexp(0)
        law = {(g, v): float((x - total).exp()) for g in gap_ids for v, x in enumerate(z[r, g])}
        assert sum(law.values()) == pytest.approx(1.0) and len(gap_ids) >= 3
        marginal = {g: sum(p for (at, _), p in law.items() if at == g) for g in gap_ids}
        gap = max(marginal, key=marginal.__getitem__)
        first = (gap, max(range(z.shape[-1]), key=lambda v: law[gap, v]))
        best = max(law, key=law.__getitem__)
        assert tuple(found["joint"][r]) == best and tuple(found["first"][r]) == first
        differ += best != first
    assert 0 < differ < len(ids)


@pytest.mark.parametrize("name", ["ilm", "it", "idlm"])
@cases(st.data())
def test_given_text_is_kept_in_its_order(name, data):
    """Any pattern of holes, any sampler: what is given stands in every frame, runs of it together,
    and the room is respected; with `exact`, every given token stays in its place."""
    options = {"noise": "exponential", "sigma_min": 3.0} if name == "idlm" else {}
    net, objective = network(options, name)
    holes = data.draw(st.lists(st.booleans(), min_size=5, max_size=5))
    exact, sampler = data.draw(st.booleans()), data.draw(st.sampled_from(objective.samplers))
    ids = torch.tensor([[3, 0, 1, 2, 0, 1]] * 3)
    given = torch.tensor([[True, *(not h for h in holes)]] * 3)
    capacity = 0 if exact else 9
    frames = run(
        objective, net, ids, given, sampler=sampler, exact=exact, capacity=capacity, steps=30
    )
    shown = zip([False, *holes], ids[0].tolist(), strict=True)
    runs = "".join(" " if hole else str(token) for hole, token in shown).split()
    for frame in frames:
        assert frame.ids.shape[1] == max(6, capacity)
        for row in frame.ids.tolist():
            text, place = "".join(map(str, row)).split("4")[0].rstrip("5"), 0
            for part in runs:
                place = text.index(part, place) + len(part)
    last = frames[-1].ids[:, :6]
    if exact and name != "idlm":  # whose tokens come when they come
        assert torch.equal(last[given], ids[given]) and (last[~given] < 3).all()
    if not any(holes):
        assert torch.equal(last, ids)


def test_given_tokens_are_never_inserted_into():
    """Closed gaps stay closed: between two given tokens nothing appears."""
    net, objective = network({})
    ids = torch.tensor([[3, 0, 1, 2, 9, 9, 9, 9, 9]]).expand(20, 9)
    given = (torch.arange(9) < 4).expand_as(ids)
    for sampler in objective.samplers:
        last = run(objective, net, ids, given, sampler=sampler, stop_threshold=1.1)[-1]
        assert (last.ids[:, :4] == ids[:, :4]).all()


def test_frames_tell_what_changed():
    net, objective = network({})
    for sampler in objective.samplers:
        frames = run(objective, net, *canvas(9, 12), sampler=sampler, threshold=0.2)
        assert not frames[0].changed.any()
        for before, after in itertools.pairwise(frames):
            new = after.changed.sum(1)
            assert torch.equal(after.length - before.length, new)
            for b in range(9):
                kept = after.ids[b][~after.changed[b]]
                n = int(before.length[b])
                assert kept[:n].tolist() == before.ids[b, :n].tolist()
        again = run(objective, net, *canvas(9, 12), sampler=sampler, threshold=0.2)[-1]
        assert torch.equal(frames[-1].ids, again.ids)
        assert not {3, 5, 6} & set(frames[-1].ids[:, 1:][frames[-1].ids[:, 1:] != 5].tolist())


def test_parallel_needs_fewer_calls_and_respects_the_room():
    net, objective = network({})
    calls = {}
    for threshold in (1.0, 0.0):
        seen = []
        hook = net.norm.register_forward_hook(lambda m, a, out, seen=seen: seen.append(len(out)))
        options = {"sampler": "parallel", "threshold": threshold, "stop_threshold": 1.1}
        last = run(objective, net, *canvas(6, 17), **options)[-1]
        hook.remove()
        assert (last.length == 17).all()
        calls[threshold] = sum(seen)
    assert calls[1.0] == 6 * 15 and calls[0.0] == 6 * 4  # 1, 2, 4, 8 gaps


def test_finished_rows_leave_the_batch():
    """A row that has stopped costs nothing any more."""
    net, objective = network({})
    sizes = []
    hook = net.norm.register_forward_hook(lambda m, a, out: sizes.append(len(out)))
    run(objective, net, *canvas(64, 30), sampler="ancestral")
    hook.remove()
    assert sizes[0] == 64 and sizes[-1] < 64
    assert all(a >= b for a, b in itertools.pairwise(sizes))


# ---- insertion transformer -----------------------------------------------------------------------


def test_insertion_transformer_writes_a_text_that_it_knows():
    """A network whose slots know what is missing in [0, 1, 2], one token each, and EOS elsewhere:
    serial and parallel decoding both write it."""
    objective = InsertionTransformer(VOCAB, SPECIALS)
    net = exact_ilm()

    def table(state, t):
        z = torch.full((len(state) + 1, VOCAB + 1), -9.0, dtype=torch.float64)
        ends = [-1, *state, 3]
        for gap, (a, b) in enumerate(itertools.pairwise(ends)):
            z[gap, (a + b) // 2 if b - a > 1 else 4] = 9.0
        return z, torch.zeros(2, dtype=torch.float64)

    net.table = table
    calls = {}
    for sampler in objective.samplers:
        frames = run(objective, net, *canvas(4, 8), sampler=sampler)
        assert texts_of(frames[-1]) == [(0, 1, 2)] * 4
        calls[sampler] = len(frames) - 1
    assert calls == {"serial": 3, "parallel": 2}
    assert texts_of(run(objective, net, *canvas(1, 8), stop_threshold=1.1)[-1])[0][:0] == ()


# ---- insertion diffusion -------------------------------------------------------------------------


def poisson(k, x):
    return math.exp(k * math.log(x) - x - math.lgamma(k + 1))


def exact_idlm(noise):
    """Law of n and pull of a state at time t, in the world of TEXTS."""

    def total(t):
        return float(noise.total(torch.tensor(t, dtype=torch.float64)))

    def law(n, L, t):
        x = total(t)
        return poisson(n, x) if n < L else 1 - sum(poisson(k, x) for k in range(L))

    def pull(n, L, t):  # the rate of each missing token, in units of rate / total
        x = total(t)
        whole = 1 - sum(poisson(k, x) for k in range(L))
        return 1.0 if n < L else poisson(L, x) / whole

    return Exact(law, pull, 4, timed=True)


@pytest.mark.parametrize("noise", [Exponential(1.0, 40.0), Geometric(1e-4, 12.0)])
def test_bound_of_the_exact_reverse_process_is_the_likelihood(noise):
    """With the posterior's own rates, the relative entropy of the two processes is -log p(text): a
    wrong rate, factor, range or tie shifts it."""
    net = exact_idlm(noise)
    objective = IDLM(VOCAB, SPECIALS, noise, longest=3)

    def rate(net_, cls, time, first, options=None):
        """Of the exact process: the mean pull of the missing tokens, not of their number."""
        z = net_.last.logsumexp((1, 2))
        return noise.rate(time) / noise.total(time) * (z - net_.norms).exp()

    inner = net.features

    def features(ids, time=None, mask=None):
        states = [tuple(i for i in row[2:] if i < N) for row in ids.tolist()]
        tables = [net.table(s, float(t) / TIME_SCALE) for s, t in zip(states, time, strict=True)]
        blank = torch.full((4, VOCAB + 1), -1e9, dtype=torch.float64)
        net.last = torch.stack([torch.cat([z, blank])[:4] for z, _ in tables])
        net.norms = torch.stack([count.logsumexp(0) for _, count in tables])
        return inner(ids, time, mask)

    net.features, objective.insertion_rate = features, rate
    repeat = 400
    ids = [t for t in TEXTS for _ in range(repeat)]
    got = objective.bound(net, batch_of(ids), generator(0), samples=4).view(len(TEXTS), repeat)
    error = (got.mean(1) + P.log()).abs()
    assert (error < 4.5 * got.std(1) / math.sqrt(repeat) + 0.02).all(), (error, got.std(1))


slow = pytest.mark.slow
ANY_NOISE = [
    pytest.param(Exponential(3.0, 30.0), id="slow rise"),
    pytest.param(Exponential(3.0, 7000.0), id="steep rise"),
    pytest.param(Linear(1e-3, 5000.0), marks=slow, id="constant rate"),
]


@pytest.mark.parametrize("noise", ANY_NOISE)
def test_bound_of_one_token_under_any_noise_in_closed_form(noise):
    """A network that says "one is missing" and nothing of which: with total noise x and noise s
    since t_min, tokens are inserted at rate 1 / (e^x - 1) for each unit of s, at 1 / x when one is
    there, and the conditioned process inserts at 1 / (e^s - 1). Also where e^x is beyond floats."""
    net, _ = network({"noise": "geometric"}, "idlm")
    net.heads["length"] = nn.Linear(16, 4)
    with torch.no_grad():
        for p in (*net.head.parameters(), *net.heads["length"].parameters()):
            p.zero_()
        net.heads["length"].bias[1] = 80.0
    objective = IDLM(VOCAB, SPECIALS, noise, longest=3)
    begun, whole = noise.total(torch.tensor([noise.t_min, 1.0], dtype=torch.float64)).tolist()
    guess = math.log(VOCAB + 1 - len(set(objective.never)))  # -log p of the token
    end = whole - begun
    u = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    s = end * u**4
    x, there = begun + s, torch.expm1(-s) / math.expm1(-end)  # P(the token is missing)
    rate, log_rate = 1 / torch.expm1(s), -s - torch.log(-torch.expm1(-s))
    rho, log_rho = 1 / torch.expm1(x), -x - torch.log(-torch.expm1(-x))
    slope = there * (rho + rate * (log_rate - log_rho + guess - 1)) + (1 - there) / x
    want = float((slope * 4 * end * u**3).mean())
    got = objective.bound(net, batch_of([[0]] * 4000), generator(0), samples=16)
    assert abs(float(got.mean()) - want) < 4.5 * float(got.std()) / math.sqrt(4000), noise


def test_idlm_samples_follow_the_exact_process():
    """Tau-leaping with many steps and the exact rates gives the world back."""
    noise = Exponential(1.0, 40.0)
    net, objective = exact_idlm(noise), IDLM(VOCAB, SPECIALS, noise, longest=3)
    frames = run(objective, net, *canvas(1000, 6), steps=250)
    got = texts_of(frames[-1])
    distance = (
        sum(abs(got.count(tuple(t)) / len(got) - p) for t, p in zip(TEXTS, P.tolist(), strict=True))
        / 2
    )
    assert distance < 0.09, distance


def test_idlm_drops_as_many_as_poisson_says():
    noise = Exponential(1.0, 40.0)
    objective = IDLM(VOCAB, SPECIALS, noise, longest=3)
    time = torch.full((20000,), 0.4, dtype=torch.float64)
    rows = objective.at_time(batch_of([[0, 1, 2]] * 20000), time, generator(0))
    x = float(noise.total(time[:1]))
    want = [poisson(k, x) for k in range(3)]
    want.append(1 - sum(want))
    got = torch.bincount(rows.n, minlength=4) / len(rows.n)
    assert (got - torch.tensor(want)).abs().max() < 0.015


def test_missing_before_the_end_is_the_conditioned_poisson():
    noise = Exponential(1.0, 8.0)
    objective = IDLM(VOCAB, SPECIALS, noise, longest=3)
    low, time = torch.tensor(1e-3, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    some, end = (float(noise.total(t) - noise.total(low)) for t in (time, torch.ones_like(time)))
    L = torch.full((40000,), 3)
    now = torch.full((40000,), some, dtype=torch.float64)
    n = objective.missing_before_the_end(L, now, torch.tensor(end), generator(0))
    joint = [
        sum(poisson(k, some) * poisson(j, end - some) for j in range(40) if k + j >= 3)
        for k in range(40)
    ]
    want = torch.tensor([*joint[:3], sum(joint[3:])])
    got = torch.bincount(n, minlength=4) / len(n)
    assert (got - want / want.sum()).abs().max() < 0.01


@pytest.mark.parametrize("name", ["ilm", "it", "idlm"])
def test_gradients_reach_every_parameter(name):
    options = {"noise": "geometric"} if name == "idlm" else {"time_input": False}
    net, objective = network(options, name)
    texts = [TEXTS[i % len(TEXTS)] for i in range(64)]
    loss = objective.loss(net, objective.corrupt(batch_of(texts), generator(0)))
    loss.sum.backward()
    for key, p in net.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, key
    assert all(len(m) == 2 and m.isfinite().all() for m in loss.metrics.values())


@pytest.mark.parametrize("name", ["ilm", "it", "idlm"])
def test_rows_with_nothing_to_write_count_nothing(name):
    options = {"noise": "geometric"} if name == "idlm" else {}
    net, objective = network(options, name)
    batch = batch_of([[0, 1, 2], [1, 2]])
    both = objective.loss(
        net,
        objective.corrupt(
            batch._replace(prompt_mask=torch.ones_like(batch.prompt_mask)), generator(0)
        ),
    )
    assert both.count == 0 and float(both.sum.detach()) == 0
    empty = objective.loss(
        net, objective.corrupt(batch_of([[], []]), generator(0))
    )  # EOS alone: stop at once
    assert empty.count == 2 and float(empty.sum.detach()) > 0
    if objective.bounded:
        stops = objective.bound(net, batch_of([[], []]), generator(0))
        assert stops.isfinite().all() and (stops > 0).all()
        # where all is given, the sampler writes nothing: its law is certain
        given = batch._replace(prompt_mask=torch.ones_like(batch.prompt_mask))
        assert objective.bound(net, given, generator(0), samples=3).tolist() == [0, 0]
        for sampler in objective.samplers:
            frames = run(objective, net, given.ids, given.prompt_mask, sampler=sampler)
            assert all(torch.equal(f.ids[:, : given.ids.shape[1]], given.ids) for f in frames)


@pytest.mark.parametrize("name", ["ilm", "idlm"])
def test_bound_of_a_row_does_not_depend_on_its_neighbours(name):
    options = {"noise": "geometric"} if name == "idlm" else {}
    net, objective = network(options, name)
    texts = [[0, 1, 2], [1, 0], [2, 0, 1], [1]]
    other = [texts[0], [0, 1], [0, 2, 1], [2]]
    one, two = (objective.bound(net, batch_of(t), generator(3), samples=3) for t in (texts, other))
    assert float(one[0]) == pytest.approx(float(two[0]), rel=1e-5)
    assert not torch.allclose(one[1:], two[1:])


# ---- the commands --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def folder(trained):
    """A checkpoint of ilm on the tiny corpus, a few steps old."""
    return trained(objective="ilm", time_input=False, max_iters=3)


def test_holes_of_unknown_length(folder, run_cli):
    """The given text stands in every sample, in its order; nothing stands before, after or inside
    it, where there is no hole."""

    model = load(str(folder / "ckpt.pt"))
    infill = "a[*]b"
    cfg = SampleConfig(infill=infill, stopping_threshold=0.6)
    texts = generate(
        model, [canvas_of(model, infill=infill)] * 20, sample_options(cfg, model)
    ).texts
    assert all(t.startswith("a") and t.endswith("b") for t in texts)
    assert max(map(len, texts)) > 2
    done = run_cli("sample.py", f"--ckpt={folder}/ckpt.pt", f"--infill={infill}", "--num_samples=2")
    assert done.returncode == 0 and "network calls" in done.stdout
    for wrong in (infill + "[2]", "[*]" + "[2]"):
        done = run_cli("sample.py", f"--ckpt={folder}/ckpt.pt", f"--infill={wrong}")
        assert done.returncode == 2 and "unknown length" in done.stderr


def test_published_weights_load_strictly(tmp_path):
    """A folder and a training checkpoint with the published names give the network that they are
    of; a name too many or too few is refused by name."""

    cfg = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_inner": 24, "time_input": False}
    look = {"norm_bias": True, "activation": "relu", "final_norm": False, "rotary_dims": 4}
    net, _ = network({**cfg, **look})
    nn.init.zeros_(net.head.bias)
    own = net.state_dict()
    theirs = {"embed_tokens.weight": own["embed.weight"]}
    theirs["output_layer.linear.weight"] = own["head.weight"]
    for i in range(2):
        theirs |= {f"encoder.{i}.{a}": own[f"blocks.{i}.{b}"] for a, b in BLOCK.items()}
        theirs[f"encoder.{i}.rotary_emb.inv_freq"] = torch.ones(2)
    theirs |= {f"length_output_layer.{a}": own[f"heads.stop.{b}"] for a, b in READOUT.items()}
    for file in ("w.ckpt", "w.pth"):
        torch.save({"state_dict": {f"model.{k}": v for k, v in theirs.items()}}, tmp_path / file)
    got = published.read(str(tmp_path / "w.ckpt"))
    options = {**cfg, **look, "objective": "ilm", "stop": "stop"}
    del options["n_head"]  # no tensor tells it
    assert got.config == options
    assert got.weights.keys() == own.keys()
    assert all(torch.equal(got.weights[k], own[k]) for k in own)
    for name, change in (("encoder.1.mlp.0.bias", "lack"), ("extra.weight", "have")):
        bad = {k: v for k, v in theirs.items() if k != name}
        bad |= {name: torch.zeros(1)} if change == "have" else {}
        torch.save({"state_dict": bad}, tmp_path / "bad.ckpt")
        with pytest.raises(UserError, match=f"{change}.*{name}"):
            published.read(str(tmp_path / "bad.ckpt"))


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "config").glob("idlm_*.py")))
def test_every_recipe_of_idlm_is_finite(name):
    """Of rates up to 7000, losses and gradients of texts of 0 to 120 tokens, and their bound."""
    cfg = load_config(Config, [f"config/{name}.py", "--block_size=128", *SMALL])[0]
    objective = build_objective(cfg, {"vocab_size": 50, "specials": SPECIALS})
    torch.manual_seed(0)
    net = build_network(cfg, objective)
    rng = generator(1)
    texts = [torch.randint(6, 50, (n,), generator=rng).tolist() for n in (0, 1, 7, 120)]
    batch = batch_of(texts, 128)
    for _ in range(20):
        total, count, _ = objective.loss(net, objective.corrupt(batch, rng))
        assert count > 0 and total.isfinite()
        total.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    assert objective.bound(net, batch, rng, 20).isfinite().all()
