"""The artifact store: keys, atomic and resumable builds, corruption, full disks, concurrency."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from companion import paths, store
from companion.errors import CompanionError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def writer(text: str = "made", calls: list | None = None):
    def build(folder: Path) -> None:
        if calls is not None:
            calls.append(folder)
        (folder / "sub").mkdir(exist_ok=True)
        (folder / "a.txt").write_text(text, encoding="utf-8")
        (folder / "sub" / "b.bin").write_bytes(bytes(range(256)))

    return build


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=3), c, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=5), st.randoms(use_true_random=False))
def test_key_ignores_order_and_sees_every_value(inputs, random):
    shuffled = list(inputs.items())
    random.shuffle(shuffled)
    assert store.key_of(dict(shuffled)) == store.key_of(inputs)
    assert len(store.key_of(inputs)) == 16
    for name in inputs:
        assert store.key_of({**inputs, name: "something else"}) != store.key_of(inputs)
        assert store.key_of({k: v for k, v in inputs.items() if k != name}) != store.key_of(inputs)


def test_folder_depends_on_kind_inputs_code_and_torch(cache, monkeypatch):
    base = store.artifact("kind", {"n": 1}, writer())
    others = [store.artifact("kind", {"n": 2}, writer()), store.artifact("other", {"n": 1}, writer())]
    with monkeypatch.context() as patched:
        patched.setattr(store, "code_of", lambda module: "edited")
        others.append(store.artifact("kind", {"n": 1}, writer()))
    monkeypatch.setattr(store.torch, "__version__", "0.0.1+cpu")
    others.append(store.artifact("kind", {"n": 1}, writer()))
    assert len({base, *others}) == 5
    monkeypatch.setattr(
        store.torch, "__version__", "0.0.1+cu999"
    )  # the build of torch, as opposed to its version, does not count
    assert store.artifact("kind", {"n": 1}, writer()) == others[-1]


# A module that builds artifacts, some that what it builds depends on, and some that it does not.
BUILDERS = {
    "mechanism.exam": (
        ["mechanism.interventions", "lm.generation", "lm.tokens", "metrics.perplexity"],
        ["mechanism.dpo", "marco.rewriting.masking"],
    ),
    "mechanism.pairs": (
        ["mechanism.pplm", "mechanism.probe", "lm.generation", "lm.tokens"],
        ["mechanism.exam"],
    ),
    "mechanism.costs": (["mechanism.interventions"], ["mechanism.methods"]),
    "mechanism.dpo": (["lm.tokens", "lm.checkpoint", "lm.kernels", "lm.sharding"], ["mechanism.neurons"]),
    "mechanism.kl_dpo": (["mechanism.dpo", "lm.checkpoint", "lm.tokens"], ["mechanism.neurons"]),
    "lm.recording": (
        ["lm.models", "lm.activations", "lm.generation", "lm.tokens", "lm.anatomy"],
        ["mechanism.probe"],
    ),
    "mechanism.attribution": (["lm.anatomy", "lm.tokens", "lm.recording"], ["mechanism.exam"]),
    "mechanism.replay": (["lm.anatomy", "lm.recording", "mechanism.neurons"], ["mechanism.exam"]),
    "mechanism.stream": (["lm.anatomy", "lm.recording", "lm.tokens"], ["mechanism.exam"]),
    "lm.models": (["lm.tiny", "lm.packaged"], ["lm.generation"]),
    "marco.experts.loading": (
        ["marco.experts.noise", "marco.experts.examples", "marco.denoisers.causal"],
        ["mechanism.dpo"],
    ),
    "marco.evaluation.rewrites": (
        ["lm.tokens", "lm.generation", "marco.rewriting.masking", "marco.rewriting.script"],
        ["mechanism.exam"],
    ),
    "marco.evaluation.restoration": (["lm.tokens", "lm.generation", "marco.experts.noise"], ["book.plots"]),
    "toxicity.examination": (
        [
            "toxicity.groups",
            "toxicity.disguises",
            "toxicity.exam_texts",
            "toxicity.own_sentences",
            "toxicity.fine_tuned",
            "metrics.estimates",
            "data.public",
        ],
        ["mechanism.exam", "book.scorer_tables"],
    ),
}


@pytest.mark.parametrize("builder", BUILDERS)
def test_edited_code_makes_a_new_artifact(builder, tmp_path):
    """The key follows what a builder imports: nobody keeps a list by hand, where one is forgotten."""
    package = shutil.copytree(
        paths.PACKAGE, tmp_path / "companion", ignore=shutil.ignore_patterns("_data", "__pycache__")
    )
    before = store.code_of(f"companion.{builder}", package)
    assert before == store.code_of(f"companion.{builder}")
    needed, others = BUILDERS[builder]
    for name in [builder, *needed, *others]:
        file = package.joinpath(*name.split(".")).with_suffix(".py")
        source = file.read_text(encoding="utf-8")
        for edited, matters in (
            (source + "\nX = 1\n", name not in others),
            (source + "\n# a comment\n", False),
        ):
            file.write_text(edited, encoding="utf-8")
            store._imported.cache_clear()
            assert (store.code_of(f"companion.{builder}", package) != before) is matters, name
        file.write_text(source, encoding="utf-8")
    store._imported.cache_clear()


def test_every_builder_is_among_them():
    called = {
        path.relative_to(paths.PACKAGE).with_suffix("").as_posix().replace("/", ".")
        for path in paths.PACKAGE.rglob("*.py")
        if re.search(r"store\.(artifact|kept)\(", path.read_text(encoding="utf-8"))
    }
    # The probe imports little: one row more would say nothing new.
    assert called - {"mechanism.probe"} == set(BUILDERS)


def test_a_kept_result_is_made_once_and_again_when_the_code_of_its_function_is_edited(
    cache, tmp_path, monkeypatch
):
    """The key has the code of the module whose function is called, not that of the store."""
    package = shutil.copytree(
        paths.PACKAGE, tmp_path / "companion", ignore=shutil.ignore_patterns("_data", "__pycache__")
    )
    code_of, calls = store.code_of, []
    monkeypatch.setattr(store, "code_of", lambda module: code_of(module, package))

    def make() -> list[float]:
        calls.append(1)
        return [0.1, len(calls)]

    make.__module__ = "companion.marco.evaluation.restoration"
    assert store.kept("kind", {"n": 1}, make) == store.kept("kind", {"n": 1}, make) == [0.1, 1]
    for edited, expected in (("marco/evaluation/restoration.py", 2), ("lm/tokens.py", 3), ("store.py", 3)):
        with (package / edited).open("a", encoding="utf-8") as file:
            file.write("\nX = 1\n")
        store._imported.cache_clear()
        assert store.kept("kind", {"n": 1}, make) == [0.1, expected], edited
    assert store.kept("kind", {"n": 2}, make) == [0.1, 4]
    store._imported.cache_clear()


def test_what_is_no_module_of_ours_has_no_code():
    assert store.code_of("numpy") == store.code_of("tests.nothing") != store.code_of("companion.lm.tokens")


def test_built_once_then_loaded(cache):
    calls: list[Path] = []
    first = store.artifact("kind", {"n": 1}, writer("one", calls))
    second = store.artifact("kind", {"n": 1}, writer("two", calls))
    assert first == second and len(calls) == 1
    assert (second / "a.txt").read_text(encoding="utf-8") == "one"
    assert calls[0] != first  # never built in place
    manifest = json.loads((first / store.MANIFEST).read_text(encoding="utf-8"))
    assert set(manifest["files"]) == {"a.txt", os.path.join("sub", "b.bin")}
    assert manifest["files"]["a.txt"] == {"bytes": 3, "sha256": store.sha256_file(first / "a.txt")}
    assert manifest["inputs"]["n"] == 1 and manifest["kind"] == "kind"


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), KeyboardInterrupt(), SystemExit(1), CompanionError("no")],
    ids=lambda e: type(e).__name__,
)
def test_interrupted_build_leaves_no_artifact_and_resumes(cache, error):
    folders = []

    def failing(folder: Path) -> None:
        folders.append(folder)
        (folder / "checkpoint").write_text("half", encoding="utf-8")
        raise error

    def resuming(folder: Path) -> None:
        folders.append(folder)
        assert (folder / "checkpoint").read_text(encoding="utf-8") == "half"
        (folder / "checkpoint").rename(folder / "result")

    with pytest.raises(type(error)):
        store.artifact("kind", {}, failing)
    assert [p for p in (cache / "kind").iterdir() if p.is_dir()] == folders  # only the partial folder
    final = store.artifact("kind", {}, resuming)
    assert folders[0] == folders[1] != final and folders[0].suffix == ".partial"
    assert not folders[0].exists() and (final / "result").read_text(encoding="utf-8") == "half"
    store.verify(final)
    assert {path.name for path in final.iterdir()} == {"result", store.MANIFEST}


def test_killed_process_leaves_no_artifact(cache):
    """What SIGKILL leaves (no Python clean-up) is resumable, too; also the lock is free again."""
    code = (
        "import os\nfrom companion import store\n"
        "def build(folder):\n    (folder / 'checkpoint').write_text('half')\n    os.kill(os.getpid(), 9)\n"
        "store.artifact('kind', {}, build)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode in (-9, 9)  # 9 on Windows
    seen = []
    final = store.artifact(
        "kind", {}, lambda folder: seen.append((folder / "checkpoint").read_text(encoding="utf-8"))
    )
    assert seen == ["half"] and (final / "checkpoint").is_file()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


CORRUPTIONS = {
    "bit flipped": lambda folder: flip(folder / "sub" / "b.bin"),
    "truncated": lambda folder: (folder / "sub" / "b.bin").write_bytes(
        (folder / "sub" / "b.bin").read_bytes()[:-1]
    ),
    "emptied": lambda folder: (folder / "a.txt").write_bytes(b""),
    "missing": lambda folder: (folder / "a.txt").unlink(),
    "a folder instead": lambda folder: ((folder / "a.txt").unlink(), (folder / "a.txt").mkdir()),
    "manifest missing": lambda folder: (folder / store.MANIFEST).unlink(),
    "manifest truncated": lambda folder: (folder / store.MANIFEST).write_text(
        (folder / store.MANIFEST).read_text(encoding="utf-8")[:-5], encoding="utf-8"
    ),
    "manifest without files": lambda folder: (folder / store.MANIFEST).write_text("{}", encoding="utf-8"),
    "manifest binary": lambda folder: (folder / store.MANIFEST).write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("corrupt", CORRUPTIONS.values(), ids=CORRUPTIONS)
def test_corrupt_artifact_names_a_remedy_that_works(cache, corrupt):
    sound = store.artifact("kind", {"n": 0}, writer())
    folder = store.artifact("kind", {"n": 1}, writer("old"))
    corrupt(folder)
    with pytest.raises(CompanionError, match=r"corrupt.*companion clean --corrupt") as caught:
        store.artifact("kind", {"n": 1}, writer("new"))
    assert str(folder) in str(caught.value)
    assert store.corrupt() == [folder]
    assert store.remove_corrupt() == [folder]
    store.verify(sound)
    assert not folder.exists()
    again = store.artifact("kind", {"n": 1}, writer("new"))
    assert again == folder and (again / "a.txt").read_text(encoding="utf-8") == "new"
    assert store.remove_corrupt() == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(data=st.data())
def test_every_changed_byte_is_noticed(tmp_path, data):
    folder = tmp_path / "artifact"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    content = data.draw(st.binary(min_size=1, max_size=40))
    (folder / "f").write_bytes(content)
    store.write_manifest(folder, {})
    store.verify(folder)
    other = data.draw(st.binary(max_size=40).filter(lambda b: b != content))
    (folder / "f").write_bytes(other)
    with pytest.raises(CompanionError):
        store.verify(folder)


def test_remove_corrupt_spares_unfinished_work_and_downloads(cache):
    partial = cache / "dpo" / "0123456789abcdef.partial"
    download = cache / "public" / "jigsaw"
    for folder in (partial, download):
        folder.mkdir(parents=True)
        (folder / "file").write_text("kept", encoding="utf-8")
    assert store.remove_corrupt() == []
    assert (partial / "file").is_file() and (download / "file").is_file()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, "quota"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["ENOSPC", "EDQUOT", "text"],
)
def test_full_disk_is_one_sentence_and_keeps_work(cache, error):
    def build(folder: Path) -> None:
        (folder / "checkpoint").write_text("half", encoding="utf-8")
        raise error

    with pytest.raises(CompanionError, match=r"disk is full.*COMPANION_CACHE") as caught:
        store.artifact("kind", {}, build)
    assert caught.value.__cause__ is error
    [partial] = (cache / "kind").glob("*.partial")
    assert (partial / "checkpoint").is_file()


def test_other_errors_are_not_called_a_full_disk(cache):
    for error in (OSError(errno.EACCES, "denied"), RuntimeError("space odyssey")):
        with pytest.raises(type(error)):
            store.artifact("kind", {}, lambda _, error=error: (_ for _ in ()).throw(error))


@pytest.mark.parametrize("place", ["file", "file/cache"])
def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, place):
    """B34: it names the folder and the variable that moves it."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / place))
    with pytest.raises(
        CompanionError, match=r"'.*' cannot be written to \(.+\): set COMPANION_CACHE to a folder of yours\."
    ) as caught:
        store.artifact("kind", {}, writer())
    assert str(tmp_path / place) in str(caught.value) and "\n" not in str(caught.value)
    assert store.remove_corrupt() == []


def test_a_cache_that_only_others_may_write_is_one_sentence(cache, monkeypatch):
    """B34: its folders are there, but no file can be made in them."""
    cache.mkdir()

    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(
        CompanionError, match=r"cannot be written to \(Permission denied\): set COMPANION_CACHE"
    ):
        store.artifact("kind", {}, writer())
    monkeypatch.undo()
    monkeypatch.setattr(Path, "touch", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(CompanionError, match="the disk is full"):
        store.writable(cache)


def test_a_made_artifact_leaves_nothing_else_behind(cache):
    final = store.artifact("kind", {}, writer())
    assert {path.name for path in cache.rglob("*")} <= {
        "kind",
        final.name,
        f"{final.name}.lock",
        store.MANIFEST,
        "a.txt",
        "sub",
        "b.bin",
    }


def test_threads_build_once(cache):
    calls, results, gate = [], [], threading.Barrier(4)

    def build(folder: Path) -> None:
        calls.append(folder)
        time.sleep(0.2)
        (folder / "a").write_text("a", encoding="utf-8")

    def ask() -> None:
        gate.wait()
        results.append(store.artifact("kind", {"n": 1}, build))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and len(results) == 4 and len(set(results)) == 1


def test_processes_build_once(cache, tmp_path):
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom companion import store\n"
        "log, mine = Path(sys.argv[1]), str(os.getpid())\n"
        "def build(folder):\n"
        "    (log / f'build-{mine}').touch()\n"
        "    time.sleep(0.5)\n"
        "    (folder / 'maker').write_text(mine)\n"
        "(log / f'ready-{mine}').touch()\n"
        "while len(list(log.glob('ready-*'))) < 2:\n    time.sleep(0.01)\n"
        "print((store.artifact('kind', {'n': 1}, build) / 'maker').read_text())\n"
    )
    log = tmp_path / "log"
    log.mkdir()
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(log)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(list(log.glob("build-*"))) == 1 and outputs[0] == outputs[1] != ""
