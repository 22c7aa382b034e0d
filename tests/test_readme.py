"""The README and docs/ are promises: their commands run, in their order, in a copy of the
repository, at toy size. Commands that need a network are refused in one line without one."""

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOY = {  # appended to a command, so that it takes seconds
    "train.py": "--max_iters=4 --eval_interval=2 --eval_iters=1 --log_interval=1 --batch_size=4 "
    "--demo=",
    "train.py config/": "--n_layer=1 --n_embd=8 --n_head=2 --cond_dim=4",
    "sample.py": "--num_samples=2",
    "evaluate.py": "--rows=8 --samples=4",
    "-m bench": "--quick --rows=equality",
    "-m analysis.coverage": "--objectives=masked --repeats=2 --steps=2",
    "-m analysis.schedules": "--samples=2",
    "train.py config/sudoku4": "--prepare='-m tasks.puzzles --givens=8 --train=99 --val=9'",
    "-m analysis.orders": "--samples=4",
    "-m analysis.results": "--iters=2 --samples=4 --val_rows=8 --rows=MDLM;left-to-right",
    "lessons/whole_idea.py": "20",
    "lessons/orders.py": "--steps=2 --samples=4",
    "lessons/five_samplers.py": "--steps=3",
    "prepare_bytes.py --source=palindrome": "--rows=300 --val_rows=30",
}


# README first, then the pages of docs/, each behind those whose checkpoints it uses
PAGES = (
    "objectives data finetune a2d chat patches cascades insertion sampling correcting evaluation "
    "running speed"
)
PAGES = ["README.md", *(f"docs/{name}.md" for name in PAGES.split()), "docs/recipes.md"]
PAGES += [
    f"docs/{name}.md"
    for name in "antibodies performance promises results scale troubleshooting".split()
]
TABLES = "docs/coming-from.md"  # where commands are the second column of tables
PAGES += [TABLES]
LONG = {"docs/performance.md", "docs/results.md", "docs/scale.md", "docs/promises.md"}


def commands(*pages):
    """Every `python ...` and `torchrun ...` line of the pages' code blocks, in order, with the
    comment behind it; in TABLES those of second columns, with the third."""
    text = "\n".join((ROOT / page).read_text() for page in pages if page != TABLES)
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    whole = (block.replace("\\\n", " ") for block in blocks)  # lines that go on
    lines = [line.split("  #") for block in whole for line in block.splitlines()]
    pairs = [(line[0].strip(), "".join(line[1:])) for line in lines if line[0].strip()]
    for _, ours, *note in rows() if TABLES in pages else ():
        pairs += [(command, note[0]) for command in re.findall("`([^`]+)`", ours) if note]
    return [(c, note) for c, note in pairs if c.startswith(("python ", "torchrun "))]


def rows():
    """The cells of every row of TABLES, heads of tables among them."""
    lines = (ROOT / TABLES).read_text().splitlines()
    return [line.strip("|").split(" | ") for line in lines if line.startswith("| ")]


def toy(command):
    """The command with what makes it small."""
    extra = [TOY[k] for k in TOY if f" {k}" in command]
    if "modernbert" in command:  # its sizes are its own
        extra = [more for more in extra if "n_layer" not in more]
    if "--debug=overfit" in command:  # has to learn its row
        extra = ["--max_iters=300 --eval_interval=150 --demo="]
    words = shlex.split(command) + shlex.split(" ".join(extra))
    if "torchrun" in words:
        return [sys.executable, "-m", "torch.distributed.run", *words[1:]]
    return [sys.executable, *words[1:]]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return copy_of_the_repository(tmp_path_factory.mktemp("readme"))


def copy_of_the_repository(folder):
    folder.mkdir(exist_ok=True)
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.md")]:
        shutil.copy(path, folder)
    (folder / "data").mkdir()
    shutil.copy(ROOT / "data" / "palindromes.txt", folder / "data")
    packages = [path.parent.name for path in ROOT.glob("*/__init__.py")]
    for name in ("config", "lessons", "docs", *packages):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    commits_in(folder)
    return folder


def commits_in(folder):
    """A short history, of which patches can be made."""
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]

    def git(*words):
        subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)

    git("init")
    for k in range(12):
        for path in sorted(folder.glob("*.py"))[:8]:
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join([*lines[: 3 * k + 2], f"# {k}\n", *lines[3 * k + 2 :]]))
        git("add", "-A")
        git("commit", "-m", f"a comment, number {k}")


def run(command, note, copy, **more):
    """Run one command without a network -> "" if it does what it should (refuse in one line where
    it needs one), else what it printed."""
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(copy / "hf"), **more}
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RANK")} | offline
    result = subprocess.run(
        toy(command), cwd=copy, env=env, capture_output=True, text=True, timeout=300
    )
    refused = result.returncode == 2 and "Traceback" not in result.stderr
    good = refused if "network" in note else result.returncode == 0
    return "" if good else f"{command}\n{result.stdout[-1500:]}\n{result.stderr[-1500:]}"


def test_every_page_is_tried():
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages | {"README.md"} == set(PAGES)
    assert len((ROOT / "README.md").read_bytes()) <= 15_000
    assert all(toy(command) for command, _ in commands(*PAGES))


@pytest.mark.slow
def test_every_command(copy):
    done, failed = set(), []
    for command, note in commands(*(page for page in PAGES if page not in LONG)):
        if "pytest" in command or command in done:
            continue
        done.add(command)
        failed.append(run(command, note, copy))
    assert len(done) >= 60 and not any(failed), "\n\n".join(filter(None, failed))


def modules_beyond_requirements():
    """Names of installed modules that requirements.txt does not bring."""
    wanted, seen = re.findall(r"^([\w-]+)", (ROOT / "requirements.txt").read_text(), re.M), set()
    while wanted:
        name = re.sub("[-_.]+", "-", wanted.pop()).lower()
        if name not in seen:
            seen.add(name)
            try:
                needs = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            wanted += [re.match(r"[\w.-]+", line)[0] for line in needs if "extra ==" not in line]
    brought = importlib.metadata.packages_distributions()
    normal = {m: {re.sub("[-_.]+", "-", d).lower() for d in dists} for m, dists in brought.items()}
    return sorted(m for m, dists in normal.items() if not dists & seen and m.isidentifier())


# a sitecustomize.py that hides modules
BLOCK = """
import sys
class Without:
    names = set({names})
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in self.names:
            return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
"""


@pytest.mark.slow
def test_the_laptop_section_needs_requirements_txt_alone(tmp_path):
    """As if nothing else were installed; so does sampling."""
    copy = copy_of_the_repository(tmp_path / "copy")
    names = modules_beyond_requirements()
    assert {"transformers", "datasets", "matplotlib"} <= set(names)
    assert not {"torch", "numpy", "tqdm", "tokenizers", "PIL", "safetensors"} & set(names)
    (tmp_path / "sitecustomize.py").write_text(BLOCK.format(names=names))
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## A laptop") :].split("\n## ")[0]
    sampling = text[text.index("## Sample and infill") :].split("\n## ")[0]
    both = [c for c in commands("README.md") if c[0] in section or c[0] in sampling]
    assert len(both) >= 12
    failed = [run(command, note, copy, PYTHONPATH=str(tmp_path)) for command, note in both]
    assert not any(failed), "\n\n".join(filter(None, failed))


def test_examples_in_python(copy, monkeypatch):
    """The corpus example writes a corpus that can be read; the objective example trains, has a
    bound, and samples what the network has learnt."""
    import torch

    from checkpoint import OBJECTIVES
    from corpus import Corpus
    from objective import SampleOptions, generator
    from train import main

    monkeypatch.chdir(copy)
    text = (ROOT / "docs/data.md").read_text() + (ROOT / "docs/recipes.md").read_text()
    corpus, objective = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(corpus, {})
    assert Corpus("data/dna").rows("train") == 100
    names = {}
    exec(objective, names)
    line = re.search(r'`"mine": (lambda .*)`', text)[1]
    monkeypatch.setitem(OBJECTIVES, "mine", eval(line, names))
    sizes = ["--n_layer=1", "--n_embd=16", "--n_head=2", "--batch_size=16", "--max_iters=60"]
    where = ["--dataset=dna", "--block_size=10", "--out_dir=dna", "--learning_rate=1e-2"]
    main(["--objective=mine", "--time_input=False", "--positions=both", *sizes, *where])
    import checkpoint

    model = checkpoint.load("dna/ckpt.pt")
    ids = torch.zeros(50, 10, dtype=torch.int64)
    given = torch.zeros_like(ids, dtype=torch.bool)
    *_, last = model.objective.sample(model.net, ids, given, generator(0), SampleOptions())
    found = [model.tokenizer.decode(row) for row in last.ids[:, 1:].tolist()]
    assert found.count("ACGTTGCA") > 40  # the one text of this corpus


def test_file_table_is_complete():
    """The table of files names every file at the root and every folder, and no other."""
    text = (ROOT / "README.md").read_text()
    table = text[text.index("## Files") :].split("\n## ")[0]
    files = table[: table.index("Folders build on")]
    assert set(re.findall(r"`(\w+\.py)`", files)) == {p.name for p in ROOT.glob("*.py")}
    folders = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert folders <= set(re.findall(r"`(\w+)/`", table))


def test_slurm_jobs_run_commands_that_exist():
    """Every script and config that a job names, in its remarks as well, is there, and bash can read
    the job; tests/slurm runs it."""
    for job in (ROOT / "slurm").glob("*.slurm"):
        assert subprocess.run(["bash", "-n", str(job)]).returncode == 0
        text = job.read_text()
        for name in re.findall(r"[\w/]+\.py\b", text):
            assert (ROOT / name).is_file(), (job.name, name)
