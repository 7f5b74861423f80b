"""The comparison of answers in benches/duck.py must be able to fail."""

import pathlib
import sys

import pyarrow as pa

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benches"))
import duck  # noqa: E402

right = pa.table({"t": pa.array([1000, 2000], pa.timestamp("us")), "x": [1.5, None], "n": ["a", "b"]})
as_nanoseconds = right.set_column(0, "t", right["t"].cast(pa.timestamp("ns")))
turned = right.take([1, 0])
off = right.set_column(1, "x", pa.array([1.5000001, None]))
null_gone = right.set_column(1, "x", pa.array([1.5, 0.0]))

assert duck.compare(as_nanoseconds, right, ordered=True) is None
assert duck.compare(turned, right, ordered=False) is None
assert duck.compare(turned, right, ordered=True)
assert duck.compare(off, right, ordered=False)
assert duck.compare(null_gone, right, ordered=False)
assert duck.compare(right.slice(0, 1), right, ordered=False)
assert duck.compare(right.drop_columns(["n"]), right, ordered=False)
