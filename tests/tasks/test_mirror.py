"""Samples that mirror themselves: what holds for every objective that can write them."""

from itertools import pairwise

import pytest
import torch
from exact import Given

from checkpoint import build_network, build_objective
from configurator import Config, UserError
from diffusion import Affine, Masked, ScoreEntropy, Uniform
from objective import SampleOptions, generator
from tasks.mirror import partners, sample

SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 16, "cond_dim": 8}
CASES = [
    ("masked", {}),
    ("masked", {"time_input": False}),
    ("sedd", {}),
    ("sedd", {"normalize": True}),
    ("sedd", {"graph": "uniform", "noise": "geometric"}),
    ("bd3", {}),
    ("ar", {}),
    ("xlnet", {}),
]


def network(name, options, vocab_size=7):
    if name == "xlnet":
        pytest.importorskip("transformers")
    cfg = Config(objective=name, **SMALL, **options)
    objective = build_objective(cfg, {"vocab_size": vocab_size, "specials": {}})
    torch.manual_seed(0)
    net = build_network(cfg, objective)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net.eval(), objective


def mirrored(objective, net, ids, given, seed=0, **options):
    mirror = torch.arange(ids.shape[1]).flip(0).expand_as(ids)
    return [*sample(objective, net, ids, given, mirror, generator(seed), SampleOptions(**options))]


@pytest.mark.parametrize("remask", ["none", "conf"])
@pytest.mark.parametrize("name, options", CASES)
def test_pairs_are_equal_in_every_frame(name, options, remask):
    net, objective = network(name, options)
    ids = torch.full((32, 7), 3)
    given = torch.tensor([True, False, False, False, False, False, True]).expand_as(ids)
    for sampler in objective.samplers:
        own = {"sampler": sampler, "steps": 6, "remask": remask}
        fixed = sampler in ("first_hitting", "analytic", "euler") or len(objective.samplers) == 1
        if remask != "none" and fixed:
            with pytest.raises(UserError):
                mirrored(objective, net, ids, given, **own)
            continue
        frames = mirrored(objective, net, ids, given, **own)
        for before, frame in pairwise(frames):
            assert torch.equal(frame.ids, frame.ids.flip(1)), sampler
            assert torch.equal(frame.changed, frame.ids != before.ids), sampler
        assert (frames[-1].length == 7).all() and (frames[-1].ids[:, [0, 6]] == 3).all()
        assert not (
            frames[-1].ids == (-1 if objective.mask_id is None else objective.mask_id)
        ).any()
        assert frames[-1].ids[:, 1:6].unique().numel() > 2  # and not by being all the same


class Seen:
    """A network that keeps what it was shown."""

    def __init__(self, net):
        self.net, self.head, self.time, self.shown = net, net.head, net.time, []

    def features(self, ids, *args, **options):
        self.shown.append(ids.clone())
        return self.net.features(ids, *args, **options)

    def logits(self, h):
        return self.net.logits(h)


@pytest.mark.parametrize("cfg", [0.0, 1.5])
def test_the_network_sees_both_halves(cfg):
    """Every canvas that it is called on mirrors itself, rows of other lengths and axes too."""
    net, objective = network("masked", {})
    net = Seen(net)
    mirror = torch.stack([torch.tensor([0, 4, 3, 2, 1, 5]), torch.tensor([0, 3, 2, 1, 4, 5])])
    given = torch.tensor([[True] + [False] * 4 + [True], [True] + [False] * 3 + [True] * 2])
    ids = torch.tensor([[5, 0, 0, 0, 0, 6], [5, 0, 0, 0, 6, 6]])
    o = SampleOptions(sampler="confidence", steps=4, cfg=cfg, banned=(5, 6))
    *_, last = sample(objective, net, ids, given, mirror, generator(0), o)
    assert torch.equal(last.ids, last.ids.gather(1, mirror)) and (last.ids[given] > 4).all()
    rows = torch.cat(net.shown)
    assert len(rows) >= 4 and all(any(torch.equal(x, x[m]) for m in mirror) for x in rows)


class Blind(Given):
    """Logits (T, V) whatever stands on the canvas."""

    def features(self, ids, time=None, mask=None):
        return self.outputs.expand(len(ids), -1, -1)


@pytest.mark.parametrize("sampler", ["ancestral", "first_hitting", "random", "confidence"])
def test_law_of_a_pair(sampler):
    """A network whose law hangs on the place alone: every pair has the mean of both laws."""
    n, ids = 20_000, torch.zeros(20_000, 3, dtype=torch.int64)
    logits = torch.randn(3, 4, generator=generator(4), dtype=torch.float64) * 1.5
    p = logits[:, :3].softmax(1)  # MASK, the last id, is never written
    p = (p + p.flip(0)) / 2
    net, objective = Blind(logits), Masked(3, None, Affine())
    *_, last = mirrored(objective, net, ids, ids > 0, sampler=sampler, steps=5)
    found = torch.nn.functional.one_hot(last.ids, 3).double().mean(0)
    error = (p * (1 - p) / n).sqrt()
    assert ((found - p).abs() < 4.5 * error).all()
    assert torch.equal(found[0], found[2])


def test_law_of_a_pair_on_the_uniform_graph():
    """Two networks that have the scores of a pair in either order write the same texts."""
    logits = torch.randn(3, 3, generator=generator(4)) * 1.5
    found = []
    for table in (logits, logits.flip(0)):
        objective = ScoreEntropy(Uniform(3), Affine())
        net = Blind(table)
        ids = torch.zeros(64, 3, dtype=torch.int64)
        found.append(mirrored(objective, net, ids, ids > 0, steps=20)[-1].ids)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "options, word",
    [({"block_length": 2}, "block_length"), ({"stop": 2}, "stop"), ({"cache": "dual"}, "cache")],
)
def test_what_writes_from_the_left_is_refused(options, word):
    net, objective = network("masked", {})
    ids = torch.zeros(2, 6, dtype=torch.int64)
    with pytest.raises(UserError, match=word):
        mirrored(objective, net, ids, ids > 0, **options)
    net, objective = network("bd3", {"block_length": 2})
    with pytest.raises(UserError, match="block_length"):
        mirrored(objective, net, ids, ids > 0)
    net, objective = network("bd3", {"block_length": 6})
    last = mirrored(objective, net, ids, ids > 0)[-1].ids
    assert torch.equal(last, last.flip(1))


def test_partners():
    """The text lies between given special tokens."""
    ids, given = torch.tensor([5, 1, 0, 0, 6, 7]), torch.tensor([1, 1, 0, 0, 1, 1]).bool()
    assert partners(ids, given, [5, 6, 7]).tolist() == [0, 3, 2, 1, 4, 5]
    assert partners(ids, given, []).tolist() == [5, 4, 3, 2, 1, 0]
