"""The few words of Kafka, S3 and etcd that tell whether a service truly answers."""

import datetime
import hashlib
import hmac
import http.client
import json
import socket
import struct

# Where a service listens unless told otherwise. Addresses below are (host, port).
HOST = "127.0.0.1"
TIMEOUT_S = 2.0


def kafka_brokers(address):
    """Ids of the brokers that the broker at `address` knows as live; empty if it does not answer.

    Metadata request, version 1: https://kafka.apache.org/protocol#The_Messages_Metadata
    """
    answer = _kafka(address, 3, 1, struct.pack(">i", 0))  # of no topics
    brokers = set()
    if answer is None:
        return brokers
    (count,) = struct.unpack_from(">i", answer)
    at = 4
    for _ in range(count):
        brokers.add(struct.unpack_from(">i", answer, at)[0])
        at += 4
        at += 2 + struct.unpack_from(">h", answer, at)[0]  # host
        at += 4  # port
        at += 2 + max(struct.unpack_from(">h", answer, at)[0], 0)  # rack; -1: none
    return brokers


def kafka_takes_producers(address):
    """Whether an idempotent producer may begin at once.

    The broker fetches a block of producer ids from the controller when the first is asked for,
    and clients back off for a second meanwhile. So this also proves that a controller is elected
    and writes. InitProducerId request, version 0.
    """
    answer = _kafka(address, 22, 0, struct.pack(">hi", -1, 60_000))  # no transaction
    return answer is not None and struct.unpack_from(">h", answer, 4)[0] == 0


def _kafka(address, api, version, body):
    """What the broker answers after the correlation id; None if it does not."""
    client_id = b"shoal-stack"
    request = struct.pack(">hhih", api, version, 1, len(client_id)) + client_id + body
    try:
        with socket.create_connection(address, TIMEOUT_S) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.sendall(struct.pack(">i", len(request)) + request)
            (length,) = struct.unpack(">i", _exactly(connection, 4))
            return _exactly(connection, length)[4:]
    except OSError:
        return None


def _exactly(connection, count):
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise ConnectionError("closed in the middle of an answer")
        data += piece
    return data


def http_get(address, path):
    """Status and body, or (None, b"") if nothing answers."""
    return _http(address, "GET", path, {})


def _http(address, method, path, headers):
    connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return None, b""
    finally:
        connection.close()


def etcd_healthy(address):
    status, body = http_get(address, "/health")
    if status != 200:
        return False
    try:
        return json.loads(body).get("health") == "true"
    except ValueError:
        return False


def s3_ready(address):
    return http_get(address, "/minio/health/ready")[0] == 200


def s3_make_bucket(address, s3):
    """Makes the bucket unless it is there. True once it is there; also proves the credentials.

    Signature version 4 of an empty PUT:
    https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    path = "/" + s3["bucket"]
    empty = hashlib.sha256(b"").hexdigest()
    headers = {"host": "{}:{}".format(*address), "x-amz-content-sha256": empty, "x-amz-date": stamp}
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    canonical = f"PUT\n{path}\n\n{lines}\n{names}\n{empty}"
    scope = f"{day}/{s3['region']}/s3/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = ("AWS4" + s3["secret_key"]).encode()
    for part in (day, s3["region"], "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
    signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={s3['access_key']}/{scope}, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    status, body = _http(address, "PUT", path, headers)
    return status == 200 or (status == 409 and b"BucketAlreadyOwnedByYou" in body)
