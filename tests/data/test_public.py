"""Public data: where files come from, what is refused, and defensive parsing, on small hand-made files."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion import paths
from companion.data import near_duplicates, public
from companion.errors import CompanionError

CONTENT = {"jigsaw/balanced.csv": b'"hello, there",0\nyou idiot,1\n', "marco/other.csv": b"text\nrow\n"}


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def register(
    folder: Path,
    monkeypatch,
    content: dict[str, bytes],
    url: str = "http://127.0.0.1:9/nothing",
    derived: str = "no",
) -> None:
    """Make ``folder`` the data folder of the package, with a registry of ``content``."""
    folder.mkdir(exist_ok=True)
    rows = [
        {
            "file": name,
            "sha256": sha(data),
            "bytes": len(data),
            "url": f"{url}/{name}",
            "licence": "none",
            "derived": derived,
            "contents": "x",
        }
        for name, data in content.items()
    ]
    pd.DataFrame(rows).to_csv(folder / "registry.tsv", sep="\t", index=False)
    monkeypatch.setattr(paths, "DATA", folder)


def put(folder: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COMPANION_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path):
    """A web server on this machine; counts requests, serves ``tmp_path/web``."""
    (tmp_path / "web").mkdir()
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "web"))

        def log_message(self, *args):
            requests.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", tmp_path / "web", requests
        running.shutdown()
        thread.join()


def stored(cache: Path) -> list[Path]:
    return [p for p in cache.rglob("*") if p.is_file()]


# --- fetch ---------------------------------------------------------------------------------------


def test_local_folder_first_then_cache_then_url(tmp_path, monkeypatch, cache, server):
    url, web, requests = server
    register(tmp_path / "data", monkeypatch, CONTENT, url)
    put(web, CONTENT)
    name = "jigsaw/balanced.csv"
    put(tmp_path / "local", CONTENT)
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "local"))
    assert public.fetch(name) == tmp_path / "local" / name
    assert not requests and not cache.exists()
    monkeypatch.delenv("COMPANION_DATA")
    found = public.fetch(name)
    assert found.read_bytes() == CONTENT[name] and found.is_relative_to(cache) and len(requests) == 1
    assert public.fetch(name) == found and len(requests) == 1  # from the cache now
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "local"))
    assert public.fetch(name) == tmp_path / "local" / name  # the local folder wins over the cache


def test_wrong_download_is_refused_and_not_kept(tmp_path, monkeypatch, cache, server):
    url, web, requests = server
    register(tmp_path / "data", monkeypatch, CONTENT, url)
    put(web, {name: b"<html>moved</html>" for name in CONTENT})
    for _ in range(2):
        with pytest.raises(CompanionError, match=r"'marco/other.csv' does not have its registered sha256"):
            public.fetch("marco/other.csv")
    assert len(requests) == 2 and not stored(cache)
    put(web, CONTENT)  # once the server has the right file again, nothing stands in the way
    assert public.fetch("marco/other.csv").read_bytes() == CONTENT["marco/other.csv"]


@pytest.mark.parametrize("where", ["no server", "no file"])
def test_failed_download_is_one_sentence(tmp_path, monkeypatch, cache, server, where):
    url = server[0] if where == "no file" else "http://127.0.0.1:9"
    register(tmp_path / "data", monkeypatch, CONTENT, url)
    with pytest.raises(CompanionError, match=r"could not be downloaded.*COMPANION_DATA") as caught:
        public.fetch("marco/other.csv")
    assert "\n" not in str(caught.value) and not stored(cache)


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    "proxy", ["socks5h://127.0.0.1:9", "http://127.0.0.1:9", "http://[bad", "nonsense://x"]
)
def test_a_proxy_that_does_not_work_is_named(tmp_path, monkeypatch, cache, variable, proxy):
    """B33: requests has no SOCKS, or nobody answers; the value is not shown, it may hold a password."""
    register(tmp_path / "data", monkeypatch, CONTENT, "https://127.0.0.1:9/nothing")
    for name in ("HTTPS_PROXY", "ALL_PROXY", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv(variable, proxy)
    with pytest.raises(
        CompanionError,
        match=rf"could not be downloaded .*the likely cause is the proxy in {variable}\b.*COMPANION_DATA",
    ) as caught:
        public.fetch("marco/other.csv")
    assert (
        "\n" not in str(caught.value)
        and "sha256" not in str(caught.value)
        and proxy not in str(caught.value)
        and not stored(cache)
    )


def test_a_proxy_is_not_blamed_for_what_a_server_said(tmp_path, monkeypatch, cache, server):
    """B33: another file, or none, came through it."""
    url = server[0]
    register(tmp_path / "data", monkeypatch, CONTENT, url.replace("127.0.0.1", "elsewhere.invalid"))
    monkeypatch.setenv("HTTP_PROXY", url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(CompanionError, match=r"HTTPError\): check the network"):
        public.fetch("marco/other.csv")


def test_a_cache_that_cannot_be_written_is_not_called_a_failed_download(tmp_path, monkeypatch):
    """B34"""
    register(tmp_path / "data", monkeypatch, CONTENT)
    (tmp_path / "file").touch()
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CompanionError, match=r"file.cache.* cannot be written to .*: set COMPANION_CACHE"):
        public.fetch("marco/other.csv")
    put(tmp_path / "local", CONTENT)  # what needs no cache goes on
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "local"))
    assert public.fetch("marco/other.csv").is_file()


@pytest.mark.parametrize("value", ["local", "./local", "~/local", "../user/local"])
def test_the_local_folder_is_meant_from_where_the_user_is(tmp_path, monkeypatch, value):
    """B27"""
    user = tmp_path / "user"
    register(tmp_path / "data", monkeypatch, CONTENT)
    put(user / "local", CONTENT)
    monkeypatch.chdir(user)
    monkeypatch.setenv("HOME" if os.name == "posix" else "USERPROFILE", str(user))
    monkeypatch.setenv("COMPANION_DATA", value)
    assert public.fetch("marco/other.csv") == user / "local" / "marco" / "other.csv"


def test_wrong_local_file_is_refused(tmp_path, monkeypatch):
    register(tmp_path / "data", monkeypatch, CONTENT)
    put(tmp_path / "local", {**CONTENT, "marco/other.csv": CONTENT["marco/other.csv"][:-1]})
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "local"))
    assert public.fetch("jigsaw/balanced.csv")
    with pytest.raises(CompanionError, match="does not have the sha256"):
        public.fetch("marco/other.csv")


def test_wrong_cached_file_is_refused_with_a_remedy_that_works(tmp_path, monkeypatch, cache, server):
    url, web, _ = server
    register(tmp_path / "data", monkeypatch, CONTENT, url)
    put(web, CONTENT)
    path = public.fetch("marco/other.csv")
    path.write_bytes(b"damaged")
    with pytest.raises(CompanionError, match=r"corrupt: delete it") as caught:
        public.fetch("marco/other.csv")
    assert str(path) in str(caught.value)
    path.unlink()
    assert public.fetch("marco/other.csv").read_bytes() == CONTENT["marco/other.csv"]


def test_missing_local_folder_and_missing_local_file(tmp_path, monkeypatch):
    register(tmp_path / "data", monkeypatch, CONTENT)
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(CompanionError, match=r"COMPANION_DATA is '.*nowhere', which is not a folder"):
        public.fetch("marco/other.csv")
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(CompanionError, match=r"'marco/other.csv' is not in COMPANION_DATA"):
        public.fetch("marco/other.csv")


def test_unregistered_name_lists_what_there_is(tmp_path, monkeypatch):
    register(tmp_path / "data", monkeypatch, CONTENT)
    for name in ("nonsense.csv", "../registry.tsv", ""):
        with pytest.raises(
            CompanionError, match=r"not in data/registry.tsv.*jigsaw/balanced.csv, marco/other.csv"
        ):
            public.fetch(name)


def test_a_derived_file_is_not_looked_for_on_the_web(tmp_path, monkeypatch, cache, companion, server):
    """What the url has cannot have that sha256."""
    url, web, requests = server
    register(tmp_path / "data", monkeypatch, CONTENT, url, derived="yes")
    put(web, CONTENT)
    with pytest.raises(CompanionError, match=r"is derived from .* cannot be downloaded: set COMPANION_DATA"):
        public.fetch("marco/other.csv")
    code, out, _ = companion("fetch")  # all that can be had: nothing
    assert code == 0 and out.count("left out") == len(CONTENT) and not requests and not stored(cache)
    put(tmp_path / "local", CONTENT)
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "local"))
    assert companion("fetch")[0] == 0 and public.fetch("marco/other.csv").is_file()
    put(tmp_path / "local", {"marco/other.csv": b"changed"})
    with pytest.raises(CompanionError, match=r"does not have the sha256 .* \(derived from "):
        public.fetch("marco/other.csv")
    (tmp_path / "local" / "marco" / "other.csv").unlink()
    with pytest.raises(CompanionError, match=r"is not in COMPANION_DATA \('.*local'\): put it there\.$"):
        public.fetch("marco/other.csv")


def test_readers_of_evaluation_only_data(tmp_path, monkeypatch):
    content = {
        "bias/hatecheck_half.csv": b"functionality,case_id,test_case,label_gold,target_ident,templ_id\n"
        b'a_h,1,"Rude, that.",hateful,women,2\nb_nh,2,Fine.,non-hateful,,4\n',
        "bias/madlibs_half.csv": b"Text,Label,Template\nhug old,NOT_BAD,verb_adj\n"
        b"hug middle aged,BAD,verb_adj\nYou are a rude middle aged,BAD,you_are_adj\n"
        b"You are a cold old,NOT_BAD,you_are_adj\n",
        "rtp/scored_continuations.jsonl": b'{"text": "1", "toxicity": 0.25, "threat": 0.5}\n',
    }
    register(tmp_path / "data", monkeypatch, content)
    put(tmp_path / "local", content)
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "local"))
    assert public.hatecheck().to_numpy().tolist() == [["Rude, that.", 1, "a_h", 2], ["Fine.", 0, "b_nh", 4]]
    found = public.madlibs()
    assert found.group.tolist() == ["old", "middle aged", "middle aged", "old"]  # "old" is in "cold", too
    assert found.label.tolist() == [0, 1, 1, 0] and list(found) == ["text", "label", "group"]
    [row] = public.perspective_continuations().itertuples()
    assert (row.text, row.toxicity) == ("1", 0.25)


def test_rated_rewrites_leave_out_what_something_learned_from(tmp_path, monkeypatch):
    rows = [
        ("so it goes and goes on", "it goes", "one", "1.0", "0.5", "0.25"),
        ("never seen by any of them", '"a" quoted', "two", "0.5", "1.0", "1.0"),
    ]
    header = "idx\toriginal\trewritten\tsource\tstyle\tmeaning\tfluency\tmin_joint\tis_good\n"
    lines = [
        "\t".join([str(i), a, '"' + b.replace('"', '""') + '"', *more, "0", "0"])
        for i, (a, b, *more) in enumerate(rows)
    ]
    content = {"detox/human_eval.tsv": (header + "\n".join(lines) + "\n").encode()}
    register(tmp_path / "data", monkeypatch, content)
    put(tmp_path / "local", content)
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "local"))
    for split, left in (("train", [1]), ("dev", [1]), ("eval", [0, 1])):
        known = pd.DataFrame({"text": ["So it goes, and goes on!"], "split": [split]})
        monkeypatch.setattr(public, "labelled", lambda known=known: known)
        found = public.rated_rewrites()
        assert found.original.tolist() == [rows[i][0] for i in left]
    assert found.iloc[1].rewritten == '"a" quoted' and found.system.tolist() == ["one", "two"]
    assert found[["style", "meaning", "fluency"]].to_numpy().tolist() == [[1, 0.5, 0.25], [0.5, 1, 1]]


def test_shipped_registry_is_complete():
    rows = public.registry()
    assert rows.index.is_unique and rows.notna().all(axis=None)
    assert rows.sha256.str.fullmatch(r"[0-9a-f]{64}").all() and rows.sha256.is_unique
    assert rows.url.str.fullmatch(
        r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/\S+"
    ).all()  # pinned to a commit
    assert (rows.bytes > 0).all() and set(rows.derived) == {"yes", "no"}


# --- splits --------------------------------------------------------------------------------------


def test_text_hash_is_the_first_eight_hex_digits_of_the_stripped_text():
    assert (
        public.text_hash("hello") == public.text_hash("  hello \n") == 0x2CF24DBA
    )  # sha256("hello") = 2cf24dba5fb0a30e…
    assert public.text_hash("Hello") == 408915379
    assert public.text_hash("naïve café 😀") == 3553044270


@pytest.mark.parametrize(
    ("text", "source", "expected"),
    [
        ("hello", "jigsaw", "train"),  # h = 754077114
        ("a", "jigsaw", "eval"),  # 3398926610
        ("y", "sbf", "eval"),  # 2717705270
        ("y", "dynahate", "train"),
        ("y", "paradetox", "eval"),
        ("f", "dynahate", "eval"),  # 623841480
        ("j", "jigsaw", "eval"),  # 413089795, ends on 5: not eval for ParaDetox
        ("j", "paradetox", "train"),
        ("g", "jigsaw", "train"),  # 3440028037
        (" g\n", "jigsaw", "train"),
        ("row 14", "jigsaw", "dev"),
    ],
)
def test_split_of_known_texts(text, source, expected):
    assert public.split_of(text, source) == expected


@given(st.text(max_size=30), st.sampled_from(sorted(public.EVALUATION_MODULUS)))
def test_split_follows_the_design(text, source):
    h = int(hashlib.sha256(text.strip().encode("utf-8")).hexdigest()[:8], 16)
    modulus = {"jigsaw": 5, "sbf": 5, "dynahate": 4, "paradetox": 10}[source]
    expected = "eval" if h % modulus == 0 else "dev" if h % 10 == 1 else "train"
    assert public.split_of(text, source) == expected == public.split_of(f" {text}\t", source)


@pytest.mark.parametrize(
    ("source", "share"), [("jigsaw", 0.2), ("sbf", 0.2), ("dynahate", 0.25), ("paradetox", 0.1)]
)
def test_split_proportions(source, share):
    generator = np.random.default_rng(0)
    splits = pd.Series(
        [public.split_of(" ".join(map(str, generator.integers(0, 10**6, 5))), source) for _ in range(4000)]
    )
    found = splits.value_counts(normalize=True)
    assert found["eval"] == pytest.approx(share, abs=0.025) and found["dev"] == pytest.approx(0.1, abs=0.025)
    assert set(found.index) == {"eval", "dev", "train"}


# --- parsers -------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Register hand-made files and offer them in COMPANION_DATA."""

    def offer(content: dict[str, str]) -> None:
        data = {name: text.encode() for name, text in content.items()}
        register(tmp_path / "data", monkeypatch, data)
        put(tmp_path / "local", data)
        monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "local"))

    return offer


def test_jigsaw_has_no_header_and_odd_csv(files):
    files(
        {
            "jigsaw/balanced.csv": 'first row counts,0\n"with, comma",0\n"she said ""no""\nand left",0\n'
            '  padded  ,1\n"   ",1\n😀 emoji,1\n'
        }
    )
    rows = public.jigsaw()
    assert rows.text.tolist() == [
        "first row counts",
        "with, comma",
        'she said "no"\nand left',
        "padded",
        "😀 emoji",
    ]
    assert rows.label.tolist() == [0, 0, 0, 1, 1] and set(rows.source) == {"jigsaw"}
    assert rows.split.tolist() == [public.split_of(text, "jigsaw") for text in rows.text]


SBF = "Unnamed: 0,post,offensiveYN,dataSource,hasBiasedImplication\n"


def test_sbf_groups_repeated_posts_and_drops_missing_labels(files):
    files(
        {
            "marco/sbf_dev.csv": SBF
            + "0,repeated,1.0,Gab,0\n1,repeated,0.0,Gab,1\n2,once,0.4,Gab,1\n3,unlabelled,,Gab,1\n"
            + '4,,1.0,Gab,1\n5,"quoted, ""post""\nin two lines",0.5,t/hate,0\n6,repeated,1.0,Gab,0\n'
            + "7,half,1.0,Gab,0\n8,half,0.0,Gab,0\n9, repeated ,1.0,Gab,0\n"
        }
    )
    rows = public.sbf().set_index("text")
    assert rows.index.is_unique
    assert rows.label.to_dict() == {
        "repeated": 1,
        "once": 0,
        'quoted, "post"\nin two lines': 1,
        "half": 1,
    }  # .75, .4, .5, .5
    assert rows.offensive["repeated"] == 0.75


def test_sbf_microaggressions_are_always_evaluation_rows(files):
    texts = [f"post number {i}" for i in range(40)]
    lines = [
        f"{i},{text},1.0,{'redditMicroagressions' if i % 2 else 'Gab'},0" for i, text in enumerate(texts)
    ]
    lines += [
        "90,seen twice,1.0,Gab,0",
        "91,seen twice,0.0,redditMicroagressions,0",
        "92, seen twice ,0.0,Gab,0",
    ]
    files({"marco/sbf_dev.csv": SBF + "\n".join(lines) + "\n"})
    rows = public.sbf().set_index("text")
    assert (rows.split[texts[1::2]] == "eval").all()
    assert rows.split["seen twice"] == "eval"
    others = rows.split[texts[0::2]]
    assert others.tolist() == [public.split_of(text, "sbf") for text in texts[0::2]] and set(others) > {
        "train"
    }
    assert public.split_of("seen twice", "sbf") != "eval"  # else the row above shows nothing


def test_dynahate_labels_and_missing_ones(files):
    files(
        {
            "marco/dynahate_dev.csv": 'Unnamed: 0,text,label,type\n1,"a, b",hate,x\n2,kind words,nothate,\n'
            '3,no label,,x\n4,,hate,x\n5,"two\nlines",hate,x\n'
        }
    )
    rows = public.dynahate()
    assert list(zip(rows.text, rows.label, strict=True)) == [
        ("a, b", 1),
        ("kind words", 0),
        ("two\nlines", 1),
    ]


def test_paradetox_irregular_tabs_and_quotes(files):
    files(
        {
            "paradetox/paradetox.tsv": "toxic\tneutral1\tneutral2\tneutral3\n"
            'he is "a fool\the is "unwise\tsecond\t\n'  # a lone quote must not swallow the next lines
            "only toxic\n"
            "no rewrite\t\t\t\n"
            "\tno toxic side\t\t\n"
            "two fields\tenough\n"
            "  padded \t too  \tx\ty\tz\textra\n"
            "\n"
            "last\tline"
        }
    )
    rows = public.paradetox()
    pairs = [
        ('he is "a fool', 'he is "unwise'),
        ("two fields", "enough"),
        ("padded", "too"),
        ("last", "line"),
    ]
    assert list(zip(rows.text[rows.label == 1], rows.text[rows.label == 0], strict=True)) == pairs
    assert rows.split.tolist() == [
        public.split_of(toxic, "paradetox") for toxic, _ in pairs for _ in range(2)
    ]  # both sides by the toxic one


def test_challenge_prompts_and_wikitext(files):
    prompts = ['with "quotes"', "é😀", "line\nbreak"]
    files(
        {
            "rtp/challenge_prompts.jsonl": "\n".join(json.dumps({"prompt": p, "other": 1}) for p in prompts)
            + "\n\n",
            "wikitext2/wiki.test.raw": " \n = Title = \n \n A first @-@ rate line , here . \n"
            " = = Section = = \n Another . \n",
            "wikitext2/wiki.valid.tokens": " = T = \n It 's <unk> . \n",
        }
    )
    assert public.challenge_prompts() == prompts
    assert public.wikitext("eval") == ["A first-rate line, here.", "Another."]
    assert public.wikitext("dev") == ["It's <unk>."]


def test_near_duplicates_stay_on_one_side(files):
    """Rows of train that repeat an evaluation row (also of another source) go; the evaluation row stays."""
    pool = [f"w{i} x{i} y{i} z{i} u{i} v{i}" for i in range(400)]
    texts = {
        split: [t for t in pool if public.split_of(t, "jigsaw") == split]
        for split in ("eval", "dev", "train")
    }
    by = {split: iter(texts[split]) for split in texts}

    def near(base: str, split: str, source: str) -> str:
        """A text that shares most shingles with ``base`` and falls into ``split``."""
        return next(
            t for t in (f"{base} tail{i}" for i in range(1000)) if public.split_of(t, source) == split
        )

    evaluation, dev, train = next(by["eval"]), next(by["dev"]), next(by["train"])
    leaks = [
        near(evaluation, "train", "jigsaw"),
        near(evaluation, "dev", "jigsaw"),
        near(dev, "train", "jigsaw"),
        evaluation.upper() + "!" * 9,
    ]
    leaks = [t for t in leaks if public.split_of(t, "jigsaw") != "eval"]
    foreign = near(evaluation, "train", "dynahate")
    kept = [evaluation, dev, train, next(by["train"])]
    files(
        {
            "jigsaw/balanced.csv": "".join(
                f"{t},{i % 2}\n" for i, t in enumerate([*kept, *leaks, train])
            ),  # train: an exact repeat, too
            "marco/dynahate_dev.csv": f"text,label\n{foreign},hate\nsomething else altogether,nothate\n",
        }
    )
    rows = public.labelled(("jigsaw", "dynahate"))
    assert sorted(rows.text) == sorted([*kept, "something else altogether"])
    assert len(leaks) >= 3 and rows.index.tolist() == list(range(len(rows)))
    outside = rows.text[rows.split != "eval"]
    assert not near_duplicates.near_duplicates(outside, of=rows.text[rows.split == "eval"]).any()


# --- near-duplicates and de-tokenisation ---------------------------------------------------------


def test_near_duplicates_by_hand():
    of = ["The quick brown fox jumps over the lazy dog", "short one"]
    found = near_duplicates.near_duplicates(
        [
            "the QUICK brown fox, jumps over a wall",
            "a quick brown fox leaps over the lazy dog",
            "Short one!",
            "one short",
            "dog lazy the over",
        ],
        of=of,
    )
    assert found.tolist() == [True, False, True, False, False]


@given(
    st.lists(st.text(alphabet="ab c", max_size=20), max_size=6),
    st.lists(st.text(alphabet="ab c", max_size=20), max_size=6),
)
def test_near_duplicates_properties(a, b):
    marks = near_duplicates.near_duplicates(a, of=b)
    assert marks.dtype == bool and len(marks) == len(a)
    assert near_duplicates.near_duplicates(a, of=a).all()
    assert not near_duplicates.near_duplicates(a, of=[]).any()
    assert (
        near_duplicates.near_duplicates(a, of=[*b, "zz"]) >= marks
    ).all()  # more to compare with marks no less
    assert (near_duplicates.near_duplicates([t.upper() + "!" for t in a], of=b) == marks).all()


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("a guest @-@ starring role", "a guest-starring role"),
        ("1 @,@ 000 @.@ 5 men", "1,000.5 men"),
        ("x , y ; z : w .", "x, y; z: w."),
        ("( a ) [ b ]", "(a) [b]"),
        ("$ 5 or £ 6 , 7 % off ?", "$5 or £6, 7% off?"),
        ("It 's Teddy 's , and they 'll didn 't", "It's Teddy's, and they'll didn't"),
        ('he said " hello there " and " no " .', 'he said "hello there" and "no".'),
        ('" A " and " B " , then', '"A" and "B", then'),
        ("the dogs ' tails", "the dogs ' tails"),
        ("nothing to do", "nothing to do"),
    ],
)
def test_detokenise(raw, plain):
    assert public.detokenise(raw) == plain


@given(
    st.lists(
        st.sampled_from(["word", "a", "B2", ",", ".", "(", ")", '"', "'s", "@-@", "@,@", "%", "é"]),
        max_size=15,
    ).map(" ".join)
)
def test_detokenise_touches_spaces_only(text):
    def letters(s: str) -> str:
        return s.replace(" ", "").replace("@-@", "-").replace("@,@", ",")

    assert letters(public.detokenise(text)) == letters(text)
