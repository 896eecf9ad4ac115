"""Words for groups: a word is exchanged for one of its class, reproducibly, and nothing else changes."""

from __future__ import annotations

import random
import tomllib

import pytest

from companion.book.censor import censored
from companion.toxicity import groups

WORDS = groups.words()
FORMS = {form: {word.text.lower() for word in WORDS if word.form == form} for form in groups.CLASSES}


def exchanged(text: str, seed: int = 0, ambiguous: bool = True) -> str | None:
    return groups.exchanged(text, random.Random(seed), ambiguous=ambiguous)


def some_exchange(text: str, **options) -> str:
    """The first of some exchanges that draws another word."""
    return next(new for seed in range(20) if (new := exchanged(text, seed, **options)))


def test_the_file_has_every_class_of_every_kind():
    entries = tomllib.loads((groups.OWN / "groups.toml").read_text(encoding="utf-8"))
    kinds = set(entries) - {"ambiguous"}
    assert {word.kind for word in WORDS} == kinds and len(kinds) >= 8
    for kind in kinds:
        assert set(entries[kind]) <= {"adjectives", "nouns", "topics"} and entries[kind]["adjectives"]
    assert {word.form for word in WORDS} == set(groups.CLASSES)
    assert set(entries["ambiguous"]) <= {word.text.lower() for word in WORDS}
    assert len(set(WORDS)) == len(WORDS)


@pytest.mark.parametrize("word", sorted({word.text for word in WORDS}))
def test_every_word_is_found_whole(word):
    """Also those that hold another (*gay man*, *African American*), in capitals, and before punctuation."""
    for text in (word, f"So, {word.upper()}!", f"Is it ({word.lower()})?"):
        assert groups.named_in(text) == [word.lower()]
    assert word.lower() not in groups.named_in(f"x{word} {word}x _{word}")


def test_words_are_found_in_order():
    assert groups.named_in("Muslims, a gay man and immigrants met Muslims.") == [
        *("muslims", "gay man", "immigrants", "muslims")
    ]
    assert groups.named_in("") == groups.named_in("Nobody is named, human or not.") == []


@pytest.mark.parametrize("form", groups.CLASSES)
def test_an_exchange_keeps_the_classes(form):
    """All of them: *Muslim*, adjective and noun, becomes no word that is only one of the two."""
    for seed, word in enumerate(sorted(FORMS[form])):
        new = exchanged(f"We met some {word} there.", seed)
        if new:  # None where the same word was drawn
            (other,) = groups.named_in(new)
            assert other != word and new.lower() == f"we met some {other} there."
            assert {f for f in FORMS if other in FORMS[f]} == {f for f in FORMS if word in FORMS[f]}


def test_a_repeated_word_gets_one_new_word():
    for seed in range(10):
        new = some_exchange("Muslims pray. I like Muslims, and Muslims like me; Jews, too.")
        first, second, third, other = groups.named_in(new)
        assert first == second == third != other or exchanged(new, seed)


def test_small_letters_stay_small():
    assert some_exchange("those muslims again").islower()
    assert not all(
        some_exchange(f"Those {word.text} again").islower() for word in WORDS if word.form == "plural"
    )


@pytest.mark.parametrize("text", ["", "Nobody is named here.", "I ate the apple.", "🙂"])
def test_without_a_name_there_is_no_exchange(text):
    assert exchanged(text) is None


@pytest.mark.parametrize("text", ["It took an hour.", "He is an honest person.", "An FBI agent called."])
def test_a_mended_article_is_no_exchange(text):
    assert exchanged(text) is None


def test_ambiguous_words_are_left_alone_if_told():
    text = "The old black car of a poor man stood straight before the Muslim school."
    for seed in range(10):
        new = exchanged(text, seed, ambiguous=False)
        if new:
            before, after = new.split("before the ")
            assert before == text.split("before the ")[0] and after != "Muslim school."
    assert exchanged("An old house and a black cat.", ambiguous=False) is None
    assert some_exchange("An old house and a black cat.", ambiguous=True)


def test_an_article_fits_its_word():
    for given, right in (
        ("a Asian man", "an Asian man"),
        ("An Muslim man", "A Muslim man"),
        ("an European", "a European"),
        ("a immigrant and an Jew", "an immigrant and a Jew"),
        ("a one-armed person", "a one-armed person"),
        ("Ana and panda an", "Ana and panda an"),
    ):
        assert groups.with_articles(given) == right
    for seed in range(20):
        new = exchanged("He is an immigrant.", seed)
        assert new is None or groups.with_articles(new) == new


def test_the_same_seed_gives_the_same_words():
    text = "Muslims and immigrants met a disabled woman."
    assert [exchanged(text, seed) for seed in range(10)] == [exchanged(text, seed) for seed in range(10)]
    assert len({exchanged(text, seed) for seed in range(10)}) > 5


def test_a_kind_is_drawn_before_a_word():
    """Else nationalities, of which there are most, would be most of what is drawn."""
    kinds, generator = {}, random.Random(0)
    by_text = {word.text: word.kind for word in WORDS if word.form == "adjective"}
    for _ in range(3000):
        kind = by_text[groups.drawn("adjective", generator)]
        kinds[kind] = kinds.get(kind, 0) + 1
    assert max(kinds.values()) < 1.5 * min(kinds.values())


def test_a_neutral_text_names_no_group():
    """What reads it cannot learn a group."""
    for word in WORDS:
        assert groups.neutral(f"We met {word.text} there.") == groups.neutral("We met Muslims there.")
    assert groups.named_in(groups.neutral("We met Muslims there.")) == []
    assert groups.neutral("Nobody is named.") == "Nobody is named."


def test_an_article_tells_nothing_either():
    assert groups.neutral("She met an Asian man.") == groups.neutral("She met a Muslim man.")


def test_no_word_is_a_strong_one():
    """A test cannot list slurs; the censor's strong words hold the best known ones."""
    assert [word.text for word in WORDS if censored(word.text) != word.text] == []
