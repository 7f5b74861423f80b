"""Ports that stay with a stack: kept apart from each other's, also while a stack is down.

They are taken outside the range from which the kernel gives ports to outgoing connections; a
port from within could be gone between the choice and the start of a service, or after its stop.
"""

import json
import random
import socket
from pathlib import Path

import install
import locking
import say
import wire

FIRST, LAST = 20000, 65535


def is_free(port, host=wire.HOST):
    with socket.socket() as probe:
        # As the services do: a port whose connections are only fading away counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def require_host(host):
    """Fails unless services can listen on this address."""
    with socket.socket() as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise say.Trouble(f"{host} is no address of this machine to listen on ({error})") from error


def free(count, avoid=frozenset(), host=wire.HOST):
    """`count` ports of `host` on which nothing listens, none of them in `avoid`."""
    low, high = 32768, 60999
    try:
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except (OSError, ValueError):
        pass
    candidates = [port for port in range(FIRST, LAST + 1) if not low <= port <= high and port not in avoid]
    random.shuffle(candidates)
    found = []
    for port in candidates:
        if len(found) == count:
            break
        if is_free(port, host):
            found.append(port)
    if len(found) < count:
        raise say.Trouble(f"no {count} free ports between {FIRST} and {LAST} outside {low}–{high}")
    return found


class Reservations:
    """Which stack has which port: one small file a port in the cache, naming the stack's folder.

    Good as long as that folder's stack.json names the port. Use inside `with`: it holds the lock.
    """

    def __enter__(self):
        self._folder = install.cache() / "ports"
        self._lock = locking.locked(install.cache() / "ports.lock")
        self._lock.__enter__()
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error):
        return self._lock.__exit__(*error)

    def of_others(self, folder):
        taken = set()
        for entry in self._folder.iterdir():
            port, owner = int(entry.name), Path(entry.read_text())
            if not _names(owner, port):
                entry.unlink()
            elif owner != folder:
                taken.add(port)
        return taken

    def reserve(self, folder, numbers):
        for port in numbers:
            (self._folder / str(port)).write_text(str(folder))


def _names(folder, port):
    try:
        return port in all_of(json.loads((folder / "stack.json").read_text()))
    except (OSError, ValueError, KeyError):
        return False


def all_of(spec):
    """Every port of a stack (the content of its stack.json)."""
    brokers = [broker[key] for broker in spec["brokers"] for key in ("port", "controller_port")]
    members = [member[key] for member in etcds(spec) for key in ("port", "peer_port")]
    return [*brokers, spec["s3"]["port"], *members]


def etcds(spec):
    """The members of etcd; a stack made by an older release has one and says so without a list."""
    return spec["etcds"] if "etcds" in spec else [{"name": "etcd", **spec["etcd"]}]
