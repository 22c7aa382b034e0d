"""evaluate.py: every printed number against a closed form, an enumeration or
a naive loop. Bounds and likelihoods are those of what the model writes, and of nothing else."""

import copy
import dataclasses
import gzip
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact import Distribution, ExactNetwork

import evaluate
from checkpoint import Model, build_network, build_objective, load
from configurator import Config, UserError, comments, save_json
from corpus import Batch, Corpus, CorpusWriter
from diffusion import Masked
from evaluate import (
    EvaluateConfig,
    Judge,
    answer_row,
    are_greedy,
    bound,
    compare,
    describe_bound,
    documents,
    judged,
    ratio,
    score_answers,
    share_of,
    text_bytes,
    uncropped,
    unigram_entropy,
    wilson,
)
from insertion import Insertion
from objective import NotFinite, choose_sampler
from sample import (
    INSERTION,
    Prompt,
    SampleConfig,
    SamplerConfig,
    answer_canvas,
    answer_defaults,
    canvas,
    sample_options,
    settings,
    written_ids,
)
from tokenizer import HF, Bytes, Symbols

SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "cond_dim": 8}
OBJECTIVES = [
    {"objective": "sedd"},
    {"objective": "sedd", "graph": "uniform"},
    {"objective": "masked", "time_input": False},
    {"objective": "masked", "noise": "affine", "padding": "ignore"},
    {"objective": "bd3", "block_length": 2},
]
MASKED = OBJECTIVES[2]


def error_of(action: Any, *arguments: Any, **named: Any) -> str:
    """The line that refuses."""
    with pytest.raises(UserError) as caught:
        action(*arguments, **named)
    assert str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def model_of(tokenizer: Any, block: int, meta: dict, **options: Any) -> Model:
    """A new network on the vocabulary of a tokenizer; its last layer is zero: a uniform guess."""
    cfg = Config(**{**SMALL, "block_size": block, **options})
    meta = {"vocab_size": tokenizer.vocab_size, "specials": tokenizer.specials, **meta}
    objective = build_objective(cfg, meta)
    torch.manual_seed(0)
    net = build_network(cfg, objective).eval()
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.zero_()
    return Model(net, objective, tokenizer, cfg, meta, 0)


def write(folder: Path, rows: list[tuple[list[int], int]], tokenizer: Any, **info: Any) -> Corpus:
    """The same rows (ids, prompt) in both splits."""
    with CorpusWriter(folder, tokenizer, **info) as out:
        for split in ("train", "val"):
            for ids, prompt in rows:
                out.row(split, ids, prompt)
    return Corpus(folder)


# ---- the bound ---------------------------------------------------------------------------------

ROWS = [([9, 10, 11, 1, 2, 0], 3), ([9, 3, 0], 1), ([9, 1, 1, 4, 4, 4, 3, 2, 0], 5)]
NUMBERS = ["eos", *"abcdefghijk"]  # id 0 ends a text, the others are a letter of one byte each


class Numbers:
    """Ids that are what they are; 0 is EOS, 12 is padding."""

    kind, vocab_size, files = "symbols", 13, {}
    specials = {"eos": 0, "pad": 12}  # noqa: RUF012

    def decode(self, ids: Any) -> str:
        ids = list(ids)
        ids = ids[: ids.index(0)] if 0 in ids else ids
        return "".join(NUMBERS[i] for i in ids if 0 < i < 12)


def corpus_of(model: Model, rows: list[tuple[list[int], int]]) -> Any:
    """As much of a Corpus as the bound needs, in memory."""

    class Few:
        def rows(self, split: str) -> int:
            return len(rows)

        def tokens(self, split: str) -> int:
            return sum(len(ids) for ids, _ in rows)

        def disjoint(self, split: str, block: int) -> np.ndarray:
            return np.arange(len(rows))

        def documents(self, split: str, numbers: np.ndarray, block: int) -> np.ndarray:
            return numbers

        def require_block(self, block: int) -> None:
            assert block >= max(len(ids) for ids, _ in rows)

        def batch(self, split: str, numbers: np.ndarray, block: int) -> Batch:
            picked = [rows[i] for i in numbers]
            ids = torch.tensor([r + [12] * (block - len(r)) for r, _ in picked])
            given = torch.arange(block) < torch.tensor([[p] for _, p in picked])
            return Batch(ids, given, torch.tensor([len(r) for r, _ in picked]))

    return Few()


@pytest.mark.parametrize("batch_size", [1, 2, 100])
@pytest.mark.parametrize("padding", ["learn", "crop", "ignore"])
def test_bound_of_a_uniform_guess_of_answers(padding: str, batch_size: int):
    """log V for every place that is written, whatever the noise level: the padding is in the sum
    where it is learnt, up to the block or the longest row of the corpus; the tokens and bytes are
    those of the answers alone, EOS a token and no byte."""
    meta = {"splits": {"train": {"rows": 3, "longest": 9}}}
    model = model_of(Numbers(), 12, meta, objective="masked", padding=padding, time_input=False)
    cfg = EvaluateConfig(batch_size=batch_size, t_samples=2, discrete_steps=5)
    got = bound(cfg, uncropped(model), corpus_of(model, ROWS))
    own = [len(ids) - prompt for ids, prompt in ROWS]
    end = {"learn": 12, "crop": 9}.get(padding)
    written = sum(own) if end is None else sum(end - prompt for _, prompt in ROWS)
    nats = written * math.log(13)
    assert got["rows"] == 3 and got["tokens"] == sum(own) == 9 and got["bytes"] == 6
    assert got["nats_per_row"] == pytest.approx(nats / 3)
    assert got["nats_per_token"] == pytest.approx(nats / 9)
    assert got["bits_per_byte"] == pytest.approx(nats / 6 / math.log(2))
    exact = [n if end is None else end - prompt for n, (_, prompt) in zip(own, ROWS, strict=True)]
    told = padding == "ignore"  # only then is the length given: the line says so
    assert got["given_length"] == ("its length" in describe_bound(got, cfg)) == told
    error = ratio(torch.tensor(exact) * math.log(13), torch.tensor(own).double())[1]
    assert got["nats_per_token_error"] == pytest.approx(error, abs=1e-6)


@pytest.mark.parametrize("padding", ["learn", "crop", "ignore"])
def test_the_bound_of_a_batch_is_over_the_written_places(padding: str):
    """What train.py divides by, batch by batch: a uniform guess costs log V for each."""
    model = model_of(Numbers(), 12, {}, objective="masked", padding=padding, time_input=False)
    batch = corpus_of(model, ROWS).batch("val", np.arange(3), 12)
    nats = model.objective.bound(model.net, batch, torch.Generator().manual_seed(0), 2).sum()
    places = int(model.objective.target_mask(batch).sum())
    assert places == {"learn": 27, "crop": 18, "ignore": 9}[padding]
    assert float(nats) == pytest.approx(places * math.log(13))


def test_bound_of_a_stream_counts_the_text_behind_an_eos(tmp_path: Path):
    """A window of a stream holds several texts; `decode` alone stops at the first EOS."""
    text = [*Bytes().encode("éa"), 258, *Bytes().encode("bcd"), 258, *Bytes().encode("ef")]
    with CorpusWriter(tmp_path / "stream", Bytes(), source="tests") as out:
        for split in ("train", "val"):
            out.tokens(split, text * 9)
    model = model_of(Bytes(), 10, {}, objective="masked", time_input=False)
    got = bound(EvaluateConfig(rows=90), model, Corpus(tmp_path / "stream"))
    assert got["rows"] == got["units"] == 9 and got["tokens"] == 90  # the windows share no id
    assert got["bytes"] == 9 * 8  # each window has two EOS, and letters that begin before it
    assert got["nats_per_token"] == pytest.approx(math.log(259))


COSTS = torch.linspace(0.0, 2.0, 13)  # of ten letters, padding, BOS, EOS


def unigram_model(block: int) -> Model:
    """Left to right, every id with its own probability, whatever came before it."""
    model = model_of(Symbols(list("abcdefghij")), block, {}, objective="ar")
    with torch.no_grad():
        model.net.head.weight.zero_()
        model.net.head.bias.copy_(-COSTS)
    return model


@pytest.mark.parametrize("kinds, unit", [(True, "documents"), (False, "windows")])
def test_standard_error_on_a_stream_is_that_of_fresh_streams(tmp_path: Path, kinds, unit):
    """200 streams, each evaluated: 90 to 98 % are within two of their standard errors of the truth.
    Documents, if any, are of cheap or of dear ids, so that windows of one tell less than as many of
    several. (Windows as independent: 58 and 97 %; those that overlap: 28 and 68 %.)"""
    model, rng = unigram_model(6), np.random.default_rng(0)
    cfg, inside, means = EvaluateConfig(rows=2000), [], []
    for k in range(200):
        ids: list[int] = []
        for _ in range(60):  # documents of 30 ids, the last of which is EOS
            low = rng.choice([0, 5]) if kinds else 0
            high = low + 5 if kinds else 10
            ids += [*rng.integers(low, high, 29).tolist(), 12 if kinds else 0]
        with CorpusWriter(tmp_path / f"{k}", model.tokenizer, source="tests") as out:
            for split in ("train", "val"):
                out.tokens(split, ids)
        got = bound(cfg, model, Corpus(tmp_path / f"{k}"))
        assert got["rows"] == 300 and got["unit"] == unit
        assert got["units"] == (60 if kinds else 300)
        inside.append((got["nats_per_token"], got["nats_per_token_error"]))
    means, errors = np.array(inside).T
    share = np.mean(abs(means - means.mean()) <= 2 * errors)
    assert 0.9 <= share <= 0.98, share


def test_one_row_has_no_standard_error(tmp_path: Path):
    """Not one of zero; and JSON has no NaN."""
    model = model_of(Numbers(), 12, {}, objective="masked", time_input=False)
    cfg = EvaluateConfig(t_samples=2)
    got = bound(cfg, model, corpus_of(model, ROWS[:1]))
    assert math.isnan(got["nats_per_token_error"])
    text = describe_bound(got, cfg)
    assert "+- unknown nats per token" in text and "nan" not in text
    save_json(got, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text())["nats_per_token_error"] is None


def test_standard_error_of_a_ratio_is_that_of_repeated_samples():
    rng = torch.Generator().manual_seed(0)
    size = 1 + torch.poisson(torch.full((4000, 50), 6.0), generator=rng).double()
    nats = size * (2 + torch.rand(size.shape, generator=rng)) + torch.randn(size.shape)
    got = [ratio(a, b) for a, b in zip(nats, size, strict=True)]
    rates, errors = torch.tensor(got).T
    assert float(errors.mean()) == pytest.approx(float(rates.std()), rel=0.1)


def test_discrete_bound_is_above_the_continuous_one():
    """One step is the worst: all places at once, none of which sees another."""
    data = Distribution(3, 2)
    model = exact_model(MASKED, data)
    rows = [(text.tolist(), 0) for text in data.draw(2000, torch.Generator().manual_seed(0))]
    cfg = EvaluateConfig(t_samples=2, discrete_steps=1)
    got = bound(cfg, model, corpus_of(model, rows))
    few = bound(dataclasses.replace(cfg, discrete_steps=200), model, corpus_of(model, rows))
    assert got["discrete_nats_per_token"] > got["nats_per_token"] + 0.005
    error = few["discrete_nats_per_token_error"] + few["nats_per_token_error"]
    assert abs(few["discrete_nats_per_token"] - few["nats_per_token"]) < 4 * error


# ---- how likely an answer is -------------------------------------------------------------------


class Letters:
    """a, b, c and nothing else."""

    kind, vocab_size, files = "letters", 3, {}
    specials: dict[str, int] = {}  # noqa: RUF012

    def encode(self, text: str) -> list[int]:
        return ["abc".index(c) for c in text]

    def decode(self, ids: Any) -> str:
        return "".join("abc"[i] for i in ids)


def exact_model(options: dict, data: Distribution, prompt: int = 0) -> Model:
    """The exact network of a distribution, as a stream model of `Letters`."""
    cfg = Config(**SMALL, block_size=data.T, **options)
    meta = {"vocab_size": 3, "specials": {}}
    objective = build_objective(cfg, meta)
    return Model(ExactNetwork(data, objective, prompt), objective, Letters(), cfg, meta, 0)


@pytest.mark.parametrize("options", OBJECTIVES, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("prompt", ["", "b", "ca"])
def test_likelihood_of_an_answer_is_the_true_conditional_one(options: dict, prompt: str):
    """With the exact network the bound is tight, for every answer; and the errors are honest."""
    data = Distribution(3, 3)
    model = exact_model(options, data, len(prompt))
    rest = ["".join(t) for t in itertools.product("abc", repeat=3 - len(prompt))][:9]
    cfg = SamplerConfig()
    got = score_answers(cfg, model, [(prompt, text) for text in rest], 1024, 4)
    table = data.p.view(3, 3, 3)
    for one, text in zip(got, rest, strict=True):
        place = tuple("abc".index(c) for c in prompt)
        joint = table[tuple("abc".index(c) for c in prompt + text)]
        exact = float((joint / table[place].sum()).log())
        assert abs(one["nats"] - exact) < 5 * one["nats_error"] + 3e-3, (text, one, exact)
        assert one["nats_error"] < (0.8 if "graph" in options else 0.15), text
        assert one["tokens"] == len(text)


def test_guided_likelihood_of_one_token():
    """No estimate at all: the softmax of (1 + cfg) times the logits, less cfg times those of the
    prompt masked."""
    data = Distribution(3, 2)
    model = exact_model(MASKED, data)
    table = data.p.view(3, 3)
    law = 1.5 * (table[1] / table[1].sum()).log() - 0.5 * table.sum(0).log()
    for k, letter in enumerate("abc"):
        [one] = score_answers(SamplerConfig(cfg=0.5), model, [("b", letter)], 16, 1)
        assert one["nats"] == pytest.approx(float(law.log_softmax(0)[k]), abs=1e-5)
        assert one["nats_error"] < 1e-6 and one["greedy"] == (k == int(law.argmax()))


def test_standard_error_of_a_likelihood_is_that_of_repeated_estimates():
    """Of the same answer, with other noise each time."""
    model = exact_model(MASKED, Distribution(3, 3))
    model = model._replace(net=ExactNetwork(Distribution(3, 3, seed=4), model.objective))
    got = score_answers(SamplerConfig(), model, [("", "cab")] * 80, 160, 80)
    nats, errors = (torch.tensor([one[k] for one in got]) for k in ("nats", "nats_error"))
    assert 0.7 < float(errors.square().mean().sqrt() / nats.std()) < 1.4


def test_padding_is_part_of_the_answer_only_where_it_is_learnt():
    """The uniform guess again: log V for each place up to the block, the longest row, or EOS."""
    tokenizer = Symbols(list("abcd"))
    meta = {"splits": {"train": {"rows": 1, "longest": 8}}}
    for padding, places in (("learn", 7), ("crop", 5), ("ignore", 3)):
        options = {"objective": "masked", "padding": padding, "time_input": False}
        model = uncropped(model_of(tokenizer, 10, meta, **options))
        [one] = score_answers(SamplerConfig(), model, [("ab", "cd")], 32, 1)
        assert one["nats"] == pytest.approx(-places * math.log(7), abs=1e-5), padding
        assert one["tokens"] == 3 and one["nats_error"] < 1e-6  # two letters and EOS


def test_greedy_is_the_surest_place_first():
    """Of all texts, the one that a naive loop over the enumerated distribution writes."""
    for seed in range(4):
        data = Distribution(3, 3, seed)
        wanted: list[int | None] = [None] * 3
        while None in wanted:
            some = torch.tensor(
                [all(w in (None, x) for w, x in zip(wanted, t, strict=True)) for t in data.texts]
            )
            ways = [(data.texts == v) * (data.p * some)[:, None] for v in range(3)]
            law = torch.stack([way.sum(0) for way in ways])  # (3 tokens, 3 places)
            law[:, [w is not None for w in wanted]] = -1
            token, place = divmod(int(law.argmax()), 3)
            wanted[place] = token
        for options in (MASKED, {"objective": "sedd"}):
            model = exact_model(options, data)
            same = are_greedy(model, [(text, 0) for text in data.texts.tolist()], False, 10)
            assert data.texts[torch.tensor(same)].tolist() == [wanted]


def test_greedy_has_no_answer_on_the_uniform_graph():
    model = exact_model(OBJECTIVES[1], Distribution(3, 2))
    [one] = score_answers(SamplerConfig(), model, [("a", "b")], 32, 1)
    assert one["greedy"] is None


def test_answer_row(tmp_path: Path):
    """Trailing spaces are the answer's; what merges across the border is written, not given."""
    hf = HF.train(["the cat sat on the mat"] * 50, 278)
    model = Model(None, None, hf, Config(), {"specials": hf.specials}, 0)
    for prompt, answer in (("the cat", " sat"), ("the cat ", "sat"), ("the", "cat"), ("", "mat")):
        ids, start = answer_row(model, prompt, answer, False)
        assert ids == hf.encode(prompt + answer) and ids[:start] == hf.encode(prompt.rstrip())
        assert start < len(ids)
    assert answer_row(model, "the cat ", "sat", False) == answer_row(
        model, "the cat", " sat", False
    )
    ids, start = answer_row(model, "the c", "at", False)
    assert ids == hf.encode("the cat") and ids[:start] != hf.encode("the c")
    letters = Model(None, None, Bytes(), Config(), {"specials": {}}, 0)
    assert answer_row(letters, "ab ", "c", False) == ([*b"ab c"], 2)  # the space is written
    ids, start = answer_row(model, "ask", "told", True)
    frame = [hf.specials[k] for k in ("bos", "start")]
    assert ids[:2] == frame and ids[start:] == [*hf.encode("\ntold"), hf.specials["eos"]]
    symbols = Symbols(list("abcd"))
    meta = {"specials": symbols.specials, "splits": {"train": {"longest": 8}}}
    symbolic = Model(None, None, symbols, Config(), meta, 0)
    assert answer_row(symbolic, "ab", "c", False) == ([5, 0, 1, 2, 6], 3)
    assert answer_row(symbolic, "ab", "", False) == ([5, 0, 1, 6], 3)


def test_answers_that_do_not_fit_are_refused():
    model = exact_model(MASKED, Distribution(3, 3))
    assert "4 of answer in a block of 3" in error_of(
        score_answers, SamplerConfig(), model, [("", "aaaa")], 32, 1
    )
    assert "0 of answer" in error_of(score_answers, SamplerConfig(), model, [("ab", "")], 32, 1)
    sedd = exact_model(OBJECTIVES[0], Distribution(3, 3))
    guided = SamplerConfig(cfg=0.5)
    assert "cfg" in error_of(score_answers, guided, sedd, [("a", "b")], 32, 1)


def test_compare():
    """Positions are compared up to the wanted EOS; only what is equal to the end is exact."""
    cases = [
        ([1, 2, 0], [1, 2, 0], 1, 2),  # found, wanted, exact, right
        ([1, 2, 3, 0], [1, 2, 0], 0, 2),  # goes on
        ([1, 0], [1, 2, 0], 0, 1),  # ends early
        ([2, 1, 2, 0], [1, 2, 0], 0, 0),  # one place late
        ([1, 2], [1, 2, 0], 0, 2),  # does not end
        ([0], [0], 1, 0),
        ([], [5, 0], 0, 0),
    ]
    for got, wanted, exact, right in cases:
        one = compare([got], [wanted], 0)
        assert (one.exact, one.right) == (exact, right), (got, wanted)
        assert one.tokens == len([t for t in wanted if t]) and one.written == sum(map(bool, got))
    both = compare(*zip(*[(f, w) for f, w, _, _ in cases], strict=True), 0)
    assert both == (7, 2, 7, 11, 11)
    assert "2 of 7 answers exact (28.6%); 7 of 11 tokens" in evaluate.describe_answers(both, "val")


# ---- samples under a judge ---------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 40])
def test_interval_of_a_share(n: int):
    """Its ends are the p at which a score test just rejects: (share - p)^2 = z^2 p (1 - p) / n; and
    it covers p in about 95 % of all outcomes, enumerated, also near 0 and 1."""
    for k in range(n + 1):
        low, high = wilson(k / n, n)
        assert 0 <= low <= k / n <= high <= 1 and high - low > 0.05
        for p in {low, high} - {0.0, 1.0}:
            assert (k / n - p) ** 2 == pytest.approx(1.96**2 * p * (1 - p) / n, abs=1e-12)
    covered = []
    for p in (0.5 + np.arange(1000)) / 1000:
        some = [k for k in range(n + 1) if wilson(k / n, n)[0] <= p <= wilson(k / n, n)[1]]
        covered.append(sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in some))
    assert 0.93 < np.mean(covered) < 0.98
    assert wilson(0.0, 0) == (0.0, 1.0)
    assert share_of(1.0, 100) == "100.0% (95%: 96.3% to 100.0%)"


def test_unigram_entropy():
    assert unigram_entropy([]) == unigram_entropy([7] * 9) == 0
    assert unigram_entropy([1, 2, 3, 4] * 3) == pytest.approx(math.log(4))
    uneven = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert unigram_entropy([1, 1, 1, 2]) == pytest.approx(uneven)


def test_documents_and_their_bytes():
    ids = [258, *b"ab", 258, 258, *"é".encode(), 256]
    assert documents(Bytes(), ids) == [("", True), ("ab", True), ("", True), ("é", False)]
    assert documents(Bytes(), [*b"ab", 258]) == [("ab", True)] and documents(Bytes(), []) == []
    assert text_bytes(Bytes(), ids) == 4 and text_bytes(Bytes(), ids[:6]) == 3  # half a letter
    hf = HF.train(["one two"] * 9, 268)
    eos = hf.specials["eos"]
    assert text_bytes(hf, [*hf.encode("one é"), eos, *hf.encode("two"), eos]) == 9


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of bytes with random weights, 24 positions."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("judge")
    codec = byte_codec()
    end = "<|endoftext|>"
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=codec, eos_token=end, bos_token=end
    )
    options = {"vocab_size": 257, "n_positions": 24, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(**options, bos_token_id=256, eos_token_id=256)
    torch.manual_seed(1)
    net = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def byte_codec() -> Any:
    """One token per byte, and <|endoftext|> = 256."""
    parts = pytest.importorskip("tokenizers")
    alphabet = sorted(parts.pre_tokenizers.ByteLevel.alphabet())
    words = {c: i for i, c in enumerate(alphabet)} | {"<|endoftext|>": 256}
    codec = parts.Tokenizer(parts.models.BPE(vocab=words, merges=[]))
    codec.pre_tokenizer = parts.pre_tokenizers.ByteLevel(add_prefix_space=False)
    codec.decoder = parts.decoders.ByteLevel()
    return codec


@pytest.fixture(scope="module")
def judge(judge_folder: Path) -> Judge:
    return Judge(str(judge_folder), torch.device("cpu"))


def test_rows_of_a_judge_that_are_no_ids(judge: Judge, tmp_path: Path):
    """Embeddings are often rounded up: probabilities are those of the ids alone."""
    net = copy.deepcopy(judge.net)
    net.resize_token_embeddings(320, mean_resizing=False)
    with torch.no_grad():
        net.lm_head.weight[257:] = 5 * net.lm_head.weight[:63]
    net.save_pretrained(tmp_path)
    judge.tokenizer.save_pretrained(tmp_path)
    padded = Judge(str(tmp_path), torch.device("cpu"))
    ids = [judge.encode([("the same text", True)]), judge.encode([("another", False)])]
    for got, want in zip(padded.nats(ids), judge.nats(ids), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


def test_judge_agrees_with_a_naive_loop(judge: Judge):
    """One text at a time, token by token, no padding: cost and count of every text; all tokens but
    the first one, of EOS the first only; texts of one token or none cost nothing."""
    texts = [b"hello there", b"", b"x", b"ab\xffcd\xffe\xff", b"longer than the others, it is"]
    ids = [[256 if b == 255 else judge.encode([(chr(b), False)])[0] for b in t] for t in texts]
    nats, count = judge.nats([row[: judge.longest] for row in ids])
    for row, cost, n in zip(ids, nats, count, strict=True):
        total, counted = 0.0, 0
        for k in range(1, min(len(row), 24)):
            with torch.no_grad():
                law = judge.net(torch.tensor([row[:k]])).logits[0, -1].log_softmax(-1)
            if row[k] != 256 or 256 not in row[:k]:
                total, counted = total - float(law[row[k]]), counted + 1
        assert float(cost) == pytest.approx(total, rel=1e-4, abs=1e-5) and int(n) == counted


def test_generative_perplexity_of_a_uniform_judge(judge: Judge, monkeypatch: pytest.MonkeyPatch):
    """exp of the mean over tokens, not the mean over texts: here all are the vocabulary's size.
    Our EOS becomes the judge's; text is encoded anew, and cut to what the judge can read."""
    ours = Bytes()

    def flat(ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return type("Out", (), {"logits": torch.zeros(*ids.shape, 257)})

    seen: list[list[int]] = []
    monkeypatch.setattr(judge, "net", flat)
    nats = judge.nats
    monkeypatch.setattr(judge, "nats", lambda texts: seen.extend(texts) or nats(texts))
    texts = [[*b"abc", 258], [*b"a" * 40], [*b"d", 258, *b"e", 258]]
    got = judged(texts, ours, judge)
    assert got["generative_perplexity"] == pytest.approx(257)
    assert got["generative_perplexity_error"] == pytest.approx(0, abs=1e-9)
    assert got["judge_tokens"] == 3 + 23 + 2 and got["judge_cut"] == 1
    assert [len(ids) for ids in seen] == [4, 24, 4] and [ids[-1] for ids in seen][::2] == [256, 256]
    entropy = [math.log(4), 0, 1.5 * math.log(2)]
    assert got["unigram_entropy"] == pytest.approx(np.mean(entropy))
    assert got["tokens_per_text"] == pytest.approx(48 / 3)
    nothing = judged([[97], []], ours, judge)
    assert nothing["judge_tokens"] == 0 and "generative_perplexity" not in nothing
    variety = {"unigram_entropy", "distinct_1", "distinct_2", "distinct_3"}
    assert set(judged(texts, ours, None)) == {"texts", "tokens_per_text", *variety}


def test_generative_perplexity_weighs_tokens_alike(judge: Judge, monkeypatch: pytest.MonkeyPatch):
    cost = torch.tensor([2.0, 30.0]).double(), torch.tensor([2.0, 10.0]).double()
    monkeypatch.setattr(judge, "nats", lambda _: cost)
    got = judged([[97] * 3, [98] * 11], Bytes(), judge)
    assert got["generative_perplexity"] == pytest.approx(math.exp(32 / 12))


def test_judge_with_a_bos_of_its_own(judge_folder: Path, tmp_path: Path):
    """Then the first token is scored, and BOS is not, even if it is the same id as EOS."""
    transformers = pytest.importorskip("transformers")
    processors = pytest.importorskip("tokenizers.processors")
    for path in judge_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    codec = byte_codec()
    end = "<|endoftext|>"
    codec.post_processor = processors.TemplateProcessing(
        single=f"{end} $A", special_tokens=[(end, 256)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=codec, eos_token=end, bos_token=end
    ).save_pretrained(tmp_path)
    judge = Judge(str(tmp_path), torch.device("cpu"))
    assert judge.encode([("ab", True)])[0] == 256 and len(judge.encode([("ab", True)])) == 4
    assert judge.nats([judge.encode([("ab", True)])])[1].tolist() == [3]


def test_judges_that_are_refused(judge_folder: Path, tmp_path: Path, monkeypatch: Any):
    transformers = pytest.importorskip("transformers")
    cpu = torch.device("cpu")
    assert "judge=/no/such" in error_of(Judge, "/no/such", cpu)
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in error_of(Judge, str(tmp_path / "empty"), cpu)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=257, intermediate_size=16, **sizes)
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bert" / name).write_bytes((judge_folder / name).read_bytes())
    assert "looks ahead" in error_of(Judge, str(tmp_path / "bert"), cpu)
    weights = pytest.importorskip("safetensors.torch")
    for path in judge_folder.iterdir():
        (tmp_path / "empty" / path.name).write_bytes(path.read_bytes())
    few = weights.load_file(judge_folder / "model.safetensors")
    few.pop("transformer.ln_f.weight")
    weights.save_file(few, tmp_path / "empty" / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 weights, transformer.ln_f.weight" in error_of(
        Judge, str(tmp_path / "empty"), cpu
    )


# ---- samples of a corpus -----------------------------------------------------------------------


def test_written_ids():
    """Not what was given, which may hold EOS; up to the first EOS for rows, all of a stream."""
    ids = torch.tensor([[1, 0, 5, 6, 0, 7], [1, 2, 3, 4, 5, 6]])
    given = torch.tensor([True, True, False, False, False, False])
    begun = [Prompt(ids[0], given), Prompt(ids[1][:5], given[:5])]
    rows = model_of(Numbers(), 6, {"splits": {"train": {"rows": 2}}}, **MASKED)
    stream = model_of(Numbers(), 6, {"splits": {"train": {"rows": 0}}}, **MASKED)
    assert written_ids(rows, ids, begun) == [[5, 6, 0], [3, 4, 5]]
    assert written_ids(stream, ids, begun) == [[5, 6, 0, 7], [3, 4, 5]]


def test_canvases_end_where_training_ended():
    """The block; with padding=crop the longest training row, unless more is asked for."""
    for padding, end in (("learn", 12), ("ignore", 12), ("crop", 9)):
        meta = {"splits": {"train": {"rows": 1, "longest": 9}}}
        model = model_of(Numbers(), 12, meta, objective="masked", padding=padding, time_input=False)
        assert len(answer_canvas(model, [1, 2]).ids) == end
        assert len(answer_canvas(model, [1, 2], 10).ids) == 12
        assert len(answer_canvas(model, [1, 2], 3).ids) == 5
        assert len(answer_canvas(model, [1] * 10).ids) == 12
        symbolic = model_of(Symbols(list("ab")), 12, meta, **MASKED)
        symbolic = symbolic._replace(objective=model.objective)
        assert len(canvas(symbolic, "ab").ids) == end and len(canvas(symbolic, length=9).ids) == 12


def test_every_setting_of_a_sampler_can_be_told_and_is_reported():
    """EvaluateConfig and SampleConfig have the sampler's options from one place, with help."""
    shared = {f.name for f in dataclasses.fields(SamplerConfig)}
    own = {
        "steps",
        "sampler",
        "temperature",
        "top_k",
        "top_p",
        "unmask_schedule",
        "threshold",
        "factor",
        "entropy_bound",
        "allowed",
    }
    own |= {"block_length", "cfg", "remask", "eta", "cache", "draft_time", "renoise"}
    own |= {"corrector_steps", "corrector_places", "corrector_order"}
    assert own <= shared
    for kind in (EvaluateConfig, SampleConfig):
        names = {f.name for f in dataclasses.fields(kind)}
        assert shared < names and names == set(comments(kind))
        assert not shared & set(kind.__annotations__)
    cfg = EvaluateConfig(steps=3, sampler="margin", cache="prefix", device="cpu", eta=0.5)
    model = model_of(Numbers(), 6, {}, **MASKED)
    got = settings(cfg, model)
    assert set(got) == own | {"network", "draws"} and got["draws"] == "float64"
    grows = model._replace(objective=Insertion(6, {"pad": 5}))
    found_there = settings(EvaluateConfig(device="cpu"), grows)
    assert set(INSERTION) < set(found_there) and "cache" not in found_there
    assert (got["steps"], got["sampler"], got["cache"], got["eta"]) == (
        3,
        "margin",
        "prefix",
        0.5,
    )
    assert settings(EvaluateConfig(device="cpu"), model)["sampler"] == model.objective.samplers[0]
    assert choose_sampler(model.objective, sample_options(cfg, model)).steps == 3


def test_defaults_of_answers_leave_what_was_told():
    known, values = ("first_hitting", "confidence"), {"temperature": "command line"}
    cfg = answer_defaults(EvaluateConfig(temperature=0.7), values, known)
    assert (cfg.sampler, cfg.temperature) == ("confidence", 0.7)
    few = answer_defaults(SampleConfig(), {}, ("left_to_right",))
    assert (few.num_samples, few.temperature, few.sampler) == (1, 0.0, "auto")


@pytest.mark.parametrize("option", ["--rows=-1", "--samples=-1", "--maskings=24", "--maskings=0"])
def test_refused_options(option: str):
    key = option[2:].partition("=")[0]
    assert key in error_of(evaluate.main, [option])


# ---- the command -------------------------------------------------------------------------------


def test_masked_objective_on_palindromes(trained: Any, tmp_path: Path, capsys: Any):
    """As score entropy: three orders; and with a sampler of one's own, that one."""
    ckpt = trained(objective="masked", time_input=False) / "ckpt.pt"
    argv = [f"--ckpt={ckpt}", "--rows=6", "--samples=5", "--discrete_steps=7"]
    evaluate.main([*argv, f"--json={tmp_path / 'found.json'}"])
    printed = capsys.readouterr().out
    for name in ("random order (first_hitting)", "confidence order (confidence)", "mirrored ("):
        assert name in printed
    assert "exact palindromes 100.0%" in printed and "  in 7 steps: " in printed
    got = json.loads((tmp_path / "found.json").read_text())
    assert got["bound"]["rows"] == 6 and got["config"]["samples"] == 5
    assert got["checkpoint"] == {"objective": "masked", "step": 4}
    assert got["palindromes"]["mirrored"]["exact"] == 1.0
    evaluate.main([f"--ckpt={ckpt}", "--rows=0", "--samples=5", "--sampler=margin", "--steps=2"])
    printed = capsys.readouterr().out
    assert "samples (margin)" in printed and "confidence order" not in printed


def test_blocks_name_the_best_range_of_noise(trained: Any, capsys: Any):
    ckpt = trained(objective="bd3", block_length=4, time_input=False) / "ckpt.pt"
    evaluate.main([f"--ckpt={ckpt}", "--rows=12", "--samples=0"])
    printed = capsys.readouterr().out
    assert "nats per token" in printed and "least variance of a block's loss: --t_low=" in printed


def test_generative_perplexity_by_command(trained: Any, judge_folder: Path, tmp_path: Path, capsys):
    ckpt = trained(objective="masked", time_input=False) / "ckpt.pt"
    argv = [f"--ckpt={ckpt}", "--rows=0", "--samples=6", f"--judge={judge_folder}", "--top_p=0.9"]
    evaluate.main([*argv, "--sampler=margin", "--steps=3", f"--json={tmp_path / 'g.json'}"])
    printed = capsys.readouterr().out
    for words in (
        "generative perplexity",
        "unigram entropy",
        "steps=3 sampler=margin",
        "top_p=0.9",
    ):
        assert words in printed
    assert "network calls per sample" in printed and "draws=float64" in printed
    got = json.loads((tmp_path / "g.json").read_text())["samples"]
    assert got["settings"]["top_p"] == 0.9 and got["val"]["speed"]["nfe"] == 3
    for name in ("samples", "corpus"):
        assert got["val"][name]["texts"] == 6 and got["val"][name]["judge_tokens"] > 0


def test_answers_by_command(trained: Any, tmp_path: Path, capsys: Any):
    ckpt = f"--ckpt={trained(objective='masked', time_input=False) / 'ckpt.pt'}"
    evaluate.main([ckpt, "--prompt=ab", "--answer=ba", "--maskings=32"])
    printed = capsys.readouterr().out
    assert "3 tokens" in printed and "'ba'" in printed and "1 answers: at least -" in printed
    pairs = [{"prompt": "ab", "answer": text} for text in ("ba", "cd")]
    (tmp_path / "two.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    evaluate.main([ckpt, f"--answers={tmp_path / 'two.jsonl'}", f"--json={tmp_path / 'a.json'}"])
    got = json.loads((tmp_path / "a.json").read_text())["likelihood"]
    assert [one["answer"] for one in got["each"]] == ["ba", "cd"] and got["tokens"] == 6
    assert got["nats"] == pytest.approx(sum(one["nats"] for one in got["each"]))
    assert "2 answers" in capsys.readouterr().out
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}')
    (tmp_path / "none.jsonl").write_text("\n")
    for name in ("bad.jsonl", "none.jsonl", "absent.jsonl"):
        assert name in error_of(evaluate.main, [ckpt, f"--answers={tmp_path / name}"])


def test_answers_that_no_token_stands_for_are_named(trained: Any, tmp_path: Path, capsys: Any):
    """With their number; and fields that are not used are told."""
    ckpt = f"--ckpt={trained(objective='masked', time_input=False) / 'ckpt.pt'}"
    good = {"prompt": "ab", "answer": "ba", "context": "c"}
    for bad, why in (
        ("bx", "'x' is not in the vocabulary"),
        ("b\ud83d", "is not in the vocabulary"),
    ):
        lines = map(json.dumps, [good, {"prompt": "a", "answer": bad}])
        (tmp_path / "a.jsonl").write_text("\n".join(lines))
        message = error_of(evaluate.main, [ckpt, f"--answers={tmp_path / 'a.jsonl'}"])
        assert message.startswith("answer 2 of 2: ") and why in message
    capsys.readouterr()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps(good).encode("utf-8-sig")))
    evaluate.main([ckpt, f"--answers={tmp_path / 'b.jsonl.gz'}", "--maskings=16"])
    printed = capsys.readouterr().out
    assert "not used: field 'context': 1" in printed and "1 answers" in printed


def test_a_bound_that_is_not_finite_is_a_line(trained: Any, tmp_path: Path, monkeypatch, capsys):
    """Neither printed nor saved: one line, and the exit code of losses that are not finite."""
    ckpt = f"--ckpt={trained(objective='masked', time_input=False) / 'ckpt.pt'}"

    def spoil(name: str) -> None:
        monkeypatch.undo()
        real = getattr(Masked, name)

        def bound(*arguments: Any) -> Any:
            nats = real(*arguments)
            nats[len(nats) // 2] = math.nan
            return nats

        monkeypatch.setattr(Masked, name, bound)

    for name in ("bound", "discrete_bound"):
        spoil(name)
        argv = [ckpt, "--rows=9", "--samples=0", "--discrete_steps=3", f"--json={tmp_path / 'x'}"]
        with pytest.raises(
            NotFinite, match=r"objective=masked is not finite: nan.*1 of 9"
        ) as caught:
            evaluate.main(argv)
        assert caught.value.code == 1 and "\n" not in str(caught.value)
        assert not (tmp_path / "x").exists() and "nan" not in capsys.readouterr().out
    spoil("bound")
    with pytest.raises(NotFinite, match="likelihood of answer 1 is not finite"):
        evaluate.main([ckpt, "--prompt=ab", "--answer=ba", "--maskings=32"])


def test_command_refusals(trained: Any, tmp_path: Path):
    ckpt = f"--ckpt={trained() / 'ckpt.pt'}"
    assert "discrete_steps" in error_of(evaluate.main, [ckpt, "--discrete_steps=10"])
    assert "chat" in error_of(evaluate.main, [ckpt, "--chat"])
    assert "no start, end, eot" in error_of(
        evaluate.main, [ckpt, "--chat", "--prompt=a", "--answer=b"]
    )
    assert "json" in error_of(evaluate.main, [ckpt, f"--json={tmp_path / 'no' / 'a.json'}"])
    assert "judge=/no/such" in error_of(evaluate.main, [ckpt, "--judge=/no/such"])
    assert "sampler" in error_of(evaluate.main, [ckpt, "--sampler=bogus", "--rows=0"])
    assert load(ckpt.partition("=")[2]).step == 4  # nothing was changed
