"""``companion rewrite``, the adapters' files and the experts of each profile, with tiny models."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_marco import adapters as random_adapters
from typer.testing import CliRunner

from companion import cli, profiles, toxicity
from companion.errors import CompanionError
from companion.lm import models
from companion.marco import command, records
from companion.marco.command import Job, Measures
from companion.marco.denoisers import adapters
from companion.marco.denoisers.protocol import ANTI_EXPERT, BASE, EXPERT, ROLES
from companion.marco.experts import contrast_training, loading
from companion.marco.records import Record
from companion.marco.rewriting import masking, settings, words
from companion.marco.rewriting.choosing import Choice
from companion.marco.rewriting.documents import Document
from companion.marco.rewriting.masking import Masking
from companion.marco.rewriting.rewriter import Rewriter
from companion.marco.rewriting.settings import Settings

SETTINGS = Settings(Masking(1.0, relative=True), alpha_expert=3.0, alpha_anti=1.5, temperature=2.5)
CHOICE = {"threshold": 0.01, "strengths": [[2.0, 0.5, 1.0], [3.0, 1.5, 2.5]], "least": 0.5, "loss": 0.1}
CHOSEN = {"threshold": 0.03, "alpha_expert": 3.0, "alpha_anti": 1.5, "temperature": 2.5}


@pytest.fixture
def tiny_experts(tiny_llama, tmp_path):
    """A tiny model with three adapters of random weights, which are also saved in a folder."""
    denoiser = random_adapters(tiny_llama, seed=5, scale=0.2)
    adapters.save(denoiser, tmp_path / "adapters")
    return denoiser


@pytest.fixture
def rewriter(tiny_experts):
    return Rewriter(tiny_experts, SETTINGS)


@pytest.fixture
def shipped_folder(tiny_experts, tmp_path, monkeypatch):
    """A folder with the tiny adapters and settings, in the place of ``data/adapters``."""
    folder = tmp_path / "adapters"
    (folder / "settings.json").write_text(
        json.dumps({"rule": "none", "chosen": CHOSEN, "cautious": 0.5, "choice": CHOICE}), encoding="utf-8"
    )
    monkeypatch.setattr(adapters, "FOLDER", folder)
    return folder


def test_adapters_come_back_as_saved(tiny_experts, tiny_llama, tmp_path):
    loaded = adapters.load(
        dataclasses.replace(tiny_llama, model=copy.deepcopy(tiny_llama.model)), tmp_path / "adapters"
    )
    source, target = [[70, 71, 72]], [[70]]
    before, after = (next(d.next_logits(ROLES, source, target)) for d in (tiny_experts, loaded))
    assert torch.allclose(before, after, atol=2e-3 * float(before.abs().max()))
    assert (after[1] - after[2]).abs().max() > 1e-3


def test_missing_or_foreign_adapters_are_one_sentence(tiny_experts, tiny_llama, tmp_path):
    with pytest.raises(CompanionError, match="the adapter 'base' is not in"):
        adapters.load(tiny_llama, tmp_path)
    (tmp_path / "adapters" / "expert" / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(CompanionError, match="do not fit the model"):
        adapters.load(
            dataclasses.replace(tiny_llama, model=copy.deepcopy(tiny_llama.model)), tmp_path / "adapters"
        )


def weights(experts) -> dict[str, torch.Tensor]:
    return {
        name: parameter.detach()
        for name, parameter in experts.denoiser.model.named_parameters()
        if "lora_" in name
    }


def test_shipped_experts_have_the_chosen_settings(shipped_folder, tiny_experts):
    found = loading.of(profiles.load("smoke", experts="shipped"))
    usual, cautious = (
        Settings(masking.ours(t), alpha_expert=3.0, alpha_anti=1.5, temperature=2.5) for t in (0.03, 0.5)
    )
    among = Choice(((2.0, 0.5, 1.0), (3.0, 1.5, 2.5)), 0.5, 0.1)
    several = dataclasses.replace(usual, masking=masking.ours(0.01), choice=among)
    assert (found.settings, found.cautious, found.several) == (usual, cautious, several)
    assert settings.chosen(shipped_folder) == (usual, cautious, several)
    assert found.folder == shipped_folder
    source, target = [[70, 71, 72]], [[70]]
    before, after = (next(d.next_logits(ROLES, source, target)) for d in (tiny_experts, found.denoiser))
    assert torch.allclose(before, after, atol=2e-3 * float(before.abs().max()))


def test_a_fingerprint_is_that_of_model_and_adapters(shipped_folder):
    first, again = (loading.shipped(models.load("tiny-llama")).fingerprint for _ in range(2))
    assert first == again
    other = dataclasses.replace(models.load("tiny-llama"), fingerprint="another model")
    assert loading.shipped(other).fingerprint != first
    expert, anti = (shipped_folder / role / "adapter_model.safetensors" for role in (EXPERT, ANTI_EXPERT))
    swapped = anti.read_bytes()
    anti.write_bytes(expert.read_bytes())
    expert.write_bytes(swapped)
    assert loading.shipped(models.load("tiny-llama")).fingerprint != first


def test_small_experts_are_the_same_wherever_they_are_trained(tmp_path, monkeypatch):
    profile, found = profiles.load("smoke"), []
    for name in ("one", "two"):
        monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / name))
        found.append(loading.of(profile))
    monkeypatch.setattr(contrast_training, "train_all", None)  # the second time they come from the store
    found.append(loading.small(profile))
    for other in found[1:]:
        assert other.fingerprint == found[0].fingerprint and other.settings == found[0].settings
        assert all(torch.equal(value, weights(other)[name]) for name, value in weights(found[0]).items())
    assert (found[0].folder / "history.json").is_file()
    base, expert, anti = next(found[0].denoiser.next_logits(ROLES, [[70, 71, 72]], [[70]]))
    assert not torch.equal(base, expert) and not torch.equal(expert, anti)


def test_published_experts_play_their_own_roles(monkeypatch, unchecked):
    class Named(torch.nn.Linear):
        """Stands for a model and knows which one."""

        def __init__(self, name: str) -> None:
            super().__init__(1, 1)
            self.name, self.config = name, type("Config", (), {"_commit_hash": f"commit of {name}"})()

    tokenizer = models.load("tiny-llama").tokenizer
    monkeypatch.setattr(loading.AutoModelForSeq2SeqLM, "from_pretrained", Named)
    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", lambda name: tokenizer)
    found = loading.of(profiles.load("smoke", experts="bart"))
    assert {role: model.name.split("-")[-1] for role, model in found.denoiser.models.items()} == {
        BASE: "base",
        EXPERT: "expert",
        ANTI_EXPERT: "antiexpert",
    }
    assert "nontoxic" in found.denoiser.models[EXPERT].name
    assert found.settings == settings.PUBLISHED["microaggressions"] and found.folder is None


def test_experts_that_cannot_be_had_are_one_sentence(monkeypatch):
    def offline(name, *_, **__):
        raise OSError(f"{name} is not here\nand the network is off")

    monkeypatch.setattr(loading.AutoModelForSeq2SeqLM, "from_pretrained", offline)
    for experts in ("bart", "none", ""):
        with pytest.raises(CompanionError, match=r"^[^\n]*\.$"):
            loading.of(profiles.load("smoke", experts=experts))


BREAKS = ["a\u2028b\x0bc", "one\rtwo", "three\x85 four\r"]
LINES = [
    "so it goes, my friend",
    "",
    "?!",
    "😀 ok #tag",
    "日本語の文です",
    "ان هذا",
    " indented  twice ",
    "x" * 300,
    *BREAKS,
]


def job(rewriter, form="lines", **more) -> Job:
    return Job(rewriter, form, **more)


def rows_of(raw: bytes, form="lines", column="text") -> list[Record]:
    return list(records.read(io.BytesIO(raw), form, column))


def lines_of(lines: list[str]) -> list[Record]:
    return [Record(number, line, {}) for number, line in enumerate(lines, start=1)]


def made(job: Job, some: list[Record]) -> list[str]:
    return [line for _, _, line in command.stream(job, iter(some))]


class ByLength:
    """Stands for a scorer."""

    name = fingerprint = "by length"

    def __call__(self, texts):
        return np.array([min(1.0, len(text) / 100) for text in texts])


by_length = ByLength()
MEASURES = Measures({"embedded": by_length, "second": by_length}, lambda a, b: np.ones(len(list(a))))


def test_lines_in_lines_out(rewriter):
    found = made(job(rewriter), lines_of(LINES))
    assert len(found) == len(LINES)
    assert found[1] == "" and found[2] == "?!"
    assert all(len(line.splitlines()) <= 1 for line in found)  # B10: whatever a reader takes for a line end


def test_json_names_words_masks_and_toxicity(rewriter):
    found = made(job(rewriter, measures=MEASURES), lines_of(LINES))
    assert all(len(line.splitlines()) == 1 for line in found)
    rows = [json.loads(line) for line in found]
    assert [row["text"] for row in rows] == LINES
    assert [row["id"] for row in rows] == list(range(1, len(LINES) + 1))
    words = [w["word"] for w in rows[0]["words"]]
    assert words == ["so", "it", "goes", ",", "my", "friend"]
    score = rewriter.settings.masking.divergence.__name__  # what it is, by name
    assert rows[0]["words"][3][score] is None and rows[0]["words"][0][score] >= 0
    assert rows[0]["masked"] and set(rows[0]["masked"]) <= set(words)
    assert all(row["changed"] == (row["rewritten"] != row["text"]) for row in rows)
    assert rows[0]["toxicity"]["second"]["before"] == pytest.approx(len(LINES[0]) / 100)
    assert rows[0]["similarity"] == 1 and rows[0]["other_language"] is None


def test_csv_and_jsonl_keep_their_other_fields(rewriter):
    table = 'id,comment,when\n7,"so it goes, my friend",""\n8,"two\nlines, ""quoted""",now\n'
    some = rows_of(table.encode("utf-8-sig"), "csv", "comment")
    assert [row.text for row in some] == ["so it goes, my friend", 'two\nlines, "quoted"']
    out = [records.header("csv", some[0]), *made(job(rewriter, "csv"), some)]
    read = list(csv.DictReader(io.StringIO("\n".join(out))))
    assert [row["id"] for row in read] == ["7", "8"] and [row["when"] for row in read] == ["", "now"]
    assert [row["comment"] for row in read] == [row.text for row in some]
    objects = [{"n": 1, "text": "so it goes"}, {"text": "my friend", "tags": ["a"]}]
    raw = "\n\n".join(map(json.dumps, objects)).encode()
    new = [json.loads(line) for line in made(job(rewriter, "jsonl"), rows_of(raw, "jsonl"))]
    assert [{k: v for k, v in row.items() if k != "rewritten"} for row in new] == objects
    [first, _] = made(job(rewriter, "jsonl", measures=MEASURES), rows_of(raw, "jsonl"))
    assert json.loads(first)["n"] == 1


@pytest.mark.parametrize(
    ("raw", "form", "message"),
    [
        (b"", "lines", "nothing to rewrite"),
        (b"\n  \n", "lines", "nothing to rewrite"),
        (b"\xff\xfe\x00", "lines", "not UTF-8"),
        (b"a\x00b", "lines", "zero bytes"),
        (b"a\n" + b"x" * (records.LINE_LIMIT + 1), "lines", "line 2 has more than"),
        (b"a,b\n1,2\n", "csv", "no column 'text' .there are: a, b."),
        (b"text,rewritten\n1,2\n", "csv", "already has a column"),
        (b"text,b\n1,2,3\n", "csv", "row 1 of the CSV"),
        (b"text,b\n1\n", "csv", "row 1 of the CSV"),
        (b'text\n"a\n', "csv", "no CSV"),
        (b'{"text": "a"}\n[1]\n', "jsonl", "line 2 is no JSON object"),
        (b'{"text": 1}\n', "jsonl", "line 1 is no JSON object"),
        (b'{"text": \n', "jsonl", "line 1 is no JSON"),
        (b'{"texts": "a"}\n', "jsonl", "no column 'text'"),
    ],
)
def test_bad_input_is_one_sentence(raw, form, message):
    with pytest.raises(CompanionError, match=message) as caught:
        rows_of(raw, form)
    assert "\n" not in str(caught.value)


def test_the_suffix_says_the_format_and_a_user_may_say_otherwise():
    assert [records.format_of(None, Path(name)) for name in ("a.CSV", "b.jsonl", "c.txt")] == [
        "csv",
        "jsonl",
        "lines",
    ]
    assert records.format_of(None, None) == "lines" and records.format_of("csv", Path("c.txt")) == "csv"
    with pytest.raises(CompanionError, match="no format 'xml'"):
        records.format_of("xml", None)


def texts_of(text, file) -> list[str]:
    return [record.text for record in records.read(command.source(text, file), "lines", "text")]


def test_texts_come_from_argument_file_or_standard_input(tmp_path, monkeypatch):
    path = tmp_path / "lines.txt"
    path.write_text("one\n\ntwo\n", encoding="utf-8")
    assert texts_of(None, path) == ["one", "", "two"]
    assert texts_of("three", None) == ["three"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"four\r\nfive")))
    assert texts_of("-", None) == ["four", "five"]
    with pytest.raises(CompanionError, match="not both"):
        texts_of("three", path)
    with pytest.raises(CompanionError, match="cannot be read"):
        texts_of(None, tmp_path / "none.txt")
    with pytest.raises(CompanionError, match="not UTF-8"):  # B35: what Python makes of an argument in Latin-1
        texts_of("caf\udce9", None)


LINE = st.text(st.characters(codec="utf-8", exclude_characters="\n\0\ufeff")).map(
    lambda line: line.rstrip("\r")
)


@given(st.lists(LINE), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_lines_are_read_without_their_ends_and_the_mark_of_utf_8(lines, end, marked, closed):
    """B10: a byte-order mark is no part of the first line, nor a carriage return before a line feed."""
    lines = [*lines, "so it goes"]
    raw = (end.join(lines) + end * closed).encode("utf-8-sig" if marked else "utf-8")
    with mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw))):
        assert texts_of(None, None) == lines


def test_lines_are_rewritten_as_they_arrive(rewriter):
    """Each is out before the next comes in, and an error comes after what was good."""
    out: list[str] = []

    def arrived():
        for number in range(3):
            deadline = time.monotonic() + 30
            while len(out) < number:
                assert time.monotonic() < deadline, "the line before was never written"
                time.sleep(0.01)
            yield Record(number, f"so it goes {number}", {})
        raise CompanionError("enough.")

    with pytest.raises(CompanionError, match="enough"):
        for _, _, line in command.stream(job(rewriter), arrived()):
            out.append(line)
    assert len(out) == 3


def test_an_interrupted_file_goes_on_and_ends_as_an_uninterrupted_one(rewriter, tmp_path, monkeypatch):
    monkeypatch.setattr(command.documents, "PIECES", 2)
    some, whole, target = lines_of(LINES), tmp_path / "whole.txt", tmp_path / "new.txt"
    command.to_file(job(rewriter), some, whole, "key")
    assert whole.read_text(encoding="utf-8").split("\n")[:-1] == made(job(rewriter), some)
    asked: list[str] = []

    class Stopping(Rewriter):
        def __call__(self, texts):
            asked.extend(texts)
            if len(asked) > self.stop:
                raise KeyboardInterrupt
            return super().__call__(texts)

    stopping = Stopping(rewriter.denoiser, rewriter.settings)
    stopping.stop = 5
    with pytest.raises(KeyboardInterrupt):
        command.to_file(job(stopping), some, target, "key")
    assert not target.exists()
    partial = tmp_path / "new.txt.partial"
    kept = partial.read_text(encoding="utf-8")
    before = kept.count("\n") - 1
    partial.write_text(kept + '"cut o', encoding="utf-8")
    asked.clear()
    stopping.stop = 1000
    command.to_file(job(stopping), some, target, "key")
    assert target.read_bytes() == whole.read_bytes() and not partial.exists()
    assert 0 < before < len(LINES) and LINES[0] not in asked
    partial.write_text(json.dumps("another key") + "\n" + json.dumps("nothing") + "\n", encoding="utf-8")
    command.to_file(job(rewriter), some, target, "key")
    assert target.read_bytes() == whole.read_bytes()
    with pytest.raises(CompanionError, match="cannot be written"):
        command.to_file(job(rewriter), some, tmp_path / "none" / "new.txt", "key")


def test_what_a_run_into_a_file_depends_on(rewriter):
    some = lines_of(["a", "b"])
    key = command.key_of(some, rewriter, gate=None)
    assert key == command.key_of(lines_of(["a", "b"]), rewriter, gate=None)
    assert key != command.key_of(lines_of(["a", "c"]), rewriter, gate=None)
    assert key != command.key_of(some, rewriter, gate=0.5)
    stronger = Rewriter(rewriter.denoiser, dataclasses.replace(SETTINGS, alpha_anti=2.0))
    assert key != command.key_of(some, stronger, gate=None)


def test_settings_are_the_same_data_in_every_process():
    """Else a run into a file would begin anew whenever it is started again."""
    code = (
        "import json\n"
        "from companion.marco.rewriting import masking\n"
        "from companion.marco.rewriting.settings import Settings\n"
        "masks = masking.Masking(1.0, keeps=frozenset(map(str, range(20))))\n"
        "print(json.dumps(Settings(masks, 1.0, 1.0, 1.0).as_data()))"
    )
    found = [
        subprocess.check_output([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]


def test_below_the_gate_texts_stay_as_they_are(rewriter):
    short, long = "so it goes", "so it goes, my friend, " * 2
    found = list(command.stream(job(rewriter, gate=(by_length, 0.3)), iter(lines_of([short, long, short]))))
    assert [line for _, _, line in found][::2] == [short, short] and found[0][1].pieces == []
    [(_, ungated, _)] = command.stream(job(rewriter), iter(lines_of([long])))
    assert found[1][1].masked == ungated.masked != []


def test_names_of_groups_and_protected_words_are_never_masked(tiny_experts):
    text = "Muslim women and old friends go so far"
    sentence = words.split(tiny_experts, text)
    low = dataclasses.replace(masking.ours(-99.0), keeps=frozenset({"friends"}))
    spelled = {sentence.spelling(j) for j in masking.choose(*_scored(tiny_experts, sentence, low))}
    assert "far" in spelled and not {"Muslim", "women", "old", "friends"} & spelled
    without = dataclasses.replace(low, keeps_groups=False, keeps=frozenset())
    spelled = {sentence.spelling(j) for j in masking.choose(*_scored(tiny_experts, sentence, without))}
    assert {"Muslim", "women", "old", "friends"} <= spelled


def _scored(denoiser, sentence, masks):
    return masking.measured(denoiser, [sentence], masks)[0], masks


def test_protected_words_are_read_from_a_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("Anna\n\n  bread \n", encoding="utf-8")
    assert records.words_of(path) == {"anna", "bread"}
    with pytest.raises(CompanionError, match="cannot be read"):
        records.words_of(tmp_path / "none.txt")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CompanionError, match="is not UTF-8"):
        records.words_of(path)


def test_an_explanation_holds_both_texts():
    shown = command.explained(Document("What a stupid idea!", "What a great idea!", [])).plain
    assert shown == "What a [-stupid-]{+great+} idea!"


def test_rewriting_makes_no_noise(embedded_lm):
    """B18: no advice, bars or warnings of libraries, also for a text that is too long for an encoder."""
    code = (
        "from companion.marco import Rewriter, command\n"
        "from companion.marco.records import Record\n"
        "lines = [Record(1, '?! ' * 400, {}), Record(2, 'you idiot', {})]\n"
        "job = command.Job(Rewriter.load(), measures=command.Measures.load())\n"
        "print(*(line for _, _, line in command.stream(job, iter(lines))), sep='\\n')"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert found.stderr == "" and len(found.stdout.splitlines()) == 2


def test_the_tool_uses_the_shipped_experts(shipped_folder, monkeypatch):
    monkeypatch.setattr(models, "EMBEDDED", "tiny-llama")
    rewriter, cautious, several = (
        Rewriter.load(**how) for how in ({}, {"cautious": True}, {"several": True})
    )
    assert (rewriter.settings, cautious.settings, several.settings) == settings.chosen(shipped_folder)
    (shipped_folder / "settings.json").write_text(
        json.dumps({"rule": "none", "chosen": CHOSEN, "cautious": 0.5}), encoding="utf-8"
    )
    assert Rewriter.load().settings == rewriter.settings  # a folder from before there was a choice
    with pytest.raises(CompanionError, match="has no choice among rewrites: make one"):
        Rewriter.load(several=True)
    assert list(rewriter.denoiser.model.peft_config) == list(ROLES)


@pytest.fixture
def typed(rewriter, monkeypatch):
    """Type a command, with the tiny rewriter in the place of the shipped one, and what it was asked for."""
    asked: list[dict] = []

    def load(folder, **how):
        asked.append({"folder": folder, **how})
        return rewriter

    monkeypatch.setattr(Rewriter, "load", load)

    def typed(*arguments: str, standard: str | None = None):
        found = CliRunner().invoke(cli.app, ["rewrite", *arguments], input=standard)
        return found, asked

    return typed


def test_the_command(typed, tmp_path):
    found, _ = typed("so it goes, my friend")
    assert found.exit_code == 0 and len(found.output.strip().splitlines()) == 1
    table, target = tmp_path / "in.csv", tmp_path / "out.csv"
    table.write_text("a,b\n1,so it goes\n2,my friend\n", encoding="utf-8")
    found, _ = typed("--file", str(table), "--column", "b")
    header, *rows = found.output.splitlines()
    assert header == "a,b,rewritten" and [row.split(",")[0] for row in rows] == ["1", "2"]
    typed("--file", str(table), "--column", "b", "--output", str(target))
    assert target.read_text(encoding="utf-8") == found.output
    found, _ = typed("--format", "jsonl", standard=json.dumps({"text": "so it goes"}))
    assert json.loads(found.output)["text"] == "so it goes"
    found, _ = typed("so it goes, my friend", "--explain")
    assert "[-" in found.output and "{+" in found.output
    for clash in (("--explain", "--json"), ("--cautious", "--published"), ("--candidates", "--cautious")):
        found, _ = typed("a", *clash)
        assert isinstance(found.exception, CompanionError)


def test_what_the_experts_chose_among_is_in_the_json(tiny_experts):
    choice = Choice(((2.0, 0.5, 1.0), (3.0, 1.5, 2.5)), least=math.inf, loss=0.1)
    rewriter = Rewriter(tiny_experts, Settings(masking.ours(-9.0), 3.0, 1.5, 2.5, choice=choice))
    measures = command.Measures({"lexical": toxicity.load("lexical")}, lambda a, _: np.ones(len(a)))
    for settings_, considered in ((rewriter, True), (Rewriter(tiny_experts, SETTINGS), False)):
        job = command.Job(settings_, measures=measures)
        [(_, document, line)] = job([Record(1, "so it goes, my friend", {})])
        row = json.loads(line)
        assert ("candidates" in row) is considered
        if considered:
            assert not row["changed"] and row["masked"] == []  # nothing gains enough
            assert [c["of"] for c in row["candidates"]] == [document.original] * len(row["candidates"])
            gains = [c["gain"] for c in row["candidates"]]
            assert gains == sorted(gains, reverse=True)


def test_other_languages_come_back_untouched_and_are_counted(typed, tmp_path):
    german, table = "Du bist so ein Idiot, und das weißt du.", tmp_path / "in.txt"
    found, _ = typed(standard=f"so it goes\n{german}\n{german}\n")
    assert found.stdout.splitlines()[1:] == [german, german]
    assert found.stderr == "companion: not English, left as they were: 2 German.\n"
    found, _ = typed("so it goes, my friend")
    assert found.stderr == ""
    table.write_text(f"{german}\nso it goes\n", encoding="utf-8")
    found, _ = typed("--file", str(table), "--output", str(tmp_path / "out.txt"))
    assert (tmp_path / "out.txt").read_text(encoding="utf-8").splitlines()[0] == german
    assert found.stderr.endswith("companion: not English, left as they were: 1 German.\n")


def test_options_reach_the_rewriter(typed, tmp_path):
    protected = tmp_path / "words.txt"
    protected.write_text("Friend\n", encoding="utf-8")
    folder = str(tmp_path)
    _, [asked] = typed(
        "a", "--published", "--threshold", "2", "--protect", str(protected), "--adapters", folder
    )
    assert asked == {
        "cautious": False,
        "published": True,
        "several": False,
        "threshold": 2.0,
        "keeps": {"friend"},
        "folder": tmp_path,
    }


def test_settings_are_the_chosen_or_the_published_ones(shipped_folder, monkeypatch):
    monkeypatch.setattr(models, "EMBEDDED", "tiny-llama")
    found = Rewriter.load(published=True, threshold=3.0, keeps=frozenset({"a"})).settings
    masks = dataclasses.replace(found.masking, threshold=1.2, keeps=frozenset())
    assert dataclasses.replace(found, masking=masks) == settings.PUBLISHED["microaggressions"]
    assert (found.masking.threshold, found.masking.keeps) == (3.0, {"a"})
