"""Runs the same statements in DuckDB, in process, on the server's own Parquet files, and compares
the answers."""

import json
import math
import statistics
import time

import duckdb
import pyarrow as pa
import pyarrow.ipc

# Sums of integers are exact in both engines; a mean differs by rounding at most.
RELATIVE_TOLERANCE = 1e-9


def connect(files, threads):
    connection = duckdb.connect()
    connection.execute(f"SET threads = {int(threads)}")
    # Means and counts need no order, and ORDER BY is kept whatever this says: without it DuckDB
    # is quicker, and the comparison is to be with its best.
    connection.execute("SET preserve_insertion_order = false")
    paths = ", ".join("'" + str(path).replace("'", "''") + "'" for path in files)
    columns = connection.execute(f"DESCRIBE SELECT * FROM read_parquet([{paths}])").fetchall()
    visible = ", ".join('"' + name + '"' for name, *_ in columns if not name.startswith("__"))
    connection.execute(f"CREATE VIEW cpu AS SELECT {visible} FROM read_parquet([{paths}])")
    types = {name: kind for name, kind, *_ in columns}
    return connection, types["time"]


def translate(sql, time_type):
    # Literals of the column's own type: DuckDB then prunes by them instead of casting the column.
    if time_type == "TIMESTAMP_NS":
        return sql.replace("TIMESTAMP '", "TIMESTAMP_NS '")
    return sql


def measure(files, statements_path, answers_dir, threads):
    """Medians in milliseconds by query, and a line for every answer that differs."""
    connection, time_type = connect(files, threads)
    times = {}
    wrong = []
    for line in statements_path.read_text().splitlines():
        statement = json.loads(line)
        sql = translate(statement["sql"], time_type)
        begun = time.perf_counter()
        answer = connection.execute(sql).to_arrow_table()
        elapsed_ms = (time.perf_counter() - begun) * 1000
        if statement["sample"] < 0:
            continue
        times.setdefault(statement["query"], []).append(elapsed_ms)
        name = f"{statement['query']}-{statement['sample']}"
        ours = pa.ipc.open_stream((answers_dir / f"{name}.arrow").read_bytes()).read_all()
        difference = compare(ours, answer, statement["ordered"])
        if difference:
            wrong.append(f"{name}: {difference}: {statement['sql']}")
    return {query: statistics.median(values) for query, values in times.items()}, wrong


def compare(ours, theirs, ordered):
    """What differs between two answers; None when nothing does."""
    if set(ours.column_names) != set(theirs.column_names):
        return f"columns {ours.column_names} and {theirs.column_names}"
    if ours.num_rows != theirs.num_rows:
        return f"{ours.num_rows} and {theirs.num_rows} rows"
    names = ours.column_names
    columns = [[normal(ours.column(n)), normal(theirs.column(n))] for n in names]
    left = list(zip(*(c[0] for c in columns)))
    right = list(zip(*(c[1] for c in columns)))
    if not ordered:
        left.sort(key=repr)
        right.sort(key=repr)
    for at, (a, b) in enumerate(zip(left, right)):
        if not all(same(x, y) for x, y in zip(a, b)):
            return f"row {at}: {a} and {b}"
    return None


def normal(column):
    """Values as Python sees them, times as nanoseconds whatever unit they came in."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ns")).cast(pa.int64())
    return column.to_pylist()


def same(a, b):
    if isinstance(a, float) or isinstance(b, float):
        if a is None or b is None:
            return a is b
        return math.isclose(a, b, rel_tol=RELATIVE_TOLERANCE, abs_tol=1e-12)
    return a == b
