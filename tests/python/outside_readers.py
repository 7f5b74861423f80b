"""usage: outside_readers.py URL TABLE FILE…

Reads the files with pyarrow and with DuckDB and compares both with the server's own answer."""

import json
import sys
import urllib.request

import duckdb
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet


def ask(url, statement):
    body = json.dumps({"sql": statement, "format": "arrow"}).encode()
    request = urllib.request.Request(
        url + "/v1/sql", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return pa.ipc.open_stream(answer.read()).read_all()


def plain(column):
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ns")).cast(pa.int64())
    return column.to_pylist()


def rows(table, names):
    columns = [plain(table.column(name)) for name in names]
    return sorted(zip(*columns), key=repr)


def main():
    url, table, *files = sys.argv[1:]
    ours = ask(url, f"SELECT * FROM {table}")
    names = ours.column_names
    expected = rows(ours, names)
    by_arrow = pa.concat_tables(
        [pa.parquet.read_table(file, columns=names) for file in files], promote_options="default"
    )
    paths = ", ".join(f"'{file}'" for file in files)
    columns = ", ".join(f'"{name}"' for name in names)
    by_duck = duckdb.sql(f"SELECT {columns} FROM read_parquet([{paths}])").to_arrow_table()
    for reader, found in [("pyarrow", by_arrow), ("DuckDB", by_duck)]:
        found = rows(found, names)
        if found != expected:
            at = next((i for i, (a, b) in enumerate(zip(found, expected)) if a != b), "the end")
            sys.exit(
                f"{reader}: {len(found)} rows, the server has {len(expected)}; they differ at {at}: "
                f"{found[at:][:1] if at != 'the end' else ''} {expected[at:][:1] if at != 'the end' else ''}"
            )
    print(f"{len(expected)} rows equal")


main()
