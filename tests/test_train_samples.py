"""Numbered checkpoints and samples of a run that goes on: train.py --snapshot_interval= and
--sample_interval=."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import checkpoint
import evaluate
import train
from corpus import Corpus
from parallel import agree
from tasks.palindromes import is_exact
from train import main

EVERY = {"max_iters": 6, "snapshot_interval": 2, "sample_interval": 3, "num_samples": 3}


def records(out: Path, name: str = "samples.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def numbers(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("ckpt_0*"))


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("keep", [0, 2])
def test_snapshots_are_the_checkpoints_of_their_steps(tmp_path: Path, flags: Any, keep: int):
    main(flags(tmp_path / "run", **EVERY, keep_snapshots=keep))
    wanted = [f"ckpt_{step:06}.pt" for step in (2, 4, 6)]
    assert numbers(tmp_path / "run") == wanted[-keep or 0 :]
    main(flags(tmp_path / "short", max_iters=4, lr_decay_iters=6))
    one, other = tmp_path / "run" / wanted[1], tmp_path / "short" / "ckpt.pt"
    one, other = checkpoint.read(one), checkpoint.read(other)
    assert one["step"] == 4
    assert same(one["model"], other["model"]) and same(one["ema"], other["ema"])
    assert checkpoint.load(str(tmp_path / "run" / wanted[1])).step == 4


def test_samples_do_not_change_training(tmp_path: Path, flags: Any):
    main(flags(tmp_path / "plain", max_iters=6, dropout=0.1))
    main(flags(tmp_path / "often", dropout=0.1, **EVERY))
    plain, often = (checkpoint.read(tmp_path / x / "ckpt.pt") for x in ("plain", "often"))
    assert same(plain["model"], often["model"]) and same(plain["ema"], often["ema"])


def test_samples_are_those_of_evaluate(tmp_path: Path, flags: Any):
    """Of the averaged weights, with the step as the seed; the score of the log counts them."""
    main(flags(tmp_path, **EVERY))
    model = checkpoint.load(str(tmp_path / "ckpt_000006.pt"))
    corpus = Corpus(Path(model.config.data_dir) / model.config.dataset)
    cfg = evaluate.EvaluateConfig(samples=3, seed=6)
    found = evaluate.sampled(cfg, model, corpus, "val", 3).found
    lines = records(tmp_path)
    assert [line["step"] for line in lines] == [3, 3, 3, 6, 6, 6]
    assert [x["text"] for x in lines[3:]] == [model.tokenizer.decode(ids) for ids in found]
    shares = [x["exact_palindromes"] for x in records(tmp_path, "log.jsonl") if len(x) == 2]
    texts = [[line["text"] for line in lines[i : i + 3]] for i in (0, 3)]
    assert shares == [sum(map(is_exact, three)) / 3 for three in texts]


def test_a_score_is_a_share_of_what_is_right(tmp_path: Path, flags: Any, monkeypatch, capsys):
    """Three samples, two of them palindromes."""
    real = evaluate.sampled

    def answers(cfg: Any, model: Any, *more: Any) -> Any:
        found = [model.tokenizer.encode(text) for text in ("abcba", "abccba", "abcab")]
        return real(cfg, model, *more)._replace(found=found)

    monkeypatch.setattr(evaluate, "sampled", answers)
    main(flags(tmp_path, **EVERY))
    assert "step 3: 3 samples, exact palindromes 66.7%" in capsys.readouterr().out
    assert [line["text"] for line in records(tmp_path)[:3]] == ["abcba", "abccba", "abcab"]


def test_a_resumed_run_has_the_same_samples_once(tmp_path: Path, flags: Any):
    """Killed at step 5, behind a snapshot and samples that its checkpoint of step 2 has not."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    main(flags(whole, **EVERY))
    main(flags(parts, **EVERY, eval_interval=2))
    (parts / "ckpt.pt").write_bytes((parts / "ckpt_000002.pt").read_bytes())
    main(flags(parts, **EVERY, eval_interval=2, init_from="resume"))
    assert (parts / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert numbers(parts) == numbers(whole)  # and none *_prev.pt


def test_a_run_that_replaces_another_leaves_nothing_of_it(tmp_path: Path, flags: Any):
    main(flags(tmp_path, **EVERY))
    (tmp_path / "ckpt.pt").unlink()
    with pytest.raises(train.UserError, match="--overwrite"):  # snapshots are a run as well
        main(flags(tmp_path, max_iters=2))
    main(flags(tmp_path, max_iters=2, overwrite=True))
    assert numbers(tmp_path) == [] and not (tmp_path / "samples.jsonl").exists()


def test_a_snapshot_begins_another_run(tmp_path: Path, flags: Any):
    main(flags(tmp_path / "run", **EVERY))
    begin = tmp_path / "run" / "ckpt_000002.pt"
    main(flags(tmp_path / "next", max_iters=1, init_from=begin, learning_rate=0.0, ema_decay=0.0))
    got = checkpoint.read(tmp_path / "next" / "ckpt.pt")["model"]
    assert same(got, checkpoint.read(begin)["ema"])


# ---- before a long run -------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["masked", "sedd", "ilm", "ar"])
def test_one_row_is_learnt_by_heart(tmp_path: Path, flags: Any, objective: str, capsys: Any):
    options = {"objective": objective, "debug": "overfit", "learning_rate": 3e-3, "ema_decay": 0.0}
    options |= {"eval_interval": 50, "n_embd": 32, "time_input": objective == "sedd"}
    options |= {"batch_size": 16, "n_layer": 2, "positions": "both"}
    main(flags(tmp_path, max_iters=1000, **options))
    out = capsys.readouterr().out
    assert "learnt by heart" in out and len(records(tmp_path, "log.jsonl")) < 1000
    bound = records(tmp_path, "log.jsonl")[-1]["val_bound"]
    assert bound < (0.45 if objective == "ilm" else 0.1)


def test_what_cannot_be_learnt_fails(tmp_path: Path, flags: Any):
    """Of a network that learns nothing, with the numbers; its checkpoint is kept."""
    with pytest.raises(train.NotLearnt, match="after 4 steps the bound of the first row is") as e:
        main(flags(tmp_path, max_iters=4, debug="overfit", learning_rate=0.0))
    assert e.value.code == 1 and (tmp_path / "ckpt.pt").exists()


@pytest.mark.slow
def test_two_nodes_are_compared_with_one_process(flags: Any, tmp_path: Path, capsys, monkeypatch):
    main(flags(tmp_path / "none", debug="multinode", max_iters=50, dropout=0.1))
    out = capsys.readouterr().out
    assert out.count("in one process") == 3 and out.endswith("they agree\n")
    assert not (tmp_path / "none").exists()
    monkeypatch.setattr(agree, "TOLERANCE", -1)  # sums in another order are no error, others are
    with pytest.raises(agree.Disagree, match="losses of step 1 differ"):
        main(flags(tmp_path / "none", debug="multinode"))
    with pytest.raises(train.UserError, match="a process failed: no corpus at"):
        main(flags(tmp_path / "none", debug="multinode", dataset="absent"))
