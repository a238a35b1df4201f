"""The parts of a report that need no PyTorch: facts, the test suite, compute-sanitizer, repeats. Each has cells, run one by one."""

import datetime
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from . import turns

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
REPEATS = 250
# Tests that look at how much memory the device has left.
ALONE = {"soak"}


def command(words, timeout, env=None):
    """Runs a program in a process group of its own. Exit code (None: timed out), and everything that it printed."""
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            [str(word) for word in words], stdout=printed, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env, start_new_session=True
        )
        try:
            code = process.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            code = None
            # With its children: a test may have started itself again.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        printed.seek(0)
        return code, printed.read().decode(errors="replace")


def asked(*words, timeout=30):
    """What a tool prints, or None where it is missing or fails."""
    try:
        code, text = command(words, timeout)
    except OSError:
        return None
    return text.strip() if code == 0 else None


def card():
    """The card that this process sees first, as nvidia-smi takes it: an index or a UUID."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"


def nvrtc_folder():
    """Where libnvrtc is: of the toolkit, or of PyTorch's packages."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)] + ["/usr/local/cuda", "/opt/cuda"]
    folders = [pathlib.Path(home) / lib for home in homes for lib in ("lib64", "lib", "targets/x86_64-linux/lib")]
    folders += [pathlib.Path(entry) / "nvidia" / name / "lib" for entry in sys.path if entry for name in ("cu13", "cuda_nvrtc")]
    for folder in folders:
        # Both are needed: the compiler loads the other one itself.
        if any(folder.glob("libnvrtc.so.1[23]")) and any(folder.glob("libnvrtc-builtins.so.1[23]*")):
            return str(folder)
    return None


def facts(setup):
    """What the figures belong to."""
    query = "name,uuid,driver_version,vbios_version,memory.total,clocks.max.sm,clocks.max.mem,clocks.sm,power.limit,ecc.mode.current,compute_mode"
    torch = "import torch; print(torch.__version__, torch.version.cuda)"
    about = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "bundle": {name: setup.bundle.manifest[name] for name in ("commit", "modified", "built", "archs", "rustc", "nvcc", "glibc")},
        "rehearsal": setup.rehearse,
        "nvidia_smi": None if setup.rehearse else asked("nvidia-smi", "-i", card(), f"--query-gpu={query}", "--format=csv"),
        "toolkit": asked("nvcc", "--version") or asked("/usr/local/cuda/bin/nvcc", "--version"),
        "compute_sanitizer": None if setup.rehearse else asked("compute-sanitizer", "--version"),
        "torch": asked(sys.executable, "-c", torch, timeout=180),
        "triton": asked(sys.executable, "-c", "import triton; print(triton.__version__)", timeout=180),
        "nvrtc": setup.env.get("SIMGRAD_NVRTC"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}",
        "glibc": list(platform.libc_ver()),
    }
    with setup.bundle.unpacked("gpu_cells") as program:
        code, text = command([program, "normalize/f32/8x8x8"], 120, setup.env)
    lines = [line for line in text.splitlines() if line.startswith("{")]
    if code != 0 or len(lines) != 2:
        raise RuntimeError(f"simgrad cannot use this device: {text.strip()[-500:]}")
    about["simgrad"] = json.loads(lines[0])
    if about["simgrad"]["emulated"] != setup.rehearse:
        wrong = "the driver is an emulator: --rehearse" if about["simgrad"]["emulated"] else "--rehearse, but the driver is not an emulator"
        raise RuntimeError(wrong)
    return about


def old_glibc(setup):
    """Why the programs cannot be started here, if that is so."""
    needed = tuple(setup.bundle.manifest["glibc"])
    name, version = platform.libc_ver()
    here = tuple(int(part) for part in version.split(".")[:2]) if name == "glibc" else None
    if here is not None and here < needed:
        return f"the bundle needs glibc {needed[0]}.{needed[1]}, this machine has {version}: build the bundle on an older system"
    return None


def test_counts(text):
    """Passed, failed and ignored tests of all summaries, and the names of those that failed; None without a summary."""
    summaries = re.findall(r"^test result: .*? (\d+) passed; (\d+) failed; (\d+) ignored", text, re.M)
    if not summaries:
        return None
    # A child process of a test prints a summary of its own, before that of the whole binary.
    passed, failed, ignored = (int(count) for count in summaries[-1])
    names = sorted(set(re.findall(r"^test (\S+) \.\.\. FAILED$", text, re.M)))
    return {"passed": passed, "failed": failed, "ignored": ignored, "failed_tests": names}


def correctness(setup, name, timeout):
    """One test binary."""
    begin = time.monotonic()
    among = turns.Turns(setup.turns)
    with setup.bundle.unpacked(name) as program, among.alone() if name in ALONE else among.together():
        # Tests of one binary take turns on the device; more threads only hold more of its memory.
        code, text = command([program, "--test-threads=4"], timeout, {**setup.env, "SIMGRAD_REQUIRE_GPU": "1"})
    counts = test_counts(text) or {"passed": 0, "failed": 0, "ignored": 0, "failed_tests": []}
    notes = [line for line in text.splitlines() if re.match(r"(note|skipped)\b", line)]
    result = {**counts, "exit": code, "seconds": round(time.monotonic() - begin, 1), "notes": notes, "ok": code == 0 and counts["passed"] > 0}
    if code is None:
        result["timed_out"] = timeout
    if not result["ok"]:
        result["output"] = text[-4000:]
    return result


def cells(setup):
    """Names of the sanitizer's cells, from the program itself."""
    if setup.cells:
        return setup.cells
    with setup.bundle.unpacked("gpu_cells") as program:
        code, text = command([program, "--list"], 60, setup.env)
    if code != 0:
        raise RuntimeError(f"gpu_cells --list: {text.strip()[-500:]}")
    setup.cells = text.split()
    return setup.cells


def by_cell(text):
    """The output between two marks of cells, by cell; what stands before the first one, under None."""
    found, name = {None: []}, None
    for line in text.splitlines():
        mark = re.match(r"cell (\S+)$", line)
        if mark:
            name = mark.group(1)
            found[name] = []
        else:
            found[name].append(line)
    return found


def sanitized(code, text, names):
    """Of a run of compute-sanitizer over cells: for each whether it ran, and the tool's findings in it.

    The tool and the program write to one stream as two processes, so a finding may stand behind a neighbour's mark; the tool's total
    decides whether the run was clean.
    """
    output = by_cell(text)
    # Its own lines begin so; the summary at the end counts what stands above it.
    is_finding = lambda line: line.startswith("=========") and not re.search(r"COMPUTE-SANITIZER|SUMMARY|^=+\s*$", line)
    summary = re.findall(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+) (?:error|hazard)", text)
    result = {}
    for name in names:
        lines = output.get(name)
        ran = lines is not None and any(line.startswith('{"cell"') and '"error"' not in line for line in lines)
        findings = [line for line in lines or [] if is_finding(line)]
        result[name] = {"ok": ran and not findings, "findings": findings[:20]}
        if not ran:
            result[name]["output"] = "\n".join(lines or output[None])[-1000:]
    total = int(summary[-1]) if summary else None
    ok = code == 0 and total == 0 and all(cell["ok"] for cell in result.values())
    return {"ok": ok, "exit": code, "findings": total, "cells": result}


def sanitizer(setup, key, timeout):
    """One tool over the cells of one operation."""
    tool, op = key.split("/")
    names = [name for name in cells(setup) if name.startswith(f"{op}/")]
    if setup.rehearse:
        return {"skipped": "compute-sanitizer needs a GPU; the emulator's own checks stand in for it where the tests run", "cells": {name: {} for name in names}}
    path = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.path.exists(path):
        return {"skipped": "this machine has no compute-sanitizer", "cells": {name: {} for name in names}}
    with setup.bundle.unpacked("gpu_cells") as program, turns.Turns(setup.turns).together():
        code, text = command([path, "--tool", tool, "--error-exitcode", "99", program, *names], timeout, setup.env)
    result = sanitized(code, text, names)
    if not result["ok"]:
        result["output"] = text[-4000:]
    return result


def repeat_names(setup):
    """Every operation and type at a shape that fills the card; in a rehearsal at a small one."""
    kinds = sorted({tuple(name.split("/")[:2]) for name in cells(setup)})
    shape = lambda op: "67x67x9" if setup.rehearse else ("1031x1031x328" if op == "goal_step" else "1031x2053x328")
    return [f"{op}/{dtype}/{shape(op)}" for op, dtype in kinds]


def repeats(setup, name, timeout):
    """One operation again and again: the hashes of all outputs have to be equal."""
    count = 3 if setup.rehearse else REPEATS
    with setup.bundle.unpacked("gpu_cells") as program, turns.Turns(setup.turns).together():
        code, text = command([program, "--repeat", str(count), name], timeout, setup.env)
    lines = [line for line in by_cell(text).get(name, []) if line.startswith("{")]
    found = json.loads(lines[-1]) if lines else {"error": text.strip()[-500:]}
    return {**found, "exit": code, "ok": code == 0 and found.get("distinct") == 1 and found.get("repeats") == count}
