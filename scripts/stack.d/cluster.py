"""A cluster: one folder with a stack, `shoal node` and `shoal scheduler` processes in it.

    FOLDER/cluster.json   how many nodes, their ports, shards and replicas: kept until `purge`
    FOLDER/shoal.toml     the config of every node; addresses and data folders are flags
    FOLDER/stack/         Kafka, MinIO and etcd, unless another stack is used
    FOLDER/nodes/1/ …     data folder of each node
    FOLDER/schedulers/1/  where each scheduler says its address
    FOLDER/run/, logs/    as a stack's
"""

import json
import os
import shutil
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import locking
import ports
import processes
import say
import wire
from stack import Stack

VERSION = 1
STOP_GRACE_S = 20.0
SHARDS_A_NODE = 4
SCHEDULERS = 2
REPOSITORY = Path(__file__).resolve().parent.parent.parent


def program():
    """The `shoal` to run."""
    named = os.environ.get("SHOAL_BIN")
    path = Path(named) if named else REPOSITORY / "dist" / "shoal"
    if not path.is_file():
        raise say.Trouble(f"{path} is missing: `make build` makes it, or SHOAL_BIN names another")
    return path.absolute()


class Member:
    """One process of the cluster: of `role`, with the listeners `listeners`."""

    role = ""
    listeners = ()

    def __init__(self, folder, spec):
        self.number = spec["number"]
        self.name = f"{self.role}{self.number}"
        self.spec = spec
        self.data = folder / f"{self.role}s" / str(self.number)
        self.log = folder / "logs" / f"{self.name}.log"
        self.process = processes.Process(folder / "run" / f"{self.name}.json")
        self._config = folder / "shoal.toml"

    def addresses(self):
        """What the running process says; {} if there is none."""
        if not self.process.alive():
            return {}
        try:
            return json.loads((self.data / "addresses.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}

    def start(self):
        if self.process.alive():
            self.process.signal(signal.SIGCONT)
            return
        self.data.mkdir(parents=True, exist_ok=True)
        # A file of a killed process would send us to its ports.
        (self.data / "addresses.json").unlink(missing_ok=True)
        argv = [str(program()), self.role, "--config", str(self._config), "--data-dir", str(self.data)]
        for listener in self.listeners:
            port = self.spec["ports"].get(listener, 0)
            if port and not ports.is_free(port):
                port = 0
            argv += [f"--{listener}-addr", f"{wire.HOST}:{port}"]
        self.process.start(argv, None, self.data, self.log)

    def answers(self):
        http = self.addresses().get("http")
        if not http:
            return False
        try:
            call(http, "/health/ready")
            return True
        except (OSError, say.Trouble):
            return False

    def wait(self, deadline):
        while not self.answers():
            if not self.process.alive():
                raise say.Trouble(f"{self.name} ended while it was starting. {self._last_words()}")
            if time.monotonic() > deadline:
                raise say.Trouble(f"{self.name} does not answer in time. {self._last_words()}")
            time.sleep(0.03)

    def _last_words(self):
        lines = self.log.read_text(errors="replace").strip().splitlines()[-12:]
        return f"The end of {self.log}:\n" + "\n".join("  " + line for line in lines)


class Node(Member):
    """One `shoal node`."""

    role = "node"
    listeners = ("http", "postgres", "grpc")

    @property
    def id(self):
        try:
            return (self.data / "node.id").read_text().strip()
        except FileNotFoundError:
            return ""


class Scheduler(Member):
    """One `shoal scheduler`."""

    role = "scheduler"
    listeners = ("scheduler",)

    @property
    def id(self):
        return self.addresses().get("scheduler", "")


def call(http, path, body=None, timeout_s=90, method=None):
    """One request of an HTTP interface; the parsed answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{http}{path}", data=data, method=method)
    if data is not None:
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        raise say.Trouble(f"{path}: {error.code} {error.read().decode(errors='replace').strip()}") from None
    try:
        return json.loads(text)
    except ValueError:
        return text.decode()


class Cluster:
    def __init__(self, folder):
        self.folder = Path(folder).absolute()
        self._spec_file = self.folder / "cluster.json"

    def _lock(self):
        return locking.locked(self.folder / "lock", f"another run works on {self.folder}")

    def spec(self):
        try:
            spec = json.loads(self._spec_file.read_text())
        except FileNotFoundError:
            raise say.Trouble(f"there is no cluster in {self.folder}: `scripts/cluster up` makes one") from None
        except ValueError as error:
            raise say.Trouble(f"{self._spec_file} is damaged ({error}): `down --purge` removes it") from None
        if spec.get("version") != VERSION:
            raise say.Trouble(f"{self._spec_file} is of another version: `down --purge` removes it")
        return spec

    def _write(self, spec):
        draft = self.folder / "cluster.new"
        draft.write_text(json.dumps(spec, indent=2) + "\n")
        draft.rename(self._spec_file)

    def _stack(self, spec):
        return Stack(spec["stack"] or self.folder / "stack")

    def nodes(self, spec=None):
        spec = spec or self.spec()
        return [Node(self.folder, node) for node in spec["nodes"]]

    def schedulers(self, spec=None):
        spec = spec or self.spec()
        return [Scheduler(self.folder, one) for one in spec.get("schedulers", [])]

    def members(self, spec=None):
        return self.nodes(spec) + self.schedulers(spec)

    def select(self, name):
        every = self.nodes()
        for scheduler in self.schedulers():
            if name in (scheduler.name, scheduler.id):
                return scheduler
        found = [node for node in every if name in (str(node.number), node.name, node.id)]
        found = found or [node for node in every if node.id.upper().startswith(name.upper())]
        if len(found) != 1:
            known = ", ".join(f"{node.number} ({node.id})" for node in every)
            raise say.Trouble(f"{name} names {len(found)} nodes of this cluster; there are {known}")
        return found[0]

    # ---- up and down ---------------------------------------------------------------------------

    def up(self, options):
        program()
        if self.folder.is_dir() and not self._spec_file.exists():
            if any(entry.name != "lock" for entry in self.folder.iterdir()):
                raise say.Trouble(f"{self.folder} is not empty and holds no cluster; choose another --dir")
        with self._lock():
            spec = self._settle(options)
            stack = self._stack(spec)
            if spec["stack"] is None:
                keys = ("etcds", "hosts", "kafka_port", "s3_port", "etcd_port", "bucket", "kafka_set")
                wanted = dict.fromkeys(keys)
                stack.up({**wanted, "brokers": spec["brokers"], "cluster_name": spec["name"]}, options.timeout)
            (self.folder / "shoal.toml").write_text(_config(stack, spec))
            started = []
            try:
                deadline = time.monotonic() + options.timeout
                nodes, schedulers = self.nodes(spec), self.schedulers(spec)
                for index, member in enumerate(nodes + schedulers):
                    if not member.process.alive():
                        started.append(member)
                    member.start()
                    # The first node makes the shards; the others find them.
                    if index == 0:
                        member.wait(deadline)
                for member in nodes + schedulers:
                    member.wait(deadline)
                self._note_ports(spec)
                if not spec["placed"]:
                    if schedulers:
                        self._have_placed(spec, nodes, schedulers)
                    else:
                        self._place(spec, nodes)
                    spec["placed"] = True
                    self._write(spec)
            except BaseException:
                processes.end([node.process for node in started], 0)
                raise

    def _settle(self, options):
        new = not self._spec_file.exists()
        spec = None if new else self.spec()
        if spec is None:
            count = options.nodes or 3
            spec = {
                "version": VERSION,
                "name": options.cluster_name or "default",
                "brokers": options.brokers or 1,
                "stack": str(Path(options.stack).absolute()) if options.stack else None,
                "shards": options.shards or SHARDS_A_NODE * count,
                "replicas": min(options.replicas or 2, count),
                "set": dict(pair.split("=", 1) for pair in options.set if "=" in pair),
                "placed": False,
                "nodes": [],
                "schedulers": [],
            }
        for pair in options.set:
            if "=" not in pair or "." not in pair.split("=", 1)[0]:
                raise say.Trouble(f"--set {pair}: write section.key=value")
            key, value = pair.split("=", 1)
            spec["set"][key] = value
        wanted = options.nodes or len(spec["nodes"]) or 3
        for number in range(len(spec["nodes"]) + 1, wanted + 1):
            spec["nodes"].append({"number": number, "ports": {}})
        schedulers = spec.setdefault("schedulers", [])
        wanted = options.schedulers if options.schedulers is not None else SCHEDULERS if new else 0
        for number in range(len(schedulers) + 1, wanted + 1):
            schedulers.append({"number": number, "ports": {}})
        self._write(spec)
        return spec

    def _note_ports(self, spec):
        for member in self.members(spec):
            known = member.addresses()
            for listener in member.listeners:
                # A scheduler's only listener is HTTP.
                address = known.get("http" if listener == "scheduler" else listener)
                if address:
                    member.spec["ports"][listener] = int(address.rsplit(":", 1)[1])
        self._write(spec)

    def _have_placed(self, spec, nodes, schedulers):
        """Says how many replicas there are to be, and waits until the schedulers have seen to it."""
        http = schedulers[0].addresses()["http"]
        deadline = time.monotonic() + 60
        while True:
            try:
                settings = call(http, "/v1/admin/settings")
                group = settings["groups"].setdefault("default", {})
                group["replication"] = spec["replicas"]
                call(http, "/v1/admin/settings", settings, method="PUT")
                break
            except say.Trouble:  # none leads yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        quiet = 0
        while quiet < 8:
            shards = call(http, "/v1/admin/shards")
            placed = all(shard["leader"] and len(shard["followers"]) + 1 >= spec["replicas"] for shard in shards)
            busy = any(one["state"] == "running" for one in call(http, "/v1/admin/procedures"))
            quiet = quiet + 1 if placed and not busy else 0
            if time.monotonic() > deadline:
                raise say.Trouble("the shards did not get their replicas within 60 s: `shoal admin procedures` says why")
            time.sleep(0.1)

    def _place(self, spec, nodes):
        """Gives each shard its leader and followers, round robin."""
        http = nodes[0].addresses()["http"]
        ids = [node.id for node in nodes]
        deadline = time.monotonic() + 30
        while {node["id"] for node in call(http, "/v1/admin/nodes") if node["state"] == "up"} < set(ids):
            if time.monotonic() > deadline:
                raise say.Trouble("the nodes did not find each other within 30 s")
            time.sleep(0.05)
        for index, shard in enumerate(sorted(shard["id"] for shard in call(http, "/v1/admin/shards"))):
            wanted = [ids[(index + step) % len(ids)] for step in range(spec["replicas"])]
            call(http, f"/v1/admin/shards/{shard}/move", {"to": wanted[0]})
            for follower in wanted[1:]:
                call(http, f"/v1/admin/shards/{shard}/add-follower", {"to": follower})

    def start_node(self, name, timeout_s):
        with self._lock():
            node = self.select(name)
            node.start()
            node.wait(time.monotonic() + timeout_s)

    def stop_node(self, name, kill):
        with self._lock():
            processes.end([self.select(name).process], 0 if kill else STOP_GRACE_S)

    def rolling_restart(self, timeout_s):
        """Restarts every process, one after another; a node gives its leads away first."""
        with self._lock():
            spec = self.spec()
            nodes, schedulers = self.nodes(spec), self.schedulers(spec)
            for scheduler in schedulers:
                self._restart(scheduler, timeout_s)
            for node in nodes:
                other = next(other for other in schedulers + nodes if other.name != node.name)
                http = other.addresses()["http"]
                if schedulers:
                    self._retried(lambda: call(http, f"/v1/admin/nodes/{node.id}/drain", {"leads_only": True}), timeout_s)
                self._restart(node, timeout_s)
                if schedulers:
                    self._retried(lambda: call(http, f"/v1/admin/nodes/{node.id}/undrain", {}), timeout_s)
                    self._follows(http, timeout_s)
                say.note(f"{node.name} was restarted")
            self._note_ports(spec)

    def _restart(self, member, timeout_s):
        processes.end([member.process], STOP_GRACE_S)
        member.start()
        member.wait(time.monotonic() + timeout_s)

    @staticmethod
    def _retried(act, timeout_s):
        """Again while no scheduler leads."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return act()
            except (OSError, say.Trouble):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _follows(self, http, timeout_s):
        """Waits until every replica serves."""
        deadline = time.monotonic() + timeout_s
        while True:
            replicas = [replica for shard in call(http, "/v1/admin/shards") for replica in shard["replicas"]]
            if all(replica["state"] == "serving" for replica in replicas):
                return
            if time.monotonic() > deadline:
                raise say.Trouble("not every replica serves again: `shoal admin shards` says why")
            time.sleep(0.1)

    def signal_node(self, name, number):
        node = self.select(name)
        if not node.process.signal(number):
            raise say.Trouble(f"{node.name} does not run")

    def down(self, purge):
        """Ends the nodes, then the stack if it is the cluster's own. Returns the names killed."""
        if not self.folder.is_dir():
            return []
        with self._lock():
            running = [processes.Process(file) for file in sorted((self.folder / "run").glob("*.json"))]
            killed = processes.end(running, 0 if purge else STOP_GRACE_S)
            own = self.folder / "stack"
            if own.is_dir():
                killed += Stack(own).down(purge)
            if purge:
                for name in ("run", "logs", "nodes", "schedulers", "stack"):
                    shutil.rmtree(self.folder / name, ignore_errors=True)
                for name in ("shoal.toml", "cluster.json", "cluster.new", "lock"):
                    (self.folder / name).unlink(missing_ok=True)
                try:
                    self.folder.rmdir()
                except OSError:
                    pass  # something else is in it
        return [] if purge else killed

    # ---- what others want to know ----------------------------------------------------------------

    def connections(self):
        """The shape of DESIGN §7."""
        spec = self.spec()
        where = self._stack(spec).connections()
        nodes = []
        for node in self.nodes(spec):
            known = node.addresses()
            nodes.append(
                {
                    "id": node.id,
                    "number": node.number,
                    "pid": known.get("pid"),
                    "http": known.get("http"),
                    "pg": known.get("postgres"),
                    "grpc": known.get("grpc"),
                    "data_dir": str(node.data),
                    "log": str(node.log),
                }
            )
        return {
            "nodes": nodes,
            "schedulers": [
                {
                    "id": scheduler.id,
                    "number": scheduler.number,
                    "pid": scheduler.addresses().get("pid"),
                    "http": scheduler.addresses().get("http"),
                    "log": str(scheduler.log),
                }
                for scheduler in self.schedulers(spec)
            ],
            "kafka": where["kafka"],
            "s3": {key: where["s3"][key] for key in ("endpoint", "bucket", "access_key", "secret_key")},
            "etcd": where["etcd"],
            "dir": str(self.folder),
            "stack": where["dir"],
            "config": str(self.folder / "shoal.toml"),
        }

    def status(self):
        spec = self.spec()
        found = self._stack(spec).status()
        for node in self.members(spec):
            facts = node.process.facts()
            if facts is None:
                state = "down"
            elif facts["paused"]:
                state = "paused"
            else:
                state = "up" if node.answers() else "silent"
            found.append(
                {
                    "name": node.name,
                    "state": state,
                    "pid": facts["pid"] if facts else None,
                    "address": node.addresses().get("http") or "-",
                }
            )
        return found


def _config(stack, spec):
    """The stack's config with this cluster's name, shard count and settings."""
    sections = {"cluster": {"name": spec["name"]}, "engine": {"shards": spec["shards"]}}
    for key, value in spec["set"].items():
        section, name = key.split(".", 1)
        sections.setdefault(section, {})[name] = value
    lines, section = [], ""
    written = set()

    def rest(section):
        # What the stack's config does not say of a section.
        for name, value in sections.get(section, {}).items():
            if (section, name) not in written:
                written.add((section, name))
                lines.append(f"{name} = {json.dumps(value)}")

    for line in stack.config().splitlines():
        if line.startswith("["):
            rest(section)
            section = line.strip("[]")
        elif "=" in line and not line.startswith("#"):
            name = line.split("=", 1)[0].strip()
            if name in sections.get(section, {}):
                written.add((section, name))
                line = f"{name} = {json.dumps(sections[section][name])}"
        lines.append(line)
    rest(section)
    for section in sections:
        if f"[{section}]" not in lines:
            lines += ["", f"[{section}]"]
            rest(section)
    return "\n".join(lines) + "\n"
