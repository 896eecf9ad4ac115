"""What other systems and installations lack or do otherwise: the code must not count on it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import platformdirs
import pytest

from companion import book, paths, store
from companion.book import contents, runs
from companion.data import public
from companion.errors import CompanionError
from companion.lm import models
from companion.marco import Rewriter, command


def python(code: str, *options: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code in an interpreter of its own, where modules can be taken away before they are imported."""
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


# --- systems -------------------------------------------------------------------------------------


def test_what_only_some_systems_have_is_not_needed(tmp_path):
    """B3: macOS and Windows cannot say which cores a process may use; Windows has no module ``resource``."""
    code = (
        "import os, pathlib, sys\n"
        "import papermill, transformers.modeling_utils\n"  # libraries that ask for what this system has
        "if hasattr(os, 'sched_getaffinity'):\n    del os.sched_getaffinity\n"
        "sys.modules['resource'] = None\n"
        "from companion import cli\nfrom companion.book import record, runs\n"
        "from companion.lm import models\n"
        "assert models.cores() == os.cpu_count()\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "print(runs.write_results(folder, 'smoke', {}))\n"
        "sys.argv = ['companion', 'doctor']\ncli.main()"
    )
    done = python(code, COMPANION_CACHE=str(tmp_path / "cache"))
    assert "cores" in done.stdout and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "results.json").is_file()


def test_cores_are_those_that_may_be_used():
    assert 1 <= models.cores() <= os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        assert models.cores() == len(os.sched_getaffinity(0))


def test_nothing_is_renamed_from_one_disk_to_another(tmp_path, monkeypatch):
    """Cache, data and checkout may lie on different disks, and temporary files on yet another."""
    renamed = []

    def checked(plain):
        def rename(source, target, **more):
            renamed.append(Path(source))
            if Path(source).parent != Path(target).parent:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))
            return plain(source, target, **more)

        return rename

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, checked(getattr(os, name)))
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "cache"))
    made = store.artifact("kind", {}, lambda folder: (folder / "a").touch())
    assert (made / "a").is_file() and renamed  # so the check sees what the store does
    (tmp_path / "data").mkdir()
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "a.csv").write_text("text\n", encoding="utf-8")
    row = {
        "file": "a.csv",
        "sha256": store.sha256_file(tmp_path / "local" / "a.csv"),
        "bytes": 5,
        "url": "none",
        "licence": "none",
        "contents": "x",
    }
    pd.DataFrame([row]).to_csv(tmp_path / "data" / "registry.tsv", sep="\t", index=False)
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "local"))
    assert public.fetch("a.csv") == tmp_path / "local" / "a.csv"
    with pytest.raises(OSError, match=r"a\.csv"):
        os.replace(tmp_path / "local" / "a.csv", tmp_path / "a.csv")  # and would have refused


# --- where things live ---------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["~/.cache/companion", "relative"])
def test_a_user_without_a_home_has_a_cache_all_the_same(monkeypatch, said):
    """HOME is not set and the user is in no list of users, as in containers."""
    monkeypatch.delenv("COMPANION_CACHE", raising=False)
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda *_: said)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert paths.cache() == Path(tempfile.gettempdir()) / "companion" and paths.cache().is_absolute()


@pytest.mark.parametrize("value", ["c", "./c", "~/c", "../user/c"])
def test_the_cache_is_meant_from_where_the_user_is(tmp_path, monkeypatch, value):
    """B27"""
    (tmp_path / "user").mkdir()
    monkeypatch.chdir(tmp_path / "user")
    monkeypatch.setenv("HOME" if os.name == "posix" else "USERPROFILE", str(tmp_path / "user"))
    monkeypatch.setenv("COMPANION_CACHE", value)
    assert paths.cache() == tmp_path / "user" / "c"


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """The package as pip installs it from a wheel; returns a clone of the repository elsewhere."""
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "lib" / "site-packages" / "companion")
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COMPANION_DATA", raising=False)
    clone = tmp_path / "clone"
    (clone / "chapters").mkdir(parents=True)
    (clone / "_toc.yml").write_text("root: intro\nparts: []\n", encoding="utf-8")
    (tmp_path / "elsewhere" / "chapters").mkdir(parents=True)  # half of a book
    (tmp_path / "_toc.yml").touch()  # and the other half
    monkeypatch.chdir(tmp_path / "elsewhere")
    return clone


def test_the_book_is_that_of_the_package_or_around_the_user(installed, tmp_path, monkeypatch):
    """B25"""
    for inside in (installed, installed / "chapters"):
        monkeypatch.chdir(inside)
        assert paths.project() == installed and contents.chapters() == []
        assert runs.folder_of("smoke", {}) == installed / "_build" / "runs" / "smoke"
    own = tmp_path / "own"
    (own / "chapters").mkdir(parents=True)
    (own / "_toc.yml").touch()
    monkeypatch.setattr(paths, "PACKAGE", own / "src" / "companion")
    assert paths.project() == own  # an editable checkout is meant wherever one is


@pytest.mark.parametrize(
    "arguments", [["run", "setting", "-p", "smoke"], ["check"], ["build"], ["clean"], ["make", "baseline"]]
)
def test_without_a_book_a_sentence_says_where_to_go(installed, companion, arguments):
    """B25"""
    code, _, err = companion(*arguments)
    assert (code, err) == (
        2,
        "companion: there is no book here: run this inside a clone of the repository.\n",
    )


def test_what_needs_no_book_works_without_one(installed, companion, monkeypatch, tmp_path):
    """B25"""
    assert companion("doctor")[1:] and "no book here" in companion("doctor")[1]
    folder = store.artifact("kind", {}, lambda made: (made / "a").touch())
    (folder / "a").unlink()
    assert companion("clean", "--corrupt")[0] == 0 and not folder.exists()
    monkeypatch.setattr(Rewriter, "load", lambda *_, **__: object.__new__(Rewriter))
    monkeypatch.setattr(command, "stream", lambda job, arrived, total: ((r, None, r.text) for r in arrived))
    assert companion("rewrite", "some text") == (0, "some text\n", "")
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    assert "is not in COMPANION_DATA" in companion("fetch", "jigsaw/balanced.csv")[1].replace("\n", " ")
    assert companion("clean", "--cache")[0] == 0 and not paths.cache().exists()


def test_runs_of_two_read_only_checkouts_are_two(tmp_path, monkeypatch):
    """B34"""
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    builds = []
    for name in ("a", "b", "a"):
        monkeypatch.setattr(paths, "project", lambda name=name: tmp_path / name)
        builds.append(paths.build())
    assert builds[0] == builds[2] != builds[1] and all(
        build.parent == tmp_path / "cache" / "build" for build in builds
    )


# --- the installation without the book's tools -----------------------------------------------------


def test_the_core_needs_nothing_of_the_book(tmp_path):
    """Without the extra ``book``, what runs, checks and renders chapters says so, and the rest works."""
    absent = [
        "papermill",
        "nbformat",
        "nbclient",
        "jupyter_client",
        "jupyter_book",
        "myst_nb",
        "ipykernel",
        "jupyterlab",
    ]
    code = f"""
import sys
sys.modules.update(dict.fromkeys({absent!r}))
from companion import cli
from companion.marco import Rewriter, command
Rewriter.load = lambda *_, **__: None
command.stream = lambda job, arrived, total: ((r, None, r.text) for r in arrived)
for arguments in (["--version"], ["rewrite", "text"], ["doctor"], ["fetch", "none.csv"],
                  ["clean", "--corrupt"], ["run"], ["check"], ["build"], ["new-chapter", "x"],
                  ["make", "baseline"]):
    sys.argv = ["companion", *arguments]
    print("===", *arguments, flush=True)
    try:
        cli.main()
    except SystemExit as end:
        print("exit", end.code or 0, flush=True)
"""
    done = python(code, COMPANION_CACHE=str(tmp_path / "cache"), COMPANION_DATA="")
    assert done.returncode == 0, done.stderr
    ends = dict(part.split("\n", 1) for part in done.stdout.split("=== ")[1:])
    codes = {command: int(output.split()[-1]) for command, output in ends.items()}
    needing = {"run", "check", "build", "new-chapter x", "make baseline"}
    assert {command for command, code in codes.items() if code} - {"doctor"} == needing | {"fetch none.csv"}
    assert (
        "text\n" in ends["rewrite text"]
        and "cached artifacts" in ends["doctor"]
        and "choose one of" in ends["fetch none.csv"]
    )
    sentence = 'companion: this needs the book\'s tools: run `pip install "companion[book]"`.'
    assert (
        done.stderr.splitlines().count(sentence) == len(needing)
        and len(done.stderr.splitlines()) == len(needing) + 1
    )


@pytest.mark.parametrize("name", book.TOOLS)
def test_every_one_of_the_books_tools_is_asked_for(name, companion, monkeypatch):
    """B30: a kernel without ipykernel dies before it can say why."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        CompanionError, match=r"this needs the book's tools: run `pip install \"companion\[book\]\"`\."
    ):
        book.require_tools()


# --- warnings --------------------------------------------------------------------------------------


def test_warnings_of_libraries_do_not_reach_the_terminal(tmp_path):
    """B18: unless they are asked for."""
    code = (
        "import sys, warnings\nfrom companion import cli, store\n"
        "store.remove_corrupt = lambda: warnings.warn('noise') or []\n"
        "sys.argv = ['companion', 'clean', '--corrupt']\ncli.main()"
    )
    quiet = python(code, COMPANION_CACHE=str(tmp_path), PYTHONWARNINGS="")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert "noise" in python(code, "-Wdefault", COMPANION_CACHE=str(tmp_path)).stderr
