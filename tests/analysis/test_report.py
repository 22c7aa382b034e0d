"""Pages and tables of toy models of all families (report, compare, probes, results);
what is counted at each level, against closed forms; what is refused."""

import dataclasses
import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_evaluate import model_of

import evaluate
from analysis import report, results
from analysis.curves import ways
from analysis.probes import LEVELS, axis, by_level
from checkpoint import Model
from configurator import ROOT, Config, UserError
from corpus import Batch, Corpus, CorpusWriter
from evaluate import EvaluateConfig, bound, describe_bound, distinct
from tokenizer import Symbols

FAMILIES: dict[str, dict[str, Any]] = {
    "sedd": {"objective": "sedd"},
    "sedd, uniform": {"objective": "sedd", "graph": "uniform"},
    "masked": {"objective": "masked", "time_input": False},
    "mlm": {"objective": "mlm", "time_input": False},
    "bd3": {"objective": "bd3", "block_length": 3},
    "ar": {"objective": "ar", "time_input": False},
    "ilm": {"objective": "ilm", "time_input": False},
    "idlm": {"objective": "idlm", "noise": "exponential", "sigma_min": 1.0, "sigma_max": 10.0},
    "it": {"objective": "it", "time_input": False},
    "flex": {"objective": "flex"},
}
WORDS = Symbols([str(i) for i in range(6)], " ")
SPECIAL = WORDS.specials


def reversals(folder: Path, seed: int, size: int = 3) -> Path:
    """Rows that look like puzzles: some different numbers, BOS | the same backwards, EOS."""
    rng = random.Random(seed)
    with CorpusWriter(folder, WORDS, task="star", longest_answer=size + 1) as out:
        for split, count in (("train", 40), ("val", 12)):
            for _ in range(count):
                values = rng.sample(range(6), size)
                out.row(split, [*values, SPECIAL["bos"], *values[::-1], SPECIAL["eos"]], size + 1)
    return folder


@pytest.fixture(scope="session")
def puzzles_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("puzzles")
    reversals(root / "toy", 1)
    reversals(root / "other", 2)
    return root


@pytest.fixture(scope="session")
def checkpoint_of(trained: Any, puzzles_dir: Path) -> Any:
    """checkpoint_of(family, dataset) -> the ckpt.pt of a run of 4 steps."""

    def make(family: str, dataset: str = "toy") -> Path:
        options = {"dataset": dataset, "data_dir": str(puzzles_dir), "block_size": 10}
        options |= FAMILIES[family]
        return trained(**options) / "ckpt.pt"

    return make


# ---- the page ----------------------------------------------------------------------------------


SLOWER = ("mlm", "sedd, uniform", "masked")  # their pages have what those of others have
PAGES = [pytest.param(f, marks=[pytest.mark.slow] if f in SLOWER else []) for f in FAMILIES]


@pytest.mark.parametrize("family", PAGES)
def test_page_of_every_family(checkpoint_of: Any, tmp_path: Path, monkeypatch: Any, family: str):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("analysis.curves.STEPS", (1, 4))
    monkeypatch.setattr("analysis.curves.THRESHOLDS", (0.5,))
    monkeypatch.setattr("analysis.curves.RATIOS", (0.5,))
    ckpt, folder = checkpoint_of(family), tmp_path / "about"
    argv = [f"--ckpt={ckpt}", f"--report={folder}", "--rows=8", "--samples=4"]
    argv += ["--steps=5"] if family not in ("ar", "xlnet", "ilm", "it") else []
    evaluate.main([*argv, f"--json={tmp_path / 'all.json'}"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["about", "all.json"], "nothing half made"
    page = (folder / "report.md").read_text()
    numbers = json.loads((folder / "numbers.json").read_text())
    objective = evaluate.checkpoint.load(str(ckpt)).objective

    figures = {"training.png", "loss.png", "accuracy.png", "calls.png"}
    figures |= {"bound.png"} if objective.bounded and not objective.exact else set()
    assert {p.name for p in folder.glob("*.png")} == figures
    for name in figures:
        assert (folder / name).read_bytes().startswith(b"\x89PNG") and f"]({name})" in page
    for kind in (EvaluateConfig, Config):
        for field in dataclasses.fields(kind):
            assert f"| {field.name} | `" in page, f"the setting {field.name} is not on the page"
    assert f"--ckpt={ckpt}" in page and "--rows=8" in page and "crc32" in page
    assert numbers["settings"]["training"]["objective"] == FAMILIES[family]["objective"]
    assert [step for step, _ in numbers["training"]["validation"]] == [2, 4]
    assert len(numbers["training"]["training loss"]) == 4
    assert numbers["levels"]["points"] and axis(objective) in page
    assert ("bound" in numbers) == objective.bounded
    if objective.bounded:
        assert objective.estimator in page and f"epsilon {objective.epsilon:g}" in page
    assert page.count("written  ") == page.count("wanted   ") == 8
    for name in ("unigram entropy", "distinct-1/2/3", "network calls"):
        assert name in page
    for name in objective.samplers:  # each has a curve against calls
        usual = {"confidence": "equal shares of", "random": "random order", "threshold": "one gap"}
        known = (f"--sampler={name}", f"| {name} | ", usual.get(name, "?"))
        assert any(text in page for text in known), name


@pytest.mark.parametrize("family", FAMILIES)
def test_curves_of_all_samplers(family: str):
    """Each sampler once; the figure of the README is not changed by the others."""
    model = model_of(WORDS, 12, {"splits": {}, "task": "star"}, **FAMILIES[family])
    few, every = ways(model), ways(model, every=True)
    names = model.objective.samplers
    for got in (few, every):
        for some in got.values():
            assert {how.get("sampler", names[0]) for _, how in some} <= set(names)
    values = [{how.get("sampler", names[0]) for _, how in some}.pop() for some in every.values()]
    assert set(values) == set(names)
    # confidence has a second way, by a threshold
    assert len(values) == len(names) + ("confidence" in names and not model.objective.inserts)
    assert all(every[name] == few[name] for name in few if name in every)


def test_no_bound_is_no_number(checkpoint_of: Any, capsys: Any):
    evaluate.main([f"--ckpt={checkpoint_of('it')}", "--rows=4", "--samples=0"])
    assert "no bound on the likelihood" in capsys.readouterr().out


def test_a_page_is_whole_or_not_there(checkpoint_of: Any, tmp_path: Path, monkeypatch: Any):
    pytest.importorskip("matplotlib")

    def fails(page: Any) -> None:
        raise UserError("no")

    monkeypatch.setattr(report, "gallery", fails)
    with pytest.raises(UserError, match="no"):
        evaluate.main([f"--ckpt={checkpoint_of('ar')}", f"--report={tmp_path / 'new'}", "--rows=4"])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_refused(checkpoint_of: Any, tmp_path: Path):
    (tmp_path / "mine").write_text("mine")
    for place in (tmp_path, tmp_path / "mine"):
        with pytest.raises(UserError, match="report must be a new folder"):
            evaluate.main([f"--ckpt={checkpoint_of('ar')}", f"--report={place}"])
    assert (tmp_path / "mine").read_text() == "mine"


def test_without_matplotlib_one_line(checkpoint_of: Any, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        evaluate.main([f"--ckpt={checkpoint_of('ar')}", f"--report={tmp_path / 'new'}"])
    assert not list(tmp_path.iterdir())


def test_a_text_corpus_has_no_curve_against_calls(trained: Any, tmp_path: Path):
    pytest.importorskip("matplotlib")
    argv = [f"--ckpt={trained() / 'ckpt.pt'}", "--rows=4", "--samples=4", "--steps=3"]
    evaluate.main([*argv, f"--report={tmp_path / 'new'}"])
    page = (tmp_path / "new" / "report.md").read_text()
    assert "not right or wrong answers" in page and "exact palindromes: " in page
    assert not (tmp_path / "new" / "calls.png").exists()


# ---- where a model fails -----------------------------------------------------------------------


def rows_of(model: Model, size: int = 4, copies: int = 50, token: int | None = None) -> list[Batch]:
    """BOS given, `size` different tokens or always the same one, EOS."""
    rng = random.Random(0)
    rows = [
        [SPECIAL["bos"], *([token] * size if token is not None else rng.sample(range(6), size))]
        for _ in range(copies)
    ]
    ids = torch.tensor([[*row, SPECIAL["eos"]] for row in rows])
    given = torch.zeros_like(ids, dtype=torch.bool)
    given[:, 0] = True
    return [Batch(ids, given, torch.full((copies,), size + 2))]


def untaught(family: str) -> Model:
    """A network whose last layer is zero."""
    return model_of(WORDS, 12, {"splits": {}, "specials": SPECIAL}, **FAMILIES[family])


@pytest.mark.parametrize("family", ["sedd", "sedd, uniform", "masked", "mlm", "bd3", "ar"])
def test_a_uniform_guess_costs_the_same_at_every_level(family: str):
    model = untaught(family)
    points = by_level(model, rows_of(model))
    assert len(points) >= 3 and [p.level for p in points] == sorted(p.level for p in points)
    if family == "sedd, uniform":  # its denoiser knows that a token is likely to be what it shows
        return
    for point in points:
        assert point.nats == pytest.approx(math.log(WORDS.vocab_size), abs=1e-5)


@pytest.mark.parametrize("family", ["sedd", "masked", "mlm"])
def test_levels_of_masking_are_shares_of_the_written(family: str):
    """Of 5 written places k are masked: 5 levels, each k / 5, and k guesses for a row of it."""
    model = untaught(family)
    points = by_level(model, rows_of(model, 4))
    assert [p.level for p in points] == pytest.approx([k / 5 for k in range(1, 6)])
    assert [p.guesses for p in points] == [k * 50 * LEVELS // 5 for k in range(1, 6)]


@pytest.mark.parametrize("family", ["sedd", "masked", "mlm", "bd3"])
def test_the_best_token_is_counted(family: str):
    """A network that always says 3, on texts of nothing but 3: all but EOS is right."""
    model = untaught(family)
    with torch.no_grad():
        model.net.head.bias[3] = 9.0
    points = by_level(model, rows_of(model, 4, token=3))
    right, guesses = sum(p.right * p.guesses for p in points), sum(p.guesses for p in points)
    assert right / guesses == pytest.approx(4 / 5, abs=0.05)
    model.net.head.bias.data[3] = -9.0
    assert all(p.right == 0 for p in by_level(model, rows_of(model, 4, token=3)))


def test_places_of_left_to_right():
    """One point for each place; the last one is EOS, of which this network knows nothing."""
    model = untaught("ar")
    with torch.no_grad():
        model.net.head.bias[3] = 9.0
    points = by_level(model, rows_of(model, 4, token=3))
    assert [p.level for p in points] == [1, 2, 3, 4, 5]
    assert [p.right for p in points] == [1, 1, 1, 1, 0]
    assert [p.guesses for p in points] == [50] * 5
    assert points[0].nats < 0.01 and points[4].nats > 8


def test_many_places_share_points():
    model = model_of(WORDS, 40, {"splits": {}, "specials": SPECIAL}, **FAMILIES["ar"])
    points = by_level(model, rows_of(model, 24, token=3))
    assert len(points) == 9 and sum(p.guesses for p in points) == 50 * 25
    assert points[0].level == 2 and points[-1].level == 25


def test_a_uniform_guess_of_insertion():
    """With n of 4 missing there are 5 - n gaps, six tokens each, and any of the n may come first:
    log of 6 (5 - n) / n."""
    model = untaught("ilm")
    points = by_level(model, rows_of(model, 4))
    assert [p.level for p in points] == pytest.approx([n / 4 for n in range(1, 5)])
    for n, point in enumerate(points, 1):
        assert point.nats == pytest.approx(math.log(6 * (5 - n) / n), abs=1e-5)


def test_insertion_is_right_where_the_pair_is_missing():
    """A network that knows the token, not the gap: the first gap, and of equal tokens any gap that
    lacks one is right. All missing: one gap, always right."""
    model = untaught("ilm")
    with torch.no_grad():
        model.net.head.bias[3] = 9.0
    points = by_level(model, rows_of(model, 4, copies=200, token=3))
    assert points[-1].level == 1 and points[-1].right == 1
    # one of four is missing: it is the first with probability 1/4
    assert points[0].right == pytest.approx(1 / 4, abs=0.05)


def test_gaps_of_the_insertion_transformer():
    """Always EOS: right in the gaps that lack nothing, and in no other."""
    model = untaught("it")
    with torch.no_grad():
        model.net.head.bias[SPECIAL["eos"]] = 9.0
    points = by_level(model, rows_of(model, 4, copies=200))
    assert points[-1].level == 1 and points[-1].right == 0
    assert points[0].right == pytest.approx(3 / 4, abs=0.01)  # of four gaps one lacks a token


# ---- what a number is --------------------------------------------------------------------------


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "it"])
def test_a_likelihood_says_what_it_is(checkpoint_of: Any, family: str, puzzles_dir: Path):
    model = evaluate.uncropped(evaluate.checkpoint.load(str(checkpoint_of(family))))
    cfg = EvaluateConfig(rows=12, t_samples=2)
    got = bound(cfg, model, Corpus(puzzles_dir / "toy"))
    text = describe_bound(got, cfg)
    for values in (
        model.objective.estimator,
        "of 12 rows",
        "epsilon",
        "48 tokens",
        "without the prompt",
    ):
        assert values in text, values
    assert ("at most" in text) == (family != "ar")
    assert ("2 noise levels" in text) == (family != "ar")
    assert ("variational" in text) == (family in ("sedd", "sedd, uniform", "masked", "mlm", "bd3"))
    assert got["epsilon"] == pytest.approx({"idlm": 1e-3, "flex": 1e-5}.get(family, 0.0))
    padded = got["positions"] - got["tokens"]
    learns = family in ("sedd", "sedd, uniform", "masked", "mlm", "bd3")
    assert (padded > 0) == learns == ("learnt padding" in text), (padded, text)


def test_exact_means_that_nothing_is_drawn(checkpoint_of: Any, puzzles_dir: Path):
    model = evaluate.checkpoint.load(str(checkpoint_of("ar")))
    corpus = Corpus(puzzles_dir / "toy")
    once, often = (bound(EvaluateConfig(t_samples=n), model, corpus) for n in (1, 5))
    assert once["nats_per_token"] == often["nats_per_token"]
    single = model_of(WORDS, 12, {"splits": {}}, objective="bd3", block_length=1, time_input=False)
    assert single.objective.exact and not untaught("bd3").objective.exact


def test_distinct_n():
    texts = [[1, 2, 1, 2], [1, 2], []]
    assert distinct(texts, 1) == 2 / 6
    assert distinct(texts, 2) == 2 / 4
    assert distinct(texts, 3) == 2 / 2
    assert distinct(texts, 5) == 0, "there are none"


# ---- side by side ------------------------------------------------------------------------------


def test_compare(checkpoint_of: Any, capsys: Any, tmp_path: Path):
    paths = [str(checkpoint_of(name)) for name in ("ar", "masked", "it", "sedd, uniform")]
    argv = [f"--compare={','.join(paths)}", "--rows=8", "--samples=4", "--steps=3"]
    evaluate.main([*argv, f"--json={tmp_path / 'all.json'}"])
    printed = capsys.readouterr().out
    cells = [line.split(" | ") for line in printed.splitlines() if line.startswith("| /")]
    assert [row[0].strip("| ") for row in cells] == paths
    assert [row[1] for row in cells] == ["ar", "masked", "it", "sedd"]
    assert [row[4].startswith("<= ") for row in cells] == [False, True, False, True]
    assert cells[2][4] == "no bound" and "exact answers" in printed
    assert cells[0][9].startswith("left_to_right, 0") and cells[1][9].startswith("confidence, 0")
    assert cells[3][9].startswith("analytic, 1"), "a step at temperature 0 would change nothing"
    rows = json.loads((tmp_path / "all.json").read_text())["rows"]
    for row, path in zip(rows, paths, strict=True):
        model = evaluate.checkpoint.load(path)
        assert row["parameters"] == sum(p.numel() for p in model.net.parameters())
        assert row["step"] == 4 and row["samples"] == 4
    assert f"- {paths[0]}: exact likelihood" in printed
    assert f"- {paths[2]}: no bound" in printed


def test_compare_refuses_other_corpora(checkpoint_of: Any, puzzles_dir: Path, capsys: Any):
    paths = [str(checkpoint_of("ar")), str(checkpoint_of("ar", "other"))]
    argv = [f"--compare={','.join(paths)}", "--rows=4", "--samples=0"]
    with pytest.raises(UserError, match=r"other.* is not that of .*toy.*--data"):
        evaluate.main(argv)
    evaluate.main([*argv, f"--data={puzzles_dir / 'toy'}"])  # the same rows for both
    assert capsys.readouterr().out.count("exact likelihood") == 2


def test_compare_needs_two(checkpoint_of: Any, tmp_path: Path):
    with pytest.raises(UserError, match="two checkpoints or more"):
        evaluate.main([f"--compare={checkpoint_of('ar')}"])
    with pytest.raises(UserError, match="left out with --compare"):
        evaluate.main(["--compare=a,b", f"--report={tmp_path / 'new'}"])


# ---- results -----------------------------------------------------------------------------------


def test_only_its_own_part_of_the_file_is_written(tmp_path: Path):
    path = tmp_path / "results.md"
    results.put("## a: 1\n\nfirst\n", path, "a")
    results.put("## b: 1\n\nsecond\n", path, "b")
    results.put("## a: 2\n\nthird \\1\n", path, "a")
    text = path.read_text()
    assert text.index("third \\1") < text.index("second") and "first" not in text
    assert text.count("## ") == 2 and text.startswith("# Results\n")


def test_results_refuse_unknown_names(tmp_path: Path):
    for flag, argv in (("--rows=GPT", "names of"), ("--dataset=x", "one of star_tiny")):
        with pytest.raises(UserError, match=argv):
            results.main([flag, f"--table={tmp_path / 'r.md'}"])
    assert not list(tmp_path.iterdir())


def test_results_are_printed_and_no_file_is_written_unasked(tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "results.md").write_text("measured before\n")
    (tmp_path / "data" / "star_tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    made = {"objective": "ar", "parameters": 1, "step": 2, "bound": None, "score": None}
    made |= {"settings": {"sampler": "left_to_right", "temperature": 1.0}, "seconds": 3.0}
    made |= {"nfe": None, "tokens_per_second": None}
    monkeypatch.setattr(results, "row", lambda cfg, name: {"name": name, **made})
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    results.main(["--rows=left-to-right"])
    assert "## star_tiny: 600 steps each" in capsys.readouterr().out
    assert (tmp_path / "docs" / "results.md").read_text() == "measured before\n"
    results.main(["--rows=left-to-right", "--table=mine.md"])
    assert "wrote mine.md" in capsys.readouterr().out
    assert "## star_tiny: 600 steps each" in (tmp_path / "mine.md").read_text()


def test_the_table_in_docs_names_its_command():
    text = (ROOT / "docs" / "results.md").read_text()
    measured = text[text.index("## star_tiny") :]
    assert "python -m analysis.results --dataset=star_tiny" in measured
    for name in results.ROWS:
        assert f"\n| {name} | " in measured


@pytest.mark.slow
def test_results(tmp_path: Path, run_cli: Any):
    """All families, two steps each; again without training."""
    table = tmp_path / "results.md"
    argv = [f"--data_dir={tmp_path / 'data'}", f"--out_dir={tmp_path / 'out'}", f"--table={table}"]
    argv += ["--iters=2", "--samples=4", "--val_rows=8", "--flags=--n_layer=1 --eval_iters=1"]
    first = run_cli("analysis.results", *argv, timeout=400)
    assert first.returncode == 0, first.stderr
    text = table.read_text()
    assert all(f"\n| {name} | " in text for name in results.ROWS)
    assert "--iters=2" in text and "--n_layer=1" in text
    second = run_cli("analysis.results", *argv, timeout=200)
    assert second.returncode == 0 and "iter 1" not in second.stdout
    assert table.read_text().count("## star_tiny") == 1
