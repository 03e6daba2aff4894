"""What the numbers were measured on."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

INTERESTING_FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "bf16",
    "i8mm",
)


def describe(cores: list[int]) -> dict[str, str]:
    """CPU, its flags, memory, kernel, compiler and the commit, each as text."""
    cpu = _read("/proc/cpuinfo")
    flags = set((_first(r"^(?:flags|Features)\s*:\s*(.*)$", cpu) or "").split())
    memory_kb = int(_first(r"^MemTotal:\s*(\d+)", _read("/proc/meminfo")) or 0)
    return {
        "cpu": _first(r"^model name\s*:\s*(.*)$", cpu) or platform.processor() or platform.machine(),
        "family and model": "/".join(
            _first(rf"^{name}\s*:\s*(\d+)$", cpu) or "?" for name in ("cpu family", "model", "stepping")
        ),
        "flags": " ".join(flag for flag in INTERESTING_FLAGS if flag in flags) or "unknown",
        "cores": f"{_first_line(['nproc', '--all']) or '?'}, used {', '.join(map(str, cores))}",
        "caches": _caches(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or "not told",
        "memory": f"{memory_kb / (1 << 20):.0f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}"
        + (", a virtual machine" if "hypervisor" in flags else ""),
        "python": platform.python_version(),
        "rust": _first_line(["rustc", "--version"]) or "unknown",
        "elastic": _first_line(["git", "describe", "--always", "--dirty"]) or "unknown",
    }


def _caches() -> str:
    found = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind = _read(str(index / "type")).strip()
        if kind != "Instruction":
            found.append(f"L{_read(str(index / 'level')).strip()} {_read(str(index / 'size')).strip()}")
    return ", ".join(found) or "unknown"


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text, re.MULTILINE)
    return found.group(1) if found else None


def _first_line(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0] if done.stdout else None
