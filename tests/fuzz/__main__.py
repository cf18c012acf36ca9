"""Spoiled input of every kind that lmcast opens, as long as one likes:

    python tests/fuzz                                  # a minute of every part
    python tests/fuzz --seconds 600 --seed 1 weights   # ten minutes of one
    python tests/fuzz --seed 1 --trial 37 weights      # one trial again

What is neither refused in one line nor accepted and right is made smaller and printed, and the exit
status is then 1. test_fuzz.py takes a sample.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", ORT_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.campaign import Report, campaign, one
from fuzz.parts import PARTS


def main() -> int:
    options = argparse.ArgumentParser(
        prog="python tests/fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("parts", nargs="*", metavar="PART", help=_listed())
    options.add_argument("--seconds", type=float, default=60, help="for each part (default: 60)")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--trial", type=int, help="only the trial of this number, printed in full")
    options.add_argument("--json", action="store_true", help="a line of JSON for each part")
    chosen = options.parse_args()
    if unknown := [name for name in chosen.parts if name not in PARTS]:
        options.error(f"{unknown[0]!r} is no part; accepted: {', '.join(PARTS)}")
    faults = 0
    for name in chosen.parts or PARTS:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            if chosen.trial is not None:
                report = one(PARTS[name], Path(folder), chosen.seed, chosen.trial)
            else:
                until = time.monotonic() + chosen.seconds
                report = campaign(PARTS[name], Path(folder), chosen.seed, until=until)
        faults += len(report.faults)
        print(_json(report) if chosen.json else report.text(), flush=True)
    return 1 if faults else 0


def _listed() -> str:
    return "\n".join(f"{name:10} {part.about}" for name, part in PARTS.items())


def _json(report: Report) -> str:
    return json.dumps(report.fields())


if __name__ == "__main__":
    sys.exit(main())
