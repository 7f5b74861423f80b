import java.sql.*;
import java.util.*;

/** Checks a server with the PostgreSQL JDBC driver: java -cp DRIVER JdbcCheck.java PORT */
public class JdbcCheck {
    static void check(boolean right, String what) {
        if (!right) throw new AssertionError(what);
    }

    public static void main(String[] args) throws Exception {
        Properties p = new Properties();
        p.setProperty("user", "java");
        p.setProperty("password", "any");
        // Server-side prepared statements and binary transfer from the first execution on.
        p.setProperty("prepareThreshold", "-1");
        String url = "jdbc:postgresql://127.0.0.1:" + args[0] + "/public";
        try (Connection c = DriverManager.getConnection(url, p)) {
            check(c.isValid(5), "valid");
            try (PreparedStatement s = c.prepareStatement(
                    "SELECT hostname, usage_user, n, ts FROM cpu WHERE hostname = ? AND n >= ? AND ts >= ? ORDER BY n")) {
                for (int i = 0; i < 3; i++) {
                    s.setString(1, "host_0");
                    s.setLong(2, 2);
                    s.setTimestamp(3, Timestamp.valueOf("2016-01-01 00:00:00"));
                    ResultSet r = s.executeQuery();
                    check(r.next(), "a row");
                    check(r.getString(1).equals("host_0") && r.getDouble(2) == 2.5 && r.getLong(3) == 2, "values");
                    check(r.getTimestamp(4).equals(Timestamp.valueOf("2016-01-01 00:00:10")), "timestamp");
                    check(!r.next(), "one row");
                }
            }
            // From its fifth run on the driver describes a statement first.
            try (PreparedStatement s = c.prepareStatement("INSERT INTO cpu (ts, hostname, n) VALUES (?, 'one', ?)")) {
                for (int i = 0; i < 7; i++) {
                    s.setTimestamp(1, new Timestamp(1_450_000_000_000L + i * 1000));
                    s.setInt(2, i);
                    check(s.executeUpdate() == 1, "one row");
                }
            }
            try (Statement s = c.createStatement()) {
                s.execute("DELETE FROM cpu WHERE hostname = 'one'");
            }
            try (PreparedStatement s = c.prepareStatement("INSERT INTO cpu (ts, hostname, usage_user, n) VALUES (?, ?, ?, ?)")) {
                for (int i = 0; i < 50; i++) {
                    s.setTimestamp(1, new Timestamp(1_460_000_000_000L + i * 1000));
                    s.setString(2, "java");
                    if (i % 2 == 0) s.setDouble(3, i); else s.setNull(3, Types.DOUBLE);
                    s.setInt(4, i);
                    s.addBatch();
                }
                check(s.executeBatch().length == 50, "batch");
            }
            // A fetch size reads through a portal, in parts.
            c.setAutoCommit(false);
            try (Statement s = c.createStatement()) {
                s.setFetchSize(7);
                ResultSet r = s.executeQuery("SELECT n FROM cpu WHERE hostname = 'java' ORDER BY n");
                int n = 0;
                while (r.next()) check(r.getInt(1) == n++, "order");
                check(n == 50, "all rows");
            }
            c.commit();
            c.setAutoCommit(true);
            DatabaseMetaData m = c.getMetaData();
            check(m.getDatabaseMajorVersion() == 16, "version");
            Set<String> tables = new HashSet<>();
            try (ResultSet r = m.getTables(null, "public", "%", new String[] {"TABLE"})) {
                while (r.next()) tables.add(r.getString("TABLE_NAME"));
            }
            check(tables.contains("cpu"), "getTables " + tables);
            Map<String, Integer> columns = new LinkedHashMap<>();
            try (ResultSet r = m.getColumns(null, "public", "cpu", "%")) {
                while (r.next()) columns.put(r.getString("COLUMN_NAME"), r.getInt("DATA_TYPE"));
            }
            check(columns.equals(Map.of("ts", Types.TIMESTAMP, "hostname", Types.VARCHAR,
                    "usage_user", Types.DOUBLE, "n", Types.BIGINT)), "getColumns " + columns);
            List<String> key = new ArrayList<>();
            try (ResultSet r = m.getPrimaryKeys(null, "public", "cpu")) {
                while (r.next()) key.add(r.getString("COLUMN_NAME") + r.getInt("KEY_SEQ"));
            }
            check(key.equals(List.of("hostname1", "ts2")), "getPrimaryKeys " + key);
            try (ResultSet r = m.getIndexInfo(null, "public", "cpu", true, false)) {
                check(r.next() && r.getString("INDEX_NAME").equals("cpu_pkey"), "getIndexInfo");
            }
            Set<String> schemas = new HashSet<>();
            try (ResultSet r = m.getSchemas()) {
                while (r.next()) schemas.add(r.getString(1));
            }
            check(schemas.contains("public"), "getSchemas " + schemas);
            try (Statement s = c.createStatement()) {
                s.executeQuery("SELECT nope FROM cpu");
                throw new AssertionError("no error");
            } catch (SQLException e) {
                check(e.getSQLState().equals("42703"), e.getSQLState());
            }
            try (Statement s = c.createStatement()) {
                s.setQueryTimeout(1);
                s.executeQuery("SELECT count(*) FROM generate_series(1, 100000) a CROSS JOIN generate_series(1, 100000) b CROSS JOIN generate_series(1, 1000) c");
                throw new AssertionError("no timeout");
            } catch (SQLException e) {
                check(e.getSQLState().equals("57014"), e.getSQLState());
            }
        }
        System.out.println("jdbc ok");
    }
}
