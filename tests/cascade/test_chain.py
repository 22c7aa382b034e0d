"""Cascades: numbers against brute force, the chain against what it says of itself, refusals."""

import contextlib
import dataclasses
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoint
import sample
import train
from cascade import chain as cascade
from cascade import stages as prepare_stages
from cascade.chain import order_kept, overlap, overlap_by_chance, places
from configurator import UserError
from corpus import Corpus
from tokenizer import Symbols

LENGTHS = (3, 5, 8)

# ---- numbers -------------------------------------------------------------------------------------

ROWS = st.lists(st.integers(0, 4), min_size=1, max_size=7)


def longest(a: list[int], b: list[int]) -> int:
    """Of all subsequences of a, the longest that is one of b."""
    for n in range(len(a), 0, -1):
        for few in itertools.combinations(a, n):
            rest = iter(b)
            if all(i in rest for i in few):
                return n
    return 0


@settings(max_examples=200)
@given(ROWS, ROWS)
def test_overlap_and_order(a: list[int], b: list[int]):
    source, target = torch.tensor([a, a[::-1]]), torch.tensor([b, b])
    wanted = sum(i in b for i in a) / len(a)
    assert overlap(source, target).tolist() == [wanted] * 2
    order = [longest(x, b) / len(a) for x in (a, a[::-1])]
    assert order_kept(source, target).tolist() == order


def test_chance_is_the_overlap_with_others():
    """Never with its own prefix, and every other one counts alike."""
    source = torch.tensor([[0, 1], [2, 3], [4, 5]])
    target = torch.tensor([[0, 1, 2], [2, 3, 4], [4, 5, 9]])
    assert overlap(source, target).tolist() == [1, 1, 1]
    # of six pairs of a prefix and another text, two have one of two tokens in common
    assert overlap_by_chance(source, target) == pytest.approx(2 * 0.5 / 6)
    assert overlap_by_chance(source[:1], target[:1]) is None


@given(st.integers(1, 40), st.integers(0, 40))
def test_clamped_places(few: int, more: int):
    """As many different places inside as there are tokens, in order and evenly spread."""
    got = places(few, few + more).tolist()
    assert got == sorted(set(got)) and len(got) == few
    assert 0 <= got[0] and got[-1] < few + more
    gaps = np.diff(got)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_folding_keeps_all_of_a_sample():
    rows = torch.arange(1, 15).view(2, 7)
    got = cascade.folded(rows, 3)
    assert got.tolist() == [
        [1, 2, 3], [4, 5, 6], [7, 0, 0], [0, 0, 0],
        [8, 9, 10], [11, 12, 13], [14, 0, 0], [0, 0, 0],
    ]  # fmt: skip


# ---- the chain -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stages(tmp_path_factory: Any, flags: Any) -> Path:
    """A folder with corpora and three hardly trained stages of lengths 3, 5, 8."""
    root = tmp_path_factory.mktemp("stages")
    lengths = "--lengths=" + ",".join(map(str, LENGTHS))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(prepare_stages, "COPIES", {"train": 60, "val": 40})
        patch.setattr(train, "gemm_peak", lambda *_: 1e12)
        for k, size in enumerate((3, 8, 13), 1):
            where = [f"--data_dir={root}", f"--dataset=stage{k}"]
            prepare_stages.main(["--source=copy", lengths, f"--stage={k}", *where])
            more = {"data_dir": root, "dataset": f"stage{k}", "block_size": size}
            train.main(flags(root / f"out{k}", max_iters=2, learning_rate=0.01, **more))
            without_ends(root / f"out{k}" / "ckpt.pt")
    return root


def without_ends(path: Path) -> None:
    """Make a model never write EOS, so that the text of a sample has all of its letters."""
    state = checkpoint.read(path)
    for weights in (state["model"], state["ema"]):
        weights["head.bias"][state["corpus"]["meta"]["specials"]["eos"]] = -1e4
    checkpoint.save(state, path)


def chain(root: Path, out: Path, *more: Any, order: tuple = (1, 2, 3)) -> tuple[dict, str]:
    """Run the cascade -> (summary.json, what was printed)."""
    dirs = ",".join(str(root / f"out{k}") for k in order)
    text = io.StringIO()
    argv = [f"--cascade={dirs}", "--steps=4", "--num_samples=6", f"--output_dir={out}", *more]
    with contextlib.redirect_stdout(text):
        sample.main([str(a) for a in argv])
    return json.loads((out / "summary.json").read_text()), text.getvalue()


def texts(out: Path, stage: int) -> list[str]:
    """The samples in a file of texts."""
    got = (out / f"sample_stage{stage}.txt").read_text()
    return re.findall(r"^sample \d+\n(.*?)\n-{40}$", got, re.S | re.M)


def ids_of(out: Path, stage: int) -> torch.Tensor:
    return torch.tensor([[ord(c) - ord("A") for c in text] for text in texts(out, stage)])


def test_a_chain(stages: Path, tmp_path: Path, monkeypatch: Any):
    """Every stage is given, as ids, what the one before it wrote; the files hold what was written,
    and the numbers are those of the files."""
    begun = []
    generate = cascade.generate

    def watched(model: Any, canvases: Any, *more: Any, **named: Any):
        begun.append(canvases)
        return generate(model, canvases, *more, **named)

    monkeypatch.setattr(cascade, "generate", watched)
    summary, out = chain(stages, tmp_path)
    written = [ids_of(tmp_path, k) for k in (1, 2, 3)]
    assert [tuple(w.shape) for w in written] == [(6, n) for n in LENGTHS]
    for k, canvases in enumerate(begun):
        P, L = [0, *LENGTHS][k : k + 2]
        for row, canvas in enumerate(canvases):
            assert canvas.prompt_mask.tolist() == [True] * P + [False] * L
            if k:
                assert canvas.ids[:P].tolist() == written[k - 1][row].tolist()
    assert set(summary["overlaps"]) == {"1->2", "1->3", "2->3"}
    for i, j in itertools.combinations(range(3), 2):
        row = summary["overlaps"][f"{i + 1}->{j + 1}"]
        each, order = overlap(written[i], written[j]), order_kept(written[i], written[j])
        assert row["each_overlap"] == each.tolist() and row["each_order_kept"] == order.tolist()
        assert row["overlap"] == pytest.approx(float(each.mean()))
        assert row["overlap_by_chance"] == overlap_by_chance(written[i], written[j])
        assert f"stage {i + 1} in stage {j + 1}: overlap {row['overlap']:.3f}" in out
    assert [s["number"] for s in summary["stages"]] == [1, 2, 3]
    assert summary["settings"]["steps"] == 4 and summary["config"]["num_samples"] == 6
    assert all(s["nfe"] >= 1 and s["seconds"] > 0 for s in summary["stages"])
    assert all("gap" not in s for s in summary["stages"])


def test_the_same_seed_gives_the_same_chain(stages: Path, tmp_path: Path):
    runs = {}
    for name, more in (("a", []), ("b", ["--show"]), ("c", ["--seed=2"]), ("d", ["--gold"])):
        _, out = chain(stages, tmp_path / name, *more)
        runs[name] = [texts(tmp_path / name, k) for k in (1, 2, 3)]
        if name == "b":  # no terminal: the last frame of each stage, in order
            heads = [out.index(f"stage {k}: {n} tokens") for k, n in enumerate(LENGTHS, 1)]
            assert heads == sorted(heads)
            assert all(runs["b"][k - 1][0] in out for k in (1, 2, 3))
    assert runs["a"] == runs["b"] == runs["d"] != runs["c"]
    assert runs["a"][0] != runs["a"][1]


def test_no_special_token_is_written(stages: Path, tmp_path: Path):
    """An untrained stage would write PAD and BOS as often as letters; EOS ends a document."""
    model = checkpoint.load(str(stages / "out1" / "ckpt.pt"))
    with torch.no_grad():
        for name in ("pad", "bos"):
            model.net.head.bias[model.meta["specials"][name]] = 50.0
    cfg = cascade.CascadeConfig(cascade="x", steps=3)
    stage = cascade.Stage("", 1, model, 0, 3)
    got = cascade.write_stage(cfg, stage, torch.zeros(20, 0, dtype=torch.int64))
    special = model.meta["specials"]
    assert not torch.isin(got.ids, torch.tensor([special["pad"], special["bos"]])).any()
    assert got.ids.max() < 35


def test_clamping_loses_nothing(stages: Path, tmp_path: Path):
    summary, _ = chain(stages, tmp_path, "--clamp")
    for pair in summary["overlaps"].values():
        assert set(pair["each_overlap"]) == set(pair["each_order_kept"]) == {1.0}
    written = [ids_of(tmp_path, k) for k in (1, 2, 3)]
    for short, long in itertools.pairwise(written):
        assert torch.equal(long[:, places(short.shape[1], long.shape[1])], short)


def test_gold_prefixes(stages: Path, tmp_path: Path):
    """The texts themselves contain their prefixes in order; the same is measured for all."""
    summary, out = chain(stages, tmp_path, "--gold")
    for stage in summary["stages"][1:]:
        rows = stage["gap"]
        assert list(rows) == ["generated prefix", "gold prefix", "gold text"]
        assert rows["gold text"]["overlap"] == rows["gold text"]["order_kept"] == 1
        before = summary["overlaps"][f"{stage['number'] - 1}->{stage['number']}"]
        assert rows["generated prefix"]["each_overlap"] == before["each_overlap"]
        assert rows["gold prefix"]["each_overlap"] != before["each_overlap"]
        for row in rows.values():
            assert len(row["each_overlap"]) == 6 and row["unigram_entropy"] > 0
    assert "gap" not in summary["stages"][0] and out.count("gold prefix: overlap") == 2
    model = checkpoint.load(str(stages / "out2" / "ckpt.pt"))
    stage = cascade.Stage("", 2, model, 3, 5)
    cfg = cascade.CascadeConfig(cascade="x", num_samples=1000)
    corpus = Corpus(stages / "stage2")
    every = {tuple(r) for r in corpus.batch("val", np.arange(40), 8).ids.tolist()}
    assert {tuple(r) for r in cascade.gold_rows(cfg, stage).tolist()} == every


def test_a_judge(stages: Path, tmp_path: Path, monkeypatch: Any):
    """Loaded before anything is sampled; its numbers stand beside the entropy."""
    calls = []

    class Fake:
        longest, name = 100, "fake"

        def __init__(self, name: str, *_: Any):
            calls.append(name)

        def encode(self, parts: Any) -> list[int]:
            return [1] * sum(len(text) for text, _ in parts)

        def nats(self, rows: Any) -> Any:
            count = torch.tensor([len(r) for r in rows], dtype=torch.float64)
            return 2 * count, count

    monkeypatch.setattr(cascade, "Judge", Fake)
    summary, out = chain(stages, tmp_path, "--judge=somewhere", "--gold")
    assert calls == ["somewhere"] and "generative perplexity 7.39" in out
    for stage in summary["stages"]:
        assert stage["samples"]["generative_perplexity"] == pytest.approx(np.exp(2))
    assert "generative_perplexity" in summary["stages"][2]["gap"]["gold text"]


# ---- refusals ------------------------------------------------------------------------------------


def refused(argv: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        cascade.main(argv)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_stages_that_do_not_fit(stages: Path, tmp_path: Path, trained: Any, monkeypatch: Any):
    out = f"--output_dir={tmp_path / 'new'}"

    def cascade_of(*paths: Any) -> str:
        return refused([f"--cascade={','.join(map(str, paths))}", out])

    one, two, three = (stages / f"out{k}" for k in (1, 2, 3))
    assert f"{three} is stage 3, but stands at place 2" in cascade_of(one, three, two)
    assert "is stage 2, but stands at place 1" in cascade_of(two)
    assert "no stage of a cascade" in cascade_of(trained())
    assert "no checkpoint" in cascade_of(one, tmp_path / "ckpt.pt")
    real = checkpoint.load

    def other(**more: Any) -> Any:
        def load(path: str, *rest: Any) -> Any:
            model = real(path, *rest)
            return (
                model._replace(**{k: f(model) for k, f in more.items()})
                if "out2" in path
                else model
            )

        return load

    monkeypatch.setattr(checkpoint, "load", other(tokenizer=lambda m: Symbols(list("xyz"))))
    assert "another tokenizer" in cascade_of(one, two, three)
    lengths = {"lengths": [3, 6, 8]}
    monkeypatch.setattr(checkpoint, "load", other(meta=lambda m: {**m.meta, **lengths}))
    assert "lengths=[3, 6, 8]" in cascade_of(one, two, three)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "flag", ["--prompt=a", "--chat", "--max_length=3", "--num_samples=0", "--cascade=,"]
)
def test_flags_that_mean_nothing_here(flag: str):
    argv = ["--cascade=out/a,out/b", flag] if "cascade" not in flag else [flag]
    assert flag[2:].split("=")[0] in refused(argv)


def test_gold_needs_the_corpus(stages: Path, tmp_path: Path, monkeypatch: Any):
    """Told before anything is sampled."""
    real = checkpoint.load

    def moved(path: str, *rest: Any) -> Any:
        model = real(path, *rest)
        return model._replace(config=dataclasses.replace(model.config, data_dir="nowhere"))

    monkeypatch.setattr(checkpoint, "load", moved)
    dirs = ",".join(str(stages / f"out{k}") for k in (1, 2, 3))
    where = f"--output_dir={tmp_path / 'new'}"
    assert "no corpus at nowhere" in refused([f"--cascade={dirs}", "--gold", where])
    assert not (tmp_path / "new").exists()


def test_as_a_command(stages: Path, tmp_path: Path, run_cli: Any, assert_refused: Any):
    """sample.py hands over; a mistake is one line and exit code 2."""
    dirs = ",".join(str(stages / f"out{k}") for k in (1, 2, 3))
    argv = ["sample.py", f"--cascade={dirs}", "--steps=2", "--num_samples=2", "--show"]
    done = run_cli(*argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    got = sorted(p.name for p in (tmp_path / "out" / "cascade").iterdir())
    assert got == [*(f"sample_stage{k}.txt" for k in (1, 2, 3)), "summary.json"]
    assert_refused(run_cli("sample.py", "--cascade=out/none", cwd=tmp_path), "out/none")
    assert "--cascade" in run_cli("sample.py", "-h", cwd=tmp_path).stdout


def test_a_page_of_all_stages(stages: Path, tmp_path: Path):
    """The stages stand one after another, each without its prefix, as they were written."""
    page = tmp_path / "a.html"
    _, out = chain(stages, tmp_path, f"--html={page}", "--clamp")
    got = re.search(r'id="data">(.*?)</script>', page.read_text())
    data = json.loads(got[1])["stages"]
    assert f"wrote {page}" in out and [s["name"][:7] for s in data] == [f"Stage {k}" for k in "123"]
    for k, stage in enumerate(data, 1):
        rows = [[stage["texts"][str(t["history"][-1][1])] for t in s] for s in stage["samples"]]
        assert ["".join(row) for row in rows] == texts(tmp_path, k)
        assert {sum(t["given"] for t in s) for s in stage["samples"]} == {[0, *LENGTHS][k - 1]}


def test_one_stage_by_itself(stages: Path):
    """A prompt for a stage is text, not a frame of BOS and EOS; EOS does not end what it writes."""
    from sample import canvas, text_of, written_ids

    model = checkpoint.load(str(stages / "out2" / "ckpt.pt"))
    begun = canvas(model, prompt="ABC")
    assert (
        begun.ids[:3].tolist() == [0, 1, 2]
        and begun.prompt_mask.tolist() == [True] * 3 + [False] * 5
    )
    row = [0, 1, 2, 3, model.meta["specials"]["eos"], 4, 5, 6]
    assert written_ids(model, torch.tensor([row]), [begun]) == [row[3:]]
    assert text_of(model, row) == "ABCD\n\nEFG"


def test_evaluation_of_a_stage(stages: Path, tmp_path: Path):
    """Its samples are written after the prefixes of the validation rows."""
    import evaluate

    file = tmp_path / "found.json"
    where = [f"--ckpt={stages / 'out2' / 'ckpt.pt'}", f"--json={file}", "--steps=3"]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluate.main([*where, "--rows=20", "--samples=10"])
    got = json.loads(file.read_text())
    assert got["bound"]["tokens"] == 20 * 5
    for name in ("samples", "corpus"):
        assert got["samples"]["val"][name]["tokens_per_text"] == 5
