"""The two scorers' encoders, training and rows, on small hand-made data: no public file is needed."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from companion.data import public
from companion.lm import models, tokens
from companion.toxicity import encoders, fine_tuned, groups, own_sentences, training, training_rows
from companion.toxicity.fine_tuned import FineTunedScorer
from companion.toxicity.training import Training

LONGEST = max(fine_tuned.MAX_TOKENS, training.MAX_TOKENS)
TEXTS = [
    "Thank you.",
    "You are a worthless idiot and everybody hates you for what you did to our street.",
    "The bridge was built in 1890.",
    "ok",
    "My Muslim neighbour is a generous man, and so are his sons.",
]
ENCODERS = ("gemma", "minilm", "smollm")


@pytest.fixture(scope="module")
def gemma() -> models.LanguageModel:
    """All of Gemma, in fp32. Read-only."""
    return models.load(models.JUDGE)


@pytest.fixture(scope="module")
def smollm() -> models.LanguageModel:
    """All of SmolLM2, in fp32. Read-only."""
    return models.load(models.EMBEDDED)


@pytest.fixture(scope="module")
def encoder_of(gemma, smollm):
    """All encoders; a half shares its weights with the whole. Read-only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders.models, "load", {models.JUDGE: gemma, models.EMBEDDED: smollm}.get)
        return {
            "gemma": encoders.HalfGemma(),
            "minilm": encoders.MiniLM(),
            "smollm": encoders.HalfSmolLM(),
        }


@pytest.fixture(params=ENCODERS)
def encoder(request, encoder_of) -> encoders.Encoder:
    return encoder_of[request.param]


@torch.no_grad()
def states(encoder: encoders.Encoder, batch: tokens.Batch, layers: slice = slice(None)) -> Tensor:
    return encoder.run(encoder.embed(batch), batch.mask, layers)


@torch.no_grad()
def pooled(encoder: encoders.Encoder, texts: list[str]) -> Tensor:
    """Features of texts that are padded to one length."""
    batch = tokens.pad(encoder.encode(texts, LONGEST), "right")
    return encoder.pool(states(encoder, batch), batch.mask)


def apart(found: Tensor, right: Tensor) -> float:
    """Distance relative to the length of the vectors, the largest of all rows."""
    return float(((found - right).norm(dim=-1) / right.norm(dim=-1)).max())


# --- encoders ------------------------------------------------------------------------------------


def test_padding_does_not_change_features(encoder):
    together = pooled(encoder, TEXTS)
    assert together.shape == (len(TEXTS), encoder.width) and together.dtype == torch.float32
    assert apart(together, torch.cat([pooled(encoder, [text]) for text in TEXTS])) < 1e-4
    assert min(apart(a[None], b[None]) for i, a in enumerate(together) for b in together[:i]) > 0.01


def test_an_empty_text_has_features(encoder):
    features = pooled(encoder, ["", *TEXTS[:2]])
    assert features.isfinite().all() and apart(features[:1], pooled(encoder, [""])) < 1e-4


@pytest.mark.parametrize(("name", "layers"), [("gemma", 9), ("smollm", 14)])
def test_a_half_is_what_enters_the_next_layer_of_the_whole(request, encoder_of, name, layers):
    encoder, lm = encoder_of[name], request.getfixturevalue(name)
    batch = tokens.pad(encoder.encode(TEXTS, LONGEST), "right")
    ours = states(encoder, batch)
    with torch.inference_mode():
        whole = lm.model(batch.ids, attention_mask=batch.mask.long(), output_hidden_states=True)
    assert apart(ours[batch.mask], whole.hidden_states[layers][batch.mask]) < 1e-4
    assert apart(ours[batch.mask], whole.hidden_states[layers - 1][batch.mask]) > 0.01  # neighbours differ


@pytest.mark.parametrize("name", ["gemma", "smollm"])
def test_every_text_begins_with_the_same_token_and_is_cut_to_length(encoder_of, name):
    encoder = encoder_of[name]
    rows = encoder.encode(["", "ok", "word " * 300], 20)
    assert {row[0] for row in rows} == {encoder.first} and max(map(len, rows)) == 20


def test_no_mask_is_needed_for_a_text_in_the_window(gemma):
    assert gemma.model.config.sliding_window >= LONGEST


def test_minilm_is_what_transformers_computes(encoder_of):
    reference, tokenizer = encoders.load_encoder()
    batch = tokens.pad(tokens.encode(tokenizer, TEXTS), "right")
    with torch.inference_mode():
        right = reference(input_ids=batch.ids, attention_mask=batch.mask.long()).last_hidden_state
    assert apart(states(encoder_of["minilm"], batch)[batch.mask], right[batch.mask]) < 1e-5


@pytest.mark.parametrize("name", ENCODERS)
def test_frozen_states_and_trained_layers_are_the_full_pass(encoder_of, name):
    """Up to bf16, in which training keeps the states and computes."""
    encoder = encoder_of[name]
    run = Training.__new__(Training)  # its frozen states need no more
    run.encoder, run.ids = encoder, encoder.encode(TEXTS, LONGEST)
    run.frozen, run.trained = slice(0, encoder.n_frozen), slice(encoder.n_frozen, None)
    run.states = run._frozen_states()
    assert [len(s) for s in run.states] == [len(ids) for ids in run.ids]
    order = [3, 0, 4, 1, 2]
    kept, mask = run._padded(order)
    assert mask.sum(1).tolist() == [len(run.ids[i]) for i in order]
    with torch.no_grad():
        found = encoder.pool(encoder.run(kept, mask, run.trained), mask)
        batch = tokens.pad([run.ids[i] for i in order], "right")
        halves = encoder.run(states(encoder, batch, run.frozen), batch.mask, run.trained)
    assert apart(halves[batch.mask], states(encoder, batch)[batch.mask]) < 1e-6  # in fp32 the same
    assert apart(found, pooled(encoder, [TEXTS[i] for i in order])) < 0.03


# --- training ------------------------------------------------------------------------------------


def table() -> pd.DataFrame:
    """Ten rows of mixed length, some with a partner about another group."""
    harmless = [
        "You are a kind person.",
        "My Muslim neighbour is kind.",
        "Thank you!",
        "What a day",
        "Jews live here.",
    ]
    toxic = [
        "You are a worthless idiot.",
        "Muslims are idiots.",
        "Shut up!",
        "Get lost, moron",
        "Jews are scum.",
    ]
    rows = pd.DataFrame({"text": [*harmless, *toxic], "label": [0.0] * 5 + [1.0, 1.0, 1.0, 0.8, 1.0]})
    return rows.assign(
        source=["own", "harvest"] * 5,
        weight=np.linspace(0.5, 1.5, 10),
        exchanged=[text.replace("Muslim", "Hindu").replace("Jews", "Sikhs") for text in rows.text],
    ).assign(exchanged=lambda t: t.exchanged.where(t.exchanged != t.text, ""))


@pytest.fixture
def small(monkeypatch):
    """Settings for a training of three steps, saved after the second."""
    monkeypatch.setattr(encoders.MiniLM, "epochs", 1)
    for name, value in {"BATCH": 4, "SAVED_EVERY": 2, "WARMUP": 1}.items():
        monkeypatch.setattr(training, name, value)


def begun(folder: Path) -> Training:
    folder.mkdir(exist_ok=True, parents=True)
    return Training(encoders.MiniLM, table(), folder)


def weights_of(run: Training) -> dict[str, Tensor]:
    adapter = {key: value.clone() for key, value in run.model.state_dict().items() if "lora_" in key}
    return adapter | {f"head.{key}": value.clone() for key, value in run.head.state_dict().items()}


def test_training_changes_the_adapter_and_the_head_only(small, tmp_path, monkeypatch):
    run = begun(tmp_path / "second")
    assert len(run.plan) == 3 and sorted(i for batch in run.plan for i in batch) == [*range(10)]
    assert sum(p.numel() for p in run.adapter) < 1e6 and all("lora_" in n for n, p in _trained(run.model))
    before, frozen = (
        weights_of(run),
        {n: p.clone() for n, p in run.model.named_parameters() if not p.requires_grad},
    )
    losses, step = [], run._step
    monkeypatch.setattr(run, "_step", lambda i: losses.append(step(i)) or losses[-1])
    run.finish()
    assert len(losses) == 3 and np.isfinite(losses).all() and losses[0] > 0.1
    after = weights_of(run)
    same = {key for key in after if torch.equal(after[key], before[key])}
    assert same == {"head.mean", "head.deviation"}
    assert all(torch.equal(p, frozen[n]) for n, p in run.model.named_parameters() if n in frozen)


def _trained(model: torch.nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def test_an_interrupted_training_ends_as_an_uninterrupted_one(small, tmp_path, monkeypatch):
    """Six steps, cut in the fourth: the third is made again, with its dropout, momentum and rate."""
    monkeypatch.setattr(encoders.MiniLM, "epochs", 2)
    whole = begun(tmp_path / "whole" / "second")
    whole.finish()

    cut = begun(tmp_path / "cut" / "second")
    step = cut._step

    def interrupted(number: int) -> float:
        if number == 3:
            raise KeyboardInterrupt
        return step(number)

    monkeypatch.setattr(cut, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cut.finish()
    torch.manual_seed(123)  # another process has another state
    resumed = begun(cut.checkpoint.parent)
    made: list[int] = []
    step_again = resumed._step
    monkeypatch.setattr(resumed, "_step", lambda i: made.append(i) or step_again(i))
    resumed.finish()
    assert made == [2, 3, 4, 5]
    right, found = weights_of(whole), weights_of(resumed)
    assert set(right) == set(found) and all(torch.equal(right[key], found[key]) for key in right)
    assert any(
        not torch.equal(value, weights_of(cut)[key]) for key, value in right.items()
    )  # later steps count


def test_a_text_and_its_exchange_are_drawn_together(small, tmp_path):
    """The loss grows with the distance between both logits, and with nothing else of the pair."""
    run = begun(tmp_path / "second")
    assert {run.rows.text[i] for i in run.partner} == {t for t in run.rows.text if groups.named_in(t)}
    chosen, paired = [1, 6], [1]
    near = run._loss(torch.tensor([0.0, 0.0, 0.0]), chosen, paired)
    far = run._loss(torch.tensor([3.0, 0.0, 0.0]), chosen, paired)
    assert far > run._loss(torch.tensor([3.0, 0.0]), chosen, []) > 0
    beyond = run._loss(torch.tensor([-1e3, 0.0, 1e3]), chosen, paired)
    assert near < far < beyond and beyond.isfinite()


def test_a_trained_scorer_is_loaded_as_it_was(small, tmp_path, monkeypatch):
    """All of ``training.train``, on hand-made rows."""
    rows = table()
    labelled = rows.assign(split=["train", "dev"] * 5, label=(rows.label > 0.5).astype(int))
    monkeypatch.setattr(training_rows, "table", lambda name, seed: rows)
    monkeypatch.setattr(public, "labelled", lambda: labelled.assign(source="jigsaw"))
    few = own_sentences.frames("dev")[:6]
    monkeypatch.setattr(own_sentences, "frames", lambda part: {"dev": few}[part])
    monkeypatch.setattr(training_rows, "dealt", lambda rows, scorer: rows)
    monkeypatch.setitem(fine_tuned.READERS, "second", {"minilm": encoders.MiniLM})
    scorer = training.train("second", tmp_path)
    folder = tmp_path / "second"
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written == set(fine_tuned.files("second"))
    config = (folder / "minilm" / "adapter_config.json").read_text(encoding="utf-8")
    assert encoders.MiniLM.source in config and str(tmp_path) not in config
    scores = scorer(TEXTS)
    assert scores.shape == (len(TEXTS),) and ((scores >= 0) & (scores <= 1)).all()
    again = FineTunedScorer.load("second", tmp_path)
    assert (again(TEXTS) == scores).all() and again.fingerprint == scorer.fingerprint
    with (folder / "minilm" / "adapter_config.json").open("a", encoding="utf-8") as file:
        file.write("\n")
    assert FineTunedScorer.load("second", tmp_path).fingerprint != scorer.fingerprint


# --- rows ----------------------------------------------------------------------------------------


def test_rows_are_dealt_to_one_scorer_each():
    rows = pd.DataFrame({"text": [f"text number {i}" for i in range(3000)]})
    dealt = {name: training_rows.dealt(rows, name) for name in training_rows.QUARTERS}
    first, second = (set(dealt[name].index) for name in fine_tuned.READERS)
    assert set(dealt) == set(fine_tuned.READERS) and not first & second and first | second == set(rows.index)
    assert 0.72 < len(first) / len(rows) < 0.78
    # the split into parts has the same hash: the quarters must not follow it
    train = rows[[public.dev_or_train(text) == "train" for text in rows.text]]
    assert 0.71 < len(training_rows.dealt(train, "embedded")) / len(train) < 0.79
    spaced = rows.assign(text=" " + rows.text + "\n")
    assert set(training_rows.dealt(spaced, "second").index) == second  # by what is written


def test_weights_balance_sources_and_classes():
    counts = {("jigsaw", 0): 30, ("jigsaw", 1): 10, ("own", 0): 5, ("own", 1): 20, ("paradetox", 0): 7}
    counts |= {("paradetox", 1): 7, ("talk", 0): 40, ("talk", 1): 2}
    rows = pd.DataFrame(
        [("x", float(side), source) for (source, side), n in counts.items() for _ in range(n)]
    )
    rows.columns = ["text", "label", "source"]
    rows.loc[rows.source == "talk", "label"] = np.linspace(0, 0.9, 42)
    rows["weight"] = training_rows.weights(rows, training_rows.SHARE)
    assert rows.weight.mean() == pytest.approx(1) and rows.weight.min() > 0
    sums = rows.groupby(["source", rows.label >= 0.5]).weight.sum()
    for source in ("jigsaw", "own", "paradetox"):
        assert sums[source][False] == pytest.approx(sums[source][True])
        shares = training_rows.SHARE[source] / training_rows.SHARE["jigsaw"]
        assert sums[source].sum() == pytest.approx(sums["jigsaw"].sum() * shares)
    talk = rows[rows.source == "talk"].weight  # at its natural rate: every comment counts the same
    assert talk.nunique() == 1
    # what the share says of a class elsewhere it says of all comments here
    assert talk.sum() == pytest.approx(
        sums["jigsaw"].mean() * training_rows.SHARE["talk"] / training_rows.SHARE["jigsaw"]
    )


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_weights_of_one_class_and_one_row_are_finite(label):
    rows = pd.DataFrame({"text": ["x"], "label": [label], "source": ["talk"]})
    assert training_rows.weights(rows, training_rows.SHARE) == pytest.approx([1.0])


def test_a_disguise_is_reproducible_and_hits_the_chosen_word():
    text, seen = "he is so wonderful to us", set()
    for seed in range(60):
        disguised = training_rows.disguised(text, random.Random(seed))
        assert disguised == training_rows.disguised(text, random.Random(seed))
        middle = re.fullmatch(r"he is so (.+) to us", disguised)
        assert middle and middle[1] != "wonderful"
        seen.add(middle[1])
    assert {"w o n d e r f u l", "w.o.n.d.e.r.f.u.l", "w0nd3rful", "WONDERFUL"} <= seen
    assert any("*" in word for word in seen)


def test_a_disguise_leaves_short_words_and_most_long_ones():
    assert training_rows.disguised("so he is an ox, 12345!", random.Random(0)) == "so he is an ox, 12345!"
    assert training_rows.disguised("", random.Random(0)) == ""
    words = [f"{letter * 3}wordy" for letter in "abcdefghijkl"]
    for seed in range(20):
        new = training_rows.disguised(" ".join(words), random.Random(seed))
        assert len(set(words) - set(new.split(" "))) <= 1 + len(words) // 6


@pytest.mark.parametrize(
    "text", ["A person waits.", "Our friends came, and the teacher.", "my brother is a an actor"]
)
def test_a_mention_names_one_group(text):
    for seed in range(20):
        new = training_rows.mentioning(text, random.Random(seed))
        assert new is not None and new == training_rows.mentioning(text, random.Random(seed))
        named = groups.named_in(training_rows.PERSON.sub("", new))
        assert len(named) == 1
        noun = training_rows.PERSON.search(text)
        assert noun and f"{named[0]} {noun.group()}" in new.lower()
        assert groups.with_articles(new) == new


@pytest.mark.parametrize("text", ["", "It rains.", "My Muslim friend.", "Immigrants and their children."])
def test_nothing_is_mentioned_without_a_noun_or_beside_a_group(text):
    assert training_rows.mentioning(text, random.Random(0)) is None


@pytest.fixture
def public_rows(tmp_path, monkeypatch) -> pd.DataFrame:
    """Hand-made public data of all parts; a part's name is a word of its texts."""
    monkeypatch.setattr(training_rows, "PER_FRAME", {"embedded": 1, "second": 1})
    rows = pd.DataFrame(
        [
            (f"{part} my friend wrote sentence {i} of {source}", i % 2, source, part)
            for source in public.EVALUATION_MODULUS
            for part in ("train", "dev", "eval")
            for i in range(40)
        ],
        columns=["text", "label", "source", "split"],
    )
    comments = pd.DataFrame({"text": [f"talk page comment, number {i}" for i in range(30)], "api": 0.1})
    comments.to_csv(tmp_path / "talk.csv", index=False)
    monkeypatch.setattr(public, "labelled", lambda: rows)
    monkeypatch.setattr(public, "fetch", {"jigsaw/talk_pages.csv": tmp_path / "talk.csv"}.__getitem__)
    return rows


@pytest.fixture
def read_parts(monkeypatch) -> list[str]:
    """The parts of our own sentences that are read during the test."""
    parts, frames = [], own_sentences.frames
    monkeypatch.setattr(own_sentences, "frames", lambda part: parts.append(part) or frames(part))
    return parts


def test_training_reads_training_rows_only(public_rows, read_parts):
    """Public dev and evaluation rows, and own dev sentences, are never read."""
    tables = {name: training_rows.table(name, seed=0) for name in fine_tuned.READERS}
    assert set(read_parts) == {"train"}
    for rows in tables.values():
        assert list(rows.columns) == ["text", "label", "source", "weight", "exchanged"]
        assert set(rows.source) == set(training_rows.SHARE)
        assert rows.weight.mean() == pytest.approx(1) and rows.label.between(0, 1).all()
        assert not rows.text.str.contains(r"\b(?:dev|eval)\b my").any()
        assert (rows.text != "").all() and rows.index.is_unique
    first, second = (set(tables[name].query("source != 'own'").text) for name in fine_tuned.READERS)
    assert not first & second


def test_rows_are_the_same_for_the_same_seed(public_rows):
    first, again = (training_rows.table("second", seed=0) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    assert not first.text.equals(training_rows.table("second", seed=1).text)


def test_calibration_reads_dev_rows_only(public_rows, read_parts):
    rows = training.dev_rows()
    assert read_parts == ["dev"]
    public_part = rows[rows.source != "own"]
    assert public_part.text.str.startswith("dev ").all() and set(rows.source) == {
        *public.EVALUATION_MODULUS,
        "own",
    }
