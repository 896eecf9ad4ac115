"""Show toxic text considerately: strong words keep their first letter, also where they are disguised.

Words are looked for in *readings* of a text, strings of small letters that know where each letter stood: the
text as it is, with look-alike letters made Latin, with digits and symbols read as letters, and with single
letters in a row joined. What is found is hidden in the text itself; all else stays to the character.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from confusable_homoglyphs.confusables import confusables_data

# What is masked: shown text is for illustration, scorers always see the original. Some stems are strong
# wherever they stand in a word; short ones, which many harmless words contain (class, cocktail, Dickens), in
# some forms only. Parentheses hold a condition, most often against a harmless word.
STRONG_STEMS = r"""
fuck s(?<![an]is)(?<![ck]us)(?<!iks)(?<!aks)(?<!yos)(?!hii+t(?:e|i|a))hit(?!ake|z|t*a\b)(?!(?<=[a-z]shit)a)
cunt(?!horpe) bitch bastard p(?<!octop)uss(?:y(?!cat|foot)|ies) whore slut(?!sk) faggot bollock twat(?!er|ch)
w(?<![chknst]w)ank(?!el|hede|lyn) p(?<!nip)(?<!tap)(?<!pap)(?!iissim)iss(?!ari?(?:r|d)) retard(?!ant)
n(?<!sn)igg(?=a(?!rd)|e+r|uh) trann(?=y|ies) k(?!i+kke)ike
"""
SHORT_STEMS = r"""
(?!aass\b)ass arse dick cock prick tits titties spic(?!e[sd]|ing|\sand\sspan) chink crap damn turd
f(?!agg(?:ed|ing)?\b)ag
"""
STRONG, SHORT = STRONG_STEMS.split(), SHORT_STEMS.split()
BEFORE = "dumb|jack|bad|smart|fat|lard|lazy|hard|kick|candy|god"
AFTER = "s|es|ed|ing|it|py|hat|hats|wipe|wipes|hole|holes|head|heads|face|sucker|suckers|sucking"

# A first name is one beside another name (Dick Cheney, Dick and Jane, Philip K. Dick), not in "You Dick".
_NAMED = re.compile(
    r"Dick(?:['’]s)?(?: (?:and|&|van|de))? "
    r"(?!(?:Head|Face|Move|Pic|Joke|I|You|He|She|It|We|They|The|And|But|Is|In|On|To|For|With)s?\b)"
    r"[A-Z](?:[a-z]+|\. [A-Z])"
)
_SURNAME = re.compile(
    r"\b(?!(?:An?|The|That|This|Those|These|My|Your?|His|Her|Our|Their|What|Such|And|Or|But|No|Big|Small|Fat|"
    r"Old|Huge|Tiny|Little|Total|Massive|Dumb|Stupid|Suck\w*|Eat\w*)\b)(?:[A-Z][a-z]+,?|[A-Z]\.) $"
)

# Digits and symbols that stand for letters; 1 is an i or an l (`_stretched`). A symbol does so within a word.
_SYMBOL = re.compile(r"[03-9]|\$(?!\d)|@(?=[\w$])|(?<=[\w$@.-])[!|(<#](?=[\w$@+.-])|(?<=[\w$@!])\+")
_MEANT = str.maketrans("03456789@$!|(<#+", "oeasgtbgas11ccht")
_DRAWN = dict(zip("ĸμцпεєß€£¢¥©®", "kuuneebelcycr", strict=True))  # not Latin in the library
_NAMED_LETTER = re.compile(
    r"(?:LATIN|INDICATOR|SQUARED) .*LETTER (?:(?:SMALL CAPITAL|DOTLESS|SCRIPT) )?([A-Z])(?: WITH .*)?$"
)
_EMPTY = "\u115f\u1160\u3164\u2800"  # letters and signs that show nothing
_JOINERS = "\u00ad\u200c\u200d\u2060"  # within a word; a zero-width space may also part two words
_UNUSUAL = re.compile(r"[^\t-\r -~]")

# Accents make other languages' words of some stems (guapíssima, dämning); in English, of whole words only.
_ACCENT = re.compile("[\u00c0-\u017f\u0388-\u0390\u03ac-\u03b0\u03cc-\u03ce]")
_ENDED = re.compile(rf"(?:ers?|e?d|in|t?y|{AFTER})?(?![^\W_])")
_BEGUN = re.compile(rf"(?<![^\W_])(?:{BEFORE}|mother|cluster|bull|horse|dip)?$")
_FOREIGN = ("ass", "arse", "damn", "spic")

# Single letters in a row, the same between all of them; more than one asterisk is a masked word's.
_ROW = re.compile(r"(?<![^\W_])(?<!\*)[^\W_]((?!\*\*)[\W_]{1,3})[^\W_](?:\1[^\W_])+(?![^\W_]|\*)")


def _loose(pattern: str) -> str:
    return re.sub("[il]", r"[\g<0>1]", pattern)


def _stretched(stem: str, first: str = "") -> str:
    """A stem's pattern with letters repeated (the first: as given), possessive so that it stays linear."""
    pieces = [match[0] for match in re.finditer(r"\((?:[^()]|\([^()]*\))*\)|([a-z])\1*", stem)]
    letters = [i for i, piece in enumerate(pieces) if piece[0] != "("]
    for i in letters:
        pieces[i] += first if i == letters[0] else "+?" if i == letters[-1] else "++"
    return _loose("".join(pieces))


_WORD = re.compile(f"(?P<stem>{'|'.join(map(_stretched, STRONG))})")
_FORM = re.compile(
    rf"(?<![^\W_])(?:{_loose(BEFORE)})?"
    rf"(?P<stem>{'|'.join(_stretched(stem, '++') for stem in SHORT)})"
    rf"(?:{_loose(AFTER)})?(?![^\W_])"
)


class _Reading(NamedTuple):
    """Small letters, and the place of each in the text."""

    letters: str
    at: Sequence[int]


def censored(text: str) -> str:
    """Replace all but the first letter of strong words by asterisks (``f***``); as long as before."""
    while (masked := _masked(text)) != text:  # what is hidden may show another word's end
        text = masked
    return text


def _masked(text: str) -> str:
    shown = list(text)
    for reading in _readings(text):
        for start, stop in _found(text, reading):
            shown[start + 1 : stop] = "*" * (stop - start - 1)
    return "".join(shown)


def _found(text: str, reading: _Reading) -> Iterator[tuple[int, int]]:
    for pattern in (_WORD, _FORM):
        for match in pattern.finditer(reading.letters):
            start, last = reading.at[match.start("stem")], reading.at[match.end("stem") - 1]
            whole = "".join(text[reading.at[i]] for i in range(*match.span()))
            if not (_number(whole) or _name(text, start, whole) or _foreign(text[start : last + 2], match)):
                yield start, last + 1


def _number(whole: str) -> bool:
    """Whether digits that were read as letters are digits after all: $455, the A55, an A5s."""
    digits = sum(map(str.isdigit, whole))
    return 2 * digits > len(whole) or (digits > 0 and len(whole) < 4 and not whole.islower())


def _name(text: str, start: int, whole: str) -> bool:
    beside = _NAMED.match(text, start) or _SURNAME.search(text[max(0, start - 24) : start])
    return whole == "Kiké" or (whole == "Dick" and beside is not None)


def _foreign(source: str, match: re.Match[str]) -> bool:
    """Whether a match without its source's accents is another language's word, not a disguised one."""
    letters, start, end = match.string, match.start(), match.end()
    if not _ACCENT.search(source) or _ACCENT.search(letters, start, end + 1):
        return False
    if match.re is _FORM:
        return match["stem"] in _FOREIGN
    return not (_BEGUN.search(letters[max(0, start - 10) : start]) and _ENDED.match(letters, end))


def _readings(text: str) -> Iterator[_Reading]:
    reading = _Reading(text.lower(), range(len(text)))
    if _UNUSUAL.search(text):
        yield _read(text, lambda char: "" if char in _JOINERS else char.lower()[0])
        reading = _read(text, _latin)
    yield reading
    letters = _SYMBOL.sub(lambda match: match[0].translate(_MEANT), reading.letters)
    if letters != reading.letters:
        yield _Reading(letters, reading.at)
    for row in _ROW.finditer(letters):
        places = [i for i in range(*row.span()) if letters[i].isalnum()]
        yield _Reading("".join(letters[i] for i in places), [reading.at[i] for i in places])


def _read(text: str, spell: Callable[[str], str]) -> _Reading:
    spelt = [spell(char) for char in text]
    return _Reading("".join(spelt), [i for i, letters in enumerate(spelt) for _ in letters])


@functools.cache
def _latin(char: str) -> str:
    """The small Latin letters that a character looks like; nothing for one without a look of its own."""
    return "".join(_look(part) for part in unicodedata.normalize("NFKD", char))


def _look(char: str) -> str:
    kind = unicodedata.category(char)
    if kind in ("Mn", "Me", "Cf") or char in _EMPTY or (kind == "Cc" and not char.isspace()):
        return ""
    if char.isascii():
        return char.lower()
    for like in (char, *(entry["c"][0] for entry in confusables_data.get(char, ()))):
        named = _NAMED_LETTER.search(unicodedata.name(like, ""))
        letter = _DRAWN.get(like) or (named[1] if named else like)
        if letter.isascii() and letter.isalpha():
            return "1" if letter == "l" and like != char else letter.lower()
    return char.lower()[0]
