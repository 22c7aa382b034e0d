"""Words, their Penn tags, and how important a word is by its tag: mode `constituency`.

Two taggers do this: spaCy's `en_core_web_md`, and rules with short word lists, which need nothing.
Both take a text and say where in it the words are, so that the text itself is never changed.
"""

import functools
import importlib.util
import re
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import english as en
from configurator import UserError, optional

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
