"""Kafka, MinIO and etcd from package registries into the cache. Needs no root unless Java, Maven or
Go is missing too.

Each program has a folder of its own, named by its version. A folder appears by one rename when it
is whole, so "is it installed" is "is the folder there". One lock a program: of two runs at once, the
second waits and then finds it done.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import locking
import say

KAFKA_VERSION = "3.9.1"
SCALA_VERSION = "2.13"
SLF4J_VERSION = "1.7.36"
MAVEN_DEPENDENCY_PLUGIN_VERSION = "3.8.1"
# Only fetched where go is older than 1.21.
GO_VERSION = "1.24.13"
MINIO_VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"

# Paths: `java`, `minio`, `etcd` are programs, `kafka` is a folder (see `_install_kafka`),
# `kafka_cds` an archive of loaded classes or None.
Tools = namedtuple("Tools", "java kafka kafka_cds minio etcd")


def cache():
    base = os.environ.get("SHOAL_CACHE") or Path.home() / ".cache" / "shoal"
    return Path(base).absolute() / "stack"


def ensure():
    """Installs what is missing; a few file look-ups when nothing is."""
    etcd = _given("SHOAL_ETCD") or _once("etcd", _install_etcd) / "etcd"
    java = _java()
    kafka = _once(f"kafka-{KAFKA_VERSION}", lambda *place: _install_kafka(java, *place))
    kafka_cds = _class_archive(java, kafka)
    minio = _given("SHOAL_MINIO") or _once(f"minio-{MINIO_VERSION}", _install_minio) / "minio"
    return Tools(java, kafka, kafka_cds, minio, etcd)


def _given(variable):
    """A program that the user names instead of the one that would be installed."""
    path = os.environ.get(variable)
    if not path:
        return None
    found = shutil.which(path)
    if not found:
        raise say.Trouble(f"{variable} is {path}, which is not a program")
    return Path(found).absolute()


def _once(name, install):
    """The folder `name` of the cache; `install(new_folder, lock)` fills it if it is not there.

    It may return a folder that is of no use any more.
    """
    folder = cache() / name
    if folder.is_dir():
        return folder
    with locking.locked(cache() / f"{name}.lock", f"another run installs {name}") as lock:
        if folder.is_dir():
            return folder
        new = cache() / f".{name}.new"
        shutil.rmtree(new, ignore_errors=True)  # of a run that was killed
        new.mkdir(parents=True)
        leftovers = install(new, lock)
        new.rename(folder)
        if leftovers:
            # After the rename: removing gigabytes takes a while, and nobody else need wait for it.
            shutil.rmtree(leftovers, ignore_errors=True)
    return folder


def _run(argv, lock, folder, purpose, environment=None):
    """Runs a tool of a registry, quietly; what it said is shown if it fails.

    It holds the lock as well: if this program is killed, nobody installs beside its remains.
    """
    child = subprocess.Popen(
        [str(word) for word in argv],
        cwd=folder,
        env=environment,
        pass_fds=[lock],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        output, _ = child.communicate()
    except BaseException:
        # Asked rather than killed: it may have children of its own to end.
        child.terminate()
        child.wait()
        raise
    if child.returncode != 0:
        tail = "\n".join("  " + line for line in output.strip().splitlines()[-15:])
        raise say.Trouble(f"{purpose} failed (exit code {child.returncode}):\n{tail}")


def _command(name, package, hint):
    """A program on PATH, installed from Debian if it can be."""
    if shutil.which(name):
        return shutil.which(name)
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    if not shutil.which("apt-get") or (sudo and not shutil.which("sudo")):
        raise say.Trouble(f"{name} is missing. {hint}")
    say.note(f"installing the Debian package {package}")
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    with locking.locked(cache() / "apt.lock", f"another run installs {package}") as lock:
        if not shutil.which(name):
            _run([*sudo, "apt-get", "update", "-q"], lock, None, "apt-get update")
            install = [*sudo, "apt-get", "install", "-y", "-q", "--no-install-recommends", package]
            _run(install, lock, None, f"installing {package}", environment)
    if not shutil.which(name):
        raise say.Trouble(f"{name} is missing although {package} is installed. {hint}")
    return shutil.which(name)


# ---- etcd ------------------------------------------------------------------------------------


def _install_etcd(new, lock):
    """From the Debian packages, unpacked and not installed: installing would start a service."""
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        raise say.Trouble(
            "etcd comes from Debian packages, and there is no apt-get here. Install etcd 3.4 or "
            "newer in your system's way and set SHOAL_ETCD to the program."
        )
    say.note("installing etcd")
    say.require_space(new, 200e6, "etcd")
    # Lists of packages of our own: works without root, and on a machine whose lists are empty.
    apt = ["apt-get", "-q", "-o", f"Dir::State::Lists={new}/lists", "-o", f"Dir::Cache={new}/cache"]
    apt += ["-o", "APT::Sandbox::User="]
    for part in ("lists/partial", "cache/archives/partial"):
        (new / part).mkdir(parents=True)
    _run([*apt, "update"], lock, new, "apt-get update")
    download = [*apt, "download", "etcd-server", "etcd-client"]
    _run(download, lock, new, "downloading the Debian packages of etcd")
    for package in sorted(new.glob("*.deb")):
        _run(["dpkg", "-x", package, new / "root"], lock, new, f"unpacking {package.name}")
        package.unlink()
    for program in ("etcd", "etcdctl"):
        (new / "root/usr/bin" / program).rename(new / program)
    for rest in ("root", "lists", "cache"):
        shutil.rmtree(new / rest)


# ---- MinIO -----------------------------------------------------------------------------------


def _install_minio(new, lock):
    """Built from its Go module; there is no package of it in a registry."""
    hint = "Install Go 1.21 or newer (https://go.dev/doc/install), or set SHOAL_MINIO to a minio program."
    go = _command("go", "golang-go", hint)
    say.note("building MinIO, once; this takes about five minutes on two cores")
    say.require_space(new, 3e9, "building MinIO")
    # Caches of our own: gigabytes that nothing else uses, removed at the end. They outlive a build
    # that was interrupted, so that the next one goes on from there.
    work = cache() / "minio-build"
    environment = dict(
        os.environ,
        GOFLAGS="-mod=mod -modcacherw",
        GOMODCACHE=str(work / "mod"),
        GOCACHE=str(work / "build"),
        GOBIN=str(new),
        CGO_ENABLED="0",
    )
    if _go_version(go) < (1, 21):
        go = _newer_go(go, new, lock, environment)
    module = f"github.com/minio/minio@{MINIO_VERSION}"
    build = [go, "install", "-trimpath", "-ldflags=-s -w", module]
    _run(build, lock, new, "building MinIO", environment)
    return work


def _go_version(go):
    said = subprocess.run([go, "version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"go(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _newer_go(go, new, lock, environment):
    """From 1.21 on, go fetches the toolchain that a module asks for; an older one must be told.

    Toolchains are modules too: https://go.dev/doc/toolchain#download
    """
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    toolchain = f"golang.org/toolchain@v0.0.1-go{GO_VERSION}.linux-{machine}"
    say.note(f"{go} is too old for MinIO: fetching Go {GO_VERSION}")
    _run([go, "mod", "download", toolchain], lock, new, f"fetching Go {GO_VERSION}", environment)
    root = Path(environment["GOMODCACHE"]) / toolchain
    # A module's files are not executable.
    for program in [*root.glob("bin/*"), *root.glob("pkg/tool/*/*")]:
        program.chmod(0o755)
    environment.pop("GOROOT", None)
    return root / "bin/go"


# ---- Kafka -----------------------------------------------------------------------------------

POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>shoal</groupId><artifactId>stack</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_{SCALA_VERSION}</artifactId><version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-simple</artifactId><version>{SLF4J_VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""


def _java():
    """The real path: it names the version, which the class archive depends on."""
    home = os.environ.get("JAVA_HOME")
    if home and (Path(home) / "bin/java").is_file():
        return (Path(home) / "bin/java").resolve()
    hint = "Kafka needs Java 17 or newer. Install a JRE, or set JAVA_HOME to one."
    return Path(_command("java", "default-jre-headless", hint)).resolve()


def _install_kafka(java, new, lock):
    """`libs/*.jar`, and `bootstrap.checkpoint`: what formatting leaves beside meta.properties.

    That file says with which metadata version a cluster begins. It is the same for every cluster,
    so it is made once here rather than by a Java process for each broker.
    """
    mvn = _command("mvn", "maven", "Kafka comes from Maven Central. Install Maven 3.6 or newer.")
    say.note(f"installing Kafka {KAFKA_VERSION}")
    say.require_space(new, 400e6, "Kafka")
    (new / "pom.xml").write_text(POM)
    plugin = f"org.apache.maven.plugins:maven-dependency-plugin:{MAVEN_DEPENDENCY_PLUGIN_VERSION}"
    copy = [mvn, "-B", "-q", f"-Dmaven.repo.local={new}/repository"]
    copy += [f"{plugin}:copy-dependencies", f"-DoutputDirectory={new}/libs"]
    _run(copy, lock, new, "fetching Kafka with Maven")
    shutil.rmtree(new / "repository")
    properties = new / "format.properties"
    properties.write_text(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:9093\n"
        "listeners=PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093\n"
        f"controller.listener.names=CONTROLLER\nlog.dirs={new}/format\n"
    )
    tool = [java, "-XX:TieredStopAtLevel=1", "-cp", f"{new}/libs/*", "kafka.tools.StorageTool"]
    any_id = "c2hvYWwtc3RhY2stMDAwMA"
    _run([*tool, "format", "-t", any_id, "-c", properties], lock, new, "formatting a Kafka folder")
    (new / "format/bootstrap.checkpoint").rename(new / "bootstrap.checkpoint")
    shutil.rmtree(new / "format")
    properties.unlink()


def _class_archive(java, kafka):
    """An archive of the classes that a broker loads; halves the time of its start.

    See "Application Class-Data Sharing", JEP 350. Only good for the Java that made it. A Java that
    cannot make one leaves an empty file, so that it is not asked again.
    """
    status = java.stat()
    identity = f"{java} {status.st_size} {status.st_mtime_ns}"
    archive = kafka / f"classes-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.jsa"
    if not archive.exists():
        with locking.locked(cache() / "kafka-classes.lock", "another run prepares Kafka") as lock:
            if not archive.exists():
                say.note("preparing Kafka for quick starts")
                new = archive.with_suffix(".new")
                new.unlink(missing_ok=True)
                # In a process of its own, since it runs a whole broker for this.
                train = [sys.executable, Path(__file__).with_name("train.py"), java, kafka, new]
                try:
                    _run(train, lock, kafka, "making the class archive")
                except say.Trouble as trouble:
                    say.note(f"Kafka will start slowly: {trouble}")
                    new.write_bytes(b"")
                new.rename(archive)
    return archive if archive.stat().st_size > 0 else None
