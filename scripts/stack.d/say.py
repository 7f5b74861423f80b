"""What the stack says to people, and the one error that ends it with a message."""

import os
import sys


class Trouble(Exception):
    """Ends the program with exit code 1. The text says what is wrong and what to do about it."""


def note(text):
    """Progress; on standard error, so that standard output stays a config or JSON."""
    print(text, file=sys.stderr, flush=True)


def megabytes(count):
    return f"{count / 1e6:.0f} MB"


def require_space(folder, bytes_min, purpose):
    """A full disk shows itself in odd ways later; say it before anything is begun."""
    probe = folder
    while not probe.exists():
        probe = probe.parent
    status = os.statvfs(probe)
    free = status.f_bavail * status.f_frsize
    if free < bytes_min:
        raise Trouble(
            f"{purpose} needs {megabytes(bytes_min)} below {folder}, {megabytes(free)} are free. "
            "Make room, or choose another place (--dir for data, SHOAL_CACHE for programs)."
        )
