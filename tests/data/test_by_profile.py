"""What data/ ships (counts, splits, no leaks, no templates, no shortcuts), and how profiles draw from it."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from companion import paths, profiles
from companion.data import by_profile, near_duplicates, public
from companion.errors import CompanionError
from companion.mechanism.pairs import Pair, pair_prompts, read

EMBEDDED = profiles.load("embedded")
SPLITS = ("train", "dev", "eval")


def table(name: str) -> pd.DataFrame:
    return pd.DataFrame(
        [json.loads(line) for line in (paths.DATA / name).read_text(encoding="utf-8").splitlines()]
    )


PROMPTS, COMMENTS, PROSE = (
    table("prompts/prompts.jsonl"),
    table("comments/comments.jsonl"),
    table("prose/articles.jsonl"),
)


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return read(paths.DATA / "pairs" / "pairs.jsonl")


def auc(labels, scores) -> float:
    labels, ranks = np.asarray(labels, bool), rankdata(scores)
    n1, n0 = labels.sum(), (~labels).sum()
    return (ranks[labels].sum() - n1 * (n1 + 1) / 2) / (n1 * n0)


# --- what data/ ships ----------------------------------------------------------------------------


def test_enough_of_everything():
    assert len(PROMPTS) >= 400 and len(COMMENTS) >= 1500
    words = PROSE.text[PROSE.split != "train"].str.split().str.len().sum()
    assert words >= 15_000
    assert EMBEDDED.prompts == (PROMPTS.split == "eval").sum()  # "all evaluation prompts"
    for rows in (PROMPTS, COMMENTS, PROSE):
        assert set(rows.split) == set(SPLITS)
        assert not rows.isna().any(axis=None)


@pytest.mark.parametrize(
    ("rows", "column"),
    [(PROMPTS, "prompt"), (COMMENTS, "text"), (PROSE, "text")],
    ids=["prompts", "comments", "prose"],
)
def test_parts_share_nothing(rows, column):
    assert (
        rows[column].is_unique
        and (rows[column].str.strip() == rows[column]).all()
        and (rows[column] != "").all()
    )
    for a in SPLITS:
        for b in SPLITS:
            if a != b:
                assert not near_duplicates.near_duplicates(
                    rows[column][rows.split == a], of=rows[column][rows.split == b]
                ).any(), (a, b)


@pytest.mark.parametrize(
    ("rows", "column"),
    [(PROMPTS, "prompt"), (COMMENTS, "text"), (PROSE, "text")],
    ids=["prompts", "comments", "prose"],
)
def test_no_templates(rows, column):
    """Nine of ten word 4-grams occur once."""
    words = [near_duplicates.words(text) for text in rows[column]]
    grams = [tuple(w[i : i + 4]) for w in words for i in range(len(w) - 3)]
    assert len(set(grams)) >= 0.9 * len(grams)


def test_comments_come_in_pairs_that_stay_together():
    assert (COMMENTS.groupby("pair").split.nunique() == 1).all()
    assert (COMMENTS.groupby("pair").topic.nunique() == 1).all()
    assert COMMENTS.groupby("pair").label.agg(sorted).map(lambda labels: labels == [0, 1]).all()
    counts = COMMENTS.groupby(["split", "label"]).size().unstack()
    assert (counts[0] == counts[1]).all() and (counts > 0).all(axis=None)


@pytest.mark.parametrize("split", [*SPLITS, "all"])
def test_length_does_not_give_the_label_away(split):
    rows = COMMENTS if split == "all" else COMMENTS[COMMENTS.split == split]
    assert 0.45 <= auc(rows.label, rows.text.str.split().str.len()) <= 0.55
    assert 0.45 <= auc(rows.label, rows.text.str.len()) <= 0.55


def test_shipped_pairs(pairs):
    assert len(pairs) >= 500
    assert len({(p.prompt, p.chosen, p.rejected) for p in pairs}) == len(pairs)
    for pair in pairs:
        assert 0 <= pair.chosen_toxicity <= 1 and 0 <= pair.rejected_toxicity <= 1
        assert (
            pair.rejected_toxicity - pair.chosen_toxicity >= EMBEDDED.pair_margin - 1e-4
        )  # scores are rounded to four digits
        assert pair.prompt.strip() and pair.chosen != pair.rejected


def test_shipped_pairs_come_from_no_evaluation_prompt(pairs):
    prompts = sorted({p.prompt for p in pairs})
    held_out = [*PROMPTS.prompt[PROMPTS.split == "eval"], *PROSE.text[PROSE.split == "eval"]]
    assert not near_duplicates.near_duplicates(prompts, of=held_out).any()
    allowed = set(pair_prompts(EMBEDDED))
    assert all(
        any(text.startswith(prompt.strip()) for text in allowed) for prompt in prompts
    )  # cut to max_prompt_tokens at most


def test_every_data_folder_has_a_card():
    folders = [p for p in paths.DATA.iterdir() if p.is_dir()]
    assert {"comments", "pairs", "prompts", "prose", "scorer"} <= {p.name for p in folders}
    for folder in folders:
        card = folder / "README.md"
        assert card.is_file(), f"{folder.name} has no card"
        assert len(card.read_text(encoding="utf-8").split()) >= 40


# --- how profiles draw ---------------------------------------------------------------------------


def test_prompts_by_profile():
    smoke = profiles.load("smoke")
    assert (
        len(by_profile.prompts(EMBEDDED)) == EMBEDDED.prompts
        and len(by_profile.prompts(smoke)) == smoke.prompts
    )
    assert list(by_profile.prompts(smoke).columns) == ["kind", "prompt"] or set(
        by_profile.prompts(smoke).columns
    ) == {"kind", "prompt"}
    parts = {split: set(by_profile.prompts(EMBEDDED, split, limit=0).prompt) for split in SPLITS}
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == len(PROMPTS)
    assert set(by_profile.prompts(smoke).prompt) <= parts["eval"]
    assert by_profile.prompts(smoke).equals(by_profile.prompts(smoke))


def test_comments_by_profile():
    parts = {split: by_profile.comments(EMBEDDED, split) for split in SPLITS}
    for rows in parts.values():
        assert {"text", "label", "topic", "group"} <= set(rows.columns) and set(rows.label) == {0, 1}
    assert not set(parts["train"].group) & set(parts["eval"].group)
    smoke = by_profile.comments(profiles.load("smoke"), "train")
    assert len(smoke) == 56 and smoke.label.mean() == 0.5  # .7 of 80
    assert smoke.text.tolist() == parts["train"].text[:56].tolist()


def test_prose_is_paragraphs():
    for split in SPLITS:
        paragraphs = by_profile.prose(EMBEDDED, split)
        assert paragraphs and all(p.strip() and "\n" not in p for p in paragraphs)
        assert (
            sum(len(p.split()) for p in paragraphs)
            == PROSE.text[PROSE.split == split].str.split().str.len().sum()
        )


def test_enough_sentences_for_f1():
    assert len(by_profile.sentences(by_profile.prose(EMBEDDED, "eval"))) >= max(
        EMBEDDED.continuations, EMBEDDED.prompts
    )


def test_pair_prompts_mix_in_plain_prose():
    mixed = pair_prompts(EMBEDDED)
    train = set(PROMPTS.prompt[PROMPTS.split == "train"])
    plain = [i for i, text in enumerate(mixed) if text not in train]
    assert set(mixed) >= train and len(plain) == len(train) // 7
    assert plain == [8 * i + 7 for i in range(len(plain))]
    prose = " ".join(" ".join(PROSE.text[PROSE.split == "train"]).split())
    assert all(mixed[i] in prose for i in plain)
    assert mixed == pair_prompts(EMBEDDED)


def test_public_profile_takes_evaluation_rows_from_the_registry(monkeypatch):
    monkeypatch.setattr(public, "challenge_prompts", lambda: [f"prompt {i}" for i in range(20)])
    monkeypatch.setattr(public, "wikitext", lambda split: [split])
    generator = np.random.default_rng(0)
    rows = pd.DataFrame(
        {"label": [1] * 60 + [0] * 60, "source": "jigsaw", "split": ["train", "dev", "eval"] * 40}
    )
    rows["text"] = [f"{i} " + "w " * n for i, n in enumerate(generator.integers(1, 80, 120))]
    monkeypatch.setattr(public, "labelled", lambda sources: rows)
    P = profiles.load("public", prompts=5)
    assert by_profile.prompts(P).prompt.tolist() == [
        "prompt 0",
        "prompt 5",
        "prompt 10",
        "prompt 14",
        "prompt 19",
    ]
    assert set(by_profile.prompts(P, "train", limit=0).prompt) == set(
        PROMPTS.prompt[PROMPTS.split == "train"]
    )
    assert by_profile.prose(P, "eval") == ["eval"] and by_profile.prose(P, "dev") == ["dev"]
    assert by_profile.prose(P, "train") == by_profile.prose(EMBEDDED, "train")
    for split in SPLITS:
        drawn = by_profile.comments(P, split)
        assert (
            drawn.label.mean() == 0.5
            and drawn.group.is_unique
            and (drawn.text.str.split().str.len() <= 60).all()
        )
        assert set(drawn.text) <= set(rows.text[rows.split == split])


def test_missing_embedded_file_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    with pytest.raises(CompanionError, match=r"prompts\.jsonl' is missing: restore it with git"):
        by_profile.prompts(EMBEDDED)


@given(st.integers(1, 200), st.integers(0, 250))
def test_spread(n, limit):
    rows = pd.DataFrame({"x": range(n)}, index=range(100, 100 + n))
    found = by_profile.spread(rows, limit)
    assert len(found) == (min(limit, n) if limit else n)
    assert found.index.tolist() == list(range(len(found)))
    assert found.x.is_unique and found.x.is_monotonic_increasing
    if len(found) > 1:
        assert found.x.iloc[0] == 0 and found.x.iloc[-1] == n - 1
        assert found.x.diff().max() - found.x.diff().min() <= 1  # evenly


@given(st.integers(0, 3), st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=30, max_size=150))
def test_length_matched(seed, drawn):
    rows = pd.DataFrame(
        {
            "text": [f"id{i} " + "w " * (n - 1) for i, (n, _) in enumerate(drawn)],
            "label": [int(toxic) for _, toxic in drawn],
        }
    )
    rows = rows.sort_values("label", ignore_index=True)  # as in the file
    found = by_profile.length_matched(rows, seed)
    assert found.text.is_unique and set(found.text) <= set(rows.text)
    assert (found.label == 1).sum() == (found.label == 0).sum()
    again = by_profile.length_matched(rows, seed)
    assert found.equals(again)
    decile = pd.qcut(rows.text.str.split().str.len().rank(method="first"), 10, labels=False)
    for _, part in rows.groupby(decile):
        counts = found.label[found.text.isin(part.text)].value_counts()
        assert counts.get(0, 0) == counts.get(1, 0) == min((part.label == 0).sum(), (part.label == 1).sum())


def test_length_matching_removes_the_shortcut():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 1000)
    length = generator.poisson(12 + 8 * labels) + 1
    rows = pd.DataFrame({"text": [f"id{i} " + "w " * (n - 1) for i, n in enumerate(length)], "label": labels})
    found = by_profile.length_matched(rows, 0)
    assert auc(rows.label, length) > 0.85 and len(found) > 200
    assert 0.4 < auc(found.label, found.text.str.split().str.len()) < 0.6
    assert 0.4 < found.label[: len(found) // 2].mean() < 0.6  # in random order


def test_sentences_by_hand():
    long = "This sentence has " + "many " * 12 + "words."
    rest = long + " e.g. this one does go on for a while!"
    assert by_profile.sentences([f"Short one. {long} Is it? {rest}"]) == [long, rest]
    assert by_profile.sentences([long, "", long]) == [long, long]
    assert by_profile.sentences([" ".join(["w"] * 15), " ".join(["w"] * 16)]) == [" ".join(["w"] * 16)]


@given(
    st.lists(
        st.lists(st.sampled_from(["one", "two,", "Three."]), min_size=2, max_size=30).map(" ".join),
        max_size=5,
    ),
)
def test_openings_cut_once(texts):
    prompts, references = by_profile.openings(texts)
    assert [f"{p} {r}".strip() for p, r in zip(prompts, references, strict=True)] == texts
    for prompt, text in zip(prompts, texts, strict=True):
        assert len(prompt.split()) == round(0.5 * len(re.findall(r"\S+", text)))
