"""Likelihoods of answers against enumeration, texts that are written, and the lm-eval adapter."""

import itertools
import json
import math
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import Distribution, ExactNetwork

import checkpoint
from analysis import harness
from analysis.harness import HarnessConfig, generate_texts, loglikelihood, rolling, windows
from checkpoint import Model, build_network, build_objective
from configurator import Config, UserError
from objective import SampleOptions, generator
from tokenizer import Symbols

N, T = 3, 3
LETTERS = "abc"
ANSWERS = ["".join(t) for t in itertools.product(LETTERS, repeat=2)]


class Letters(Symbols):
    """Three letters and nothing else: what is enumerated has no special tokens in it."""

    vocab_size, specials = N, {}

    def __init__(self) -> None:
        super().__init__(list(LETTERS))
        self.vocab_size, self.specials = N, {}

    def decode(self, ids: Any) -> str:
        return "".join(LETTERS[i] for i in ids)


def stream_model(objective: str, net: Any = None, seed: int = 0) -> Model:
    """A model of windows of three letters; untrained, or with the network that is given."""
    cfg = Config(
        objective=objective, block_size=T, n_layer=1, n_head=2, n_embd=16, time_input=False
    )
    meta = {"vocab_size": N, "specials": {}}
    process = build_objective(cfg, meta)
    torch.manual_seed(seed)
    own = net(process) if net else build_network(cfg, process).eval()
    if net is None:
        for p in own.parameters():
            torch.nn.init.normal_(p, std=0.5)
    return Model(own, process, Letters(), cfg, meta, 0)


def conditional(data: Distribution, prompt: str, answer: str) -> float:
    """log P(answer | prompt) of a text that both make up."""
    ids = torch.tensor([LETTERS.index(c) for c in prompt + answer])
    begins = (data.texts[:, : len(prompt)] == ids[: len(prompt)]).all(1)
    return math.log(float(data.p[data.index(ids[None])][0] / data.p[begins].sum()))


# ---- how likely --------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["ar", "xlnet"])
def test_exact_likelihoods_are_those_of_the_world(objective):
    if objective == "xlnet":
        pytest.importorskip("transformers")
    data = Distribution(N, T)
    model = stream_model(objective, lambda process: ExactNetwork(data, process))
    for prompt in ("", "b"):
        answers = ["".join(t) for t in itertools.product(LETTERS, repeat=T - len(prompt))]
        got = loglikelihood(model, [(prompt, a) for a in answers], batch_size=5)
        for answer, (nats, _) in zip(answers, got, strict=True):
            assert nats == pytest.approx(conditional(data, prompt, answer), abs=1e-5), answer
    assert "log p itself" in harness.meaning(model, 16)


@pytest.mark.parametrize("prompt", ["", "c"])
def test_ar_sums_to_one_over_all_answers(prompt):
    """With any weights: a token too many or too few, a shift, or a wrong prompt breaks it."""
    model = stream_model("ar")
    answers = ["".join(t) for t in itertools.product(LETTERS, repeat=T - len(prompt))]
    got = loglikelihood(model, [(prompt, a) for a in answers])
    assert sum(math.exp(nats) for nats, _ in got) == pytest.approx(1, abs=1e-5)
    assert sum(greedy for _, greedy in got) == 1
    # greedy is one token at a time, not the likeliest answer; writing gives that very text
    [text] = generate_texts(model, [prompt])
    assert text == answers[[greedy for _, greedy in got].index(True)]


def test_ar_answers_chain():
    model = stream_model("ar", seed=1)
    (ab, _), (a, _), (b, _) = loglikelihood(model, [("c", "ab"), ("c", "a"), ("ca", "b")])
    assert ab == pytest.approx(a + b, abs=1e-5)


def any_order(model: Model, prompt: str, answer: str) -> float:
    """log p of the sampler that writes one place at a time in random order, by enumeration of the
    orders: a mean of products."""
    given, ids = len(prompt), torch.tensor(model.tokenizer.encode(prompt + answer))
    total = []
    for order in itertools.permutations(range(given, len(ids))):
        seen, nats = torch.where(torch.arange(len(ids)) < given, ids, N), 0.0
        for place in order:
            z = model.net.logits(model.net.features(seen[None]))[0, place, :N].detach()
            nats += float(z.log_softmax(0)[ids[place]])
            seen[place] = ids[place]
        total.append(nats)
    return float(torch.tensor(total).double().logsumexp(0)) - math.log(len(total))


def test_masked_is_a_bound_below_the_enumerated_likelihood():
    model = stream_model("masked", seed=3)
    pairs = [("c", answer) for answer in ANSWERS]
    got = [nats for nats, _ in loglikelihood(model, pairs, maskings=1024)]
    true = [any_order(model, *pair) for pair in pairs]
    assert sum(map(math.exp, true)) == pytest.approx(1, abs=1e-5)
    gaps = [t - f for t, f in zip(true, got, strict=True)]
    assert min(gaps) > -0.02 and max(gaps) > 0.01, gaps  # Jensen's loss, and no more than noise
    assert sum(map(math.exp, got)) < 1
    assert "lower bounds" in harness.meaning(model, 1024)


def test_masked_bound_of_the_exact_network_loses_nothing():
    data = Distribution(N, T)
    model = stream_model("masked", lambda objective: ExactNetwork(data, objective))
    got = loglikelihood(model, [("b", answer) for answer in ANSWERS], maskings=4096)
    for answer, (nats, _) in zip(ANSWERS, got, strict=True):
        assert nats == pytest.approx(conditional(data, "b", answer), abs=0.06), answer


def test_bound_of_insertion_is_below_its_likelihood(trained, helpers):
    """p(text) of the ancestral sampler, summed over all orders in which tokens can come."""
    model = checkpoint.load(str(trained(objective="ilm", time_input=False) / "ckpt.pt"))
    model = helpers.untrained(model, 2, 0.3)
    objective, net, bos = model.objective, model.net, model.meta["specials"]["bos"]

    def law(state: tuple) -> tuple[torch.Tensor, float]:
        """Probabilities (gap, token), and that of stopping."""
        ids = torch.tensor([[objective.cls_id, bos, *state]])
        with torch.no_grad():
            h = net.features(ids)
            z = net.logits(h[0, 1:]).double()
            done = float(objective.complete(net, h[:, 0])[0, 0].exp())
        z[:, objective.never] = -torch.inf
        return z.flatten().softmax(0).view(z.shape), done

    def reach(text: tuple) -> float:
        """Probability that the sampler comes by this text."""
        if not text:
            return 1.0
        got = 0.0
        for before in {text[:i] + text[i + 1 :] for i in range(len(text))}:
            p, done = law(before)
            ways = [i for i in range(len(text)) if text[:i] + text[i + 1 :] == before]
            got += reach(before) * (1 - done) * sum(float(p[i, text[i]]) for i in ways)
        return got

    gaps = []
    for text in ("a", "ab", "aa", "bdc"):
        ids = tuple(model.tokenizer.encode(text))
        true = math.log(reach(ids) * law(ids)[1])
        [(nats, _)] = loglikelihood(model, [("", text)], maskings=2048)
        gaps.append(true - nats)
    assert min(gaps) > -0.06 and max(gaps) > 0.005, gaps
    assert gaps[0] == pytest.approx(0, abs=1e-4)  # one order only: exact


@pytest.mark.parametrize("objective", ["ar", "masked", "ilm"])
def test_star_graphs_put_bos_between_question_and_answer(tmp_path, flags, objective):
    """The nats are those of the row of training, and what is written greedily is told so."""
    import train
    from tasks import stars

    stars.OURS["tiny"], usual = (40, 8), stars.OURS["tiny"]
    try:
        stars.main(["--level=tiny", f"--data_dir={tmp_path}"])
    finally:
        stars.OURS["tiny"] = usual
    options = {"data_dir": tmp_path, "dataset": "star_tiny", "block_size": 16, "max_iters": 2}
    train.main(flags(tmp_path / "out", **options, objective=objective, time_input=False))
    model = checkpoint.load(str(tmp_path / "out" / "ckpt.pt"))
    corpus = train.Corpus(tmp_path / "star_tiny")
    batch = corpus.batch("val", torch.arange(1).numpy(), 16)
    ids, start = batch.ids[0, : batch.length[0]].tolist(), int(batch.prompt_mask.sum())
    prompt, answer = (model.tokenizer.decode(part) for part in (ids[: start - 1], ids[start:]))
    [(nats, _)] = loglikelihood(model, [(prompt, answer)], maskings=1024)
    many = train.Batch(*(part.expand(64, *part.shape[1:]) for part in batch))
    bound = model.objective.bound(model.net, many, generator(7), 16)
    error = float(bound.std()) / 8
    assert nats == pytest.approx(-float(bound.mean()), abs=1e-4 + 6 * error)
    [text] = generate_texts(model, [prompt], 5)
    if 0 < len(text.split()) < 5:  # it has an end
        assert loglikelihood(model, [(prompt, text)], maskings=16)[0][1]


def test_no_bound_and_no_fit_are_refused(trained):
    model = checkpoint.load(str(trained(objective="it", time_input=False) / "ckpt.pt"))
    with pytest.raises(UserError, match="objective=it has no bound"):
        loglikelihood(model, [("a", "b")])
    with pytest.raises(UserError, match="in a block of 3"):
        loglikelihood(stream_model("ar"), [("abc", "abc")])
    assert loglikelihood(stream_model("ar"), []) == []


def test_greedy_is_unknown_where_there_is_no_greedy_order(trained):
    model = checkpoint.load(str(trained(graph="uniform") / "ckpt.pt"))
    assert loglikelihood(model, [("a", "b")], maskings=16)[0][1] is None


# ---- whole texts -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4, 7, 12, 30])
def test_windows_score_every_id_once_with_what_fits_before_it(size):
    ids = list(range(12))
    rows = windows(ids, size)
    assert [i for row, start in rows for i in row[start:]] == ids
    for row, start in rows:
        assert 0 < len(row) <= size and row == ids[row[0] : row[-1] + 1]
        assert start > 0 or row[0] == 0 or size == 1
    assert len(rows[-1][0]) == min(size, 12)  # the last one has a full context
    assert windows([], 4) == []


def test_rolling_is_the_sum_of_its_windows():
    model = stream_model("ar")
    (one, _), (two, _), (three, _) = loglikelihood(model, [("", "abc"), ("c", "ba"), ("ba", "a")])
    assert rolling(model, ["abcbaa"[:6], ""]) == pytest.approx([one + two + three, 0], abs=1e-5)


def test_rolling_of_rows_has_their_end(tiny_model):
    [whole] = rolling(tiny_model, ["abba"], maskings=16)
    assert whole == pytest.approx(loglikelihood(tiny_model, [("", "abba")], maskings=16)[0][0])
    with pytest.raises(UserError, match="in a block of 8"):
        rolling(tiny_model, ["abba" * 4])


# ---- writing -----------------------------------------------------------------------------------


def test_texts_begin_behind_the_prompt_and_end_where_they_are_told(tiny_model):
    texts = generate_texts(tiny_model, ["ab", "d"], 3, SampleOptions(), seed=5)
    assert all(len(text) <= 3 and set(text) <= set("abcd") for text in texts)
    cut = generate_texts(tiny_model, ["ab", "d"], 3, SampleOptions(), ("b", "c"), seed=5)
    assert cut == [text.split("b")[0].split("c")[0] for text in texts]
    assert generate_texts(tiny_model, []) == []
    with pytest.raises(UserError, match="room for 6"):
        generate_texts(tiny_model, ["abcdabcd"])


def test_shortened_keeps_the_end(tiny_model):
    assert harness.shortened(tiny_model, "abcd", 2) == "abcd"
    assert harness.shortened(tiny_model, "abcd", 3) == "bcd"
    assert harness.shortened(tiny_model, "abcd", 9) == ""


# ---- the harness -------------------------------------------------------------------------------

STUB = {
    "__init__.py": "",
    "api/__init__.py": "",
    "api/model.py": """
        import abc

        class LM(abc.ABC):
            def __init__(self):
                self._rank, self._world_size, self._device = 0, 1, None

            @abc.abstractmethod
            def loglikelihood(self, requests): ...

            @abc.abstractmethod
            def loglikelihood_rolling(self, requests): ...

            @abc.abstractmethod
            def generate_until(self, requests): ...
        """,
    "api/instance.py": """
        from dataclasses import dataclass

        @dataclass
        class Instance:
            request_type: str
            doc: dict
            arguments: tuple
            idx: int

            @property
            def args(self):
                return self.arguments if isinstance(self.arguments, tuple) else (self.arguments,)
        """,
    "tasks.py": """
        class TaskManager:
            def __init__(self, verbosity=None, include_path=None): ...
        """,
    "evaluator.py": """
        from lm_eval.api.instance import Instance

        def simple_evaluate(model, tasks, num_fewshot=None, limit=None, task_manager=None):
            if tasks != ["letters"]:
                raise KeyError(f"no task {tasks}")
            pairs = [("ab", "ba"), ("ab", "cc"), ("abcdabcdabcd", "a"), ("", "dd")]
            asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
            found = model.loglikelihood(asked)
            assert all(type(a) is float and type(b) is bool for a, b in found), found
            whole = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("a",), 0)])
            assert type(whole[0]) is float
            kinds = ({"until": ["a"], "max_gen_toks": 2}, {"until": "b", "do_sample": True})
            asked = [(prompt, dict(kind)) for prompt in ("", "d") for kind in kinds]
            texts = model.generate_until([Instance("generate_until", {}, a, 0) for a in asked])
            assert len(texts) == 4 and all(type(text) is str for text in texts), texts
            told = {"alias": "letters", "nats,none": found[0][0], "nats_stderr,none": 0.25}
            return {"results": {"letters": told}, "limit": limit}
        """,
}


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """A folder with a package lm_eval whose classes are laid out as the real ones (0.4.13)."""
    for name, text in STUB.items():
        path = tmp_path / "site" / "lm_eval" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return tmp_path / "site"


def test_command_runs_a_task_offline(stub, tmp_path, trained, run_cli):
    ckpt, out = trained() / "ckpt.pt", tmp_path / "found.json"
    argv = ["analysis.harness", f"--ckpt={ckpt}", "--maskings=32", f"--json={out}"]
    env = {"PYTHONPATH": str(stub)}
    result = run_cli(*argv, "--tasks=letters", env=env, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    [(nats, _)] = loglikelihood(checkpoint.load(str(ckpt)), [("ab", "ba")], maskings=32)
    assert f"letters: nats {nats:.4f} +- 0.2500" in result.stdout
    assert "lower bounds on log p" in result.stdout
    assert "32 draws of the noise for each" in result.stdout
    assert "1 prompts were cut from the left" in result.stderr
    saved = json.loads(out.read_text())
    assert saved["results"]["letters"]["nats,none"] == pytest.approx(nats)
    result = run_cli(*argv, "--tasks=nonesuch", env=env, cwd=tmp_path)
    assert result.returncode == 2 and "nonesuch" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_lm_eval_it_is_one_line(tmp_path, trained, run_cli, assert_refused):
    """Also where the machine has one: a module that cannot be imported stands before it."""
    (tmp_path / "lm_eval.py").write_text("raise ImportError('none')")
    argv = ["analysis.harness", f"--ckpt={trained() / 'ckpt.pt'}", "--tasks=arc_easy"]
    result = run_cli(*argv, env={"PYTHONPATH": str(tmp_path)})
    assert_refused(result, "pip install lm_eval")
    assert_refused(run_cli("analysis.harness"), "tasks must be")


def test_adapter_groups_requests_and_refuses_what_it_does_not_know(stub, tiny_model, monkeypatch):
    monkeypatch.syspath_prepend(str(stub))
    for name in [n for n in sys.modules if n.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM

    lm = harness.adapter(tiny_model, HarnessConfig(tasks="x", maskings=16))
    assert isinstance(lm, LM) and lm._rank == 0

    def asked(prompt: str, **message: Any) -> Instance:
        return Instance("generate_until", {}, (prompt, message), 0)

    both = lm.generate_until([asked("a"), asked("b", max_gen_toks=1), asked("c")])
    assert both == [
        *generate_texts(tiny_model, ["a"], 4),
        *generate_texts(tiny_model, ["b"], 1),
        *generate_texts(tiny_model, ["c"], 4),
    ]
    with pytest.raises(UserError, match="num_beams"):
        lm.generate_until([asked("a", num_beams=4)])
    for name in [n for n in sys.modules if n.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
