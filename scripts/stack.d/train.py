"""Runs one broker in a temporary folder and has Java write down which classes it loaded.

    train.py JAVA KAFKA-FOLDER ARCHIVE

Part of the installation; see `install._class_archive`.
"""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ports
import services
import wire

START_S = 90.0
STOP_S = 60.0


def train(java, kafka, archive):
    with tempfile.TemporaryDirectory(prefix="shoal-kafka-") as place:
        port, controller_port = ports.free(2)
        broker = {"id": 1, "port": port, "controller_port": controller_port}
        properties = services.prepare_broker(Path(place), kafka, "AAAAAAAAAAAAAAAAAAAAAg", wire.HOST, broker, [broker], {})
        argv = services.broker_command(java, kafka, None, 1, properties)
        argv.insert(1, f"-XX:ArchiveClassesAtExit={archive}")
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + START_S
            while not wire.kafka_brokers((wire.HOST, port)):
                if process.poll() is not None:
                    sys.exit(f"the broker ended with code {process.returncode}")
                if time.monotonic() > deadline:
                    sys.exit(f"the broker did not answer within {START_S:.0f} s")
                time.sleep(0.1)
            process.terminate()
            process.wait(STOP_S)
        finally:
            process.kill()
            process.wait()
    if not archive.is_file():
        sys.exit("this Java wrote no archive")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the broker on the way out
    train(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
