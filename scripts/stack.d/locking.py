"""Locks between processes. The kernel frees them when the holder dies, however it dies."""

import contextlib
import fcntl
import os

import say


@contextlib.contextmanager
def locked(path, waiting_for=None):
    """Holds `path` exclusively; yields its descriptor. `waiting_for` is said once if another has it.

    A child that is given the descriptor (`pass_fds`) keeps the lock until it ends too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting_for and not told:
                say.note(f"waiting: {waiting_for}")
                told = True
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Who held it may have removed the file (down --purge): then this is a lock on nothing.
        try:
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                break
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
        os.close(descriptor)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
