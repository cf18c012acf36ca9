"""The process that renders chat templates, started by runtime/text.py.

Templates are untrusted. The sandbox keeps them from Python's internals, but nothing within a
process bounds the time and memory of every operator, method and filter: limits on a process do.
"""

import json
import resource
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

CPU_SECONDS = 2  # a long chat renders in milliseconds
MEMORY_BYTES = 512 << 20  # of address space; Python and jinja2 take about 30 MB
TEXT_LIMIT = 16 << 20  # characters of all rendered chats together


def limit_process() -> None:
    """Limit the memory and time of this process from here on."""
    limits = {
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def environment() -> Any:
    """Return the jinja2 environment of Hugging Face's chat templates."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """`{% generation %}` marks an assistant's words for training; here it changes nothing.

        Its body is a block that is called, as in transformers: what it sets is not seen outside.
        """

        tags = {"generation"}  # noqa: RUF012 (jinja2 declares it as an instance variable)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("written"), [], [], body, lineno=line)

        def written(self, caller: Any) -> Any:
            return caller()

    class PlainNamespace(Namespace):
        """A namespace without underscored names, which lead to Python's internals."""

        def __init__(*args: Any, **values: Any) -> None:
            self, *rest = args  # so that `namespace(self=...)` works, as in jinja2
            for name in (values := dict(*rest, **values)):
                refuse_underscore(name)
            Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            refuse_underscore(name)
            Namespace.__setitem__(self, name, value)

    def raise_exception(message: Any) -> None:
        raise TemplateError(str(message))

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    env.filters["tojson"] = to_json
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    env.globals["dict"] = DictCalls()
    env.globals["namespace"] = PlainNamespace
    return env


class DictCalls:
    """`dict` of templates: its calls alone, not the type."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def refuse_underscore(name: Any) -> None:
    from jinja2.exceptions import SecurityError

    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace holds no {name!r}: names may not begin with '_'")


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Hugging Face's templates expect it: jinja2's own filter escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def render(
    env: Any, template: str, chats: list[Mapping[str, Any]], needed: list[str]
) -> dict[str, Any]:
    """Return {"texts": one per chat} or {"error": why not}.

    chats: the template's variables. needed: those that it must read, for their givers expect that.
    """
    from jinja2 import TemplateError, TemplateSyntaxError, meta

    try:
        compiled = env.from_string(template)
        read = meta.find_undeclared_variables(env.parse(template)) if needed else set()
        if unread := [name for name in needed if name not in read]:
            return {"error": f"it reads no {', '.join(unread)}; leave that out"}
        texts: list[str] = []
        room = TEXT_LIMIT
        for variables in chats:
            texts.append(compiled.render(variables))
            room -= len(texts[-1])
            if room < 0:
                return {"error": f"it renders to more than {TEXT_LIMIT} characters"}
    except MemoryError:
        return {"error": f"it needs more than {MEMORY_BYTES >> 20} MiB of memory"}
    except RecursionError:
        return {"error": "it nests or recurses too deeply"}
    except TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}"}
    except TemplateError as error:
        return {"error": error.message or type(error).__name__}
    # What expressions in a template raise: 1 + "a", 1 / 0, x.y of a number, int("a"), range(10**9).
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"texts": texts}


def main() -> None:
    """Answer one request: {"template": str, "chats": [variables], "needed": [names]} on stdin, with
    JSON on stdout."""
    sys.path += sys.argv[1:]
    env = environment()
    limit_process()
    request = json.load(sys.stdin)
    json.dump(render(env, **request), sys.stdout)


if __name__ == "__main__":
    main()
