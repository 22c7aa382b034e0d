"""Words, their Penn tags, and how important a word is by its tag: mode `constituency`.

Two taggers do this: spaCy's `en_core_web_md`, and rules with short word lists, which need nothing.
Both take a text and say where in it the words are, so that the text itself is never changed.
"""

import functools
import importlib.util
import json
import math
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, Iterable, NamedTuple, Protocol

from configurator import UserError, optional, save_json
from prepare import english as en

# ==================================================================================================
# By tag
# ==================================================================================================


PACKAGE = "en_core_web_md"


class Words(NamedTuple):
    """The n words of a text."""

    spans: list[tuple[int, int]]  # of characters, in order, without overlap
    tags: list[str]  # Penn tags
    stops: list[bool]  # is it a stop word
    points: list[bool]  # is it a full stop


class Tagger(Protocol):
    """Anything that finds the words of a text."""

    def __call__(self, text: str) -> Words: ...


def priorities(tags: list[str], stops: list[bool]) -> list[int]:
    """Penn tags (n,) and stop-word flags (n,) -> labels (n,), 1 = most important.

    1 proper noun at the end of a run of them, 2 within one, 3 noun, 4 verb that is no stop word,
    5 adjective, 6 adverb, 7 everything else. The rules of the cascade's original.
    """
    assert len(tags) == len(stops), (len(tags), len(stops))
    labels = []
    for tag, following, stop in zip(tags, [*tags, ""][1:], stops, strict=True):
        if tag in ("NNP", "NNPS"):
            labels.append(2 if following in ("NNP", "NNPS") else 1)
        elif tag in ("NN", "NNS"):
            labels.append(3)
        elif tag.startswith("VB") and not stop:
            labels.append(4)
        else:
            labels.append({"JJ": 5, "RB": 6}.get(tag[:2], 7))
    return labels


# ---- spaCy ---------------------------------------------------------------------------------------


def absent_spacy() -> str:
    """Why `Spacy()` cannot be had, or ''. Imports nothing large."""
    if importlib.util.find_spec("spacy") is None:
        return f"spacy is not installed: pip install spacy; python -m spacy download {PACKAGE}"
    if importlib.util.find_spec(PACKAGE) is None:
        return f"{PACKAGE} is not installed: python -m spacy download {PACKAGE}"
    return ""


class Spacy:
    """spaCy's tags. Only the parts that tags need are loaded: no parser, entities or lemmas."""

    parts = ("tok2vec", "tagger", "attribute_ruler")

    def __init__(self):
        if why := absent_spacy():
            raise UserError(f"tagger=spacy: {why}")
        spacy = optional("spacy")
        spacy.require_cpu()  # one process per core; a GPU would be shared by all of them
        self.model: Any = spacy.load(PACKAGE)
        for name in set(self.model.pipe_names) - set(self.parts):
            self.model.remove_pipe(name)
        self.model.max_length = 1 << 30  # the limit is for parser and entities, which are gone

    def __call__(self, text: str) -> Words:
        found = self.model(text)
        return Words(
            [(w.idx, w.idx + len(w)) for w in found],
            [w.tag_ for w in found],
            [w.is_stop for w in found],
            [w.text == "." and w.pos_ == "PUNCT" for w in found],
        )


# ---- rules ---------------------------------------------------------------------------------------

WEB = re.compile(r"(?:https?://|www\.)\S+|[\w.+-]+@[\w-]+\.[\w.-]+|\w+\.(?:com|org|net|edu|gov)")


WORD = re.compile(
    r"""(?:https?://|www\.)[^\s<>"]+[^\s<>".,;:!?)\]}']      # addresses
    |[\w.+-]+@[\w-]+(?:\.[\w-]+)+
    |(?:[a-z]\.){2,}                                        # U.S.
    |\b(?:mr|mrs|ms|dr|prof|st|jr|sr|inc|corp|co|ltd|vs|etc|(?-i:[A-HJ-Z]))\.  # Dr., an initial
    |\d+(?:[.,:/]\d+)*(?:(?:st|nd|rd|th|s)\b)?              # 3.50, 10:30, 1990s
    |(?:ca|wo|do|does|did|is|are|was|were|has|have|had|could|would|should|might|must|need)
     (?=n['’]t\b)
    |n['’]t\b|['’](?:s|m|d|re|ve|ll)\b                      # contractions
    |\w+(?:&\w+)*                                           # plain words, AT&T
    |([^\w\s])\1*                                           # runs of one mark
    """,
    re.X | re.I,
)


ADJECTIVE_ENDINGS = tuple(
    "ous ful less able ible ive ish ic ical ary ian est ese ial ual nal ral tal cal gal mal ent "
    "ant like some wide".split()
)


NOUN_ENDINGS = tuple(
    "ment tion sion ness ance ence ship hood ism ist age ant ure ity logy ee or".split()
)


VERB_ENDINGS = ("ize", "ise", "ify", "ate")
DEMONYM_ENDINGS = ("ese", "ish", "ian", "ean", "eli", "ican")  # Chinese, Danish, Syrian, Korean
ENDS = (".", "!", "?")
CLOSING = ('"', "''", "'", ")", "”")


class Rules:
    """Tags by lists, endings and neighbours."""

    version = "1"  # to be raised with every change of a tag

    def __call__(self, text: str) -> Words:
        found = list(WORD.finditer(text))
        words = [m[0].replace("’", "'") for m in found]
        gaps = (text[a.end() : b.start()] for a, b in pairwise(found))
        starts = [True, *(gap.count("\n") > 1 for gap in gaps)][: len(words)]
        tags = tag(words, starts)
        stops = [w.lower() in en.STOP_VERBS for w in words]
        return Words([m.span() for m in found], tags, stops, [w == "." for w in words])


def tag(words: list[str], starts: list[bool] | None = None) -> list[str]:
    """Words (n,) of one or more sentences -> Penn tags (n,), of which those that `priorities` tells
    apart are NNP, NN, VB, JJ and RB; the rest are CD or X. `starts` marks words before which a line
    is empty, where a sentence begins whatever comes before."""
    begins = [*sentences(words, starts or [False] * len(words)), len(words)]
    tags: list[str] = []
    for start, end in pairwise(begins):
        tags += tag_sentence(words[start:end])
    return tags


def sentences(words: list[str], starts: list[bool]) -> list[int]:
    """Where sentences begin: after . ! ? and the quotation marks and brackets that follow them."""
    begins, fresh = [], True
    for i, word in enumerate(words):
        if starts[i] or (fresh and (i == 0 or word not in (*CLOSING, *ENDS))):
            begins.append(i)
            fresh = False
        fresh = fresh or word in ENDS or set(word) <= {"!", "?"}
    return begins


def tag_sentence(words: list[str]) -> list[str]:
    """Tags of one sentence: names first, then from left to right."""
    lower = [w.lower() for w in words]
    kinds = [kind(w) for w in lower]
    letters = "".join(words)
    shouted = sum(map(str.isupper, letters)) > 0.6 * max(1, sum(map(str.isalpha, letters)))
    first = next((i for i, w in enumerate(words) if w[:1].isalpha()), 0)
    tags: list[str] = []
    for i, word in enumerate(words):
        after = words[i + 1] if i + 1 < len(words) else ""
        if word[0].isupper() and is_name(word, kinds[i], after, shouted, i == first):
            tags.append("NNP")
        else:
            tags.append(_tag(i, lower, kinds, tags))
    return tags


def is_name(word: str, name: str, after: str, shouted: bool, first: bool) -> bool:
    """Is a capitalised word of kind `name` a name? `after` follows it; it is the `first` of its
    sentence, which is mostly in capitals if it is `shouted`."""
    low = word.lower()
    if name in ("X", "F", "CD", "RB"):
        return False
    if low in en.DATES or low in en.TITLES:
        return True
    demonym = low in en.ADJECTIVES and low.endswith(DEMONYM_ENDINGS)
    if shouted or demonym or word in en.ACRONYMS:
        return False
    if not first or (word.isupper() and len(word) > 1):
        return True
    if name == "NN?" and not low.endswith("s"):  # no list has it, and it is no plural
        return True
    return after[:1].isupper() and kind(after.lower()) not in ("X", "F", "CD", "RB")


@functools.lru_cache(1 << 16)
def kind(word: str) -> str:
    """What a lower-case word is by itself: X no word, F function word, CD, RB, JJ, NN; or a verb, V
    by itself, VS with -s, VED, VING; VN and VNS may be nouns as well; V? and NN? are guesses."""
    if not any(c.isalnum() for c in word):
        return "NN" if word == "%" else "X"
    if WEB.fullmatch(word) or re.fullmatch("-[lr][rsc]b-", word):  # brackets in Penn's spelling
        return "X"
    if word[0].isdigit() or word in en.NUMBERS:
        return "JJ" if word.endswith(("st", "nd", "rd", "th")) else "CD"
    lists = {
        "F": en.FUNCTION,
        "RB": en.ADVERBS,
        "NN": en.NOUNS,
        "JJ": en.ADJECTIVES,
        "VED": en.IRREGULAR,
        "V": en.VERBS,
        "VN": en.EITHER,
    }
    listed = next((name for name, words in lists.items() if word in words), None)
    if not listed and word in en.STOP_VERBS:
        listed = "V"
    if not listed and word.endswith("ly") and len(word) > 4:
        listed = {"VB": "V"}.get(en.LY.get(word, "RB"), en.LY.get(word, "RB"))
    return listed or _by_ending(word)


def _by_ending(word: str) -> str:
    """`kind` of a word that is in no list."""
    if len(word) > 4 and word.endswith(("ing", "ed")):
        return "VING" if word.endswith("ing") else "VED"
    bases = [word[:-1], word[:-2] if word.endswith("es") else "", word[:-3] + "y"]
    if word.endswith("s"):
        bases = bases if word.endswith("ies") else bases[:2]
        if any(base in en.VERBS for base in bases):
            return "VS"
        if any(base in en.EITHER for base in bases):
            return "VNS"
    if len(word) > 5 and word.endswith(NOUN_ENDINGS):
        return "NN"
    if len(word) > 4 and word.endswith(ADJECTIVE_ENDINGS):
        return "JJ"
    return "V?" if len(word) > 5 and word.endswith(VERB_ENDINGS) else "NN?"


def _tag(i: int, lower: list[str], kinds: list[str], tags: list[str]) -> str:
    """The tag of word i, which is no name; `tags` are those of the words before it."""
    name, before = kinds[i], lower[i - 1] if i else ""
    following = kinds[i + 1] if i + 1 < len(kinds) else "X"
    if name in ("CD", "RB", "NN", "JJ"):
        return name
    if name in ("X", "F"):
        place = lower[i] == "there" and (following in ("X", "F") or before in en.PREPOSITIONS)
        return "RB" if place else "X"
    determined = before in en.DETERMINERS
    if name == "VED":  # "the proposed plan"
        return "JJ" if determined and following in ("NN", "NN?", "VN") else "VB"
    after = lower[i + 1] if i + 1 < len(lower) else ""
    if name == "VING":
        return "NN" if determined or after == "of" else "VB"
    adjective = bool(i) and tags[-1] == "JJ"
    if name == "V":
        return "NN" if determined or adjective else "VB"
    nominal = determined or adjective or before in en.PREPOSITIONS
    if name in ("VS", "V?"):
        return "NN" if nominal else "VB"
    return "VB" if _as_verb(i, lower, tags, nominal, name, after) else "NN"


def _as_verb(
    i: int, lower: list[str], tags: list[str], nominal: bool, name: str, after: str
) -> bool:
    """Is word i, noun or verb by itself or unknown, a verb here?"""
    last = tags[-1] if tags else ""
    before = lower[i - 1] if i else ""
    if name == "NN?":  # only where nothing else can be
        return before in ("to", "n't", "not", "i", "we", "they", "you")
    if last == "RB" and not nominal and i > 1:  # "they often work"
        before = lower[i - 2] if before not in en.MODALS else before
    if before in en.MODALS or before in en.SUBJECTS:
        return True
    if i == 0:  # "check the list"
        return after in en.DETERMINERS or after in en.OBJECTS
    if name == "VNS" and before in ("which", "that", "who"):
        return True
    return name == "VNS" and last in ("NNP", "NN") and after in en.DETERMINERS


# ==================================================================================================
# By closeness to the document
#
# Keywords: how close each word of a document is to the document as a whole, and what follows for
# the order in which a cascade writes them: modes `keybert` and `keybert_no_stopword`.
#
# Two scorers give the closeness of a word, a cosine: KeyBERT with a sentence encoder, and our own
# TF-IDF, which needs nothing but a table of how many documents a word is in. Both read the words
# of one document, in lower case and of at least two characters, as KeyBERT cuts them.
# ==================================================================================================


ABSENT, PERIOD = -1.2, 1.1  # of a word that no scorer knows, and of a full stop
LOW, HIGH = -1.1, -1.0  # where the stop words of a document go
TERM = re.compile(r"\b\w\w+\b")  # what scikit-learn and so KeyBERT take for a word
MINILM = "all-MiniLM-L6-v2"
# scikit-learn's ENGLISH_STOP_WORDS, which the original asks, with their spelling
STOP_WORDS = frozenset(
    """
    a about above across after afterwards again against all almost alone along already also
    although always am among amongst amoungst amount an and another any anyhow anyone anything
    anyway anywhere are around as at back be became because become becomes becoming been before
    beforehand behind being below beside besides between beyond bill both bottom but by call can
    cannot cant co con could couldnt cry de describe detail do done down due during each eg
    eight either eleven else elsewhere empty enough etc even ever every everyone everything
    everywhere except few fifteen fifty fill find fire first five for former formerly forty
    found four from front full further get give go had has hasnt have he hence her here
    hereafter hereby herein hereupon hers herself him himself his how however hundred i ie if in
    inc indeed interest into is it its itself keep last latter latterly least less ltd made many
    may me meanwhile might mill mine more moreover most mostly move much must my myself name
    namely neither never nevertheless next nine no nobody none noone nor not nothing now nowhere
    of off often on once one only onto or other others otherwise our ours ourselves out over own
    part per perhaps please put rather re same see seem seemed seeming seems serious several she
    should show side since sincere six sixty so some somehow someone something sometime
    sometimes somewhere still such system take ten than that the their them themselves then
    thence there thereafter thereby therefore therein thereupon these they thick thin third this
    those though three through throughout thru thus to together too top toward towards twelve
    twenty two un under until up upon us very via was we well were what whatever when whence
    whenever where whereafter whereas whereby wherein whereupon wherever whether which while
    whither who whoever whole whom whose why will with within without would yet you your yours
    yourself yourselves
    """.split()
)


def word_scores(
    words: list[str], points: list[bool], table: dict[str, float], demote: bool
) -> list[float]:
    """Words (n,) of a document, which of them are full stops (n,), {word: cosine} -> scores (n,).

    A word has the cosine of its lower-case form without final punctuation; one that is not in the
    table has -1.2, a full stop 1.1. With `demote` (mode keybert_no_stopword) the stop words that
    have a cosine are brought to [-1.1, -1.0], so that they come after all others. The rules of the
    cascade's original; without `demote` they are our reading of its mode keybert, which was never
    published.
    """
    assert len(words) == len(points), (len(words), len(points))
    terms = [w.rstrip(".,;:!?").lower() for w in words]
    scores = [table.get(term, ABSENT) for term in terms]
    known = [i for i, term in enumerate(terms) if term in STOP_WORDS and term in table]
    if demote and known:
        least, most = (f(scores[i] for i in known) for f in (min, max))
        for i in known:
            part = (scores[i] - least) / (most - least) if most > least else 0.5
            scores[i] = LOW + part * (HIGH - LOW)
    return [
        PERIOD if point and score == ABSENT else score
        for point, score in zip(points, scores, strict=True)
    ]


class Scorer(Protocol):
    """Anything that says how close the words of a document are to it."""

    def table(self, words: list[str]) -> dict[str, float]: ...


# ---- TF-IDF ------------------------------------------------------------------------------------


class TfIdf:
    """Cosine of a document and one of its words in the space of TF-IDF, (1 + ln tf) idf, in [0, 1].
    `counts` says in how many of `documents` a word is; a word that is in none of them, or was only
    in one and so left out, counts as rare as can be: its idf is the largest."""

    def __init__(self, documents: int, counts: dict[str, int]):
        self.documents, self.counts = documents, counts

    @classmethod
    def fit(cls, texts: Iterable[str]) -> "TfIdf":
        """From documents."""
        number, counts = 0, Counter()
        for text in texts:
            number += 1
            counts.update(set(TERM.findall(text.lower())))
        return cls(number, {w: c for w, c in sorted(counts.items()) if c > 1})

    def idf(self, term: str) -> float:
        """ln((1 + documents) / (1 + documents with the term)) + 1, as scikit-learn smooths it."""
        return math.log((1 + self.documents) / (1 + self.counts.get(term, 1))) + 1

    def table(self, words: list[str]) -> dict[str, float]:
        """{word: cosine}."""
        found = Counter(TERM.findall(" ".join(words).lower()))
        weights = {t: (1 + math.log(n)) * self.idf(t) for t, n in found.items()}
        norm = math.sqrt(sum(w * w for w in weights.values()))
        return {t: min(1.0, w / norm) for t, w in weights.items()}

    def save(self, path: Path) -> None:
        save_json({"documents": self.documents, "counts": self.counts}, path)

    @classmethod
    def read(cls, path: Path) -> "TfIdf":
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            return cls(kept["documents"], kept["counts"])
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(f"{path} is not readable ({e}); remove its folder") from None


# ---- KeyBERT -----------------------------------------------------------------------------------


class MiniLM:
    """KeyBERT's cosines, rounded to four decimals by it. `model` is a name, a folder, or an object
    that KeyBERT takes for an encoder. Note that a sentence encoder reads the beginning of a long
    document only (all-MiniLM-L6-v2: 256 word pieces)."""

    def __init__(self, model: Any = MINILM):
        keybert = optional("keybert", "keybert sentence-transformers")
        if isinstance(model, str):
            model = encoder(model)
        self.keybert = keybert.KeyBERT(model=model)

    def table(self, words: list[str]) -> dict[str, float]:
        """{word: cosine}; empty for a document without words of two letters."""
        # a document by itself, as a string: of a list of one, KeyBERT's answer is of another shape
        found = self.keybert.extract_keywords(
            " ".join(words),
            keyphrase_ngram_range=(1, 1),
            stop_words=None,
            top_n=max(1, len(words)),
        )
        return dict(found)


def encoder(name: str) -> Any:
    """The sentence encoder `name`, on the CPU. Raises UserError if it cannot be had."""
    transformers = optional("sentence_transformers", "sentence-transformers")
    try:
        return transformers.SentenceTransformer(name, device="cpu")
    except Exception as e:  # those of the hub and of three libraries
        why = " ".join(str(e).split())[:100] or type(e).__name__
        raise UserError(
            f"scorer=minilm: {name} cannot be loaded ({why}); run it once with a network, or give "
            "a folder with the model, --kw_model=FOLDER, or --scorer=tfidf"
        ) from e


def absent_minilm(model: str) -> str:
    """Why `MiniLM(model)` cannot be had without a download, or ''. Imports nothing large."""
    for name in ("keybert", "sentence_transformers"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed (pip install keybert sentence-transformers)"
    if Path(model).is_dir():
        return ""
    hub = optional("huggingface_hub")
    names = (model,) if "/" in model else (f"sentence-transformers/{model}", model)
    found = (hub.try_to_load_from_cache(n, "config.json") for n in names if "/" in n)
    return (
        ""
        if any(isinstance(f, str) for f in found)
        else f"{model} is not on this machine (--scorer=minilm fetches it)"
    )
