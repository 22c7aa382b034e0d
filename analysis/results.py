"""Every family on the same rows: python -m analysis.results --dataset=star_tiny --iters=600

Trains one model after another on the same corpus with the same network, optimiser and batches, for
--iters steps each or, with --seconds, as many as fit into that time (measured in a short run of its
own), evaluates each, and prints the table; --table=docs/results.md writes it to its place in that
file instead. Nothing else decides the numbers: rows differ in the objective and in what it needs,
which the table names. A run that is done already, in --out_dir, is not trained again.

    --dataset=star_tiny, star_small     star graphs: exact paths are counted
    --dataset=prose_rows                bytes of the docstrings of Python that fit into 64 of them
"""

import os
import platform
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import checkpoint
from analysis.compare import measure, notes, rows_table
from configurator import UserError, load, one_of, require, run, run_command
from corpus import Corpus
from evaluate import EvaluateConfig, uncropped
from model import pick_device
from sample import require_writable
from train import log_lines

ROWS = {  # name of a row -> what its objective needs
    "left-to-right": "--objective=ar",
    "XLNet": "--objective=xlnet",
    "SEDD, absorbing": "--objective=sedd --time_input=True",
    "SEDD, uniform": "--objective=sedd --graph=uniform --time_input=True",
    "MDLM": "--objective=masked",
    "block diffusion": "--objective=bd3 --block_length=4",
    "ILM": "--objective=ilm",
    "IDLM": "--objective=idlm --noise=exponential --time_input=True",
    "Insertion Transformer": "--objective=it",
}
DATASETS = {  # name -> its config and the command that makes it
    "star_tiny": ("config/star_tiny.py", "-m tasks.stars --level=tiny"),
    "star_small": ("config/star_small.py", "-m tasks.stars --level=small"),
    "prose_rows": (
        "config/star_tiny.py --block_size=64 --dataset=prose_rows",
        "prepare_pretrain.py --source=pydoc --tokenizer=bytes --packing=rows "
        "--context_length=64 --dataset=prose_rows",
    ),
}
LIMITS = {  # of IDLM: more noise than a text has tokens
    "star_tiny": "--sigma_min=1 --sigma_max=10",
    "star_small": "--sigma_min=1 --sigma_max=10",
    "prose_rows": "--sigma_min=10 --sigma_max=100",
}
TRIAL = 30  # steps of the run that tells how long a step takes


@dataclass(frozen=True)
class ResultsConfig:
    """The options of `analysis/results.py`."""

    dataset: str = "star_tiny"  # star_tiny | star_small | prose_rows
    rows: str = ""  # names of rows with semicolons between them; empty: all
    iters: int = 600  # steps of each
    seconds: int = 0  # instead: of training, for each; 0: --iters
    samples: int = 500  # for the score
    val_rows: int = 2000  # for the bound
    flags: str = ""  # more for train.py, the same for every row
    data_dir: str = "data"
    out_dir: str = "out/results"  # runs go to a folder of their own below it
    table: str = ""  # a file whose part about this dataset is written anew; empty: print it
    threads: int = 1  # of torch

    def __post_init__(self):
        for key in ("iters", "threads", "val_rows"):
            require(self, key, getattr(self, key) >= 1, "at least 1")
        for key in ("seconds", "samples"):
            require(self, key, getattr(self, key) >= 0, "at least 0")
        require(self, "dataset", self.dataset in DATASETS, one_of(DATASETS))
        choices = "names of " + "; ".join(ROWS)
        require(self, "rows", all(name in ROWS for name in names(self)), choices)
        exists = not self.table or Path(self.table).parent.is_dir()
        require(self, "table", exists, "a file in a folder that exists")


def names(cfg: ResultsConfig) -> list[str]:
    chosen = [name.strip() for name in cfg.rows.split(";") if name.strip()]
    return chosen or list(ROWS)


def command(cfg: ResultsConfig, name: str, steps: int, out: Path) -> str:
    """The options of train.py for a row; evaluated at its end only."""
    config, _ = DATASETS[cfg.dataset]
    options = f"--data_dir={shlex.quote(cfg.data_dir)} --out_dir={shlex.quote(str(out))} --demo= "
    options += f"--max_iters={steps} --eval_interval={steps} --threads={cfg.threads} "
    options += f"{LIMITS[cfg.dataset]} " if name == "IDLM" else ""
    return f"train.py {config} {ROWS[name]} {options}{cfg.flags}".strip()


def folder_of(cfg: ResultsConfig, name: str, steps: int) -> Path:
    return Path(cfg.out_dir) / f"{cfg.dataset}_{re.sub('[^a-z]+', '_', name.lower())}_{steps}"


def tokens_per_step(model: checkpoint.Model) -> int:
    """Tokens of a step as in the log."""
    cfg = model.config
    return cfg.batch_size * cfg.gradient_accumulation_steps * cfg.block_size


def steps_for(cfg: ResultsConfig, name: str) -> int:
    """--iters, or the number of steps that fit into --seconds at the speed of the last third of a
    short run."""
    if not cfg.seconds:
        return cfg.iters
    out = folder_of(cfg, name, TRIAL)
    if not (out / "ckpt.pt").is_file():
        run_command(command(cfg, name, TRIAL, out) + f" --log_interval={TRIAL // 3}")
    tokens = [one["tokens_per_s"] for one in log_lines(out / "log.jsonl") if "tokens_per_s" in one]
    step = tokens_per_step(checkpoint.load(str(out / "ckpt.pt")))
    return max(1, int(cfg.seconds * tokens[-1] / step))


def row(cfg: ResultsConfig, name: str) -> dict[str, Any]:
    """Train, unless the run is complete, and measure."""
    steps = steps_for(cfg, name)
    out = folder_of(cfg, name, steps)
    if not (out / "ckpt.pt").is_file():
        run_command(command(cfg, name, steps, out))
    model = uncropped(checkpoint.load(str(out / "ckpt.pt"), pick_device("cpu")))
    if model.step != steps:
        raise UserError(f"{out}: step {model.step} of {steps}; remove the folder to train it anew")
    eval_cfg = EvaluateConfig(samples=cfg.samples, rows=cfg.val_rows, device="cpu")
    corpus = Corpus(f"{cfg.data_dir}/{cfg.dataset}")
    result = measure(eval_cfg, {}, name, model, corpus)
    last = [one for one in log_lines(out / "log.jsonl") if "tokens_per_s" in one]
    each = tokens_per_step(model) / last[-1]["tokens_per_s"] if last else None
    return {**result, "seconds": steps * each if last else None}


def section(cfg: ResultsConfig, rows: list[dict[str, Any]]) -> str:
    """The Markdown section about this corpus."""
    changed = [
        f"--{key}={shlex.quote(str(getattr(cfg, key)))}"
        for key in ("dataset", "iters", "seconds", "samples", "val_rows", "rows", "flags")
        if getattr(cfg, key) and not (key == "iters" and cfg.seconds)
    ]
    budget = f"{cfg.seconds} seconds of training each" if cfg.seconds else f"{cfg.iters} steps each"
    times = ", ".join(f"{r['name']} {r['seconds']:.0f}" for r in rows if r["seconds"])
    where = f"Python {platform.python_version()}, torch {torch.__version__}"
    return "\n".join(
        [
            *(f"## {cfg.dataset}: {budget}", ""),
            *("```sh", f"python -m analysis.results {' '.join(changed)}", "```", ""),
            f"{where}, {cfg.threads} thread(s) of {os.cpu_count()} cores; up to {cfg.val_rows:,} "
            f"validation rows, {cfg.samples:,} samples. Seconds of training, by the speed of the "
            f"last steps: {times}.",
            "",
            *rows_table(rows),
            "",
            *("What each likelihood is:", ""),
            *notes(rows),
            "",
        ]
    )


def put(text: str, path: Path, dataset: str) -> None:
    """Replace the section of a dataset in the file, or append it, atomically."""
    old = path.read_text(encoding="utf-8") if path.is_file() else "# Results\n\n"
    part = re.compile(rf"^## {re.escape(dataset)}:.*?(?=^## |\Z)", re.M | re.S)
    there = part.search(old) is not None
    new = part.sub(lambda _: text + "\n", old, 1) if there else f"{old.rstrip()}\n\n{text}"
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(new.rstrip() + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as e:
        raise UserError(f"table={path}: {e.strerror}") from e


def main(argv: list[str]) -> None:
    cfg, _ = load(ResultsConfig, argv)
    require_writable(cfg, "table")
    torch.set_num_threads(cfg.threads)
    if not (Path(cfg.data_dir) / cfg.dataset).exists():
        run_command(f"{DATASETS[cfg.dataset][1]} --data_dir={shlex.quote(cfg.data_dir)}")
    rows = []
    for name in names(cfg):
        rows.append(row(cfg, name))
        print("\n".join(rows_table(rows[-1:])), flush=True)
    if cfg.table:
        put(section(cfg, rows), Path(cfg.table), cfg.dataset)
        print(f"wrote {cfg.table}")
    else:
        print(section(cfg, rows))


if __name__ == "__main__":
    run(main)
