"""Keyword scores: the rules by definition, TF-IDF against its formula and scikit-learn, and KeyBERT
itself on an encoder that needs no weights."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configurator import UserError
from prepare import importance
from prepare.importance import (
    ABSENT,
    PERIOD,
    STOP_WORDS,
    KeyBert,
    TfIdf,
    encoder_folder,
    word_scores,
)

TEXTS = [
    "The river rose in the night. A flood came down the river.",
    "In the night the moon rose over the town, and the town slept.",
    "A teacher in the town spoke about the moon.",
    "",
    "x . ! 7",
]


def words_of(text):
    return text.replace(".", " .").replace(",", " ,").split()


def scores(text, table, demote=True):
    words = words_of(text)
    return dict(
        zip(words, word_scores(words, [w == "." for w in words], table, demote), strict=True)
    )


# ---- rules ---------------------------------------------------------------------------------------


def test_the_order_of_groups():
    """Full stops, words by cosine, stop words, the rest; even a word far from the document comes
    before every stop word."""
    table = {"the": 0.9, "river": 0.4, "night": -0.3, "in": 0.1, "rose": 0.2}
    got = scores("The river rose , in n't night ! .", table)
    order = sorted(got, key=lambda w: -got[w])
    assert order == [".", "river", "rose", "night", "The", "in", ",", "n't", "!"]
    assert got["."] == PERIOD and got["The"] == -1.0 and got["in"] == -1.1
    assert got[","] == got["n't"] == got["!"] == ABSENT == -1.2


def test_stop_words_compete_in_the_other_mode():
    table = {"the": 0.9, "river": 0.4}
    assert scores("the river .", table, demote=False) == {"the": 0.9, "river": 0.4, ".": 1.1}


def test_one_stop_word_is_in_the_middle():
    assert word_scores(["the", "sea", "The"], [False] * 3, {"the": 0.5, "sea": 0.1}, True) == [
        pytest.approx(-1.05, abs=1e-12),
        0.1,
        pytest.approx(-1.05, abs=1e-12),
    ]


def test_final_marks_and_capitals_do_not_matter():
    words = ["River!?", "RIVER.", "(river", ":river", "river-"]
    expected = [0.5, 0.5, ABSENT, ABSENT, ABSENT]
    assert word_scores(words, [False] * 5, {"river": 0.5}, True) == expected


def test_only_what_the_tagger_calls_a_full_stop_is_one():
    assert word_scores([".", ".", "..."], [True, False, False], {}, True) == [
        PERIOD,
        ABSENT,
        ABSENT,
    ]
    assert word_scores([], [], {}, True) == []


@given(
    st.lists(st.sampled_from(["the", "of", "and", "sea", "ship", ".", "it", "no"]), max_size=12),
    st.dictionaries(st.sampled_from(["the", "of", "and", "sea", "it"]), st.floats(-1, 1)),
)
def test_bounds(words, table):
    got = word_scores(words, [w == "." for w in words], table, demote=True)
    for word, score in zip(words, got, strict=True):
        if word == ".":
            assert score == PERIOD
        elif word not in table:
            assert score == ABSENT
        elif word in STOP_WORDS:
            assert -1.1 <= score <= -1.0
        else:
            assert score == table[word]


def test_stop_words_are_those_of_scikit_learn():
    pytest.importorskip("sklearn")
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    assert STOP_WORDS == ENGLISH_STOP_WORDS


# ---- TF-IDF --------------------------------------------------------------------------------------


def test_tfidf_by_hand():
    scorer = TfIdf.fit(["aa bb", "aa cc", "aa"])
    assert (scorer.documents, scorer.counts) == (3, {"aa": 3})
    rare = math.log(4 / 2) + 1  # in one document; a word that is in none counts the same
    assert (scorer.idf("aa"), scorer.idf("bb"), scorer.idf("new")) == (1.0, rare, rare)
    got = scorer.table(["AA", "aa", "new", "x", "!"])
    often = (1 + math.log(2)) * 1.0
    norm = math.hypot(often, rare)
    assert got == pytest.approx({"aa": often / norm, "new": rare / norm})


def test_tfidf_is_the_one_of_scikit_learn_for_words_of_two_documents():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    documents = [f"{a} {a}" for a in TEXTS[:3]] * 2  # so that every word is in two of them
    theirs = text.TfidfVectorizer(sublinear_tf=True).fit(documents)
    names = theirs.get_feature_names_out()
    for document in TEXTS[:3]:
        row = theirs.transform([document]).toarray()[0]
        ours = TfIdf.fit(documents).table(words_of(document))
        assert ours == pytest.approx({n: v for n, v in zip(names, row, strict=True) if v})


@given(st.lists(st.text("abAB .", max_size=20), max_size=5), st.text("abcAB .,", max_size=30))
def test_tfidf_lies_between_0_and_1(documents, text):
    got = TfIdf.fit(documents).table(text.split())
    assert all(0 < v <= 1 for v in got.values())
    if got:
        assert math.isclose(sum(v * v for v in got.values()), 1)


def test_tfidf_is_kept_in_a_file(tmp_path):
    scorer = TfIdf.fit(TEXTS)
    scorer.save(tmp_path / "idf.json")
    again = TfIdf.read(tmp_path / "idf.json")
    assert [again.table(words_of(t)) for t in TEXTS] == [scorer.table(words_of(t)) for t in TEXTS]
    (tmp_path / "idf.json").write_text("{")
    with pytest.raises(UserError, match=r"idf\.json"):
        TfIdf.read(tmp_path / "idf.json")


# ---- KeyBERT -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keybert():
    """KeyBERT on counts of letters: an encoder in its own sense, without weights."""
    backend = pytest.importorskip("keybert.backend")

    class Letters(backend.BaseEmbedder):
        def embed(self, documents, verbose=False):
            assert all(isinstance(d, str) for d in documents)
            letters = [[d.lower().count(chr(97 + i)) for i in range(26)] for d in documents]
            return np.array(letters, np.float64)

    return KeyBert(Letters())


def cosine(a, b):
    a, b = ([t.lower().count(chr(97 + i)) for i in range(26)] for t in (a, b))
    return np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))


def test_keybert_gives_the_cosine_of_every_word(keybert):
    words = words_of(TEXTS[0])
    table = keybert.table(words)
    assert set(table) == {"the", "river", "rose", "in", "night", "flood", "came", "down"}
    for word, value in table.items():
        assert value == pytest.approx(cosine(word, " ".join(words)), abs=6e-5)  # it rounds


def test_keybert_scores_each_document_by_itself(keybert):
    """Where the original failed: one document alone, an empty one, one without any word."""
    alone = [keybert.table(words_of(t)) for t in TEXTS]
    assert [len(t) for t in alone] == [8, 9, 7, 0, 0]
    again = [keybert.table(words_of(t)) for t in reversed(TEXTS)]
    assert again[::-1] == alone
    assert scores("x . ! 7", alone[4]) == {"x": ABSENT, ".": PERIOD, "!": ABSENT, "7": ABSENT}


def test_keybert_ranks_all_words_of_a_long_document(keybert):
    words = [f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(200)] * 2
    assert len(keybert.table(words)) == 200


HINT = "--scorer=FOLDER, or --scorer=tfidf, which is another score"


@pytest.fixture
def hub(monkeypatch):
    """The libraries as if installed; what they would fetch is `hub.fetch`."""
    fake = SimpleNamespace(fetch=None, asked=[])

    def download(source, cache_dir, allow_patterns):
        fake.asked.append((source, cache_dir, "*.bin" in allow_patterns))
        return fake.fetch(source)

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(importance, "optional", lambda name: fake)
    fake.snapshot_download = download
    return fake


def refused(name):
    with pytest.raises(UserError) as got:
        encoder_folder(name)
    assert "\n" not in str(got.value)
    return str(got.value)


def test_an_encoder_of_the_hub(hub, tmp_path):
    (tmp_path / "modules.json").write_text("[]")
    hub.fetch = lambda source: str(tmp_path)
    assert encoder_folder("all-MiniLM-L6-v2", "kept") == tmp_path  # in safetensors or before
    names = [("sentence-transformers/all-MiniLM-L6-v2", "kept", old) for old in (False, True)]
    assert hub.asked == names
    (tmp_path / "model.safetensors").touch()
    assert encoder_folder("some/encoder") == tmp_path
    assert hub.asked[2:] == [("some/encoder", None, False)]


def test_an_encoder_that_is_not_there_is_one_line(hub, tmp_path, monkeypatch):
    def offline(source):
        raise ConnectionError("no network\nretrying")

    hub.fetch = offline
    told = refused("all-MiniLM-L6-v2")
    assert "all-MiniLM-L6-v2 is not on this machine and could not be fetched" in told
    assert "run it once with a network, or" in told and told.endswith(HINT)
    for path in ("./nowhere", "/no/where", "~/nowhere", "a/b/c"):
        assert f"no folder {path}; " in refused(path)
    assert len(hub.asked) == 1  # no path is looked for on the hub
    told = refused(str(tmp_path))  # sentence-transformers would take the mean of any network
    assert "is no sentence encoder, without modules.json" in told and told.endswith(HINT)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    told = refused("all-MiniLM-L6-v2")
    assert "pip install keybert sentence-transformers; or --scorer=tfidf, which is another" in told


def test_an_encoder_that_cannot_be_loaded_is_one_line(tmp_path):
    pytest.importorskip("sentence_transformers")
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(UserError, match=f"cannot be loaded .*{HINT}") as got:
        importance.encoder(tmp_path)
    assert "\n" not in str(got.value)
