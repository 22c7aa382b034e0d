"""Insertion models against numbers recorded from the reference implementations: rows, losses,
gradients, samplers. The left-to-right, XLNet, FlexMDM and star parts of the set have files of their
own."""

import itertools
import json
import re

import pytest
import torch
from dilm import dilm
from exact import Given
from recorded import Recorded

import insertion
from diffusion import Exponential, Geometric, Linear
from insertion import (
    IDLM,
    Insertion,
    InsertionSampler,
    InsertionTransformer,
    drop_tokens,
    grouped_loss,
    log_factor,
    truncated_factor,
    whole_groups,
)
from model import Transformer
from objective import SampleOptions, generator
from pretrained import ilm

SET = Recorded("ilm")
SPECIALS = {"pad": 0, "cls": 1, "mask": 2, "eos": 3, "bos": 4}
# what other test files read, and what no test can use: see test_every_array_was_compared
ELSEWHERE = re.compile(r"(arlm|xlnet|flex)_.*")
UNUSED = re.compile(r".*_token_type_ids|.*_attention_mask|idlm_w.encoder.*.inv_freq")
V = SET.arrays["ilm_w.embed_tokens.weight"].shape[0]
ROOM = 4 * SET.arrays["pred_greedy_ids"].shape[1]  # more than is ever written
HEADS = int(re.search(r"(\d+) heads", SET.facts["keys"]["ilm_w.*"])[1])  # no tensor tells it


def weights():
    names = [n for n in SET.arrays if n.startswith("ilm_w.")]
    return {n.removeprefix("ilm_w."): SET.gold(n) for n in names}


def network(final_norm=False):
    state = weights()
    if final_norm:
        state["output_layer.norm_final.weight"] = SET.gold("ilm_norm_w")
        state["output_layer.norm_final.bias"] = SET.gold("ilm_norm_b")
    got, values = ilm.from_ilm(state)
    values.pop("objective"), values.pop("time_input")
    kind = values.pop("stop")
    heads = {kind: len(got[f"heads.{kind}.linear.weight"])}
    net = Transformer(V, n_head=HEADS, heads=heads, **values)
    missing = net.load_state_dict(got, strict=True)
    assert not missing.missing_keys
    return net.eval()


def recorded_rows(drop_name="drop"):
    """The recorded texts with the recorded tokens dropped, by our own code."""
    seq, drop = SET.gold("seq"), SET.gold(drop_name)
    length = SET.gold("seq_len") + 2
    ids = torch.cat([torch.tensor([[1, 4]]).expand(len(seq), 2), seq.clamp(min=0)], 1)
    dropped = torch.cat([torch.zeros(len(seq), 2, dtype=torch.bool), drop], 1)
    droppable = torch.arange(ids.shape[1]) < length[:, None]
    droppable[:, :2] = False
    return drop_tokens(ids, droppable, length, dropped, 0)


def counts(rows):
    """(row, column, token) -> how often, as the recordings list it."""
    got = torch.stack([rows.row, rows.col, rows.token], 1)
    places, times = got.unique(dim=0, return_counts=True)
    return torch.cat([places, times[:, None]], 1)


def test_rows():
    rows = recorded_rows()
    W = rows.ids.shape[1]
    want = SET.gold("ilm_input_ids")
    assert torch.equal(rows.ids, want[:, :W]) and (want[:, W:] == 0).all()
    assert torch.equal(counts(rows), SET.gold("ilm_target_coo").long())
    missing = torch.zeros_like(want).index_put_(
        (rows.row, rows.col), torch.ones_like(rows.row), accumulate=True
    )
    assert torch.equal(missing, SET.gold("ilm_n_drops").long())
    places = torch.arange(want.shape[1]).expand_as(want)
    assert torch.equal(torch.minimum(places, rows.length[:, None] - 1), SET.gold("ilm_positions"))


def test_the_in_place_layout_drops_the_same():
    """The paper's code keeps dropped tokens' columns: its column of a kept token is the original
    one; its targets, without multiplicity, and its losses are those of the compact layout."""
    dropped = SET.gold("paper_drop")
    rows = recorded_rows()
    kept = (~dropped).nonzero()
    original = [kept[kept[:, 0] == b][:, 1] for b in range(len(dropped))]
    got = [[r, int(original[r][c]), v] for r, c, v, _ in counts(rows).tolist()]
    assert got == SET.gold("paper_target_idx").tolist()
    assert torch.equal(dropped[:, 2 : 2 + SET.gold("drop").shape[1]], SET.gold("drop"))


@pytest.mark.parametrize("final_norm", [False, True])
def test_network(final_norm):
    net, ids = network(final_norm), SET.gold("ilm_input_ids")
    inside = torch.arange(ids.shape[1]) < recorded_rows().length[:, None]
    h = net.features(ids, None, inside[:, None])
    want = "ilm_logits_with_final_norm" if final_norm else "ilm_logits"
    got, values = net.logits(h)[inside], SET.gold(want)[inside]
    torch.testing.assert_close(got, values, rtol=1e-5, atol=2e-5)
    if not final_norm:
        SET.close(net.heads["stop"](h[:, 0]), "ilm_stop_logits", atol=1e-5)


CASES = {  # name: weight of the readout's loss, weight of its class "complete"
    "ilm_loss_plain": (1.0, None),
    "ilm_loss_owt": (0.001, 0.9),
    "ilm_loss_zebra": (0.001, None),
    "paper": (1.0, None),
}


@pytest.mark.parametrize("name", CASES)
def test_losses(name):
    weight, class_weight = CASES[name]
    objective = Insertion(V, SPECIALS, stop_weight=weight, class_weight=class_weight)
    net, rows = network(), recorded_rows()
    nats, ce, cls = objective.token_loss(net, rows, torch.ones(len(rows.ids)))
    stop = objective.stop_loss(net, cls, rows.n)
    SET.close(ce, f"{name}_ce")
    SET.close(stop / weight if name == "paper" else stop, f"{name}_stop", atol=1e-6)
    total = (nats + stop.sum()) / len(rows.ids)
    SET.close(total, "paper_loss" if name == "paper" else name)
    if name == "ilm_loss_plain":
        total.backward()
        embed = net.embed.weight.grad.clone()
        embed[0] = 0  # the reference does not learn its padding; no kept column attends to it
        SET.close(embed, "ilm_grad_embed", atol=1e-5)
        SET.close(net.head.weight.grad, "ilm_grad_out")
        SET.close(net.blocks[0].attn.qkv.weight.grad.norm(), "ilm_grad_l0_qkv_norm")


def test_one_softmax_over_all_pairs_in_chunks_of_whole_groups(monkeypatch):
    """Chunks change nothing: compared with the dense softmax over all pairs."""
    net, rows = network(), recorded_rows()
    objective = Insertion(V, SPECIALS)
    want, _, _ = objective.token_loss(net, rows, torch.ones(len(rows.ids)))
    gaps = (torch.arange(rows.ids.shape[1]) < rows.length[:, None]) & (rows.n > 0)[:, None]
    gaps[:, 0] = False
    _, h, number = objective.gap_features(net, rows, None, gaps)
    group = torch.unique_consecutive(gaps.nonzero()[:, 0], return_inverse=True)[1]
    weight = (1 / rows.n.clamp(min=1)).float()[rows.row]
    assert len(whole_groups(group, 1)) == int(group[-1]) + 1 > 1
    monkeypatch.setattr(insertion, "chunk_rows", lambda *_: 1)
    at = number[rows.row, rows.col]
    got, _ = grouped_loss(net, h, group, at, rows.token, weight)
    torch.testing.assert_close(got, want)


# ---- insertion transformer -----------------------------------------------------------------------


@pytest.mark.parametrize("eos_weight", SET.cases(r"it_loss_eos([\d.]+)"))
def test_insertion_transformer(eos_weight):
    objective = InsertionTransformer(V, SPECIALS, eos_weight=float(eos_weight))
    net, rows = network(final_norm=True), recorded_rows()
    gaps = torch.arange(rows.ids.shape[1]) < rows.length[:, None]
    gaps[:, 0] = False
    _, h, number = objective.gap_features(net, rows, None, gaps)
    at, token, weight = objective.targets(rows, gaps, number)
    nats, each = grouped_loss(net, h, torch.arange(len(h)), at, token, weight)
    SET.close(nats / len(h), f"it_loss_eos{eos_weight}")
    SET.close(each, f"it_nll_eos{eos_weight}")


def test_insertion_transformer_targets_and_logits():
    """The recorded targets list EOS at every column before a kept one, dropped columns included,
    where their loss ignores it; and CLS's own."""
    rows, dropped = recorded_rows(), SET.gold("it_drop")
    assert torch.equal(dropped, SET.gold("paper_drop"))
    ids = SET.gold("it_input_ids")
    kept = ~dropped & (torch.arange(ids.shape[1]) < (SET.gold("seq_len") + 2)[:, None])
    objective = InsertionTransformer(V, SPECIALS)
    gaps = torch.arange(rows.ids.shape[1]) < rows.length[:, None]
    gaps[:, 0] = False
    _, h, number = objective.gap_features(network(final_norm=True), rows, None, gaps)
    at, token, _ = objective.targets(rows, gaps, number)
    place = kept.clone()
    place[:, 0] = False
    place = place.nonzero()  # of the scored gaps, in the original columns
    got = torch.cat([place[at], token[:, None]], 1)
    got, times = got.unique(dim=0, return_counts=True)
    want = SET.gold("it_target_coo").long()
    want = want[kept[want[:, 0], want[:, 1]] & (want[:, 1] > 0)]
    want = want[want[:, :3].unique(dim=0, return_inverse=True)[1].argsort()]
    assert torch.equal(got, want[:, :3]) and torch.equal(times, want[:, 3])
    missing = torch.zeros_like(ids).index_put_(
        tuple(place[at][token != 3].T), torch.ones(int((token != 3).sum()), dtype=torch.int64), True
    )
    assert torch.equal(missing, SET.gold("it_counts").long())
    logits = network(True).logits(h)
    want = SET.gold("it_logits")[kept & (torch.arange(ids.shape[1]) > 0)]
    torch.testing.assert_close(logits, want, rtol=1e-5, atol=2e-5)


# ---- samplers ------------------------------------------------------------------------------------


def recorded_canvas():
    """The recorded state as a canvas: a hole behind every token whose gap is open."""
    x, closed = SET.gold("pred_x"), SET.gold("pred_constraint")
    size = (x != 0).sum(1)
    T = 2 * x.shape[1]
    ids, given = torch.zeros(len(x), T, dtype=torch.int64), torch.ones(len(x), T, dtype=torch.bool)
    for b, n in enumerate(size.tolist()):
        place = 0
        for token, shut in zip(x[b, 1:n].tolist(), closed[b, 1:n].tolist(), strict=True):
            ids[b, place] = token
            place += 1
            if not shut:
                given[b, place] = False
                place += 1
    return ids, given


def inserter(objective, net, **options):
    o = SampleOptions(capacity=ROOM, **options)
    return InsertionSampler(objective, net, *recorded_canvas(), generator(0), o)


def test_distributions_over_gaps_and_tokens():
    objective, net = Insertion(V, SPECIALS), network()
    run = inserter(objective, net, sampler="threshold")
    rows = torch.arange(len(run.x))
    h = run.forward(rows)
    p = net.heads["stop"](h[:, 0]).softmax(-1)[:, 0]
    SET.close(p, "pred_stop_prob")
    gaps, W = run.gaps(rows, h.shape[1]), SET.gold("pred_x").shape[1]
    a = run.gap_logits(h, gaps)
    SET.close(a.softmax(1)[:, :W], "pred_pos")
    token = run.logits(h.flatten(0, 1)).view(*gaps.shape, V).double().softmax(-1) * gaps[..., None]
    SET.close(token[:, :W], "pred_tok")
    SET.close((a.softmax(1)[..., None] * token)[:, :W], "pred_joint")


def test_strict_top_p_keeps_what_the_reference_keeps():
    from objective import process_logits

    p = SET.gold("pred_pos")
    limit = float(re.search(r"p=([\d.]+)", SET.facts["keys"]["pred_keep_top_p"])[1])
    kept = process_logits(p.log(), SampleOptions(top_p=limit, strict_p=True)) > -torch.inf
    SET.same(kept, "pred_keep_top_p")


@pytest.mark.parametrize(
    "gap", [None, SampleOptions(temperature=0), SampleOptions(top_k=1)], ids=["joint", "gap", "top"]
)
def test_greedy_insertions(gap):
    """So many, compared with the recorded text and, inserting order restored by the recorded
    positions, with the recorded state; the likeliest pairs, and the likeliest gaps first."""
    run = inserter(Insertion(V, SPECIALS), network(), sampler="threshold", temperature=0)
    more = {"sampler": "threshold", "temperature": 0, "stop_threshold": 2.0}
    run.o = SampleOptions(capacity=ROOM, **more, gap=gap)
    many = SET.gold("pred_greedy_unsorted").shape[1] - SET.gold("pred_x").shape[1]
    frames = list(itertools.islice(run.frames(), many + 1))
    want = SET.gold("pred_greedy_ids")
    unsorted, position = SET.gold("pred_greedy_unsorted"), SET.gold("pred_greedy_positions")
    for b, row in enumerate(frames[-1].ids):
        text = [1, *row[: frames[-1].length[b] - 1].tolist()]
        assert text == [i for i in want[b].tolist() if i]
        real = unsorted[b] != 0
        assert unsorted[b][real][position[b][real].argsort()].tolist() == text


def test_finished_slots():
    objective, net = InsertionTransformer(V, SPECIALS), network(final_norm=False)
    for normed in (False, True):
        net = network(normed)
        run = inserter(objective, net, sampler="serial")
        rows = torch.arange(len(run.x))
        h = run.forward(rows)
        gaps, W = run.gaps(rows, h.shape[1]), SET.gold("pred_x").shape[1]
        z = net.logits(h).double()
        z[..., [0, 1, 2, 4]] = -torch.inf
        p = (z.softmax(-1)[..., 3] * gaps)[:, :W]
        want = SET.gold("it_eos_prob")
        if torch.allclose(p, want.double(), atol=1e-5):
            assert torch.equal(run.finished(h, gaps)[:, :W] & gaps[:, :W], SET.gold("it_is_eos"))
            return
    raise AssertionError((p, want))


# ---- insertion diffusion -------------------------------------------------------------------------


def schedules():
    """The recorded schedules, their numbers read from the file's own description."""
    values = json.dumps(SET.facts["keys"]["idlm_rate_*"])
    number = r"([\d.]+)"
    sigma, c = map(float, re.search(rf"Poisson\(sigma={number},c={number}\)", values).groups())
    low, high = map(float, re.search(rf"LogLinear\(min {number},max {number}\)", values).groups())
    a, b = map(float, re.search(rf"Geometric\(min {number},max {number}\)", values).groups())
    return {
        "poisson": Linear(c, c + sigma),
        "loglinear": Exponential(low, high),
        "geometric": Geometric(a, b),
    }


def flag_sets():
    text = SET.facts["keys"]["idlm_loss_*"]
    return json.loads(text[text.index("{") :])


def idlm(noise, longest, **flags):
    """The reference's defaults are the plain loss; `flags` as recorded."""
    keys = "use_diffusion_weight_for_ce use_diffusion_weight_for_length_loss use_n_drops_for_ce "
    plain = dict.fromkeys((keys + "use_incomplete_gamma_factor").split(), False)
    options = {**plain, **flags}
    return IDLM(V, SPECIALS, noise, longest=longest, upstream_rules=True, **options)


@pytest.mark.parametrize("name", schedules())
def test_schedules(name):
    noise, t = schedules()[name], SET.gold("idlm_t").double()
    SET.close(noise.total(t), f"idlm_total_{name}")
    objective = idlm(noise, 24)
    SET.close(objective.slope(t) * (noise.total(t) + 1e-6), f"idlm_rate_{name}")
    if name == "loglinear":  # the recorded rate is not the slope of the recorded total
        t.requires_grad_()
        (slope,) = torch.autograd.grad(noise.total(t).sum(), t)
        torch.testing.assert_close(noise.rate(t), slope)


class Recording(Given):
    """A network whose outputs are the recorded ones: their logits, and those of the length."""

    def __init__(self, outputs, length):
        super().__init__(outputs)
        self.heads = torch.nn.ModuleDict({"length": torch.nn.Identity()})
        self.heads["length"].forward = lambda h: length

    def features(self, ids, time=None, mask=None):
        return self.outputs[:, : ids.shape[1]]


def recorded_weight(name):
    return SET.gold(f"idlm_w.{name}")


def recording(message=None):
    """The published network on the recorded rows, told the recorded times or what is said."""
    message = SET.gold("idlm_batch_t") if message is None else message
    ids, length = SET.gold("ilm_input_ids"), recorded_rows().length
    return Recording(*dilm(ids, length, message, HEADS, recorded_weight))


def test_published_diffusion_network():
    """The restatement that stands in for it below."""
    net, rows = recording(), recorded_rows()
    inside = torch.arange(net.outputs.shape[1]) < rows.length[:, None]
    got, want = net.outputs[inside], SET.gold("idlm_logits")[inside]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    SET.close(net.heads["length"](None), "idlm_length_logits", atol=1e-5)


@pytest.mark.parametrize("schedule", schedules())
@pytest.mark.parametrize("flags", flag_sets())
def test_idlm_losses(schedule, flags):
    time, rows = SET.gold("idlm_batch_t").double(), recorded_rows()
    noise, values = schedules()[schedule], flag_sets()[flags]
    net = recording(time if values["send_t_to_model"] else noise.total(time))
    objective = idlm(noise, net.heads["length"](None).shape[1], **values)
    every = torch.ones(len(time), dtype=torch.bool)
    loss = objective.loss(net, rows._replace(time=time, has_target=every))
    SET.close(loss.sum / loss.count, f"idlm_loss_{schedule}_{flags}")
    for key, name in (("ce", "ce"), ("length", "len")):
        want = SET.gold(f"idlm_{name}_{schedule}_{flags}")
        torch.testing.assert_close(loss.metrics[key][0], want.sum(), rtol=1e-5, atol=1e-5)
    # each row by itself: what the sums above cannot tell apart
    for b in range(len(time)):
        one = rows._replace(time=time, has_target=torch.arange(len(time)) == b)
        alone = objective.loss(net, one)
        both = SET.gold(f"idlm_ce_{schedule}_{flags}") + SET.gold(f"idlm_len_{schedule}_{flags}")
        torch.testing.assert_close(alone.sum, both[b], rtol=1e-5, atol=1e-5)


def test_mean_number_of_missing_tokens():
    net = recording()
    objective = idlm(Linear(0.5, 6.5), 24)
    SET.close(objective.mean_missing_count(net, None), "idlm_mean_delta_l")
    SET.close(objective.mean_missing_count(net, None, 0.5), "idlm_mean_delta_l_T0.5")


@pytest.mark.parametrize("schedule", schedules())
def test_factors(schedule):
    noise, n = schedules()[schedule], recorded_rows().n
    total = noise.total(SET.gold("idlm_batch_t").double())
    SET.close(truncated_factor(n, total).exp(), f"idlm_gamma_{schedule}")


@pytest.mark.parametrize("schedule", schedules())
def test_insertion_probabilities(schedule):
    """p = dt rate lambda / total; lambda is read off the first of them, all others must follow."""
    names = [k for k in SET.facts["keys"] if k.startswith(f"idlm_pred_p_{schedule}_T")]
    values = SET.facts["keys"][names[0]]  # the times are in its words
    values = [float(t) for t in re.search(r"t=\[([\d., ]+)\]", values)[1].split(",")]
    noise, time = schedules()[schedule], torch.tensor(values, dtype=torch.float64)
    objective = idlm(noise, 24)
    steps = [int(n) for n in SET.cases(rf"idlm_pred_p_{schedule}_T(\d+)")]
    first = SET.gold(f"idlm_pred_p_{schedule}_T{steps[0]}").double()
    mean = first * (steps[0] + 1) / objective.slope(time)
    net = recording()
    objective.mean_missing_count = lambda *_: mean
    for T, begun in itertools.product(steps, (False, True)):
        rate = objective.insertion_rate(net, None, time, ~torch.tensor([begun] * len(time)))
        name = f"idlm_pred_p_{'' if begun else 'first_'}{schedule}_T{T}"
        SET.close(rate / (T + 1), name)


def test_factor_is_exact():
    """Against the definition: a Poisson tail over a Poisson probability, in logarithms."""
    n = torch.tensor([0.0, 1, 2, 7, 20, 107, 500, 0.5, 3.7])
    for x in (0.01, 0.5, 3.0, 60.0, 700.0):
        k = torch.arange(4000, dtype=torch.float64)
        x = torch.tensor(x, dtype=torch.float64)
        terms = torch.lgamma(n[:, None].double() + 1) + k * x.log()
        terms = terms - torch.lgamma(n[:, None] + k + 1)
        torch.testing.assert_close(log_factor(n, x), terms.logsumexp(1), rtol=1e-9, atol=1e-9)


def test_every_array_was_compared():
    rest = {n for n in SET.arrays if not ELSEWHERE.fullmatch(n) and not UNUSED.fullmatch(n)}
    assert not rest - SET.used, sorted(rest - SET.used)
