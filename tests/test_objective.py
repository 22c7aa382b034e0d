"""Every objective of the registry against enumeration and closed forms.

An objective added to checkpoint.py is tested here as it stands; VARIANTS lists the options of those
that have some. What only score entropy has (graphs, schedules, steps) is in test_diffusion.py.
"""

import itertools
import math

import pytest
import torch
from exact import Distribution, ExactNetwork, total_variation

from checkpoint import OBJECTIVES, build_network, build_objective
from configurator import Config
from corpus import Batch
from diffusion import MaskedTokens
from objective import SampleOptions, generator

VARIANTS = {
    "sedd": [
        {"graph": "absorb"},
        {"graph": "absorb", "normalize": True, "time_input": False},
        {"graph": "absorb", "noise": "geometric"},
        {"graph": "uniform"},
        {"graph": "uniform", "noise": "geometric"},
    ],
    "masked": [
        {"time_input": False},
        {"noise": "affine"},
        {"noise": "cosine", "zero_time": True},
        {"noise": "clamped", "padding": "crop", "random_length": 0.5},
        {"noise": "linear", "importance": True},
        {"noise": "cosine_squared", "padding": "ignore"},
    ],
    "bd3": [
        {"time_input": False},
        {"block_length": 1, "time_input": False},
        {"block_length": 2},
        {"block_length": 4, "zero_time": True, "padding": "ignore"},
    ],
    "udlm": [{}, {"predict": "leave_one_out", "noise": "cosine"}],
    "mlm": [{}, {"noise": "cosine", "padding": "ignore"}],
}
# whose texts have no places of their own: test_insertion.py and test_flex.py enumerate theirs
GROW = ("ilm", "idlm", "it", "flex")
FIXED = [name for name in OBJECTIVES if name not in GROW]
CASES = [(name, options) for name in FIXED for options in VARIANTS.get(name, [{}])]
SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 16, "cond_dim": 8}


def names(case):
    return case[0] + "".join(f"-{v}" for v in case[1].values())


@pytest.fixture(params=CASES, ids=names)
def objective(request):
    return make(*request.param, vocab_size=3)


def make(name, options, vocab_size):
    cfg = Config(objective=name, **SMALL, **options)
    return build_objective(cfg, {"vocab_size": vocab_size, "specials": {}})


def network(case, vocab_size, seed=0):
    """An untrained network of the objective with random outputs."""
    if case[0] == "xlnet":
        pytest.importorskip("transformers")
    cfg = Config(objective=case[0], **SMALL, **case[1])
    torch.manual_seed(seed)
    objective = make(*case, vocab_size)
    net = build_network(cfg, objective)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net.eval(), objective


def batch_of(ids, prompt=0):
    given = torch.arange(ids.shape[1]).expand_as(ids) < prompt
    return Batch(ids, given, torch.full((len(ids),), ids.shape[1]))


def samplers(objective):
    return objective.samplers


def run(objective, net, ids, given, seed=0, **options):
    rng = generator(seed)
    return list(objective.sample(net, ids, given, rng, SampleOptions(**options)))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_says_whether_it_grows(name):
    cfg = Config(objective=name, noise="geometric" if name == "idlm" else "loglinear")
    specials = {"bos": 4, "eos": 5, "pad": 6} if name in GROW else {}
    objective = build_objective(cfg, {"vocab_size": 7, "specials": specials})
    assert objective.inserts == (name in GROW)
    other = {"it": "loss", "ar": "nll", "xlnet": "nll"}
    assert objective.criterion == other.get(name, "bound")
    assert {"causal", "time", "vocab_size"} <= set(objective.network_kwargs) and objective.samplers


# ---- the bound -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [0, 1])
def test_bound_of_the_exact_network_is_the_likelihood(objective, prompt):
    """With the true score the bound is tight: its mean is -log p(written | given) for every text.
    A wrong weight, range of integration or prior term shifts it."""
    data = Distribution(3, 2)
    repeat = 3000
    ids = data.texts.repeat_interleave(repeat, 0)
    net = ExactNetwork(data, objective, prompt)
    bound = objective.bound(net, batch_of(ids, prompt), generator(1), samples=2)
    bound = bound.view(len(data.p), repeat)
    table = data.p.view(3, 3)
    exact = -table.log() if prompt == 0 else -(table / table.sum(1, keepdim=True)).log()
    error = (bound.mean(1) - exact.flatten()).abs()
    noise = bound.std(1) / math.sqrt(repeat)
    assert (error < 4.5 * noise + 2e-3).all(), (error, noise)


def test_bound_of_a_wrong_network_is_larger(objective):
    data = Distribution(3, 2)
    wrong = ExactNetwork(Distribution(3, 2, seed=5), objective)
    batch = batch_of(data.draw(4000, generator(2)))
    bound = objective.bound(wrong, batch, generator(3), samples=2).mean()
    entropy = -(data.p * data.p.log()).sum()
    assert bound > entropy + 0.02


def test_training_loss_estimates_the_bound(objective):
    """Their means agree but for the ends of t that training leaves out (t < 1e-3, and the noise
    that is left at t = 1)."""
    data = Distribution(3, 2)
    net = ExactNetwork(Distribution(3, 2, seed=5), objective)
    ids = data.draw(40000, generator(4))
    loss = objective.loss(net, objective.corrupt(batch_of(ids), generator(5)))
    if isinstance(objective, MaskedTokens):
        pytest.skip("its loss is a mean over the masked tokens")
    bound = objective.bound(net, batch_of(ids), generator(6)).mean()
    assert loss.count == ids.numel()
    assert float(loss.sum.detach()) / len(ids) == pytest.approx(float(bound), rel=0.06)


# ---- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=names)
def test_loss_and_gradients_are_finite_and_reach_every_parameter(case):
    net, objective = network(case, 7)
    loss = objective.loss(net, objective.corrupt(batch_of(torch.randint(7, (16, 5))), generator(0)))
    loss.sum.backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
    assert all(len(m) == 2 and m.isfinite().all() for m in loss.metrics.values())


@pytest.mark.parametrize("case", CASES, ids=names)
def test_given_tokens_are_neither_corrupted_nor_scored(case):
    """All given: nothing to learn. One written: only its own row of the loss remains."""
    net, objective = network(case, 7)
    ids = torch.randint(7, (8, 5))
    loss = objective.loss(net, objective.corrupt(batch_of(ids, prompt=5), generator(0)))
    assert loss.count == 0 and float(loss.sum) == 0
    seen = []
    inner = net.features

    def spy(x, *rest, **more):
        seen.append(x.clone())
        return inner(x, *rest, **more)

    net.features = spy
    count = objective.loss(net, objective.corrupt(batch_of(ids, prompt=4), generator(0))).count
    assert count == 8 if case[0] != "mlm" else 0 < count < 8  # the masked ones
    objective.bound(net, batch_of(ids, prompt=4), generator(0))
    for x in seen:
        assert torch.equal(x[:, :4], ids[:, :4])


@pytest.mark.parametrize("case", CASES, ids=names)
def test_rows_of_a_batch_are_independent(case):
    """A row's bound does not change with its neighbours."""
    net, objective = network(case, 7)
    ids = torch.randint(7, (6, 5))
    other = ids.clone()
    other[1:] = (other[1:] + 1) % 7
    one = objective.bound(net, batch_of(ids), generator(3), samples=3)
    two = objective.bound(net, batch_of(other), generator(3), samples=3)
    assert one[0] == pytest.approx(float(two[0]), rel=1e-6)
    assert not torch.allclose(one[1:], two[1:])


@pytest.mark.parametrize("case", CASES, ids=names)
def test_same_generator_same_loss(case):
    net, objective = network(case, 7)
    batch = batch_of(torch.randint(7, (6, 5)))
    first, again, other = (
        objective.loss(net, objective.corrupt(batch, generator(i))).sum for i in (1, 1, 2)
    )
    assert first == again
    if case[1].get("block_length") != 1 and case[0] != "ar":  # where nothing is drawn
        assert first != other


# ---- samplers ------------------------------------------------------------------------------------


def test_samplers_of_the_exact_network_reproduce_the_distribution(objective):
    """Total variation of 10,000 draws from an enumerated law. Sampling alone gives about 0.012;
    any sign, order or off-by-one error of a sampler gives more than 0.05."""
    data = Distribution(3, 2)
    net = ExactNetwork(data, objective)
    ids = torch.zeros(10000, 2, dtype=torch.int64)
    given = torch.zeros_like(ids, dtype=torch.bool)
    for sampler in samplers(objective):
        if sampler in ("confidence", "margin", "entropy"):
            continue  # other laws, on purpose
        frames = run(objective, net, ids, given, sampler=sampler, steps=32)
        assert total_variation(frames[-1].ids, data) < 0.03, sampler


def test_samplers_respect_what_is_given(objective):
    """Given the first token, the second follows the conditional law."""
    data = Distribution(3, 2)
    net = ExactNetwork(data, objective, prompt=1)
    ids = torch.full((10000, 2), 1)
    given = torch.tensor([True, False]).expand_as(ids)
    conditional = data.p.view(3, 3)[1] / data.p.view(3, 3)[1].sum()
    for sampler in samplers(objective):
        x = run(objective, net, ids, given, sampler=sampler, steps=32)[-1].ids
        assert (x[:, 0] == 1).all()
        found = torch.bincount(x[:, 1], minlength=3) / len(x)
        assert (found - conditional).abs().max() < 0.025, sampler


@pytest.mark.parametrize("case", CASES, ids=names)
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_frames(case, steps):
    """From any network: given tokens stay in every frame, `changed` tells the truth, no MASK is
    left, ids lie in the vocabulary, and the same generator gives the same text."""
    net, objective = network(case, 7)
    ids = torch.randint(7, (9, 6))
    given = torch.rand(9, 6, generator=generator(8)) < 0.3
    given[0] = True
    for sampler in samplers(objective):
        frames = run(objective, net, ids, given, sampler=sampler, steps=steps)
        assert not frames[0].changed.any()
        for before, after in itertools.pairwise(frames):
            assert torch.equal(after.ids[given], ids[given])
            assert torch.equal(after.changed, before.ids != after.ids)
        last = frames[-1].ids
        assert last.min() >= 0 and last.max() < 7, sampler
        again = run(objective, net, ids, given, sampler=sampler, steps=steps)[-1].ids
        other = run(objective, net, ids, given, seed=1, sampler=sampler, steps=steps)[-1].ids
        assert torch.equal(last, again)
        assert sampler == "greedy_tail" or not torch.equal(last, other)  # which ends in argmax


@pytest.mark.parametrize("case", CASES, ids=names)
def test_banned_ids_are_never_written(case):
    net, objective = network(case, 7)
    ids = torch.zeros(64, 5, dtype=torch.int64)
    given = torch.zeros_like(ids, dtype=torch.bool)
    for sampler in samplers(objective):
        x = run(objective, net, ids, given, sampler=sampler, steps=5, banned=(0, 6))[-1].ids
        assert not ((x == 0) | (x == 6)).any(), sampler
