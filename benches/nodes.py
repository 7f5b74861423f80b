"""A cluster of `scripts/cluster`, and its nodes' HTTP interfaces."""

import http.client
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Node:
    """A node's HTTP interface over one kept connection."""

    def __init__(self, node):
        self.id, self.address = node["id"], node["http"]
        self.connection = http.client.HTTPConnection(self.address, timeout=120)

    def send(self, path, body=None, headers=None):
        method = "GET" if body is None else "POST"
        self.connection.request(method, path, body=body, headers=headers or {})
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{path}: {answer.status} {text.decode(errors='replace')}")
        return text

    def post(self, path, document, headers=None):
        text = self.send(path, json.dumps(document), {"Content-Type": "application/json", **(headers or {})})
        return json.loads(text)

    def sql(self, statement, level="strong"):
        return self.post("/v1/sql", {"sql": statement, "consistency": level})["rows"]

    def shards(self):
        return json.loads(self.send("/v1/admin/shards"))

    def order(self, shard, order, to):
        return self.post(f"/v1/admin/shards/{shard}/{order}", {"to": to})

    def metric(self, name):
        text = self.send("/metrics").decode()
        values = re.findall(rf"^shoal_{name}(?:_total)?(?:\{{[^}}]*\}})? (\S+)$", text, re.M)
        return sum(map(float, values))


class Cluster:
    """`words` are options of `scripts/cluster up`."""

    def __init__(self, binary, folder, *words):
        self.folder, self.words = folder, words
        self.environment = {**os.environ, "SHOAL_BIN": str(pathlib.Path(binary).absolute())}

    def script(self, *words):
        argv = [str(ROOT / "scripts/cluster"), *map(str, words), "--dir", str(self.folder)]
        done = subprocess.run(argv, env=self.environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"scripts/cluster {words[0]}: exit code {done.returncode}")
        return json.loads(done.stdout) if "--json" in words else None

    def up(self, *words):
        self.where = self.script("up", *words, "--json", "--timeout", 300)

    def __enter__(self):
        try:
            self.up(*self.words)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.script("down", "--purge")

    def nodes(self):
        return [Node(node) for node in self.where["nodes"]]

    def grow(self, nodes):
        self.up("--nodes", nodes)
