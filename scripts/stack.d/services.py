"""How each service is configured, started and asked whether it is there."""

import base64
import os
import platform
import secrets
import shutil
import time

import processes
import say
import wire

KINDS = ("kafka", "s3", "etcd")
HEAP_MB_ALONE = 512
HEAP_MB_OF_THREE = 384


def host_of(spec, kind):
    """Where `kafka`, `s3` or `etcd` of this stack.json listens."""
    return spec.get("hosts", {}).get(kind, wire.HOST)


class Service:
    """A component of a stack: a process, its data below `folder`, and a question it must answer."""

    # The name that means all members of it.
    group = None

    def __init__(self, folder, name, host, ports):
        """`ports`: all that it listens on, first the one that clients use."""
        self.name = name
        self.host = host
        self.ports = ports
        self.address = f"{host}:{ports[0]}"
        self.endpoint = (host, ports[0])
        self.data = folder / name
        self.log = folder / "logs" / f"{name}.log"
        self.process = processes.Process(folder / "run" / f"{name}.json")
        self._log_from = 0

    def start(self, tools):
        """Leaves a running process alone. Returns whether one was started; see `wait`."""
        if self.process.alive():
            return False
        self.data.mkdir(parents=True, exist_ok=True)
        self._log_from = self.log.stat().st_size if self.log.exists() else 0
        argv, environment = self._command(tools)
        try:
            self.process.start([str(word) for word in argv], environment, self.data, self.log)
        except OSError as error:
            raise say.Trouble(f"{self.name} could not be started: {error}") from error
        return True

    def wait(self, deadline):
        """Returns once it is of use; fails with the end of its log if it ends or is too slow."""
        while not self._ready():
            if not self.process.alive():
                raise say.Trouble(f"{self.name} ended while it was starting. {self._last_words()}")
            if time.monotonic() > deadline:
                raise say.Trouble(f"{self.name} does not answer in time. {self._last_words()}")
            time.sleep(0.03)

    def _ready(self):
        return self.answers()

    def _last_words(self):
        with open(self.log, "rb") as log:
            log.seek(self._log_from)
            text = log.read().decode(errors="replace")
        hint = ""
        if "address already in use" in text.lower():
            hint = f"Its port ({self.address}) was taken by another program meanwhile; try again. "
        if "no space left" in text.lower():
            hint = "The disk is full. "
        tail = "\n".join("  " + line for line in text.strip().splitlines()[-12:])
        return f"{hint}The end of {self.log}:\n{tail}"


# ---- Kafka -----------------------------------------------------------------------------------


class Broker(Service):
    group = "kafka"

    def __init__(self, folder, spec, broker):
        super().__init__(folder, f"kafka{broker['id']}", host_of(spec, "kafka"), [broker["port"], broker["controller_port"]])
        self._spec = spec
        self._broker = broker

    def _command(self, tools):
        brokers = self._spec["brokers"]
        cluster, extra = self._spec["kafka_cluster"], self._spec["kafka_set"]
        properties = prepare_broker(self.data, tools.kafka, cluster, self.host, self._broker, brokers, extra)
        return broker_command(tools.java, tools.kafka, tools.kafka_cds, len(brokers), properties), None

    def answers(self):
        return self._broker["id"] in wire.kafka_brokers(self.endpoint)

    def _ready(self):
        return self.answers() and wire.kafka_takes_producers(self.endpoint)

    def sees_all(self):
        """Whether all brokers are members of the cluster, not only alive."""
        return len(wire.kafka_brokers(self.endpoint)) == len(self._spec["brokers"])


def prepare_broker(place, kafka, cluster, host, broker, brokers, extra):
    """Writes server.properties, and formats the data folder unless it is. Returns the properties.

    `extra` overrides what is chosen here.
    """
    data = place / "data"
    settings = _broker_settings(data, host, broker, brokers)
    settings.update(extra)
    properties = place / "server.properties"
    properties.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    if not (data / "meta.properties").exists():
        data.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kafka / "bootstrap.checkpoint", data / "bootstrap.checkpoint")
        lines = f"version=1\nnode.id={broker['id']}\ncluster.id={cluster}\ndirectory.id={kafka_id()}\n"
        draft = data / "meta.properties.new"
        draft.write_text(lines)
        draft.rename(data / "meta.properties")
    return properties


def _broker_settings(data, host, broker, brokers):
    replicas = len(brokers)
    listener = f"{host}:{broker['port']}"
    return {
        "process.roles": "broker,controller",
        "node.id": broker["id"],
        "controller.quorum.voters": ",".join(f"{b['id']}@{host}:{b['controller_port']}" for b in brokers),
        "listeners": f"PLAINTEXT://{listener},CONTROLLER://{host}:{broker['controller_port']}",
        "advertised.listeners": f"PLAINTEXT://{listener}",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": data,
        # What an acknowledged record rests on.
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync_min(replicas),
        "unclean.leader.election.enable": "false",
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync_min(replicas),
        # A dead broker is noticed in 4 s rather than 9, and a new one is admitted at its next
        # heartbeat: tests of broker loss and every start wait for these.
        "broker.session.timeout.ms": 4000,
        "broker.heartbeat.interval.ms": 500,
        # Small: a few shards, one machine.
        "offsets.topic.num.partitions": 1,
        "transaction.state.log.num.partitions": 1,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "background.threads": 2,
        "log.cleaner.dedupe.buffer.size": 8 * 1024 * 1024,
        "remote.log.manager.thread.pool.size": 1,
        "group.initial.rebalance.delay.ms": 0,
    }


def in_sync_min(replicas):
    """How many replicas must have a record before it is acknowledged."""
    return 2 if replicas > 1 else 1


def broker_command(java, kafka, class_archive, brokers, properties):
    heap_mb = HEAP_MB_ALONE if brokers == 1 else HEAP_MB_OF_THREE
    logging = "-Dorg.slf4j.simpleLogger."
    archive = [f"-XX:SharedArchiveFile={class_archive}"] if class_archive else []
    return [
        str(java),
        *archive,
        "-Xms64m",
        f"-Xmx{heap_mb}m",
        "-XX:+UseSerialGC",
        "-XX:-UsePerfData",
        "-XX:+ExitOnOutOfMemoryError",
        f"{logging}showDateTime=true",
        f"{logging}dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
        # They print hundreds of lines of settings at each start.
        f"{logging}log.kafka.server.KafkaConfig=warn",
        f"{logging}log.org.apache.kafka.clients=warn",
        "-cp",
        _class_path(kafka),
        "kafka.Kafka",
        str(properties),
    ]


def _class_path(kafka):
    """In one order, always: a class archive is only good for the class path it was made with."""
    return ":".join(str(jar) for jar in sorted((kafka / "libs").glob("*.jar")))


def kafka_id():
    """A random id in Kafka's form: 16 bytes, base64 for URLs, without padding or a leading dash."""
    while True:
        text = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        if not text.startswith("-"):
            return text


# ---- MinIO -----------------------------------------------------------------------------------


class ObjectStore(Service):
    def __init__(self, folder, spec):
        super().__init__(folder, "s3", host_of(spec, "s3"), [spec["s3"]["port"]])
        self._s3 = spec["s3"]

    def _command(self, tools):
        environment = dict(
            os.environ,
            MINIO_ROOT_USER=self._s3["access_key"],
            MINIO_ROOT_PASSWORD=self._s3["secret_key"],
            MINIO_BROWSER="off",
            MINIO_UPDATE="off",  # else it asks a server on the internet
            HOME=str(self.data),  # else it makes ~/.minio
        )
        return [tools.minio, "server", "--anonymous", "--address", self.address, self.data / "data"], environment

    def answers(self):
        return wire.s3_ready(self.endpoint) and wire.s3_make_bucket(self.endpoint, self._s3)


# ---- etcd ------------------------------------------------------------------------------------


class Etcd(Service):
    group = "etcd"

    def __init__(self, folder, spec, member):
        super().__init__(folder, member["name"], host_of(spec, "etcd"), [member["port"], member["peer_port"]])
        self._members = spec["etcds"]
        self._member = member

    def _command(self, tools):
        client, peer = f"http://{self.address}", self._peer_url(self._member)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD")}
        if platform.machine() != "x86_64":
            # etcd 3.4 knows no other as supported, and asks for a promise.
            environment["ETCD_UNSUPPORTED_ARCH"] = {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
        argv = [tools.etcd, "--name", self.name, "--data-dir", self.data / "data", "--logger", "zap"]
        argv += ["--listen-client-urls", client, "--advertise-client-urls", client]
        argv += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        members = ",".join(f"{member['name']}={self._peer_url(member)}" for member in self._members)
        return [*argv, "--initial-cluster", members], environment

    def answers(self):
        """Only with a quorum: without one it cannot say what is in it."""
        return wire.etcd_healthy(self.endpoint)

    def _peer_url(self, member):
        return f"http://{self.host}:{member['peer_port']}"


def all_of(folder, spec):
    """Every service of a stack, Kafka first: it takes longest."""
    brokers = [Broker(folder, spec, broker) for broker in spec["brokers"]]
    members = [Etcd(folder, spec, member) for member in spec["etcds"]]
    return [*brokers, ObjectStore(folder, spec), *members]
