"""From a checkpoint to a verified engine: `export`, `load`, `Engine`, `Session`, `Chat`."""

TYPE_CHECKING = False  # importing typing takes the command longer than handling signals may wait
if TYPE_CHECKING:
    from lmcast.exporter.pipeline import export
    from lmcast.exporter.runtime.chat import Chat
    from lmcast.exporter.runtime.engine import Engine, load
    from lmcast.exporter.runtime.session import Session

__all__ = ["Chat", "Engine", "Session", "export", "load"]

_HOMES = {
    "Chat": "runtime.chat",
    "Engine": "runtime.engine",
    "load": "runtime.engine",
    "export": "pipeline",
    "Session": "runtime.session",
}


def __getattr__(name: str) -> object:
    # Imported on first use: torch alone takes over a second, and `lmcast --help` must not wait.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from lmcast.exporter.extras import remedy

    try:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        advice = remedy(error)
        if advice is None:
            raise
        raise ModuleNotFoundError(advice, name=error.name) from None
