"""Everything that needs a GPU, in one go: `benchmarks/gpu.sh`, which sets up the packages and starts this.

The parts run one after the other, the most valuable first: the `cuda` tests, two pre-trainings, benchmarks.
Each is a process of its own with a time limit. One that fails or takes too long does not stop the others; the
exit code and the table at the end name it. Every part writes a JSON file of its own; `gpu_summary.json` holds
the counts of the tests and the state and output of all parts, and is written anew after each.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.harness import ROOT, machine, now, other_load, write_json

TESTS = "tests"
KEPT_OUTPUT = 20_000  # characters of the end of a part's output, in the summary
SHOWN_OUTPUT = 3_000  # of one that went wrong, on the console
Status = Literal["passed", "failed", "timed out", "not run"]


@dataclass(frozen=True)
class Part:
    """One program.

    Attributes:
        name: of the part; all but the tests write gpu_<name>.json.
        command: arguments of Python.
        seconds: time limit.
    """

    name: str
    command: Sequence[str]
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """How a part ended.

    Attributes:
        part: its name.
        status: how it ended; "not run": no time was left.
        seconds: that it took.
        limit: time limit in seconds.
        exit_code: None if it did not end by itself.
        output: the end of what it printed.
    """

    part: str
    status: Status
    seconds: float
    limit: float
    exit_code: int | None
    output: str


def list_parts(out: Path, *, device: str, dry: bool) -> list[Part]:
    """All parts in the order in which they run."""
    flags = ["--device", device, *(["--dry"] if dry else [])]

    def pretraining(name: str, seconds: float) -> Part:
        file = f"pretrain_{name}"
        command = ["-m", "benchmarks.pretrain_in_memory", name, "--out", str(out / f"gpu_{file}.json")]
        return Part(file, [*command, *flags], seconds)

    def benchmark(name: str, seconds: float, *benchmarks: str) -> Part:
        command = ["benchmarks/run.py", *(benchmarks or (name,)), "--out", str(out / f"gpu_{name}.json")]
        return Part(name, [*command, *flags], seconds)

    tests = ["-m", "pytest", "-q", "-m", "cuda", "-rfE", "-p", "no:cacheprovider", *files_of_cuda_tests()]
    return [
        Part(TESTS, tests, 150),
        pretraining("mvitv2_s", 150),
        pretraining("mae_vit_b", 100),
        benchmark("step", 90),
        benchmark("mae_step", 60),
        benchmark("kernels", 60, "hog", "attention", "roi_align"),
        benchmark("finetune_step", 60),
        benchmark("targets", 120),
    ]


def files_of_cuda_tests() -> list[str]:
    """Test files with tests for a GPU; the others need packages that the machine may lack."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [
        str(file.relative_to(ROOT))
        for file in files
        if "pytest.mark.cuda" in file.read_text(encoding="utf-8")
    ]


def run_part(part: Part, *, limit: float, environment: dict[str, str]) -> Outcome:
    """Run a part, and end it with all its children if it takes longer than the limit."""
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
        finally:  # children of a part that ended by itself are ended too
            _end_group(process)
        output.seek(0)
        text = output.read()[-KEPT_OUTPUT:]
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
    """Counts and names of failures out of pytest's output; no counts if it did not reach its end."""
    lines = output.strip().splitlines() or [""]
    counted = re.findall(r"(\d+) (passed|failed|skipped|errors?)", lines[-1])
    failures = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, flags=re.MULTILINE)
    return {**{word: int(number) for number, word in counted}, "failures": failures}


def table(outcomes: Sequence[Outcome]) -> str:
    """The end of the output: a line for each part."""
    lines = [f"{'part':20} {'status':10} {'seconds':>8} {'limit':>6}"]
    lines += [f"{one.part:20} {one.status:10} {one.seconds:8.1f} {one.limit:6.0f}" for one in outcomes]
    passed = sum(one.status == "passed" for one in outcomes)
    return "\n".join([*lines, f"{passed} of {len(outcomes)} parts passed"])


def main() -> int:
    """Run the parts; returns 0 if all of them passed, and 1 otherwise."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results"
    )
    parser.add_argument("--only", nargs="+", metavar="PART", help="some parts instead of all")
    parser.add_argument("--minutes", type=float, default=7.5, help="time limit of all parts together")
    parser.add_argument("--part-seconds", type=float, help="time limit of each part, instead of its own")
    parser.add_argument("--dry", action="store_true", help="tiny inputs on the CPU; the figures mean nothing")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    out = options.out.resolve()
    parts = list_parts(out, device="cpu" if options.dry else "cuda", dry=options.dry)
    unknown = set(options.only or ()) - {part.name for part in parts}
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; known: {', '.join(part.name for part in parts)}")
    chosen = [part for part in parts if not options.only or part.name in options.only]
    return run_parts(chosen, out, deadline=deadline, part_seconds=options.part_seconds, dry=options.dry)


def run_parts(
    parts: Sequence[Part], out: Path, *, deadline: float, part_seconds: float | None, dry: bool
) -> int:
    """Run parts until the deadline, and write the summary after each; returns the exit code."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    if not dry:
        environment["VIDEOMASKFEAT_REQUIRE_CUDA"] = "1"  # a test that would be skipped fails
    device = "cpu" if dry else "cuda"
    about: dict[str, Any] = {
        "measured": now(),
        "dry": dry,
        "machine": {**machine(device), **other_load(device)},
    }
    outcomes: list[Outcome] = []
    for part in parts:
        limit = min(part_seconds or part.seconds, deadline - time.monotonic())
        if limit < 1:
            outcomes.append(Outcome(part.name, "not run", 0.0, 0.0, None, ""))
        else:
            print(f"{part.name} (at most {limit:.0f} s) ...", flush=True)
            outcomes.append(run_part(part, limit=limit, environment=environment))
        last = outcomes[-1]
        print(f"{part.name}: {last.status} after {last.seconds} s", flush=True)
        if last.status != "passed":
            print(last.output[-SHOWN_OUTPUT:], flush=True)
        if part.name == TESTS:
            about["tests"] = summarize_tests(last.output)
        write_json(out / "gpu_summary.json", {**about, "parts": [asdict(one) for one in outcomes]})
    print(table(outcomes), flush=True)
    return 0 if all(one.status == "passed" for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
