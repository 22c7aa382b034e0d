"""The likelihood of a masked model in an order, by enumeration of all texts of three tokens."""

import itertools
import json
import math

import pytest
import torch
from exact import Distribution, ExactNetwork

import checkpoint
import evaluate
from checkpoint import build_network, build_objective
from configurator import Config, UserError
from corpus import Batch, Corpus
from diffusion import ORDERS, order_nats
from objective import SampleOptions, generator

T, N = 3, 3
META = {"vocab_size": N, "specials": {}}
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "cond_dim": 8, "block_size": T}
CASES = {
    "masked": {"objective": "masked"},
    "masked, no time": {"objective": "masked", "time_input": False},
    "mlm": {"objective": "mlm", "time_input": False},
    "sedd": {"objective": "sedd"},
    "radd": {"objective": "sedd", "normalize": True, "time_input": False},
    "bd3, 1": {"objective": "bd3", "block_length": 1},
    "bd3, 2": {"objective": "bd3", "block_length": 2},
    "bd3, whole": {"objective": "bd3"},
}
KNOWN = [order for order in ORDERS if order != "random"]  # the text tells which place comes next
TEXTS = torch.tensor(list(itertools.product(range(N), repeat=T)))  # (27, 3)


def made(case, seed=0):
    """An objective and a random network, whose conditionals are those of no joint law."""
    cfg = Config(**SIZES, **CASES[case])
    objective = build_objective(cfg, META)
    net, rng = build_network(cfg, objective), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) * 0.3)
    return objective, net.eval()


class Sharpened(ExactNetwork):
    """The conditionals of a law of texts to the power of 1.5: they are then those of none, and
    every order of writing has a law of its own."""

    def features(self, *inputs, **more):
        return 1.5 * super().features(*inputs, **more)


def batch_of(texts, prompt=0):
    given = torch.arange(texts.shape[1]).expand_as(texts) < prompt
    return Batch(texts, given, torch.full((len(texts),), texts.shape[1]))


def probabilities(objective, net, order, prompt=0):
    """(27,) of all texts."""
    return (-order_nats(objective, net, batch_of(TEXTS, prompt), generator(1), order)).exp()


def conditional(objective, net, canvas, place, left):
    """log p (N,) of the token at one place of a canvas (T,) by the network as it is trained."""
    share = torch.tensor([left / T], dtype=torch.float64).clamp(1e-5, 0.999)
    time = objective.condition(net, -torch.log1p(-share), "cpu")
    with torch.no_grad():
        z = net.logits(net.features(canvas[None], time))[0, place].double()
    return z[:N].log_softmax(0)


def by_hand(objective, net, text, places):
    """-log p of a text whose places are written one by one in this order."""
    canvas, nats = torch.full((T,), objective.mask_id), 0.0
    for k, place in enumerate(places):
        nats -= float(conditional(objective, net, canvas, place, T - k)[text[place]])
        canvas[place] = text[place]
    return nats


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("order", KNOWN)
def test_all_texts_together_have_probability_one(case, order):
    """Given nothing, and given the first token for each of its values."""
    objective, net = made(case)
    assert float(probabilities(objective, net, order).sum()) == pytest.approx(1, abs=1e-5)
    each = probabilities(objective, net, order, prompt=1).view(N, -1).sum(1)
    torch.testing.assert_close(each, torch.ones(N).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("order", KNOWN)
def test_frequencies_of_the_sampler(case, order):
    """Chi-square of 40,000 samples against the enumerated law, 26 degrees of freedom: above 54 once
    in a thousand. The law of another order gives more than 100, where it is another."""
    objective = build_objective(Config(**SIZES, **CASES[case]), META)
    net = Sharpened(Distribution(N, T, seed=18), objective)
    p, count = probabilities(objective, net, order), 40_000
    ids = torch.zeros(count, T, dtype=torch.int64)
    o = SampleOptions(sampler=order, steps=2 * T)
    *_, last = objective.sample(net, ids, ids > 0, generator(5), o)
    index = (last.ids * N ** torch.arange(T - 1, -1, -1)).sum(1)
    found = torch.bincount(index, minlength=N**T).double()

    def chi_square(p):
        return float(((found - count * p) ** 2 / (count * p)).sum())

    assert float(p.min()) * count > 3 and chi_square(p) < 54
    for other in KNOWN:
        q = probabilities(objective, net, other)
        assert (q - p).abs().sum() < 1e-9 or chi_square(q) > 100, other


@pytest.mark.parametrize("case", ["masked", "masked, no time", "mlm", "radd"])
def test_left_to_right_is_the_chain_rule(case):
    """Summed up by hand, text by text."""
    objective, net = made(case)
    got = order_nats(objective, net, batch_of(TEXTS), generator(1), "left_to_right")
    want = [by_hand(objective, net, text, range(T)) for text in TEXTS]
    torch.testing.assert_close(got, torch.tensor(want).double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["masked, no time", "mlm"])
def test_random_order_is_a_mean_over_orders(case):
    """By hand over all six; it is no less than -log of the mean of p, and without a time input it
    is the bound of masked diffusion."""
    objective, net = made(case)
    every = list(itertools.permutations(range(T)))
    nats = torch.tensor([[by_hand(objective, net, x, way) for way in every] for x in TEXTS])
    want = nats.mean(1).double()
    many = batch_of(TEXTS.repeat(60, 1))
    got = order_nats(objective, net, many, generator(1), "random", 5).view(60, -1)
    error = got.std(0) / math.sqrt(60)
    assert ((got.mean(0) - want).abs() < 4.5 * error + 1e-6).all()
    assert (want >= -nats.neg().exp().mean(1).log() - 1e-6).all()
    bound = objective.bound(net, many, generator(2), 5).view(60, -1)
    error = bound.std(0) / math.sqrt(60)
    assert ((bound.mean(0) - want).abs() < 4.5 * error + 1e-6).all()


@pytest.mark.parametrize("case", ["masked, no time", "radd", "bd3, 2"])
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_of_the_exact_network_is_the_law_itself(case, order):
    data = Distribution(N, T)
    objective = build_objective(Config(**SIZES, **CASES[case]), META)
    net = ExactNetwork(data, objective)
    got = order_nats(objective, net, batch_of(data.texts), generator(1), order)
    torch.testing.assert_close(got, -data.p.log(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("order", KNOWN)
@pytest.mark.parametrize("case", ["masked", "sedd", "bd3, 2"])
def test_a_row_does_not_depend_on_its_batch(case, order):
    """Alone or among others, which have prompts of other lengths."""
    objective, net = made(case)
    prompt = torch.arange(len(TEXTS))[:, None] % (T + 1)
    batch = Batch(TEXTS, torch.arange(T) < prompt, torch.full((len(TEXTS),), T))
    whole = order_nats(objective, net, batch, generator(1), order)
    assert (whole[prompt[:, 0] == T] == 0).all()
    for k in range(0, len(TEXTS), 5):
        alone = Batch(*(x[k : k + 1] for x in batch))
        got = order_nats(objective, net, alone, generator(1), order)
        torch.testing.assert_close(got, whole[k : k + 1], rtol=1e-5, atol=1e-5)


def test_padding_that_is_not_seen():
    """padding=ignore: a short row is scored as if there were no columns behind it."""
    objective, net = made("masked, no time")
    objective.padding = "ignore"
    length = torch.arange(len(TEXTS)) % T + 1
    batch = batch_of(TEXTS)._replace(length=length)
    got = order_nats(objective, net, batch, generator(1), "left_to_right")
    for k in range(3):
        alone = Batch(TEXTS[k : k + 1, : k + 1], batch.prompt_mask[:1, : k + 1], length[k : k + 1])
        want = order_nats(objective, net, alone, generator(1), "left_to_right")
        torch.testing.assert_close(got[k : k + 1], want, rtol=1e-5, atol=1e-5)


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_prints_it_beside_the_bound(trained, tmp_path, capsys):
    """The law and its standard error; the numbers are those of `order_nats`, in --json as well."""
    folder = trained(objective="masked", time_input=False)
    argv = [f"--ckpt={folder / 'ckpt.pt'}", "--rows=6", "--samples=0", "--t_samples=3"]
    for order in ("left_to_right", "confidence", "random"):
        evaluate.main([*argv, f"--order={order}", f"--json={tmp_path / order}"])
        printed = capsys.readouterr().out
        assert "at most " in printed and f"  in order {order}: " in printed
        law = "3 drawn orders for each" if order == "random" else "exact, by the chain rule"
        assert f"under --sampler={order} --temperature=1" in printed and law in printed
        got = json.loads((tmp_path / order).read_text())["bound"]
        model = checkpoint.load(str(folder / "ckpt.pt"))
        corpus = Corpus(f"{model.config.data_dir}/{model.config.dataset}")
        rows = evaluate.rows_of(corpus, "val", 6, model.config.block_size)
        batch = corpus.batch("val", rows, model.config.block_size)
        rng = generator(evaluate.EVALUATION, 0, 3)
        want = order_nats(model.objective, model.net, batch, rng, order, 3).sum()
        assert got["order_nats_per_token"] * got["tokens"] == pytest.approx(float(want))
        assert got["order_nats_per_token_error"] > 0
        bits = float(want) / math.log(2) / got["bytes"]
        assert got["order_bits_per_byte"] == pytest.approx(bits)


@pytest.mark.parametrize("more", [{"objective": "sedd", "graph": "uniform"}, {"objective": "ar"}])
def test_objectives_without_an_order_are_refused(trained, more):
    ckpt = f"--ckpt={trained(**more) / 'ckpt.pt'}"
    with pytest.raises(UserError, match=r"order: objective=.* it is for masked, mlm, bd3, or sedd"):
        evaluate.main([ckpt, "--order=left_to_right"])


@pytest.mark.parametrize("more", [["--answer=a"], ["--rows=0"], ["--compare=a,b"], ["--report=x"]])
def test_an_order_stands_beside_the_bound_alone(more):
    with pytest.raises(UserError, match="order must be left out"):
        evaluate.main(["--order=left_to_right", *more])
    with pytest.raises(UserError, match="order must be one of"):
        evaluate.main(["--order=backwards"])
