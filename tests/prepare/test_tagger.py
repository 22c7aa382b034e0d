"""Tags and labels: the rules of the labels, the words of a text, TextBlob's tagger on sentences
that we tagged ourselves, and spaCy's on a pipeline without weights."""

import shutil
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configurator import UserError
from prepare.documents import WORST_LABEL
from prepare.importance import (
    PACKAGE,
    STOP_VERBS,
    Spacy,
    TextBlob,
    pipeline_about,
    pipeline_folder,
    priorities,
    sentences,
)

# word/tag, in Penn tags; ours
SAMPLE = """
The/DT old/JJ harbour/NN of/IN Bergen/NNP was/VBD slowly/RB filling/VBG with/IN small/JJ boats/NNS
./.

Mrs./NNP Ada/NNP Lund/NNP bought/VBD three/CD fresh/JJ herrings/NNS and/CC carried/VBD them/PRP
home/NN ./.

We/PRP never/RB expected/VBD the/DT engine/NN to/TO fail/VB so/RB quickly/RB ./.

"/`` Do/VBP n't/RB touch/VB that/DT switch/NN ,/, "/'' said/VBD Peter/NNP Grant/NNP ./.

In/IN March/NNP the/DT committee/NN published/VBD a/DT careful/JJ report/NN about/IN European/JJ
rivers/NNS ./.

Children/NNS often/RB learn/VBP languages/NNS faster/RBR than/IN their/PRP$ parents/NNS ./.

It/PRP is/VBZ difficult/JJ to/TO explain/VB why/WRB the/DT price/NN of/IN copper/NN fell/VBD in/IN
1998/CD ./.

The/DT new/JJ government/NN has/VBZ promised/VBN to/TO build/VB cheap/JJ houses/NNS near/IN
Lake/NNP Vattern/NNP ./.

Please/UH send/VB the/DT signed/JJ contract/NN to/TO our/PRP$ office/NN in/IN Lyon/NNP before/IN
Friday/NNP ./.

Several/JJ scientists/NNS believe/VBP that/IN the/DT glacier/NN will/MD completely/RB disappear/VB
./.

She/PRP could/MD hardly/RB remember/VB the/DT narrow/JJ street/NN where/WRB she/PRP lived/VBD ./.

When/WRB the/DT rain/NN stopped/VBD ,/, two/CD dogs/NNS ran/VBD across/IN the/DT empty/JJ field/NN
./.

Dr./NNP Chen/NNP works/VBZ at/IN the/DT University/NNP of/IN Oslo/NNP and/CC studies/VBZ
ancient/JJ pottery/NN ./.

You/PRP should/MD visit/VB the/DT museum/NN ,/, which/WDT opens/VBZ at/IN nine/CD ./.

His/PRP$ answer/NN surprised/VBD everyone/NN ,/, especially/RB the/DT young/JJ teacher/NN ./.

They/PRP sell/VBP wonderful/JJ bread/NN ,/, but/CC the/DT coffee/NN is/VBZ awful/JJ ./.

A/DT function/NN that/WDT returns/VBZ the/DT number/NN of/IN items/NNS is/VBZ called/VBN for/IN
each/DT row/NN ./.

If/IN the/DT file/NN does/VBZ not/RB exist/VB ,/, an/DT empty/JJ list/NN is/VBZ returned/VBN ./.

American/JJ farmers/NNS are/VBP growing/VBG more/JJR soybeans/NNS this/DT year/NN ./.

My/PRP$ sister/NN 's/POS friend/NN from/IN Madrid/NNP sings/VBZ beautifully/RB ./.

Nobody/NN knew/VBD the/DT real/JJ reason/NN for/IN the/DT sudden/JJ change/NN of/IN plans/NNS ./.

Take/VB the/DT second/JJ road/NN on/IN the/DT left/NN and/CC drive/VB carefully/RB ./.
"""
SENTENCES = [
    [(t[: t.rindex("/")], t[t.rindex("/") + 1 :]) for t in sentence.split()]
    for sentence in SAMPLE.strip().split("\n\n")
]


@pytest.fixture(scope="module")
def tagger():
    pytest.importorskip("textblob")
    return TextBlob()


def labels(tags, words):
    return priorities(tags, [w.lower() in STOP_VERBS for w in words])


# ---- labels --------------------------------------------------------------------------------------

PENN = "NNP NNPS NN NNS VB VBD VBG VBN VBP VBZ JJ JJR JJS RB RBR RBS MD IN DT CD . , WRB RP".split()


@given(st.lists(st.tuples(st.sampled_from(PENN), st.booleans())))
def test_labels_by_definition(pairs):
    """Counted from the end, as the definition is not: a run of names is walked from its end."""
    expected, inside = [], False
    for tag_, stop in reversed(pairs):
        proper = tag_ in ("NNP", "NNPS")
        if proper:
            label = 2 if inside else 1
        elif tag_ in ("NN", "NNS"):
            label = 3
        elif tag_[:2] == "VB":
            label = 7 if stop else 4
        else:
            label = 5 if tag_[0] == "J" else 6 if tag_[:2] == "RB" else 7
        expected.insert(0, label)
        inside = proper
    assert priorities([t for t, _ in pairs], [s for _, s in pairs]) == expected


def test_labels_of_few_words():
    assert priorities(["NNP"], [True]) == [1]
    assert priorities(["NNP", "NNPS", "NN"], [False] * 3) == [2, 1, 3]
    assert priorities(["WRB", "MD", "VBZ"], [False, False, True]) == [7, 7, 7]
    assert priorities([], []) == []


# ---- words ---------------------------------------------------------------------------------------


def words_of(text):
    return [text[a:b] for a, b in TextBlob(tags=False)(text).spans]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Hello, world! I don't", ["Hello", ",", "world", "!", "I", "do", "n't"]),
        ("the U.S. and Dr. Who", ["the", "U.S.", "and", "Dr.", "Who"]),
        ("taller than I.", ["taller", "than", "I", "."]),
        ("can't won’t she'll it's", ["ca", "n't", "wo", "n’t", "she", "'ll", "it", "'s"]),
        ("at 10:30 for $3.50...", ["at", "10:30", "for", "$", "3.50", "..."]),
        (
            "see https://a.org/x?y=1, me@b.com.",
            ["see", "https://a.org/x?y=1", ",", "me@b.com", "."],
        ),
        ("a well-known 1st 1990s", ["a", "well", "-", "known", "1st", "1990s"]),
        ("naïve Übung 東京", ["naïve", "Übung", "東京"]),
        ("", []),
        (" \n\t ", []),
    ],
)
def test_words(text, expected):
    assert words_of(text) == expected


@given(st.text())
def test_words_lie_in_order_and_hold_everything_that_is_no_white_space(text):
    got, at = TextBlob(tags=False)(text), 0
    for start, end in got.spans:
        assert start < end and text[at:start].strip() == ""
        at = end
    assert text[at:].strip() == ""
    assert len(got.spans) == len(got.tags) == len(got.stops) == len(got.points)


def test_only_a_single_full_stop_is_one():
    got = TextBlob(tags=False)("Yes. No... U.S. 3.5!")
    assert [f for f, p in zip(got.spans, got.points, strict=True) if p] == [(3, 4)]


# ---- TextBlob ------------------------------------------------------------------------------------


def test_our_sample(tagger):
    """Every label, of a text that is cut into words and sentences here."""
    ours, gold = [], []
    for sentence in SENTENCES:
        words, tags = map(list, zip(*sentence, strict=True))
        ours += labels(tagger.tag(words, [False] * len(words)), words)
        gold += labels(tags, words)
    right = sum(a == b for a, b in zip(ours, gold, strict=True)) / len(gold)
    assert len(gold) > 250 and right >= 0.85, right
    for label in range(1, WORST_LABEL + 1):  # none is given up for the others
        both = sum(a == b == label for a, b in zip(ours, gold, strict=True))
        assert 2 * both / (ours.count(label) + gold.count(label)) >= 0.6, label


def test_sentences_in_a_row_are_tagged_as_each_alone(tagger):
    sentences = [" ".join(w for w, _ in s) for s in SENTENCES]
    alone = [tag for sentence in sentences for tag in tagger(sentence).tags]
    assert tagger("\n\n".join(sentences)).tags == alone


def test_sentences_end_with_their_quotation_mark():
    words = ["He", "left", ".", '"', "Why", "?", "!", ")", "Who", "knows"]
    assert sentences(words, [False] * 10) == [0, 4, 8]
    assert sentences(words, [False] * 9 + [True]) == [0, 4, 8, 9]


def test_words_alone_need_no_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "textblob", None)
    monkeypatch.setitem(sys.modules, "textblob.en", None)
    assert TextBlob(tags=False)("The old ship.").tags == [""] * 4
    with pytest.raises(UserError, match="pip install textblob"):
        TextBlob()


def test_stop_verbs_are_spacys():
    stop = pytest.importorskip("spacy.lang.en.stop_words").STOP_WORDS
    assert STOP_VERBS <= stop


def test_speed(tagger):
    """The bar is 20,000 words a second in one process; here some 110,000."""
    text = " ".join(w for s in SENTENCES for w, _ in s) + " "
    text = "".join(text.replace("the", f"the w{i}x") for i in range(60))  # no word is cached twice
    clock = time.perf_counter()
    got = tagger(text)
    assert len(got.spans) / (time.perf_counter() - clock) > 20_000


# ---- spaCy ---------------------------------------------------------------------------------------

# what stands for a tagger gives every word a tag, as taggers do
TAGS = [("new", "NNP", "PROPN"), ("york", "NNP", "PROPN"), ("is", "VBZ", "AUX")]
TAGS += [("sings", "VBZ", "VERB"), ("loud", "JJ", "ADJ"), (".", ".", "PUNCT")]


def pipeline(tags=TAGS):
    """A pipeline without weights: rules for single words, NN for all others."""
    model = pytest.importorskip("spacy").blank("en")
    model.add_pipe("sentencizer")  # stands for the parts that are not needed
    rules = model.add_pipe("attribute_ruler")
    if tags:
        rules.add([[{"TEXT": {"REGEX": "."}}]], {"TAG": "NN", "POS": "NOUN"})
    for text, tag, pos in tags:
        rules.add([[{"LOWER": text}]], {"TAG": tag, "POS": pos})
    model.meta |= {"name": "own", "version": "9.9"}
    return model


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder that Python imports from, with the package en_own, laid out as spaCy's are."""
    (tmp_path / "en_own").mkdir()
    pipeline().to_disk(tmp_path / "en_own/en_own-9.9")
    (tmp_path / "en_own/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "en_own", raising=False)  # of another test
    return tmp_path


def test_spacy_gives_words_tags_and_full_stops_of_the_exact_text(place):
    text = "New  York is, sings\n\nloud."
    for name in ("en_own", str(place / "en_own"), str(place / "en_own/en_own-9.9")):
        tagger = Spacy(name)
        assert tagger.model.pipe_names == ["attribute_ruler"]
        got = tagger(text)
        words = ["New", " ", "York", "is", ",", "sings", "\n\n", "loud", "."]
        assert [text[a:b] for a, b in got.spans] == words
        # the blank between them ends the first run of names; "is" is a stop word
        assert priorities(got.tags, got.stops) == [1, 3, 1, 7, 3, 4, 7, 5, 7]
        assert got.points == [False] * 8 + [True]
    assert len(tagger("a" * 1_000_001).spans) == 1  # above spaCy's own limit


def test_a_tagger_without_parts_of_speech_knows_full_stops(tmp_path):
    """A pipeline may end with its tagger; of random weights, as here, it tags all the same."""
    model = pytest.importorskip("spacy").blank("en")
    tagger = model.add_pipe("tagger")
    for tag in ("NN", "VB", "."):
        tagger.add_label(tag)
    model.initialize()
    model.to_disk(tmp_path)
    got = Spacy(str(tmp_path))("One. Two ... three")
    assert got.points == [False, True, False, False, False] and set(got.tags) <= {"NN", "VB", "."}


def test_what_a_pipeline_says_of_itself(place):
    version = pytest.importorskip("spacy").__version__
    assert pipeline_about("en_own") == {"spacy": version, "en_own": "9.9"}
    folder = str(place / "en_own")
    assert pipeline_about(folder) == {"spacy": version, "en_own": "9.9", "spacy_model": folder}


def no_spacy(name, function=Spacy):
    with pytest.raises(UserError, match=r"^tagger=spacy: .*; or --tagger=textblob, which") as got:
        function(name)
    assert "\n" not in str(got.value)
    return str(got.value)


def test_what_is_no_pipeline_is_one_line(place, monkeypatch):
    pipeline(tags=[]).to_disk(place / "blank")
    told = no_spacy(str(place / "blank"))
    assert "it does not tag words, for it consists of attribute_ruler" in told
    pytest.importorskip("spacy").blank("de").to_disk(place / "german")
    assert "for 'de', whose tags are others" in no_spacy(str(place / "german"), pipeline_about)
    for name in ("en_core_web_none", "./nowhere", "not-a-name", str(place / "none")):
        told = no_spacy(name, pipeline_folder)
        assert "neither an installed package nor a folder" in told
        assert f"python -m spacy download {name}" in told
    for name in ("json", "string"):  # packages and modules of other kinds
        assert f"{name}: no pipeline, for " in no_spacy(name, pipeline_folder)
    (place / "empty").mkdir()
    assert "has no config.cfg and meta.json" in no_spacy(str(place / "empty"), pipeline_folder)
    folder = place / "en_own/en_own-9.9"
    shutil.copytree(folder, place / "en_own/second")
    told = no_spacy("en_own", pipeline_folder)
    assert f"several pipelines, name one: {folder}, {place / 'en_own/second'}" in told
    (folder / "meta.json").write_text("{")
    assert "meta.json is not readable" in no_spacy(str(folder), pipeline_about)
    (folder / "config.cfg").write_text("[nlp]\n")
    assert "cannot be loaded" in no_spacy(str(folder))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install spacy; python -m spacy download en_core_web_md" in no_spacy(PACKAGE)
