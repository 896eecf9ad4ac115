"""MaRCo: words, noise, denoisers, masking and rewriting, against references computed by hand."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import random
import re
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners import lora
from scipy.spatial.distance import jensenshannon
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

from companion.errors import CompanionError
from companion.lm import tiny, trie
from companion.lm.trie import pack
from companion.marco.denoisers import causal, mixed_lora
from companion.marco.denoisers.causal import PrefixDenoiser
from companion.marco.denoisers.encoder_decoder import Seq2SeqDenoiser
from companion.marco.denoisers.protocol import ANTI_EXPERT, BASE, EXPERT, ROLES
from companion.marco.evaluation import baselines, quality
from companion.marco.experts import adapter_training, corpus, examples, noise
from companion.marco.rewriting import documents, masking, script, words
from companion.marco.rewriting.masking import Masking
from companion.marco.rewriting.rewriter import Rewrite, Rewriter, fill, penalised, product
from companion.marco.rewriting.settings import Settings, alone
from companion.metrics import perplexity

TEXTS = [
    "I am so fed up.",
    "You (really) are, you know!",
    "ok",
    "well-known don't f*** 😀 @you #tag https://a.b/c",
    "so it goes, and so it went",
]


def adapters(lm, seed: int = 3, scale: float = 0.3) -> PrefixDenoiser:
    """Three adapters with random weights on a copy of a tiny model."""
    lm = dataclasses.replace(lm, model=copy.deepcopy(lm.model))
    denoiser = adapter_training.attach(lm, adapter_training.AdapterConfig(rank=2, alpha=2))
    for name in (EXPERT, ANTI_EXPERT):
        denoiser.model.add_adapter(name, denoiser.model.peft_config[BASE])
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in denoiser.model.named_parameters():
        if "lora_" in name:
            parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    denoiser.model.eval()
    return denoiser


def bart() -> Seq2SeqDenoiser:
    """Three tiny random encoder-decoders over bytes."""
    tokenizer: PreTrainedTokenizerFast = tiny.byte_tokenizer()
    tokenizer.add_special_tokens({"mask_token": tiny.MARKS[0], "bos_token": tiny.MARKS[1]})
    sizes = {
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "max_position_embeddings": 1024,
    }
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": len(tokenizer)}
    ends = {
        "bos_token_id": 258,
        "pad_token_id": 0,
        "eos_token_id": 0,
        "decoder_start_token_id": 0,
        "forced_eos_token_id": 0,
    }
    models = {}
    for seed, role in enumerate(ROLES):
        torch.manual_seed(seed)
        models[role] = BartForConditionalGeneration(BartConfig(**sizes, **heads, **ends, init_std=0.3))
    return Seq2SeqDenoiser(models, tokenizer)


@pytest.fixture(scope="module", params=["causal", "encoder-decoder"])
def denoiser(request, lively_llama):
    return adapters(lively_llama) if request.param == "causal" else bart()


def by_hand(denoiser, role: str, source: list[int], target: list[int]) -> torch.Tensor:
    """Next-token logits by the plainest calls there are."""
    if isinstance(denoiser, Seq2SeqDenoiser):
        begun = [0, denoiser.tokenizer.bos_token_id]
        ids = torch.tensor([[denoiser.tokenizer.bos_token_id, *source, denoiser.end_id]])
        with torch.no_grad():
            return denoiser.models[role](
                input_ids=ids, decoder_input_ids=torch.tensor([[*begun, *target]])
            ).logits[0, -1]
    with torch.no_grad(), denoiser.model.disable_adapter():
        cache = denoiser.model(
            input_ids=torch.tensor([[denoiser.end_id, *source]]), use_cache=True
        ).past_key_values
    denoiser.model.set_adapter(role)
    with torch.no_grad():
        return denoiser.model(
            input_ids=torch.tensor([[denoiser.separator_id, *target]]), past_key_values=cache
        ).logits[0, -1]


def test_trie_holds_each_beginning_once_and_every_sequence():
    rows = [[1, 2, 3], [1, 2, 4, 5], [9], [1, 2, 3]]
    packed = pack(rows)
    assert len(packed.ids) == 6
    for row, end in zip(rows, packed.ends, strict=True):
        line = packed.ancestors[end].nonzero()[:, 0]
        assert [packed.ids[i] for i in line] == row
        assert [packed.depth[i] for i in line] == list(range(len(row)))


def test_packed_and_batched_scores_equal_one_at_a_time(denoiser):
    sentences = [words.split(denoiser, text) for text in TEXTS]
    rows = [
        (s.masked([j], denoiser.mask_id), s.ids[: w.tokens.start])
        for s in sentences
        for j, w in enumerate(s.words)
    ]
    sources, targets = zip(*rows, strict=True)
    found = torch.cat(list(denoiser.next_logits((EXPERT, ANTI_EXPERT), sources, targets)), dim=1)
    assert found.shape[:2] == (2, len(rows))
    for i, (source, target) in enumerate(rows):
        for r, role in enumerate((EXPERT, ANTI_EXPERT)):
            expected = by_hand(denoiser, role, source, target)
            assert torch.allclose(found[r, i], expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("begun", [(0, 0, 0, 0, 0, 0), (3, 0, 2, 0, 5, 2)])
def test_writing_with_a_cache_equals_scoring_the_whole_target(denoiser, begun, monkeypatch):
    monkeypatch.setattr(causal, "ALIKE", 2)  # read in two groups
    sources = [denoiser.encode(text).ids for text in TEXTS[:3]] * 2
    roles = [EXPERT] * 3 + [BASE] * 3
    targets = [source[:k] for source, k in zip(sources, begun, strict=True)]
    decoding = denoiser.begin(roles, sources, targets)
    targets = [list(target) for target in targets]
    ids = None
    for _ in range(5):
        logits = decoding.step(ids)
        for role, source, target, row in zip(roles, sources, targets, logits, strict=True):
            expected = by_hand(denoiser, role, source, target)
            assert torch.allclose(row, expected, atol=1e-4 * float(expected.abs().max()))
        ids = logits[:, 40:120].argmax(-1) + 40
        for target, token in zip(targets, ids.tolist(), strict=True):
            target.append(token)


def test_targets_that_are_dropped_leave_the_others_alone(denoiser):
    sources = [denoiser.encode(text).ids for text in TEXTS[:3]] * 2
    roles = [EXPERT, BASE, ANTI_EXPERT] * 2
    decoding = denoiser.begin(roles, sources, [source[:2] for source in sources])
    decoding.step(None)
    targets = [[*source[:2], 70 + i] for i, source in enumerate(sources)]
    decoding.step(torch.tensor([target[-1] for target in targets]))
    for left in ([1, 2, 5], [0, 2]):  # the second time places among those that are left
        decoding.keep(left)
        roles, sources, targets = ([some[i] for i in left] for some in (roles, sources, targets))
        for target in targets:
            target.append(66)
        for role, source, target, row in zip(
            roles, sources, targets, decoding.step(torch.tensor([66] * len(left))), strict=True
        ):
            expected = by_hand(denoiser, role, source, target)
            assert torch.allclose(row, expected, atol=1e-4 * float(expected.abs().max()))


def test_surprise_is_the_sum_of_each_next_token(denoiser):
    sources = [denoiser.encode(text).ids for text in TEXTS]
    targets = [[*source[:4], 66] for source in reversed(sources)]
    found = denoiser.surprise((ANTI_EXPERT, BASE), sources, targets).detach()
    for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
        for r, role in enumerate((ANTI_EXPERT, BASE)):
            whole = [*target, denoiser.end_id]
            expected = -sum(
                by_hand(denoiser, role, source, whole[:k]).log_softmax(-1)[token]
                for k, token in enumerate(whole)
            )
            assert found[i, r].item() == pytest.approx(expected.item(), rel=1e-4)


def as_peft_does():
    """PEFT's own way with mixed batches."""
    return mock.patch.object(mixed_lora.MixedLinear, "_mixed_batch_forward", lora.Linear._mixed_batch_forward)


def test_mixed_batches_have_the_gradients_of_each_adapter_alone(lively_llama):
    denoiser = adapters(lively_llama)
    sources, targets = [[70, 5, 72], [5, 71]], [[70, 71, 72], [73, 71]]
    denoiser.surprise((ANTI_EXPERT, BASE), sources, targets)[:, 0].sum().backward()
    together = {
        name: p.grad.clone() for name, p in denoiser.model.named_parameters() if f".{ANTI_EXPERT}." in name
    }
    assert all(
        p.grad is None or not p.grad.any()
        for name, p in denoiser.model.named_parameters()
        if f".{BASE}." in name
    )
    denoiser.model.zero_grad()
    with as_peft_does():
        denoiser.surprise((ANTI_EXPERT,), sources, targets).sum().backward()
    for name, p in denoiser.model.named_parameters():
        if name in together:
            assert torch.allclose(together[name], p.grad, atol=1e-4 * float(p.grad.abs().max()) + 1e-9)


def test_the_roles_differ_and_the_base_model_is_as_it_was(lively_llama):
    before = lively_llama.model(input_ids=torch.tensor([[5, 6, 7]])).logits
    denoiser = adapters(lively_llama)
    scores = next(denoiser.next_logits(ROLES, [[5, 6, 7]], [[5]]))
    assert (scores[0] - scores[1]).abs().max() > 1e-3 and (scores[1] - scores[2]).abs().max() > 1e-3
    with denoiser.model.disable_adapter():
        assert torch.equal(denoiser.model(input_ids=torch.tensor([[5, 6, 7]])).logits, before)


def test_marks_in_a_users_text_are_plain_text(denoiser):
    ids = denoiser.encode(f"a {tiny.MARKS[0]} b {tiny.MARKS[1]}").ids
    assert not set(ids) & set(denoiser.marks)


@given(st.text(max_size=60))
def test_words_cover_the_text_and_tokens_belong_to_one_word(text):
    tokenizer_only = Seq2SeqDenoiser({}, tiny.byte_tokenizer())
    sentence = words.split(tokenizer_only, text)
    covered = "".join(text[w.start : w.end] for w in sentence.words)
    assert [c for c in covered if not c.isspace()] == [c for c in text if not c.isspace()]
    used = [t for w in sentence.words for t in w.tokens]
    assert used == sorted(set(used))
    assert sentence.masked([], -1) == sentence.ids


def test_what_may_be_masked(denoiser):
    sentence = words.split(denoiser, TEXTS[3])
    maskable = [TEXTS[3][w.start : w.end] for w in sentence.words if w.maskable]
    assert maskable == ["well-known", "don't", "f***"]


def test_divergences_equal_their_definitions():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 7, 50, generator=generator)
    p, q = a.softmax(-1).double().numpy(), b.softmax(-1).double().numpy()
    assert masking.jensen_shannon(a, b).numpy() == pytest.approx(jensenshannon(p, q, axis=-1) ** 2, rel=1e-4)
    jeffreys = 0.5 * ((p * np.log(p / q)).sum(-1) + (q * np.log(q / p)).sum(-1))
    assert masking.half_jeffreys(a, b).numpy() == pytest.approx(jeffreys, rel=1e-4)
    assert masking.jensen_shannon(a, a).abs().max() < 1e-6
    word = torch.tensor([3, 0, 49, 7, 7, 20, 1])
    odds = np.log(q / p)[np.arange(7), word.numpy()]
    assert masking.log_odds(a, b, word).numpy() == pytest.approx(odds, rel=1e-4)
    assert masking.log_odds(b, a, word).numpy() == pytest.approx(-odds, rel=1e-4)
    certain = torch.tensor([[100.0, 0.0]])
    assert masking.jensen_shannon(certain, certain.flip(-1)).item() == pytest.approx(np.log(2), rel=1e-6)


def test_divergence_of_each_word_is_that_of_its_blank(denoiser):
    sentences = [words.split(denoiser, text) for text in TEXTS]
    found, odds = (
        masking.divergences(denoiser, sentences),
        masking.divergences(denoiser, sentences, masking.log_odds),
    )
    for sentence, scores, own in zip(sentences, found, odds, strict=True):
        for j, word in enumerate(sentence.words):
            if not word.maskable:
                assert np.isnan(scores[j]) and np.isnan(own[j])
                continue
            logits = [
                by_hand(
                    denoiser, role, sentence.masked([j], denoiser.mask_id), sentence.ids[: word.tokens.start]
                )
                for role in (EXPERT, ANTI_EXPERT)
            ]
            assert scores[j] == pytest.approx(masking.jensen_shannon(*logits).item(), abs=1e-4)
            spelled = [0.0, 0.0]  # the word that stands there, token by token
            for t in word.tokens:
                for r, role in enumerate((EXPERT, ANTI_EXPERT)):
                    given = by_hand(denoiser, role, sentence.masked([j], denoiser.mask_id), sentence.ids[:t])
                    spelled[r] += given.log_softmax(-1)[sentence.ids[t]].item()
            assert own[j] == pytest.approx(spelled[1] - spelled[0], abs=1e-3)
    both = masking.scores(denoiser, sentences, (masking.jensen_shannon, masking.log_odds))
    for one, same in ((found, both[masking.jensen_shannon]), (odds, both[masking.log_odds])):
        assert all(np.allclose(a, b, atol=1e-5, equal_nan=True) for a, b in zip(one, same, strict=True))


def test_words_blanked_together(denoiser):
    sentence = words.split(denoiser, "You're not thick, Anna; don't (ever) call me a big fat liar again!")
    spelled = [sentence.text[w.start : w.end] for w in sentence.words]
    assert [[spelled[j] for j in blanks] for blanks in masking.together(sentence, 3)] == [
        ["thick", "big"],
        ["Anna", "fat"],
        ["call", "liar"],
    ]
    assert masking.together(sentence, 1) == [sentence.content]
    assert masking.together(sentence, 9) == [[j] for j in sentence.content]
    assert masking.together(sentence) == [[j] for j, word in enumerate(sentence.words) if word.maskable]
    assert (
        masking.together(words.split(denoiser, "it isn't, is it?"), 3)
        == masking.together(words.split(denoiser, ""), 3)
        == []
    )


def test_each_word_of_a_group_is_scored_with_all_its_blanks(denoiser):
    texts = [*TEXTS, "what utter rubbish, nobody ever heard such nonsense", "it is", ""]
    sentences = [words.split(denoiser, text) for text in texts]
    found = masking.scores(denoiser, sentences, (masking.jensen_shannon, masking.log_odds), every=2)
    for i, sentence in enumerate(sentences):
        js, odds = (found[measure][i] for measure in (masking.jensen_shannon, masking.log_odds))
        assert (
            np.flatnonzero(~np.isnan(js)).tolist()
            == np.flatnonzero(~np.isnan(odds)).tolist()
            == sentence.content
        )
        for blanks in masking.together(sentence, 2):
            source = sentence.masked(blanks, denoiser.mask_id)
            for j in blanks:
                spelled = []
                for t in sentence.words[j].tokens:
                    spelled.append(
                        [by_hand(denoiser, role, source, sentence.ids[:t]) for role in (EXPERT, ANTI_EXPERT)]
                    )
                assert js[j] == pytest.approx(masking.jensen_shannon(*spelled[0]).item(), abs=1e-4)
                each = [
                    masking.log_odds(*pair, torch.tensor(sentence.ids[t])).item()
                    for t, pair in zip(sentence.words[j].tokens, spelled, strict=True)
                ]
                assert odds[j] == pytest.approx(sum(each), abs=1e-3)


def test_what_is_blanked_together_changes_the_masks(denoiser):
    """The rewriter scores as its settings say."""
    text = "what utter rubbish, nobody ever heard such nonsense"
    settings = dataclasses.replace(SETTINGS, masking=masking.ours(0.0))
    for every in (None, 1, masking.EVERY):
        rewrite = Rewriter(
            denoiser,
            dataclasses.replace(settings, masking=dataclasses.replace(settings.masking, every=every)),
        )([text])[0]
        expected = masking.divergences(denoiser, [rewrite.sentence], masking.log_odds, every)[0]
        np.testing.assert_allclose(rewrite.divergence, expected, atol=1e-4)
        assert rewrite.masked == masking.choose(rewrite.divergence, settings.masking)


def test_packs_hold_every_row_in_order_and_little_more_than_they_may():
    generator = random.Random(0)
    rows = []
    for _ in range(60):
        ids = [generator.randrange(9, 99) for _ in range(generator.randrange(1, 60))]
        for k in range(min(3, len(ids))):
            blanked = [5 if i % 3 == k else token for i, token in enumerate(ids)]
            for t in range(k, len(ids), 3):
                rows.append([*blanked, 3, *ids[:t]])
    packs = trie.packs(rows)
    assert [i for chosen in packs for i in chosen] == list(range(len(rows)))
    sizes = [len(pack([rows[i] for i in chosen]).ids) for chosen in packs]
    assert max(sizes) <= trie.PACK and sorted(sizes)[len(sizes) // 2] > 0.6 * trie.PACK


def test_choice_of_words():
    scores = np.array([np.nan, 0.1, 0.4, np.nan, 0.1])
    assert masking.choose(scores, Masking(0.3)) == [2]
    assert masking.choose(scores, Masking(1.2, relative=True)) == [2]
    assert masking.choose(scores, Masking(0.5)) == []
    assert masking.choose(np.array([np.nan, np.nan]), Masking(0.0, relative=True)) == []


def test_the_published_index_map_masks_a_bracket():
    """Known defect 1: with marks at 2 and 3, the third kept word lands on a mark instead of 4."""
    scores = np.array([0.1, 0.1, np.nan, np.nan, 0.9])
    assert masking.choose(scores, Masking(0.5)) == [4]
    assert masking.choose(scores, Masking(0.5, published_index=True)) == [3]


def test_product_of_experts_by_hand():
    logits = torch.tensor([[[1.0, 2.0]], [[0.5, -1.0]], [[2.0, 0.0]]])
    settings = Settings(Masking(0.1), alpha_expert=4.0, alpha_anti=1.5, temperature=2.0)
    assert product(logits, settings.strengths).tolist() == [[0.5 + 2.0 - 3.0, 1.0 - 4.0]]


def test_repetition_penalty_by_hand():
    scores = torch.tensor([[2.0, -2.0, 3.0]])
    assert penalised(scores, torch.tensor([[0, 1, -1]]), 2.0).tolist() == [[1.0, -4.0, 3.0]]


SETTINGS = Settings(Masking(1.0, relative=True), alpha_expert=2.0, alpha_anti=0.5, temperature=1.3)


def test_rewrites_equal_a_loop_without_cache_or_batch(denoiser):
    """Free writing, step by step with the plainest calls."""
    settings = dataclasses.replace(SETTINGS, anchored=False, repetition_penalty=1.2)
    checked = [r for r in Rewriter(denoiser, settings)(TEXTS) if r.masked][:2]
    assert checked
    for rewrite in checked:
        source, written = rewrite.sentence.masked(rewrite.masked, denoiser.mask_id), []
        while len(written) < 2 * len(rewrite.sentence.ids) + script.ROOM:
            logits = torch.stack(
                [
                    by_hand(denoiser, r, s, written)[None]
                    for r, s in zip(ROLES, (rewrite.sentence.ids, source, source), strict=True)
                ]
            )
            scores = penalised(product(logits, settings.strengths), torch.tensor([written or [-1]]), 1.2)[0]
            scores[[i for i in denoiser.marks if i != denoiser.end_id]] = -torch.inf
            if int(scores.argmax()) == denoiser.end_id:
                break
            written.append(int(scores.argmax()))
        assert denoiser.decode(written) == rewrite.text


def test_anchored_rewrites_keep_every_word_that_is_not_masked(denoiser):
    rewriter = Rewriter(denoiser, SETTINGS)
    for rewrite in rewriter(TEXTS):
        gone = set(rewrite.masked)
        at = 0
        for j, word in enumerate(rewrite.sentence.words):
            if j not in gone:
                piece = rewrite.original[word.start : word.end]
                assert piece in rewrite.text[at:]
                at = rewrite.text.index(piece, at) + len(piece)


@pytest.mark.parametrize("anchored", [True, False])
def test_batched_rewrites_equal_single_ones(denoiser, anchored):
    rewriter = Rewriter(denoiser, dataclasses.replace(SETTINGS, anchored=anchored))
    assert [r.text for r in rewriter(TEXTS)] == [rewriter([text])[0].text for text in TEXTS]


@pytest.mark.parametrize("text", ["", " ", "?!...", "😀😀", "\x00\x01", "日本語の文", "ان هذا", "a\nb\tc"])
def test_odd_input_is_answered(denoiser, text):
    found = Rewriter(denoiser, SETTINGS)([text, "plain words"])
    assert len(found) == 2 and found[0].original == text


def test_noise_is_bart_infilling():
    """About 30 % of words go; some inputs stay whole; order is kept; spans are 3 words long on average."""
    text, lost, spans, intact = [[i] for i in range(40)], [], [], 0
    for seed in range(400):
        found = noise.infilled(text, -1, random.Random(seed))
        kept = [t for t in found if t >= 0]
        assert kept == sorted(kept)
        if len(kept) == 40 and -1 not in found:
            intact += 1
            continue
        lost.append(40 - len(kept))
        spans.append((40 - len(kept)) / found.count(-1))
    assert np.mean(lost) / 40 == pytest.approx(0.3, abs=0.05)
    assert 1.8 < np.mean(spans) < 3.2
    assert intact / 400 == pytest.approx(noise.INTACT_SHARE, abs=0.06)


def test_pairs_get_the_same_noise():
    """Shared words go together, differing places together; a side is left without its masked words."""
    shared = [[i] for i in range(12)]
    first, second = [*shared[:5], [90], [91], *shared[5:]], [*shared[:5], [80], *shared[5:]]
    masked = 0
    for seed in range(200):
        a, b = noise.infilled_pair(first, second, -1, random.Random(seed))
        # masks are -1: they stand in the same places, too
        assert [t for t in a if t < 80] == [t for t in b if t < 80]
        assert [t for t in a if t != -1] == [w[0] for w in first if w[0] in a] and [
            t for t in b if t != -1
        ] == [w[0] for w in second if w[0] in b]
        assert (90 in a) == (91 in a) == (80 in b)
        masked += 90 not in a
    assert masked / 200 > noise.DIFFERING_SHARE
    same, again = noise.infilled_pair(shared, shared, -1, random.Random(3))
    assert same == again


def test_both_experts_meet_the_same_sources_where_a_pair_is_masked(lively_llama):
    denoiser = adapters(lively_llama)
    rows = [("you are a fool now", "you are a friend now"), ("ok then", "ok then")] * 30
    toxic, civil = (examples.corrupted_pairs(denoiser, rows, side, 5, noise.USUAL) for side in (0, 1))
    assert [e.target for e in toxic] == [denoiser.encode(a).ids for a, _ in rows] and [
        e.target for e in civil
    ] == [denoiser.encode(b).ids for _, b in rows]
    # the same text twice: the same example but for its class
    assert all(a[:2] == b[:2] for a, b in zip(toxic[1::2], civil[1::2], strict=True))
    alike = [a.source == b.source for a, b in zip(toxic[::2], civil[::2], strict=True)]
    assert 0.4 < np.mean(alike) < 1


def test_training_resumes_to_the_same_bits(tiny_llama, tmp_path, monkeypatch):
    config = adapter_training.AdapterConfig(rank=2, batch_size=4, warmup=2)
    texts = ["a b c d e", "what is it", "no no no", "go on and on", "x y z", "the end of it"] * 3
    plain, calls = adapter_training.losses, []

    def run(folder):
        folder.mkdir(exist_ok=True)
        denoiser = adapter_training.attach(
            dataclasses.replace(tiny_llama, model=copy.deepcopy(tiny_llama.model)), config
        )

        def corrupt(rows, seed):
            return examples.corrupted(denoiser, [texts[i] for i in rows], seed)

        history = adapter_training.train(
            *(denoiser, BASE, texts, corrupt, {"held out": texts[:4]}),
            steps=60,
            rate=1e-2,
            config=config,
            folder=folder,
        )
        return {n: p.detach().clone() for n, p in denoiser.model.named_parameters() if "lora_" in n}, history

    def stopping(*given):
        calls.append(1)
        if len(calls) == 37:
            raise KeyboardInterrupt
        return plain(*given)

    whole, history = run(tmp_path / "whole")
    monkeypatch.setattr(adapter_training, "losses", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped")
    resumed, again = run(tmp_path / "stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [row["loss"] for row in history] == [row["loss"] for row in again]
    assert history[-1]["loss"] < history[0]["loss"]
    assert "held out" in history[-1]


@given(st.text(max_size=300))
def test_pieces_join_to_the_text(text):
    pieces = documents.cut(text)
    assert "".join(pieces) == text
    assert all(len(piece.split()) <= documents.PIECE for piece in pieces)


def by_words(text: str) -> list[str]:
    """The rule for text with spaces: after sentence ends and line breaks, and after 30 words."""
    pieces, words = [""], 0
    for part in re.findall(r"\s*\S+|\s+$", text):
        space = part[: len(part) - len(part.lstrip())]
        if words == 30 or (words and (re.search(r"[.!?…]['\")\]]*$", pieces[-1]) or "\n" in space)):
            pieces.append("")
            words = 0
        pieces[-1] += part
        words += 1
    return [piece for piece in pieces if piece]


ENGLISH = (
    "the cat sat, so it said ‘don’t’ naïve — well-known (really?) or 'no!' https://a.b/c?d=e.f#g mat. "
    "wait… OK? end.)"
)


@given(st.lists(st.sampled_from([*ENGLISH.split(), "\n", "\r\n", "\t"]), max_size=120))
def test_english_is_cut_by_sentences_and_words(some):
    """B32: as before there was a limit for text without spaces."""
    assert documents.cut(" ".join(some)) == by_words(" ".join(some))


RUNS = [
    "你们都",
    "😀",
    "。",
    "！」",
    "x",
    "a. b",
    " ",
    "\r",
    "\u2028",
    "é",
    "白" * 300,
    "y" * 900,
    "?!" * 200,
    " " * 500,
]


@given(st.lists(st.sampled_from(RUNS), max_size=90))
def test_text_without_spaces_is_cut_too(some):
    """B32: however it is written, pieces join to the text, and each is bounded. B10: and is one line."""
    text = "".join(some)
    pieces = documents.cut(text)
    assert "".join(pieces) == text and all(pieces)
    assert all(
        len(piece.strip().encode()) <= documents.LONG and len(piece.split()) <= documents.PIECE
        for piece in pieces
    )
    assert not any(documents.LINE_BREAK.search(piece.strip()) for piece in pieces)


def test_sentences_without_spaces_are_pieces():
    """B32."""
    assert documents.cut("你好。他说「走！」我不走？好") == ["你好。", "他说「走！」", "我不走？", "好"]
    assert documents.cut("see a.b.c/d!e, ok. Yes\rno\u2028so") == [
        "see a.b.c/d!e, ok.",
        " Yes",
        "\rno",
        "\u2028so",
    ]


def test_the_rewriter_reads_no_more_than_a_piece_at_a_time():
    """B32: a line of Chinese as long as a line may be; its 54,000 bytes were read at once."""
    seen = []

    def rewriter(texts: list[str]) -> list[Rewrite]:
        seen.extend(texts)
        assert len(texts) <= documents.PIECES
        return [Rewrite(text, text, words.Sentence(text, [], []), np.zeros(0)) for text in texts]

    text = "我不喜欢你们的房子" * 2000
    assert documents.rewrite(rewriter, [text])[0].text == text
    assert max(len(piece.encode()) for piece in seen) <= documents.LONG and len(seen) < len(text) / 100


@pytest.mark.parametrize("wrong", [None, "you idiot", ["a", None], ["a", "caf\udce9"]], ids=repr)
def test_what_is_no_list_of_texts_is_one_sentence(denoiser, tiny_llama, wrong, unchecked):
    """B12, B35."""
    rewriter, similarity = Rewriter(denoiser, SETTINGS), quality.Similarity()
    calls = [
        rewriter,
        lambda texts: documents.rewrite(rewriter, texts),
        lambda texts: baselines.delete(denoiser, texts),
    ]
    calls += [lambda texts: baselines.ask(tiny_llama, texts), lambda texts: perplexity.nll(tiny_llama, texts)]
    calls += [lambda texts: similarity(texts, texts), lambda texts: quality.bleu(texts, texts)]
    for call in calls:
        with pytest.raises(CompanionError, match=r"^[^\n]*(list of texts|texts\[1\])[^\n]*\.$"):
            call(wrong)


def test_any_sequence_of_texts_can_be_rewritten(denoiser):
    """B12: what worked goes on working."""
    texts, rewriter = ["so it goes, my friend", "ok then"], Rewriter(denoiser, SETTINGS)
    expected = [rewrite.text for rewrite in rewriter(texts)]
    for some in (tuple(texts), np.array(texts), pd.Series(texts, index=[3, 4])):
        assert [rewrite.text for rewrite in rewriter(some)] == expected
        assert [d.original for d in documents.rewrite(rewriter, some)] == texts
    assert rewriter([]) == documents.rewrite(rewriter, ()) == []


def test_long_texts_are_rewritten_in_pieces(denoiser):
    long = "It was late. " * 12 + "no stop here " * 14 + "\nnew line"
    texts = [long, "", "ok then", "  \n"]
    found = documents.rewrite(Rewriter(denoiser, SETTINGS), texts)
    assert [d.original for d in found] == texts
    assert len(found[0].pieces) > 12 and found[1].text == "" and found[3].text == "  \n"
    untouched = dataclasses.replace(SETTINGS, masking=Masking(9.0))
    assert [d.text for d in documents.rewrite(Rewriter(denoiser, untouched), texts)] == texts


def test_baselines_answer_each_text(denoiser, tiny_llama):
    texts = ["you damn tree", "a nice day", "shit happens, friend"]
    assert baselines.delete(denoiser, texts) == ["you tree", "a nice day", "happens, friend"]
    sentences = [words.split(denoiser, text) for text in texts]
    masked = [baselines.toxic_words(s) for s in sentences]
    assert masked == [[1], [], [0]]
    filled = fill(denoiser, sentences, masked, alone(SETTINGS), cast=(BASE,) * 3)
    assert filled[1] == texts[1] and filled[0].startswith("you") and filled[0].endswith("tree")


def test_refilling_is_the_base_model_on_the_masked_text(denoiser):
    sentence = words.split(denoiser, "so it goes")
    free = dataclasses.replace(SETTINGS, anchored=False)
    [found] = fill(denoiser, [sentence], [[1]], alone(free), cast=(BASE,) * 3)
    source, written = sentence.masked([1], denoiser.mask_id), []
    while len(written) < 2 * len(sentence.ids) + script.ROOM:
        scores = by_hand(denoiser, BASE, source, written)
        scores[[i for i in denoiser.marks if i != denoiser.end_id]] = -torch.inf
        if int(scores.argmax()) == denoiser.end_id:
            break
        written.append(int(scores.argmax()))
    assert denoiser.decode(written) == found


def test_asking_takes_the_first_line(tiny_llama, monkeypatch):
    monkeypatch.setattr(baselines, "NEW_TOKENS", 4)
    tokenizer = copy.deepcopy(tiny_llama.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    answers = baselines.ask(dataclasses.replace(tiny_llama, tokenizer=tokenizer), ["a", "b c"])
    assert len(answers) == 2 and not any("\n" in answer for answer in answers)


def test_similarity_is_one_for_equal_texts_and_ignores_order():
    same = quality.Similarity()
    texts = ["The train is late again.", "My soup is cold.", "a " * 40]
    assert same(texts, texts) == pytest.approx(np.ones(3), abs=1e-5)
    far = same(texts[:2], texts[1::-1])
    assert far[0] == pytest.approx(far[1], abs=1e-6) and far[0] < 0.5


def test_a_similarity_reads_equal_texts_once_and_pairs_each_with_its_own():
    same = quality.Similarity()
    texts, others = (
        ["a red bus", "a cold soup", "a red bus"],
        ["a cold soup", "a cold soup", "the bus is red"],
    )
    assert same(texts, others) == pytest.approx(
        [float(same([a], [b])[0]) for a, b in zip(texts, others, strict=True)], abs=1e-5
    )
    assert same([], []).shape == (0,)


@pytest.fixture(scope="module")
def token_similarity() -> quality.TokenSimilarity:
    return quality.TokenSimilarity()


PAIRS = [
    ("The train is late again.", "The bus is late again."),
    ("My soup is cold.", "What a lovely day it was in the garden!"),
    ("ok", "a " * 40),
]


def test_token_similarity_is_one_for_equal_texts_and_symmetric(token_similarity):
    texts, others = map(list, zip(*PAIRS, strict=True))
    assert token_similarity(texts, texts) == pytest.approx(np.ones(3), abs=1e-5)
    there, back = token_similarity(texts, others), token_similarity(others, texts)
    assert there == pytest.approx(back, abs=1e-6)
    assert there[1] < there[0] < 1  # one word differs, all words differ


def test_token_similarity_is_that_of_each_pair_alone(token_similarity):
    texts, others = map(list, zip(*PAIRS, strict=True))
    alone = [float(token_similarity([a], [b])[0]) for a, b in PAIRS]
    assert token_similarity([*texts, "one more"], [*others, "one more " * 30])[:3] == pytest.approx(
        alone, abs=1e-5
    )


def test_token_similarity_of_nothing(token_similarity):
    assert token_similarity(["", "a", ""], ["a", "", ""]).tolist() == [0, 0, 1]
    assert token_similarity([], []).shape == (0,)


def test_token_similarity_is_the_f1_of_greedy_matching(token_similarity, monkeypatch):
    """Precision matches each token of the text, recall each of the other; a token may serve twice."""
    r = 0.5**0.5
    known = {"text": [[1.0, 0.0], [0.0, 1.0]], "other": [[1.0, 0.0], [r, r], [r, -r]]}
    monkeypatch.setattr(
        token_similarity, "states", lambda texts: [torch.tensor(known[text]) for text in texts]
    )
    precision, recall = (1 + r) / 2, (1 + r + r) / 3
    assert token_similarity(["text"], ["other"]) == pytest.approx(
        [2 * precision * recall / (precision + recall)]
    )


def test_states_of_tokens_leave_out_the_special_ones(token_similarity):
    """As many unit vectors as word pieces, the same whatever is read with them."""
    texts = ["ok", "The train is late again.", "a " * 40]
    together = token_similarity.states(texts)
    assert [len(vectors) for vectors in together] == [1, 6, 40]
    for text, vectors in zip(texts, together, strict=True):
        assert vectors.norm(dim=-1).numpy() == pytest.approx(np.ones(len(vectors)), abs=1e-5)
        assert torch.allclose(vectors, token_similarity.states([text])[0], atol=1e-5)


def test_an_encoder_that_cannot_be_had_is_one_sentence(monkeypatch):
    def offline(name, *_, **__):
        raise OSError(f"{name} is not here\nand the network is off")

    monkeypatch.setattr(quality.AutoModel, "from_pretrained", offline)
    with pytest.raises(CompanionError, match=r"^the encoder 'roberta-large' [^\n]*\.$"):
        quality.TokenSimilarity("roberta-large")


def test_sentence_loss_is_that_of_the_text_alone(lively_llama):
    texts = [
        "a bc",
        "",
        "hello there you",
        lively_llama.tokenizer.eos_token,
    ]  # the last is what every text begins after
    sums, counts = perplexity.nll(lively_llama, texts)
    assert counts.tolist() == [4, 0, 15, 0] and sums[1] == sums[3] == 0
    ids = torch.tensor([[0, *lively_llama.tokenizer(texts[2])["input_ids"]]])
    assert sums[2] == pytest.approx(15 * lively_llama.model(ids, labels=ids).loss.item(), rel=1e-4)


def test_sentence_loss_does_not_depend_on_what_is_read_with_it(lively_llama, monkeypatch):
    texts = ["hello there you", "hello there", "hello there we are", "hello", "so it goes", "hello there you"]
    together = perplexity.nll(lively_llama, texts)
    monkeypatch.setattr(perplexity, "LOSS_TOKENS", 7)
    for k, text in enumerate(texts):
        for found in (
            perplexity.nll(lively_llama, [text]),
            [values[k : k + 1] for values in perplexity.nll(lively_llama, texts)],
        ):
            np.testing.assert_allclose(np.ravel(found), [values[k] for values in together], rtol=1e-5)


def test_joint_score_needs_all_three():
    assert quality.joint([0.4, 0.6, 0.1, 0.2], [0.9, 1.0, -0.3, 0.5], [1, 1, 1, 0]).tolist() == [0.9, 0, 0, 0]


def test_balanced_classes_share_their_styles(monkeypatch):
    """As many of both classes in each source and style; no row of another part or near an evaluation row."""
    kinds = list(itertools.product((("So", "."), ("so", "")), ("sbf", "jigsaw"), ("train", "eval")))
    rows = [
        (f"{start} w{i} x{i} y{i} z{i}{end}", i % 2, source, split)
        for i in range(60)
        for (start, end), source, split in kinds
    ]
    rows += [("SHOUTING at a row of its own", 1, "sbf", "train")]
    labelled = pd.DataFrame(rows, columns=["text", "label", "source", "split"])
    civil = pd.DataFrame(
        {"text": ["So this civil one goes."], "label": [1], "source": ["civil"], "split": ["train"]}
    )
    monkeypatch.setattr(corpus.public, "labelled", lambda: labelled)
    monkeypatch.setattr(corpus.public, "microaggressions", lambda split: ["so w7 x7 y7 z7"])
    monkeypatch.setattr(corpus, "_civil", lambda: civil)
    found = corpus.balanced("train")
    sizes = (
        found.assign(style=found.text.map(corpus.style), pool=found.source.replace("civil", "jigsaw"))
        .groupby(["pool", "style", "label"])
        .size()
        .unstack()
    )
    assert (sizes[0] == sizes[1]).all() and len(found) > 80
    assert not found.text.str.contains("SHOUTING|w7 ").any()
