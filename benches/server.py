"""A `shoal standalone` of one's own: free ports, one data folder, ended by its process id."""

import json
import os
import pathlib
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request

START_TIMEOUT_S = 600
STOP_TIMEOUT_S = 60
SETTLE_TIMEOUT_S = 900


class Server:
    def __init__(self, binary, data_dir, settings=None):
        self.binary = str(binary)
        self.data_dir = pathlib.Path(data_dir)
        self.settings = settings or {}
        self.process = None
        self.url = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def start(self):
        self.data_dir.mkdir(parents=True, exist_ok=True)
        addresses = self.data_dir / "addresses.json"
        # An earlier process's file would send us to its port.
        addresses.unlink(missing_ok=True)
        log = open(self.data_dir.with_suffix(".server.log"), "ab")
        environment = {
            **os.environ,
            "SHOAL_HTTP_ADDR": "127.0.0.1:0",
            "SHOAL_POSTGRES_ADDR": "127.0.0.1:0",
            **self.settings,
        }
        self.process = subprocess.Popen(
            [self.binary, "standalone", "--data-dir", str(self.data_dir)],
            stdout=log, stderr=log, env=environment,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.log_tail()}")
            try:
                http = json.loads(addresses.read_text())["http"]
                self.url = http if "://" in http else f"http://{http}"
                self.request("GET", "/health/ready")
                return
            except (OSError, ValueError, urllib.error.URLError):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"not ready in {START_TIMEOUT_S} s:\n{self.log_tail()}")
                time.sleep(0.01)

    def log_tail(self):
        path = self.data_dir.with_suffix(".server.log")
        return path.read_text(errors="replace")[-4000:]

    def kill(self):
        self.process.kill()
        self.process.wait()

    def request(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, method=method, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=SETTLE_TIMEOUT_S) as answer:
            return answer.read()

    def rows(self, statement):
        return json.loads(self.request("POST", "/v1/sql", {"sql": statement}))["rows"]

    def value(self, statement):
        return self.rows(statement)[0][0]

    def vm_hwm_mib(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1024

    def settle(self):
        """Flushes and compacts until nothing changes any more."""
        self.request("POST", "/v1/admin/flush", {})
        self.request("POST", "/v1/admin/compact", {})

    def live_files(self, table):
        """The Parquet files that the newest manifests name for a table."""
        rows = self.rows(f"SELECT path FROM system.ssts WHERE table_name = '{table}'")
        return [self.find(path) for (path,) in rows]

    def find(self, object_path):
        name = object_path.rsplit("/", 1)[-1]
        (found,) = self.data_dir.rglob(name)
        return found

    def log_bytes(self):
        """Bytes of log that a restart has to replay."""
        return self.metric("shoal_engine_log_bytes")

    def metric(self, name):
        text = self.request("GET", "/metrics").decode()
        values = re.findall(rf"^{name}(?:_total)?(?:\{{[^}}]*\}})? (\S+)$", text, re.M)
        if not values:
            raise RuntimeError(f"no metric {name}")
        return sum(map(float, values))

    def written_bytes(self):
        return {
            "flush": self.metric("shoal_engine_flushed_bytes"),
            "compaction": self.metric("shoal_engine_compacted_bytes"),
        }
