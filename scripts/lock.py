"""Write requirements.lock anew: exact versions for Python 3.11 to 3.13, for the package and its extra 'dev'.

torch stays at the version named here; its CUDA packages are left out, because torch's own wheel brings
the ones that it needs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch==2.13.0"
LEFT_OUT = ("nvidia-", "cuda-", "triton")
HEAD = "# Exact versions for Python 3.11 to 3.13, written by 'make lock'. torch brings its own CUDA packages where its wheel needs them."

with tempfile.TemporaryDirectory() as folder:
    constraint = Path(folder) / "constraints.txt"
    constraint.write_text(TORCH + "\n")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, "uv"], check=True)
    command = [
        f"{folder}/bin/uv",
        "pip",
        "compile",
        "--quiet",
        "--universal",
        "--python-version",
        "3.11",
        "--extra",
        "dev",
    ]
    command += ["--no-header", "--no-annotate", "--constraint", str(constraint), str(ROOT / "pyproject.toml")]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()

kept = [line for line in lines if not line.startswith(LEFT_OUT)]
(ROOT / "requirements.lock").write_text("\n".join([HEAD, *kept]) + "\n")
print(f"requirements.lock: {len(kept)} packages")
