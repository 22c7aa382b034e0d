"""Star graphs: the generators, their corpora, and what evaluate.py says of answers."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import evaluate
import sample
from configurator import Config, UserError
from corpus import Corpus
from evaluate import closed
from objective import Frame, SampleOptions
from tasks import puzzles, stars
from tasks.stars import LEVELS, PUBLISHED, SIZES, Graph, ours, published
from tokenizer import Symbols

FEW = {"train": 300, "validation": 10, "test": 40}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Published and own sets of a few graphs."""
    monkeypatch.setattr(stars, "SIZES", FEW)
    monkeypatch.setattr(stars, "OURS", {"tiny": (300, 40), "small": (300, 40)})


def prepare(folder: Path, *flags: str) -> Corpus:
    stars.main([f"--data_dir={folder}", "--dataset=c", *flags])
    return Corpus(folder / "c", verify=True)


def rows(corpus: Corpus, split: str) -> list[tuple[list[int], list[int]]]:
    """Prompt with BOS, and answer with EOS, of every row."""
    [shard] = corpus.splits[split]
    data = shard.data().tolist()
    return [(data[a : a + p], data[a + p : a + n]) for a, p, n in shard.index().tolist()]


# ---- graphs ------------------------------------------------------------------------------------


def check(graph: Graph, message: dict[str, int]) -> int:
    """The graph is a star of the arms that it should have; returns where its centre is."""
    degree = message["degree"]
    shortest = message.get("pathlength", message.get("min_pathlength"))
    longest = message.get("pathlength", message.get("max_pathlength"))
    after, before = {}, {}
    for a, b in graph.edges:
        after.setdefault(a, []).append(b)
        before.setdefault(b, []).append(a)
    nodes = {*after, *before}
    assert (
        len(set(graph.edges)) == len(graph.edges) and len(nodes) == len(graph.edges) + 1
    )  # a tree
    assert max(nodes) < message["vocab_size"] and shortest <= len(graph.path) <= longest
    centre = [n for n in nodes if len(after.get(n, ())) + len(before.get(n, ())) > 2]
    if "pathlength" in message:
        centre = [graph.path[0]]
        assert len(after[centre[0]]) == degree and len(graph.edges) == degree * (shortest - 1)
    [centre] = centre
    ends = [n for n in nodes if n not in after]
    assert len(ends) == degree and graph.path[-1] in ends
    assert graph.path[0] == centre or graph.path[0] not in before
    assert set(zip(graph.path, graph.path[1:], strict=False)) <= set(graph.edges)
    place = graph.path.index(centre)
    assert len(graph.path) - 1 - place >= message.get("min_plan_length", 1)
    return place


@pytest.mark.parametrize("level", LEVELS)
def test_graphs_are_stars(level: str):
    places = Counter(check(g, LEVELS[level]) for g in stars.graphs(7, (LEVELS[level], 400)))
    if level == "medium":  # 400 draws; the shares are those of 4,000 published ones
        for place, share in enumerate((0.52, 0.27, 0.15, 0.06)):
            assert abs(places[place] / 400 - share) < 4 * (share * (1 - share) / 400) ** 0.5
    if level == "hard":
        assert set(places) == set(range(7))


def test_prompt_and_answer():
    graph = Graph([(4, 2), (1, 4), (4, 3)], [1, 4, 3])
    assert graph.prompt() == [4, 2, 1, 4, 4, 3, 1, 3] and graph.answer() == [1, 4, 4, 3]
    assert graph.key() == Graph([(1, 4), (4, 3), (4, 2)], [1, 4, 3]).key()
    assert graph.key() != Graph([(1, 4), (4, 3), (4, 2)], [1, 4, 2]).key()


def test_published_sets_share_one_stream(few: None):
    """Level after level, and in each training, validation and test: each begins where the one
    before it ended."""
    total = sum(FEW.values())
    stream = list(stars.graphs(stars.GRAPH_SEED, *((LEVELS[level], total) for level in PUBLISHED)))
    for level in PUBLISHED:
        parts = published(level)
        assert {k: len(v) for k, v in parts.items()} == FEW and list(parts) == list(SIZES)
        joined = [g for part in parts.values() for g in part]
        start = PUBLISHED.index(level) * total
        assert joined == stream[start : start + total]


def test_own_levels_ask_nothing_twice():
    parts = ours(LEVELS["tiny"], (12_000, 500))
    seen = {g.key() for g in parts["train"]}
    val = [g.key() for g in parts["val"]]
    assert len(parts["train"]) == 12_000 and len(val) == len(set(val)) == 500
    assert not seen & set(val)
    assert len(seen) > 10_000  # of 95,040 questions: there are enough that were never asked
    assert parts == ours(LEVELS["tiny"], (12_000, 500))


# ---- the command -------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_rows(level: str, tmp_path: Path, few: None, capsys: Any):
    corpus = prepare(tmp_path, f"--level={level}")
    nodes = LEVELS[level]["vocab_size"]
    bos, eos = (corpus.specials[k] for k in ("bos", "eos"))
    assert corpus.vocab_size == nodes + 3 and corpus.meta["task"] == "star"
    wanted = published(level) if level in PUBLISHED else ours(LEVELS[level], (300, 40))
    names = {"train": "train", "val": "val"}
    if level in PUBLISHED:  # by the names under which evaluate.py --split= finds them
        names = {"train": "train", "val": "test", "dev": "validation"}
        assert all(corpus.split_named(theirs) == ours for ours, theirs in names.items())
    assert list(corpus.splits) == list(names)
    for split, name in names.items():
        got = rows(corpus, split)
        assert got == [([*g.prompt(), bos], [*g.answer(), eos]) for g in wanted[name]]
    longest = max(len(a) for split in ("train", "val") for _, a in rows(corpus, split))
    assert corpus.meta["longest_answer"] == longest and corpus.meta["val_rows_in_train"] == 0
    text = next(corpus.texts("val"))
    ids = rows(corpus, "val")[0]
    assert text == " ".join(map(str, [*ids[0][:-1], *ids[1][:-1]]))
    assert "40 rows" in capsys.readouterr().out


def test_other_sizes(tmp_path: Path, few: None):
    """Arms of one length from a common source, or of lengths from half on that cross anywhere."""
    even = prepare(tmp_path / "even", "--degree=4", "--path=5")
    uneven = prepare(tmp_path / "uneven", "--degree=3", "--path=8", "--variable", "--node_ids=30")
    named = stars.StarsConfig(degree=3, path="8", variable=True)
    assert str(named.folder()) == "data/vstar_3_8"
    assert even.vocab_size == 4 * 4 + 1 + 3 and uneven.vocab_size == 30 + 3
    lengths = Counter()
    for corpus in (even, uneven):
        for prompt, answer in rows(corpus, "train"):
            edges, source, goal = prompt[:-3], *prompt[-3:-1]
            degrees = Counter(edges)
            assert answer[0] == source and answer[-2] == goal
            steps = {*zip(answer[:-1:2], answer[1:-1:2], strict=True)}
            assert steps <= {*zip(edges[::2], edges[1::2], strict=True)}
            if corpus is even:
                assert len(steps) == 4 and degrees[source] == 4 == max(degrees.values())
                assert len(edges) == 2 * 4 * 4
            else:
                lengths[len(steps) + 1] += 1
                assert 3 <= max(degrees.values()) <= 6
    assert min(lengths) == 4 and max(lengths) == 8
    with pytest.raises(UserError, match="has no split test; it has train, val, validation"):
        even.split_named("test")
    assert even.split_named("validation") == "val"


def test_names_and_refusals(tmp_path: Path, few: None):
    stars.main([f"--data_dir={tmp_path}", "--level=small"])
    assert Corpus(tmp_path / "star_small").rows("val") == 40
    for flags, word in (
        (["--degree=1", "--path=5"], "degree"),
        (["--degree=3"], "path"),
        (["--degree=3", "--path=2"], "path"),
        (["--degree=3", "--path=3", "--variable"], "path"),
        (["--degree=3", "--path=a.json"], "path"),
        (["--degree=3", "--path=5", "--node_ids=12"], "node_ids"),
        (["--degree=3", "--path=5", "--task=zebra"], "task"),
        (["--variable"], "variable"),
        (["--node_ids=50"], "node_ids"),
        (["--level=small"], "exists already"),
        (["--level=huge"], "level must be one of tiny"),
        (["--task=zebra", f"--path={tmp_path / 'no.jsonl'}"], "no such file"),
        (["--task=grammar", "--path=x"], "left out for the grammar"),
    ):
        with pytest.raises(UserError, match=word):
            stars.main([f"--data_dir={tmp_path}", *flags])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["star_small"]


def test_graphs_from_files(tmp_path: Path):
    """Rows as the published sets have them, in one file or two."""
    drawn = [*stars.graphs(3, (LEVELS["easy"], 120))]
    values = [{"edge_list": g.edges, "source": g.path[0], "goal": g.path[-1], "path": g.path}
            for g in drawn]  # fmt: skip
    for name, part in (("a", values[:100]), ("b", values[100:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    both = f"--path={tmp_path / 'a.jsonl'},{tmp_path / 'b.jsonl'}"
    corpus = prepare(tmp_path / "two", both)
    assert [p[:-1] for p, _ in rows(corpus, "train")] == [g.prompt() for g in drawn[:100]]
    assert [a[:-1] for _, a in rows(corpus, "val")] == [g.answer() for g in drawn[100:]]
    corpus = prepare(tmp_path / "one", f"--path={tmp_path / 'a.jsonl'}")
    parts = [rows(corpus, split) for split in ("train", "val")]
    assert 0 < len(parts[1]) < 20 and sum(map(len, parts)) == 100
    values[5]["path"] = [1, 2, 1]
    (tmp_path / "bad.jsonl").write_text("\n".join(map(json.dumps, values)))
    with pytest.raises(UserError, match="none of its edges"):
        prepare(tmp_path / "bad", f"--path={tmp_path / 'bad.jsonl'}")
    assert not list((tmp_path / "bad").iterdir())


def test_hub_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load_dataset(name: str, config: Any = None, split: str = "", **more: Any) -> list[dict]:
        asked.append((name, split))
        return [{"input": "c 0 = 1", "output": "0 1 2"}] * 3

    monkeypatch.setitem(
        __import__("sys").modules, "datasets", SimpleNamespace(load_dataset=load_dataset)
    )
    corpus = prepare(tmp_path, "--task=zebra")
    assert sorted(asked) == [("dhruveshpatel/zebra-puzzles", s) for s in ("test", "train")]
    assert corpus.rows("val") == 3 and corpus.meta["val_rows_in_train"] == 3


# ---- evaluation --------------------------------------------------------------------------------


class Oracle:
    """Writes the answer of each row, and in every third a wrong first token. `grows`: as insertion
    does, without EOS and with padding behind the text."""

    samplers, mask_id, bounded = ("only",), None, False

    def __init__(self, known: dict[tuple, list[int]], grows: bool, specials: dict[str, int]):
        self.known, self.inserts, self.special = known, grows, specials
        self.widths: list[int] = []

    def sample(self, net: Any, ids: Any, given: Any, rng: Any, options: Any) -> Any:
        out = ids.clone()
        for i, (row, asked) in enumerate(zip(ids, given, strict=True)):
            prompt = row[asked & (row != self.special["pad"])].tolist()
            answer = list(self.known[tuple(prompt)])
            if self.number(prompt) % 3 == 0:
                answer[0] = (answer[0] + 1) % 12
            if self.inserts:
                answer = answer[:-1]
            self.widths.append(int((~asked).sum()))
            out[i, len(prompt) :] = self.special["pad"]
            out[i, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
        yield Frame(out, torch.full((len(out),), out.shape[1]), ~given)

    def number(self, prompt: list[int]) -> int:
        return [*self.known].index(tuple(prompt))


@pytest.mark.parametrize("grows", [False, True])
def test_evaluation(grows: bool, tmp_path: Path, few: None, monkeypatch: Any, capsys: Any):
    corpus = prepare(tmp_path, "--level=medium")
    known = {tuple(p): a for p, a in rows(corpus, "val")}
    oracle = Oracle(known, grows, corpus.specials)
    net = torch.nn.ModuleDict({"norm": torch.nn.Identity(), "head": torch.nn.Linear(2, 2)})
    net.norm, net.features = net["norm"], len  # never called: the oracle knows the answers
    config = Config(block_size=44, data_dir=str(tmp_path), dataset="c")
    model = SimpleNamespace(net=net, objective=oracle, tokenizer=corpus.tokenizer, config=config,
                            meta=corpus.meta, step=1)  # fmt: skip
    monkeypatch.setattr(evaluate.checkpoint, "load", lambda *_: model)
    monkeypatch.setattr(evaluate, "uncropped", lambda m: m)
    monkeypatch.setattr(sample, "settings", lambda *_: {"steps": 1})
    monkeypatch.setattr(evaluate, "sample_options", lambda *_: SampleOptions())
    evaluate.main(["--batch_size=7", "--device=cpu", f"--json={tmp_path / 'e.json'}"])
    printed = capsys.readouterr().out
    got = json.loads((tmp_path / "e.json").read_text())
    assert "no bound" in printed and "exact match" in printed and "bound" not in got
    wrong = [a for i, a in enumerate(known.values()) if i % 3 == 0]
    answers = got["answers"]
    assert answers["rows"] == 40
    assert answers["exact_match"] == pytest.approx(1 - len(wrong) / 40)
    share = 1 - sum(1 / (len(a) - 1) for a in wrong) / 40
    assert answers["token_accuracy"] == pytest.approx(share)
    room = corpus.meta["longest_answer"] if grows else 44 - min(map(len, known))
    assert max(oracle.widths) == room
    monkeypatch.setattr(puzzles, "evaluate", None)  # not called
    evaluate.main(["--samples=0", "--device=cpu"])


def test_closed_texts():
    specials = Symbols(["a", "b"]).specials
    pad, eos = specials["pad"], specials["eos"]

    def told(grows: bool, *texts: list[int]) -> list[list[int]]:
        objective = SimpleNamespace(inserts=grows)
        return closed(SimpleNamespace(objective=objective, meta={"specials": specials}), [*texts])

    assert told(True, [0, 1, pad, pad], [pad], [0, eos]) == [[0, 1, eos], [eos], [0, eos]]
    assert told(False, [0, pad], [0, eos]) == [[0, pad], [0, eos]]


def test_samples_are_the_rows_of_the_split():
    """The rows that are asked are those that the corpus hands out, each once."""
    some = evaluate.shuffled(np.arange(40), 40, 0)
    assert sorted(some.tolist()) == list(range(40))
