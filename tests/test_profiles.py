"""Profiles and their overrides: types are kept, mistakes are named."""

from __future__ import annotations

from dataclasses import asdict, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion import profiles
from companion.book import contents
from companion.errors import CompanionError
from companion.lm import tiny

PAPERS = ("paper-gpt2", "paper-gemma2", "paper-llama3", "paper-mistral")
NAMES = ("embedded", "smoke", "full", "gemma", "public", "paper", *PAPERS)
TYPES = {"bool": bool, "int": int, "str": str, "float": float, "list[str]": list}


def test_the_profiles():
    assert set(profiles.names()) == set(NAMES)
    for name in NAMES:
        profile = profiles.load(name)
        assert profile.name == name
        for field in fields(profile):
            assert type(getattr(profile, field.name)) is TYPES[field.type], field.name
        assert profile.data in ("embedded", "public") and profile.dpo_precision in ("no", "bf16")
        assert profile.scorer in profile.scorers
        assert set(profile.chapters) <= {chapter.name for chapter in contents.chapters()}
    assert profiles.load("smoke").model in tiny.NAMES


def test_profiles_differ_and_inherit():
    loaded = {name: profiles.load(name) for name in NAMES}
    assert len({tuple(map(str, asdict(p).values())) for p in loaded.values()}) == len(NAMES)
    assert (
        loaded["smoke"].scorers == loaded["embedded"].scorers
        and loaded["smoke"].prompts < loaded["embedded"].prompts
    )
    assert loaded["paper"].data == loaded["public"].data == "public"  # from public, through base
    assert loaded["paper"].new_tokens == loaded["embedded"].new_tokens  # from embedded, through public
    assert loaded["public"].model == loaded["embedded"].model


def test_overrides_replace_and_none_does_not():
    base = profiles.load("smoke")
    changed = profiles.load("smoke", prompts=3, seed=None, model="tiny-gpt2", dpo_learning_rate=1)
    assert changed.prompts == 3 and changed.model == "tiny-gpt2" and changed.seed == base.seed
    assert changed.dpo_learning_rate == 1.0 and type(changed.dpo_learning_rate) is float
    assert {
        k: v for k, v in asdict(changed).items() if k not in ("prompts", "model", "dpo_learning_rate")
    } == {k: v for k, v in asdict(base).items() if k not in ("prompts", "model", "dpo_learning_rate")}
    assert profiles.load("smoke") == base  # nothing was changed in place
    assert profiles.load("smoke", prompts=0).prompts == 0


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 10**6)
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.text(max_size=3), max_size=2)
    | st.binary(max_size=2)
)


@given(st.sampled_from(sorted(profiles.settings())), VALUES)
def test_an_override_is_taken_as_given_or_refused_by_name(key, value):
    kind = type(getattr(profiles.load("smoke"), key))
    fits = type(value) is kind or (kind is float and type(value) is int)
    if kind in (int, float):
        fits = fits and 0 <= value < float("inf")
    if value is None:
        assert profiles.load("smoke", **{key: None}) == profiles.load("smoke")
    elif fits:
        found = getattr(profiles.load("smoke", **{key: value}), key)
        assert found == value and type(found) is kind
    else:
        with pytest.raises(CompanionError, match=f"'{key}'"):
            profiles.load("smoke", **{key: value})


@pytest.mark.parametrize("name", ["nonsense", "", "Smoke", "base"])
def test_unknown_profile_lists_the_known_ones(name):
    with pytest.raises(CompanionError) as caught:
        profiles.load(name)
    assert all(known in str(caught.value) for known in NAMES)


@pytest.mark.parametrize("key", ["nonsense", "base", "prompts "])
def test_unknown_setting_lists_the_known_ones(key):
    with pytest.raises(CompanionError, match=f"'{key}' is not a setting.*prompts, samples") as caught:
        profiles.load("smoke", **{key: "x"})
    assert "\n" not in str(caught.value)


def test_settings_are_the_fields():
    assert profiles.settings() == {f.name for f in fields(profiles.Profile)} - {"name"}
