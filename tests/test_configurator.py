"""configurator.py: the command line, override files, refusals, and what is told about them.

The cases marked "nanoGPT" are measured failures of its configurator: each ends there in a bare
AssertionError, a ValueError or a FileNotFoundError, or is silently accepted.
"""

import dataclasses
import json
import math
import re
import resource
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import configurator
from checkpoint import OBJECTIVES, PUBLISHED, build_objective
from configurator import OLDEST, Config, UserError, describe, from_saved, load, optional, usage
from diffusion import NOISES
from evaluate import EvaluateConfig
from sample import SampleConfig


def told(*argv: str, cls: type = Config) -> str:
    """The message that refuses these arguments: always one line."""
    with pytest.raises(UserError) as caught:
        load(cls, [str(a) for a in argv])
    message = str(caught.value)
    assert message and "\n" not in message
    return message


@pytest.fixture
def file(tmp_path: Path):
    """file(text) -> path of a config file with this text."""

    def write(text: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


# ---- values on the command line ----------------------------------------------------------------


@pytest.mark.parametrize(
    "argument, key, value",
    [
        ("--learning_rate=1", "learning_rate", 1.0),  # nanoGPT: an int is no float
        ("--wandb_run_name=123", "wandb_run_name", "123"),  # nanoGPT: parsed as an int
        ("--wandb_run_name=a=b", "wandb_run_name", "a=b"),  # nanoGPT: too many values to unpack
        ("--wandb_run_name=", "wandb_run_name", ""),
        ("--demo=None", "demo", "None"),  # a str field takes the raw text
        ("--lr_decay_iters=None", "lr_decay_iters", None),
        ("--lr_decay_iters=none", "lr_decay_iters", None),
        ("--lr_decay_iters=50", "lr_decay_iters", 50),
        ("--learning-rate=2e-4", "learning_rate", 2e-4),
        ("--eval_only", "eval_only", True),
        ("--eval_only=True", "eval_only", True),
        ("--eval_only=0", "eval_only", False),
        ("--compile=False", "compile", "false"),  # as everybody writes it
        ("--dtype=bfloat16", "dtype", "bfloat16"),
        ("--seed=0", "seed", 0),
    ],
)
def test_accepted(argument: str, key: str, value: object):
    cfg, origins = load(Config, [argument])
    assert getattr(cfg, key) == value
    assert type(getattr(cfg, key)) is type(value)  # 1 == 1.0 == True would hide a wrong type
    assert origins == {key: "command line", "out_dir": "auto"}
    rest = {key: getattr(Config(), key), "out_dir": "auto"}
    assert dataclasses.replace(cfg, **rest) == Config()  # nothing else


@pytest.mark.parametrize(
    "argument, words",
    [
        ("--batch_size=abc", ["batch_size", "int", "'abc'"]),  # nanoGPT: bare AssertionError
        ("--batch_size=1.5", ["batch_size", "int"]),
        ("--batch_size=", ["batch_size", "int"]),
        ("--batch_size=True", ["batch_size", "int"]),
        ("--grad_clip=None", ["grad_clip", "float", "'None'"]),  # None only where it is allowed
        ("--learning_rate=nan", ["learning_rate", "nan"]),
        ("--learning_rate=inf", ["learning_rate", "inf"]),
        ("--eval_only=yes", ["eval_only", "bool", "'yes'"]),
        ("--eval_only=2", ["eval_only", "bool"]),
        ("--graph=masked", ["graph", "uniform", "absorb", "'masked'"]),
        ("--compile=0", ["compile", "true", "false"]),
        ("--bogus=1", ["bogus", "-h"]),
        ("--lerning_rate=1", ["lerning_rate", "did you mean learning_rate?"]),
        ("--batch_size", ["--batch_size=value"]),
        ("-batch_size=4", ["--batch_size=value"]),
        ("device", ["'device'", "--device=value"]),  # nanoGPT: FileNotFoundError: 'device'
        ("batch_size=4", ["write --batch_size=4 instead of batch_size=4"]),
        ("training.batch_size=4", ["write --batch_size=4 instead of"]),  # Hydra
        ("noise.type=geometric", ["write --noise=geometric instead of"]),
        ("model=small_shuffl", ["unknown key model", "_shuffle.py"]),
        ("model=small_shuffle", ["config/stage1_shuffle.py, stage2_shuffle.py"]),
        ("xyzzy=plugh", ["unknown key xyzzy", "a config file is named by its path"]),
        ("config/palindrome", ["write config/palindrome.py instead of config/palindrome"]),
        ("palindrome", ["write config/palindrome.py instead of palindrome"]),
        ("--bogus", ["unknown key bogus"]),
        ("--objective=magic", ["objective must be one of sedd, udlm, masked,", "mdlm", "'magic'"]),
        ("--noise=pink", ["noise must be one of loglinear,", "'pink'"]),
        ("--=1", ["command line"]),
        ("", ["command line"]),
    ],
)
def test_refused(argument: str, words: list[str]):
    message = told(argument)
    assert message.startswith("config error: command line: ")
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "argv, values",
    [
        (["--batch_size", "4"], {"batch_size": 4}),
        (["--demo", "evaluate.py --show"], {"demo": "evaluate.py --show"}),
        (["--demo", ""], {"demo": ""}),
        (["--muon-lr", "0.5", "--seed=3"], {"muon_lr": 0.5, "seed": 3}),
        (["--eval_only", "--seed", "3"], {"eval_only": True, "seed": 3}),
        (["--eval_only", "false", "--seed=3"], {"eval_only": False, "seed": 3}),
        (["--ema_warmup", "False"], {"ema_warmup": False}),
        (["--eval_only", "FILE"], {"eval_only": True, "beta1": 0.5}),
        (["--seed", "3", "FILE", "--beta2", "0.75"], {"seed": 3, "beta1": 0.5, "beta2": 0.75}),
    ],
)
def test_a_value_may_follow_its_key(argv: list[str], values: dict, file):
    path = str(file("beta1 = 0.5"))
    cfg, _ = load(Config, [path if word == "FILE" else word for word in argv])
    assert {key: getattr(cfg, key) for key in values} == values
    out = "out/mine" if "FILE" in argv else "out"
    assert dataclasses.replace(Config(), **values, out_dir=out) == cfg


def test_a_value_that_does_not_follow():
    assert "write --batch_size=value" in told("--batch_size", "--seed=3")
    assert "seed must be at least 0, got -3" in told("--seed", "-3")
    assert "eval_only must be bool, got 'yes'" in told("--eval_only=yes")
    assert "'yes' is neither" in told("--eval_only", "yes")


def test_arguments_in_other_words(file):
    """What a command says that is to be run again."""
    path = str(file("seed = 1"))
    argv = ["--seed", "3", path, "--eval_only", "--demo=a b", "--lr-schedule=linear"]
    again = configurator.respelled(Config, argv, seed=None, max_iters="7")
    assert again == [
        path,
        "--eval_only=true",
        "--demo=a b",
        "--lr_schedule=linear",
        "--max_iters=7",
    ]
    one, two = (dataclasses.replace(load(Config, a)[0], max_iters=7) for a in (argv, again))
    assert dataclasses.replace(two, seed=3) == one


def test_an_empty_choice_is_shown():
    message = told("--sampling_method=pink", cls=SampleConfig)
    assert (
        "sampling_method must be one of '' (empty), sample, sample_top_k, sample_top_p" in message
    )


def test_a_choice_is_found_where_its_registry_is(monkeypatch):
    """So that one of one's own is known, in refusals, in -h, and in what a checkpoint says."""
    monkeypatch.setitem(OBJECTIVES, "mine", OBJECTIVES["masked"])
    assert load(Config, ["--objective=mine"])[0].objective == "mine"
    assert ", mine," in told("--objective=magic").replace("\n", " ")
    with pytest.raises(UserError, match=r"ckpt\.pt: noise must be one of loglinear, "):
        from_saved(Config, {"noise": "pink"}, "ckpt.pt")


@given(st.text(max_size=20))
def test_any_text_is_a_good_string(text: str):
    assert load(SampleConfig, [f"--prompt={text}"])[0].prompt == text


@given(st.sampled_from([f.name for f in dataclasses.fields(Config)]), st.text(max_size=8))
def test_any_value_of_any_key_is_taken_or_refused(key: str, text: str):
    """No other exception than UserError, whatever is typed."""
    try:
        load(Config, [f"--{key}={text}"])
    except UserError as e:
        assert key in str(e)


# ---- rules that a value must keep --------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("--batch_size=0", ["batch_size", "at least 1", "0"]),
        ("--gradient_accumulation_steps=0", ["gradient_accumulation_steps", "at least 1"]),
        ("--eval_interval=0", ["eval_interval", "at least 1"]),  # step % 0 in the loop
        ("--log_interval=0", ["log_interval", "at least 1"]),
        ("--learning_rate=-1e-3", ["learning_rate", "at least 0"]),
        ("--dropout=1", ["dropout", "below 1", "1.0"]),
        ("--dropout=-0.1", ["dropout", "at least 0"]),
        ("--ema_decay=1", ["ema_decay", "below 1"]),
        ("--min_lr=3e-4 --min_lr=2", ["min_lr", "between 0 and 1", "2.0"]),
        ("--n_embd=100 --n_head=12", ["n_embd", "multiple of 24", "n_head=12", "100"]),
        ("--n_embd=6 --n_head=2", ["n_embd", "multiple of 4"]),  # rotary turns pairs
        ("--sigma_min=0", ["sigma_min", "above 0", "0.0"]),
        ("--sigma_min=30", ["sigma_min", "sigma_max=20.0", "30.0"]),
        ("--warmup_iters=9 --lr_decay_iters=9", ["lr_decay_iters", "warmup_iters=9", "9"]),
        ("--warmup_iters=9 --lr_decay_iters=0", ["lr_decay_iters", "warmup_iters=9"]),
        ("--seed=-1", ["seed", "at least 0"]),
    ],
)
def test_rules(arguments: str, words: list[str]):
    message = told(*arguments.split())
    for word in words:
        assert word in message


def test_learned_positions_need_no_pairs():
    assert load(Config, ["--n_embd=6", "--n_head=2", "--positions=learned"])[0].n_embd == 6


def test_origin_of_a_broken_rule_is_named(file):
    path = file("batch_size = 0")
    assert f"config error: {path}: batch_size must be at least 1, got 0" == told(path)
    assert "command line: batch_size" in told(path, "--batch_size=-3")


def test_no_infinite_rate_from_a_file(file):
    """Refused like --learning_rate=inf; `inf >= 0` alone lets it through."""
    for text in ('learning_rate = float("inf")', 'sigma_max = float("inf")'):
        assert "inf" in told(file(text))
    assert "nan" in told(file('learning_rate = float("nan")'))


# ---- files -------------------------------------------------------------------------------------


def test_files_apply_in_order_and_the_command_line_last(file):
    """nanoGPT: a config file after a flag silently wins over it."""
    one = file("batch_size = 1\nmax_iters = 10\nseed = 5", "one.py")
    two = file("max_iters = 20", "two.py")
    for argv in (["--seed=7", one, two], [one, "--seed=7", two], [one, two, "--seed=7"]):
        cfg, origins = load(Config, [str(a) for a in argv])
        assert (cfg.batch_size, cfg.max_iters, cfg.seed) == (1, 20, 7)
        assert origins == {
            "batch_size": str(one),
            "max_iters": str(two),
            "seed": "command line",
            "out_dir": "auto",
        }
    assert load(Config, [str(two), str(one)])[0].max_iters == 10
    assert load(Config, ["--seed=1", "--seed=2"])[0].seed == 2


@pytest.mark.parametrize(
    "text, words",
    [
        ("lerning_rate = 1", ["unknown key lerning_rate", "learning_rate?"]),  # nanoGPT: accepted
        ('batch_size = "64"', ["batch_size", "int", "'64'"]),  # nanoGPT: fails much later
        ("batch_size = True", ["batch_size", "int", "True"]),
        ("batch_size = 6.0", ["batch_size", "int", "6.0"]),
        ("batch_size = None", ["batch_size", "int", "None"]),
        ("learning_rate = True", ["learning_rate", "float"]),
        ("eval_only = 1", ["eval_only", "bool"]),
        ("out_dir = 3", ["out_dir", "str"]),
        ('graph = "masked"', ["graph", "absorb"]),
        ("graph = 3", ["graph", "absorb"]),
        ("betas = [0.9, 0.95]", ["unknown key betas"]),
        ("time = 5", ["unknown key time"]),  # nanoGPT: destroys the imported module
        ("1 / 0", ["ZeroDivisionError"]),
        ("import not_a_module", ["ModuleNotFoundError", "not_a_module"]),
        ("batch_size = \n", ["SyntaxError"]),
        ("x = (", ["SyntaxError"]),
        ("raise ValueError('two\\nlines')", ["ValueError", "two"]),
        ("raise SystemExit(3)", []),
        ("import sys; sys.exit('stop')", []),
    ],
)
def test_bad_files(file, text: str, words: list[str]):
    path = file(text)
    with pytest.raises(UserError) as caught:
        load(Config, [str(path)])
    message = str(caught.value).replace("\n", " ")  # as `run` prints it
    assert str(path) in message
    for word in words:
        assert word in message


def test_missing_files():
    assert "no such config file: config/xyzzy.py" in told("config/xyzzy.py")
    near = "no such config file: config/star_esay.py; did you mean config/star_easy.py?"
    assert near in told("config/star_esay.py")
    assert "did you mean config/objective/ilm.py?" in told("objectives/ilm.py")
    assert "notes.txt" in told("notes.txt")


def test_only_public_plain_names_count(file):
    """Imports, helpers, classes and _private names are no overrides (nanoGPT execs them all)."""
    text = """
import math, os
from pathlib import Path
_half = 8
def double(x):
    return 2 * x
class Note: pass
square = lambda x: x * x
from math import sqrt
batch_size = double(_half)
learning_rate = 1  # an int serves as a float
lr_decay_iters = None
compile = True
"""
    cfg, origins = load(Config, [str(file(text))])
    assert (cfg.batch_size, cfg.learning_rate, cfg.compile) == (16, 1.0, "true")
    assert type(cfg.learning_rate) is float
    own = ["batch_size", "compile", "learning_rate", "lr_decay_iters"]
    assert sorted(origins) == [*own, "out_dir"]


def test_files_build_on_one_another_from_anywhere(tmp_path: Path):
    """A real process, because what matters is Python's search path. nanoGPT: FileNotFoundError."""
    root, away = tmp_path / "repo", tmp_path / "away"
    (root / "config").mkdir(parents=True)
    away.mkdir()
    (root / "configurator.py").write_text(Path(configurator.__file__).read_text())
    (root / "config/base.py").write_text("batch_size = 3\nseed = 4\n")
    (root / "config/top.py").write_text("from config.base import *\nbatch_size += 10\n")
    (root / "show.py").write_text(
        "import sys\nfrom configurator import Config, load\n"
        "cfg, _ = load(Config, sys.argv[1:])\nprint(cfg.batch_size, cfg.seed)\n"
    )
    for cwd in (root, away):
        command = [sys.executable, str(root / "show.py"), "config/top.py", "--seed=9"]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
        assert done.stdout.split() == ["13", "9"], done.stderr


def test_a_file_in_the_working_directory_comes_first(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("seed = 3")
    assert load(Config, ["mine.py"])[0].seed == 3


def test_committed_configs_load():
    for path in sorted((configurator.ROOT / "config").rglob("*.py")):
        if path.parent.name == "generate":
            mirrored = path.stem == "palindrome"  # for sample.py alone
            for cls in (SampleConfig, EvaluateConfig)[: 2 - mirrored]:
                assert load(cls, [str(path)])[1], path
            continue
        cfg, origins = load(Config, [str(path)])
        assert set(origins) - {"out_dir"} and cfg.out_dir != "out/", path


# ---- files that compose, and where their runs go -----------------------------------------------


def test_a_run_goes_to_the_names_of_its_files(file):
    one, two = str(file("seed = 1", "data.py")), str(file("seed = 2", "ilm.py"))
    for argv, out in (
        ([], "out"),
        (["--seed=3"], "out"),
        ([one], "out/data"),
        ([one, two], "out/ilm_data"),
        ([one, "--seed=3", two], "out/ilm_data"),
        ([one, two, "--out_dir=mine"], "mine"),
        ([one, two, "--out_dir=auto"], "out/ilm_data"),
        ([one, str(file('out_dir = "mine"', "more.py"))], "mine"),
    ):
        cfg, origins = load(Config, argv)
        assert cfg.out_dir == out
        assert (origins["out_dir"] == "auto") == (out != "mine")


def test_every_pair_of_data_and_objective_has_a_folder_of_its_own():
    """A file that names its folder must not do so for what is composed with it."""
    names = ["palindrome", "star_tiny", "star_small", "star_easy", "star_medium", "star_hard"]
    objectives = sorted((configurator.ROOT / "config/objective").glob("*.py"))
    pairs = [[f"config/{name}.py", str(path)] for name in names for path in objectives]
    cfgs = [load(Config, pair)[0] for pair in pairs]
    assert len({cfg.out_dir for cfg in cfgs}) == len(pairs) >= 60
    kinds = {cfg.objective for cfg in cfgs}
    assert kinds == set(OBJECTIVES)
    for cfg in cfgs:
        build_objective(cfg, {"vocab_size": 9, "specials": {"pad": 5, "mask": 8, "eos": 7}})


@pytest.mark.parametrize(
    "name, now",
    [
        ("ilm_star_easy", "star_easy objective/ilm"),
        ("idlm_star_easy", "star_easy published/idlm"),
        ("idlm_star_tiny", "star_tiny objective/idlm"),
        ("mdlm_star_hard", "star_hard published/mdlm"),
        ("mdlm_star_small", "star_small objective/mdlm"),
        ("ar_star_medium", "star_medium published/ar"),
        ("xlnet_star_tiny", "star_tiny objective/xlnet"),
    ],
)
def test_files_of_the_earlier_layout(name: str, now: str, capsys):
    """A config per objective and level of star graphs is two files now; the folder is the same."""
    files = [f"config/{file}.py" for file in now.split()]
    old, _ = load(Config, [f"config/{name}.py", "--seed=3"])
    assert capsys.readouterr().err == f"config/{name}.py is now: {' '.join(files)}\n"
    assert old == load(Config, [*files, "--seed=3"])[0] and old.out_dir == f"out/{name}"
    assert capsys.readouterr().err == ""


def test_what_was_never_a_file_is_refused():
    for name in (
        "config/pink_star_easy.py",
        "config/ilm_star_pink.py",
        "config/ilm_shakespeare.py",
    ):
        assert f"no such config file: {name}" in told(name)


def test_published_numbers_of_star_graphs():
    """Where the published recipes differ from one another."""
    for files, values in (
        ("star_easy published/idlm", {"sigma_max": 30.0, "max_iters": 80_000, "time_input": True}),
        ("idlm_star_hard", {"sigma_max": 50.0, "max_iters": 80_000, "time_input": True}),
        ("star_hard published/mdlm", {"max_iters": 100_000, "warmup_iters": 500}),
        ("star_easy published/ar", {"learning_rate": 1e-5, "max_iters": 50_000}),
        ("ar_star_hard", {"learning_rate": 1e-5, "max_iters": 100_000}),
        (
            "star_hard objective/ilm",
            {"learning_rate": 1e-4, "max_iters": 50_000, "block_size": 136},
        ),
    ):
        cfg, _ = load(Config, [f"config/{file}.py" for file in files.split()])
        assert {key: getattr(cfg, key) for key in values} == values, files


# ---- names that settings had before --------------------------------------------------------------


def test_a_former_name_is_taken_everywhere(file):
    """`schedule` was the learning rate's in train.py and the order of unmasking in sample.py."""
    path = str(file('schedule = "linear"'))
    cfg, origins = load(Config, [path])
    assert cfg == Config(lr_schedule="linear", out_dir="out/mine")
    assert origins == {"lr_schedule": path, "out_dir": "auto"}
    assert load(Config, [path, "--schedule=constant"])[0].lr_schedule == "constant"
    assert load(Config, [path, "--lr_schedule=constant"])[0].lr_schedule == "constant"
    assert load(SampleConfig, [path, "--top_k=3"])[0] == SampleConfig(
        unmask_schedule="linear", top_k=3
    )
    assert "lr_schedule must be one of constant" in told("--schedule=pink")
    assert "unknown key schedule" in told("--schedule=linear", cls=Kinds)
    assert "unknown key unmask_schedule" in told("--unmask_schedule=linear")


def test_both_names_at_once_must_agree(file):
    assert load(Config, ["--schedule=linear", "--lr_schedule=linear"])[0].lr_schedule == "linear"
    message = told("--schedule=linear", "--lr_schedule=cosine")
    assert "schedule is the former name of lr_schedule" in message
    assert "'linear'" in message and "'cosine'" in message and "keep lr_schedule" in message
    path = file('schedule = "linear"\nlr_schedule = "cosine"')
    assert f"config error: {path}: schedule is the former name" in told(path)


@pytest.mark.parametrize("cls", [Config, SampleConfig])
def test_help_shows_present_names_only(cls: type):
    flags = [line.split("=")[0].strip() for line in usage(cls).splitlines() if "--" in line]
    assert not set(flags) & {f"--{old}" for old in configurator.ALIASES.values()}


def test_keys_that_are_gone(file):
    """With the value that always holds they are passed over, with another one refused."""
    for key, value in configurator.DROPPED.items():
        assert load(Config, [f"--{key}={value}"])[0] == load(Config, [])[0]
        assert load(Config, [str(file(f"{key} = {value!r}"))])[0].out_dir == "out/mine"
        assert from_saved(Config, {key: value, "seed": 3}, "ckpt.pt") == Config(seed=3)
        assert f"unknown key {key}" in told(f"--{key}={value}", cls=SampleConfig)
    for saved in (0.9, "0.95", None):
        with pytest.raises(UserError, match=r"ckpt\.pt: muon_momentum is always 0\.95 now, got"):
            from_saved(Config, {"muon_momentum": saved}, "ckpt.pt")
    assert "muon_momentum is always 0.95 now, got '0.9'" in told("--muon_momentum=0.9")
    assert "muon_momentum is always 0.95 now, got 'x'" in told("--muon_momentum=x")


def test_former_names_are_no_present_ones():
    """Otherwise a key would mean two things in one class."""
    for cls in (Config, SampleConfig, EvaluateConfig):
        fields = {f.name for f in dataclasses.fields(cls)}
        former = [old for new, old in configurator.ALIASES.items() if new in fields]
        assert not fields & set(former) and len(former) == len(set(former))


# ---- what is told ------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Config, SampleConfig])
def test_help_lists_every_field_with_default_and_comment(cls: type):
    lines = usage(cls).splitlines()
    for field in dataclasses.fields(cls):
        (line,) = [x for x in lines if x.startswith(f"  --{field.name}=")]
        shown, _, comment = line.strip().partition(" ")
        assert shown == f"--{field.name}={field.default}"
        assert len(comment.strip()) > 3, f"{field.name} has no comment"


@pytest.mark.parametrize(
    "cls, key, choices",
    [
        (Config, "objective", [*OBJECTIVES, *PUBLISHED]),
        (Config, "noise", list(NOISES)),
        (Config, "padding", ["learn", "crop", "ignore"]),
        (SampleConfig, "sampler", ["auto", "analytic", "confidence", "left_to_right", "tau"]),
        (SampleConfig, "remask", ["none", "cap", "rescale", "conf", "loop"]),
        (SampleConfig, "unmask_schedule", ["uniform", "cosine", "threshold"]),
        (SampleConfig, "second_sampling_method", ["''", "sample_top_p"]),
    ],
)
def test_help_shows_what_may_be_chosen(cls: type, key: str, choices: list[str]):
    text = " ".join(usage(cls).split(f"  --{key}=")[1].split("  --")[0].split())
    shown = text.partition("one of ")[2].replace(",", " ").split()
    assert set(choices) <= set(shown), text


def test_help_is_in_groups():
    """Those of the class, each with its fields."""
    heads, group = {}, ""
    for line in usage(Config).split("\ncorpus\n")[1].splitlines():
        if line and not line.startswith(" "):
            group = line
        elif line.startswith("  --"):
            heads[line.split("=")[0].strip(" -")] = group
    for key, wanted in {
        "dataset": "",
        "init_from": "the run",
        "noise": "the objective",
        "gap_loss": "insertion",
        "n_layer": "the network",
        "eval_iters": "evaluation, checkpoints, logs",
    }.items():
        assert heads[key] == wanted, (key, heads[key])


def test_help_of_train_has_examples(run_cli):
    """From its docstring, and each of them is understood."""
    done = run_cli("train.py", "-h")
    head, _, _ = done.stdout.partition("\ncorpus\n")
    examples = re.findall(r"train\.py ((?:config/\S+ ?)+.*)$", head, re.M)
    assert len(examples) >= 4
    for example in examples:
        load(Config, example.split())
    assert "From another folder" in head and "--overwrite" in head


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_wins_over_everything(flag: str, capsys):
    with pytest.raises(SystemExit) as caught:
        load(Config, ["nonsense", "--bogus=1", flag])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("usage: python ")


def test_describe_shows_only_what_differs_and_its_origin(file):
    path = file("batch_size = 7\nseed = 1337")  # the seed is the default: nothing to tell
    cfg, origins = load(Config, [str(path), "--learning_rate=1"])
    rows = [line.split() for line in describe(cfg, origins).splitlines()]
    assert rows == [
        ["out_dir", "=", "'out/mine'", "auto"],
        ["batch_size", "=", "7", str(path)],
        ["learning_rate", "=", "1.0", "command", "line"],
    ]
    assert describe(Config(), {}) == ""


def test_saved_json_is_the_whole_config(tmp_path: Path):
    cfg, _ = load(Config, ["--seed=3", "--lr_decay_iters=None"])
    configurator.save_json(cfg, tmp_path / "config.json")
    saved = json.loads((tmp_path / "config.json").read_text())
    assert from_saved(Config, saved, "config.json") == cfg
    assert set(saved) == {f.name for f in dataclasses.fields(Config)}
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]  # no temporary file


def test_saved_values_are_checked():
    with pytest.raises(UserError, match=r"ckpt\.pt: unknown key n_embed; did you mean n_embd"):
        from_saved(Config, {"n_embed": 3, "seed": 8}, "ckpt.pt")
    with pytest.raises(UserError, match=r"ckpt\.pt: n_layer must be int, got '3'"):
        from_saved(Config, {"n_layer": "3"}, "ckpt.pt")
    with pytest.raises(UserError, match=r"ckpt\.pt: n_layer must be at least 1, got 0"):
        from_saved(Config, {"n_layer": 0}, "ckpt.pt")


def test_a_config_of_an_earlier_version_loads():
    """config_3985a0c.json: what a tiny run of config/palindrome.py saved then."""
    saved = json.loads((Path(__file__).parent / "config_3985a0c.json").read_text())
    assert saved["schedule"] == "flat_cosine"
    cfg = from_saved(Config, saved, "ckpt.pt")
    now = dataclasses.asdict(cfg) | configurator.DROPPED
    assert now.pop("lr_schedule") == saved.pop("schedule")
    assert {key: now.get(key) for key in saved} == saved
    with pytest.raises(UserError, match=r"ckpt\.pt: schedule is the former name of lr_schedule"):
        from_saved(Config, {"schedule": "linear", "lr_schedule": "cosine"}, "ckpt.pt")


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1


@dataclass(frozen=True)
class Kinds:
    """All kinds of fields, for annotations that Config may not have."""

    maybe: float | None = None  # a number or nothing
    word: Literal["one", "two"] = "one"  # a choice
    rate: float = 0.5  # a number


def test_annotations_of_another_class():
    cfg, _ = load(Kinds, ["--maybe=2", "--word=TWO", "--rate=1"])
    assert cfg == Kinds(2.0, "two", 1.0) and type(cfg.maybe) is float
    assert "float or None" in told("--maybe=x", cls=Kinds)
    assert "one of one, two" in told("--word=three", cls=Kinds)
    assert not math.isnan(load(Kinds, [])[0].rate)


# ---- as a process ------------------------------------------------------------------------------


def test_help_of_train_is_quick(run_cli):
    """CPU time, not the clock: a heavy import at the top of a file would show on any machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = run_cli("train.py", "-h")
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert done.returncode == 0 and "--learning_rate=" in done.stdout and done.stderr == ""
    assert used < 3, f"{used:.1f} s of CPU time"


def test_imports_are_light(helpers):
    """Optional libraries are for the functions that need them; nothing prints when imported."""
    heavy = "transformers datasets spacy keybert wandb matplotlib tiktoken tokenizers safetensors"
    code = (
        f"import sys; sys.path.insert(0, {str(helpers.repo)!r}); import train, sample, evaluate; "
        f"print([m for m in {heavy.split()!r} if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=helpers.env())
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_mistake_is_one_line_and_leaves_nothing(run_cli, assert_refused, tmp_path: Path):
    done = run_cli("train.py", "--out_dir=out", "--bogus=1", cwd=tmp_path)
    assert_refused(done, "config error: command line", "bogus")
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


# ---- versions of optional libraries ------------------------------------------------------------


def stand_in(folder: Path, version: str) -> Path:
    """A folder for the import path with a `transformers` that has a version and nothing else."""
    (folder / "transformers").mkdir(parents=True)
    (folder / "transformers/__init__.py").write_text(f"__version__ = {version!r}\n")
    return folder


@pytest.mark.parametrize("version", ["4.57.0", "4.9", "5.0.0", "5.0.0rc1"])
def test_an_old_transformers_is_one_line(run_cli, assert_refused, tmp_path: Path, version: str):
    """Wherever it is used first: for a network, for published weights, for a judge."""
    path = {"PYTHONPATH": stand_in(tmp_path / "site", version)}
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text('{"model_type": "bert", "vocab_size": 4}')
    torch.save({"bert.x": torch.ones(1)}, tmp_path / "bert/pytorch_model.bin")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    commands = [
        ["sample.py", f"--ckpt={tmp_path}/bert"],
        ["sample.py", f"--ckpt={tmp_path}/a.gguf"],
    ]
    for command in commands if version == "4.57.0" else commands[:1]:
        done = run_cli(*command, "--device=cpu", env=path)
        said = f"transformers {version} is too old, 5.1 or newer is needed"
        assert_refused(done, f"{said}: pip install 'transformers>=5.1'")


@pytest.mark.parametrize("version", ["5.1.0", "5.1.0.dev0", "5.10.2", "6.0"])
def test_newer_versions_are_taken(monkeypatch, version: str):
    """5.10 is newer than 5.1, though its letters come first."""
    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(__version__=version))
    assert optional("transformers").__version__ == version


def test_oldest_versions_are_those_of_the_requirements(helpers):
    lines = (helpers.repo / "requirements-full.txt").read_text().splitlines()
    needed = dict(line.split("#")[0].strip().split(">=") for line in lines if ">=" in line)
    assert OLDEST == {name: needed[name] for name in OLDEST}
