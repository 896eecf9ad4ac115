"""Install the book: `python install.py`. Needs Python 3.11 and nothing else; may be run again.

Everything has the exact version and sha256 of requirements.lock. torch comes with what it needs: on Linux
without an NVIDIA card the CPU build of torch-cpu.lock if it can be had, else PyPI's with its CUDA libraries;
elsewhere PyPI's.

`python install.py --here` installs into the Python that runs it (conda, Binder); otherwise into the folder
.venv.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / ".installed"
OLDEST = (3, 11)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
GPU_ONLY = re.compile(
    r"(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)=="
)  # entries that the CPU build does without
# Settings of a user's pip that would send packages elsewhere or leave some out. Where they come from stays
# the user's choice.
MISLEADING = (
    "NO_DEPS",
    "TARGET",
    "PREFIX",
    "ROOT",
    "USER",
    "REQUIRE_HASHES",
    "NO_BUILD_ISOLATION",
    "NO_BINARY",
    "CONSTRAINT",
    "DRY_RUN",
)


def main() -> None:
    if sys.version_info < OLDEST:
        stop(f"Python {platform.python_version()} is too old: run this with Python 3.11 or newer.")
    if "--here" in sys.argv[1:]:
        install(Path(sys.executable))
        return
    if STAMP.is_file() and STAMP.read_text(encoding="utf-8") == state() and usable(VENV):
        return
    python = environment()
    install(python)
    relative_link()
    STAMP.write_text(state(), encoding="utf-8")
    print(f"installed into {VENV}")


def stop(message: str) -> None:
    print(f"install: {message}", file=sys.stderr)
    sys.exit(2)


def state() -> str:
    """What the installation depends on."""
    files = ("requirements.lock", "torch-cpu.lock", "pyproject.toml", "install.py")
    return hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in files)).hexdigest()


def in_venv(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def usable(folder: Path) -> bool:
    """Whether a virtual environment has a Python that is new enough, and pip. A stopped `venv` leaves half
    of one."""
    code = f"import sys, pip; sys.exit(sys.version_info < {OLDEST})"
    try:
        return subprocess.run([in_venv(folder), "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def environment() -> Path:
    """The Python of .venv, made anew if the folder holds no usable environment."""
    if VENV.exists() and not usable(VENV):
        if not (VENV / "pyvenv.cfg").is_file() and any(VENV.iterdir()):
            stop(f"'{VENV}' is no virtual environment: move it away, then run this again.")
        print("the folder .venv holds half an environment, or one of an old Python: making it anew")
        shutil.rmtree(VENV)
    if not VENV.exists():
        made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, check=False)
        if made.returncode or not usable(VENV):
            shutil.rmtree(VENV, ignore_errors=True)
            stop(
                "a virtual environment could not be made: install Python's venv "
                "(on Debian and Ubuntu: apt install python3-venv), then run this again."
            )
    return in_venv(VENV)


def install(python: Path) -> None:
    """Install torch, then everything else, then the package of this checkout."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    everything, rest = entries(lock), [entry for entry in entries(lock) if not GPU_ONLY.match(entry)]
    chosen = rest if cpu_suffices() and cpu_build(python) else everything
    size = (
        ""
        if chosen is rest
        else " (torch's build for Linux brings CUDA: 2.7 GB)"
        if sys.platform == "linux"
        else ""
    )
    print(f"==> installing {len(chosen)} packages{size}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "requirements.txt"
        listed.write_text("\n".join(chosen), encoding="utf-8")
        done = pip(
            python, "install", "--quiet", "--use-pep517", "--no-deps", "--require-hashes", "-r", str(listed)
        )
    done = done or pip(python, "install", "--quiet", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    if done:
        stop("pip could not install everything (see above); what is there is kept: run this again to go on.")


def relative_link() -> None:
    """Let the environment point to this checkout by a relative path: Python 3.12 and older cannot read an
    "ö" in it under LC_ALL=C."""
    for link in VENV.glob("**/site-packages/*companion.pth"):
        link.write_text(Path(os.path.relpath(ROOT / "src", link.parent)).as_posix() + "\n", encoding="utf-8")


def entries(lock: str) -> list[str]:
    """The requirements of a lock with their hashes, without comments."""
    lines = [line for line in lock.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return re.findall(r"^\S.*(?:\n\s.*)*", "\n".join(lines), flags=re.MULTILINE)


def cpu_suffices() -> bool:
    """Whether PyPI's build would bring CUDA libraries for nothing: on Linux without an NVIDIA driver."""
    return sys.platform == "linux" and not (
        Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    )


def cpu_build(python: Path) -> bool:
    """Install torch's CPU build from where the user's pip looks, else from PyTorch's own index; False if
    neither has it."""
    wanted = ["install", "--quiet", "--no-deps", "--require-hashes", "-r", str(ROOT / "torch-cpu.lock")]
    elsewhere = ["--extra-index-url", CPU_INDEX, "--retries", "0", "--timeout", "20"]
    print("==> looking for torch's CPU build", flush=True)
    return any(pip(python, *wanted, *more, quiet=True) == 0 for more in ([], elsewhere))


def pip(python: Path, *arguments: str, quiet: bool = False) -> int:
    """Run pip with the user's settings, but for those that would mislead it."""
    kept = {k: v for k, v in os.environ.items() if k not in {f"PIP_{name}" for name in MISLEADING}}
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(
        command, env=kept, stderr=subprocess.DEVNULL if quiet else None, check=False
    ).returncode


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        stop("stopped; what is installed is kept: run this again to go on.")
