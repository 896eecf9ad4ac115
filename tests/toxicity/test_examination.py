"""The examination: what it says of an oracle, a constant, a scorer with a grudge; who may read its data."""

from __future__ import annotations

import ast
import dataclasses
import functools
import html
import json
import re
import zlib
from collections.abc import Callable

import nbformat
import numpy as np
import pandas as pd
import pytest

from companion import paths
from companion.book import contents
from companion.metrics import estimates
from companion.toxicity import disguises, exam_texts, examination

GROUPS = ("gay", "deaf", "Muslim", "Chinese")


@dataclasses.dataclass
class Fake:
    """A scorer that looks at one text at a time; counts those that it has read."""

    judge: Callable[[str], float]
    name: str = "fake"
    fingerprint: str = ""
    read: int = 0

    def __call__(self, texts):
        texts = list(texts)
        self.read += len(texts)
        return np.array([self.judge(text) for text in texts], dtype=np.float64)


def truth(text: str) -> float:
    """A toxic text of the synthetic sets ends with a mark that no disguise touches; some say their score."""
    said = re.match(r"score (\S+)", text)
    return float(said[1]) if said else float(text.endswith("!"))


def grudge(text: str) -> float:
    return min(1.0, 0.4 * truth(text) + 0.6 * ("deaf" in text))


def noise(text: str) -> float:
    return zlib.crc32(text.encode()) / 2**32


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(estimates, "bootstrap", functools.partial(estimates.bootstrap, resamples=20))


@pytest.fixture
def material() -> exam_texts.Material:
    """Every text harmless and, with a mark behind it, toxic."""

    def both(texts: list[str], **columns: list) -> pd.DataFrame:
        harmless = pd.DataFrame({"text": texts, "label": 0, **columns})
        return pd.concat(
            [harmless, harmless.assign(text=harmless.text + "!", label=1)], ignore_index=True
        ).sample(frac=1, random_state=0)

    numbers = [f"number {i} of the rows" for i in range(12)]
    named = [(f"my {group} friend number {i}", group) for group in GROUPS for i in range(5)]
    cases = both(numbers, template=[i // 3 for i in range(12)])
    scores = np.linspace(0.01, 0.99, 40)
    return exam_texts.Material(
        labelled=both(numbers, source=["a", "b"] * 6),
        hatecheck=cases.assign(functionality=cases.label.map({0: "kind_nh", 1: "kind_h"})),
        madlibs=both([text for text, _ in named], group=[group for _, group in named]),
        continuations=pd.DataFrame({"text": [f"score {s}" for s in scores], "toxicity": scores}),
        short=both(numbers, strong=[["number", "rows"]] * 12),
        own=both(numbers, category=["neg", "prof"] * 6, frame=[i // 2 for i in range(12)]),
        prose=["word"] * max(exam_texts.PRECEDING),
    )


def test_an_oracle_is_right_everywhere(material):
    found = examination.examine(Fake(truth), material)
    right = [
        *found["sets"].values(),
        *(found["hatecheck"][part] for part in ("overall", "hateful", "harmless", "auc")),
        *found["hatecheck"]["functionality"].values(),
        found["madlibs"]["auc"],
        *(
            group[part]
            for group in found["madlibs"]["groups"].values()
            for part in ("subgroup", "bpsn", "bnsp")
        ),
        found["perspective"]["spearman"],
        found["perspective"]["auc"],
        *(disguise["auc"] for disguise in found["disguises"].values()),
        *(side for kind in found["own"].values() for side in kind.values()),
        *(length["caught"] for length in found["length"].values()),
    ]
    assert all(e[key] == pytest.approx(1) for e in right for key in ("value", "low", "high"))
    assert all(e["n"] > 0 for e in right)
    wrong = [
        found["exchange"]["mean"],
        found["perspective"]["gap"],
        found["madlibs"]["worst"]["harmless"],
        *(disguise["change"] for name, disguise in found["disguises"].items() if name != "none"),
        *(length["unread"] for length in found["length"].values()),
    ]
    assert all(abs(e["value"]) < 1e-12 for e in wrong)
    assert found["exchange"]["worst"] == found["exchange"]["p95"] == 0


def test_a_constant_knows_nothing(material):
    found = examination.examine(Fake(lambda text: 0.5), material)
    aucs = [*found["sets"].values(), found["hatecheck"]["auc"], found["madlibs"]["auc"]]
    aucs += [g[part] for g in found["madlibs"]["groups"].values() for part in ("subgroup", "bpsn", "bnsp")]
    assert {e["value"] for e in aucs} == {0.5}
    assert (found["hatecheck"]["hateful"]["value"], found["hatecheck"]["harmless"]["value"]) == (1, 0)
    assert found["perspective"]["spearman"]["value"] is None  # undefined, and JSON can hold it
    json.dumps(found, allow_nan=False)


def test_a_grudge_is_found_where_it_is(material):
    found = examination.examine(Fake(grudge), material)["madlibs"]
    assert found["worst"]["bpsn"]["group"] == found["worst"]["harmless"]["group"] == "deaf"
    assert found["groups"]["deaf"]["bpsn"]["value"] < 0.3
    assert found["groups"]["deaf"]["harmless"]["value"] == pytest.approx(0.6)
    assert found["groups"]["deaf"]["subgroup"]["value"] == 1  # inside the group it tells right from wrong
    for group in set(GROUPS) - {"deaf"}:
        assert (
            found["groups"][group]["bpsn"]["value"] == 1 and found["groups"][group]["harmless"]["value"] == 0
        )
    changes = examination.examine(Fake(grudge), material)["exchange"]
    assert changes["worst"] == pytest.approx(0.6) and 0 < changes["mean"]["value"] < 0.6


def test_the_examination_is_deterministic_and_reads_each_text_once(material):
    scorer = Fake(noise)
    first = examination.examine(scorer, material)
    once = scorer.read
    assert first == examination.examine(Fake(noise), material)
    lists = [material.labelled, material.hatecheck, material.madlibs, material.continuations]
    assert once < sum(map(len, lists)) + (len(disguises.DISGUISES) + 8) * len(material.short)
    remembered = examination.remembering(scorer)
    assert (remembered(["a", "b", "a"]) == remembered(["a", "b", "a"])).all() and scorer.read == once + 2


def test_intervals_are_over_templates():
    """Cases of one template stand or fall together: the interval is as wide as that of the templates."""
    rows = pd.DataFrame({"template": np.repeat(range(10), 20), "functionality": "f"})
    rows["label"] = rows.template % 2
    rows["text"] = [f"{i}" + "!" * (t in (0, 1, 2, 3)) for i, t in enumerate(rows.template)]
    share = examination.hatecheck(Fake(truth), rows)["overall"]
    assert share["n"] == 200 and share["value"] == 0.5 and share["high"] - share["low"] > 0.4


def test_calibration_by_decile():
    theirs = np.linspace(0, 1, 100)
    rows = pd.DataFrame({"text": [f"score {t / 2}" for t in theirs], "toxicity": theirs})
    found = examination.perspective(Fake(truth), rows)
    assert found["gap"]["value"] == pytest.approx(0.25) and len(found["deciles"]) == 10
    assert all(d["score"] == pytest.approx(d["perspective"] / 2) and d["n"] == 10 for d in found["deciles"])


def test_what_is_cut_off_is_told_from_what_is_missed(material):
    def short_sighted(text: str) -> float:
        return truth(" ".join(text.split()[:50]))

    def bored(text: str) -> float:
        return truth(text) * (len(text.split()) < 50) + len(text) / 1e6

    cut, missed = (examination.examine(Fake(judge), material)["length"] for judge in (short_sighted, bored))
    assert [cut[n]["caught"]["value"] for n in ("0", "32", "96", "200")] == [1, 1, 0, 0]
    assert [cut[n]["unread"]["value"] for n in ("0", "32", "96", "200")] == [0, 0, 1, 1]
    assert [missed[n]["caught"]["value"] for n in ("0", "32", "96", "200")] == [1, 1, 0, 0]
    assert {missed[n]["unread"]["value"] for n in missed} == {0}


# --- disguises

BACK: dict[str, Callable[[str], str]] = {
    "leetspeak": lambda word: word.translate(str.maketrans("431057", "aeiost")),
    "spaced letters": lambda word: word.replace(" ", ""),
    "homoglyphs": lambda word: word.translate({v: k for k, v in disguises._HOMOGLYPHS.items()}),
    "zero-width characters": lambda word: word.replace(disguises.ZERO_WIDTH, ""),
    "repeated letters": lambda word: re.sub(r"(.)\1{3}", r"\1", word),
    "upper case": str.lower,
    "HTML entities": html.unescape,
}


@pytest.mark.parametrize("name", disguises.DISGUISES)
def test_a_disguise_changes_the_word_and_can_be_taken_off(name):
    word = "nasty"
    worn = disguises.DISGUISES[name](word)
    assert worn != word
    if name in BACK:
        assert BACK[name](worn) == word
    else:
        assert worn == "n*st*"


@pytest.mark.parametrize("name", disguises.DISGUISES)
def test_only_whole_words_are_disguised(name):
    text = "A nasty, dynasty of nasty people: 42!"
    worn = disguises.disguised(text, ["nasty"], name)
    new = disguises.DISGUISES[name]("nasty")
    assert worn == f"A {new}, dynasty of {new} people: 42!"
    assert disguises.disguised(text, [], name) == text == disguises.disguised(text, ["absent"], name)


def test_strongest_words_are_the_scorers():
    words = Fake(lambda word: {"awful": 0.9, "nasty": 0.8, "day": 0.2}.get(word, 0.0))
    assert exam_texts._strongest("The nasty day was awful, awful!", words) == ["awful", "nasty"]
    assert exam_texts._strongest("1 + 2", words) == []


def test_sentences_differ_only_in_the_group():
    found = exam_texts.alike_but_for_the_group(["gay", "deaf", "old", "Muslim"])
    assert len({len(texts) for texts in found.values()}) == 1 and len(found["gay"]) > 20
    for gay, muslim in zip(found["gay"], found["Muslim"], strict=True):
        assert gay.lower() == muslim.lower().replace("muslim", "gay") and "gay" not in muslim.lower()
    assert any(" an old " in text for text in found["old"]) and not any(" a old " in t for t in found["old"])


def test_numbers_are_rounded():
    found = examination.rounded({"a": [0.123456, {"n": 3}], "cost": {"load_seconds": 1.2345}, "b": None})
    assert found == {"a": [0.1235, {"n": 3}], "cost": {"load_seconds": 1.23}, "b": None}


def test_cost_is_measured_elsewhere():
    found = examination.cost_in_a_fresh_process("lexical", ["a", "b"])
    assert found["n"] == 2 and found["load_seconds"] > 0 < found["score_seconds"]
    assert isinstance(found["memory_mb"], float)


# --- for evaluation only

READERS = re.compile(
    r"\b(?:hatecheck|madlibs|perspective_continuations)\(|hatecheck_half|madlibs_half|scored_continuations"
)


def code() -> dict[str, str]:
    """All that the package and the chapters execute, without text."""
    found = {
        path.relative_to(paths.PACKAGE).as_posix(): ast.unparse(ast.parse(path.read_text(encoding="utf-8")))
        for path in paths.PACKAGE.rglob("*.py")
    }
    for chapter in contents.chapters():
        cells = nbformat.read(chapter.path, as_version=4).cells
        found[chapter.name] = "\n".join(c.source for c in cells if c.cell_type == "code")
    return found


def test_evaluation_only_data_is_read_by_the_examination_alone():
    readers = {name for name, source in code().items() if READERS.search(source)}
    assert readers == {"data/public.py", "toxicity/exam_texts.py", "toxicity/examination.py"}


def test_the_examination_decides_nothing():
    """The card's maker runs it; its texts lend chapter 1 own sentences, the tables a constant."""
    users = {
        name: set(re.findall(r"(?:import|from) .*\b(exam_texts|examination)\b", source))
        for name, source in code().items()
    }
    assert {name for name, used in users.items() if "examination" in used} == {
        *("make.py", "toxicity/examination.py")  # itself in a fresh process
    }
    assert {name for name, used in users.items() if "exam_texts" in used} == {
        *("toxicity/examination.py", "book/scorer_tables.py", "setting")
    }
    assert set(re.findall(r"\bexam_texts\.(\w+)", code()["setting"])) == {"alike_but_for_the_group"}
