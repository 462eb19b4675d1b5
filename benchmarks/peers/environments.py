"""Each peer's own virtual environment, so that no peer decides the versions of another, or of this project.

An environment lies in build/peers/NAME/venv. It is made when it is missing, and made anew when what it must hold has
changed. Programs for it are modules of `benchmarks.peers` that import nothing but the standard library, NumPy and the
peer: `run` starts them with this checkout on the path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "build" / "peers"
CTRANSLATE2 = "ctranslate2==4.8.5"
OPTIMUM = "optimum-onnx[onnxruntime]==0.1.0"
TORCH = "torch==2.13.0"
"""The exact version: any range admits builds that bring several gigabytes of CUDA libraries."""


def environment(name: str, *requirements: Sequence[str], directory: Path = PEERS) -> Path:
    """The Python of an environment of that name.

    Args:
        requirements: what pip installs, one call of pip after another, so that an early one can settle a version.
        directory: holds the environments, each in a directory of its name.

    Raises:
        subprocess.CalledProcessError: when one cannot be installed; the next call tries again.
    """
    home = directory.resolve() / name
    python, stamp = home / "venv" / "bin" / "python", home / "requirements.txt"
    wanted = "".join(f"{' '.join(group)}\n" for group in requirements)
    if python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    stamp.unlink(missing_ok=True)
    shutil.rmtree(home / "venv", ignore_errors=True)
    home.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", str(home / "venv")], check=True)
    for group in requirements:
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *group],
            check=True,
            cwd=home,
        )
    stamp.write_text(wanted, encoding="utf-8")
    return python


def ctranslate2() -> Path:
    """CTranslate2 and NumPy."""
    return environment("ctranslate2", (CTRANSLATE2,))


def optimum() -> Path:
    """Optimum over ONNX Runtime, with Transformers and PyTorch, which it converts models with."""
    return environment("optimum", (TORCH,), (OPTIMUM, TORCH))


def pytorch() -> Path:
    """PyTorch: this environment, for its model is `training.model`, which stands on `training`'s other requirements."""
    return Path(sys.executable)


def dragoman() -> Path:
    """This environment. A program that imports `service` alone loads neither torch nor onnx."""
    return Path(sys.executable)


def command(python: Path, module: str, *arguments: str) -> list[str]:
    """A command that runs a module of this checkout; see `variables`."""
    return [str(python), "-m", module, *arguments]


def variables() -> dict[str, str]:
    """The environment variables for `command`: this checkout on the path, and no more threads than are asked for."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}


def run(python: Path, module: str, *arguments: str) -> None:
    """Runs a module of this checkout in an environment to its end.

    Raises:
        subprocess.CalledProcessError: when it fails.
    """
    subprocess.run(command(python, module, *arguments), check=True, env=variables())
