"""Block diffusion: the mask, the cache, the bound by enumeration, and samplers block by block."""

import dataclasses
import itertools
import math

import pytest
import torch
from exact import Distribution, ExactNetwork, total_variation
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

import evaluate
import sample
from checkpoint import build_objective
from configurator import Config, UserError, load
from corpus import Batch
from diffusion import (
    SAMPLERS,
    Affine,
    BlockDiffusion,
    BlockSampler,
    Geometric,
    Linear,
    LogLinear,
    NoisyAndClean,
    Power,
    block_mask,
    cells,
)
from model import Cache, Transformer
from objective import SampleOptions, generator

V = 11  # real tokens of the random networks


def process(length, vocab_size=V, noise=None, **more):
    return BlockDiffusion(vocab_size, None, noise or LogLinear(), length=length, **more)


def network(cond_dim=0, seed=0, n_layer=2, **more):
    """Random weights everywhere, small enough that float32 keeps six digits."""
    torch.manual_seed(seed)
    net = Transformer(V + 1, n_layer, 2, 16, cond_dim, block_size=24, **more)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net.eval()


def full(ids, prompt=0):
    given = torch.arange(ids.shape[1]).expand_as(ids) < prompt
    return Batch(ids, given, torch.full((len(ids),), ids.shape[1]))


def noised(x0, share, seed=0):
    return x0.masked_fill(torch.rand(x0.shape, generator=generator(seed)) < share, V)


def decoder(objective, net, x, **options):
    """A sampler with the canvas x, all of it given."""
    rest = (generator(0), SampleOptions(**options))
    return BlockSampler(objective, net, x, torch.ones_like(x, dtype=torch.bool), *rest)


def run(objective, net, ids, given, seed=0, **options):
    return list(objective.sample(net, ids, given, generator(seed), SampleOptions(**options)))


def watch(net):
    """The (rows, columns) of every call of the network from now on."""
    calls, inner = [], net.features

    def spy(ids, *rest, **more):
        calls.append(tuple(ids.shape))
        return inner(ids, *rest, **more)

    net.features = spy
    return calls


# ---- the mask ------------------------------------------------------------------------------------


@examples(st.integers(1, 9), st.integers(1, 9))
def test_mask_is_what_it_says(T, length):
    mask = block_mask(T, length, torch.device("cpu"))
    for q, k in itertools.product(range(2 * T), repeat=2):
        block_q, block_k = q % T // length, k % T // length
        if q < T and k < T:
            want = block_q == block_k
        elif q < T:
            want = block_q > block_k
        else:
            want = k >= T and block_q >= block_k
        assert mask[q, k] == want, (q, k)


def test_cells():
    """Rows of blocks; what fills up the last one counts as given, so it is never written."""
    ids = torch.arange(1, 15).view(2, 7)
    batch = Batch(ids, ids < 3, torch.tensor([7, 4]))
    got = cells(batch, 3)
    assert got.ids.tolist() == [
        [1, 2, 3],
        [4, 5, 6],
        [7, 0, 0],
        [8, 9, 10],
        [11, 12, 13],
        [14, 0, 0],
    ]
    assert got.prompt_mask.int().tolist()[0] == [1, 1, 0] and got.prompt_mask.int().tolist()[2] == [
        0,
        1,
        1,
    ]
    assert got.length.tolist() == [3, 3, 1, 3, 1, 0]
    for length in (0, 7, 100):
        assert torch.equal(cells(batch, length).ids, ids)


# ---- the cache -----------------------------------------------------------------------------------


@pytest.mark.parametrize("time", ["none", "input", "zero"])
@settings(max_examples=25)
@examples(
    T=st.integers(1, 20),
    length=st.integers(0, 21),
    begin=st.integers(0, 20),
    positions=st.sampled_from(["rotary", "learned", "both"]),
    seed=st.integers(0, 99),
)
def test_cached_logits_are_those_of_training(time, T, length, begin, positions, seed):
    """Block by block from the cache = one pass over (noised, clean), for every block from `begin`
    on (those before it are a prompt, stored at once), short last blocks included."""
    objective = process(length, zero_time=time == "zero")
    net = network(0 if time == "none" else 8, seed, positions=positions)
    x0 = torch.randint(V, (3, T), generator=generator(seed))
    xt, batch = noised(x0, 0.5, seed), cells(full(x0), length)
    sigma = torch.rand(len(batch.ids), generator=generator(seed)) * 3
    values = objective.condition(net, sigma, torch.device("cpu"))
    with torch.no_grad():
        shown = cells(full(xt), length).ids
        beside = NoisyAndClean(net, x0, objective.clean_time(net), objective.zero_time)
        h = beside.features(shown, values)
        want = net.logits(h.view(3, -1, h.shape[-1])[:, :T])
        walk = decoder(objective, net, x0.clone())
        for block in range(min(begin, walk.blocks - 1), walk.blocks):
            walk.current_block = block
            here = slice(block * walk.size, min((block + 1) * walk.size, T))
            walk.x[:, here] = xt[:, here]
            for rows in (torch.tensor([0, 2]), torch.tensor([1]), torch.arange(3)):
                level = None if values is None else values.view(3, -1)[rows, block]
                h, start = walk.features(rows, level)
                assert start == here.start
                torch.testing.assert_close(net.logits(h), want[rows, here], rtol=0, atol=1e-5)
            walk.x[:, here] = x0[:, here]


def test_clean_tokens_are_told_that_they_are_clean():
    """With a time input, a change of one block's noise level changes that block alone."""
    net, objective = network(8), process(3)
    x0 = torch.randint(V, (2, 9))
    beside = NoisyAndClean(net, x0, objective.clean_time(net), per_row=False)
    level = torch.full((6,), 0.5)
    with torch.no_grad():
        one = beside.features(noised(x0, 0.5).view(6, 3), level)
        level[1] = 2.0
        two = beside.features(noised(x0, 0.5).view(6, 3), level)
    assert [torch.equal(a, b) for a, b in zip(one, two, strict=True)] == [True, False] + 4 * [True]


@pytest.mark.parametrize("cond_dim", [0, 8])
@pytest.mark.parametrize("positions", ["rotary", "both"])
@torch.no_grad()
def test_prefix_and_dual_cache(cond_dim, positions):
    """A full pass stores all columns; a later pass over some of them replaces theirs alone. With
    the text unchanged it is the full pass, and in one layer, where keys and values depend on
    nothing but their own token, it is the full pass over the changed text."""
    ids, other = torch.randint(V, (2, 4, 12), generator=generator(1))
    time = torch.rand(4) if cond_dim else None
    for n_layer in (1, 3):
        net = network(cond_dim, n_layer=n_layer, positions=positions)
        want = net.features(ids, time)
        for part in (slice(4, 8), slice(4, 12), slice(0, 1), slice(11, 12)):
            cache = Cache(4, 12)
            assert torch.equal(net.features(ids, time, cache=cache), want)
            cache.at, cache.rows = part, torch.tensor([3, 1])
            values = None if time is None else time[cache.rows]
            again = net.features(ids[cache.rows, part], values, cache=cache)
            torch.testing.assert_close(again, want[cache.rows, part], rtol=0, atol=1e-5)
            if n_layer == 1:
                mixed = ids.clone()
                mixed[:, part] = other[:, part]
                changed = net.features(mixed[cache.rows, part], values, cache=cache)
                expected = net.features(mixed, time)[cache.rows, part]
                torch.testing.assert_close(changed, expected, rtol=0, atol=1e-5)
                # ... and it was kept: the rest of the row sees it
                cache.at, cache.visible = slice(0, 2), 12
                rest = net.features(mixed[cache.rows, :2], values, cache=cache)
                expected = net.features(mixed, time)[cache.rows, :2]
                torch.testing.assert_close(rest, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_cache_of_a_causal_network():
    """Token by token, and in pieces, equals the whole."""
    net = network(causal=True)
    ids = torch.randint(V, (2, 7))
    want = net.features(ids)
    for ends in ([1, 2, 3, 4, 5, 6, 7], [3, 7], [2, 3, 7]):
        cache, start, got = Cache(2, 7), 0, []
        for end in ends:
            cache.at, cache.visible = slice(start, end), end
            got.append(net.features(ids[:, start:end], cache=cache))
            start = end
        torch.testing.assert_close(torch.cat(got, 1), want, rtol=0, atol=1e-5)


# ---- the bound and the loss ----------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [0, 1])
@pytest.mark.parametrize("length", [1, 2, 3, 0])
def test_bound_of_the_exact_network_is_the_likelihood(length, prompt):
    """Three tokens in blocks of one, of two and one, and of three. For single tokens the estimate
    has no spread at all: it is the likelihood of an autoregressive model."""
    data, objective = Distribution(2, 3), process(length, 2)
    repeat = 2000
    ids = data.texts.repeat_interleave(repeat, 0)
    net = ExactNetwork(data, objective)
    bound = objective.bound(net, full(ids, prompt), generator(1), samples=2).view(-1, repeat)
    first = data.p.view(2, -1).sum(1)[data.texts[:, 0]] if prompt else 1
    error = (bound.mean(1) + (data.p / first).log()).abs()
    if length == 1 or (length, prompt) == (2, 1):  # never more than one to write in a block
        assert bound.std(1).max() < 1e-5 and error.max() < 1e-5
    else:
        assert bound.std(1).max() > 0.01
        assert (error < 4.5 * bound.std(1) / math.sqrt(repeat)).all()


def levels_of(net):
    """The time inputs of every call of the network from now on."""
    seen, inner = set(), net.features

    def spy(ids, time=None, *rest, **more):
        seen.update(time.flatten().tolist())
        return inner(ids, time, *rest, **more)

    net.features = spy
    return seen


@pytest.mark.parametrize("noise", [LogLinear(), Affine(), Power()], ids=["loglinear", "llada", "t"])
def test_blocks_of_one_with_time_are_told_what_training_told(noise):
    """A single token is always masked, in training at t = 1: the bound and every sampler tell the
    network sigma(1) too. The bound is then a number without chance, its exponentials are a
    distribution over all texts, and it is the law of what is written."""
    data, objective = Distribution(3, 3), process(1, 3, noise)
    torch.manual_seed(4)
    net = Transformer(4, 2, 2, 16, 8, block_size=24).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.6)  # the level changes what it predicts
    told = levels_of(net)
    with torch.no_grad():
        objective.loss(net, objective.corrupt(full(data.texts), generator(0)))
    trained = set(told)
    assert len(trained) == 2 and max(trained) == pytest.approx(-math.log(1e-3), abs=1e-3)
    bounds = [objective.bound(net, full(data.texts), generator(i), i + 1) for i in range(3)]
    for other in bounds[1:]:
        torch.testing.assert_close(other, bounds[0], rtol=0, atol=1e-5)
    law = (-bounds[0]).exp()
    assert float(law.sum()) == pytest.approx(1, abs=1e-5)
    data.p = law / law.sum()
    ids = torch.zeros(6000, 3, dtype=torch.int64)
    for sampler in SAMPLERS:
        x = run(objective, net, ids, ids > 0, sampler=sampler, steps=6)[-1].ids
        assert total_variation(x, data) < 0.035, sampler
    assert told == trained


def test_bound_sees_the_blocks_before_and_not_those_after():
    """A change of the last block leaves the bounds of those before it alone, and a change of the
    first changes them all."""
    net, objective = network(), process(3)
    x0 = torch.randint(V, (5, 9))

    def by_block(ids):
        batch = objective.cut(full(ids), None)
        masked = torch.arange(3).expand_as(batch.ids) != 1
        noisy = objective.noisy(batch, masked, torch.ones(15), torch.ones(15))
        return objective.nats_by_row(net, noisy).view(5, 3)

    with torch.no_grad():
        want = by_block(x0)
        last, first = x0.clone(), x0.clone()
        last[:, 6] = (last[:, 6] + 1) % V
        first[:, 0] = (first[:, 0] + 1) % V
        assert ((by_block(last) - want).abs().amax(0) > 1e-3).tolist() == [False, False, True]
        assert ((by_block(first) - want).abs().amax(0) > 1e-3).all()


def test_every_block_has_every_time():
    """Even one row alone: a fixed order of the strata would give the first block low times only."""
    objective, times = process(4, low=0.3, high=0.8), []
    for seed in range(400):
        t, weight = objective.times(4, generator(seed))
        assert torch.allclose(weight, 1 / t)
        assert ((t.sort().values - 0.3) / 0.5 * 4).long().tolist() == [0, 1, 2, 3]  # stratified
        times.append(t)
    mean, spread = torch.stack(times).mean(0), 0.5 / math.sqrt(12 * 400)
    assert ((mean - 0.55).abs() < 4.5 * spread).all()
    assert torch.equal(process(1, noise=Affine()).times(5, generator(0))[0], torch.ones(5))


def cost_of_grid(data, grids, length):
    """Bound of a sampler of the exact network on grids of each block, summed over all ways in which
    the places of a block can fall to its steps: (texts,) nats."""
    total = torch.zeros(len(data.texts), dtype=torch.float64)
    for block, grid in enumerate(grids):
        share = [*grid, 0.0]
        p = [(a - b) / grid[0] for a, b in itertools.pairwise(share)]
        places = range(block * length, min((block + 1) * length, data.T))
        before = list(range(block * length))
        for way in itertools.product(range(len(p)), repeat=len(places)):
            chance = math.prod(p[k] for k in way)
            for place, k in zip(places, way, strict=True):
                seen = before + [i for i, j in zip(places, way, strict=True) if j < k]
                same = (data.texts[:, None, seen] == data.texts[None, :, seen]).all(2).double()
                also = same * (data.texts[:, None, place] == data.texts[None, :, place])
                total -= chance * ((also @ data.p) / (same @ data.p)).log()
    return total


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("noise", [LogLinear(), Linear(), Geometric(), Affine()], ids=str)
@pytest.mark.parametrize("length", [0, 2])
def test_discrete_bound_is_that_of_the_samplers_grid(noise, steps, length):
    """Of the whole row, and of blocks of two, among which the steps are shared out: 1 step is one
    for each, 3 are one and two, 5 are two and three. All ways enumerated."""
    data = Distribution(2, 4)
    objective = process(length, 2, noise)
    net, repeat = ExactNetwork(data, objective), 1500
    if length:
        counts = [max(1, steps // 2), max(1, steps - steps // 2)]
    else:
        counts = [steps]
    times = [1 - (1 - 1e-5) * torch.arange(n + 1, dtype=torch.float64) / n for n in counts]
    grids = [noise.mask_prob(t) for t in times]
    want = cost_of_grid(data, [grid.tolist() for grid in grids], length or 4)
    ids = data.texts.repeat_interleave(repeat, 0)
    got = objective.discrete_bound(net, full(ids), generator(1), steps, 2).view(-1, repeat)
    # a step that is taken at a share below 1/500 of masked places costs about that share, and is
    # hardly ever drawn
    rare = sum(float(grid[grid < 2e-3 * grid[0]].amax()) for grid in grids if grid[-1] < 2e-3)
    error = (got - want[:, None]).flatten()
    assert abs(float(error.mean())) < 4.5 * float(error.std()) / math.sqrt(len(error)) + 9 * rare
    if not isinstance(noise, Geometric):  # whose estimates have long tails
        each = error.view(-1, repeat)
        limit = 4.5 * each.std(1) / math.sqrt(repeat) + 9 * rare + 1e-5
        assert (each.mean(1).abs() < limit).all()


@pytest.mark.parametrize("limits", [(0.0, 1.0), (0.3, 0.8)])
def test_clipped_schedules_train_in_their_range_and_are_judged_in_all(limits):
    """The share of masked tokens is that of the range; the bound does not know the range."""
    low, high = limits
    objective, seen = process(4, noise=Power(), low=low, high=high), []
    net = network()
    inner = net.features
    net.features = lambda ids, *rest: seen.append(ids) or inner(ids, *rest)
    x0 = torch.zeros(2000, 8, dtype=torch.int64)
    with torch.no_grad():
        objective.loss(net, objective.corrupt(full(x0), generator(0)))
    share = (seen[0][:, :8] == V).float().mean()
    assert share == pytest.approx((low + high) / 2, abs=0.01)
    x0 = torch.randint(V, (50, 8))
    bounds = [p.bound(net, full(x0), generator(1)) for p in (objective, process(4))]
    assert torch.equal(*bounds)


def test_padding_that_is_ignored_is_neither_seen_nor_scored():
    """Rows with junk beyond their ends have the bound of the rows without it."""
    net, objective = network(), process(3, padding="ignore")
    x0 = torch.randint(V, (6, 8))
    length = torch.tensor([8, 7, 6, 4, 3, 1])
    one = Batch(x0, torch.zeros(6, 8, dtype=torch.bool), length)
    junk = torch.where(torch.arange(8) < length[:, None], x0, (x0 + 1) % V)
    two = objective.bound(net, one._replace(ids=junk), generator(0))
    torch.testing.assert_close(objective.bound(net, one, generator(0)), two)
    assert objective.loss(net, objective.corrupt(one, generator(0))).count == int(length.sum())


def test_clip_search_finds_the_spread_of_a_guess():
    """A uniform guess in a block of L costs m log V / (p L) when m of L are masked: its variance
    over t in [a, b] is log(V)^2 E[(1 / t - 1)] / L = log(V)^2 (log(b / a) / (b - a) - 1) / L."""
    L, objective = 4, process(4, noise=Power())
    net = Transformer(V + 1, 1, 2, 16)  # as built: all logits are 0
    batches = [full(torch.randint(V, (1000, 16))) for _ in range(20)]
    got = objective.clip_search(net, batches, generator(0))
    assert len(got) == 1 + 11 + 9 + 7 + 5 + 3
    assert got == sorted(got)
    for variance, low, high in got:
        if low >= 0.1:
            want = (math.log(high / low) / (high - low) - 1) / L * math.log(V) ** 2
            assert variance == pytest.approx(want, rel=0.08), (low, high)
    assert got[0][1:] == (0.5, 1.0) and got[-1][1:] in [(0.001, 1.0), (0.0, 0.5)]


# ---- sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3])
def test_samplers_of_the_exact_network_reproduce_the_distribution(length):
    """From the exact network through its cache, with a part of the rows given."""
    data, objective = Distribution(2, 3), process(length, 2)
    net = ExactNetwork(data, objective)
    ids = torch.zeros(8000, 3, dtype=torch.int64)
    for sampler in ("first_hitting", "ancestral", "random"):
        x = run(objective, net, ids, ids > 0, sampler=sampler, steps=12)[-1].ids
        assert total_variation(x, data) < 0.03, sampler
    ids[::2, 0] = 1
    x = run(objective, net, ids, ids > 0)[-1].ids
    want = data.p.view(2, 4)[1] / data.p.view(2, 4)[1].sum()
    got = torch.bincount(data.index(x[::2]) - 4, minlength=4) / 4000
    assert (got - want).abs().sum() / 2 < 0.03
    assert total_variation(x[1::2], data) < 0.035


@settings(max_examples=30)
@examples(
    T=st.integers(1, 13),
    length=st.integers(0, 14),
    steps=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    sampler=st.sampled_from(sorted(SAMPLERS)),
    seed=st.integers(0, 99),
)
def test_any_size_is_finished(T, length, steps, share, sampler, seed):
    """No MASK left, given tokens untouched wherever they are, and blocks written in order."""
    objective, net = process(length), network(8, seed)
    ids = torch.randint(V, (5, T), generator=generator(seed))
    given = torch.rand(5, T, generator=generator(seed, 1)) < share
    frames = run(objective, net, ids, given, seed, sampler=sampler, steps=steps)
    assert (frames[-1].ids < V).all()
    latest = torch.zeros(5, dtype=torch.int64)
    for frame in frames:
        assert torch.equal(frame.ids[given], ids[given])
        block = torch.where(frame.changed, torch.arange(T) // (length or T), -1).amax(1)
        assert ((block == -1) | (block >= latest)).all()
        latest = torch.maximum(latest, block)


@pytest.mark.parametrize("sampler", ["first_hitting", "confidence", "entropy"])
@pytest.mark.parametrize("cond_dim", [0, 8])
def test_prompts_of_a_batch_may_be_of_any_length(sampler, cond_dim):
    """At temperature 0, in an order without chance, every row is what it would be alone; also rows
    that end before the others do, which see nothing of what is beyond."""
    objective, net = process(3, padding="ignore"), network(cond_dim)
    ids = torch.randint(V, (6, 11))
    prompt = torch.tensor([0, 1, 3, 5, 8, 11])
    length = torch.tensor([11, 10, 11, 10, 10, 11])  # four blocks, which share out the steps
    given = torch.arange(11) < prompt[:, None]
    if sampler == "first_hitting":  # its order is chance, but for blocks of one token
        objective, length = process(1, padding="ignore"), torch.tensor([11, 7, 4, 9, 10, 11])
    given |= torch.arange(11) >= length[:, None]  # as sample.py has it: nothing to write there
    options = {"sampler": sampler, "temperature": 0, "steps": 8}
    together = run(objective, net, ids, given, length=length, **options)[-1].ids
    for i, end in enumerate(length.tolist()):
        alone = run(objective, net, ids[i : i + 1, :end], given[i : i + 1, :end], **options)
        assert torch.equal(together[i, :end], alone[-1].ids[0]), i


def test_a_step_costs_a_block():
    """Four blocks of four, a place at a time: each call runs its block, and the first of a block
    the finished one before it as well. A prompt of two blocks is run with the third, once."""
    objective, net = process(4), network()
    calls = watch(net)
    ids = torch.zeros(3, 16, dtype=torch.int64)
    run(objective, net, ids, ids > 0)
    assert calls == [(3, 4)] * 4 + ([(3, 8)] + [(3, 4)] * 3) * 3
    calls.clear()
    run(objective, net, ids, torch.arange(16).expand_as(ids) < 9)
    assert calls == [(3, 12)] + [(3, 4)] * 2 + [(3, 8)] + [(3, 4)] * 3


def test_a_text_that_has_ended_costs_no_more():
    """With `stop`, blocks after it are filled with it and not computed."""
    objective, net = process(4), network()
    with torch.no_grad():  # a network that says 5 and nothing else
        net.head.weight.zero_()
        net.head.bias.zero_()[5] = 50.0
    calls = watch(net)
    ids = torch.zeros(2, 16, dtype=torch.int64)
    x = run(objective, net, ids, ids > 0, sampler="confidence", temperature=0, stop=5)[-1].ids
    assert (x == 5).all() and len(calls) <= 4 and all(c[1] == 4 for c in calls)


def test_refusals():
    objective, net = process(4), network()
    ids = torch.zeros(2, 8, dtype=torch.int64)
    for word, options in (
        ("cfg", {"cfg": 1.0}),
        ("block_length", {"block_length": 2}),
    ):
        with pytest.raises(UserError, match=word):
            run(objective, net, ids, ids > 0, **options)
    run(objective, net, ids, ids > 0, block_length=4)
    meta = {"vocab_size": V, "specials": {}}
    for word, options in (
        ("importance", {"importance": True}),
        ("loss_per", {"loss_per": "answer"}),
        ("t_low", {"block_length": 1, "t_low": 0.5}),
    ):
        with pytest.raises(UserError, match=word):
            build_objective(Config(objective="bd3", **options), meta)
    for options in ({"t_low": 0.5, "t_high": 0.4}, {"t_high": 1.5}, {"block_length": -1}):
        with pytest.raises(Exception, match=next(iter(reversed(options)))):
            dataclasses.replace(Config(objective="bd3"), **options)


def test_config_reaches_the_objective():
    options = {"block_length": 4, "t_low": 0.3, "t_high": 0.8, "zero_time": True}
    built = build_objective(
        Config(objective="bd3", **options), {"vocab_size": V, "specials": {"mask": 3}}
    )
    assert (built.length, built.low, built.high, built.zero_time) == (4, 0.3, 0.8, True)
    assert built.mask_id == 3 and built.network_kwargs["vocab_size"] == V


def test_commands(trained, capsys):
    """Trained, evaluated and sampled like any other objective; evaluate.py names the clipping."""
    out = trained(objective="bd3", block_length=3, t_low=0.3, t_high=0.8)
    evaluate.main([f"--ckpt={out / 'ckpt.pt'}", "--rows=10", "--samples=0"])
    text = capsys.readouterr().out
    assert "nats per token" in text and "--t_low=" in text
    sample.main([f"--ckpt={out / 'ckpt.pt'}", "--num_samples=3"])
    assert len(capsys.readouterr().out.splitlines()) >= 3
    config, _ = load(Config, ["config/bd3_pydoc.py"])
    assert (config.objective, config.block_length) == ("bd3", 8)
