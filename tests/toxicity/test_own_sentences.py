"""Our own sentences: every frame fills, the parts share nothing, and the same seed writes the same rows."""

from __future__ import annotations

import re

import pytest

from companion.book.censor import censored
from companion.toxicity import groups
from companion.toxicity.own_sentences import Frame, Writer, frames

CATEGORIES = {
    *("identity", "life", "news", "opinion", "support"),
    *("counter", "neg", "person", "plain", "prof", "trait"),
}
PARTS = ("train", "dev")
# What the censor hides and may stand here: profanity. Its other strong words are slurs for groups.
PROFANITY = re.compile("fuck|shit|ass|damn|bitch|crap|bastard|piss|dick|bollock", re.IGNORECASE)


def sides(some: list[Frame]) -> set[str]:
    """Both sides of frames, whatever their case and end."""
    return {side.lower().rstrip(".!?") for frame in some for side in frame.sides}


@pytest.mark.parametrize("part", PARTS)
def test_every_frame_has_two_sides_and_a_known_category(part):
    found = frames(part)
    assert len(found) == {"train": 616, "dev": 77}[part]  # data/scorer/README.md says so
    assert {f.category for f in found} <= CATEGORIES and len({f.category for f in found}) >= 10
    assert [f.number for f in found] == list(range(len(found)))
    assert all(all(f.sides) for f in found)
    assert len(sides(found)) == 2 * len(found)  # no sentence twice, none on both sides


@pytest.mark.parametrize("part", PARTS)
def test_every_slot_of_every_frame_is_filled(part):
    found = frames(part)
    slots = {slot for f in found for side in f.sides for slot in re.findall(r"\{(\w+)\}", side)}
    assert {"A", "P", "S", "topic", "TOX"} < slots
    for seed in range(2):
        rows = Writer(part, found, seed).rows(2)
        assert len(rows) == 4 * len(found) and list(rows.label) == [0, 1] * (2 * len(found))
        assert not rows.text.str.contains(r"[{}|]|\s\s|^\s|\s$").any()
        assert rows.text.str.len().between(2, 300).all()


@pytest.mark.parametrize("part", PARTS)
def test_a_given_group_is_the_one_that_is_named(part):
    """The exam compares groups on the same sentences."""
    some = [f for f in frames(part) if f.category in ("identity", "trait", "opinion", "life")]
    rows = Writer(part, some, 0).rows(1, ["Quaker", "left-handed"])
    assert set(rows.group) == {"Quaker", "left-handed"}
    fitting = [frame.sides for frame in some]
    for row, (harmless, toxic) in zip(rows.itertuples(), [s for s in fitting for _ in (0, 1)], strict=True):
        if re.search(r"\{[APSs]\}", (harmless, toxic)[row.label]):
            assert row.group.lower() in row.text.lower()


@pytest.mark.parametrize("part", PARTS)
def test_the_same_seed_writes_the_same_rows(part):
    found = frames(part)[:60]
    first, again, other = (Writer(part, found, seed).rows(2) for seed in (0, 0, 1))
    assert first.equals(again) and (first.text != other.text).any()
    assert first.drop(columns="text").equals(other.drop(columns="text"))


def test_a_quote_is_a_toxic_sentence_of_the_same_part():
    found = frames("dev")
    writer = Writer("dev", found, 0)
    assert writer.quotable and set(writer.quotable) <= {f.sides[1] for f in found}
    quoting = writer.filled('They wrote "{TOX}" on the wall.')
    assert re.fullmatch(r'They wrote "[^"{}]+" on the wall\.', quoting, re.IGNORECASE)


def test_parts_share_no_sentence():
    assert not sides(frames("train")) & sides(frames("dev"))


def test_parts_share_no_words_but_profanity():
    """Else *dev* would measure how well insults are remembered."""
    train, dev = (Writer(part, frames(part), 0).words for part in PARTS)
    assert set(dev) == set(train)
    for slot in set(train) - {"sw", "exc"}:
        assert not set(train[slot]) & set(dev[slot]), slot


@pytest.mark.parametrize("part", PARTS)
def test_no_strong_word_is_other_than_profanity(part):
    """What the censor hides besides are slurs for groups; none may be in frames or in words."""
    writer = Writer(part, frames(part), 0)
    texts = [side for f in writer.frames for side in f.sides] + [
        w for some in writer.words.values() for w in some
    ]
    assert any(censored(text) != text for text in texts)  # the censor is not blind
    for text in [*texts, *writer.rows(1).text]:
        rest = PROFANITY.sub("", text)
        assert censored(rest) == rest, censored(text)


def test_harmless_and_toxic_sides_name_groups_alike():
    """A group's name must not give the label away."""
    rows = Writer("train", frames("train"), 0).rows(1)
    named = rows.text.map(lambda text: bool(groups.named_in(text))).groupby(rows.label).mean()
    assert abs(named[0] - named[1]) < 0.1 and named.min() > 0.3
