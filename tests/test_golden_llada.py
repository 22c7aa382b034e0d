"""LLaDA against numbers recorded from its own code: masking, losses, likelihood, sampling.

The files are `$GOLDEN_DIR/masked_$GOLDEN_SET.llada.{npz,json}`; every size, case and name is read
from them, so that another set of the same layout can be run. The last test fails if an array was
never compared, so nothing recorded can be wrong unnoticed.

LLaDA leaves MASK among the outputs that can be probable; ours are a law of real tokens. Where its
numbers depend on that, `unbanned` has our code do the same.
"""

import itertools
import math

import pytest
import torch
from exact import Given, Table
from recorded import Recorded

import diffusion
from corpus import Batch
from diffusion import Affine, Masked, MaskedSampler, answer_counts, num_transfer_tokens
from objective import SampleOptions, generator, gumbel_argmax, process_logits, sample_categorical

RECORDED = Recorded("masked", "llada")
ARRAYS, FACTS, USED = RECORDED.arrays, RECORDED.facts, RECORDED.used
gold, close, same, cases = RECORDED.gold, RECORDED.close, RECORDED.same, RECORDED.cases


def table(name):
    return Table(*(gold(f"{name}_{part}") for part in "ABCG"))


@pytest.fixture
def unbanned(monkeypatch):
    """MASK may be as probable as any token, in losses and in samples."""
    own = diffusion.chunked_cross_entropy
    monkeypatch.setattr(diffusion, "chunked_cross_entropy", lambda *args: own(*args[:4]))
    free = type("Free", (MaskedSampler,), {"never": lambda self: list(self.o.banned)})
    monkeypatch.setattr(diffusion, "MaskedSampler", free)


# ---- parts ---------------------------------------------------------------------------------------


def test_quotas():
    for fact in FACTS["num_transfer"]:
        name = f"ntt{fact['k']}_"
        ours = num_transfer_tokens(gold(name + "mask").sum(1), fact["steps"], "uniform")
        same(ours, name + "out")
        assert ours.tolist() == fact["out"]
    assert {f"{fact['k']}" for fact in FACTS["num_transfer"]} == set(cases(r"ntt(\d+)_mask"))


@pytest.mark.parametrize("name", cases(r"gumbel_argmax_T(.+)"))
def test_draw_with_recorded_noise(name):
    """Its argmax of exp(z) / (-log u)^T is a race at temperature T."""
    z, u, T = gold("gumbel_logits").double(), gold("gumbel_u"), float(name)
    close(z.exp() / (-u.log()) ** T if T else z, f"gumbel_out_T{name}")
    rows = process_logits(z.flatten(0, 1), SampleOptions(temperature=T))
    drawn = gumbel_argmax((rows - rows.amax(1, keepdim=True)).exp(), u.flatten(0, 1))
    same(drawn.view(z.shape[:2]), f"gumbel_argmax_T{name}")


@pytest.mark.parametrize("name", cases(r"gumbel_dist_freq_T(.+)"))
def test_draw_frequencies(name):
    z, options = gold("gumbel_dist_logits"), SampleOptions(temperature=float(name))
    close(process_logits(z[None], options).softmax(1)[0], f"gumbel_dist_softmax_T{name}")
    rows = 200_000
    drawn = sample_categorical(z.expand(rows, -1), options, generator(1))
    found = torch.bincount(drawn, minlength=len(z)).double() / rows
    close(found, f"gumbel_dist_freq_T{name}", 0, 0.005)


# ---- losses --------------------------------------------------------------------------------------


class Recorded(Masked):
    """Keeps what it scored last."""

    def cross_entropy(self, net, noisy):
        self.seen = noisy.xt, noisy.scored
        return super().cross_entropy(net, noisy)


def loss_of(monkeypatch, given, **options):
    """Our loss with the recorded times and uniforms -> (mean, noised ids, masked places)."""
    ids, outputs, t, u = (gold(k) for k in ("fp_ids", "loss_logits", "fp_t", "fp_u"))
    V = outputs.shape[-1]
    process = Recorded(V, V - 1, Affine(), **options)
    monkeypatch.setattr(diffusion, "low_discrepancy_uniform", lambda B, rng: t)
    monkeypatch.setattr(torch, "rand", lambda shape, generator: u)
    batch = Batch(ids, given, torch.full_like(ids[:, 0], ids.shape[1]))
    loss = process.loss(Given(outputs), process.corrupt(batch, generator(0)))
    return loss.sum / loss.count, *process.seen


def test_pretraining(monkeypatch, unbanned):
    ids, t = gold("fp_ids"), gold("fp_t")
    close(Affine().mask_prob(t)[:, None].expand_as(ids), "fp_pmask")
    mean, noisy, places = loss_of(monkeypatch, torch.zeros_like(ids, dtype=torch.bool))
    same(noisy, "fp_noisy")
    same(places, "fp_mask")
    close(mean, "loss_pretrain")


def test_fine_tuning(monkeypatch, unbanned):
    ids = gold("fp_ids")
    given = torch.arange(ids.shape[1]) < gold("sft_prompt_lengths")[:, None]
    mean, noisy, places = loss_of(monkeypatch, given, loss_per="answer")
    same(noisy, "sft_noisy")
    same(places, "sft_mask")
    same((~given).sum(1, keepdim=True).expand_as(ids), "sft_answer_lengths")
    close(mean, "loss_sft")


# ---- likelihood ----------------------------------------------------------------------------------


def test_counts():
    table = gold("ll_counts")
    for n, copies, k, *rest in table.tolist():
        ours = answer_counts(n, copies, k).tolist()
        assert rest == ours + [-1] * (len(rest) - copies), (n, copies, k)


def answer():
    """Objective, network, ids (T,) and what of them is given."""
    prompt, written = gold("ll_prompt"), gold("ll_answer")
    ids = torch.cat([prompt, written])
    net = table("ll")
    V = len(net.B)
    return Masked(V, V - 1, Affine()), net, ids, torch.arange(len(ids)) < len(prompt)


@pytest.mark.parametrize("name", cases(r"ll_value_cfg(.+)"))
def test_likelihood(name, monkeypatch, unbanned):
    """With the recorded counts and permutations, its estimate and the rows that it looked at."""
    process, net, ids, given = answer()
    counts, orders = gold(f"ll_k_cfg{name}"), gold(f"ll_perm_cfg{name}")
    first, places = iter(counts), iter(orders.argsort(2).double())
    monkeypatch.setattr(torch, "randint", lambda *_, **__: next(first))
    monkeypatch.setattr(torch, "rand", lambda *_, **__: next(places))
    batch = orders.shape[1]
    samples = len(counts) * batch
    ours = process.likelihood(net, ids, given, None, samples, batch, cfg=float(name))
    close(torch.tensor(ours, dtype=torch.float64), f"ll_value_cfg{name}")
    if float(name) == 0:
        same(torch.stack(net.calls), "ll_inputs")
    else:  # the second half of a call does not see the prompt
        seen, blind = torch.stack(net.calls).chunk(2, 1)
        assert (blind[:, :, given] == process.mask_id).all()
        assert (seen[:, :, given] == ids[given]).all()


def test_likelihood_converges_to_the_bound(unbanned):
    """The exact expectation, which the file gives and this enumerates, is 3 standard errors away
    at most, from `likelihood` and from `bound`."""
    process, net, ids, given = answer()
    want, n = float(gold("ll_exact_bound")), int((~given).sum())
    subsets = torch.tensor(list(itertools.product([False, True], repeat=n))[1:])
    places = torch.zeros(len(subsets), len(ids), dtype=torch.bool)
    places[:, ~given] = subsets
    rows = Batch(ids.expand_as(places), given.expand_as(places), places.sum(1))
    k = places.sum(1)
    chance = torch.tensor([1 / (n * math.comb(n, i)) for i in k.tolist()], dtype=torch.float64)
    nats = process.nats_by_row(net, process.noisy(rows, places, n / k.double(), k.double()))
    assert float(-(chance * nats).sum()) == pytest.approx(want, rel=1e-6)
    rng = generator(3)
    # in batches of n copies, all counts are equally frequent
    values = torch.tensor([process.likelihood(net, ids, given, rng, 8 * n, n) for _ in range(60)])
    assert abs(float(values.mean()) - want) < 3 * float(values.std()) / math.sqrt(len(values))
    many = Batch(ids.expand(400, -1), given.expand(400, -1), torch.full((400,), len(ids)))
    bounds = process.bound(net, many, rng, samples=4)
    assert abs(float(bounds.mean()) + want) < 3 * float(bounds.std()) / math.sqrt(len(bounds))


# ---- sampling ------------------------------------------------------------------------------------


def without_repeats(states):
    """Canvases (B, T) in a row, each once: neither side need agree on steps that do nothing."""
    kept = [states[0]]
    for state in states[1:]:
        if not torch.equal(state, kept[-1]):
            kept.append(state)
    return torch.stack(kept)


def generate(name, fact, **options):
    """Our network, with the calls that it had, and our canvases (steps + 1, B, T)."""
    net, prompt = table(name), gold(f"{name}_prompt")
    ids = torch.full((len(prompt), fact["seq"]), fact["mask_id"])
    ids[:, : prompt.shape[1]] = prompt
    given = (torch.arange(fact["seq"]) < prompt.shape[1]).expand_as(ids)
    process = Masked(fact["V"], fact["mask_id"], Affine())
    chosen = SampleOptions(
        sampler="confidence",
        temperature=0.0,
        steps=fact["steps"],
        block_length=fact["block_length"],
        **options,
    )
    frames = [f.ids for f in process.sample(net, ids, given, generator(0), chosen)]
    return net, torch.stack(frames)


def agree(name, fact, net, frames, repeats=False):
    """Ids, canvases and network calls. LLaDA also calls the network in steps that write nothing
    (its quota is 0, or all is written); such a call changes nothing, and ours is left out."""
    want = gold(f"{name}_states")
    same(frames[-1], f"{name}_out")
    assert torch.equal(without_repeats(frames), without_repeats(want)), name
    idle = sum(torch.equal(a, b) for a, b in itertools.pairwise(want)) * (not repeats)
    assert len(net.calls) == len(want) - 1 - idle
    assert len(want) - 1 == fact.get("model_calls", len(want) - 1)


GENERATED = [name for name in FACTS["cases"] if f"gen_{name}_out" in ARRAYS]
ENDING = [name for name in FACTS["cases"] if name not in GENERATED]


@pytest.mark.parametrize("name", [n for n in GENERATED if not FACTS["cases"][n]["masks_left"]])
def test_generate(name):
    fact = FACTS["cases"][name]
    agree(f"gen_{name}", fact, *generate(f"gen_{name}", fact, cfg=fact["cfg_scale"]))


@pytest.mark.parametrize("name", [n for n in GENERATED if FACTS["cases"][n]["masks_left"]])
def test_generate_where_mask_wins(name, request, monkeypatch):
    """LLaDA may write MASK, and ends with masks left; ours does not, unless it is made to. What is
    left over from a block then counts as open in the next, but has no share in its quota."""
    fact, size = FACTS["cases"][name], FACTS["cases"][name]["block_length"]
    _, ours = generate(f"gen_{name}", fact, cfg=fact["cfg_scale"])
    assert not (ours[-1] == fact["mask_id"]).any()
    request.getfixturevalue("unbanned")
    own = diffusion.num_transfer_tokens
    monkeypatch.setattr(
        diffusion, "num_transfer_tokens", lambda n, *rest: own(n.clamp(max=size), *rest)
    )
    net, frames = generate(f"gen_{name}", fact, cfg=fact["cfg_scale"])
    agree(f"gen_{name}", fact, net, frames, repeats=True)
    assert int((frames[-1] == fact["mask_id"]).sum()) == fact["masks_left"]


@pytest.mark.parametrize("name", ENDING)
def test_generate_with_end_tokens(name):
    fact = FACTS["cases"][name]
    banned = (fact["eos"],) if fact["logits_eos_inf"] else ()
    delay = (fact["eos"], fact["eot"]) if fact["confidence_eos_eot_inf"] else ()
    stem = "geneos_" + name.removeprefix("eos_")
    net, frames = generate(stem, fact, banned=banned, delay=delay)
    agree(stem, fact, net, frames)


def test_zz_every_array_is_used(request):
    """Runs last. Only where the whole file runs is the set of compared arrays complete."""
    ran = {i.function.__name__ for i in request.session.items if i.fspath == request.node.fspath}
    everything = {n for n in globals() if n.startswith("test_")}
    if ran != everything:
        pytest.skip("a part of this file runs")
    assert set(ARRAYS) - USED == set()
