"""pretrained/foreign.py: what is written instead of the arguments of other projects exists here,
and each of those is answered by it."""

import dataclasses
import re
from pathlib import Path

import pytest
from test_readme import rows

from cascade.chain import CascadeConfig
from cascade.stages import StagesConfig
from configurator import Config, UserError, load
from evaluate import EvaluateConfig
from patches.prepare import DiffConfig
from prepare_bytes import PrepareConfig
from prepare_pretrain import PretrainConfig
from prepare_sft import SftConfig
from preprocess_prefix import PrefixConfig
from pretrained.foreign import EXPERIMENTS, NEEDLESS, STAGES, WRITE
from sample import SampleConfig
from tasks.stars import StarsConfig

ROOT = Path(__file__).resolve().parent.parent.parent
COMMANDS = {
    "train.py": Config,
    "sample.py": SampleConfig,
    "evaluate.py": EvaluateConfig,
    "prepare_bytes.py": PrepareConfig,
    "prepare_pretrain.py": PretrainConfig,
    "prepare_sft.py": SftConfig,
    "preprocess_prefix.py": PrefixConfig,
    "cascade.chain": CascadeConfig,
    "cascade.stages": StagesConfig,
    "patches.prepare": DiffConfig,
    "tasks.stars": StarsConfig,
}
CLASSES = {cls.__name__: cls for cls in COMMANDS.values()}
ENTRIES = [(name, key) for name, entries in WRITE.items() for key in entries]


def told(cls: type, *argv: str) -> str:
    """The one line that answers these arguments."""
    with pytest.raises(UserError) as caught:
        load(cls, list(argv))
    message = str(caught.value)
    assert message.startswith("config error: command line: ") and "\n" not in message
    return message.removeprefix("config error: command line: ")


def unknown(cls: type, text: str) -> list[str]:
    """The options and the config files of a text to be written which do not exist; `cls` is the
    command that is being given arguments, unless the text names another."""
    named = re.search(r"\b(?:python|bash) (?:-m )?(\S+)", text)
    if named and named[1] == "slurm/train.slurm":
        return []
    cls = COMMANDS[named[1]] if named else cls
    if "torchrun" in text:
        return [] if "train.py" in text else [text]
    if "--cascade=" in text:
        cls = CascadeConfig
    fields = {f.name for f in dataclasses.fields(cls)}
    lost = [key for key in re.findall(r"--(\w+)", text) if key not in fields]
    return lost + [path for path in re.findall(r"[\w/]+\.py", text) if not found(path)]


def found(path: str) -> bool:
    return any((ROOT / folder / path).is_file() for folder in (".", "config"))


@pytest.mark.parametrize("name, key", ENTRIES)
def test_what_is_to_be_written_exists(name: str, key: str):
    text = WRITE[name][key]
    assert unknown(CLASSES[name], text) == []
    word = key if "=" in key else f"{key}=7"
    answer = text.replace("{}", "7")
    assert told(CLASSES[name], word) == f"write {answer} instead of {word}"
    if "." not in key:
        assert told(CLASSES[name], f"+group.{word}") == f"write {answer} instead of +group.{word}"
    if word.split("=")[0] not in {f.name for f in dataclasses.fields(CLASSES[name])}:
        assert told(CLASSES[name], f"--{word}") == f"write {answer} instead of --{word}"
        assert told(CLASSES[name], *f"--{word}".split("=")) == f"write {answer} instead of --{word}"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_load(name: str):
    """With everything that is to be written, the config of an experiment is a good one."""
    text = EXPERIMENTS[name]
    cls = Config
    if text.startswith("python "):
        cls = COMMANDS[text.split()[1]]
        text = text.split(maxsplit=2)[2]
    assert load(cls, text.replace("'", "").split())


@pytest.mark.parametrize("name", STAGES)
def test_stages_load(name: str):
    assert load(Config, STAGES[name].split())[0].dataset.startswith("openwebtext_")


@pytest.mark.parametrize("key", NEEDLESS)
def test_what_is_left_out(key: str):
    """By a command that has no such option itself."""
    word = key if "=" in key else f"{key}=7"
    cls = StarsConfig
    assert told(cls, word) == f"leave out {word}: {NEEDLESS[key]}"
    for option in re.findall(r"--(\w+)", NEEDLESS[key]):
        assert option in {f.name for f in dataclasses.fields(Config)}


def test_options_of_a_command_itself_stay_what_they_are():
    """No entry without a group or value has the name of an option that its command has."""
    for name, entries in WRITE.items():
        assert not [f.name for f in dataclasses.fields(CLASSES[name]) if f.name in entries]
    assert load(Config, ["--muon_momentum=0.95", "--num_samples=3"])[0].num_samples == 3
    assert told(Config, "batch_size=4") == "write --batch_size=4 instead of batch_size=4"


def test_a_whole_line_is_answered_at_once():
    line = "ngpus=4 training.batch_size=512 +wandb.offline=true model.length=32"
    message = told(Config, *line.split())
    for word in ("--nproc_per_node=4", "--batch_size=512", "--wandb_log", "--block_size=32"):
        assert word in message
    assert message.count("; ") == 4
    message = told(SampleConfig, "--model_path", "x", "--gen_length=5", "--max_steps", "3")
    assert "--ckpt=x " in message and "--max_length=5 " in message and "--steps=3 " in message


def test_arguments_of_others_are_answered():
    """Each of those in docs/coming-from.md, pasted on the command that its table names, by what the
    second column says. And every file that a table names exists."""
    cls, seen = None, 0
    for theirs, ours, *_ in rows():
        if theirs.strip().startswith("pasted on"):
            cls = COMMANDS[re.search("`(.+)`", theirs)[1]]
        elif theirs.strip() == "theirs":
            cls = None
        elif cls:
            for word in re.findall("`([^`]+)`", theirs):
                answer = f"write {re.search('`([^`]+)`', ours)[1]} instead of {word}"
                assert answer in told(cls, word).replace("`", ""), word
                seen += 1
    assert seen > 80
    text = "".join(ours for _, ours, *_ in rows())
    files = re.findall(r"(?:config|slurm)/[\w/.]+", text)
    assert len(files) > 100 and not [file for file in files if not (ROOT / file).is_file()]
