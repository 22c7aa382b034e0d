"""The cascade against numbers recorded from the reference implementation.

The files are `$GOLDEN_DIR/cascade_$GOLDEN_SET.{npz,json}`; every size, case and name is read from
them, so that another set of the same layout can be run. The last test fails if an array or a fact
was never compared, so nothing recorded can be wrong unnoticed.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recorded import Recorded

from cascade.chain import overlap
from cascade.stages import Chunks, first_chunks, select
from checkpoint import load_weights
from configurator import UserError
from diffusion import SAMPLE_EPS, STEPS, Absorbing, LogLinear, ScoreEntropy, denoise_weights, grid
from model import Transformer
from objective import gumbel_argmax
from prepare.documents import Document
from prepare.importance import ABSENT, priorities, word_scores
from pretrained.published import UNTRAINED, from_sedd, to_sedd

RECORDED = Recorded("cascade")
ARRAYS, FACTS, USED = RECORDED.arrays, RECORDED.facts, RECORDED.used
gold, close, same = RECORDED.gold, RECORDED.close, RECORDED.same


def fact(name):
    """A recorded value of the JSON file."""
    USED.add(name)
    return FACTS[name]


# ---- labels and scores ---------------------------------------------------------------------------


def test_labels_of_words():
    recorded = fact("word_labels")
    _, tags, stops = zip(*recorded["words"], strict=True)
    assert priorities(list(tags), list(stops)) == recorded["labels"]


def points(words):
    """The reference has spaCy say what is a full stop; in the recorded words all of them are."""
    return [w == "." for w in words]


def test_scores_of_words():
    recorded = fact("keybert_scores")
    for words, result in zip(recorded["docs"], recorded["result"], strict=True):
        assert result["tokens"] == words
        ours = word_scores(words, points(words), recorded["table"], demote=True)
        assert ours == pytest.approx(result["scores"], rel=1e-6, abs=0)


def test_an_empty_document_shifts_no_other():
    """The reference took the table of the document before, and lost the last document; here each
    document is scored by itself. `result` is what not to do."""
    recorded = fact("keybert_scores_empty_doc_bug")
    wrong = {tuple(r["tokens"]): r["scores"] for r in recorded["result"]}
    for words in recorded["docs"]:
        ours = word_scores(words, points(words), recorded["table"], demote=True)
        known = [w.rstrip(".,;:!?").lower() in recorded["table"] for w in words]
        assert [score > ABSENT for score in ours] == known
        assert not any(known) or ours != wrong.get(tuple(words))


# ---- chunks and stages ---------------------------------------------------------------------------

LENGTHS = [FACTS["lens"][f"stage{k}"] for k in (1, 2, 3)]
KINDS = {"constituency": "labels", "keybert": "scores"}


def document(ids, kind, values):
    """One recorded document; without words, each token is one."""
    word = np.arange(len(ids), dtype=np.int32)
    label = np.array(values, np.int8) if kind == "labels" else None
    score = np.array(values, np.float32) if kind == "scores" else None
    return Document(np.array(ids, np.uint16), label, score, word, word.astype(np.uint32))


def chunks_of(name):
    kind = KINDS[name]
    documents = [document(d["ids"], kind, d[kind]) for d in fact("docs")]
    (got,) = first_chunks(documents, LENGTHS[-1])
    return got


def kept_ids(chunks, lengths):
    """Ids of every stage in the chunks that are kept, and which these are."""
    places, kept = select(chunks, lengths, "token")
    return [np.take_along_axis(chunks.ids[kept], p, 1).tolist() for p in places], kept


@pytest.mark.parametrize("name", KINDS)
def test_chunks(name):
    got, recorded = chunks_of(name), fact(f"chunks_{name}")
    assert got.ids.tolist() == recorded["input_ids"]
    wanted = np.array(recorded[KINDS[name]], got.importance.dtype)
    np.testing.assert_array_equal(got.importance, wanted)
    assert {len(row) for row in got.ids} == set(fact("chunks_constituency_keep_last_lengths"))


@pytest.mark.parametrize("name", KINDS)
def test_stages(name):
    chunks, recorded = chunks_of(name), fact(f"subsets_{name}")
    (*short, whole), kept = kept_ids(chunks, LENGTHS)
    assert whole == recorded["input_ids"]
    for k, ids in enumerate(short, 1):
        assert ids == recorded[f"input_ids_stage{k}"], k
    places, _ = select(chunks, LENGTHS, "token")
    for k, where in enumerate(places[:-1], 1):
        values = np.take_along_axis(chunks.importance[kept], where, 1)
        if f"labels_stage{k}" in recorded:
            assert values.tolist() == recorded[f"labels_stage{k}"], k
    if name == "keybert":
        filtered = fact("filtered_keybert")
        assert whole == filtered["input_ids"]
        score = np.array(filtered["scores"], np.float32)
        np.testing.assert_array_equal(chunks.importance[kept], score)


@pytest.mark.parametrize("kind", ["scores", "labels"])
def test_edge_cases_of_stages(kind):
    for case in fact("filter_cases_keybert" if kind == "scores" else "subset_cases_constituency"):
        one = document(case["ids"], kind, case[kind])
        value = one.label if one.score is None else one.score
        chunks = Chunks(*(np.asarray(a)[None] for a in (one.ids, value, one.word, one.key)))
        got, kept = kept_ids(chunks, [case["stage1"], case["stage2"], len(case["ids"])])
        assert kept.tolist() == [case["kept"]], case
        if case["kept"]:
            values = case.get("out", {})
            wanted = [values.get(f"input_ids_stage{k}") or [case[f"stage{k}_ids"]] for k in (1, 2)]
            assert got[:2] == wanted, case


# ---- network and loss ----------------------------------------------------------------------------


def network():
    """The recorded network; the head that it never uses is left out."""
    state = {k[3:]: gold(k) for k in ARRAYS if k.startswith("sd.")}
    layers = sum(k.endswith(".attn_qkv.weight") for k in state)
    V, width = state["vocab_embed.embedding"].shape
    heads = width // (2 * len(state["rotary_emb.inv_freq"]))
    net = Transformer(V, layers, heads, width, len(state["sigma_map.mlp.0.weight"])).eval()
    load_weights(net, from_sedd(state), RECORDED.name)
    assert set(state) >= UNTRAINED
    assert FACTS["lens"]["mask_id"] == FACTS["lens"]["tokens"] == V - 1
    return net


NET = network()
GRAPH = Absorbing(fact("lens")["tokens"])
PROCESS = ScoreEntropy(GRAPH, LogLinear(), scale_by_sigma=True)
STAGES = (1, 2, 3)


@torch.no_grad()
def log_score(ids, sigma, **more):
    """(B, T), (B,) -> (B, T, V)."""
    h = NET.features(ids, sigma, **more)
    each = sigma[:, None].expand_as(ids).flatten()
    z = PROCESS.log_score(NET, h.flatten(0, 1), ids.flatten(), each)
    return z.unflatten(0, ids.shape)


def prefix_of(stage):
    """What is given to a stage: (B, P)."""
    return gold("stage1_ids")[:, :0] if stage == 1 else gold(f"stage{stage - 1}_ids")


def test_the_unused_head_is_whole_or_absent():
    """Weights with and without it are read; with a part of it, or with more, they are refused."""
    state = {k[3:]: gold(k) for k in ARRAYS if k.startswith("sd.")}
    without = {k: v for k, v in state.items() if k not in UNTRAINED}
    assert from_sedd(without).keys() == from_sedd(state).keys()
    for name in UNTRAINED:
        with pytest.raises(KeyError, match=name):
            from_sedd({k: v for k, v in state.items() if k != name})
    with pytest.raises(UserError, match="prediction_head"):
        from_sedd({**state, "prediction_head.2.bias": torch.zeros(1)})


def test_noise():
    t = gold("t").double()
    close(PROCESS.noise.total(t), "sigma", 1e-5, 1e-7)
    close(PROCESS.noise.rate(t), "dsigma", 1e-5, 1e-7)


@pytest.mark.parametrize("stage", STAGES)
def test_forward(stage):
    name = f"s{stage}."
    ids = torch.cat([prefix_of(stage), gold(name + "perturbed")], 1)
    same(ids, name + "model_input")
    hidden = []
    hook = NET.blocks[-1].register_forward_hook(lambda m, i, o: hidden.append(o))
    close(log_score(ids, gold("sigma")), name + "log_score", 0, 1e-5)
    hook.remove()
    # the head that nobody uses, on our features before the last norm
    norm, weight, bias = (
        gold(f"sd.prediction_head.{k}") for k in ("0.weight", "1.weight", "1.bias")
    )
    unused = F.linear(F.layer_norm(hidden[0], norm.shape, norm), weight, bias)[..., 0]
    close(unused, name + "mask_logits", 0, 1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_loss_and_gradients(stage):
    name, prefix = f"s{stage}.", prefix_of(stage)
    x0 = torch.cat([prefix, gold(f"stage{stage}_ids")], 1)
    xt, written = gold(name + "model_input"), torch.zeros_like(x0, dtype=torch.bool)
    written[:, prefix.shape[1] :] = True
    sigma, rate = gold("sigma"), gold("dsigma")
    NET.zero_grad()
    nats, each, row, _ = PROCESS.score_entropy(NET, PROCESS.noisy(x0, xt, written, sigma, rate))
    close(torch.zeros(len(x0)).index_add_(0, row, each), name + "loss", 1e-4, 0)
    masked = gold(name + "perturbed") == GRAPH.mask_id
    entropy = torch.zeros(masked.shape).masked_scatter(masked, each / rate[row])
    close(entropy, name + "entropy", 1e-4, 1e-6)
    mean = nats / len(x0)
    assert mean.item() == pytest.approx(fact(name + "loss_mean"), rel=1e-4)
    mean.backward()
    grads = to_sedd({k: p.grad for k, p in NET.named_parameters()}, len(NET.blocks))
    recorded = fact(name + "grad_norms")
    assert set(grads) == set(recorded) and set(fact(name + "no_grad_params")) == UNTRAINED
    for key, norm in recorded.items():
        assert grads[key].norm().item() == pytest.approx(norm, rel=1e-3), key


# ---- prefixes ------------------------------------------------------------------------------------


def test_permuted_prefix():
    """Permuting the prefix is permuting the numbers of its places."""
    order, sigma, P = gold("perm.index"), gold("sigma"), gold("stage2_ids").shape[1]
    plain, permuted = gold("s3.model_input"), gold("perm.model_input")
    assert torch.equal(permuted[:, :P], plain[:, :P].gather(1, order))
    assert torch.equal(permuted[:, P:], plain[:, P:])
    close(log_score(permuted, sigma), "perm.log_score", 0, 1e-5)
    positions = torch.arange(plain.shape[1]).repeat(len(plain), 1)
    positions[:, :P] = order.argsort(1)  # where each token of the prefix stands when permuted
    renamed = log_score(plain, sigma, positions=positions)[:, P:]
    seen, true = log_score(permuted, sigma)[:, P:], log_score(plain, sigma)[:, P:]
    recorded = fact("perm.max_abs_diff_suffix_token_perm_vs_position_perm")
    assert (renamed - seen).abs().max() <= 1e-6 and recorded <= 1e-6
    change = fact("perm.max_abs_diff_suffix_vs_unpermuted")
    assert (seen - true).abs().max().item() == pytest.approx(change, abs=2e-5)


def test_sensitivity():
    """Each way to get the prefix or the noise wrong changes the outputs as it did there."""
    sigma, ids, given = gold("sigma"), gold("s3.perturbed"), gold("stage2_ids")
    P, L = given.shape[1], ids.shape[1]
    right = log_score(torch.cat([given, ids], 1), sigma)[:, P:]
    wrong = {
        "no_prefix": log_score(ids, sigma),
        "other_prefix": log_score(torch.cat([(given + 1) % GRAPH.n, ids], 1), sigma)[:, P:],
        "prefix_after_suffix": log_score(torch.cat([ids, given], 1), sigma)[:, :L],
        "sigma_times_1p1": log_score(torch.cat([given, ids], 1), sigma * 1.1)[:, P:],
    }
    recorded = fact("sensitivity")
    assert set(recorded) == set(wrong)
    for name, got in wrong.items():
        change = (got - right).abs().max().item()
        assert change == pytest.approx(recorded[name], abs=2e-5), name


# ---- sampling ------------------------------------------------------------------------------------


def step_weights(x, prefix, step, i):
    """Weights (B, L, V) of the step from time i of the grid; after the last one, the denoiser."""
    steps, noise = fact("steps"), PROCESS.noise
    times = grid(steps)
    sigma = noise.total(times[i])
    whole = log_score(torch.cat([prefix, x], 1), sigma.float().expand(len(x)))
    score = whole[:, prefix.shape[1] :].double().exp()
    if i == steps:
        return denoise_weights(GRAPH, x, score, sigma.expand_as(x))[..., : GRAPH.n]
    dsigma = sigma - noise.total(times[i + 1])
    if step == "euler":
        dsigma = (times[i] - times[i + 1]) * noise.rate(times[i])
    return STEPS[step](GRAPH, x, score, dsigma.expand_as(x))


@pytest.mark.parametrize("step", ["euler", "analytic"])
@pytest.mark.parametrize("stage", STAGES)
def test_sampler(stage, step):
    """Weights of every step and, with the recorded noise, the same draws."""
    name, prefix = f"samp{stage}.{step}.", prefix_of(stage)
    probs, u, states = gold(name + "probs"), gold(name + "u"), gold(name + "x")
    x = torch.full_like(states[0], GRAPH.mask_id)
    for i in range(len(u)):
        weights = step_weights(x, prefix, step, i)
        torch.testing.assert_close(weights, probs[i].double(), rtol=0, atol=1e-4)
        x = gumbel_argmax(weights, u[i])
        assert torch.equal(x, states[i]), (name, i)
    weights = step_weights(x, prefix, step, len(u))
    close(weights, name + "denoise_probs", 1e-4, 1e-4)
    same(gumbel_argmax(weights, gold(name + "denoise_u")), name + "final")


def test_grid():
    close(grid(fact("steps")), "timesteps", 0, 1e-6)
    assert fact("sampler_eps") == SAMPLE_EPS
    assert (1 - SAMPLE_EPS) / fact("steps") == pytest.approx(fact("dt"), rel=1e-9)


def test_overlap():
    for case in fact("overlap"):
        source, target = (
            gold(case[k]) if isinstance(case[k], str) else torch.tensor(case[k])
            for k in ("source", "target")
        )
        assert overlap(source, target).mean().item() == pytest.approx(case["value"], abs=1e-7)


# ---- everything ----------------------------------------------------------------------------------


def test_zz_everything_recorded_is_compared(request):
    """Runs last. Only where the whole file runs is the set of compared values complete."""
    ran = {i.function.__name__ for i in request.session.items if i.fspath == request.node.fspath}
    everything = {n for n in globals() if n.startswith("test_")}
    if ran != everything:
        pytest.skip("a part of this file runs")
    assert (set(ARRAYS) | set(FACTS)) - USED == set()
