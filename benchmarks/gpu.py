"""All tests and benchmarks that need a GPU: `benchmarks/gpu.sh` sets up the packages and starts this script.

The parts run in sequence, the most important first: the `cuda` tests, two pre-trainings, benchmarks. Each
part is a process with a time limit, and the script has one for all. A part that fails or exceeds its limit
does not stop the others, and leaves later parts the time that they need. A part without enough time is not
started. The exit code and the final table report all of this. Every part except the tests writes a JSON file.
`gpu_summary.json` contains the numbers of tests and the status and output of all parts; it is written again
after each part.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.harness import ROOT, machine, now, other_load, write_json

TESTS = "tests"
SAVED_OUTPUT = 20_000  # characters from the end of a part's output in the summary
SHOWN_OUTPUT = 3_000  # characters of a failed part's output on the console
END_SECONDS = 10.0
"""Time of the script for ending the last part (3 s for each of two signals) and writing the summary."""
ENOUGH = 0.8  # of the time that a part needs by estimate
Status = Literal["passed", "failed", "timed out", "cut", "not run"]


@dataclass(frozen=True)
class Part:
    """One program.

    Attributes:
        name: name of the part; every part except the tests writes gpu_<name>.json.
        command: arguments of Python.
        seconds: time limit.
        needed: estimated duration; with less than 0.8 of it left, the part is not started.
    """

    name: str
    command: Sequence[str]
    seconds: float
    needed: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """Result of a part.

    Attributes:
        part: name of the part.
        status: result; "timed out" at its own limit, "cut" at that of the script; "not run" if too little
            time was left.
        seconds: duration.
        limit: time limit in seconds.
        exit_code: exit code; None after a timeout.
        output: end of the printed output.
    """

    part: str
    status: Status
    seconds: float
    limit: float
    exit_code: int | None
    output: str


def list_parts(out: Path, *, device: str, dry: bool) -> list[Part]:
    """All parts in their order.

    The durations are estimates until a GPU has run them: 10 s to start a process, 60 s to compile MViTv2-S
    and 40 s to compile ViT-B, a quarter of the clips per second of `benchmarks/floors.py` in bf16, 50 TFLOP/s
    in fp32, and a baseline that takes three times as long as ours.
    """
    flags = ["--device", device, *(["--dry"] if dry else [])]

    def pretraining(name: str, seconds: float, needed: float, *options: str) -> Part:
        file = f"pretrain_{name}"
        command = ["-m", "benchmarks.pretrain_in_memory", name, "--out", str(out / f"gpu_{file}.json")]
        return Part(file, [*command, *flags, *options], seconds, needed)

    def benchmark(name: str, seconds: float, needed: float, *benchmarks: str) -> Part:
        command = ["benchmarks/run.py", *(benchmarks or (name,)), "--out", str(out / f"gpu_{name}.json")]
        return Part(name, [*command, *flags], seconds, needed)

    # The wheels of gpu.sh have no room for it.
    videomae = ["videomae"] if importlib.util.find_spec("transformers") else []
    tests = ["-m", "pytest", "-q", "-m", "cuda", "-rfE", "-p", "no:cacheprovider", *files_of_cuda_tests()]
    programs = [
        Part(TESTS, tests, 150, 140),
        pretraining("mvitv2_s", 150, 90, "--graphs"),  # 200 steps; the graphs use what time is left
        pretraining("mae_vit_b", 90, 60, *([] if dry else ["--steps", "60"])),
        benchmark("step", 60, 35),
        benchmark("mae_step", 60, 30, "mae_step", *videomae),
        benchmark("kernels", 60, 40, "hog", "attention", "roi_align", "augment_on"),
        benchmark("finetune_step", 60, 35),
        benchmark("targets", 60, 40),
    ]
    return [replace(part, needed=0.0) for part in programs] if dry else programs


def files_of_cuda_tests() -> list[str]:
    """Files with tests for a GPU; other files may need packages that the machine lacks."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [
        str(file.relative_to(ROOT))
        for file in files
        if "pytest.mark.cuda" in file.read_text(encoding="utf-8")
    ]


def run_part(part: Part, *, limit: float, environment: dict[str, str]) -> Outcome:
    """Run a part, and end it and its children at the time limit."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            [sys.executable, *part.command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # also ends children of a part that has ended
            _end_group(process)
        output.seek(0)
        text = output.read()[-SAVED_OUTPUT:]
    status: Status = "timed out" if code is None else "passed" if code == 0 else "failed"
    return Outcome(part.name, status, round(time.monotonic() - started, 1), round(limit, 1), code, text)


def _end_group(process: subprocess.Popen[Any]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def summarize_tests(output: str) -> dict[str, Any]:
    """Numbers of tests and names of failures from pytest's output; no numbers if pytest was stopped."""
    lines = output.strip().splitlines() or [""]
    counted = re.findall(r"(\d+) (passed|failed|skipped|errors?)", lines[-1])
    failures = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, flags=re.MULTILINE)
    return {**{word: int(number) for number, word in counted}, "failures": failures}


def table(outcomes: Sequence[Outcome]) -> str:
    """The final table, with one line per part."""
    lines = [f"{'part':20} {'status':10} {'seconds':>8} {'limit':>6}"]
    lines += [f"{one.part:20} {one.status:10} {one.seconds:8.1f} {one.limit:6.0f}" for one in outcomes]
    passed = sum(one.status == "passed" for one in outcomes)
    return "\n".join([*lines, f"{passed} of {len(outcomes)} parts passed"])


def main() -> int:
    """Run the parts; return 0 if all have passed, otherwise 1."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results"
    )
    parser.add_argument("--only", nargs="+", metavar="PART", help="parts to run (default: all)")
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit of the script")
    parser.add_argument("--started", type=float, help="start of the script, in seconds since 1970")
    parser.add_argument("--part-seconds", type=float, help="time limit of each part, in seconds")
    parser.add_argument(
        "--dry", action="store_true", help="tiny inputs on the CPU; the results have no meaning"
    )
    options = parser.parse_args()
    elapsed = 0.0 if options.started is None else max(time.time() - options.started, 0.0)
    deadline = time.monotonic() + 60 * options.minutes - elapsed - END_SECONDS
    out = options.out.resolve()
    programs = list_parts(out, device="cpu" if options.dry else "cuda", dry=options.dry)
    unknown = set(options.only or ()) - {part.name for part in programs}
    if unknown:
        parser.error(
            f"no part {', '.join(sorted(unknown))}; known: {', '.join(part.name for part in programs)}"
        )
    chosen = [part for part in programs if not options.only or part.name in options.only]
    return run_parts(chosen, out, deadline=deadline, part_seconds=options.part_seconds, dry=options.dry)


def run_parts(
    programs: Sequence[Part], out: Path, *, deadline: float, part_seconds: float | None, dry: bool
) -> int:
    """Run parts until the deadline, write the summary after each, and return the exit code."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    if not dry:
        environment["VIDEOMASKFEAT_REQUIRE_CUDA"] = "1"  # tests fail instead of being skipped
    device = "cpu" if dry else "cuda"
    about: dict[str, Any] = {
        "measured": now(),
        "dry": dry,
        "machine": {**machine(device), **other_load(device)},
    }
    outcomes: list[Outcome] = []
    for number, part in enumerate(programs):
        left = deadline - time.monotonic()
        needed, longest = (0.0, part_seconds) if part_seconds else (part.needed, part.seconds)
        if left < max(ENOUGH * needed, 1.0):
            text = f"{max(left, 0):.0f} s are left, and {part.name} needs about {needed:.0f} s\n"
            outcomes.append(Outcome(part.name, "not run", 0.0, 0.0, None, text))
        else:
            later = 0.0 if part_seconds else sum(one.needed for one in programs[number + 1 :])
            limit = min(longest, left, max(needed, left - later))
            print(f"{part.name} (at most {limit:.0f} s) ...", flush=True)
            outcome = run_part(part, limit=limit, environment=environment)
            if outcome.status == "timed out" and limit < longest:
                outcome = replace(outcome, status="cut")
            outcomes.append(outcome)
        last = outcomes[-1]
        print(f"{part.name}: {last.status} after {last.seconds} s", flush=True)
        if last.status != "passed":
            print(last.output[-SHOWN_OUTPUT:], flush=True)
        if part.name == TESTS:
            about["tests"] = summarize_tests(last.output)
        write_json(out / "gpu_summary.json", {**about, "parts": [asdict(one) for one in outcomes]})
    print(table(outcomes), flush=True)
    if missing := [one.part for one in outcomes if one.status in ("cut", "not run")]:
        print(f"out of time; run the rest with --only {' '.join(missing)}", flush=True)
    return 0 if all(one.status == "passed" for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
