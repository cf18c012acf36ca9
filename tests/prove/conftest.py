"""An engine that several files here look at; they copy what they change."""

import json
from pathlib import Path

import pytest

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[A]"


@pytest.fixture(scope="session")
def proven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, an engine that links to it, one with its weights, and what parity
    says of that: before.json."""
    import torch
    from tiny.llama import tiny_llama

    from lmcast.exporter import export
    from lmcast.exporter.pack import pack
    from lmcast.exporter.prove.parity import parity

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("proven")
    tiny_llama(folder / "checkpoint")
    (folder / "checkpoint/chat_template.jinja").write_text(TEMPLATE)
    export(folder / "checkpoint", folder / "linked", parity=False)
    pack(folder / "linked", folder / "engine")
    report = {
        "report": "lmcast parity",
        **parity(folder / "engine", folder / "checkpoint").as_json(),
    }
    (folder / "before.json").write_text(json.dumps(report))
    torch.set_num_threads(threads)
    return folder
