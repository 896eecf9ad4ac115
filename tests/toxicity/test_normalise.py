"""Normalisation before scoring: disguises are undone, honest text of any language stays what it is."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from companion.toxicity.normalise import normalised

# The longest decomposition in Unicode: one Arabic ligature stands for a phrase of 18 characters.
LONGEST = max(len(unicodedata.normalize("NFKC", chr(code))) for code in range(0x11_0000))
# Combining marks are left out where a second pass may compose what the first made Latin.
UNMARKED = st.text(st.characters(exclude_categories=("Cs", "Mn", "Mc", "Me"), exclude_characters="&＆﹠"))


@pytest.mark.parametrize(
    ("disguised", "seen"),
    [
        ("fish &amp; chips", "fish & chips"),
        ("it&#39;s &quot;fine&quot;", 'it\'s "fine"'),
        ("you&#8217;re &lt;3", "you’re <3"),
        ("no&nbsp;way", "no way"),
        ("&amp;lt;", "&lt;"),  # once, as a browser does: a text may be about entities
    ],
)
def test_entities_are_resolved(disguised, seen):
    assert normalised(disguised) == seen


@pytest.mark.parametrize(
    ("disguised", "seen"),
    [
        ("ｉｄｉｏｔ", "idiot"),
        ("𝐢𝐝𝐢𝐨𝐭", "idiot"),
        ("ⓘⓓⓘⓞⓣ", "idiot"),
        ("ﬁne", "fine"),
        ("cafe\u0301", "café"),
    ],
)
def test_letters_in_other_shapes_are_letters(disguised, seen):
    assert normalised(disguised) == seen


@pytest.mark.parametrize("sign", ["\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u202e"])
def test_what_shows_nothing_is_dropped(sign):
    assert normalised(f"i{sign}di{sign}{sign}ot{sign}") == "idiot"
    assert normalised(f"e{sign}\u0301") == "é"  # dropped before letters are composed


@pytest.mark.parametrize(
    ("disguised", "seen"),
    [
        ("idi\u043et", "idiot"),
        ("\u0456di\u043et", "idiot"),
        ("st\u03c5pid", "stupid"),
        ("wh\u0430t an idi\u043et!", "what an idiot!"),
        ("\u0406DIOT", "IDIOT"),
        ("\u0399DIOT", "IDIOT"),  # a capital stays one
    ],
    ids=ascii,
)
def test_a_look_alike_in_a_latin_word_becomes_latin(disguised, seen):
    assert normalised(disguised) == seen


@pytest.mark.parametrize(
    "text",
    [
        "Καλημέρα σας, τι κάνετε;",
        "Привет, как дела? Оно там.",
        "你好,世界",
        "こんにちは",
        "مرحبا بالعالم",
        "naïve café, Müller, Ångström, São Paulo, Łódź",
        "β-blockers, 5 Ωm, π = 3.14",
        "I said спасибо and ευχαριστώ to them.",
        "😀 👍🏽 — “quoted” – it’s",
    ],
)
def test_honest_text_is_unchanged(text):
    assert normalised(text) == text


def test_runs_of_letters_become_two():
    assert normalised("Sooooo goooood, coool too") == "Soo good, cool too"
    assert normalised("NOOoOo") == "NOO"
    assert normalised("1000000 ... !!! ___ 111") == "1000000 ... !!! ___ 111"  # letters only
    assert normalised("хорошооооо") == "хорошоо"


@given(st.text(st.characters(max_codepoint=127)))
@example("AT&T, R&D, Q&A & more")
@example("too good to seem free\t\n\x00")
def test_plain_text_changes_in_its_runs_only(text):
    """Half of all training and scoring is of such text."""
    plain = text.replace("&", "")
    runs = any(
        plain[i].lower() * 3 == plain[i : i + 3].lower() and plain[i].isalpha() for i in range(len(plain))
    )
    assert (normalised(plain) == plain) != runs
    assert len(normalised(plain)) <= len(plain)


def test_an_ampersand_is_no_entity():
    assert normalised("AT&T, R&D, fish & chips") == "AT&T, R&D, fish & chips"


@given(UNMARKED)
@example("\u0430aa\u0430 ſſſ İİİ ㎏㎏㎏ ｏｏｏo")
@example("\ufdfa" * 3)
def test_a_second_time_changes_nothing(text):
    """A training row is normalised when it is made and again when it is scored."""
    once = normalised(text)
    assert normalised(once) == once


@given(st.text())
@example("")
@example("&#0;&#x110000;&#xd800;&notanentity;&#;&&;")
@example("\ufdfa" * 50)
@example("\x00\ud7ff\uffff\U0010ffff")
@example("a\u0301\u0336\u0489" * 40)
def test_any_text_will_do_and_stays_short(text):
    seen = normalised(text)
    assert len(seen) <= LONGEST * len(text) and LONGEST == 18
    seen.encode()  # still Unicode
    assert not any(unicodedata.category(c) == "Cf" for c in seen)


def test_a_long_text_takes_no_time():
    assert normalised("a\u0430" * 50_000 + "&amp;" * 20_000).endswith("a&" + "&" * 19_999)
