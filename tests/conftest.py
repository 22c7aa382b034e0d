"""Shared by all tests: a tiny corpus, a tiny checkpoint, and commands run as real processes."""

import contextlib
import io
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import settings

import checkpoint
import train
from corpus import CorpusWriter
from tokenizer import Symbols

REPO = Path(__file__).resolve().parent.parent
BLOCK = 8  # positions per row of the tiny corpus: BOS, four to six letters, EOS
TINY = {  # overrides that make every run a matter of seconds
    "dataset": "tiny",
    "block_size": BLOCK,
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "cond_dim": 8,
    "batch_size": 4,
    "eval_iters": 2,
    "log_interval": 1,
    "eval_interval": 1000,
    "device": "cpu",
}

settings.register_profile("tests", deadline=None)  # a busy machine is no failure
settings.load_profile("tests")
torch.set_num_threads(1)  # the work is tiny, and other jobs share the machine


# ---- commands as processes ---------------------------------------------------------------------


def clean_env(**more: Any) -> dict[str, str]:
    """The environment of a command: offline, one thread, and no job or logger around it."""
    drop = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "WANDB_MODE", "PYTHONPATH")
    kept = {k: v for k, v in os.environ.items() if k not in drop}
    fixed = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    return kept | fixed | {k: str(v) for k, v in more.items()}


def _run_cli(
    *args: Any, cwd: Path | None = None, env: dict | None = None, timeout: float = 60
) -> subprocess.CompletedProcess:
    """Run `python REPO/<file> <arguments>` or `python -m <module> <arguments>`; the file or module
    is the first of `args`."""
    name, *rest = map(str, args)
    file = name.endswith(".py")
    command = [sys.executable, *([str(REPO / name)] if file else ["-m", name]), *rest]
    got = dict(env or {})
    if not file:
        got["PYTHONPATH"] = os.pathsep.join([str(REPO), str(got.get("PYTHONPATH", ""))])
    return subprocess.run(
        command,
        cwd=cwd,
        env=clean_env(**got),
        timeout=timeout,
        capture_output=True,
        text=True,
    )


def _assert_refused(result: subprocess.CompletedProcess, *words: str) -> None:
    """Exit code 2, one line on stderr that holds all the words, no traceback."""
    err = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.returncode == 2, (result.returncode, result.stderr)
    assert "Traceback" not in result.stderr
    assert len(err) == 1, result.stderr
    for word in words:
        assert str(word) in err[0], (word, err[0])


@pytest.fixture(scope="session")
def run_cli() -> Any:
    return _run_cli


@pytest.fixture(scope="session")
def assert_refused() -> Any:
    return _assert_refused


# ---- a corpus and a checkpoint -----------------------------------------------------------------


def palindromes(count: int, seed: int) -> list[str]:
    """Strings of four or six letters of "abcd" that equal their mirror images."""
    rng = random.Random(seed)
    halves = ["".join(rng.choices("abcd", k=rng.randint(2, 3))) for _ in range(count)]
    return [half + half[::-1] for half in halves]


def write_corpus(folder: Path, texts: dict[str, list[str]], tokenizer: Any = None) -> Path:
    """Rows [BOS] text [EOS], BOS given; marked as the palindrome task."""
    tokenizer = tokenizer or Symbols(list("abcd"))
    bos, eos = tokenizer.specials["bos"], tokenizer.specials["eos"]
    with CorpusWriter(folder, tokenizer, task="palindrome", source="tests") as out:
        for split, rows in texts.items():
            for text in rows:
                out.row(split, [bos, *tokenizer.encode(text), eos], prompt=1)
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the corpus `tiny`: do not write into it."""
    root = tmp_path_factory.mktemp("data")
    write_corpus(root / "tiny", {"train": palindromes(40, 1), "val": palindromes(12, 2)})
    return root


def as_flags(values: dict[str, Any]) -> list[str]:
    return [f"--{key}={value}" for key, value in values.items()]


@pytest.fixture(scope="session")
def flags(data_dir: Path) -> Any:
    """flags(out_dir, key=value, ...) -> the arguments of a tiny run of train.py."""

    def make(out_dir: Path, **more: Any) -> list[str]:
        return as_flags({**TINY, "data_dir": data_dir, "out_dir": out_dir, **more})

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, flags: Any) -> Any:
    """trained(key=value, ...) -> out_dir of a run of 4 steps with these overrides: read only.

    Two checkpoints were written, so there is a ckpt_prev.pt. Equal overrides share a run.
    """
    runs: dict[tuple, Path] = {}

    def make(**more: Any) -> Path:
        key = tuple(sorted(more.items()))
        if key not in runs:
            out = tmp_path_factory.mktemp("run")
            values = {"max_iters": 4, "eval_interval": 2, "learning_rate": 0.01, **more}
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(train, "gemm_peak", lambda *_: 1e12)  # a benchmark, not needed here
                with contextlib.redirect_stdout(io.StringIO()):  # not part of any test's output
                    train.main(flags(out, **values))
            runs[key] = out
        return runs[key]

    return make


@pytest.fixture(scope="session")
def tiny_model(trained: Any) -> checkpoint.Model:
    """The default tiny run as `sample.py` sees it: read only."""
    return checkpoint.load(str(trained() / "ckpt.pt"))


def untrained(model: checkpoint.Model, seed: int = 0, scale: float = 0.5) -> checkpoint.Model:
    """`model` with random weights everywhere: nothing that holds for it is owed to training."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.net.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) * scale)
    return model


@pytest.fixture(scope="session")
def helpers(flags: Any) -> SimpleNamespace:
    """Plain functions that several test files use."""
    return SimpleNamespace(
        env=clean_env,
        palindromes=palindromes,
        write_corpus=write_corpus,
        untrained=untrained,
        flags=flags,
        repo=REPO,
    )
