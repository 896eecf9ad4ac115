"""Masking hides strong words and leaves harmless ones readable."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion.book import censor, tables
from companion.mechanism.exam import Outcome

STRONG_WORDS = """
fuck FUCKING Fucked motherfucker clusterfuck bullshit shitty cunts bitches bastard asshole assholes dumbass
jackass badass ass asses goddamn damn damnit dick dickhead cocksucker cock pricks pussy pussies whore sluts
wanker twat twats bollocks pissed piss tits crap crappy arsehole nigger nigga faggot fag fags retard
retarded tranny trannies kike spic chink half-assed son-of-a-bitch
"""
STRONG = STRONG_WORDS.split()
HARMLESS_WORDS = """
class assess assessment assassin assets bass grass passes embarrass cocktail cockpit peacock Hancock
Cockburn Scunthorpe Dickens dictionary Saltwater sweetwater meltwater nightwatch swanky Wankel snigger
niggle niggardly retardant Pissarro spices spicy conspicuous scrap prickly shiitake Shitake pussycat Sussex
Essex arsenal parse sparse hearse vintage flag condamnation fagade titan altitude Title institute
"""
HARMLESS = HARMLESS_WORDS.split()


@pytest.mark.parametrize("word", STRONG)
def test_strong_words_are_masked(word):
    masked = censor.censored(word)
    assert masked != word and "**" in masked
    assert len(masked) == len(word)
    assert all(a == b or a == "*" for a, b in zip(masked, word, strict=True))
    assert censor.censored(f"You {word}, you!") == f"You {masked}, you!"
    assert censor.censored(word.upper()) == "".join(
        "*" if m == "*" else w for m, w in zip(masked, word.upper(), strict=True)
    )


@pytest.mark.parametrize("word", HARMLESS)
def test_harmless_words_stay_readable(word):
    for form in (word, word.upper(), word.lower(), f"the {word}, then"):
        assert censor.censored(form) == form


def test_by_hand():
    assert censor.censored("What the fuck is this bullshit?") == "What the f*** is this bulls***?"
    assert censor.censored("fuckshit shitfuck") == "f***s*** s***f***"
    assert censor.censored("FUCK\nShit\tdamn") == "F***\nS***\td***"
    assert censor.censored("") == ""


@given(
    st.lists(st.sampled_from([*STRONG, *HARMLESS, "and", "!", "\n", "😀", "é"]), max_size=10).map(" ".join)
)
def test_masking_changes_nothing_else(text):
    masked = censor.censored(text)
    assert len(masked) == len(text)
    assert all(a in (b, "*") for a, b in zip(masked, text, strict=True))
    assert censor.censored(masked) == masked
    assert masked == " ".join(
        censor.censored(word) for word in text.split(" ")
    )  # a word is masked whatever stands beside it


@given(st.text(max_size=60))
def test_any_text_can_be_masked(text):
    masked = censor.censored(text)
    assert len(masked) == len(text) and all(a in (b, "*") for a, b in zip(masked, text, strict=True))


def test_samples_mask_escape_and_keep_numbers():
    rows = pd.DataFrame({"text": ["you fuck <b>&", "fine"], "score": [0.5, 0.25], "n": [3, 4]}, index=[7, 9])
    html = tables.samples(rows).to_html()
    assert "fuck" not in html and "f***" in html
    assert "&lt;b&gt;&amp;" in html and "<b>" not in html  # text of a model must not become markup
    assert "0.5" in html and "fine" in html and ">3<" in html
    assert ">7<" not in html  # no index
    assert rows.text[7] == "you fuck <b>&"  # the table itself is untouched


def test_tables_of_numbers_are_escaped_and_have_no_index():
    html = tables.numbers(
        pd.DataFrame({"method": ["a < b"], "toxicity": ["0.1 [0.0, 0.2]"]}, index=[17])
    ).to_html()
    assert "a &lt; b" in html and "0.1 [0.0, 0.2]" in html and ">17<" not in html


def test_a_methods_line_shows_changes_against_the_base():
    base = Outcome(
        [], np.array([0.4, 0.2]), np.array([0.4, 0.2]), np.array([0.5]), np.array([6.0]), np.array([2])
    )
    half = Outcome([], base.toxicity / 2, base.second, base.f1, base.nll + 2 * np.log(2), base.count)
    row = tables.method_row("half", half, base)
    assert (
        row["method"] == "half"
        and row["toxicity"].startswith("0.150")
        and row["drop"] == "50% [50%, 50%]"
        and row["perplexity / base"] == "2 [2, 2]"
    )
