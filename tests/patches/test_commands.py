"""Patches by the commands: what is printed, what is written to a file, what is reported."""

import contextlib
import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_tokenizer import some_merges

import checkpoint
import evaluate
import sample
import tokenizer
import train
from checkpoint import build_network, build_objective
from configurator import Config, UserError, load
from corpus import Batch, Corpus
from objective import generator
from patches import commands
from patches import prepare as prepare_diff
from patches.commands import Excerpt, Written, applied, excerpt, samples
from patches.patch import apply_patch, kept_ends, make_hunks
from patches.prepare import DiffConfig
from patches.rows import HUNKS
from pretrained import published
from sample import SampleConfig

BEFORE, AFTER = "x = 1\nprint(x)\n", "n = 1\nprint(n)\n"
NEW = "a = 2\n"
ASKED = ["--file=f.py", "--message=x is n", "--device=cpu"]
SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 128, "batch_size": 2}


def commits():
    """Two to learn, and a newer one to write."""
    changes = [
        ("f.py", BEFORE, AFTER, "x is n"),
        ("a.py", None, NEW, "more"),
        ("g.py", "y = 1\n", "y = 2\n", "up"),
    ]
    for number, (path, before, after, message) in enumerate(changes):
        row = {"commit": f"c{number}", "path": path, "before": before, "after": after}
        yield {**row, "message": message, "status": "M" if before else "A"}


def begin(root: Path, **more: Any) -> Path:
    """A run of train.py on these commits; the checkpoint."""
    options = {"data_dir": root, "dataset": "diff", "out_dir": root / "out", "device": "cpu"}
    options |= {"objective": "ar", "time_input": False, "optimizer": "muon", "ema_decay": 0.0}
    options |= {"eval_iters": 1, "log_interval": 1000, "eval_interval": 1000, **SMALL, **more}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(train, "gemm_peak", lambda *_: 1e12)
        train.main([f"--{k}={v}" for k, v in options.items() if v is not None])
    return Path(options["out_dir"], "ckpt.pt")


def prepare(root: Path, **more: Any) -> Corpus:
    options = {"source": root / "c.jsonl", "data_dir": root, "dataset": "diff", **more}
    cfg = load(DiffConfig, [f"--{k}={v}" for k, v in options.items()])[0]
    with contextlib.redirect_stdout(io.StringIO()):
        prepare_diff.prepare(cfg)
    return Corpus(cfg.folder())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The commits, and their corpus: do not write into it."""
    root = tmp_path_factory.mktemp("diffs")
    (root / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in commits()))
    prepare(root)
    return root


@pytest.fixture(scope="module")
def learnt(root):
    """A model that knows the training patches by heart."""
    options = {"max_iters": 150, "learning_rate": 1e-2, "muon_lr": 0.02, "min_lr": 0.02}
    return begin(root, **options)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder with f.py, which is where the commands run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.py").write_text(BEFORE)
    return tmp_path


def commit(folder):
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ["-c", "user.name=x", "-c", "user.email=x@y"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=folder, env=env, check=True, capture_output=True)


def says(monkeypatch, *texts, ended=True, meanwhile=lambda: None):
    """A model that writes these texts."""

    def write_patches(*_):
        meanwhile()
        return Written([HUNKS + text for text in texts], [ended] * len(texts), {})

    monkeypatch.setattr(commands, "write_patches", write_patches)


def refused(argv):
    with pytest.raises(UserError) as e:
        sample.main(argv)
    assert "\n" not in str(e.value)
    return str(e.value)


def contents(folder):
    got = (p for p in folder.rglob("*") if p.is_file() and ".git" not in p.parts)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in got}


# ---- a patch of a file ---------------------------------------------------------------------------


def test_printed_then_written(learnt, place, run_cli, capsys):
    """What was learnt is printed as a patch that applies; only --write applies it."""
    sample.main([f"--ckpt={learnt}", *ASKED])
    assert capsys.readouterr().out == make_hunks(BEFORE, AFTER) + "f.py: ok\n"
    assert contents(place) == {"f.py": BEFORE.encode()}
    (place / "other.py").write_text(BEFORE)
    result = run_cli("sample.py", f"--ckpt={learnt}", *ASKED, "--write", cwd=place)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("f.py: ok\nwrote f.py\n")
    assert contents(place) == {"f.py": AFTER.encode(), "other.py": BEFORE.encode()}


def test_a_file_that_is_not_there_yet(learnt, place):
    argv = [f"--ckpt={learnt}", "--file=a.py", "--message=more", "--device=cpu", "--write"]
    sample.main(argv)
    assert (place / "a.py").read_text() == NEW


def test_git_must_be_able_to_bring_it_back(learnt, place):
    argv = [f"--ckpt={learnt}", *ASKED, "--write"]
    (place / "f.py").write_text(AFTER)
    commit(place)
    (place / "f.py").write_text(BEFORE)  # changed since
    assert "f.py is not written" in refused(argv)
    assert contents(place) == {"f.py": BEFORE.encode()}
    commit(place)
    sample.main(argv)
    assert contents(place) == {"f.py": AFTER.encode()}


def test_a_file_that_changes_meanwhile_stays(learnt, place, monkeypatch):
    def change():
        (place / "f.py").write_text(BEFORE + "\n")

    says(monkeypatch, make_hunks(BEFORE, AFTER), meanwhile=change)
    assert "has changed" in refused([f"--ckpt={learnt}", *ASKED, "--write"])
    assert contents(place) == {"f.py": f"{BEFORE}\n".encode()}


GOOD = make_hunks(BEFORE, AFTER)


@pytest.mark.parametrize(
    "text, ended, why",
    [
        ("", True, "bad_format"),
        ("--- a/o.py\n+++ b/o.py\n" + GOOD, True, "bad_format"),
        (GOOD + "diff --git a/o.py b/o.py\n" + GOOD, True, "bad_format"),
        (GOOD + "--- /etc/passwd\n+++ ../o.py\n" + GOOD, True, "bad_format"),
        ("@@ -1 +1 @@\n-z\n+y\n", True, "no_match"),
        ("@@ -1 +1 @@\n x = 1\n", True, "no_change"),
        (GOOD, False, "no end"),
    ],
)
def test_what_does_not_fit_is_not_written(learnt, place, monkeypatch, capsys, text, ended, why):
    (place / "o.py").write_text(BEFORE)
    says(monkeypatch, text, ended=ended)
    argv = refused([f"--ckpt={learnt}", *ASKED, "--write"])
    assert why in argv and "f.py is not written" in argv
    assert contents(place) == {"f.py": BEFORE.encode(), "o.py": BEFORE.encode()}
    assert ("not complete" in capsys.readouterr().out) == (not ended)


def test_another_sample_behind_the_patch_is_not_its_business(learnt, place, monkeypatch):
    (place / "o.py").write_text(BEFORE)
    says(monkeypatch, f"{GOOD}<NME> o.py\n<BEF> {BEFORE}<MSG> m\n<DFF> {GOOD}")
    sample.main([f"--ckpt={learnt}", *ASKED, "--write"])
    assert contents(place) == {"f.py": AFTER.encode(), "o.py": BEFORE.encode()}


@pytest.mark.parametrize(
    "more, words",
    [
        (["--file=."], "is no name"),
        (["--file=.."], "is no name"),
        (["--file=.git/config"], "git itself"),
        (["--file=link.py"], "no regular file"),
        (["--file=binary"], "NUL"),
        (["--file=a\nb.py"], "is no name"),
        (["--file=none/f.py", "--write"], "folder is missing"),
        (["--message= \n"], "message"),
        (["--message=a\n<MSG> b"], "marker in the message"),
        (["--num_samples=2", "--write"], "num_samples=2"),
        (["--lines=2:3"], "the file has 2 lines"),
        (["--max_length=100"], "--lines="),
    ],
)
def test_refused(learnt, place, more, words):
    (place / "link.py").symlink_to(place / "f.py")
    (place / "binary").write_bytes(b"\0")
    before = contents(place)
    assert words in refused([f"--ckpt={learnt}", *ASKED, *more])
    assert contents(place) == before


@pytest.mark.parametrize(
    "more", ["--message=m", "--write", "--lines=1:2", "--file=f --lines=2:1", "--file=f --chat"]
)
def test_options_that_do_not_go_together(more):
    with pytest.raises(UserError, match="config error"):
        load(SampleConfig, more.split())


def test_a_model_of_something_else(tiny_model, place):
    with pytest.raises(UserError, match="not trained on patches"):
        commands.patch_file(SampleConfig(file="f.py", message="m"), tiny_model)


# ---- a part of a file ----------------------------------------------------------------------------


def test_the_model_sees_the_lines_and_the_patch_fits_the_file(learnt, place, capsys):
    """Here are the same lines three times; those that are shown are changed."""
    (place / "f.py").write_text(BEFORE * 3)
    sample.main([f"--ckpt={learnt}", *ASKED, "--lines=3:4", "--write"])
    assert (place / "f.py").read_text() == BEFORE + AFTER + BEFORE
    printed = capsys.readouterr().out
    assert printed.startswith("@@ -3,2 +3,2 @@\n")
    patch = printed[: printed.index("f.py: ok")]
    assert apply_patch(BEFORE * 3, patch).text == BEFORE + AFTER + BEFORE


TEXT = st.lists(st.sampled_from(["a\n", "b\n", "\n", " a\n"]), max_size=8).map("".join)


@given(whole=TEXT, other=TEXT, wanted=TEXT, first=st.integers(1, 8), size=st.integers(0, 3))
def test_lines_that_were_not_shown_stay(whole, other, wanted, first, size):
    """Whatever a patch says, which was made for another file."""
    every = kept_ends(whole)
    if first + size > len(every):
        with pytest.raises(UserError, match="the file has"):
            excerpt(whole, f"{first}:{first + size}")
        return
    shown = excerpt(whole, f"{first}:{first + size}")
    head, tail = every[: shown.above], every[len(every) - shown.below :]
    assert "".join([*head, shown.text, *tail]) == whole
    got = applied(whole, shown, make_hunks(other, wanted, 0) or "@@\n a\n")
    made = kept_ends(got.text)
    assert made[: len(head)] == head and made[len(made) - len(tail) :] == tail
    assert len(made) >= len(head) + len(tail)
    if got.state not in ("ok", "ok_fuzzy"):
        assert got.text == whole


@given(whole=TEXT, wanted=TEXT)
def test_the_whole_file_may_change(whole, wanted):
    got = applied(whole, excerpt(whole, ""), make_hunks(whole, wanted))
    assert whole == wanted or (got.state, got.text) == ("ok", wanted)


def test_a_line_beside_what_is_hidden():
    """A new line that equals its hidden neighbour is none of the hidden ones."""
    shown = Excerpt("b\n", 1, 2)
    got = applied("a\nb\nb\nc\n", shown, "@@ -2 +2,2 @@\n b\n+b\n")
    assert (got.state, got.text) == ("ok", "a\nb\nb\nb\nc\n")
    assert applied("a\nb\nb\nc\n", shown, "@@ -4 +4 @@\n-c\n+d\n").state == "no_match"
    same = Excerpt("b\n", 1, 1)  # of two hidden lines one would be left
    assert applied("a\nb\na\n", same, "@@ -2,2 +1,0 @@\n-b\n-a\n").state == "no_match"


# ---- the report ----------------------------------------------------------------------------------


def test_report(learnt, place, capsys):
    """By heart in training, and not beyond; the commit's own patch is right, no patch is nothing,
    and the nearest one is another's."""
    evaluate.main([f"--ckpt={learnt}", "--rows=0", "--json=r.json", "--device=cpu"])
    got = json.loads(Path("r.json").read_text())["patches"]
    shares = ("parse", "apply", "apply_lenient", "exact", "python")
    for split, rows in (("train", 2), ("val", 1)):
        assert got[split]["gold"] == {
            **dict.fromkeys(shares, 1.0),
            "rows": rows,
            "python_rows": rows,
            "gain": pytest.approx(got[split]["gold"]["gain"]),
        }
        assert got[split]["gold"]["gain"] > 0
        for name in ("empty", "nearest"):
            assert got[split][name]["exact"] == 0
        assert got[split]["empty"]["gain"] == got[split]["empty"]["apply"] == 0
        assert got[split]["nearest"]["parse"] == 1 and got[split]["empty"]["parse"] == 0
    model = got["train"]["model"]
    assert all(model[key] == 1 for key in (*shares, "ended"))
    assert got["val"]["model"]["exact"] == 0
    assert got["settings"]["temperature"] == 0
    out = capsys.readouterr().out
    assert "train: 2 patches" in out and "val: 1 patches" in out
    assert out.count("gold") == 2 and "sampler=left_to_right" in out


def test_samples_of_packed_rows(root, tmp_path):
    """Each by itself, as if they were not packed; without the pieces of long ones."""
    (tmp_path / "c.jsonl").write_text((root / "c.jsonl").read_text())
    packed = prepare(tmp_path, concatenate_texts=True)
    assert packed.rows("train") == 1
    both = [{*samples(c, "train", 1024)} for c in (packed, Corpus(root / "diff"))]
    assert both[0] == both[1] and len(both[0]) == 2
    learnt_too = prepare(tmp_path, dataset="all", train_diff_model=False)
    assert {*samples(learnt_too, "train", 1024)} == both[0]
    cut = prepare(tmp_path, dataset="cut", ignore_long_samples=False, block_size=70)
    assert {*samples(cut, "train", 70)} < both[0]


@pytest.mark.parametrize("objective", ["masked", "ilm"])
def test_other_objectives(root, tmp_path, place, capsys, objective):
    """Every step of the way, after two steps of training."""
    ckpt = begin(root, out_dir=tmp_path / "out", objective=objective, max_iters=2)
    steps = ["--steps=4"] if objective == "masked" else []
    sample.main([f"--ckpt={ckpt}", *ASKED, *steps, "--max_length=20"])
    assert "f.py: " in capsys.readouterr().out
    evaluate.main([f"--ckpt={ckpt}", "--rows=0", "--samples=1", *steps, "--device=cpu"])
    assert "val: 1 patches" in capsys.readouterr().out


# ---- rows of single hunks ------------------------------------------------------------------------


def test_a_row_for_every_hunk(tmp_path):
    """Each is the file before and one of its changes; all of them in a row are the commit."""
    lines = [f"{i}\n" for i in range(60)]
    wanted = ["new\n", *lines[:20], "20b\n", *lines[20:40], *lines[41:]]
    texts = "".join(lines), "".join(wanted)
    row = {"path": "a", "before": texts[0], "after": texts[1], "message": "m", "commit": "b"}
    rows = [{**row, "commit": "a", "before": "", "after": "x\n"}, row]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    got = list(samples(prepare(tmp_path, per_hunk=True), "val", 1024))
    assert len(got) == 3 and {one.prompt.before for one in got} == {texts[0]}
    assert all(one.hunks.count("\n@@") == 0 for one in got)
    place = lambda one: int(one.hunks.split()[1].split(",")[0])  # noqa: E731
    whole = texts[0]
    for one in sorted(got, key=place):  # the first in the file has the largest number: negative
        whole = apply_patch(whole, one.hunks).text
    assert whole == texts[1]
    few = prepare(tmp_path, per_hunk=True, window=1, dataset="few")
    assert max(len(kept_ends(one.prompt.before)) for one in samples(few, "val", 1024)) < 4


# ---- packed rows ---------------------------------------------------------------------------------


def alone(row: list[int], mark: list[int]):
    """The samples of a packed row: a given token begins one if it follows an EOS that is not."""
    starts = [i for i in range(1, len(row)) if mark[i] and not mark[i - 1] and row[i - 1] == 8]
    pairs = zip([0, *starts], [*starts, len(row)], strict=True)
    return [(row[a:b], mark[a:b]) for a, b in pairs]


def stacked(pairs, width):
    ids = torch.full((len(pairs), width), 9)
    marks = torch.zeros(len(pairs), width, dtype=torch.bool)
    for i, (row, mark) in enumerate(pairs):
        ids[i, : len(row)], marks[i, : len(row)] = torch.tensor(row), torch.tensor(mark) > 0
    return Batch(ids, marks, torch.tensor([len(row) for row, _ in pairs]))


MANY = ["1100110010", "0010011000", "1111000000", "11001", "0000"]


@pytest.mark.parametrize(
    "positions, marks",
    [("rotary", MANY), ("learned", MANY), ("gpt2", MANY), ("rotary", ["110010"])],
)
def test_a_packed_row_is_its_samples(positions, marks):
    """In loss, bound and gradient; of one or many samples, with and without something given first,
    one token long at its end, with padding behind it."""
    meta = {"vocab_size": 10, "specials": {"eos": 8, "pad": 9}}
    more = {"positions": positions} if positions != "gpt2" else {"backbone": gpt2_json(10)}
    cfg = Config(**{**SMALL, "objective": "ar", "time_input": False, **more})
    objective = build_objective(cfg, meta)
    torch.manual_seed(0)
    net = build_network(cfg, objective).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape) * 0.3)
    rng = np.random.default_rng(0)
    packed = [(rng.integers(0, 8, len(m)).tolist(), [int(c) for c in m]) for m in marks]
    for row, mark in packed:  # every sample ends with EOS
        row[:] = [8 if mark[i : i + 2] == [0, 1] else one for i, one in enumerate(row)]
    apart = [one for row, mark in packed for one in alone(row, mark)]
    assert len(apart) == (3 + 3 + 1 + 2 + 1 if marks == MANY else 2)
    losses = []
    for pairs in (packed, apart):
        net.zero_grad()
        loss = objective.loss(net, objective.corrupt(stacked(pairs, 12), generator(0)))
        loss.sum.backward()
        losses.append((loss, [p.grad.clone() for p in net.parameters() if p.grad is not None]))
    (one, grads), (other, wanted) = losses
    assert one.count == other.count == sum(not c for _, mark in packed for c in mark)
    assert float(one.sum) == pytest.approx(float(other.sum), rel=1e-5)
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    each = [objective.bound(net, stacked(p, 12), generator(0)) for p in (packed, apart)]
    owner = torch.tensor([k for k, pair in enumerate(packed) for _ in alone(*pair)])
    total = torch.zeros(len(packed), dtype=torch.float64).index_add_(0, owner, each[1])
    torch.testing.assert_close(each[0], total, rtol=1e-5, atol=1e-5)


# ---- fine-tuning ---------------------------------------------------------------------------------

GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 256}
CODEGEN = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 256, "n_ctx": 256}
CODEGEN |= {"rotary_dim": 4}


def gpt2_json(size):
    pytest.importorskip("transformers")
    return json.dumps({"model_type": "gpt2", "vocab_size": size, **GPT2})


def publish(folder: Path, kind: str, sizes: dict) -> str:
    """A model with the tokenizer of GPT-2, without its merges; more rows than tokens."""
    transformers, parts = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    letters = sorted(parts.pre_tokenizers.ByteLevel.alphabet())
    codec = parts.Tokenizer(parts.models.BPE({c: i for i, c in enumerate(letters)}, []))
    codec.pre_tokenizer = parts.pre_tokenizers.ByteLevel(add_prefix_space=False)
    codec.decoder = parts.decoders.ByteLevel()
    codec.add_special_tokens(["<|endoftext|>"])
    config = transformers.AutoConfig.for_model(kind, vocab_size=260, **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(codec.to_str())
    return str(folder)


@pytest.mark.parametrize("kind, sizes", [("gpt2", GPT2), ("codegen", CODEGEN)])
def test_fine_tuning(root, tmp_path, place, capsys, kind, sizes):
    """A corpus in the model's own tokens: EOS is its <|endoftext|>, which also pads; dropout is set
    and kept; no row of the embedding is lost; sampled and evaluated as any other."""
    name = publish(tmp_path / "hf", kind, sizes)
    (tmp_path / "c.jsonl").write_text((root / "c.jsonl").read_text())
    corpus = prepare(tmp_path, tokenizer=name, dataset="own", block_size=256)
    assert corpus.specials == {"eos": 256, "pad": 256} and corpus.vocab_size == 257
    own = dict.fromkeys(("n_layer", "n_head", "n_embd"))
    options = {"data_dir": tmp_path, "dataset": "own", "init_from": name, "block_size": 256, **own}
    ckpt = begin(tmp_path, max_iters=2, dropout=0.1, out_dir=tmp_path / "out", **options)
    model = checkpoint.load(str(ckpt))
    drops = {m.p for m in model.net.modules() if isinstance(m, torch.nn.Dropout)}
    assert drops == {0.1} and model.config.dropout == 0.1 and model.net.vocab_size == 257
    batch = corpus.batch("train", np.array([0]), 256)
    last = int(batch.length[0]) - 1
    assert batch.ids[0, last] == 256 and model.objective.target_mask(batch)[0, last]
    assert int(model.objective.target_mask(batch).sum()) == last + 1 - int(batch.prompt_mask.sum())
    sample.main([f"--ckpt={ckpt}", *ASKED, "--max_length=8"])
    evaluate.main([f"--ckpt={ckpt}", "--rows=2", "--samples=1", "--max_length=8", "--device=cpu"])
    assert "val: 1 patches" in capsys.readouterr().out


def test_the_shipped_config_begins_from_a_folder(root, tmp_path, monkeypatch, capsys):
    """Its sizes are those of a run from scratch: not used here, and told so."""
    name = publish(tmp_path / "hf", "gpt2", GPT2)
    (tmp_path / "c.jsonl").write_text((root / "c.jsonl").read_text())
    prepare(tmp_path, tokenizer=name, dataset="own", block_size=256)
    monkeypatch.setattr(train, "gemm_peak", lambda *_: 1e12)
    argv = f"--data_dir={tmp_path} --dataset=own --init_from={name} --block_size=256 --demo="
    argv += f" --max_iters=1 --device=cpu --out_dir={tmp_path}/out --warmup_iters=0 --overwrite"
    train.main(["config/diff_ar.py", *argv.split()])
    assert (
        "not used, as the backbone has its own: n_layer, n_head, n_embd" in capsys.readouterr().out
    )
    with pytest.raises(UserError, match="means nothing with a backbone"):
        train.main(["config/diff_ar.py", *argv.split(), "--n_layer=2"])
    with pytest.raises(UserError, match="prepare it with the tokenizer of that model"):
        train.main(["config/diff_ar.py", *argv.split(), f"--data_dir={root}", "--dataset=diff"])


def test_gpt2_by_either_tokenizer():
    """The ids of tiktoken's table are those of a tokenizer.json with the same tokens; in its
    spelling, which the library knows as well."""
    parts = pytest.importorskip("tokenizers")
    pytest.importorskip("tiktoken")
    gpt2 = tokenizer.GPT2(some_merges())
    tokens = tokenizer.vocabulary(gpt2)
    assert len(tokens) == 50257 and sorted(tokens.values()) == [*range(50257)]
    letter = {i: t for t, i in tokens.items() if i < 256}
    text = "".join(map(chr, [*range(0x250), 0x20AC, 0xFFFD, 0x1F600]))
    level = parts.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    [(spelt, _)] = level.pre_tokenize_str(text)
    assert "".join(letter[b] for b in text.encode()) == spelt

    def require(own):
        codec = parts.Tokenizer(parts.models.BPE(own, []))
        got = published.Published({}, {}, 50257, tokenizer.HF(codec.to_str()))
        published.require_extension(got, gpt2, "x")

    require(tokens)
    with pytest.raises(UserError, match="is id"):
        require({**tokens, "a": tokens["b"], "b": tokens["a"]})


# ---- the shipped configs -------------------------------------------------------------------------


def test_without_a_history(tmp_path, monkeypatch, capfd):
    """From a tarball: one line that names the way out, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="this command failed"):
        train.main(["config/diff_ar.py"])
    err = capfd.readouterr().err.strip()
    assert "--source" in err and "\n" not in err
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_configs_share_their_corpus():
    first, *others = (load(Config, [f"config/diff_{k}.py"])[0] for k in ("ar", "masked", "ilm"))
    for cfg in others:
        assert (cfg.dataset, cfg.prepare, cfg.block_size) == (
            (first.dataset, first.prepare, first.block_size)
        )
        build_objective(cfg, {"vocab_size": 9, "specials": {"pad": 6, "bos": 7, "eos": 8}})
