"""A content-addressed store for what takes long to make: converted models, weights, pairs.

The key of an artifact is a hash of everything that determines it: its inputs, the source of
the modules that make it and the version of torch. It is built in a ``.partial`` folder, which
survives Ctrl-C so that a builder can resume from its own checkpoints, and appears under its
final name in one atomic rename, with a manifest of sizes and sha256.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from companion import paths
from companion.errors import CompanionError

MANIFEST = "manifest.json"

# Modules that cannot change what is built: where things are kept, and how a mistake is said.
INERT = frozenset({"companion", "companion.errors", "companion.paths", "companion.store"})
PROXIES = ("HTTPS_PROXY", "ALL_PROXY", "HTTP_PROXY")


def key_of(inputs: dict) -> str:
    """Return 16 hex digits that identify JSON-able inputs."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_of(module: str, package: Path = paths.PACKAGE) -> str:
    """Return a hash of a module's code and of all that it imports from this package.

    Edited code so makes a new artifact. Comments and docstrings do not count. A module from elsewhere has no
    code of ours.
    """
    code = _imported(module, package)
    return hashlib.sha256("".join(code[name] for name in sorted(code)).encode()).hexdigest()[:16]


@cache
def _imported(module: str, package: Path) -> dict[str, str]:
    """The code of a module and of those of this package that it imports, directly or not; without ``INERT``.

    An import in a function counts as one at the top.
    """
    code: dict[str, str] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        root, *parts = name.split(".")
        path = package.joinpath(*parts).with_suffix(".py")
        if not path.is_file():
            path = package.joinpath(*parts, "__init__.py")
        if root != "companion" or name in code or name in INERT or not path.is_file():
            continue
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                todo += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names]
            elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                node.body[0] = ast.Pass()
        code[name] = ast.unparse(tree)
    return code


def artifact(kind: str, inputs: dict, build: Callable[[Path], None]) -> Path:
    """Return the folder of an artifact, building it first if it is not in the store.

    Parameters
    ----------
    kind
        Folder name in the cache, for example ``"dpo"``.
    inputs
        Everything the result depends on (JSON-able); it goes into the key and the manifest.
    build
        Called with a folder to fill, which may hold what an interrupted build left there. The code of the
        module that defines it, and all that this one imports, goes into the key (:func:`code_of`).

    Raises
    ------
    CompanionError
        If a stored file is corrupt, the disk is full or the cache cannot be written to.

    Examples
    --------
    >>> def build(folder):
    ...     (folder / "squares.json").write_text(json.dumps([n**2 for n in range(3)]), encoding="utf-8")
    >>> folder = artifact("squares", {"n": 3}, build)  # built now, found the next time
    >>> json.loads((folder / "squares.json").read_text(encoding="utf-8"))
    [0, 1, 4]
    """
    inputs = {**inputs, "code": code_of(build.__module__), "torch": torch.__version__.split("+")[0]}
    final = writable(paths.cache() / kind) / key_of(inputs)
    try:
        with FileLock(f"{final}.lock"):  # two runs that want the same artifact build it once
            if final.is_dir():
                verify(final)
            else:
                partial = final.with_suffix(".partial")
                partial.mkdir(exist_ok=True)
                build(partial)
                write_manifest(partial, {"kind": kind, "inputs": inputs})
                partial.rename(final)
    except Exception as error:
        if is_disk_full(error):
            raise disk_full_error() from error
        raise
    return final


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write in place of ``path``, renamed when it is whole: a kill leaves the old or the new."""
    fresh = path.with_name(path.name + ".new")
    yield fresh
    fresh.replace(path)


def kept(kind: str, inputs: dict, make: Callable[[], Any]) -> Any:
    """What a function returns (JSON-able), from the store or made now; otherwise as :func:`artifact`."""

    def build(folder: Path) -> None:
        (folder / "made.json").write_text(json.dumps(make()), encoding="utf-8")

    build.__module__ = make.__module__  # its code goes into the key
    return json.loads((artifact(kind, inputs, build) / "made.json").read_text(encoding="utf-8"))


def write_manifest(folder: Path, about: dict) -> None:
    """Write ``manifest.json``: what was built and the size and sha256 of every file."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps({**about, "files": files}, indent=1), encoding="utf-8")


def verify(folder: Path) -> None:
    """Check a stored artifact against its manifest.

    Raises
    ------
    CompanionError
        If a file is missing, has another size or another sha256.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
                raise ValueError(name)
    except (OSError, ValueError, KeyError) as error:
        remedy = "run `companion clean --corrupt` to delete it, then run again"
        raise CompanionError(f"the cached artifact '{folder}' is corrupt: {remedy}.") from error


def corrupt() -> list[Path]:
    """Return the folders of finished artifacts that do not match their manifest or have none."""
    folders = []
    for folder in sorted(paths.cache().glob("*/*")):
        if folder.is_dir() and re.fullmatch(r"[0-9a-f]{16}", folder.name):
            try:
                verify(folder)
            except CompanionError:
                folders.append(folder)
    return folders


def remove_corrupt() -> list[Path]:
    """Delete corrupt artifacts; return their folders."""
    removed = corrupt()
    for folder in removed:
        delete(folder)
    return removed


def delete(folder: Path) -> None:
    """Delete a folder with all that is in it.

    Raises
    ------
    CompanionError
        If the system does not allow it.
    """
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise CompanionError(f"'{folder}' could not be deleted ({_why(error, folder)}.") from error


def writable(folder: Path) -> Path:
    """Return a folder that files can be written to, made if need be.

    Raises
    ------
    CompanionError
        If that is not so.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}.probe"  # os.access says yes to what Windows then refuses
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full_error() from error
        raise CompanionError(f"'{folder}' cannot be written to ({_why(error, folder)}.") from error
    return folder


def _why(error: OSError, folder: Path) -> str:
    remedy = "see whose it is and what its permissions are"
    if folder.is_relative_to(paths.cache()):
        remedy = "set COMPANION_CACHE to a folder of yours"
    return f"{error.strerror}): {remedy}"


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception says that no space is left (safetensors wraps the errno in text)."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left on device" in str(error)


def disk_full_error() -> CompanionError:
    """The sentence for a full disk."""
    return CompanionError(
        f"the disk is full: free some space (the cache is '{paths.cache()}') or set COMPANION_CACHE "
        "to a folder on another disk, then run again; finished work is kept."
    )


def blamed_proxy(error: BaseException) -> str:
    """The environment variable whose proxy is the likely cause of a failed download; empty if none is.

    That is so if one is set and a request was tried that no server has answered. The value of the
    variable is not for showing: it may hold a password.
    """
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)
    if any(getattr(one, "response", None) is not None for one in chain):
        return ""
    network = re.compile("requests|urllib3|http")
    if not any(network.match(type(one).__module__) or "proxy" in str(one).lower() for one in chain):
        return ""
    return next((name for name in os.environ if name.upper() in PROXIES and os.environ[name]), "")
