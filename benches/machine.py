"""Where and on what a benchmark ran."""

import datetime
import os
import pathlib
import platform
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def describe():
    processor = "unknown processor"
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.split(":", 1)[1].strip()
            break
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {processor}, {memory_gib:.0f} GiB, {platform.system()} {platform.release()}"


def commit():
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip() or "unknown"


def note(options, report, command):
    """Appends a run's figures to the file of results, if there is to be one."""
    if options.results == "-":
        return
    said = " ".join([command, *sys.argv[1:]])
    context = f"{describe()}; `{said}`"
    if options.note:
        context += f"\n\n{options.note}"
    heading = f"{datetime.date.today()}, commit {commit()}"
    report.append_to(pathlib.Path(options.results), heading, context)
