"""What an engine needs of this machine, checked before anything is started.

`understudy doctor` and the demo call `examine`. Nothing is changed or installed here; each finding says what is wrong and the command
that mends it. Python versions and accelerators other than the CPU are the engine environment's own affair.
"""

import ctypes.util
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

_GIB = 1024**3

# Measured: the demo's processes together peak at 6.5 GiB (proportional set size) with two applications.
MEMORY_NEEDED = 8 * _GIB
# The engine's environment, two caches of models and Ray's logs.
DISK_NEEDED = 8 * _GIB
# Ray maps its object store there, and falls back to a slower file when it does not fit.
SHARED_MEMORY_NEEDED = 128 * 1024**2


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. `required` findings that are not `ok` keep an engine from starting; the others make it slower."""

    check: str
    ok: bool
    required: bool
    message: str  # what was found; when not ok also what to do


def examine(environment: Path | None, state: Path) -> list[Finding]:
    """Checks this machine for an engine out of `environment` (a virtual environment; None: not made yet) with its files below `state`."""
    return [
        _processor(Path("/proc/cpuinfo")),
        _numa(),
        *([_python(environment)] if environment is not None else []),
        _memory(),
        _disk(state),
        _shared_memory(Path("/dev/shm")),  # noqa: S108
    ]


def _processor(cpuinfo: Path) -> Finding:
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    ok = "avx2" in flags or "asimd" in flags
    message = (
        "AVX2 is there" if ok else "vLLM's CPU build needs a processor with AVX2: use another machine or a GPU image"
    )
    return Finding("processor", ok, True, message)


def _numa() -> Finding:
    found = ctypes.util.find_library("numa")
    message = f"found {found}" if found else "vLLM's CPU kernels need libnuma: run `sudo apt-get install libnuma1`"
    return Finding("libnuma", found is not None, True, message)


def _python(environment: Path) -> Finding:
    """The environment must hold Ray and vLLM; asked without importing them, which would take ten seconds."""
    python = environment / "bin" / "python"
    script = "import importlib.util as u, sys; print(sys.version.split()[0], *(m for m in ('ray', 'vllm') if not u.find_spec(m)))"
    try:
        answer = subprocess.run([python, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return Finding(
            "engine environment", False, True, f"there is no working Python at {python}: run `make setup-engine`"
        )
    version, *missing = answer.stdout.split()
    if missing:
        return Finding(
            "engine environment", False, True, f"{environment} lacks {' and '.join(missing)}: run `make setup-engine`"
        )
    if tuple(int(part) for part in version.split(".")[:2]) < (3, 11):
        return Finding(
            "engine environment", False, True, f"Python {version} is too old, 3.11 is needed: run `make setup-engine`"
        )
    return Finding("engine environment", True, True, f"Python {version} with Ray and vLLM")


def _memory() -> Finding:
    free, limit = psutil.virtual_memory().available, _cgroup_limit()
    free = min(free, limit) if limit is not None else free
    ok = free >= MEMORY_NEEDED
    message = f"{free / _GIB:.1f} GiB free, {MEMORY_NEEDED / _GIB:.0f} GiB are needed for two engines"
    return Finding("memory", ok, True, message if ok else f"{message}: end other programs")


def _cgroup_limit() -> int | None:
    """What a container's limit leaves, in bytes; None without a limit. cgroup v2."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text()
    except OSError:
        return None
    return None if limit == "max" else int(limit) - int(used)


def _disk(state: Path) -> Finding:
    there = next(folder for folder in (state.absolute(), *state.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    ok = free >= DISK_NEEDED
    message = f"{free / _GIB:.1f} GiB free at {there}, {DISK_NEEDED / _GIB:.0f} GiB are needed"
    return Finding("disk", ok, True, message if ok else f"{message}: free some, or move the state folder")


def _shared_memory(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free if os.path.isdir(folder) else 0
    ok = free >= SHARED_MEMORY_NEEDED
    message = f"{free / _GIB:.2f} GiB at {folder}"
    advice = ": in a container, start it with `--shm-size=1g`"
    return Finding("shared memory", ok, False, message if ok else message + advice)
