"""A process that calls a function of a module and writes down what it returned; see process.py."""

import gc
import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def main(source: str, function: str, arguments: str, answer: str) -> None:
    """Be the process."""
    spec = spec_from_file_location(Path(source).stem, source)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    result = getattr(module, function)(*json.loads(arguments))
    Path(answer).write_text(json.dumps(result))


if __name__ == "__main__":
    gc.set_threshold(200_000, 20, 100)  # as tests/conftest.py does
    main(*sys.argv[1:])
