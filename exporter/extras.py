"""The extra of lmcast that installs a missing module."""

EXTRAS = {
    "torch": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "PIL": "vision",
}  # module -> extra


def remedy(error: ModuleNotFoundError) -> str | None:
    """Return what to do about a failed import in one line, None where no extra installs it."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS:
        return None
    return (
        f"{module} is not installed, which running engines does without and this needs:"
        f" pip install 'lmcast[{EXTRAS[module]}]'"
    )
