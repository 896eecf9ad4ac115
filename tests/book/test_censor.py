"""Disguised strong words are masked, harmless look-alikes are not; nothing else of a text changes."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion.book.censor import SHORT, STRONG, censored


def word(stem: str) -> str:
    """A strong word of a stem: what the stem's conditions ask for stands after it."""
    bare = re.sub(r"\((?:[^()]|\([^()]*\))*\)", "", stem)
    return next(bare + end for end in ("", "y", "er") if censored(bare + end) != bare + end)


WORDS = [word(stem) for stem in (*STRONG, *SHORT)]
NUMBERED = pytest.mark.parametrize("number", range(len(WORDS)))  # ids without words

CYRILLIC = str.maketrans("aceikopsxyt", "асеікорѕхут")
FULLWIDTH = {i: i + 0xFEE0 for i in range(ord("a"), ord("z") + 1)}
BOLD = {i: 0x1D41A + i - ord("a") for i in range(ord("a"), ord("z") + 1)}
CAPITALS = str.maketrans("abcdefghiklmnoprtuw", "ᴀʙᴄᴅᴇꜰɢʜɪᴋʟᴍɴᴏᴘʀᴛᴜᴡ")
SYMBOLS = str.maketrans("as", "@$")


def digit(word: str) -> str:
    """A word with a digit for its first vowel."""
    return re.sub("[aeio]", lambda m: dict(zip("aeio", "4310", strict=True))[m[0]], word, count=1)


DISGUISES = {
    "first stretched": lambda w: re.sub("([aeiou])", r"\1\1\1\1", w, count=1),
    "all stretched": lambda w: "".join(c * 3 for c in w[:-1]) + w[-1],
    "end stretched": lambda w: w + w[-1] * 4,
    "symbols": lambda w: w.translate(SYMBOLS),
    "inner mark": lambda w: w[0] + w[1:-1].replace("i", "!") + w[-1],
    "digit": digit,
    "l as 1": lambda w: w.replace("l", "1"),
    "dots": ".".join,
    "dashes": "-".join,
    "spaces": " ".join,
    "wide": "  ".join,
    "underscores": "_".join,
    "stars": "*".join,
    "emoji": "🔥".join,
    "lines": "\n".join,
    "zero-width": "\u200b".join,
    "soft hyphens": "\u00ad".join,
    "joiners": "\u2060".join,
    "control": "\x00".join,
    "strokes": lambda w: "".join(c + "\u0337\u0336" for c in w),
    "cyrillic": lambda w: w.translate(CYRILLIC),
    "one cyrillic": lambda w: w[0] + w[1:].translate(CYRILLIC),
    "fullwidth": lambda w: w.translate(FULLWIDTH),
    "bold": lambda w: w.translate(BOLD),
    "small capitals": lambda w: w.translate(CAPITALS),
    "squared": lambda w: "".join(chr(0x1F170 + ord(c) - ord("a")) for c in w),
    "spaced and swapped": lambda w: " ".join(digit(w).translate(CYRILLIC)),
    "upper": str.upper,
    "emphasis": lambda w: f"_{w}_",
}


@NUMBERED
@pytest.mark.parametrize("name", DISGUISES)
def test_disguised_words_are_masked(name, number):
    disguised = DISGUISES[name](WORDS[number])
    for before, after in (("", ""), ("You ", ", you!"), ("«", "»"), ("so, ", "!!! 10% of 455")):
        masked = censored(before + disguised + after)
        assert len(masked) == len(before + disguised + after), "length"
        assert masked.startswith(before) and masked.endswith(after), "text beside it"
        inside = masked[len(before) : len(masked) - len(after)]
        assert inside != disguised and "**" in inside, "not masked"
        assert re.match(r"_?(.)\1*\*\*", inside), "its first letter is shown"
        assert censored(masked) == masked, "masked anew"


HARMLESS = """
Scunthorpe|Essex|Sussex|cocktail|therapist|analysis|assassin|class|Dickens|Dick Cheney|Dick Cheney's war
Dick Van Dyke|Dick van Dyke|Moby Dick|Philip K. Dick wrote it|Dick and Jane|Tom, Dick and Harry|Cressida Dick
Yamashita|Yoshito|Nishitani|Lifshitz|Dikshit|Kushite|Peshitta|Octopussy|Nipissing|Nwankwo|tapisserie|spiced
Kiké Hernández|Cockburn|Hancock|shiitake|Shiite|Shiites|Titus|titian|Penistone|Lightwater|snigger|niggle
niggardly|scrap|Matsushita|pass|grass|bass|assume|cassette|Arsenal|arsenic|parse|spice|suspicion|document
circumstance|basement|wristwatch|push it|as s|a ss|Pakistan|Sh!ne|B.A.S.S.|U.S.S.R.|455|5417|$455|$5.50
4/5/2017|2017-05-04|5,417|the A55|AS5|Oppo A5s|F4G|S3|555-5477|https://www.scunthorpe.gov.uk/essex?id=455#class|b@ss
cl\u00adass|as\u00adsess|Scunt\u00adhorpe|analyze|Wow!|hit!t|f*ck|f*cking|s**t|sh#t happens at 5|1.5.5
a, b, c|A. B. C.
guapíssima|dämning|Wańkowicz|kiképzés|špic|τουρκικές|плебисцит|πέμπτη|Kikker|Kikkoman|spic and span|fagged out
s.h.e|I.T.|C+ + C|x<y(z|as[0]|as(s)|$a$|print(x)|10% off!|🇺🇸🇫🇷|ﬁrst class|™|你好|e.g. this|a s a p|r a s p
"""


@pytest.mark.parametrize("text", re.split(r"[|\n]", HARMLESS.strip()))
def test_harmless_look_alikes_stay(text):
    for form in (text, f"the {text}, then", f"({text})", f"{text}\n{text}"):
        assert censored(form) == form


@pytest.mark.parametrize("start", ["You ", "your ", "what a ", "You stupid ", "Suck My ", "Such A "])
def test_a_capital_alone_makes_no_name(start):
    stem = next(stem for stem in SHORT if stem[:2] == "di")
    for insult in (stem, stem.capitalize(), stem.upper(), stem + "head", f"{stem.capitalize()} Head"):
        assert censored(start + insult) != start + insult


def test_a_name_beside_a_strong_word_is_masked_once_and_for_all():
    name, strong = "Dick", WORDS[0].capitalize()
    for text in (f"{name} {strong}", f"{strong} {name}", f"{name} {strong[0]}.{strong[1:]}"):
        masked = censored(text)
        assert censored(masked) == masked


PARTS = st.one_of(
    st.sampled_from(
        [*WORDS, *(f(w) for f in DISGUISES.values() for w in WORDS[::3]), "Dick Cheney", "class"]
    ),
    st.text("aàsSаhit5$@!1.*_- \u200b\u0337ﬀ🇦", max_size=12),
    st.text(max_size=12),
)


@given(st.lists(PARTS, max_size=8), st.sampled_from(["", " ", ".", "*", "\n"]))
def test_any_text_keeps_its_length_and_is_masked_once(parts, joint):
    text = joint.join(parts)
    masked = censored(text)
    assert len(masked) == len(text) and all(a in (b, "*") for a, b in zip(masked, text, strict=True))
    assert censored(masked) == masked


@given(st.sampled_from(WORDS), st.sampled_from(sorted(DISGUISES)), st.text("abc xyz,.'\n", max_size=20))
def test_text_around_a_masked_word_is_untouched(strong, name, around):
    disguised = DISGUISES[name](strong)
    text = f"{around}\n--- {disguised} ---\n{around}"
    masked = censored(text)
    assert masked.startswith(f"{around}\n--- ") and masked.endswith(f" ---\n{around}")


SLOW = [
    "f",
    "fu",
    "a",
    "as",
    "a ",
    "s.",
    "5",
    "$",
    "!",
    "*",
    "i1",
    "u\u200b",
    "аs",
    "Dick ",
    "A. ",
    "_",
    " ",
    "aà",
]


@pytest.mark.parametrize("number", range(len(SLOW) + 2))
def test_time_is_linear(number):
    unit = [*SLOW, WORDS[0], WORDS[0] + " "][number]

    def seconds(n):
        start = time.process_time()
        censored(unit * (n // len(unit)))
        return time.process_time() - start

    seconds(1000)
    assert seconds(100_000) < 2.0  # a quadratic search takes minutes
