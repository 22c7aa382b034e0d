"""Constraints: what may be written where, in the law of every sampler and on the command line."""

import itertools
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from conftest import write_corpus
from exact import Distribution, ExactNetwork

import sample
from autoregressive import LeftToRight
from checkpoint import Model, build_network, build_objective
from configurator import Config, UserError
from diffusion import LogLinear, Masked, ScoreEntropy, Uniform, analytic_weights, denoise_weights
from insertion import InsertionSampler
from objective import Allowed, SampleOptions, generator
from sample import SampleConfig, allowed_ids, canvas, generate
from tokenizer import Bytes, Symbols

N = 20_000  # texts of a law
LISTS = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 0]]) > 0  # by place; 3 is no token
INSIDE = [(a, b, c) for a in (0, 1) for b in (1, 2) for c in (0, 1, 2)]


def allowed(rows: int) -> Allowed:
    return Allowed(LISTS, torch.arange(3).expand(rows, 3))


def assert_law(texts: torch.Tensor, law: dict[tuple, float]) -> None:
    """Chi-square of texts (N, T), none of them outside the law."""
    count = dict.fromkeys(law, 0)
    for text in map(tuple, texts.tolist()):
        count[text] += 1  # a KeyError: a text that may not be written
    assert sum(law.values()) == pytest.approx(1)
    chi = sum((count[x] - len(texts) * p) ** 2 / (len(texts) * p) for x, p in law.items())
    assert chi < len(law) - 1 + 4 * math.sqrt(2 * (len(law) - 1)), (chi, len(law))


def conditional(data: Distribution, text: tuple, place: int) -> torch.Tensor:
    """(3,) p(token at the place | the tokens of text, None where none is), projected on what is
    allowed there and normalised."""
    agrees = torch.ones(len(data.p), dtype=torch.bool)
    for k, token in enumerate(text):
        if token is not None:
            agrees &= data.texts[:, k] == token
    p = torch.bincount(data.texts[agrees, place], data.p[agrees], minlength=3)
    p = p * LISTS[place, :3]
    return p / p.sum()


def written(data: Distribution, order, text=(None, None, None)) -> dict[tuple, float]:
    """The law of texts that are written in an order: order(text) gives the probability of each
    place to be next."""
    law: dict[tuple, float] = {}
    if None not in text:
        return {text: 1.0}
    for place, chance in order(text).items():
        for token, p in enumerate(conditional(data, text, place).tolist()):
            if p and chance:
                further = (*text[:place], token, *text[place + 1 :])
                for x, q in written(data, order, further).items():
                    law[x] = law.get(x, 0) + chance * p * q
    return law


def any_place(text):
    left = [k for k in range(3) if text[k] is None]
    return dict.fromkeys(left, 1 / len(left))


def first_place(text):
    return {text.index(None): 1.0}


def surest_place(data):
    def order(text):
        left = [k for k in range(3) if text[k] is None]
        return {max(left, key=lambda k: float(conditional(data, text, k).max())): 1.0}

    return order


@pytest.mark.parametrize("sampler", ["first_hitting", "confidence", "left_to_right", "random"])
def test_masked(sampler):
    """The chain of projected conditionals, confidence among what is allowed. (Projecting after the
    choice of the place, or a text as a whole, are other laws.)"""
    data, process = Distribution(3, 3, 7), Masked(3, None, LogLinear())
    orders = {"confidence": surest_place(data), "left_to_right": first_place}
    ids = torch.zeros(N, 3, dtype=torch.int64)
    o = SampleOptions(sampler=sampler, steps=3, allowed=allowed(N))
    *_, last = process.sample(ExactNetwork(data, process), ids, ids > 0, generator(0), o)
    assert_law(last.ids, written(data, orders.get(sampler, any_place)))


def test_left_to_right():
    """With START, which is not a column of the canvas."""
    data, process = Distribution(3, 3, 5), LeftToRight(3, {})
    ids = torch.zeros(N, 3, dtype=torch.int64)
    o = SampleOptions(allowed=allowed(N))
    *_, last = process.sample(ExactNetwork(data, process), ids, ids > 0, generator(0), o)
    assert_law(last.ids, written(data, first_place))


def test_sedd_on_the_uniform_graph():
    """A chain over all texts: from random allowed text, each step's law projected at every place;
    on this graph a step mixes the scores of all ids, so that projecting scores is not enough."""
    data, graph, steps = Distribution(3, 3, 2), Uniform(3), 2
    process = ScoreEntropy(graph, LogLinear())
    net, o = ExactNetwork(data, process), SampleOptions(steps=steps, allowed=allowed(N))
    ids = torch.zeros(N, 3, dtype=torch.int64)
    *_, last = process.sample(net, ids, ids > 0, generator(0), o)
    times = torch.linspace(1, 1e-5, steps + 1, dtype=torch.float64)
    sigma = process.noise.total(times)
    p = torch.tensor([float(tuple(x) in INSIDE) for x in data.texts.tolist()]).double()
    p = p / p.sum()
    for i in range(steps + 1):
        step, dsigma = analytic_weights, sigma[i] - sigma[min(i + 1, steps)]
        if i == steps:
            step, dsigma = denoise_weights, sigma[i]
        score = net.features(data.texts, sigma[i].expand(27)).exp()
        w = step(graph, data.texts, score, dsigma.expand(27, 1)).clamp(min=0) * LISTS[:, :3]
        w = w / w.sum(-1, keepdim=True)  # (27 from, 3 places, 3 to)
        move = torch.stack([w[:, k, data.texts[:, k]] for k in range(3)]).prod(0)
        p = p @ move
    law = {tuple(x): float(q) for x, q in zip(data.texts.tolist(), p, strict=True) if q > 0}
    assert set(law) == set(INSIDE)
    assert_law(last.ids, law)


def letters_model(objective: str, **more) -> Model:
    """A random network on four letters."""
    tok = Symbols(list("abcd"))
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "cond_dim": 8, "block_size": 8}
    cfg = Config(objective=objective, **sizes, **more)
    splits = {"train": {"rows": 1, "longest": 8}}  # rows that end
    meta = {"vocab_size": tok.vocab_size, "specials": tok.specials, "splits": splits}
    torch.manual_seed(1)
    made = build_objective(cfg, meta)
    net = build_network(cfg, made).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return Model(net, made, tok, cfg, meta, 0)


@torch.no_grad()
def test_insertion():
    """Two tokens into a hole: pairs of gap and token, of those with an allowed token."""
    model = letters_model("ilm")
    bos, may = model.meta["specials"]["bos"], [0, 2]
    ids = torch.tensor([[bos, 0, 0]]).expand(N, 3)
    options = SampleOptions(exact=True)
    run = InsertionSampler(
        model.objective, model.net, ids[:1], ids[:1] == bos, generator(0), options
    )

    def pairs(*text):
        """{(gap, token): p} behind CLS BOS and a text; gaps are after BOS and what follows it."""
        canvas = torch.tensor([[model.objective.cls_id, bos, *text]])
        h = model.net.features(canvas, None, torch.ones(1, 1, canvas.shape[1]).bool())
        z = run.logits(h[0, 1:])[:, may].double()
        z = (z - z.logsumexp((0, 1))).exp()
        return {(g, may[v]): float(z[g, v]) for g in range(len(z)) for v in range(len(may))}

    law: dict[tuple, float] = {}
    for (_, a), p in pairs().items():
        for (gap, b), q in pairs(a).items():
            text = (b, a) if gap == 0 else (a, b)
            law[text] = law.get(text, 0) + p * q
    lists = torch.zeros(1, len(model.net.head.weight), dtype=torch.bool)
    lists[0, may] = True
    options = replace(options, allowed=Allowed(lists))
    *_, last = model.objective.sample(model.net, ids, ids == bos, generator(3), options)
    assert_law(last.ids[:, 1:3], law)


SAMPLED = {
    "sedd": {"objective": "sedd"},
    "sedd, uniform": {"objective": "sedd", "graph": "uniform"},
    "masked": {"objective": "masked"},
    "bd3": {"objective": "bd3", "block_length": 4},
    "ar": {"objective": "ar"},
    "ilm": {"objective": "ilm"},
    "it": {"objective": "it"},
    "idlm": {"objective": "idlm", "noise": "exponential"},
    "flex": {"objective": "flex"},
}


@pytest.mark.parametrize("form", SAMPLED)
def test_every_sampler_takes_it(form):
    """One regex for all places: b and d alone, with every cache; and a list for each place, where
    places stay."""
    model = letters_model(**SAMPLED[form])
    inserts, special = model.objective.inserts, model.meta["specials"]
    start = sample.Prompt.of([special["bos"], *[None] * 7])
    for name in model.objective.samplers:
        cached = [{"cache": "none"}]
        if name == "confidence" and form in ("masked", "sedd"):
            cached += [{"cache": kind, "block_length": 3} for kind in ("prefix", "dual")]
            cached += [{"cfg": 1.0}]
        for how in cached:
            cfg = SampleConfig(allowed="[bd]", sampler=name, steps=5, **how)
            options = sample.sample_options(cfg, model)
            texts = generate(model, [start] * 20, options).texts
            assert set("".join(texts)) <= {"b", "d"}, (name, how)
            assert any(texts) or form == "it", name  # an untrained one may end at once
            if inserts:
                continue
            lists = torch.zeros(4, len(model.net.head.weight), dtype=torch.bool)
            lists[torch.tensor([0, 1, 2]), torch.tensor([1, 3, 0])] = True
            lists[3, special["eos"]] = True
            options = replace(options, allowed=Allowed(lists))
            assert set(generate(model, [start] * 3, options).texts) == {"bda"}, (name, how)


# ---- which ids ---------------------------------------------------------------------------------


def lists_of(model: Model, **options) -> list[set[str]]:
    """For each list, the texts of its ids, special ones by their names."""
    names = {i: name for name, i in model.meta["specials"].items()}
    made = allowed_ids(SampleConfig(**options), model)
    return [
        {names.get(i) or model.tokenizer.decode([i]) for i in row.nonzero()[:, 0].tolist()}
        for row in made.ids
    ]


def test_which_ids(tmp_path):
    """A regex matches the whole text of an id. A text may end under a regex for all places; of
    several lines, where a line matches the empty text, and behind the last; never in a hole."""
    model, file = letters_model("masked"), tmp_path / "places.txt"
    assert lists_of(model, allowed="[ab]") == [{"a", "b", "eos", "pad"}]
    assert lists_of(model, allowed="[ab]", infill="[2]") == [{"a", "b"}]
    file.write_text("a\n[bc]?\n\n")
    name = f"FILE:{file}"
    want = [{"a"}, {"b", "c", "eos", "pad"}, {"eos", "pad"}, {"eos", "pad"}]
    assert lists_of(model, allowed=name) == want
    file.write_text("a\n.\n")
    assert lists_of(model, allowed=name, infill="[2]") == [{"a"}, {*"abcd"}, set()]
    file.write_text("[ab]")
    assert lists_of(model, allowed=name) == [{"a", "b", "eos", "pad"}]


def test_a_part_of_a_character_is_no_text():
    model = letters_model("masked")._replace(tokenizer=Bytes())
    assert sum(bool(text) for text in sample.texts_of_ids(model.tokenizer)) == 128


@pytest.mark.parametrize(
    "objective, lines, more, words",
    [
        ("masked", "[a", {}, ["allowed='[a'", "regular expression"]),
        ("masked", "x", {}, ["allowed='x'", "no token of this model matches"]),
        ("masked", "a\nx\nb", {}, ["allowed='x', line 2 of", "no token"]),
        ("masked", "a\n", {"infill": "[1]", "line": 2}, ["allowed=''"]),
        ("ilm", "a\nb", {}, ["insertion", "one line"]),
        ("masked", "a\nb", {"palindrome": True}, ["mirrored", "one line"]),
    ],
)
def test_refused(objective, lines, more, words, tmp_path):
    asked = lines
    if "\n" in lines:
        (tmp_path / "f").write_text(lines + "\n" * (more.pop("line", 0) > 0))
        asked = f"FILE:{tmp_path / 'f'}"
    with pytest.raises(UserError) as caught:
        allowed_ids(SampleConfig(allowed=asked, **more), letters_model(objective))
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("infill, lines", [("[3]", "a\nb"), ("[1]", "a\nb"), ("", "a\n" * 9)])
def test_as_many_lines_as_places(infill, lines, tmp_path):
    model = letters_model("masked")
    (tmp_path / "f").write_text(lines)
    cfg = SampleConfig(allowed=f"FILE:{tmp_path / 'f'}", infill=infill)
    options = sample.sample_options(cfg, model)
    with pytest.raises(UserError, match=r"allowed: \d lines, but \d places"):
        generate(model, [canvas(model, infill=infill)], options)


# ---- the command line --------------------------------------------------------------------------


def printed(run_cli, ckpt, *flags) -> list[str]:
    result = run_cli("sample.py", f"--ckpt={ckpt}", "--num_samples=4", *flags)
    assert result.returncode == 0, result.stderr
    return result.stdout.split("\n\n4 samples")[0].splitlines()


def test_a_skeleton_of_json(trained, tmp_path, capsys):
    """A model of bytes that has learnt nothing writes a JSON object of two digits and a word."""
    texts = {"train": ["abcdefghijkl"] * 9, "val": ["lkjihgfedcba"] * 9}
    write_corpus(tmp_path / "bytes", texts, Bytes())
    ckpt = trained(data_dir=str(tmp_path), dataset="bytes", block_size=16, objective="masked")
    places = tmp_path / "places.txt"
    places.write_text("\n".join([*map(re.escape, '{"n": '), "[1-9]", "[0-9]", r"\}"]))
    capsys.readouterr()
    flags = ["--num_samples=5", f"--allowed=FILE:{places}"]
    sample.main([f"--ckpt={ckpt}", *flags])
    texts = capsys.readouterr().out.split("\n\n5 samples")[0].splitlines()
    assert len(texts) == 5 and all(10 <= json.loads(x)["n"] <= 99 for x in texts)


def test_commands(trained, run_cli, assert_refused, tmp_path):
    ckpt, places = trained(), tmp_path / "places.txt"
    vowels = printed(run_cli, ckpt, "--allowed=[ab]")
    assert set("".join(vowels)) <= set("ab")
    places.write_text("[ab]\n[cd]\nb\n")
    texts = printed(run_cli, ckpt, f"--allowed=FILE:{places}")
    assert all(len(x) == 3 and x[0] in "ab" and x[1] in "cd" and x[2] == "b" for x in texts)
    holes = printed(run_cli, ckpt, "--infill=a[2]a", "--allowed=[cd]")
    assert {*holes} <= {f"a{x}{y}a" for x, y in itertools.product("cd", "cd")}
    unread = run_cli("sample.py", f"--ckpt={ckpt}", "--allowed=[A-Z")
    assert_refused(unread, "allowed='[A-Z'", "regular expression")
    nothing = run_cli("sample.py", f"--ckpt={ckpt}", "--allowed=[0-9]")
    assert_refused(nothing, "allowed='[0-9]'", "no token of this model matches")
    absent = run_cli("sample.py", f"--ckpt={ckpt}", f"--allowed=FILE:{tmp_path / 'absent'}")
    assert_refused(absent, "absent")
