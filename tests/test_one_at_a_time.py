"""Work with torch in several threads of a process."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lmcast.exporter import export
from lmcast.exporter.graph import capture


def test_exports_in_threads_trace_one_after_the_other(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Traces of two threads at once fail, so that this test does without `one_at_a_time`."""
    monkeypatch.setattr(capture, "_programs", capture._Programs())
    sources = [checkpoint("llama/plain"), checkpoint("granite/plain")]

    def run(source: Path) -> bool:
        engine = export(source, tmp_path / source.name, "onnx", tokenizer=False)
        return engine.summary().parity is not None

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(run, sources)) == [True, True]
