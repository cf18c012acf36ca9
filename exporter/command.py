"""The `lmcast` command: interrupted at any moment, it says so in one line or ends without a word.

Nothing is imported before signals are handled but what handles them.
"""

import sys

# What `signal` wraps in enums, the import of which takes as long as all the rest up to here.
_signal = sys.modules["_signal"]
if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # not where it is ignored
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # ends at once: nothing is to be put in order


def main() -> None:
    """Run the command line, as cli.main does."""
    import os
    import signal

    from lmcast.exporter.interrupts import INTERRUPTED, interrupt, leave

    ends = signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    try:
        if ends:
            signal.signal(signal.SIGINT, interrupt)
        from lmcast.exporter.cli import main as run

        run()
    except KeyboardInterrupt:
        leave()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            os._exit(INTERRUPTED)  # it has been said
        raise
    finally:
        if ends:  # all is done and said: what Python runs down now is not worth a traceback
            signal.signal(signal.SIGINT, signal.SIG_DFL)
