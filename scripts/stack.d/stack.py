"""A stack: one folder with Kafka, MinIO and etcd in it, and what may be done with it.

    FOLDER/stack.json   ports, names, keys: written before anything starts, kept until `purge`
    FOLDER/shoal.toml   a config for `shoal`
    FOLDER/run/         one file a process, see processes.py
    FOLDER/logs/        what each process says
    FOLDER/kafka1/ …    data and settings of each component
"""

import copy
import json
import re
import shutil
import signal
import time
from pathlib import Path

import install
import locking
import ports
import processes
import say
import services

VERSION = 1
REGION = "us-east-1"
ACCESS_KEY = "shoal"
SECRET_KEY = "shoal-stack-secret"
STOP_GRACE_S = 10.0
DATA_SPACE_MIN = 1e9


class Stack:
    def __init__(self, folder):
        self.folder = Path(folder).absolute()
        self._spec_file = self.folder / "stack.json"

    def lock(self):
        return locking.locked(self.folder / "lock", f"another run works on {self.folder}")

    def lock_existing(self):
        self.spec()  # fails, and so makes no folder, where there is none
        return self.lock()

    def spec(self):
        """What the stack consists of; fails if the folder holds none."""
        try:
            spec = json.loads(self._spec_file.read_text())
        except FileNotFoundError:
            raise say.Trouble(f"there is no stack in {self.folder}: `scripts/stack up` makes one") from None
        except ValueError as error:
            raise say.Trouble(f"{self._spec_file} is damaged ({error}): `down --purge` removes it") from None
        if spec.get("version") != VERSION:
            raise say.Trouble(f"{self._spec_file} is of another version: `down --purge` removes it")
        spec["etcds"] = ports.etcds(spec)
        spec.pop("etcd", None)
        return spec

    def services(self):
        return services.all_of(self.folder, self.spec())

    def select(self, names):
        """The services of these names; `kafka` means all brokers, `etcd` all members of etcd."""
        every = self.services()
        chosen = []
        for name in names:
            found = [s for s in every if name in (s.name, s.group)]
            if not found:
                groups = [s.group for s in every if s.group]
                known = ", ".join(dict.fromkeys([*groups, *(service.name for service in every)]))
                raise say.Trouble(f"{name} is no component of this stack; there are {known}")
            chosen += [service for service in found if service not in chosen]
        return chosen

    # ---- up and down ---------------------------------------------------------------------------

    def up(self, wanted, timeout_s):
        """Starts what does not run and waits until all of it answers.

        What this call started ends again if any of it fails: no half stack stays behind.
        """
        tools = install.ensure()
        say.require_space(self.folder, DATA_SPACE_MIN, "a stack")
        if self.folder.is_dir() and not self._spec_file.exists():
            if any(entry.name != "lock" for entry in self.folder.iterdir()):
                raise say.Trouble(f"{self.folder} is not empty and holds no stack; choose another --dir")
        with self.lock():
            self._settle(wanted)
            every = self.services()
            self._start(tools, every, timeout_s, together=True)
            (self.folder / "shoal.toml").write_text(self.config())

    def start(self, names, timeout_s):
        """Starts components. Without a time limit it does not wait for their answers either."""
        tools = install.ensure()
        with self.lock_existing():
            self._start(tools, self.select(names), timeout_s, together=False)

    def _start(self, tools, wanted, timeout_s, together):
        started = []
        try:
            resting = [service for service in wanted if not service.process.alive()]
            for service in wanted:
                service.process.signal(signal.SIGCONT)  # a paused one would never answer
            for service in resting:
                self._check_ports(service)
            for service in resting:
                # Counted first: an interruption right after its start must find it.
                started.append(service)
                service.start(tools)
            if timeout_s is None:
                return
            deadline = time.monotonic() + timeout_s
            for service in wanted:
                service.wait(deadline)
            brokers = [service for service in wanted if isinstance(service, services.Broker)]
            while together and not all(broker.sees_all() for broker in brokers):
                if time.monotonic() > deadline:
                    raise say.Trouble(f"the brokers did not find each other within {timeout_s:.0f} s")
                time.sleep(0.03)
        except BaseException:
            processes.end([service.process for service in started], 0)
            raise

    def _check_ports(self, service):
        for number in service.ports:
            if not ports.is_free(number, service.host):
                raise say.Trouble(
                    f"port {number}, which {service.name} needs, is taken by another program "
                    f"(`ss -ltnp sport = :{number}` tells by which). End that one, or choose "
                    "another port with --kafka-port, --s3-port or --etcd-port."
                )

    def down(self, purge):
        """Ends every process of the folder, also of a stack whose stack.json is lost or damaged.

        Returns the names of those that had to be killed.
        """
        if not self.folder.is_dir():
            return []
        with self.lock():
            # Data that is removed anyway needs no orderly end.
            killed = processes.end(self._processes(), 0 if purge else STOP_GRACE_S)
            if purge:
                self._purge()
        return [] if purge else killed

    def _processes(self):
        """All that were started here, whatever stack.json says of them."""
        return [processes.Process(file) for file in sorted((self.folder / "run").glob("*.json"))]

    def _purge(self):
        """Removes what a stack writes and nothing else: the folder may be one the user named."""
        for entry in self.folder.iterdir():
            ours = entry.name in ("run", "logs", "s3", "etcd") or re.fullmatch("(kafka|etcd)[1-3]", entry.name)
            if ours and entry.is_dir():
                shutil.rmtree(entry)
        for name in ("shoal.toml", "stack.json", "stack.new", "lock"):
            (self.folder / name).unlink(missing_ok=True)
        try:
            self.folder.rmdir()
        except OSError:
            pass  # something else is in it

    def _settle(self, wanted):
        """Writes stack.json: what it said before, changed by what is wanted now.

        `wanted`: brokers, etcds, hosts, kafka_port, s3_port, etcd_port, bucket, cluster_name, kafka_set;
        None where the user said nothing.
        """
        spec = self.spec() if self._spec_file.exists() else None
        for key, what in (("brokers", "broker(s)"), ("etcds", "member(s) of etcd")):
            if spec and wanted[key] not in (None, len(spec[key])):
                raise say.Trouble(
                    f"the stack in {self.folder} has {len(spec[key])} {what}, which cannot "
                    "change while it has data: use `down --purge` first, or another --dir"
                )
        rests = not any(process.alive() for process in self._processes())
        with ports.Reservations() as reservations:
            others = reservations.of_others(self.folder)
            before = spec
            spec = copy.deepcopy(spec) or _new_spec(wanted["brokers"] or 1, wanted["etcds"] or 1)
            if wanted["hosts"]:
                spec["hosts"] = {**spec.get("hosts", {}), **wanted["hosts"]}
            if before and len(spec["etcds"]) > 1 and services.host_of(before, "etcd") != services.host_of(spec, "etcd"):
                # They know each other by address, from their data.
                raise say.Trouble(
                    f"the members of etcd in {self.folder} cannot change their host while they have data: "
                    "use `down --purge` first, or another --dir"
                )
            for host in spec.get("hosts", {}).values():
                ports.require_host(host)
            _set_ports(spec, wanted, others, may_change=rests)
            for key in ("cluster_name", "kafka_set"):
                if wanted[key] is not None:
                    spec[key] = wanted[key]
            if wanted["bucket"] is not None:
                spec["s3"]["bucket"] = wanted["bucket"]
            if before is not None and not rests and _listeners(before) != _listeners(spec):
                raise say.Trouble(f"the stack in {self.folder} runs with other ports or hosts: `down` first")
            draft = self.folder / "stack.new"
            draft.write_text(json.dumps(spec, indent=2) + "\n")
            draft.rename(self._spec_file)
            reservations.reserve(self.folder, ports.all_of(spec))

    # ---- what others want to know ----------------------------------------------------------------

    def connections(self):
        """The shape that scripts, tests and `scripts/cluster` read."""
        spec = self.spec()
        s3 = spec["s3"]
        components = []
        for service in self.services():
            facts = service.process.facts() or {"pid": None}
            components.append({"name": service.name, "pid": facts["pid"], "address": service.address})
        return {
            "kafka": ",".join(f"{services.host_of(spec, 'kafka')}:{broker['port']}" for broker in spec["brokers"]),
            "s3": {
                "endpoint": f"http://{services.host_of(spec, 's3')}:{s3['port']}",
                "bucket": s3["bucket"],
                "region": REGION,
                "access_key": s3["access_key"],
                "secret_key": s3["secret_key"],
            },
            "etcd": [f"http://{services.host_of(spec, 'etcd')}:{member['port']}" for member in spec["etcds"]],
            "dir": str(self.folder),
            "config": str(self.folder / "shoal.toml"),
            "components": components,
        }

    def config(self):
        """A `shoal` config file (TOML). JSON strings and numbers are TOML too."""
        where, spec = self.connections(), self.spec()
        s3, replicas = where["s3"], len(spec["brokers"])
        sections = {
            "cluster": {"name": spec["cluster_name"]},
            "kafka": {
                "brokers": where["kafka"],
                "replication_factor": replicas,
                "min_insync_replicas": services.in_sync_min(replicas),
            },
            "objects": {
                "store": "s3",
                **{key: s3[key] for key in ("endpoint", "bucket", "region")},
                # MinIO speaks http here.
                "allow_http": True,
            },
            "meta": {"endpoints": ",".join(where["etcd"])},
        }
        sections["objects"].update(access_key=s3["access_key"], secret_key=s3["secret_key"])
        lines = [f"# Kafka, MinIO and etcd of {self.folder}"]
        for section, values in sections.items():
            lines += ["", f"[{section}]"] + [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        return "\n".join(lines) + "\n"

    def status(self):
        """One `{"name", "state", "pid", "address", "rss_bytes"}` a component.

        State: `up` (answers), `paused`, `silent` (lives, answers not), `down`.
        """
        found = []
        for service in self.services():
            facts = service.process.facts()
            if facts is None:
                state = "down"
            elif facts["paused"]:
                state = "paused"
            else:
                state = "up" if service.answers() else "silent"
            facts = facts or {"pid": None, "rss_bytes": 0}
            found.append(
                {
                    "name": service.name,
                    "state": state,
                    "pid": facts["pid"],
                    "address": service.address,
                    "rss_bytes": facts["rss_bytes"],
                }
            )
        return found


def _new_spec(brokers, etcds):
    names = ["etcd"] if etcds == 1 else [f"etcd{number}" for number in range(1, etcds + 1)]
    return {
        "version": VERSION,
        "cluster_name": "default",
        "kafka_cluster": services.kafka_id(),
        "kafka_set": {},
        "brokers": [{"id": number} for number in range(1, brokers + 1)],
        "s3": {"access_key": ACCESS_KEY, "secret_key": SECRET_KEY, "bucket": "shoal", "region": REGION},
        "etcds": [{"name": name} for name in names],
    }


def _listeners(spec):
    return [services.host_of(spec, kind) for kind in services.KINDS], ports.all_of(spec)


def _set_ports(spec, wanted, others, may_change):
    """Gives every listener its port: the one asked for, else the one it had, else a free one."""
    asked = {}
    for part, first in (("brokers", wanted["kafka_port"]), ("etcds", wanted["etcd_port"])):
        if first is not None:
            asked.update({(part, index, "port"): first + index for index in range(len(spec[part]))})
    if wanted["s3_port"] is not None:
        asked["s3", None, "port"] = wanted["s3_port"]
    if len(set(asked.values())) < len(asked):
        raise say.Trouble("two listeners cannot have the same port")

    kinds = {"brokers": "kafka", "etcds": "etcd"}
    slots = [("brokers", index, key) for index in range(len(spec["brokers"])) for key in ("port", "controller_port")]
    slots += [("s3", None, "port")]
    slots += [("etcds", index, key) for index in range(len(spec["etcds"])) for key in ("port", "peer_port")]
    fixed = set(asked.values())
    for part, index, key in slots:
        owner = spec[part] if index is None else spec[part][index]
        host = services.host_of(spec, kinds.get(part, part))
        had = owner.get(key)
        if (part, index, key) in asked:
            owner[key] = asked[part, index, key]
        elif had is None or had in fixed or (may_change and (had in others or not ports.is_free(had, host))):
            (owner[key],) = ports.free(1, others | fixed, host)
        fixed.add(owner[key])
