"""patches/prepare.py and its files: rows that can be read again, splits by commit, git disarmed."""

import json
import os
import subprocess
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configurator import UserError, load
from corpus import Corpus
from patches import history as git_history
from patches import prepare
from patches.history import Commit
from patches.patch import Refused, apply_patch, make_hunks
from patches.prepare import DiffConfig, Packer, fitting, held_out, repeated
from patches.rows import (
    PatchPrompt,
    Sample,
    judge_patch,
    nearest_patch,
    prompt_ids,
    prompt_text,
    rates,
    split_prompt,
    split_sample,
    target_text,
)
from patches.saved import Row, mask_by_marker
from patches.sources import Limits, _time, changes_of, from_rows
from tokenizer import Bytes

EOS = Bytes.specials["eos"]
ANY = Limits((), 20_000, 0)


def run_git(folder, *args, day=1):
    when = f"2024-01-{day:02d}T12:00:00Z"
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    for who in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{who}_NAME": "x", f"GIT_{who}_EMAIL": "x@y", f"GIT_{who}_DATE": when}
    subprocess.run(["git", *args], cwd=folder, env=env, check=True, capture_output=True)


LONG = "".join(f"line {i}\n" for i in range(30))
HISTORY = [  # of each commit: message, and the files that it writes; None deletes
    (
        "first",
        {"a.py": "x = 1\n", "gone.txt": "a\n", "empty": "", "move.txt": LONG, "link.txt": "q"},
    ),
    ("Change x\n\nAnd say why.\n", {"a.py": "x = 2\n", "crlf.txt": "a\r\nb\r\n"}),
    ("no newline", {"a.py": "x = 2", "empty": "now\n", "crlf.txt": "a\r\nc\r\n"}),
    (
        "odd files",
        {"bin": b"\0\1", "latin": b"\xe9\n", "big.txt": "y\n" * 10_001, "a\nb.txt": "h\n"},
    ),
    ("markers", {"m.txt": "<NME> a\n<BEF> b\n<MSG> c\n<DFF> @@ -1 +1 @@\n-b\n+c\n"}),
    ("bad\n<MSG> message", {"a.py": "x = 3"}),
    ("deleted", {"gone.txt": None, "m.txt": "<MSG> \n<DFF> \n"}),
    ("newest", {"a.py": "x = 4\n"}),
]


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A repository with everything that may happen to a file."""
    root = tmp_path_factory.mktemp("repo")
    run_git(root, "init", "-q")
    for day, (message, files) in enumerate(HISTORY, 1):
        for name, text in files.items():
            if text is None:
                (root / name).unlink()
            else:
                (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        if message == "odd files":
            (root / "move.txt").rename(root / "moved.txt")
            (root / "moved.txt").write_text(LONG + "end\n")
            (root / "empty").rename(root / "full")
            (root / "link.txt").unlink()
            (root / "link.txt").symlink_to("a.py")
        run_git(root, "add", "-A")
        run_git(root, "commit", "-qm", message, day=day)
    return root


@pytest.fixture
def prepared(tmp_path):
    """prepared(key=value, ...) -> the corpus."""

    def make(**more):
        name = f"c{len(list(tmp_path.iterdir()))}"
        argv = [f"--{k}={v}" for k, v in {"data_dir": tmp_path, "dataset": name, **more}.items()]
        prepare.prepare(load(DiffConfig, argv)[0])
        return Corpus(tmp_path / name)

    return make


def rows(corpus, split):
    """(ids, given) of every row, without padding."""
    for number in range(corpus.rows(split)):
        batch = corpus.batch(split, np.array([number]), 1024)
        n = int(batch.length)
        yield batch.ids[0, :n].numpy(), batch.prompt_mask[0, :n].numpy()


def samples(corpus, split):
    """What evaluate.py can know of each row."""
    for ids, asked in rows(corpus, split):
        k = int(asked.sum())
        assert asked[:k].all() and ids[-1] == EOS and EOS not in ids[:-1]
        decode = corpus.tokenizer.decode
        yield Sample(split_prompt(decode(ids[:k])), decode(ids[k:]))


def after(sample):
    return apply_patch(sample.prompt.before or "", sample.hunks).text


# ---- a history -----------------------------------------------------------------------------------


def test_every_change_of_a_history(repo, prepared):
    corpus = prepared(repo=repo, block_size=1024, val_split_ratio=0.3)
    got = {s: list(samples(corpus, s)) for s in ("train", "val")}
    options = {(s.prompt.name, s.prompt.message): (s.prompt.before, after(s)) for s in got["train"]}
    first, odd = "first", "odd files"
    assert options == {
        ("a.py", first): (None, "x = 1\n"),
        ("gone.txt", first): (None, "a\n"),
        ("link.txt", first): (None, "q"),
        ("move.txt", first): (None, LONG),
        ("a.py", "Change x\n\nAnd say why."): ("x = 1\n", "x = 2\n"),
        ("crlf.txt", "Change x\n\nAnd say why."): (None, "a\r\nb\r\n"),
        ("a.py", "no newline"): ("x = 2\n", "x = 2"),
        ("empty", "no newline"): ("", "now\n"),
        ("crlf.txt", "no newline"): ("a\r\nb\r\n", "a\r\nc\r\n"),
        ("moved.txt", odd): (LONG, LONG + "end\n"),
        ("m.txt", "markers"): (None, HISTORY[4][1]["m.txt"]),
    }
    assert [(s.prompt.message, s.prompt.before, after(s)) for s in got["val"]] == [
        ("deleted", HISTORY[4][1]["m.txt"], "<MSG> \n<DFF> \n"),
        ("newest", "x = 3", "x = 4\n"),
    ]
    assert corpus.meta["task"] == "diff"
    assert corpus.meta["dropped"] == {
        "no change": 1,  # an empty file is new
        "binary": 2,
        "over 20,000 bytes": 1,
        "a hostile name": 1,
        "renamed or of another mode only": 1,
        "a link or a submodule": 1,
        "a marker in the message": 1,
        "deleted": 1,
    }


def test_endings_window_and_newest_commits(repo, prepared):
    corpus = prepared(repo=repo, ext=".py,.txt", max_commits=7, window=1)
    got = [s for split in ("train", "val") for s in samples(corpus, split)]
    assert "first" not in {s.prompt.message for s in got}
    assert {s.prompt.name for s in got} == {"a.py", "crlf.txt", "moved.txt", "m.txt"}
    (moved,) = [s for s in got if s.prompt.name == "moved.txt"]
    assert (moved.prompt.before, after(moved)) == ("line 29\n", "line 29\nend\n")


def test_no_program_of_a_repository_is_run(repo, prepared, tmp_path):
    """Text conversion, diff drivers, filters, hooks, a file monitor: all set, none called."""
    ran, script = tmp_path / "ran", tmp_path / "evil"
    script.write_text(f"#!/bin/sh\necho $0 >> {ran}\ncat\n")
    script.chmod(0o755)
    clone = tmp_path / "clone"
    run_git(tmp_path, "clone", "-q", str(repo), str(clone))
    settings = "diff.external diff.evil.textconv diff.evil.command filter.evil.smudge "
    for key in (settings + "filter.evil.clean core.fsmonitor core.pager core.sshCommand").split():
        run_git(clone, "config", key, str(script))
    (clone / ".git" / "info" / "attributes").write_text("* diff=evil filter=evil\n")
    for hook in ("post-checkout", "pre-auto-gc", "post-index-change", "reference-transaction"):
        (clone / ".git" / "hooks" / hook).write_text(script.read_text())
        (clone / ".git" / "hooks" / hook).chmod(0o755)
    before = sorted(p for p in clone.rglob("*") if p.is_file())
    assert prepared(repo=clone).rows("train") and not ran.exists()
    assert sorted(p for p in clone.rglob("*") if p.is_file()) == before
    run_git(clone, "diff", "HEAD~1", "HEAD")
    assert ran.exists()  # so the trap was one


def test_a_shallow_clone_does_not_begin_with_everything(repo, prepared, tmp_path):
    run_git(tmp_path, "clone", "-q", "--depth=3", f"file://{repo}", "shallow")
    corpus = prepared(repo=tmp_path / "shallow")
    got = [s.prompt for split in ("train", "val") for s in samples(corpus, split)]
    assert [p.message for p in got] == ["deleted", "newest"]


# ---- the split -----------------------------------------------------------------------------------


def commits(repo, times):
    return [Commit(repo, f"{repo}{i}", t) for i, t in enumerate(times)]


def test_the_newest_commits_of_each_repository_are_held_out():
    both = commits("a", [3, 1, 2, 4]) + commits("b", [None, 9, 1, 2])
    assert held_out(both, 0.25) == {("a", "a3"), ("b", "b3")}  # b: no times, so its order
    assert held_out(both, 0.1) == {("a", "a3")}  # at least one
    assert held_out(both, 0.99) == {(r, f"{r}{i}") for r, i in ("a0 a2 a3 b1 b2 b3".split())}
    few = {("a", "a1"), ("a", "a0")}  # only these have a row: what is newer goes with them
    assert held_out(both[:4], 0.5, few) == {("a", "a0"), ("a", "a3")}
    with pytest.raises(UserError, match="two commits"):
        held_out(both, 0.5, {("a", "a1"), ("b", "b1")})


def test_rows_of_a_commit_stay_together(tmp_path, prepared):
    got = [
        {
            "path": f"{i}.txt",
            "before": "a\n",
            "after": f"{c}{i}\n",
            "message": "m",
            "commit": str(c),
        }
        for i in range(3)
        for c in range(10)
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, got)))
    corpus = prepared(source=tmp_path / "x.jsonl", val_split_ratio=0.3)
    assert {after(s)[0] for s in samples(corpus, "val")} == set("789")
    assert {after(s)[0] for s in samples(corpus, "train")} == set("0123456")


# ---- the serialised form -------------------------------------------------------------------------

PARTS = ["<NME> ", "<BEF> ", "<DFF> ", "<MSG> ", "ADDFILE", "\n", "a", " "]
BODIES = st.lists(st.sampled_from(PARTS), max_size=8).map("".join)


@given(st.none() | BODIES, BODIES, BODIES)
def test_prompts_are_read_again_whatever_they_hold(before, message, after):
    prompt = PatchPrompt("<NME> f.py", before, message)
    try:
        text = prompt_text(prompt)
    except Refused:
        assert "\n<MSG> " in message or before == "ADDFILE"
        return
    assert split_prompt(text) == prompt
    patch = make_hunks(before or "", after)
    assert split_sample(text + target_text(patch)) == (prompt, patch)


def test_the_form_is_the_published_one():
    prompt = PatchPrompt("a.py", "x\n", "Do it")
    assert prompt_text(prompt) == "<NME> a.py\n<BEF> x\n\n<MSG> Do it\n"
    assert prompt_text(PatchPrompt("a.py", None, "m")) == "<NME> a.py\n<BEF> ADDFILE\n<MSG> m\n"
    assert target_text("@@ -1 +1 @@\n") == "<DFF> @@ -1 +1 @@\n"
    assert prompt_ids(Bytes(), prompt) == list(prompt_text(prompt).encode())


@pytest.mark.parametrize("text", ["", "<NME> a\n<BEF> b\n", "<NME> a\n<MSG> b\n<BEF> c\n", "a"])
def test_a_missing_marker_is_refused(text):
    with pytest.raises(Refused, match="no marker"):
        split_prompt(text)


# ---- records -------------------------------------------------------------------------------------

FORMS = [
    {"path": "d/a.py", "before": "x\n", "after": "y\n", "message": " m\n"},
    {"path": "a.py", "before": "x\n", "after": "y\n", "message": "m", "hunks": "not read"},
    {
        "new_file": "a.py",
        "old_file": "b.py",
        "old_contents": "x\n",
        "new_contents": "y\n",
        "subject": "m",
    },
    {"tgt_file": "a.py", "before_file": "x\n", "hunks": "@@ -1 +1 @@\n-x\n+y\n", "message": "m"},
    {"text": "<NME> a.py\n<BEF> x\n\n<MSG> m\n<DFF> @@ -1 +1 @@ f()\n-x\n+y"},
]
BAD = [
    ("deleted", {"path": "a", "before": "x", "after": None, "message": "m"}),
    ("deleted", {"path": "a", "before": "x", "after": "", "message": "m", "status": "D"}),
    ("no change", {"path": "a", "before": "x", "after": "x", "message": "m"}),
    ("no message", {"path": "a", "before": "x", "after": "y", "message": "\n"}),
    ("a field is missing", {"path": "a", "before": "x", "after": "y"}),
    ("a field is missing", {"path": "a", "before": "x", "message": "m"}),
    ("a field is no text", {"path": "a", "before": 1, "after": "y", "message": "m"}),
    ("a field is no text", {"text": 5}),
    ("a hostile name", {"path": "../a", "before": "x", "after": "y", "message": "m"}),
    ("a hostile name", {"path": "/a", "before": "x", "after": "y", "message": "m"}),
    ("a hostile name", {"text": "<NME> ../a\n<BEF> x\n<MSG> m\n<DFF> @@ -1 +1 @@\n-x\n+y\n"}),
    ("binary", {"path": "a", "before": "x", "after": "\0", "message": "m"}),
    (
        "a character that UTF-8 lacks",
        {"path": "a", "before": "", "after": "\ud800", "message": "m"},
    ),
    ("over 20,000 bytes", {"path": "a", "before": "x", "after": "é" * 10_001, "message": "m"}),
    ("a marker in the message", {"path": "a", "before": "x", "after": "", "message": "m\n<MSG> n"}),
    ("a file that is the word ADDFILE", {**FORMS[1], "before": "ADDFILE"}),
    ("no marker", {"text": "<NME> a\n<BEF> x\n<MSG> m\n"}),
    ("hunks that do not apply", {"text": "<NME> a\n<BEF> x\n<MSG> m\n<DFF> @@ -1 +1 @@\n-z\n+y\n"}),
]


@pytest.mark.parametrize("record", FORMS)
def test_every_form_of_a_record_is_the_same_change(record):
    [got] = changes_of(record, ANY)
    assert got == (PatchPrompt("a.py", "x\n", "m"), "y\n", "@@ -1 +1 @@\n-x\n+y\n")


def test_a_new_file_has_no_text_before():
    new = {"path": "a", "before": None, "after": "y\n", "message": "m"}
    for record in (new, {**new, "before": "", "status": "A"}):
        assert changes_of(record, ANY)[0].prompt.before is None
    assert changes_of({**new, "before": ""}, ANY)[0].prompt.before == ""


@pytest.mark.parametrize("reason, record", BAD)
def test_why_a_record_is_left_out(reason, record):
    with pytest.raises(Refused) as e:
        changes_of(record, ANY)
    assert str(e.value) == reason


def test_compressed_lines_are_the_same(tmp_path, prepared):
    zstandard = pytest.importorskip("zstandard")
    lines = [{**FORMS[0], "after": f"{i}\n"} for i in range(9)]
    data = "\n".join(map(json.dumps, lines)).encode()
    (tmp_path / "x.jsonl").write_bytes(data)
    parts = [zstandard.ZstdCompressor().compress(p) for p in (data[:300], data[300:])]
    (tmp_path / "x.jsonl.zst").write_bytes(b"".join(parts))  # two frames, as after appending
    first, second = (prepared(source=tmp_path / f"x.jsonl{end}") for end in ("", ".zst"))
    for split in ("train", "val"):
        assert list(first.texts(split)) == list(second.texts(split))
    (tmp_path / "x.jsonl.zst").write_bytes(b"".join(parts)[:-9])
    with pytest.raises(UserError):
        prepared(source=tmp_path / "x.jsonl.zst")


# ---- lengths and packing -------------------------------------------------------------------------


def lines_of(path, sizes):
    """A JSON lines file whose rows have so many tokens each, EOS included."""
    rest = len(prompt_text(PatchPrompt("a", None, "m")) + target_text("@@ -0,0 +1 @@\n+\n")) + 1
    got = [
        {"path": "a", "before": None, "after": chr(97 + i) * (n - rest) + "\n", "message": "m"}
        for i, n in enumerate(sizes)
    ]
    path.write_text("\n".join(map(json.dumps, got)))
    return path


def test_a_row_may_fill_the_block_with_its_end(tmp_path, prepared):
    source = lines_of(tmp_path / "x.jsonl", [63, 64, 65, 100, 64])
    corpus = prepared(source=source, block_size=64)
    assert [len(ids) for s in ("train", "val") for ids, _ in rows(corpus, s)] == [63, 64, 64]
    assert corpus.meta["dropped"] == {"longer than block_size=64": 2}


def test_what_is_given_is_all_before_the_marker(tmp_path, prepared):
    source = lines_of(tmp_path / "x.jsonl", [60, 60])
    for values, start in (({}, "<DFF> "), ({"train_diff_model": False}, "<NME> ")):
        corpus = prepared(source=source, **values)
        for ids, asked in rows(corpus, "train"):
            assert Bytes().decode(ids[~asked]).startswith(start) and not asked[-1]


def test_packed_rows_hold_whole_samples(tmp_path, prepared):
    source = lines_of(tmp_path / "x.jsonl", [60, 60, 60, 70, 150, 60, 60])
    corpus = prepared(source=source, block_size=128, concatenate_texts=True)
    alone = prepared(source=source, block_size=128)
    assert corpus.meta["dropped"] == alone.meta["dropped"] == {"longer than block_size=128": 1}
    packed, single = (list(rows(c, "train")) for c in (corpus, alone))
    assert [len(ids) for ids, _ in packed] == [120, 60, 70, 60]
    for part in (0, 1):
        flat = [np.concatenate([row[part] for row in got]) for got in (packed, single)]
        assert (flat[0] == flat[1]).all()
    for ids, asked in packed:
        starts = np.flatnonzero(np.diff(np.concatenate([[0], asked.astype(int)])) == 1)
        assert [0, *(np.flatnonzero(ids[:-1] == EOS) + 1)] == starts.tolist()
    assert list(corpus.texts("val")) == list(alone.texts("val"))  # validation is never packed


def test_long_samples_are_cut_and_nothing_else(tmp_path, prepared, capsys):
    source = lines_of(tmp_path / "x.jsonl", [80, 300, 80, 80, 80])
    corpus = prepared(source=source, block_size=128, ignore_long_samples=False)
    assert "concatenated" in capsys.readouterr().out
    got = list(rows(corpus, "train"))
    assert [len(ids) for ids, _ in got] == [80, 128, 128, 44 + 80, 80]
    assert not any(asked.all() for _, asked in got)
    with_gap = lines_of(tmp_path / "y.jsonl", [80] * 4)
    text = with_gap.read_text().splitlines()
    long = {"path": "b", "before": "k\n" * 120, "after": "k\n" * 120 + "z\n", "message": "m"}
    with_gap.write_text("\n".join([json.dumps(long), *text]))
    corpus = prepared(source=with_gap, block_size=128, ignore_long_samples=False)
    assert corpus.meta["dropped"] == {"pieces without anything to write": 2}


@pytest.mark.parametrize("pack", [{}, {"concatenate_texts": True}, {"train_diff_model": False}])
def test_long_samples_of_validation_are_cut_as_those_of_training(tmp_path, prepared, pack):
    """Every token that is written is in a row, whichever split its commit is in."""
    source = lines_of(tmp_path / "x.jsonl", [80, 80, 80, 300, 80, 300])
    options = {"source": source, "block_size": 128, "val_split_ratio": 0.5}
    corpus = prepared(ignore_long_samples=False, **options, **pack)
    whole = prepared(source=source, block_size=300, val_split_ratio=0.5, **pack)
    assert not [reason for reason in corpus.meta["dropped"] if "longer" in reason]
    written, wanted = (
        [i for s in ("train", "val") for ids, asked in rows(c, s) for i in ids[~asked].tolist()]
        for c in (corpus, whole)
    )
    assert sorted(written) == sorted(wanted)
    sizes = [len(ids) for ids, _ in rows(corpus, "val")]
    assert sizes and max(sizes) == 128 and 300 - 2 * 128 in sizes
    dropped = prepared(**options, **pack).meta["dropped"]
    assert dropped == {"longer than block_size=128": 2}


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), max_size=12), st.integers(8, 20))
def test_packing_loses_no_token_that_is_written(sizes, block):
    dropped, config = Counter(), DiffConfig(block_size=block, ignore_long_samples=False)
    made = [
        Row("train", np.arange(a + b) + 100 * i, np.arange(a + b) < a)
        for i, (a, b) in enumerate(sizes)
    ]
    got = list(fitting(config, made, dropped))
    assert all(0 < len(r.ids) <= block and not r.prompt_mask.all() for r in got)
    wanted = np.concatenate([r.ids[~r.prompt_mask] for r in made] or [np.zeros(0)])
    assert (np.concatenate([r.ids[~r.prompt_mask] for r in got] or [np.zeros(0)]) == wanted).all()
    for row in got:  # a sample that fits is in one row
        whole = {i for i in set(row.ids // 100) if sum(sizes[i]) <= block}
        assert all((row.ids // 100 == i).sum() == sum(sizes[i]) for i in whole)
    assert not Packer(8, dropped).open


# ---- mid-points ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def datasets():
    got = pytest.importorskip("datasets")
    got.disable_progress_bars()
    return got


@pytest.mark.parametrize("packed", [False, True])
def test_a_saved_dataset_is_taken_up_again(tmp_path, prepared, datasets, packed):
    source = lines_of(tmp_path / "x.jsonl", [60, 50, 60, 70, 60])
    options = {"block_size": 128, "concatenate_texts": packed}
    first = prepared(source=source, save_final_dataset=True, **options)
    final = tmp_path / "final_dataset"
    for more in ({}, {"force_label": True}, {"skip_concat": True}):
        again = prepared(source=final, load_from_disk=True, block_size=128, **more)
        for split in ("train", "val"):
            pairs = zip(rows(first, split), rows(again, split), strict=True)
            assert all((a[k] == b[k]).all() for a, b in pairs for k in (0, 1))
    with pytest.raises(UserError, match="exists already"):
        prepared(source=source, save_final_dataset=True, **options)


@pytest.mark.parametrize("more", [{}, {"concatenate_texts": True}, {"train_diff_model": False}])
def test_saved_rows_are_padded_for_the_collator_of_transformers(tmp_path, prepared, datasets, more):
    """As documented: every row of block_size tokens, EOS on the left that is neither seen nor
    learnt; what follows it is the row of the corpus, whose own EOS is both."""
    source = lines_of(tmp_path / "x.jsonl", [60, 50, 64, 70, 60])
    corpus = prepared(source=source, block_size=64, save_final_dataset=True, **more)
    saved = datasets.load_from_disk(str(tmp_path / "final_dataset"))
    assert sorted(saved) == ["train", "validation"]
    for split, name in (("train", "train"), ("val", "validation")):
        assert sorted(saved[name].column_names) == ["attention_mask", "input_ids", "labels"]
        for (ids, asked), row in zip(rows(corpus, split), saved[name], strict=True):
            pad = 64 - len(ids)
            assert row["input_ids"] == [EOS] * pad + ids.tolist() and ids[-1] == EOS
            assert row["attention_mask"] == [0] * pad + [1] * len(ids)
            labels = [-100 if a else i for i, a in zip(ids.tolist(), asked, strict=True)]
            assert row["labels"] == [-100] * pad + labels
    transformers = pytest.importorskip("transformers")
    batch = transformers.default_data_collator(list(saved["train"]))
    assert {tuple(v.shape) for v in batch.values()} == {(corpus.rows("train"), 64)}


def test_padding_has_no_effect_on_the_loss_of_transformers(tmp_path, prepared, datasets):
    """A model with relative positions has the same loss on padded rows as on the rows alone."""
    transformers = pytest.importorskip("transformers")
    prepared(source=lines_of(tmp_path / "x.jsonl", [60, 50, 60]), save_final_dataset=True)
    [one, two] = datasets.load_from_disk(str(tmp_path / "final_dataset"))["train"]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    net = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=259, intermediate_size=16, **sizes)
    )
    batch = transformers.default_data_collator([one, two])
    alone = []
    for row in (one, two):
        first = row["attention_mask"].index(1)
        cut = {k: torch.tensor([v[first:]]) for k, v in row.items()}
        count = int((cut["labels"] != -100).sum())
        alone += [net(**cut).loss.item()] * count
    assert net(**batch).loss.item() == pytest.approx(np.mean(alone), abs=1e-5)


def test_rows_of_a_saved_dataset_stay_as_they_are(tmp_path, prepared, datasets):
    """--ignore_long_samples=False puts samples together, but not with --skip_concat."""
    source = lines_of(tmp_path / "x.jsonl", [60, 53, 60, 60])
    prepared(source=source, block_size=128, save_final_dataset=True)
    how = {"source": tmp_path / "final_dataset", "block_size": 128, "ignore_long_samples": False}
    sizes = [
        [len(ids) for ids, _ in rows(prepared(**how, skip_concat=skip), "train")]
        for skip in (True, False)
    ]
    assert sizes == [[60, 53, 60], [113, 60]]


def test_labels_of_a_saved_dataset_hold_unless_forced(tmp_path, prepared, datasets):
    """Labels of the whole row, as without --train_diff_model, against those from the marker."""
    source = lines_of(tmp_path / "x.jsonl", [60, 60, 60])
    prepared(source=source, train_diff_model=False, save_final_dataset=True)
    final = tmp_path / "final_dataset"
    for force, start in ((False, "<NME> "), (True, "<DFF> ")):
        for ids, asked in rows(prepared(source=final, force_label=force), "train"):
            assert Bytes().decode(ids[~asked]).startswith(start) and not asked[-1]


def test_long_samples_alone(tmp_path, prepared):
    """None fits a block; --ignore_long_samples=False still makes rows of both splits."""
    source = lines_of(tmp_path / "x.jsonl", [150, 150, 150])
    corpus = prepared(source=source, block_size=64, ignore_long_samples=False)
    assert [len(ids) for ids, _ in rows(corpus, "val")] == [64, 64, 22]
    assert not corpus.meta["dropped"]


def test_texts_saved_by_datasets_keep_their_splits(tmp_path, prepared, datasets):
    """Samples as text in a folder of save_to_disk: the split that is called validation is that."""
    source = lines_of(tmp_path / "x.jsonl", [60, 61, 62, 63, 64, 65])
    made = prepared(source=source, val_split_ratio=0.4)
    texts = {s: [Bytes().decode(ids) for ids, _ in rows(made, s)] for s in ("train", "val")}
    assert [len(texts[s]) for s in texts] == [4, 2]
    parts = {"train": texts["val"], "validation": texts["train"]}
    whole = {k: datasets.Dataset.from_dict({"text": v}) for k, v in parts.items()}
    datasets.DatasetDict(whole).save_to_disk(tmp_path / "texts")
    corpus = prepared(source=tmp_path / "texts", load_from_disk=True)
    for split, name in (("train", "train"), ("val", "validation")):
        assert [Bytes().decode(ids) for ids, _ in rows(corpus, split)] == parts[name]
    whole["train"].save_to_disk(tmp_path / "one")
    corpus = prepared(source=tmp_path / "one", load_from_disk=True)
    assert [corpus.rows(s) for s in ("train", "val")] == [1, 1]


def test_the_original_trainers_rows_are_mended(tmp_path, prepared, datasets):
    """Padding on the left goes, EOS becomes a target, and a row without any target is left out."""
    text = [*b"<NME> a\n<BEF> x\n<MSG> m\n", *b"<DFF> @@ -1 +1 @@\n-x\n+y\n"]
    labels = [-100] * 24 + text[24:]
    got = [
        {"input_ids": [EOS] * 3 + text + [EOS], "attention_mask": [0] * 3 + [1] * len(text) + [0]}
        | {"labels": [-100] * 3 + labels + [-100], "meta": "x"}
    ] * 3
    got.insert(1, {**got[0], "labels": [-100] * len(got[0]["labels"])})
    datasets.Dataset.from_list(got).save_to_disk(tmp_path / "old")
    corpus = prepared(source=tmp_path / "old")
    (ids, asked), (_, again) = rows(corpus, "train")
    assert ids.tolist() == [*text, EOS] and corpus.rows("val") == 1
    assert asked.tolist() == again.tolist() == [True] * 24 + [False] * (len(text) - 23)
    assert corpus.meta["dropped"] == {"nothing to write": 1}
    assert prepared(source=tmp_path / "old", force_label=True).rows("train") == 3
    bad = [{**got[0], "labels": [7] * len(got[0]["labels"])}] * 2
    datasets.Dataset.from_list(bad).save_to_disk(tmp_path / "bad")
    with pytest.raises(UserError, match="row 0: labels are neither"):
        prepared(source=tmp_path / "bad")


def test_labels_follow_the_text_and_not_the_tokens():
    """Tokens of three letters, so that one holds the end of the message and half of the marker."""
    text = "<NME> a\n<BEF> <DFF> x\n<DFF> y\n<MSG> m\n<DFF> @@\n"

    def decode(ids):
        return "".join(text[3 * i : 3 * i + 3] for i in ids if i < 999)

    wide = SimpleNamespace(specials={"eos": 999}, decode=decode)
    ids = np.array([*range((len(text) + 2) // 3), 999])
    asked = mask_by_marker(wide, ids)
    at = text.rindex("<DFF>") // 3
    assert asked.tolist() == [i < at for i in range(len(ids))]


# ---- judging -------------------------------------------------------------------------------------


def test_the_right_patch_is_right_and_none_is_worth_nothing():
    prompt, gold = PatchPrompt("a.py", "x = 1\ny = 2\n", "m"), "@@ -1 +1 @@\n-x = 1\n+x = 3\n"
    best = judge_patch(prompt, gold, "<DFF> " + gold)
    assert best == ("ok", "ok", True, pytest.approx(1 / 3), True)
    none = judge_patch(prompt, gold, "")
    assert none == ("bad_format", "bad_format", False, 0, False)
    broken = judge_patch(prompt, gold, "@@ -1 +1 @@\n-x  = 1\n+x = (\n")
    assert broken == ("no_match", "ok_fuzzy", False, 0, False)
    got = rates([best, none, broken])
    assert [round(got[k], 2) for k in ("parse", "apply", "apply_lenient", "exact", "python")] == [
        *(0.67, 0.33, 0.67, 0.33, 0.33)
    ]
    with pytest.raises(Refused):
        judge_patch(prompt, "@@ -1 +1 @@\n-no\n+x\n", gold)
    assert judge_patch(PatchPrompt("a", None, "m"), "@@ -0,0 +1 @@\n+(\n", "").parses is None


def test_the_nearest_patch_shares_most_words():
    known = [
        Sample(PatchPrompt(n, "", m), n) for n, m in (("a", "fix the bug"), ("b", "add a test"))
    ]
    assert nearest_patch(PatchPrompt("c", "", "Add one more test"), known) == "b"


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_takes_several_repositories(repo, tmp_path, run_cli, assert_refused):
    run_git(tmp_path, "clone", "-q", str(repo), "copy")  # the same commits: taken once
    argv = [f"--repo={repo}", f"--repo={tmp_path / 'copy'}", f"--data_dir={tmp_path}", "--ext=.py"]
    result = run_cli("patches.prepare", *argv, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    corpus = Corpus(tmp_path / "diff")
    assert corpus.rows("train") + corpus.rows("val") == 4
    assert "dropped: another ending" in result.stdout
    assert_refused(run_cli("patches.prepare", *argv), "exists already")


def test_mistakes_are_told_in_a_line_and_leave_nothing(repo, tmp_path):
    for more, word in (
        ([f"--repo={tmp_path}/none"], "no such folder"),
        ([f"--repo={tmp_path}"], "git cannot read"),
        (["--source=none.jsonl"], "cannot read"),
        ([f"--source={tmp_path}"], "--repo="),
        (["--source=a.jsonl", "--repo=."], "--repo"),
        (["--source=a.jsonl", "--skip_concat"], "saved by datasets"),
        (["--block_size=20", f"--repo={repo}"], "longer than block_size"),
    ):
        with pytest.raises(UserError, match=word):
            prepare.main([*more, f"--data_dir={tmp_path}"])
    assert not list(tmp_path.iterdir())


def test_repeated_flags_are_joined():
    assert repeated(["--repo=a", "--ext=x", "--repo=b"], "repo") == ["--ext=x", "--repo=a,b"]
    assert repeated(["--repo=a"], "repo") == ["--repo=a"]


@pytest.mark.parametrize("text", ['{"path": 1}\n{bad', "[1]\n", '"a"\n'])
def test_a_bad_line_is_named(tmp_path, prepared, text):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"x\.jsonl, line \d"):
        prepared(source=tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    "date",
    [
        *("2024-01-09T00:00:00Z", "2024-01-09 00:00:00 +0000", "Tue Jan 9 00:00:00 2024 +0000"),
        *("Tue Jan  9 02:00:00 2024 +0200", "Tue, 9 Jan 2024 00:00:00 +0000", 1704758400),
        *("1704758400 +0000", "@1704758400", "Tue, 09 Jan 2024 00:00:00 GMT", "2024-01-09"),
    ],
)
def test_dates_in_the_forms_of_git(date):
    assert _time(date) == 1704758400


@pytest.mark.parametrize("date", [None, "", "yesterday", True, float("nan"), [], "9/1/2024"])
def test_what_is_no_date(date):
    assert _time(date) is None


def test_dates_that_are_not_understood_are_said(capsys):
    rows = [{"commit": str(i), "date": f"{i} weeks ago"} for i in range(3)]
    assert [one.time for one in from_rows(lambda: iter(rows), 0).commits] == [None] * 3
    assert "3 dates are not understood ('0 weeks ago')" in capsys.readouterr().out
    from_rows(lambda: iter([{"commit": "a"}, {"commit": "b", "date": "2024-01-09"}]), 0)
    assert capsys.readouterr().out == ""


def history(folder, *commits):
    """A repository with these commits: the files that each writes."""
    folder.mkdir(parents=True)
    run_git(folder, "init", "-q")
    for day, files in enumerate(commits, 1):
        for name, text in files.items():
            (folder / name).write_text(text)
        run_git(folder, "add", "-A")
        run_git(folder, "commit", "-qm", f"commit {day}", day=day)
    return folder


@pytest.mark.parametrize(
    "name",
    ["HEAD", "master", "--all", "x\u3000y.txt", "می\u200cشود.txt", "👩\u200d💻.md", "a,b.txt"],
)
def test_files_of_any_ordinary_name(tmp_path, prepared, name):
    repo = history(tmp_path / "in" / "r", *({name: f"{i}\n"} for i in range(4)))
    corpus = prepared(repo=repo)
    assert corpus.rows("train") + corpus.rows("val") == 4 and corpus.rows("val") == 1
    assert not corpus.meta["dropped"]


def test_repositories_with_commas(tmp_path, prepared):
    for name in ("a", "a,b", "c,d,e"):
        history(tmp_path / "in" / name, {"f": f"{name}\n"}, {"f": f"{name} 2\n"})
    at = tmp_path / "in"
    assert prepare.folders(f"{at}/a,b") == [at / "a,b"]
    assert prepare.folders(f"{at}/c,d,e,{at}/a") == [at / "c,d,e", at / "a"]
    assert prepare.folders(f"{at}/a,none,{at}/a,b,") == [at / "a", prepare.Path("none"), at / "a,b"]
    assert prepared(repo=at / "c,d,e").rows("train") == 1


def test_a_repository_without_a_commit(tmp_path):
    (tmp_path / "r").mkdir()
    run_git(tmp_path / "r", "init", "-q")
    with pytest.raises(UserError, match="no commit yet"):
        git_history.commits(tmp_path / "r")
