"""How many threads are worth having: the processors that this process may use."""

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from lmcast.plugins.annotations import Threads
from lmcast.plugins.arguments import checked

CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable() -> int:
    """Return the processors of this process: its affinity, and what a container's quota allows."""
    if hasattr(os, "sched_getaffinity"):
        bound = len(os.sched_getaffinity(0))
    else:  # macOS
        bound = os.cpu_count() or 1
    return min(bound, *quotas(CGROUPS, MEMBERSHIP), bound)


def quotas(mounted: Path, membership: Path) -> Iterator[int]:
    """Yield the processors that each control group of this process may use, rounded up.

    mounted: where control groups of version 1 (a folder per controller) or 2 are. membership: lines
    of number:controllers:path, no controllers in version 2. What cannot be read limits nothing.
    """
    for line in filter(None, read(membership).split("\n")):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mounted / controllers if controllers else mounted
        # A container may see its own group as the root, or the path that the host sees.
        for group in (path, *map(str, PurePosixPath(path).parents)):
            folder = root / group.lstrip("/")
            if controllers:
                quota, period = (
                    read(folder / "cpu.cfs_quota_us"),
                    read(folder / "cpu.cfs_period_us"),
                )
            else:
                quota, _, period = read(folder / "cpu.max").partition(" ")
            if quota.isdecimal() and period.isdecimal() and int(period):  # 'max' and -1: no limit
                yield max(1, -(-int(quota) // int(period)))


def read(path: Path) -> str:
    """Return the text of a small file of the kernel; nothing where it cannot be read.

    Names in it may be of any bytes, and end no line but by a newline.
    """
    try:
        return os.fsdecode(path.read_bytes()).strip()
    except OSError:
        return ""


@checked
def limited(
    threads: Threads | None,
    warn: Callable[[str], object] = warnings.warn,
    most: int | None = None,
) -> int | None:
    """Return how many threads to run in; None: as many as the runtime takes by itself.

    threads: as asked for. Above the processors of this process threads only wait for each other: 48
    on 2 processors took 12 times the processor time of 2. The runtime counts all processors of the
    machine, so where there are fewer it is told.

    Raises ArgumentError for what is no integer from 1.
    """
    most = usable() if most is None else most
    if threads is None:
        return most if most < (os.cpu_count() or 1) else None
    if threads > most:
        warn(f"threads is {threads}; this process may use {most}, so it runs in {most}")
    return min(threads, most)
