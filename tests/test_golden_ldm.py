"""The ModernBERT diffusion model against numbers recorded from its scripts, re-expressed.

The files are `$GOLDEN_DIR/masked_$GOLDEN_SET.ldm.{npz,json}`; sizes, cases and names are read from
them, so that another set of the same layout can be run. The last test fails if an array was never
compared, so nothing recorded can be wrong unnoticed.
"""

import json
import re

import numpy as np
import pytest
import torch
from exact import Given, Table
from recorded import Recorded

import diffusion
from corpus import Batch, Corpus, CorpusWriter
from diffusion import Clamped
from objective import SampleOptions, generator
from prepare_pretrain import chunks
from prepare_sft import join
from tokenizer import HF, chat_rows, decode_answer, encode_chat

RECORDED = Recorded("masked", "ldm")
ARRAYS, FACTS, USED = RECORDED.arrays, RECORDED.facts, RECORDED.used
gold, close, same = RECORDED.gold, RECORDED.close, RECORDED.same
SPECIALS = {  # our name -> the recorded token; what pads is EOS
    "bos": "<BOS>",
    "eos": "<EOS>",
    "pad": "<EOS>",
    "mask": "[MASK]",
    "start": "<START_ID>",
    "end": "<END_ID>",
    "eot": "<EOT_ID>",
}


@pytest.fixture(scope="module")
def tokenizer():
    return HF(json.dumps(FACTS["tokenizer_json"]), SPECIALS)


def question_of(fact):
    return join(fact["instruction"], fact["input"], "original")


# ---- tokenizer and chats -------------------------------------------------------------------------


def test_tokenizer(tokenizer):
    assert tokenizer.vocab_size == FACTS["len_tokenizer"]
    for token, number in FACTS["special_ids"].items():
        assert tokenizer.codec.token_to_id(token) == number
    assert tokenizer.specials == {k: FACTS["special_ids"][v] for k, v in SPECIALS.items()}


@pytest.mark.parametrize("fact", FACTS["chat"], ids=lambda f: f["instruction"])
def test_chats(fact, tokenizer):
    """Ids, the prompt and the answer mask; the rendered text is what the ids spell."""
    messages = [("user", question_of(fact)), ("assistant", fact["output"])]
    [(ids, prompt)] = chat_rows(tokenizer, messages)
    assert ids == fact["input_ids"] == encode_chat(tokenizer, messages)
    assert ids[:prompt] == fact["prompt_ids"]
    assert encode_chat(tokenizer, messages[:1], reply=True) == fact["prompt_ids"]
    assert [int(i >= prompt) for i in range(len(ids))] == fact["query_mask"]
    assert tokenizer.codec.decode(ids, skip_special_tokens=False) == fact["rendered"]
    assert decode_answer(tokenizer, ids[prompt:]) == fact["output"]


def test_collated_batch(tokenizer, tmp_path):
    """A batch is padded with EOS to the longest row; padding counts as answer."""
    longest = max(len(fact["input_ids"]) for fact in FACTS["chat"])
    with CorpusWriter(tmp_path / "sft", tokenizer) as out:
        for fact in FACTS["chat"]:
            messages = [("user", question_of(fact)), ("assistant", fact["output"])]
            for split in ("train", "val"):
                out.row(split, *chat_rows(tokenizer, messages)[0])
    batch = Corpus(tmp_path / "sft").batch("train", np.arange(len(FACTS["chat"])), longest)
    same(batch.ids, "sft_input_ids")
    same((~batch.prompt_mask).long(), "sft_query_mask")
    same((~batch.prompt_mask).sum(1, keepdim=True), "sft_answer_len")


CHUNKED = sorted(name for name in ARRAYS if name.startswith("chunks_ctx"))


@pytest.mark.parametrize("name", CHUNKED)
def test_chunks(name, tokenizer):
    """Each document is BOS, its ids, EOS, cut and padded with EOS."""
    length, special = int(re.search(r"ctx(\d+)", name)[1]), tokenizer.specials
    documents = [tokenizer.encode(text) for text in FACTS["chunk_docs"]]
    rows = [r for d in documents for r in chunks(d, length, special["bos"], special["eos"])]
    padded = [[*row, *[special["eos"]] * (length - len(row))] for row in map(list, rows)]
    same(torch.tensor(padded), name)


# ---- the network ---------------------------------------------------------------------------------


def test_modernbert():
    """Recorded weights in the network that their shapes and the described window tell."""
    pytest.importorskip("transformers")
    from checkpoint import build_network, load_weights
    from configurator import Config
    from diffusion import LogLinear, Masked
    from pretrained.published import BACKBONE, backbone_json

    state = {BACKBONE + n[6:]: gold(n) for n in ARRAYS if n.startswith("mb_sd.")}
    V, C = gold("mb_sd.decoder.weight").shape
    words = FACTS["modernbert"]
    number = {k: int(re.search(rf"{k} (\d+)", words)[1]) for k in ("layers", "heads")}
    every, window = (re.search(rf"{k} (\d+)", words)[1] for k in ("every", "local_attention"))
    told = {
        "model_type": "modernbert",
        "hidden_size": C,
        "intermediate_size": gold("mb_sd.model.layers.0.mlp.Wo.weight").shape[1],
        "num_hidden_layers": number["layers"],
        "num_attention_heads": number["heads"],
        "local_attention": int(window),
        "global_attn_every_n_layers": int(every),
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
        **dict.fromkeys(("cls_token_id", "sep_token_id"), 0),
    }
    cfg = Config(backbone=backbone_json(told, V), time_input=False)
    net = build_network(cfg, Masked(V, V - 1, LogLinear())).eval()
    load_weights(net, state, RECORDED.name)
    ids, seen = gold("mb_x"), gold("mb_attention_mask").bool()
    with torch.no_grad():
        close(net.logits(net.features(ids)), "mb_logits", 0, 1e-5)
        for mask in (seen[:, None], seen[:, None] & seen[:, :, None]):  # keys, or any pairs
            h = net.logits(net.features(ids, mask=mask))
            want = gold("mb_logits_masked")
            torch.testing.assert_close(h[seen], want[seen], rtol=0, atol=1e-5)


# ---- losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_losses(stage, monkeypatch):
    """Our loss with the recorded times and uniforms. The recorded softmax includes MASK, which ours
    leaves out unless it is told not to."""
    ids, outputs, u = gold("sft_input_ids"), gold("logits"), gold("u")
    given = (gold("sft_query_mask") == 0) & (stage == "sft")
    assert gold("logits_seed").shape == (1,)  # of the logits, which are recorded themselves
    own, seen = diffusion.chunked_cross_entropy, []

    class Recorded(diffusion.Masked):
        def cross_entropy(self, net, noisy):
            seen.append(noisy.scored)
            return super().cross_entropy(net, noisy)

    monkeypatch.setattr(diffusion, "chunked_cross_entropy", lambda *args: own(*args[:4]))
    monkeypatch.setattr(diffusion, "low_discrepancy_uniform", lambda B, rng: gold("t"))
    monkeypatch.setattr(torch, "rand", lambda *_, **__: u)
    kind = "answer" if stage == "sft" else "token"
    mask_id = FACTS["special_ids"][SPECIALS["mask"]]
    process = Recorded(outputs.shape[2], mask_id, Clamped(), loss_per=kind)
    batch = Batch(ids, given, torch.full_like(ids[:, 0], ids.shape[1]))
    loss = process.loss(Given(outputs), process.corrupt(batch, generator(0)))
    close(loss.sum / loss.count, f"{stage}_loss", 1e-5, 1e-6)
    same(seen[0], f"{stage}_mask")


# ---- sampling ------------------------------------------------------------------------------------


def kept(left, step, steps):
    """How many of `left` the recorded scripts leave masked: its float32 grid, truncated."""
    times = torch.linspace(1, 0, steps + 1)
    return int(times[step + 1] / times[step] * left)


def by_truncation(left, step, steps):
    return left - torch.tensor([kept(int(n), step, steps) for n in left])


@pytest.fixture
def truncated(monkeypatch):
    """Their numbers of places per step as a schedule of ours."""
    monkeypatch.setitem(diffusion.SCHEDULES, "truncated", by_truncation)


@pytest.mark.parametrize("fact", FACTS["lowconf_count_rule"], ids=str)
def test_count_rule(fact, truncated):
    """Places left after each step. Theirs goes on with the flags of the last ones once none would
    be left; ours is done then: it lists zeros."""
    [quota] = diffusion.num_transfer_tokens(
        torch.tensor([fact["masked"]]), fact["steps"], "truncated"
    )
    left = (fact["masked"] - quota.cumsum(0)).tolist()
    assert (left[:8], left[-8:]) == (fact["counts_head"], fact["counts_tail"])
    assert left.index(0) == fact["first_zero"]


RUNS = sorted({m[1] for m in (re.match(r"samp_(\w+?)_A$", n) for n in ARRAYS) if m})


def run(name, **options):
    """Our canvases (T,), greedy, from the start on, each once."""
    net, prompt = (
        Table(*(gold(f"samp_{name}_{part}") for part in "ABCG")),
        gold(f"samp_{name}_prompt"),
    )
    T, V, _ = net.outputs.shape
    ids = torch.cat([prompt, torch.zeros(T - len(prompt), dtype=torch.int64)])[None]
    given = (torch.arange(T) < len(prompt))[None]
    process = diffusion.Masked(V, V - 1, Clamped())
    options = SampleOptions(temperature=0.0, **options)
    frames = [f.ids[0] for f in process.sample(net, ids, given, generator(0), options)]
    return once(frames), V - 1


def once(states):
    """Canvases in a row without repeats."""
    return [x for i, x in enumerate(states) if i == 0 or not torch.equal(x, states[i - 1])]


@pytest.mark.parametrize("name", RUNS)
def test_random_order(name, monkeypatch):
    """A place stays masked while its uniform is below s / t: in which step each is revealed is
    taken from the recorded ones, everything else is the ancestral sampler's, which goes from event
    to event."""
    R, want = gold(f"samp_{name}_R")[:, 0], gold(f"samp_{name}_random_states")
    times = torch.linspace(1, 0, len(R) + 1)
    due = (R >= (times[1:] / times[:-1])[:, None]).int().argmax(0)

    def replayed(mask_prob, u):
        assert mask_prob.shape == (1, len(R) + 1)
        return due[None]

    monkeypatch.setattr(diffusion, "unmask_step", replayed)
    ours, mask = run(name, sampler="ancestral", steps=len(R))
    assert torch.equal(torch.stack(ours), torch.stack(once([ours[0], *want[:, 0]])))
    flags = (want[:, 0] == mask).long()  # masked and still to be written are the same
    same(torch.stack([want[:, 0], flags], 1), f"samp_{name}_random_states")


@pytest.mark.parametrize("name", RUNS)
def test_confidence_order(name, monkeypatch, truncated):
    """Equal to the canvas in which nothing is masked. The recorded scripts never clear the flags of
    the places that they wrote last if that was before the last step, and draw their tokens again,
    the old ones in sight; ours leaves a text that is written."""
    want = gold(f"samp_{name}_low_confidence_states")
    options = {"sampler": "confidence", "unmask_schedule": "truncated", "steps": len(want)}
    ours, mask = run(name, **options)
    masked_ = want[:, 0] == mask
    full = int((~masked_.any(1)).int().argmax())  # the step after which none is masked
    assert torch.equal(torch.stack(ours), torch.stack(once([ours[0], *want[: full + 1, 0]])))
    assert torch.equal(want[:full, 1], masked_[:full].long())
    again = want[full:, 1] == 1  # what is written once more: the same places every time
    assert (again == (masked_[full - 1] if full else again[0])).all()
    for before, after in zip(want[full:-1, 0], want[full + 1 :, 0], strict=True):
        net = Table(*(gold(f"samp_{name}_{part}") for part in "ABCG"))
        drawn = net.features(before[None])[0].argmax(1)
        assert torch.equal(after, torch.where(again[0], drawn, before))


def test_zz_every_array_is_used(request):
    """Runs last. Only where the whole file runs is the set of compared arrays complete."""
    ran = {i.function.__name__ for i in request.session.items if i.fspath == request.node.fspath}
    everything = {n for n in globals() if n.startswith("test_")}
    if ran != everything:
        pytest.skip("a part of this file runs")
    assert set(ARRAYS) - USED == set()
