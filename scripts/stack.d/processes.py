"""Background processes that outlive the program, and are recognised again later.

A process is known by its number, the tick of its start, the boot it was started in and its command
line. A number alone may belong to somebody else's process by now; that one is never signalled.
"""

import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path

BOOT = Path("/proc/sys/kernel/random/boot_id")


class Process:
    """One background process, written down in `run_file` for as long as it may live."""

    def __init__(self, run_file):
        self.run_file = run_file

    @property
    def name(self):
        return self.run_file.stem

    def start(self, argv, environment, folder, log):
        """Starts it with standard output and error appended to `log`."""
        self.run_file.parent.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)

        # An interruption between fork and the child's note would leave it unknown: wait with it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})

        def write_down():
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            # In the child and before exec: were the parent to write it, a kill of the parent in
            # between would leave a process that nobody knows of.
            identity = {
                "pid": os.getpid(),
                "start_ticks": _stat(os.getpid())["start_ticks"],
                "boot": BOOT.read_text().strip(),
                "argv": argv,
            }
            draft = self.run_file.with_suffix(".new")
            draft.write_text(json.dumps(identity))
            draft.rename(self.run_file)

        try:
            with open(log, "ab") as output:
                subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                    env=environment,
                    start_new_session=True,  # Ctrl-C of a terminal is not for it
                    preexec_fn=write_down,
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def handle(self):
        """A pidfd of the process if it lives and is ours, else None. The caller closes it."""
        try:
            identity = json.loads(self.run_file.read_text())
            descriptor = os.pidfd_open(identity["pid"])
        except (FileNotFoundError, ProcessLookupError, ValueError, KeyError):
            return None
        # Looked at after the pidfd was opened: from here on the number cannot change its meaning.
        if not _is(identity) or _ended(descriptor, 0):
            os.close(descriptor)
            return None
        return descriptor

    def alive(self):
        descriptor = self.handle()
        if descriptor is None:
            return False
        os.close(descriptor)
        return True

    def facts(self):
        """`{"pid", "paused", "rss_bytes"}` of the living process, else None."""
        if not self.alive():
            return None
        pid = json.loads(self.run_file.read_text())["pid"]
        stat = _stat(pid)
        if stat is None:
            return None
        rss_bytes = stat["rss_pages"] * os.sysconf("SC_PAGE_SIZE")
        return {"pid": pid, "paused": stat["state"] in "tT", "rss_bytes": rss_bytes}

    def signal(self, number):
        """False if there is no such process any more."""
        descriptor = self.handle()
        if descriptor is None:
            return False
        try:
            signal.pidfd_send_signal(descriptor, number)
            if number == signal.SIGSTOP:
                # Threads go on until each has taken note of it.
                while not (_ended(descriptor, 0) or self._stands_still()):
                    time.sleep(0.001)
            return True
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)

    def _stands_still(self):
        """Whether all threads of the process are stopped."""
        pid = json.loads(self.run_file.read_text())["pid"]
        try:
            threads = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        except (FileNotFoundError, ProcessLookupError):
            return False  # One has ended meanwhile.
        # The state follows the name, which may hold parentheses itself.
        return all(thread.rpartition(")")[2].split()[0] in "tT" for thread in threads)


def end(processes, grace_s):
    """Ends all of them: asks, waits up to `grace_s` in all, kills. Returns the names killed.

    `grace_s` 0 kills at once. Only returns when all are gone.
    """
    handles = [(process, process.handle()) for process in processes]
    killed = []
    try:
        living = [(process, descriptor) for process, descriptor in handles if descriptor is not None]
        if grace_s > 0:
            for _, descriptor in living:
                _send(descriptor, signal.SIGTERM)
                _send(descriptor, signal.SIGCONT)  # a paused one would not hear the first
        deadline = time.monotonic() + grace_s
        for process, descriptor in living:
            if not _ended(descriptor, max(deadline - time.monotonic(), 0)):
                killed.append(process.name)
                _send(descriptor, signal.SIGKILL)
        for process, descriptor in living:
            _ended(descriptor, None)
    finally:
        for process, descriptor in handles:
            if descriptor is not None:
                os.close(descriptor)
    for process in processes:
        process.run_file.unlink(missing_ok=True)
    return killed


def _send(descriptor, number):
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        pass  # it went by itself


def _ended(descriptor, wait_s):
    """Whether the process has ended, waiting up to `wait_s` (None: for ever)."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if wait_s is None else wait_s * 1000))


def _is(identity):
    pid = identity["pid"]
    stat = _stat(pid)
    if stat is None or stat["start_ticks"] != identity["start_ticks"]:
        return False
    if BOOT.read_text().strip() != identity["boot"]:
        return False
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return command.split(b"\0")[:-1] == [os.fsencode(word) for word in identity["argv"]]


def _stat(pid):
    """Fields of /proc/PID/stat; None if there is no such process. See proc(5)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold spaces and parentheses itself.
    fields = text[text.rindex(")") + 2 :].split()
    return {"state": fields[0], "start_ticks": int(fields[19]), "rss_pages": int(fields[21])}
