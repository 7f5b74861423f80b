"""Checks a server with psycopg 3: python psycopg_check.py PORT"""
import datetime
import decimal
import sys

import psycopg
from psycopg import sql

port = int(sys.argv[1])
dsn = dict(host="127.0.0.1", port=port, user="py", dbname="public")
with psycopg.connect(**dsn) as conn:
    with conn.cursor() as cur:
        cur.execute("SELECT count(*), max(n) FROM cpu")
        assert cur.fetchone() == (3, 3), "aggregates"
        cur.execute("SELECT hostname, usage_user, ts FROM cpu WHERE hostname = %s AND ts < %s ORDER BY ts",
                    ("host_0", datetime.datetime(2016, 1, 1, 0, 0, 5)))
        assert cur.fetchall() == [("host_0", 1.5, datetime.datetime(2016, 1, 1))], "parameters"
        cur.execute("SELECT usage_user FROM cpu WHERE n = ANY(%s) ORDER BY n", ([2, 3],))
        assert cur.fetchall() == [(2.5,), (None,)], "arrays"
    conn.commit()
    with conn.cursor(binary=True) as cur:
        cur.execute("SELECT n, usage_user, ts, hostname, true, CAST(12.50 AS DECIMAL(10, 2)), DATE '2024-02-29' FROM cpu ORDER BY n LIMIT 1")
        assert cur.fetchone() == (1, 1.5, datetime.datetime(2016, 1, 1), "host_0", True,
                                  decimal.Decimal("12.50"), datetime.date(2024, 2, 29)), "binary"
    conn.commit()
    # A server-side cursor reads in parts.
    with conn.cursor(name="parts") as cur:
        cur.itersize = 100
        cur.execute("SELECT value FROM generate_series(1, 1000)")
        assert sum(row[0] for row in cur) == 500500, "named cursor"
    conn.commit()
    with conn.cursor() as cur:
        cur.executemany("INSERT INTO cpu (ts, hostname, n) VALUES (%s, %s, %s)",
                        [(datetime.datetime(2016, 2, 1, 0, 0, i), "py", i) for i in range(10)])
        with cur.copy("COPY cpu (ts, hostname, n) FROM STDIN") as copy:
            for i in range(10, 30):
                copy.write_row((datetime.datetime(2016, 2, 1, 0, 0, i), "py", i))
        cur.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("cpu")) + sql.SQL(" WHERE hostname = 'py'"))
        assert cur.fetchone() == (30,), "inserted"
        with cur.copy("COPY (SELECT n FROM cpu WHERE hostname = 'py' ORDER BY n LIMIT 3) TO STDOUT") as copy:
            assert [row for row in copy.rows()] == [("0",), ("1",), ("2",)], "copy out"
    try:
        conn.execute("SELECT nothing FROM cpu")
        raise SystemExit("no error")
    except psycopg.errors.UndefinedColumn as e:
        assert e.diag.statement_position == "8", e.diag.statement_position
    conn.rollback()
    assert conn.info.parameter_status("server_version") == "16.6"
with psycopg.connect(autocommit=True, **dsn) as conn:
    # Prepared on the server once it has run often enough.
    for i in range(10):
        assert conn.execute("SELECT %s::bigint + 1", (i,)).fetchone() == (i + 1,)
    with conn.pipeline():
        found = [conn.execute("SELECT n FROM cpu WHERE n = %s AND hostname = 'py'", (i,)) for i in range(5)]
        assert [c.fetchone() for c in found] == [(i,) for i in range(5)], "pipeline"
print("psycopg ok")
