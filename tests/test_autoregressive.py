"""Texts written in an order: exact likelihoods and laws by enumeration, and where rows begin and
end."""

import itertools
import math
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from exact import Distribution, ExactNetwork, total_variation

import evaluate
import sample
from autoregressive import LeftToRight, RandomOrder
from checkpoint import build_network, build_objective
from configurator import Config, UserError
from corpus import Batch
from diffusion import LogLinear, MaskedTokens
from objective import SampleOptions, generator

T, V = 3, 7
PAD, BOS, EOS = 4, 5, 6
ROWS = {"pad": PAD, "bos": BOS, "eos": EOS}
KINDS = {"ar": LeftToRight, "xlnet": RandomOrder}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def network(kind, specials=ROWS, vocab_size=V, seed=0, scale=0.4, **more):
    """An objective and its network with random weights."""
    if kind == "xlnet":
        pytest.importorskip("transformers")
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 12}
    cfg = Config(**{**sizes, "objective": kind, **more})
    objective = build_objective(cfg, {"vocab_size": vocab_size, "specials": specials})
    net, rng = build_network(cfg, objective).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) * scale)
    return objective, net


def batch_of(rows, prompts, width=0, fill=PAD):
    """Rows of ids of any length -> a batch of `width` columns."""
    width = width or max(map(len, rows))
    ids = torch.tensor([row + [fill] * (width - len(row)) for row in rows])
    given = torch.arange(width) < torch.tensor(prompts)[:, None]
    return Batch(ids, given, torch.tensor([len(row) for row in rows]))


def bounds_alone(objective, net, rows, prompts):
    """Each row's bound in a batch of its own."""
    pairs = zip(rows, prompts, strict=True)
    batches = [batch_of([row], [prompt]) for row, prompt in pairs]
    return torch.cat([objective.bound(net, one, generator(0)) for one in batches])


def write(objective, net, ids, given, seed=0, **options):
    rng = generator(seed)
    return list(objective.sample(net, ids, given, rng, SampleOptions(**options)))


# ---- enumeration ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", range(T))
@pytest.mark.parametrize("seed", [0, 5])
def test_bound_is_the_likelihood(kind, prompt, seed):
    """-log q(written | given) of every text, q the law of the network, right or wrong."""
    model, process = Distribution(3, T, seed), KINDS[kind](3, {})
    net, texts = ExactNetwork(model, process), Distribution(3, T).texts
    given = torch.arange(T).expand_as(texts) < prompt
    batch = Batch(texts, given, torch.full((len(texts),), T))
    joint = model.p.view(3**prompt, -1)
    want = -(joint / joint.sum(1, keepdim=True)).log().flatten()
    found = process.bound(net, batch, generator(0))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, want, rtol=0, atol=2e-6)
    loss = process.loss(
        net, process.corrupt(batch, generator(1))
    )  # of consistent conditionals, in any order
    assert float(loss.sum.detach()) == pytest.approx(float(want.sum()), rel=1e-5)
    assert loss.count == len(texts) * (T - prompt)


@pytest.mark.parametrize("given", [(), (0,), (0, 1), (2,), (1,)])
def test_law_of_samples(kind, given):
    """Total variation of 20,000 draws, of which sampling alone gives 0.015, from the law given what
    stands before; a random order also knows what stands behind."""
    data, process = Distribution(3, T), KINDS[kind](3, {})
    net, N, values = ExactNetwork(data, process), 20_000, torch.tensor([1, 0, 2])
    places = torch.zeros(N, T, dtype=torch.bool)
    places[:, list(given)] = True
    x = write(process, net, values.expand(N, T), places)[-1].ids
    assert torch.equal(x[places], values.expand(N, T)[places])
    law = torch.zeros_like(data.p)
    for k, text in enumerate(data.texts):
        if kind == "xlnet":  # the conditional law given all of it
            law[k] = data.p[k] * all(text[i] == values[i] for i in given)
            continue
        law[k] = 1.0  # token after token, each given those before it
        for i in range(T):
            before = (data.texts[:, :i] == text[:i]).all(1)
            here = before & (data.texts[:, i] == text[i])
            forced = float(text[i] == values[i])
            law[k] *= forced if i in given else data.p[here].sum() / data.p[before].sum()
    target = Distribution(3, T)
    target.p = law / law.sum()
    assert total_variation(x, target) < 0.03


# ---- the loss against a plain one ----------------------------------------------------------------


def test_loss_left_to_right_is_a_plain_cross_entropy():
    """Of the whole logits, shifted by one, with its gradients; rows with and without a prompt."""
    objective, net = network("ar")
    rows = [[BOS, 1, 2, EOS], [BOS, 3, 0, 1, 2, EOS], [0, 1, 3], [BOS, EOS]]
    batch = batch_of(rows, [2, 1, 0, 1])
    loss = objective.loss(net, objective.corrupt(batch, generator(0)))
    loss.sum.backward()
    grads = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    each = []
    for row, prompt in zip(rows, [2, 1, 0, 1], strict=True):
        row = row if prompt else [BOS, *row]
        z = net.logits(net.features(torch.tensor([row])))[0]
        goal = torch.tensor(row)
        each.append(F.cross_entropy(z[:-1], goal[1:], reduction="none")[max(0, prompt - 1) :])
    assert [len(e) for e in each] == [2, 5, 3, 1] and loss.count == 11  # EOS is one of them
    total = torch.cat(each).sum()
    assert float(loss.sum.detach()) == pytest.approx(float(total.detach()), rel=1e-5)
    total.backward()
    for found, p in zip(grads, net.parameters(), strict=True):
        torch.testing.assert_close(found, p.grad, rtol=1e-4, atol=1e-4)
    bound = objective.bound(net, batch, generator(0))
    torch.testing.assert_close(bound.float(), torch.stack([e.sum() for e in each]).detach())


@torch.no_grad()
def test_a_query_sees_what_comes_before_it_and_nothing_else():
    """Random order, in XLNet itself: its own token, later ones and padding are without effect."""
    _, net = network("xlnet")
    ids = torch.tensor([[BOS, 0, 1, 2, 3, EOS, PAD]])
    order = torch.tensor([0, 1, 4, 2, 5, 3])
    mask = torch.zeros(1, 7, 7, dtype=torch.bool)
    mask[:, :6, :6] = order < order[:, None]
    columns = torch.tensor([[3, 5, 2, 4]])  # in their order
    want = net.features(ids, None, mask, columns)
    for place in range(7):
        other = ids.clone()
        other[0, place] = (ids[0, place] + 1) % 4
        moved = (net.features(other, None, mask, columns) - want).abs().amax((0, 2)) > 1e-6
        rank = int(order[place]) if place < 6 else 9
        assert moved.tolist() == [rank < int(order[c]) for c in columns[0]], place


@torch.no_grad()
def test_bound_of_a_random_order_is_that_of_its_sampler():
    """The sum of -log p of the tokens at each step, from the network itself."""
    objective, net = network("xlnet")
    batch = batch_of([[BOS, 1, 2, 0, EOS], [BOS, 3, EOS]], [1, 1])
    want = []
    for ids, length in zip(batch.ids, batch.length.tolist(), strict=True):
        nats, x = 0.0, ids[None]
        for col in range(1, length):
            mask = (torch.arange(5) < torch.arange(5)[:, None])[None]
            z = net.logits(net.features(x, None, mask, torch.tensor([[col]])))[0, 0]
            nats -= float(z.log_softmax(0)[ids[col]])
        want.append(nats)
    found = objective.bound(net, batch, generator(0))
    torch.testing.assert_close(found, torch.tensor(want).double(), rtol=1e-5, atol=1e-5)


def test_orders_are_uniform():
    """All 6 orders of three targets are as frequent, whatever the prompt."""
    objective, _ = network("xlnet")
    seen = []

    class Spy(torch.nn.Module):
        head = torch.nn.Linear(2, V)

        def features(self, ids, time, mask, columns):
            seen.append(columns)
            return torch.zeros(*columns.shape, 2)

    rows = batch_of([[BOS, 1, 2, EOS], [BOS, 1, 2, 3, EOS]] * 3000, [1, 2] * 3000)
    objective.loss(Spy(), objective.corrupt(rows, generator(0)))
    for columns in (seen[0][::2], seen[0][1::2] - 1):
        code = (columns * torch.tensor([100, 10, 1])).sum(1)
        kinds, counts = code.unique(return_counts=True)
        assert len(kinds) == 6 and (counts / 3000 - 1 / 6).abs().max() < 0.03


# ---- where rows begin and end --------------------------------------------------------------------


@torch.no_grad()
def test_padding_is_neither_seen_nor_scored(kind):
    """Its ids and its width are without effect, also on the loss and its count."""
    objective, net = network(kind)
    rows, prompts = [[BOS, 1, 2, 0, EOS], [BOS, 3, EOS], [BOS, EOS]], [2, 1, 1]
    whole = [batch_of(rows, prompts, w, f) for w, f in ((5, PAD), (9, PAD), (9, 2))]
    bounds = [objective.bound(net, b, generator(0)) for b in whole]
    torch.testing.assert_close(bounds[0], bounds[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bounds[1], bounds[2], rtol=1e-5, atol=1e-6)
    losses = [objective.loss(net, objective.corrupt(b, generator(0))) for b in whole[1:]]
    assert (
        [x.count for x in losses]
        == [6, 6]
        == [int(objective.target_mask(b).sum()) for b in whole[1:]]
    )
    assert float(losses[0].sum) == pytest.approx(float(losses[1].sum), rel=1e-5)
    alone = bounds_alone(objective, net, rows, prompts)
    torch.testing.assert_close(alone, bounds[0], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_rows_with_and_without_a_prompt_in_one_batch(kind):
    """Each as if it were alone: those without stand behind START."""
    objective, net = network(kind)
    rows, prompts = [[1, 2, 3, 0], [1, 2, 3, 0], [BOS, 2, 3, 0]], [0, 1, 1]
    bounds = objective.bound(net, batch_of(rows, prompts), generator(0))
    alone = bounds_alone(objective, net, rows, prompts)
    torch.testing.assert_close(bounds, alone, rtol=1e-5, atol=1e-6)
    begun = objective.bound(net, batch_of([[BOS, 1, 2, 3, 0]], [1]), generator(0))
    torch.testing.assert_close(bounds[:1], begun, rtol=1e-5, atol=1e-6)  # START is BOS here
    batch = batch_of(rows, prompts)
    together = write(objective, net, batch.ids, batch.prompt_mask, temperature=0)[-1].ids
    for i, ids in enumerate(together):
        own = write(
            objective, net, batch.ids[i : i + 1], batch.prompt_mask[i : i + 1], temperature=0
        )
        assert torch.equal(own[-1].ids[0], ids)


@pytest.mark.parametrize(
    "specials, start", [(ROWS, BOS), ({"eos": 2, "pad": 2}, 2), ({"mask": 1}, V), ({}, V)]
)
@torch.no_grad()
def test_start(kind, specials, start):
    """BOS, else EOS, else a row of the network's own, which is never a token."""
    objective, net = network(kind, specials)
    assert objective.start == start and objective.network_kwargs["vocab_size"] == max(V, start + 1)
    batch = batch_of([[0, 1, 3], [3, 3, 1]], [0, 0])
    before = objective.bound(net, batch, generator(0))
    if start == V:
        net.head.bias[V] = 50.0
        torch.testing.assert_close(objective.bound(net, batch, generator(0)), before)
        x = write(objective, net, batch.ids, batch.prompt_mask, temperature=3.0)[-1].ids
        assert int(x.max()) < V
    seen = []
    inner = net.features
    net.features = lambda ids, *rest, **more: seen.append(ids) or inner(ids, *rest, **more)
    objective.bound(net, batch, generator(0))
    assert (seen[0][:, 0] == start).all() and torch.equal(seen[0][:, 1:3], batch.ids[:, :2])


@torch.no_grad()
def test_rows_of_a_network_that_are_no_tokens(kind):
    """A backbone may have more rows than the tokenizer has tokens."""
    objective, net = network(kind, vocab_size=V + 3)
    narrow = KINDS[kind](V, ROWS)
    batch = batch_of([[BOS, 1, 2, EOS]], [1])
    before = narrow.bound(net, batch, generator(0))
    net.head.bias[V:] = 50.0
    torch.testing.assert_close(narrow.bound(net, batch, generator(0)), before)
    assert objective.bound(net, batch, generator(0)) > before + 20
    ids = torch.full((4, 9), BOS)
    x = write(narrow, net, ids, torch.arange(9).expand_as(ids) < 1)[-1].ids
    assert int(x.max()) < V


@torch.no_grad()
def test_an_ended_row_is_padded_and_costs_nothing(kind):
    """Behind EOS, or `stop`, stands padding; given tokens stay, and rows leave the batch."""
    objective, net = network(kind)
    net.head.bias[EOS] = 1.0
    ids, calls = torch.full((40, 9), BOS), []
    given = torch.arange(9).expand_as(ids) < 1
    net.norm.register_forward_hook(lambda m, i, out: calls.append(len(out)))
    frames = write(objective, net, ids, given)
    x = frames[-1].ids
    ended = (x == EOS).cumsum(1) > 0
    behind = ended & ((x == EOS).cumsum(1) - (x == EOS).int() > 0)
    assert behind.any() and (x[behind] == PAD).all() and ((x == EOS).sum(1) <= 1).all()
    written = (~given & ~behind).sum(1)
    assert sum(calls) == int(written.sum()) < 40 * 8 and len(calls) == len(frames) - 1
    assert (frames[-1].length == 9).all() and (frames[0].length == 1).all()
    for before, after in itertools.pairwise(frames):
        assert torch.equal(after.changed, before.ids != after.ids)
        assert (after.length > before.length).any() and (after.length >= before.length).all()
    other = write(objective, net, ids, given, stop=0)[-1].ids
    cut = ((other == 0) | (other == EOS)).int().cumsum(1) - (
        (other == 0) | (other == EOS)
    ).int() > 0
    assert (other == 0).any() and (other[cut] == PAD).all()
    endless = KINDS[kind](V, {"bos": BOS, "eos": EOS})  # no padding: a stream of texts
    x = write(endless, net, ids, given)[-1].ids
    assert ((x == EOS).sum(1) > 1).any()


@torch.no_grad()
def test_what_is_given_stays_and_is_reached(kind):
    """Given tokens anywhere; no text ends before one of them, unless that is padding."""
    objective, net = network(kind)
    net.head.bias[EOS] = 3.0
    ids = torch.tensor([[BOS, 0, 0, 3, 0, EOS, PAD, PAD], [BOS, 0, 0, 0, 0, 0, PAD, PAD]] * 20)
    given = torch.tensor([[1, 0, 0, 1, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0, 1, 1]] * 20).bool()
    x = write(objective, net, ids, given)[-1].ids
    assert torch.equal(x[given], ids[given])
    assert not (x[::2, 1:5] == EOS).any() and (x[1::2, 1:5] == EOS).any()


@torch.no_grad()
def test_law_and_likelihood_around_a_given_token(kind):
    """BOS _ 3 _ _: all 258 rows that can be written, EOS never before the given token, have
    likelihoods that add up to 1, and are written so often. What follows the given token is a part
    of the same text, and knows what stands before it."""
    objective, net = network(kind, scale=0.5)
    net.head.bias[EOS] = 1.0  # something would be lost if it were not banned
    others = [i for i in range(V) if i != EOS]
    rows = [[BOS, a, 3, EOS] for a in others]
    rows += [[BOS, a, 3, b, c] for a in others for b in others for c in range(V)]
    batch = batch_of(rows, [1] * len(rows))
    places = (torch.arange(5) == 0) | (torch.arange(5) == 2)
    batch = batch._replace(prompt_mask=places.expand(len(rows), 5))
    law = (-objective.bound(net, batch, generator(0))).exp()
    assert float(law.sum()) == pytest.approx(1, abs=1e-5)
    ids = torch.tensor([[BOS, 0, 3, 0, 0]]).expand(20_000, 5)
    x = write(objective, net, ids, places.expand(20_000, 5))[-1].ids
    number = {tuple(row): k for k, row in enumerate(batch.ids.tolist())}
    count = torch.zeros(len(rows)).index_add_(
        0, torch.tensor([number[tuple(row)] for row in x.tolist()]), torch.ones(len(x))
    )
    assert float((count / len(x) - law).abs().sum() / 2) < 0.06
    loss = objective.loss(net, objective.corrupt(batch, None))  # training's is the same
    assert float(loss.sum) == pytest.approx(float(-law.log().sum()), rel=1e-5)


@pytest.mark.parametrize("specials", [ROWS, {"eos": PAD, "pad": PAD}])
@pytest.mark.parametrize("prompt", [0, 2])
@torch.no_grad()
def test_a_wider_canvas_is_the_same_text(kind, specials, prompt):
    """Given padding behind a text is without effect on it, also where START or EOS pads."""
    objective, net = network(kind, specials)
    ids, given = torch.tensor([[1, 2, 3, 0, 0]]), torch.arange(5)[None] < prompt
    drawn, inner = [], net.logits
    net.logits = lambda h: drawn.append(inner(h)) or drawn[-1].clone()
    narrow = write(objective, net, ids, given, temperature=0, banned=(PAD, EOS))[-1].ids
    wide, more = F.pad(ids, (0, 4), value=PAD), F.pad(given, (0, 4), value=True)
    found = write(objective, net, wide, more, temperature=0, banned=(PAD, EOS))[-1].ids
    assert torch.equal(found[:, :5], narrow) and (found[:, 5:] == PAD).all()
    steps = len(drawn) // 2
    torch.testing.assert_close(drawn[:steps], drawn[steps:], rtol=0, atol=1e-5)


@torch.no_grad()
def test_nothing_to_write(kind):
    """All given, no token at all, and a batch of single tokens."""
    objective, net = network(kind)
    for rows in ([[BOS, 1, EOS]], [[BOS]]):
        batch = batch_of(rows, [len(rows[0])], width=4)
        assert objective.bound(net, batch, generator(0)).tolist() == [0.0]
        loss = objective.loss(net, objective.corrupt(batch, generator(0)))
        assert loss.count == 0 and float(loss.sum) == 0
        given = torch.ones_like(batch.prompt_mask)
        frames = write(objective, net, batch.ids, given)
        assert len(frames) == 1 and torch.equal(frames[0].ids, batch.ids)
    one = Batch(torch.tensor([[3]]), torch.tensor([[True]]), torch.tensor([1]))
    assert objective.bound(net, one, generator(0)).tolist() == [0.0]


# ---- the sampler ---------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_cached_steps_are_a_whole_pass(positions):
    """Every logit that a token was drawn from is that of one pass over the finished text, whatever
    the lengths of the prompts, and the prompts are read in one call."""
    objective, net = network("ar", {"bos": BOS}, positions=positions)
    ids = torch.randint(4, (5, 10), generator=generator(1))
    given = torch.arange(10) < torch.tensor([3, 4, 5, 9, 10])[:, None]
    given[0, 6:8] = True
    drawn, inner, widths = [], net.logits, []
    net.logits = lambda h: drawn.append(inner(h)) or drawn[-1]
    net.embed.register_forward_hook(lambda m, i, out: widths.append(out.shape[:2]))
    x = write(objective, net, ids, given)[-1].ids
    assert widths[0] == (4, 3) and len(drawn) == len(widths) == 7
    assert [w[1] for w in widths[1:]] == [1] * 6
    whole = inner(net.features(x[:, :-1]))
    order = [(r, c) for c in range(10) for r in range(5) if not given[r, c]]
    want = torch.stack([whole[r, c - 1] for r, c in order])
    torch.testing.assert_close(torch.cat(drawn), want, rtol=0, atol=1e-5)


@torch.no_grad()
def test_options(kind):
    """Temperature 0 is the best token, top_k and banned as they say; what rests on writing in
    another order is refused."""
    objective, net = network(kind, {"bos": BOS})
    ids = torch.full((30, 6), BOS)
    given = torch.arange(6).expand_as(ids) < 1
    x = write(objective, net, ids, given, temperature=0)[-1].ids
    assert (x == x[0]).all()
    first = objective.bound(net, Batch(x[:1], given[:1], torch.tensor([6])), generator(0))
    for place in range(1, 6):  # no other token at one place is more likely there
        for token in range(V):
            other = x[:1].clone()
            other[0, place] = token
            upto = torch.tensor([place + 1])
            pair = [Batch(t, given[:1], upto) for t in (other, x[:1])]
            a, b = (objective.bound(net, one, generator(0)) for one in pair)
            assert a >= b - 1e-6
    assert float(first) > 0
    assert torch.equal(write(objective, net, ids, given, top_k=1)[-1].ids, x)
    assert torch.equal(write(objective, net, ids, given, top_p=0.0)[-1].ids, x)
    banned = tuple(x[0, 1:].unique().tolist())
    free = write(objective, net, ids, given, banned=banned)[-1].ids
    assert not torch.isin(free[:, 1:], torch.tensor(banned)).any()
    for wrong in ({"cfg": 1.0}, {"remask": "cap"}, {"delay": (1,)}, {"sampler": "confidence"}):
        with pytest.raises(UserError, match="|".join(wrong).replace("delay", "delay_eos")):
            write(objective, net, ids, given, **wrong)


def test_xlnet_needs_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    cfg = Config(objective="xlnet", n_layer=1, n_head=2, n_embd=8)
    objective = build_objective(cfg, {"vocab_size": V, "specials": ROWS})
    with pytest.raises(UserError, match=r"pip install 'transformers>=5\.1'"):
        build_network(cfg, objective)
    with pytest.raises(UserError, match="backbone"):
        build_network(replace(cfg, backbone="{}"), objective)


def test_xlnet_learns_with_dropout_of_the_run():
    """None unless asked; and every parameter is in use."""
    objective, net = network("xlnet", dropout=0.2)
    batch = batch_of([[BOS, 1, 2, EOS]], [1])
    losses = [
        objective.loss(net.train(), objective.corrupt(batch, generator(0))).sum for _ in range(2)
    ]
    assert losses[0] != losses[1]
    objective, net = network("xlnet")
    losses = [
        objective.loss(net.train(), objective.corrupt(batch, generator(0))).sum for _ in range(2)
    ]
    assert losses[0] == losses[1]
    assert len(net.blocks) == 2 and {p.ndim for p in net.matrices()} == {2}


# ---- runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["ar", "xlnet", "mlm"])
def test_commands(trained, data_dir, objective, capsys):
    """Train, sample and evaluate, as a user would; the corpus has given tokens and an EOS."""
    if objective == "xlnet":
        pytest.importorskip("transformers")
    ckpt = f"--ckpt={trained(objective=objective) / 'ckpt.pt'}"
    sample.main([ckpt, "--device=cpu", "--num_samples=3", "--prompt=ab"])
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ab") for line in lines[:3]) and "3 samples by" in lines[4]
    sample.main([ckpt, "--device=cpu", "--num_samples=3", "--infill=a[2]b"])
    lines = capsys.readouterr().out.splitlines()
    assert all(line[0] == "a" for line in lines[:3])
    evaluate.main([ckpt, "--device=cpu", f"--data={data_dir / 'tiny'}", "--samples=4"])
    told = capsys.readouterr().out
    assert "nats per token" in told and "mirrored" in told


# ---- masked language models ----------------------------------------------------------------------


class Constant(torch.nn.Module):
    """The same logits everywhere; keeps what it saw."""

    time = None

    def __init__(self, logits):
        super().__init__()
        self.head, self.seen = torch.nn.Linear(1, len(logits)), []
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.copy_(logits)

    def features(self, ids, time=None, mask=None):
        self.seen.append(ids)
        return torch.ones(*ids.shape, 1)


def test_loss_of_masked_tokens():
    """The mean over masked tokens of their cross entropy, rows with many and with few alike; as
    many are masked as the schedule says."""
    process = MaskedTokens(3, None, LogLinear())
    assert not process.network_kwargs["time"]
    net = Constant(torch.tensor([0.0, 1.0, 2.0, 9.0]))
    ids = torch.tensor([[0] * 6, [2] * 6] * 500)
    loss = process.loss(net, process.corrupt(batch_of(ids.tolist(), [0] * 1000), generator(0)))
    masked = net.seen[-1] == 3
    assert loss.count == int(masked.sum()) and 0.4 < loss.count / masked.numel() < 0.6
    nats = -torch.tensor([0.0, 1.0, 2.0]).log_softmax(0)
    share = masked[::2].sum() / masked.sum()
    want = share * nats[0] + (1 - share) * nats[2]
    assert float(loss.sum) / loss.count == pytest.approx(float(want), rel=1e-5)
    assert process.bound(net, batch_of([[0, 2]], [1]), generator(0)).item() == pytest.approx(
        float(nats[2]), rel=1e-5
    )
    empty = process.loss(net, process.corrupt(batch_of([[0, 2]], [2]), generator(0)))
    assert empty.count == 0 and math.isclose(float(empty.sum), 0)


def test_masked_language_model_has_no_time():
    cfg = Config(objective="mlm", n_layer=1, n_head=2, n_embd=8)
    objective = build_objective(cfg, {"vocab_size": V, "specials": ROWS})
    net = build_network(cfg, objective)
    assert net.time is None and objective.mask_id == V
    for wrong in ({"loss_per": "answer"}, {"importance": True}):
        with pytest.raises(UserError, match="mlm"):
            build_objective(replace(cfg, **wrong), {"vocab_size": V, "specials": ROWS})
