"""usage: postgres_client.py HOST:PORT: a session through psycopg: types, parameters, prepared
statements, an error and life after it."""

import datetime
import decimal
import sys

import psycopg

host, port = sys.argv[1].rsplit(":", 1)
with psycopg.connect(
    host=host, port=int(port), user="shoal", dbname="public", autocommit=True, prepare_threshold=2
) as connection:
    connection.execute(
        "CREATE TABLE things (ts TIMESTAMP(3) NOT NULL, name TEXT, n BIGINT, x DOUBLE PRECISION, d DECIMAL(10,2), PRIMARY KEY (name, ts)) WITH (time_column = 'ts')"
    )
    day = datetime.datetime(2026, 1, 1, 12, 30, 0, 250000)
    for number in range(5):
        connection.execute(
            "INSERT INTO things VALUES (%s, %s, %s, %s, %s)",
            (day, f"thing {number}", number, number / 4, decimal.Decimal("1.50") * number),
        )
    found = connection.execute("SELECT * FROM things WHERE n >= %s ORDER BY name", (3,)).fetchall()
    assert found == [
        (day, "thing 3", 3, 0.75, decimal.Decimal("4.50")),
        (day, "thing 4", 4, 1.0, decimal.Decimal("6.00")),
    ], found
    # The same statement often enough that psycopg prepares it.
    for number in range(6):
        ((x,),) = connection.execute("SELECT x FROM things WHERE n = %s", (number % 5,)).fetchall()
        assert x == (number % 5) / 4, x
    try:
        connection.execute("SELECT nam FROM things")
        sys.exit("an unknown column was accepted")
    except psycopg.Error as error:
        assert "name" in str(error), f"no suggestion: {error}"
    ((count,),) = connection.execute("SELECT count(*) FROM things").fetchall()
    assert count == 5, count
    with connection.cursor(binary=True) as cursor:
        ((n, x),) = cursor.execute("SELECT n, x FROM things WHERE n = %s", (2,)).fetchall()
        assert (n, x) == (2, 0.5)
print("ok")
