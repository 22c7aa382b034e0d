"""train.py: which run a command starts or goes on with, what it refuses to replace, which corpus it
makes, which options it takes, and what it says at the end. The commands run as processes."""

import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from launcher import Launched, finish

import checkpoint
import train
from checkpoint import OBJECTIVES, PUBLISHED, build_objective, unused_fields
from configurator import Config, UserError, load
from parallel.scale import ScaleConfig


def step_of(out: Path) -> int:
    return checkpoint.read(out / "ckpt.pt")["step"]


def refused(job: Launched, *words: Any) -> None:
    """Exit code 2 and one line that has all the words."""
    assert job.wait() == 2, (job.out, job.err)
    assert len(job.err.splitlines()) == 1 and "Traceback" not in job.err, job.err
    for word in words:
        assert str(word) in job.err, job.err


@pytest.fixture
def base(tmp_path: Path, data_dir: Path) -> Any:
    """base(key=value, ...) -> a config file of a tiny run in tmp_path/base."""

    def make(name: str = "base.py", **more: Any) -> Path:
        out = {"data_dir": str(data_dir), "out_dir": str(tmp_path / "base"), "threads": 1}
        path = tmp_path / name
        path.write_text("".join(f"{k} = {v!r}\n" for k, v in {**TINY, **out, **more}.items()))
        return path

    return make


# ---- a run that goes on ------------------------------------------------------------------------


def interrupted(*argv: Any) -> list[str]:
    """Run until Ctrl-C after four steps -> the arguments of the command that it tells."""
    job = Launched("train.py", *argv, "--max_iters=100000", at=(4, signal.SIGINT))
    assert job.wait() == 130, job.err
    command = shlex.split(job.err.partition("saved at step 5; go on with: ")[2])
    assert command[:2] == ["python", "train.py"], job.err
    return command[2:]


@pytest.mark.parametrize("where", ["command line", "file"])
def test_an_interrupted_fine_tuning_goes_on(tmp_path: Path, base: Any, where: str):
    """By the command that is printed, by the same one with resume, and with auto; never in the
    folder of the run whose weights it began with."""
    plain, tuned = tmp_path / "base", tmp_path / "base-ft"
    finish("train.py", base(), "--max_iters=2")
    kept = (plain / "ckpt.pt").read_bytes()
    weights = tmp_path / "weights.pt"
    weights.write_bytes(kept)
    if where == "file":  # as the stage configs, whose run from scratch need not be there
        (plain / "ckpt.pt").unlink()
        argv = [base("suffix.py", finetune_suffix="-ft")]
    else:
        argv = [base(), "--finetune_suffix=-ft"]
    told = interrupted(*argv, "--init_from", weights)
    assert "--init_from=resume" in told and f"--out_dir={tuned}" in told
    finish("train.py", *told, "--max_iters=7")
    assert step_of(tuned) == 7
    finish("train.py", *argv, "--init_from=resume", "--max_iters=8")
    assert step_of(tuned) == 8
    finish("train.py", *argv, "--init_from=auto", "--max_iters=9")
    assert step_of(tuned) == 9
    if where == "command line":
        assert (plain / "ckpt.pt").read_bytes() == kept
    else:
        assert not (plain / "ckpt.pt").exists()


def test_an_interrupted_run_goes_on(tmp_path: Path, base: Any):
    """The whole command, with its files and options, but not --overwrite."""
    told = interrupted(base(), base("more.py", seed=3), "--grad_clip", "0.5", "--overwrite")
    files = [str(tmp_path / name) for name in ("base.py", "more.py")]
    assert told == [*files, "--grad_clip=0.5", "--max_iters=100000", "--init_from=resume"]
    finish("train.py", *told, "--max_iters=6")
    assert step_of(tmp_path / "base") == 6


def test_the_command_of_several_processes():
    cfg, argv = Config(out_dir="out"), ["config/palindrome.py", "--demo="]
    told = train.command_to_resume(cfg, argv, train.World(0, 4, torch.device("cpu")))
    assert told.startswith("torchrun --standalone --nproc_per_node=4 ")
    assert told.endswith("config/palindrome.py --demo= --init_from=resume")


def test_auto_begins_with_the_weights_that_are_named(tmp_path: Path, base: Any):
    """By the file, or by auto itself; and goes on once there is a checkpoint. From scratch the
    first line of the log would be another."""
    finish("train.py", base(), "--max_iters=2", "--learning_rate=0.01")
    weights = str(tmp_path / "base/ckpt.pt")
    first = {}
    for name, file, flags in (
        ("named", {"init_from": weights}, []),
        ("file", {"init_from": weights}, ["--init_from=auto"]),
        ("auto", {}, [f"--init_from=auto:{weights}"]),
        ("scratch", {}, ["--init_from=auto"]),
    ):
        path, out = base(f"{name}.py", **file), tmp_path / name
        finish("train.py", path, *flags, f"--out_dir={out}", "--max_iters=1")
        first[name] = (out / "log.jsonl").read_text().split(', "tokens_per_s"')[0]
        if flags:
            finish("train.py", path, *flags, f"--out_dir={out}", "--max_iters=3")
            assert step_of(out) == 3
    assert first["named"] == first["file"] == first["auto"] != first["scratch"]


W, RESUME, AUTO = "--init_from=x/ckpt.pt", "--init_from=resume", "--init_from=auto"


@pytest.mark.parametrize(
    "argv, there, where, begins",
    [
        ("", "", "stage1", "scratch"),
        (W, "", "stage1-finetuning", "x/ckpt.pt"),
        (RESUME, "", "stage1", "resume"),
        (RESUME, "stage1", "stage1", "resume"),
        (RESUME, "stage1-finetuning", "stage1-finetuning", "resume"),
        (AUTO, "", "stage1", "scratch"),
        (AUTO, "stage1", "stage1", "resume"),
        (AUTO, "stage1-finetuning", "stage1-finetuning", "resume"),
        (f"{AUTO}:x/ckpt.pt", "stage1", "stage1-finetuning", "x/ckpt.pt"),
        (f"{AUTO}:x/ckpt.pt", "stage1-finetuning", "stage1-finetuning", "resume"),
        (f"{RESUME} --finetune_suffix=-ft", "stage1 stage1-ft", "stage1-ft", "resume"),
        (f"{RESUME} --out_dir=out/stage1", "stage1 stage1-finetuning", "stage1", "resume"),
    ],
)
def test_where_a_stage_runs(
    tmp_path: Path, monkeypatch: Any, argv: str, there: str, where: str, begins: str
):
    monkeypatch.chdir(tmp_path)
    for name in there.split():
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / "ckpt.pt").touch()
    cfg = train.resolve(*load(Config, ["config/stage1.py", *argv.split()]))
    assert (cfg.out_dir, cfg.init_from) == (f"out/{where}", begins)


def test_two_runs_to_go_on_with_are_told(tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    for name in ("stage1", "stage1-finetuning"):
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / "ckpt.pt").touch()
    for flag in (RESUME, AUTO):
        with pytest.raises(UserError, match=r"out/stage1 and out/stage1-finetuning .*--out_dir="):
            train.resolve(*load(Config, ["config/stage1.py", flag]))


def test_no_fine_tuning_without_weights(tmp_path: Path, base: Any):
    """auto on a command that says that it is fine-tuning: from scratch is not what is meant."""
    job = Launched("train.py", base(), "--finetune_suffix=-ft", AUTO)
    refused(job, f"no checkpoint in {tmp_path / 'base-ft'}", "--init_from=auto:WEIGHTS")
    assert not (tmp_path / "base-ft").exists()


# ---- a run that is there already ---------------------------------------------------------------


def test_a_run_is_not_replaced(tmp_path: Path, base: Any, trained: Any):
    """Neither a finished nor an unfinished one, from scratch or from weights, but with
    --overwrite."""
    argv, out = ["train.py", base(), "--max_iters=3"], tmp_path / "base"
    finish(*argv)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    ways = ["--init_from=resume --max_iters=6", "--out_dir=", "--overwrite"]
    refused(Launched(*argv), f"{out} holds a finished run of 3 steps", *ways)
    refused(Launched(*argv, f"--init_from={trained() / 'ckpt.pt'}"), *ways)
    more = Launched(*argv, "--max_iters=5")
    refused(more, f"{out} holds an unfinished run of 3 steps", "--init_from=resume,", "--overwrite")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    finish(*argv, "--init_from=resume", "--max_iters=6")
    assert step_of(out) == 6
    finish(*argv, "--overwrite", "--max_iters=2")
    assert step_of(out) == 2 and len((out / "log.jsonl").read_text().splitlines()) == 3


def test_a_run_without_a_checkpoint_is_replaced(tmp_path: Path, base: Any):
    """One that was killed before its first save, or a folder that something else has made."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    finish("train.py", base(), "--max_iters=1")


# ---- which corpus ------------------------------------------------------------------------------

MAKES = "prepare_bytes.py --source=palindrome --rows=60 --val_rows=20"


@pytest.mark.parametrize("typed", ["palindrom", "wikipedia", "data/palindrome"])
def test_the_command_of_a_file_makes_its_own_corpus_only(
    tmp_path: Path, base: Any, data_dir: Path, monkeypatch: Any, typed: str
):
    """A name that is typed is a corpus that is there, or a mistake; nothing is built under it."""
    file = base(dataset="palindrome", prepare=MAKES, data_dir=str(tmp_path / "data"))
    refused(Launched("train.py", file, f"--dataset={typed}"), f"no corpus at {tmp_path}", file)
    assert not (tmp_path / "data").exists() and not (tmp_path / "base").exists()
    wanted = {"palindrom": "palindrome", "data/palindrome": "palindrome"}.get(typed, "")
    for name in ("palindrome", "letters"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "meta.json").touch()
    job = Launched("train.py", file, f"--dataset={typed}")
    refused(job, f"--dataset={wanted}" if wanted else "no corpus", "there are: letters, palindrome")


def test_a_path_for_a_name(tmp_path: Path, base: Any):
    """Though the corpus that is meant is not made yet."""
    job = Launched("train.py", base(data_dir="data"), "--dataset=data/unknown")
    refused(job, "dataset is a name: --dataset=unknown --data_dir=data")


@pytest.mark.parametrize("typed", [[], ["--dataset=mine", f"--prepare={MAKES}"]])
def test_a_corpus_is_made_where_its_command_belongs_to_it(
    tmp_path: Path, base: Any, typed: list[str]
):
    """By the file, or typed with it."""
    data = {"data_dir": str(tmp_path / "data"), "block_size": 32}
    file = base(dataset="letters", prepare=MAKES, **data)
    finish("train.py", file, *typed, "--max_iters=1")
    assert (tmp_path / "data" / ("mine" if typed else "letters") / "meta.json").exists()


def test_wrong_choices_are_refused_before_a_corpus_is_made(tmp_path: Path, base: Any):
    file = base(dataset="letters", prepare=MAKES, data_dir=str(tmp_path / "data"))
    for wrong in ("objective=magic", "noise=pink", "gap_loss=distribution", "objective=idlm"):
        refused(Launched("train.py", file, f"--{wrong}"), wrong.split("=")[0])
    refused(Launched("train.py", file, "--graph=uniform", "--normalize"), "needs graph=absorb")
    assert not (tmp_path / "data").exists()


# ---- options of other objectives ---------------------------------------------------------------


class Reads:
    """A config that remembers which of its fields are read."""

    def __init__(self, cfg: Config):
        self.cfg, self.read = cfg, set()

    def __getattr__(self, key: str) -> Any:
        self.read.add(key)
        return getattr(self.cfg, key)


GENERAL = {"objective", "block_size", "backbone", "time_input"}  # for all objectives, or networks
REFUSED = {"mlm": {"importance", "loss_per"}, "bd3": {"importance", "loss_per"}}  # read to refuse


@pytest.mark.parametrize("name", OBJECTIVES)
def test_config_fields_are_what_from_config_reads(name: str):
    """Neither more nor less: a field that is missing would be refused where it is of use, one too
    many be ignored without a word."""
    cfg = Reads(Config(objective=name, noise="geometric"))
    made = OBJECTIVES[name](cfg, 9, {"pad": 5, "mask": 8, "eos": 7})
    wanted = cfg.read - GENERAL - REFUSED.get(name, set())
    assert set(made.config_fields) == wanted and len(made.config_fields) == len(wanted)


def test_options_of_other_objectives(tmp_path: Path, base: Any):
    """Refused on the command line, told where a file has them, and silent where nothing differs."""
    for typed in (
        ["--objective=masked", "--gap_loss=expectation"],
        ["--objective=ilm", "--graph=uniform"],
        ["--block_length=4"],  # of bd3; the default is sedd
        ["--sigma_max=3"],  # the default noise has no such limit
    ):
        key = typed[-1][2:].split("=")[0]
        job = Launched("train.py", base(), *typed, "--max_iters=1")
        refused(job, f"command line: {key} means nothing for objective=")
    file = base("other.py", objective="ilm", normalize=True, graph="absorb")
    job = Launched("train.py", file, "--max_iters=1")
    assert job.wait() == 0
    told = f"warning: not used by objective=ilm, noise=loglinear: normalize ({file})\n"
    assert job.err == told


def test_the_objective_of_a_checkpoint_decides(tmp_path: Path, base: Any):
    """Where the command does not name it."""
    finish("train.py", base(objective="masked"), "--max_iters=1")
    file = base("plain.py")
    argv = ["train.py", file, "--init_from=resume", "--max_iters=2"]
    refused(Launched(*argv, "--t_low=0.1"), "t_low means nothing for objective=masked")
    finish(*argv, "--loss_per=sequence")


def test_an_objective_of_ones_own_takes_any_option(monkeypatch: Any):
    monkeypatch.setitem(OBJECTIVES, "mine", lambda cfg, size, ids: None)
    assert unused_fields(Config(objective="mine")) == []
    assert "gap_loss" in unused_fields(Config(objective="masked"))


# ---- objectives by their published names -------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names(name: str):
    """They are what they say, on the command line and in a file, and can be built."""
    cfg, origins = load(Config, [f"--objective={name}"])
    for key, value in PUBLISHED[name].items():
        assert getattr(cfg, key) == value and origins[key] == "command line"
    assert cfg.objective in OBJECTIVES
    assert not set(unused_fields(cfg)) & set(PUBLISHED[name])
    build_objective(cfg, {"vocab_size": 9, "specials": {"pad": 5, "mask": 8, "eos": 7}})


def test_a_published_name_and_other_settings(base: Any):
    """Contradicted in one place they are refused; what comes later has the last word."""
    with pytest.raises(UserError) as caught:
        load(Config, ["--objective=llada", "--noise=clamped"])
    assert str(caught.value) == (
        "config error: command line: objective=llada has noise='affine', not 'clamped'; "
        "write objective=masked to choose it"
    )
    file = str(base(objective="radd", normalize=True, noise="loglinear"))
    assert load(Config, [file])[0].time_input is False
    assert load(Config, [file, "--time_input=true"])[0].time_input is True
    assert load(ScaleConfig, ["--objective=llada"])[0].objective == "masked"  # it has no noise
    file = str(base(noise="cosine"))
    assert load(Config, [file, "--objective=llada"])[0].noise == "affine"


# ---- where things are, and the end -------------------------------------------------------------


@pytest.mark.parametrize(
    "rate, peak, want",
    [
        (3e12, 4e12, {"mfu": 0.75}),
        (4e12, 4e12, {"mfu": 1.0}),
        (5e12, 4e12, {}),  # fewer FLOPs were done than are counted
        (5e12, None, {}),  # no GPU
        (5e12, float("nan"), {}),
        (5e12, 0.0 + 1e-30, {}),
    ],
)
def test_no_share_above_one(rate: float, peak: float | None, want: dict):
    assert train.utilisation(rate, peak) == want


def test_from_another_folder(tmp_path: Path, run_cli: Any):
    """The config is found beside train.py; the corpus and the run are in the folder that one is
    in, which is told; then the checkpoint, and what to do with it. No mfu without a GPU."""
    argv = ["--max_iters=2", "--eval_interval=2", "--log_interval=1", "--eval_iters=1"]
    argv += [f"--prepare={MAKES}", "--demo=", "--device=cpu"]
    done = run_cli("train.py", "config/palindrome.py", *argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out/palindrome"
    assert f"out_dir is {out}, data_dir is {tmp_path / 'data'}\n" in done.stdout
    assert (out / "ckpt.pt").exists() and (tmp_path / "data/palindrome").is_dir()
    assert "mfu" not in done.stdout + (out / "log.jsonl").read_text()
    assert "tokens/s" in done.stdout and "tokens_per_s" in (out / "log.jsonl").read_text()
    *_, where, sample, evaluate = done.stdout.splitlines()
    assert where == "the model is in out/palindrome/ckpt.pt; next:"
    for line, script, more in (
        (sample, "sample.py", ["--num_samples=1", "--steps=2"]),
        (evaluate, "evaluate.py", ["--rows=4", "--samples=0"]),
    ):
        python, path, ckpt = shlex.split(line)
        assert (python, Path(path).name) == ("python", script)
        assert run_cli(script, ckpt, *more, cwd=tmp_path).returncode == 0


def test_nothing_to_train(tmp_path: Path):
    refused(Launched("train.py"), "nothing to train", "python train.py config/palindrome.py", "-h")
