"""The workload's options, and `shoal bench` run with them."""

import json
import subprocess
import sys


def workload_options(parser):
    parser.add_argument("--hosts", type=int, default=400)
    parser.add_argument("--span", default="24h")
    parser.add_argument("--interval", default="10s")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--connections", type=int, default=4, help="of the loader")
    parser.add_argument("--batch-rows", type=int, default=5000)


def workload(options, **changed):
    chosen = {
        "hosts": options.hosts, "span": options.span,
        "interval": options.interval, "seed": options.seed, **changed,
    }
    return [word for name, value in chosen.items() for word in (f"--{name}", str(value))]


def bench_command(options, *words):
    """Runs `shoal bench …` and gives its figures. Its exit code 1 (a bar missed) is ours to judge."""
    done = subprocess.run([options.bin, "bench", *words], stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1):
        sys.exit(f"shoal bench {' '.join(words)}: exit code {done.returncode}")
    figures = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not figures and "--dry-run" not in words:
        sys.exit(f"shoal bench {' '.join(words)}: no figures")
    return figures


def load(options, url, *words, **changed):
    """Sends the workload to a server; `changed` are options of it that differ from the run's."""
    return bench_command(
        options, "load", "--url", url, *workload(options, **changed),
        "--connections", str(options.connections), "--batch-rows", str(options.batch_rows), *words,
    )


def figure(figures, name):
    return next(f["value"] for f in figures if f["name"] == name)
