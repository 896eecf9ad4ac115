"""The sliders hold the product that the rewriter uses. (How it looks, a browser must show.)"""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from test_element import HOSTILE, Page
from test_marco import TEXTS, adapters, bart

from companion.book import censor
from companion.book.widgets import blanks
from companion.book.widgets.blanks import Blank, Blanked
from companion.marco.rewriting import rewriter, words
from companion.marco.rewriting.masking import Masking
from companion.marco.rewriting.settings import Settings

SETTINGS = Settings(Masking(0.1), alpha_expert=2.0, alpha_anti=0.5, temperature=1.3)
STARTS = blanks.presets(SETTINGS)


@pytest.fixture(scope="module", params=["causal", "encoder-decoder"])
def denoiser(request, lively_llama):
    return adapters(lively_llama) if request.param == "causal" else bart()


class Spelling:
    """The one thing that the element asks of a denoiser: the text of a token."""

    mask_id, end_id, marks = 0, 1, (0, 1)
    encode = next_logits = surprise = begin = print  # never called

    def __init__(self, token: str = "") -> None:
        self.token = token

    def decode(self, ids) -> str:
        return self.token or f" w{ids[0]}"


def blank(vocabulary: int = 200, seed: int = 0, original: str = "that") -> Blank:
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.ones(vocabulary, dtype=torch.bool)
    allowed[:5] = False
    return Blank(original, 3 * torch.randn(3, vocabulary, generator=generator), allowed, following=7)


def item(*found: Blank) -> Blanked:
    return Blanked([f"part {i} " for i in range(len(found) + 1)], list(found), "as rewritten")


def page(*items: Blanked, token: str = "", title: str = "T") -> Page:
    return Page(text(*items, token=token, title=title))


def text(*items: Blanked, token: str = "", title: str = "T") -> str:
    return blanks.html(items, Spelling(token), STARTS, title=title).data


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_a_walk_writes_what_the_rewriter_writes(denoiser, penalty):
    settings = dataclasses.replace(SETTINGS, repetition_penalty=penalty)
    for masked, line in zip(([1, 3], [0, 1, 4], [0], [], [2, 3, 5]), TEXTS, strict=True):
        sentence = words.split(denoiser, line)
        chosen = [j for j in masked if sentence.words[j].maskable]
        found = blanks.walk(denoiser, sentence, chosen, settings)
        assert [found.text] == rewriter.fill(denoiser, [sentence], [chosen], settings)
        assert len(found.parts) == len(found.blanks) + 1
        originals = [b.original for b in found.blanks]
        assert "".join(part + gap for part, gap in zip(found.parts, [*originals, ""], strict=True)) == line


def test_words_side_by_side_are_one_blank(denoiser):
    sentence = words.split(
        denoiser, "so it&amp;goes and on"
    )  # bytes: a space is a token of its own, so only these three are side by side
    assert [b.original for b in blanks.walk(denoiser, sentence, [0, 1, 2, 3, 5], SETTINGS).blanks] == [
        "so",
        "it&amp;goes",
        "on",
    ]


def test_a_blank_holds_the_product_and_each_model():
    b = blank()
    scores = b.logits[0] / 1.3 + 2.0 * b.logits[1] - 0.5 * b.logits[2]
    expected = scores[5:].softmax(0)
    assert torch.allclose(b.product(SETTINGS)[5:], expected, atol=1e-6) and b.product(SETTINGS)[:5].sum() == 0
    assert torch.allclose(b.alone(2)[5:], b.logits[2, 5:].softmax(0), atol=1e-6)
    assert b.product(STARTS["expert only"]).argmax() == b.alone(1).argmax()


def test_candidates_are_allowed_and_hold_every_winner_of_the_presets():
    for seed in range(5):
        b = blank(seed=seed)
        ids = blanks.candidates(b, list(STARTS.values()), top=3)
        assert b.allowed[ids].all() and b.following in ids and len(ids) == len(set(ids.tolist()))
        for settings in STARTS.values():
            assert set(b.product(settings).topk(blanks.LISTED).indices.tolist()) <= set(ids.tolist())
        for role in range(3):
            assert set(b.alone(role).topk(3).indices.tolist()) <= set(ids.tolist())


def test_between_presets_the_winner_is_nearly_always_a_candidate():
    draw, hits = np.random.default_rng(0), []
    for seed in range(20):
        b = blank(vocabulary=5000, seed=seed)
        ids = set(blanks.candidates(b, list(STARTS.values())).tolist())
        for _ in range(20):
            settings = Settings(
                Masking(0.1),
                draw.uniform(0, 8),
                draw.uniform(0, 4),
                draw.uniform(0.5, 5),
                alpha_base=draw.uniform(0, 2),
            )
            hits.append(int(b.product(settings).argmax()) in ids)
    assert np.mean(hits) > 0.97


def test_the_data_parse_back():
    b = blank()
    data = page(item(b, blank(seed=1)), item(blank(seed=2))).data
    assert [len(s["blanks"]) for s in data["sentences"]] == [2, 1] and data["sentences"][0]["parts"] == [
        "part 0 ",
        "part 1 ",
        "part 2 ",
    ]
    first, ids = data["sentences"][0]["blanks"][0], blanks.candidates(b, list(STARTS.values()))
    assert first["tokens"] == [f" w{i}" for i in ids.tolist()] and first["tokens"][first["end"]] == " w7"
    np.testing.assert_allclose(first["logits"], b.logits[:, ids], atol=6e-4)
    assert [p["name"] for p in data["presets"]] == list(STARTS) and data["presets"][0]["values"] == [
        1.0,
        1.3,
        2.0,
        0.5,
    ]
    assert data["presets"][3]["values"] == [0.0, 1.3, 1.0, 0.0]


def test_sliders_reach_every_preset():
    wide = blanks.presets(dataclasses.replace(SETTINGS, alpha_expert=11.0, temperature=0.25))
    data = Page(blanks.html([item(blank())], Spelling(), wide, title="T").data).data
    for preset in data["presets"]:
        assert all(
            s["low"] <= value <= s["high"] for s, value in zip(data["sliders"], preset["values"], strict=True)
        )
    assert [s["key"] for s in data["sliders"]] == ["alpha_base", "temperature", "alpha_expert", "alpha_anti"]


def test_toxic_text_is_masked():
    b = blank(original="shit")
    found = text(dataclasses.replace(item(b), parts=["what a ", " bastard"]), token=" damn")
    assert censor.censored("shit") in found and not re.search(r"shit|bastard|damn", found)


@pytest.mark.parametrize("token", HOSTILE)
def test_tokens_and_texts_arrive_as_they_are(token):
    hostile = dataclasses.replace(item(blank(original=token)), parts=[token, token])
    [sentence] = page(hostile, token=token).data["sentences"]
    assert sentence["parts"] == [token, token]
    assert sentence["blanks"][0]["original"] == token and set(sentence["blanks"][0]["tokens"]) == {token}


def test_without_a_blank_the_element_says_so():
    found = page(Blanked(["nothing masked here"], [], "nothing masked here"))
    assert found.data["sentences"] == [] and "No sentence has a blank." in found.text
    json.dumps(page().data)
