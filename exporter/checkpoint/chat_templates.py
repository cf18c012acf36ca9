"""The chat templates of a Hugging Face directory, in the precedence of transformers 5.23.

Those of the tokenizer come first: files of their own, which count together, else those of
tokenizer_config.json. Where it has none, a processor's: processor_config.json, chat_template.json.
"""

import os
import re
from typing import Any

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.files import Folder
from lmcast.exporter.checkpoint.strict_json import parse_object

DEFAULT = "default"
FILE = "chat_template.jinja"
FOLDER = "additional_chat_templates"
TEMPLATE_BYTES = 16 << 20
NAME = re.compile(r"\w[\w .-]{0,99}")  # an engine stores each in a file of its name


def read_chat_templates(
    folder: Folder, config: dict[str, Any]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the templates by name, and warnings about sources that are left out.

    config: tokenizer_config.json. Raises CheckpointError for a source that is unusable.
    """
    processor = _object(folder, "processor_config.json")
    legacy = _object(folder, "chat_template.json")
    if legacy and "chat_template" not in legacy:
        raise CheckpointError(
            f"{folder.root / 'chat_template.json'}: has the keys {sorted(legacy)!s:.200};"
            ' {"chat_template": TEMPLATE} is accepted'
        )
    sources = {FILE: _files(folder)} | {
        name: _given(given.get("chat_template"), f"{folder.root / name}")
        for name, given in (
            ("tokenizer_config.json", config),
            ("processor_config.json", processor),
            ("chat_template.json", legacy),
        )
    }
    present = [(name, found) for name, found in sources.items() if found]
    if not present:
        return {}, ()
    (used, templates), *others = present
    notes = [
        f"chat template: that of {used if used != FILE else _named(templates)} is used;"
        f" {name} has a different one ({', '.join(different)}), which is left out"
        for name, found in others
        if (different := [n for n in found if _text_of(found[n]) != _text_of(templates.get(n))])
    ]
    if DEFAULT not in templates:
        notes.append(
            f"chat template: none of {', '.join(sorted(templates))} is the default; give --template"
        )
    return templates, tuple(notes)


def _named(templates: dict[str, str]) -> str:
    """Say which files are used."""
    return FILE if DEFAULT in templates else FOLDER


def _text_of(template: str | None) -> str | None:
    """Return what a template renders: jinja2 drops one line break at its end."""
    return template and template.replace("\r\n", "\n").removesuffix("\n")


def _object(folder: Folder, name: str) -> dict[str, Any]:
    data = folder.read(name, TEMPLATE_BYTES)
    return {} if data is None else parse_object(data, folder.root / name)


def _files(folder: Folder) -> dict[str, str]:
    """Return the templates that are files: the default, and those of the folder for others."""
    names = [FILE, *(f"{FOLDER}/{name}" for name in _listed(folder))]
    templates: dict[str, str] = {}
    for name in names:
        data = folder.read(name, TEMPLATE_BYTES)
        if data is None:
            continue
        called = DEFAULT if name == FILE else name.split("/")[1].removesuffix(".jinja")
        check_name(called, f"{folder.root / name}")
        if called in templates:
            raise CheckpointError(
                f"{folder.root / name}: is a second default beside {FILE}; remove one of the two"
            )
        try:
            templates[called] = data.decode()
        except UnicodeDecodeError:
            raise CheckpointError(f"{folder.root / name}: is not UTF-8 text") from None
    return templates


def _listed(folder: Folder) -> list[str]:
    path = folder.root / FOLDER
    if not path.is_dir():
        return []
    try:
        return sorted(name for name in os.listdir(path) if name.endswith(".jinja"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be listed: {error.strerror}") from None


def _given(value: object, where: str) -> dict[str, str]:
    """Return the templates of a JSON value: one, or a list of named ones."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    templates: dict[str, str] = {}
    for item in value if isinstance(value, list) else [None]:
        match item:
            case {"name": str(name), "template": str(template)}:
                check_name(name, where)
                if name in templates:
                    raise CheckpointError(f"{where}: chat_template has one name twice: {name!r}")
                templates[name] = template
            case _:
                raise CheckpointError(
                    f"{where}: chat_template is a {type(value).__name__}; a string or a list of"
                    " {name, template} is accepted"
                )
    return templates


def check_name(name: str, where: str) -> None:
    """Refuse a name that could not be that of a file everywhere."""
    if not NAME.fullmatch(name):
        raise CheckpointError(
            f"{where}: a chat template is named {name!r:.120}; letters, digits, '_', '.', '-' and"
            " spaces are accepted"
        )
