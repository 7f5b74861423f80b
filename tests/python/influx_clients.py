"""usage: influx_clients.py URL: writes through the InfluxDB 1.x and 2.x clients from PyPI, as
Telegraf and others do: CREATE DATABASE first, both spellings of precision, gzip."""

import gzip
import sys
import urllib.parse
import urllib.request

import influxdb
import influxdb_client
from influxdb_client.client.write_api import SYNCHRONOUS

url = sys.argv[1]
parts = urllib.parse.urlparse(url)
SECOND = 1767225600

# --- 1.x: ping, CREATE DATABASE, SHOW DATABASES, writes
v1 = influxdb.InfluxDBClient(parts.hostname, parts.port, "user", "password", "telegraf")
assert v1.ping(), "ping gives no version"
v1.create_database("telegraf")
names = [database["name"] for database in v1.get_list_database()]
assert "telegraf" in names, names
assert v1.write_points(
    [{"measurement": "v1_points", "tags": {"host": "seconds"}, "time": SECOND, "fields": {"v": 1.5}}],
    time_precision="s",
)
assert v1.write_points(
    [{"measurement": "v1_points", "tags": {"host": "ms"}, "time": SECOND * 1000, "fields": {"v": 2.5}}],
    time_precision="ms",
)
# Telegraf's outputs.influxdb: gzip, precision=ns, an explicit user agent.
body = gzip.compress(b"v1_points,host=gzip v=3.5 %d\n" % (SECOND * 10**9))
request = urllib.request.Request(
    f"{url}/write?db=telegraf&precision=ns&consistency=all&rp=",
    data=body,
    headers={"Content-Encoding": "gzip", "User-Agent": "Telegraf/1.30.0 Go/1.22"},
)
with urllib.request.urlopen(request) as answer:
    assert answer.status == 204, answer.status
    assert answer.headers.get("X-Influxdb-Version"), "no version header"

# --- 2.x: health, writes with precision s and ms, gzip
with influxdb_client.InfluxDBClient(url, token="any", org="any", enable_gzip=True) as v2:
    assert v2.ping()
    health = v2.health()
    assert health.status == "pass", health
    write = v2.write_api(write_options=SYNCHRONOUS)
    write.write("metrics", record=[f"v2_points,host=a v=1i {SECOND}", f"v2_points,host=b v=2i {SECOND}"], write_precision="s")
    point = influxdb_client.Point("v2_points").tag("host", "c").field("v", 3).time(SECOND * 1000, "ms")
    write.write("metrics", record=point, write_precision="ms")
    write.write("metrics", record=f"v2_points,host=d v=4i {SECOND * 10**9}")
print("ok")
