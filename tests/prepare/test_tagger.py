"""Tags and labels: the rules of the labels, the words of a text, TextBlob's tagger on sentences
that we tagged ourselves, and spaCy's on a pipeline without weights."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configurator import UserError
from prepare.documents import WORST_LABEL
from prepare.importance import STOP_VERBS, TextBlob, absent_spacy, priorities, sentences

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

PIPELINE = """
    import spacy

    def load(**options):
        model = spacy.blank("en")
        model.add_pipe("sentencizer")  # stands for the parts that are not needed
        ruler = model.add_pipe("attribute_ruler")
        for text, tag, pos in TAGS:
            attrs = {"TAG": tag, "POS": pos}
            ruler.add([[{"LOWER": text}]], attrs)
        model.meta["version"] = "9.9"
        return model

    TAGS = [("new", "NNP", "PROPN"), ("york", "NNP", "PROPN"), ("is", "VBZ", "AUX"),
            ("sings", "VBZ", "VERB"), ("loud", "JJ", "ADJ"), (".", ".", "PUNCT")]
"""


@pytest.fixture
def model_package(tmp_path):
    """A package en_core_web_md that spaCy takes for the real one."""
    pytest.importorskip("spacy")
    for name, text in {
        "en_core_web_md/__init__.py": textwrap.dedent(PIPELINE),
        "en_core_web_md-9.9.dist-info/METADATA": "Metadata-Version: 2.1\nName: en_core_web_md\n"
        "Version: 9.9\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def run_python(code, folder):
    setup = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(Path(__file__).parents[2])!r}]\n"
    command = [sys.executable, "-c", setup + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_spacy_gives_words_tags_and_full_stops_of_the_exact_text(model_package):
    out = run_python(
        """
        from prepare.importance import Spacy, absent_spacy, priorities
        assert absent_spacy() == ""
        tagger = Spacy()
        assert tagger.model.pipe_names == ["attribute_ruler"]
        text = "New  York is, sings\\n\\nloud."
        found = tagger(text)
        print([text[a:b] for a, b in found.spans])
        print(priorities(found.tags, found.stops), found.points)
        assert len(tagger("a" * 1_000_001).spans) == 1  # above spaCy's own limit
        """,
        model_package,
    )
    words, rest = out.splitlines()
    assert words == str(["New", " ", "York", "is", ",", "sings", "\n\n", "loud", "."])
    # the blank between them ends the first run of names; "is" is a stop word
    assert rest.startswith("[1, 7, 1, 7, 7, 4, 7, 5, 7]")
    assert rest.endswith(str([False] * 8 + [True]))


def test_spacy_without_its_model_is_one_line(monkeypatch):
    from prepare.importance import Spacy

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if "core" in name else name)
    assert "python -m spacy download en_core_web_md" in absent_spacy()
    with pytest.raises(UserError, match="python -m spacy download en_core_web_md"):
        Spacy()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install spacy" in absent_spacy()
