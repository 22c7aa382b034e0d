"""Words, their Penn tags, and how important a word is by its tag: mode `constituency`.

Two taggers do this: a pipeline of spaCy, and TextBlob's pattern tagger, which needs no model. Both
take a text and say where in it the words are, so that the text itself is never changed.
"""

import importlib.util
import json
import math
import re
from collections import Counter
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Iterable, NamedTuple, Protocol

from configurator import UserError, optional, save_json

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
    """Interface of what finds the words of a text."""

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


def pipeline_folder(name: str) -> Path:
    """Where the pipeline `name` of spaCy lies: an installed package, a folder with config.cfg, or a
    folder with one such folder in it, as packages have. Imports nothing large. Raises UserError for
    what is none of these, and without spaCy."""
    get = f"python -m spacy download {name}"
    if importlib.util.find_spec("spacy") is None:
        raise UserError(_no_spacy(name, f"spacy is not installed: pip install spacy; {get}"))
    place = Path(name)
    if not place.is_dir():
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None:
            why = f"neither an installed package nor a folder; to install one of spaCy's: {get}"
            raise UserError(_no_spacy(name, why))
        place = Path(next(iter(spec.submodule_search_locations or ()), spec.origin or ""))
    files = [place / "config.cfg"]
    files = files if files[0].is_file() else sorted(place.glob("*/config.cfg"))
    found = [file.parent for file in files if (file.parent / "meta.json").is_file()]
    if len(found) > 1:
        raise UserError(
            _no_spacy(name, "several pipelines, name one: " + ", ".join(map(str, found)))
        )
    if not found:
        raise UserError(
            _no_spacy(name, f"no pipeline, for {place} has no config.cfg and meta.json")
        )
    return found[0]


def pipeline_about(name: str) -> dict[str, str]:
    """What the pipeline `name` says of itself, {language and name: version}, with spaCy's version
    and, if it is not called by its own name, where it is from. Raises as `pipeline_folder`, and for
    other languages than English, whose tags are no Penn tags."""
    path = pipeline_folder(name) / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        own = f"{meta['lang']}_{meta['name']}"
        about = {"spacy": version("spacy"), own: meta["version"]}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(_no_spacy(name, f"{path} is not readable ({type(e).__name__})")) from None
    if meta["lang"] != "en":
        raise UserError(_no_spacy(name, f"a pipeline for {meta['lang']!r}, whose tags are others"))
    # pipelines of one's own are often all called en_pipeline, 0.0.0
    return about if name == own else about | {"spacy_model": name}


def _no_spacy(name: str, why: str) -> str:
    return f"tagger=spacy: {name}: {why}; or --tagger=textblob, which gives other labels"


class Spacy:
    """The tags of a pipeline of spaCy, which has to give Penn tags, as its English ones do. What is
    slow and not needed for tags is not loaded. Raises UserError for a pipeline that cannot be
    loaded or does not tag."""

    needless = (
        *("parser", "ner", "senter", "sentencizer", "lemmatizer", "trainable_lemmatizer"),
        *("entity_ruler", "entity_linker", "spancat", "textcat", "textcat_multilabel"),
    )

    def __init__(self, name: str = PACKAGE):
        folder, spacy = pipeline_folder(name), optional("spacy")
        spacy.require_cpu()  # one process per core; a GPU would be shared by all of them
        try:
            if not Path(name).is_dir():
                importlib.import_module(name)  # may hold components of its own
            self.model: Any = spacy.load(folder, exclude=self.needless)
            self.model.max_length = 1 << 30  # the limit is for parser and entities, which are gone
            tagged = any(w.tag_ for w in self.model("The old ship reached Bergen."))
        except Exception as e:  # a pipeline is code of others as well as files
            why = f"{type(e).__name__}: {' '.join(str(e).split()):.100}"
            raise UserError(_no_spacy(name, f"cannot be loaded ({why})")) from e
        if not tagged:
            parts = ", ".join(self.model.pipe_names) or "nothing"
            raise UserError(_no_spacy(name, f"it does not tag words, for it consists of {parts}"))

    def __call__(self, text: str) -> Words:
        doc = self.model(text)
        return Words(
            [(w.idx, w.idx + len(w)) for w in doc],
            [w.tag_ for w in doc],
            [w.is_stop for w in doc],
            # without an attribute ruler a pipeline gives tags, but no parts of speech
            [w.text == "." and w.pos_ in ("PUNCT", "") for w in doc],
        )


# ---- TextBlob ------------------------------------------------------------------------------------

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
ENDS = (".", "!", "?")
CLOSING = ('"', "''", "'", ")", "”")
# the verbs among spaCy's stop words, in lower case
STOP_VERBS = frozenset(
    """
    'm 're 's 've am are be became become becomes becoming been being call did do does doing done
    get give go had has have is keep made make move name put regarding say see seem seemed seeming
    seems show take used using was were
    """.split()
)


class TextBlob:
    """TextBlob's pattern tagger (De Smedt and Daelemans 2012): a lexicon and rules of context. It
    gives 0.91 of 25,000 words of UD English-EWT the label that `priorities` gives their true tags.

    Without `tags` it only finds the words, which needs no library; their tags are empty.
    """

    def __init__(self, tags: bool = True):
        self.find_tags = optional("textblob.en", "textblob").parser.find_tags if tags else None

    def __call__(self, text: str) -> Words:
        matches = list(WORD.finditer(text))
        words = [m[0].replace("’", "'") for m in matches]
        gaps = (text[a.end() : b.start()] for a, b in pairwise(matches))
        starts = [True, *(gap.count("\n") > 1 for gap in gaps)][: len(words)]
        stops = [w.lower() in STOP_VERBS for w in words]
        return Words(
            [m.span() for m in matches], self.tag(words, starts), stops, [w == "." for w in words]
        )

    def tag(self, words: list[str], starts: list[bool]) -> list[str]:
        """Words (n,) of any number of sentences -> Penn tags (n,). `starts` marks words before
        which a line is empty, where a sentence begins whatever comes before."""
        if self.find_tags is None:
            return [""] * len(words)
        begins = [*sentences(words, starts), len(words)]
        return [
            tag for start, end in pairwise(begins) for _, tag in self.find_tags(words[start:end])
        ]


def sentences(words: list[str], starts: list[bool]) -> list[int]:
    """Starts of sentences: after . ! ? and the quotation marks and brackets that follow them."""
    begins, fresh = [], True
    for i, word in enumerate(words):
        if starts[i] or (fresh and (i == 0 or word not in (*CLOSING, *ENDS))):
            begins.append(i)
            fresh = False
        fresh = fresh or word in ENDS or set(word) <= {"!", "?"}
    return begins


# ==================================================================================================
# By closeness to the document
#
# Keywords: how close each word of a document is to the document as a whole, and what follows for
# the order in which a cascade writes them: modes `keybert` and `keybert_no_stopword`.
#
# Two scorers give the closeness of a word, a cosine: KeyBERT with a sentence encoder, and our own
# TF-IDF, which needs nothing but a table of how many documents a word is in and is another score,
# no stand-in. Both read the words of one document, in lower case and of at least two characters, as
# KeyBERT cuts them.
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
    indices = [i for i, term in enumerate(terms) if term in STOP_WORDS and term in table]
    if demote and indices:
        low, high = (f(scores[i] for i in indices) for f in (min, max))
        for i in indices:
            part = (scores[i] - low) / (high - low) if high > low else 0.5
            scores[i] = LOW + part * (HIGH - LOW)
    return [
        PERIOD if point and score == ABSENT else score
        for point, score in zip(points, scores, strict=True)
    ]


class Scorer(Protocol):
    """Interface of what scores how close the words of a document are to it."""

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
        counts = Counter(TERM.findall(" ".join(words).lower()))
        weights = {t: (1 + math.log(n)) * self.idf(t) for t, n in counts.items()}
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


class KeyBert:
    """KeyBERT's cosines, rounded to four decimals by it. `model` is the folder of a sentence
    encoder, or an object that KeyBERT takes for one. Note that a sentence encoder reads the
    beginning of a long document only (all-MiniLM-L6-v2: 256 word pieces)."""

    def __init__(self, model: Any):
        keybert = optional("keybert", "keybert sentence-transformers")
        if isinstance(model, Path):
            model = encoder(model)
        self.keybert = keybert.KeyBERT(model=model)

    def table(self, words: list[str]) -> dict[str, float]:
        """{word: cosine}; empty for a document without words of two letters."""
        # a document by itself, as a string: of a list of one, KeyBERT's answer is of another shape
        keywords = self.keybert.extract_keywords(
            " ".join(words),
            keyphrase_ngram_range=(1, 1),
            stop_words=None,
            top_n=max(1, len(words)),
        )
        return dict(keywords)


ENCODER = ("*.json", "*.txt", "*.model", "*.safetensors")  # files of a sentence encoder
INSTEAD = "give a folder, --scorer=FOLDER, or --scorer=tfidf, which is another score"


def encoder_folder(name: str, cache: str = "") -> Path:
    """The folder of the sentence encoder `name`: a folder, or an id of the hub, which is fetched
    into `cache` (empty: the library's own place) if it is not there. Raises UserError for what is
    neither, without a network, and without the libraries, none of which it imports."""
    for library in ("keybert", "sentence_transformers"):
        if importlib.util.find_spec(library) is None:
            raise UserError(
                f"scorer: {library} is not installed: pip install keybert sentence-transformers; "
                "or --scorer=tfidf, which is another score"
            )
    folder = Path(name)
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise UserError(f"scorer: no folder {name}; {INSTEAD}")
        hub, place = optional("huggingface_hub"), cache or None
        source = name if "/" in name else f"sentence-transformers/{name}"
        try:
            for files in (ENCODER, (*ENCODER, "*.bin")):
                folder = Path(hub.snapshot_download(source, cache_dir=place, allow_patterns=files))
                if list(folder.rglob("*.safetensors")):  # else it was published before safetensors
                    break
        except Exception as e:  # the hub raises many types
            raise UserError(
                f"scorer: the encoder {name} is not on this machine and could not be fetched "
                f"({type(e).__name__}); run it once with a network, or {INSTEAD}"
            ) from e
    if not (folder / "modules.json").is_file():  # without, a mean of any network would be taken
        raise UserError(f"scorer: {name} is no sentence encoder, without modules.json; {INSTEAD}")
    return folder


def encoder(folder: Path) -> Any:
    """The sentence encoder in a folder, on the CPU. Raises UserError if it cannot be loaded."""
    transformers = optional("sentence_transformers", "sentence-transformers")
    try:
        return transformers.SentenceTransformer(str(folder), device="cpu")
    except Exception as e:  # those of three libraries
        why = " ".join(str(e).split())[:100] or type(e).__name__
        raise UserError(f"scorer: {folder} cannot be loaded ({why}); {INSTEAD}") from e
