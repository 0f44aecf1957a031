"""The GPU script: its logic on the CPU, and each of its parts with tiny inputs."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import re
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import bench_pyslowfast, bench_videomae, comparison, learning, run
from benchmarks.gpu import END_SECONDS, Part, files_of_cuda_tests, list_parts, run_parts, summarize_tests
from benchmarks.pretrain_in_memory import (
    CASES,
    MemoryLoader,
    pretrain,
    pretrain_with_graphs,
    summarize,
)
from videomaskfeat.methods.build import build_method

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


def python_part(name: str, code: str, seconds: float = 60) -> Part:
    return Part(name, ["-c", code], seconds)


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def is_running(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def run_script(
    *arguments: str, python: Path | None = None, timeout: float = 280
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": str(python or sys.executable), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=timeout
    )


def test_failing_part_is_named_and_the_others_still_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = tmp_path / "child"
    hanging = (
        "import subprocess, time\n"
        f"open({str(started)!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid))\n"
        "print('started', flush=True)\n"
        "time.sleep(60)"
    )
    programs = [
        python_part("bad", "import sys; print('why it failed'); sys.exit(3)"),
        python_part("hanging", hanging, seconds=4),
        python_part("good", "import os; print(os.environ.get('VIDEOMASKFEAT_REQUIRE_CUDA'))"),
    ]
    before = time.monotonic()
    assert run_parts(programs, tmp_path, deadline=before + 60, part_seconds=None, dry=True) == 1
    summary = read(tmp_path / "gpu_summary.json")
    assert summary["dry"] is True
    assert {"torch", "device", "commit", "busy"} <= summary["machine"].keys()
    assert {one["part"]: (one["status"], one["exit_code"], one["output"]) for one in summary["parts"]} == {
        "bad": ("failed", 3, "why it failed\n"),
        "hanging": ("timed out", None, "started\n"),
        "good": ("passed", 0, "None\n"),
    }
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 of 3 parts passed"
    assert [line.split()[:2] for line in lines[-4:-1]] == [
        ["bad", "failed"],
        ["hanging", "timed"],
        ["good", "passed"],
    ]
    assert "why it failed" in lines
    assert not is_running(int(started.read_text()))  # the children of the part are ended, too


def test_parts_past_the_deadline_do_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    programs = [python_part("first", "import time; time.sleep(60)"), python_part("second", "")]
    assert run_parts(programs, tmp_path, deadline=time.monotonic() + 2, part_seconds=None, dry=True) == 1
    summary = read(tmp_path / "gpu_summary.json")
    assert [(one["part"], one["status"]) for one in summary["parts"]] == [
        ("first", "cut"),
        ("second", "not run"),
    ]
    assert capsys.readouterr().out.endswith(
        "0 of 2 parts passed\nout of time; run the rest with --only first second\n"
    )


def test_part_leaves_later_ones_their_time_and_is_not_started_without_its_own(tmp_path: Path) -> None:
    sleeping = ["-c", "import time; time.sleep(60)"]
    programs = [Part("first", sleeping, seconds=60, needed=2), Part("second", ["-c", ""], 60, 4)]
    assert run_parts(programs, tmp_path, deadline=time.monotonic() + 8, part_seconds=None, dry=True) == 1
    first, second = read(tmp_path / "gpu_summary.json")["parts"]
    assert (first["status"], second["status"]) == ("cut", "passed")
    assert 2 <= first["limit"] <= 4  # 8 without the start of the run and the 4 of the second
    programs = [Part("long", sleeping, seconds=80, needed=60), Part("short", ["-c", ""], 60, 1)]
    assert run_parts(programs, tmp_path, deadline=time.monotonic() + 6, part_seconds=None, dry=True) == 1
    long, short = read(tmp_path / "gpu_summary.json")["parts"]
    assert (long["status"], short["status"]) == ("not run", "passed")
    assert re.fullmatch(r"\d s are left, and long needs about 60 s\n", long["output"])


def test_all_parts_fit_into_the_time_by_calculation(tmp_path: Path) -> None:
    programs = list_parts(tmp_path, device="cuda", dry=False)
    assert sum(part.needed for part in programs) <= 8 * 60 - END_SECONDS
    assert all(0 < part.needed <= part.seconds for part in programs)


def test_script_ends_in_its_time(tmp_path: Path) -> None:
    """15 seconds; 10 of them are for its end, and the part takes longer than the rest."""
    started = time.monotonic()
    done = run_script("--dry", "--only", "step", "--minutes", "0.25", "--out", str(tmp_path))
    assert time.monotonic() - started < 15
    assert done.returncode == 1
    assert "step                 cut" in done.stdout
    assert done.stdout.endswith("out of time; run the rest with --only step\n")


def test_parts_are_in_order_of_importance(tmp_path: Path) -> None:
    programs = list_parts(tmp_path, device="cuda", dry=False)
    names = [part.name for part in programs]
    assert names[:3] == ["tests", "pretrain_mvitv2_s", "pretrain_mae_vit_b"]
    assert len(names) <= 8  # the maximum number of result files; the tests write the summary
    for part in programs:
        assert "--dry" not in part.command
        assert part.name == "tests" or "cuda" in part.command
    assert "tests/targets/test_hog.py" in files_of_cuda_tests()


def test_videomae_is_a_part_if_its_package_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(package: object) -> list[str]:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: package)
        by_name = {part.name: part for part in list_parts(tmp_path, device="cuda", dry=False)}
        return list(by_name["mae_step"].command)

    assert command(object())[1:3] == ["mae_step", "videomae"]
    assert "videomae" not in command(None)
    with pytest.raises(RuntimeError, match="the package transformers is not installed; pip install"):
        bench_videomae.run(device="cpu", dry=True)


def test_pyslowfast_needs_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("", str(tmp_path)):
        monkeypatch.setenv("SLOWFAST", path)
        with pytest.raises(RuntimeError, match="set SLOWFAST to the path of a checkout"):
            bench_pyslowfast.run(device="cpu")


def test_training_with_graphs_is_summarized() -> None:
    """The dry run has no graphs: it shows that the second training runs."""
    result = pretrain_with_graphs("mae_vit_b", dry=True)
    assert (result["compile_mode"], result["steps"]) == ("default", 2)
    assert result["clips_per_second"] > 0


def test_counts_and_names_of_tests_are_read() -> None:
    lines = (
        "..F",
        "FAILED tests/a.py::test_b[c-d] - assert 1",
        "ERROR tests/e.py",
        "=== 1 failed, 12 passed, 1 error in 9.1s ===",
    )
    names = ["tests/a.py::test_b[c-d]", "tests/e.py"]
    expected = {"failed": 1, "passed": 12, "error": 1, "failures": names}
    assert summarize_tests("\n".join(lines) + "\n") == expected
    assert summarize_tests("") == {"failures": []}


def test_benchmark_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*, device: str, dry: bool) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("benchmarks.bench_attention.run", fail)
    out = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["run.py", "attention", "hog", "--dry", "--out", str(out)])
    assert run.main() == 1
    content = read(out)
    assert content["failed"] == {"attention": "RuntimeError: no memory"}
    assert content["dry"] is True
    assert len(content["rows"]) == 1
    assert {"device", "torch", "commit", "busy", "cpu_busy_share"} <= content["machine"].keys()
    assert "attention failed: RuntimeError: no memory" in capsys.readouterr().err


def test_benchmarks_for_a_gpu_have_a_dry_run() -> None:
    for name in run.GPU_NAMES:
        assert "dry" in inspect.signature(import_module(f"benchmarks.bench_{name}").run).parameters


@pytest.mark.parametrize("name", CASES)
def test_pretraining_in_memory_reports_speed_and_losses(name: str) -> None:
    result = pretrain(name, device="cpu", steps=3, dry=True)
    assert result["steps"] == 3
    assert result["loss_last"] > 0
    assert result["loss_fell"] == (result["loss_last"] < result["loss_first"])
    assert list(result["loss_curve"]) == [1, 2, 3]
    assert result["clips_per_second"] == pytest.approx(2000 / result["step_ms"])
    assert result["target"] == {"mvitv2_s": "hog", "mae_vit_b": "pixels"}[name]


def test_summary_of_a_training_is_over_the_last_hundred_steps() -> None:
    """A first step of 30 s, 99 of 100 ms and 100 of 50 ms; the loss falls from 1 to 0.005 in equal steps."""
    times = [30_000.0] + [100.0] * 99 + [50.0] * 99 + [70.0]
    records = [
        {"step": i + 1, "loss": 1 - i / 200, "step_ms": time, "data_ms": 0.1, "memory_mb": i}
        for i, time in enumerate(times)
    ]
    summary = summarize(records, batch_size=32)
    assert (summary["step_ms"], summary["step_ms_worst"], summary["clips_per_second"]) == (50.0, 70.0, 640.0)
    assert summary["loss_first"] == pytest.approx(1 - 4.5 / 200)
    assert summary["loss_last"] == pytest.approx(1 - 194.5 / 200)
    assert summary["loss_fell"]
    assert summary["compile_seconds"] == pytest.approx(29.95 + 2 * 0.05)
    assert summary["peak_memory_mb"] == 199
    assert len(summary["loss_curve"]) == 20


def test_batches_in_memory_come_in_another_order_each_epoch() -> None:
    loader: Any = MemoryLoader([f"batch {i}" for i in range(20)])  # type: ignore[misc]
    first, second = list(loader.epoch(0)), list(loader.epoch(1))
    assert first == list(loader.epoch(0)) != second
    assert sorted(first) == sorted(second)
    assert list(loader.epoch(1, 7)) == second[7:]
    twice: Any = MemoryLoader([f"batch {i}" for i in range(20)], passes=2)  # type: ignore[misc]
    batches = list(twice.epoch(0))
    assert len(batches) == twice.batches_per_epoch == 40
    assert sorted(batches[:20]) == sorted(batches[20:]) == sorted(first)
    assert batches[:20] != batches[20:]
    assert list(twice.epoch(0, 23)) == batches[23:]


@pytest.mark.parametrize("run", ["mae", "ibot"])
def test_learning_of_digits_runs(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "learning.json"
    monkeypatch.setattr(sys, "argv", ["learning", run, "--dry", "--out", str(out)])
    assert learning.main() == 0
    (row,) = read(out)["rows"]
    assert row["run"] == run
    assert row["steps"] == len(row["loss_curve"]) == 2
    assert all(0 <= row[when][kind] <= 100 for when in ("before", "after") for kind in ("linear", "knn"))


def test_learning_sees_whole_digits_and_crops_pairs_only() -> None:
    digits = learning.draw_digits(64, 1)[0]
    for name, whole in (("mae", True), ("byol", False)):
        method = build_method(learning.config_of(name, steps=1, seed=0, clips=64))
        with learning.digit_loader(method, digits.clips, seed=0) as loader:
            (batch,) = itertools.islice(loader.epoch(0), 1)
        assert len(batch.clips) == 64
        assert torch.equal(batch.clips, digits.clips[batch.index]) == whole


def test_jittered_digits_depend_on_the_seed_alone_and_stay_upright() -> None:
    pictures = np.zeros((2, 8, 8), np.uint8)
    pictures[:, :4] = 16  # the upper half
    labels = np.array([3, 7])
    first = learning.jittered_digits(pictures, labels, 50, seed=0)
    assert first.clips.shape == (50, 1, 40, 40, 3)
    assert first.clips.dtype == torch.uint8
    assert torch.equal(first.clips, learning.jittered_digits(pictures, labels, 50, seed=0).clips)
    assert not torch.equal(first.clips, learning.jittered_digits(pictures, labels, 50, seed=1).clips)
    assert first.labels.tolist() == [3, 7] * 25
    brightness = first.clips.float().mean(dim=(0, 1, 3, 4))  # of each row
    # The upper half covers 15 to 20 of 40 rows, moved by up to 5 and turned: rows 6..12 are always inside.
    assert (brightness[6:12] > 150).all()
    assert (brightness[28:] < 10).all()


def test_script_names_what_is_missing(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    done = run_script("--dry", python=bare)
    assert done.returncode == 2
    assert done.stderr.startswith("gpu.sh: missing packages: av decord fvcore")
    done = run_script("--wheels", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "there is no such folder; make it with benchmarks/gpu.sh --prepare DIR" in done.stderr


def test_script_runs_a_part(tmp_path: Path) -> None:
    done = run_script("--dry", "--only", "pretrain_mae_vit_b", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("1 of 1 parts passed\n")
    assert read(tmp_path / "gpu_pretrain_mae_vit_b.json")["steps"] == 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_script_runs_every_part_and_names_the_one_that_fails(tmp_path: Path) -> None:
    (tmp_path / "gpu_kernels.json").mkdir()  # so that this part cannot write its figures
    limits = ["--minutes", "25", "--part-seconds", "600"]
    done = run_script("--dry", "--out", str(tmp_path), *limits, timeout=1700)
    assert done.returncode == 1
    summary = read(tmp_path / "gpu_summary.json")
    failed = [one for one in summary["parts"] if one["status"] != "passed"]
    assert [one["part"] for one in failed] == ["kernels"], [one["output"] for one in failed]
    assert done.stdout.endswith("7 of 8 parts passed\n")
    assert summary["tests"].keys() & {"passed", "skipped"}
    assert summary["tests"]["failures"] == []
    for name in ("mvitv2_s", "mae_vit_b"):
        keys = {"loss_first", "loss_last", "step_ms", "clips_per_second", "peak_memory_mb", "compile_seconds"}
        assert keys <= read(tmp_path / f"gpu_pretrain_{name}.json").keys()
    for name in ("step", "mae_step", "finetune_step", "targets"):
        content = read(tmp_path / f"gpu_{name}.json")
        assert content["dry"] is True
        assert content["rows"]
        for row in content["rows"]:
            assert row["ours"] > 0
            assert row["baseline"] > 0


def test_picture_and_tables_of_a_comparison_show_the_paired_gains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed form: for differences of 2 and 4 points the interval is 12.706 * sqrt(2) / sqrt(2) = 12.7."""
    before, after = [10.0, 12.0], [12.0, 16.0]
    values: dict[str, Any] = {"classes": 4}
    for probe, gain in (("linear_top1", {"mean": 3.0, "interval": 12.706}), ("knn_top1", {"mean": -8.0})):
        values[f"{probe}_untrained"], values[probe] = before, after
        values[f"{probe}_gain"] = {"interval": 1.0, "pairs": 2, **gain}
    targets = [
        {"target": "hog", "clips": 16, "step_ms": 80.0, "target_ms": 4.0, "factors": {"motion": values}}
    ]
    facts = {"provenance": {"commit": "abc"}, "machine": {"CPU cores": "2"}}
    content = {"machine": facts, "targets": targets}
    (tmp_path / "table.json").write_text(json.dumps(content), encoding="utf-8")
    out, picture = tmp_path / "out.json", tmp_path / "out.svg"
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path), "--out", str(out), "--picture", str(picture)])
    assert comparison.main() == 0
    assert read(out) == {"commit": "abc", "CPU cores": "2", "targets": targets}
    svg = picture.read_text(encoding="utf-8")
    assert "+3.0 ± 12.7" in svg
    assert "var(--" not in svg
    printed = capsys.readouterr().out
    assert "### Motion (chance 25.0 %)" in printed
    assert "| HOG | 200 | 5 % |" in printed
    assert "| HOG | 11.0 | 14.0 | +3.0 ± 12.7 | 11.0 | 14.0 | -8.0 ± 1.0 |" in printed


def test_seeds_of_an_earlier_comparison_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds with gains of 2 and then 4: mean 3, interval as above; other budgets are not joined."""

    def row(target: str, gain: float, steps: float) -> dict[str, Any]:
        values: dict[str, Any] = {"classes": 4}
        for probe in ("linear_top1", "knn_top1"):
            values |= {f"{probe}_untrained": [10.0], probe: [10.0 + gain]}
            values[f"{probe}_gain"] = {"mean": gain, "interval": None, "pairs": 1}
        cost = {"clips": 16, "step_ms": 80.0, "target_ms": 4.0, "steps": [steps], "seconds": [1.0]}
        return {"target": target, "factors": {"motion": values}, **cost}

    earlier, out = tmp_path / "earlier.json", tmp_path / "out.json"
    earlier.write_text(json.dumps({"targets": [row("hog", 2, 9), row("mae", 7, 9), row("dvae", 5, 9)]}))
    content = {
        "machine": {"provenance": {}, "machine": {}},
        "targets": [row("mae", 1, 8), row("hog", 4, 9), row("byol", 6, 9)],
    }
    (tmp_path / "table.json").write_text(json.dumps(content), encoding="utf-8")
    line = ["", str(tmp_path), "--out", str(out), "--picture", str(tmp_path / "out.svg")]
    monkeypatch.setattr(sys, "argv", [*line, "--seeds-of", str(earlier)])
    assert comparison.main() == 0
    rows = {one["target"]: one for one in read(out)["targets"]}
    hog = rows["hog"]["factors"]["motion"]
    assert list(rows) == ["hog", "mae", "dvae", "byol"]
    assert hog["linear_top1"] == [12.0, 14.0]
    assert rows["hog"]["steps"] == [9, 9]
    assert hog["linear_top1_gain"] == {"mean": 3.0, "interval": pytest.approx(12.706, abs=1e-3), "pairs": 2}
    assert rows["mae"]["factors"]["motion"]["linear_top1"] == [11.0]
    assert rows["dvae"]["factors"]["motion"]["linear_top1"] == [15.0]
