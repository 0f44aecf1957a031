"""Create .venv with the tested versions: `python3 tools/set_up.py [VENV [CONSTRAINTS [TORCH]]]`.

It needs only Python >= 3.10.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch==2.13.0"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


def main() -> int:
    """Create the environment unless it is complete."""
    if sys.version_info < (3, 10):  # noqa: UP036 - the first check of the version
        print(f"Python is {sys.version.split()[0]}, but must be >= 3.10: make PYTHON=python3.12 ...")
        return 2
    venv = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / ".venv")
    constraints = sys.argv[2] if len(sys.argv) > 2 else "constraints.txt"
    torch = f"torch=={sys.argv[3]}" if len(sys.argv) > 3 else TORCH
    stamp = venv / "complete"
    versions = (
        "".join((ROOT / name).read_text(encoding="utf-8") for name in ("setup.py", constraints)) + torch
    )
    if stamp.exists() and stamp.read_text(encoding="utf-8") == versions:
        return 0
    print(f"Creating {venv} (once, 1 to 2 minutes)", flush=True)
    if subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)]).returncode:
        print("Python's venv module is missing: on Debian or Ubuntu, apt install python3-venv")
        return 2
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install"]
    pip += ["--progress-bar=off", "-c", str(ROOT / constraints)]
    if shutil.which("nvidia-smi") is None and not install_cpu_torch(pip, torch):
        return 1
    pinned = [torch] if len(sys.argv) > 3 else []
    if subprocess.run([*pip, *pinned, "-e", f"{ROOT}[dev,export]"]).returncode:
        return 1
    stamp.write_text(versions, encoding="utf-8")
    return 0


def install_cpu_torch(pip: list[str], torch: str) -> bool:
    """Install a CPU build, without gigabytes of CUDA libraries for a machine without a GPU."""
    attempts = (
        [f"{torch}+cpu"],  # from a wheel folder or mirror of pip's configuration
        [f"{torch}+cpu", "--extra-index-url", CPU_WHEELS],
        [torch],  # macOS: the plain build is a CPU build
    )
    for number, attempt in enumerate(attempts, start=1):
        quiet = subprocess.DEVNULL if number < len(attempts) else None
        if subprocess.run([*pip, *attempt], stderr=quiet).returncode == 0:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
