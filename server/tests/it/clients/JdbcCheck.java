import java.sql.*;
import java.util.*;

/** Checks a server with the PostgreSQL JDBC driver: java -cp DRIVER JdbcCheck.java PORT */
public class JdbcCheck {
    static void check(boolean right, String what) {
        if (!right) throw new AssertionError(what);
    }

    /** The labels of a result's columns, and how many rows it has. */
    static int rows(String what, ResultSet r, String... columns) throws SQLException {
        ResultSetMetaData m = r.getMetaData();
        Set<String> labels = new HashSet<>();
        for (int i = 1; i <= m.getColumnCount(); i++) labels.add(m.getColumnLabel(i).toUpperCase());
        for (String column : columns) check(labels.contains(column), what + " has no " + column + ": " + labels);
        int n = 0;
        for (; r.next(); n++) for (int i = 1; i <= m.getColumnCount(); i++) r.getString(i);
        r.close();
        return n;
    }

    /** Every question of DatabaseMetaData that the driver can ask. */
    static void metadata(DatabaseMetaData m) throws SQLException {
        String[][] names = {{null, null, null, null}, {null, "public", "cpu", "%"}, {"%", "%", "%", "%"}, {"shoal", "public", "c_u", "n"}};
        String[] keys = {"PKTABLE_CAT", "PKTABLE_SCHEM", "PKTABLE_NAME", "PKCOLUMN_NAME", "FKTABLE_CAT", "FKTABLE_SCHEM",
                "FKTABLE_NAME", "FKCOLUMN_NAME", "KEY_SEQ", "UPDATE_RULE", "DELETE_RULE", "FK_NAME", "PK_NAME", "DEFERRABILITY"};
        String[] pseudo = {"SCOPE", "COLUMN_NAME", "DATA_TYPE", "TYPE_NAME", "COLUMN_SIZE", "BUFFER_LENGTH", "DECIMAL_DIGITS", "PSEUDO_COLUMN"};
        for (String[] n : names) {
            String on = Arrays.toString(n);
            check(rows("getImportedKeys", m.getImportedKeys(n[0], n[1], n[2]), keys) == 0, "getImportedKeys " + on);
            check(rows("getExportedKeys", m.getExportedKeys(n[0], n[1], n[2]), keys) == 0, "getExportedKeys " + on);
            check(rows("getCrossReference", m.getCrossReference(n[0], n[1], n[2], n[0], n[1], n[2]), keys) == 0, "getCrossReference " + on);
            check(rows("getUDTs", m.getUDTs(n[0], n[1], n[2], null), "TYPE_CAT", "TYPE_SCHEM", "TYPE_NAME", "CLASS_NAME", "DATA_TYPE", "REMARKS", "BASE_TYPE") == 0, "getUDTs " + on);
            check(rows("getProcedures", m.getProcedures(n[0], n[1], n[2]), "PROCEDURE_CAT", "PROCEDURE_SCHEM", "PROCEDURE_NAME", "REMARKS", "PROCEDURE_TYPE", "SPECIFIC_NAME") == 0, "getProcedures " + on);
            rows("getProcedureColumns", m.getProcedureColumns(n[0], n[1], n[2], n[3]), "PROCEDURE_NAME", "COLUMN_NAME", "COLUMN_TYPE", "DATA_TYPE", "ORDINAL_POSITION");
            int functions = rows("getFunctions", m.getFunctions(n[0], n[1], n[2]), "FUNCTION_CAT", "FUNCTION_SCHEM", "FUNCTION_NAME", "REMARKS", "FUNCTION_TYPE", "SPECIFIC_NAME");
            check("cpu".equals(n[2]) || "c_u".equals(n[2]) || functions > 1000, "getFunctions " + on + functions);
            rows("getFunctionColumns", m.getFunctionColumns(n[0], n[1], n[2], n[3]), "FUNCTION_NAME", "COLUMN_NAME", "COLUMN_TYPE", "DATA_TYPE", "ORDINAL_POSITION");
            // Patterns of names: all of these match the table, owned by one who may do everything.
            int rights = rows("getTablePrivileges", m.getTablePrivileges(n[0], n[1], n[2]), "TABLE_CAT", "TABLE_SCHEM", "TABLE_NAME", "GRANTOR", "GRANTEE", "PRIVILEGE", "IS_GRANTABLE");
            check(rights >= 5, "getTablePrivileges " + on + rights);
            rights = rows("getColumnPrivileges", m.getColumnPrivileges(n[0], n[1], n[2], n[3]), "TABLE_NAME", "COLUMN_NAME", "GRANTOR", "GRANTEE", "PRIVILEGE", "IS_GRANTABLE");
            check(!"cpu".equals(n[2]) || rights >= 4, "getColumnPrivileges " + on + rights);
            rows("getVersionColumns", m.getVersionColumns(n[0], n[1], n[2]), pseudo);
            rows("getTables", m.getTables(n[0], n[1], n[2], null), "TABLE_CAT", "TABLE_SCHEM", "TABLE_NAME", "TABLE_TYPE", "REMARKS");
            rows("getColumns", m.getColumns(n[0], n[1], n[2], n[3]), "TABLE_NAME", "COLUMN_NAME", "DATA_TYPE", "TYPE_NAME", "ORDINAL_POSITION", "IS_NULLABLE");
            rows("getSchemas", m.getSchemas(n[0], n[1]), "TABLE_SCHEM", "TABLE_CATALOG");
            rows("getPrimaryKeys", m.getPrimaryKeys(n[0], n[1], n[2]), "TABLE_NAME", "COLUMN_NAME", "KEY_SEQ", "PK_NAME");
            if (n[2] == null) continue;
            rows("getIndexInfo", m.getIndexInfo(n[0], n[1], n[2], false, true), "TABLE_NAME", "NON_UNIQUE", "INDEX_NAME", "TYPE", "ORDINAL_POSITION", "COLUMN_NAME", "ASC_OR_DESC");
            rows("getBestRowIdentifier", m.getBestRowIdentifier(n[0], n[1], n[2], DatabaseMetaData.bestRowSession, true), pseudo);
        }
        List<String> row = new ArrayList<>();
        try (ResultSet r = m.getBestRowIdentifier(null, "public", "cpu", DatabaseMetaData.bestRowSession, true)) {
            while (r.next()) row.add(r.getString("COLUMN_NAME") + " " + r.getString("TYPE_NAME"));
        }
        Collections.sort(row);
        check(row.equals(List.of("hostname text", "ts timestamp")), "getBestRowIdentifier " + row);
        List<String> index = new ArrayList<>();
        try (ResultSet r = m.getIndexInfo(null, "public", "cpu", true, false)) {
            while (r.next()) index.add(r.getString("INDEX_NAME") + r.getInt("ORDINAL_POSITION") + r.getString("COLUMN_NAME") + r.getBoolean("NON_UNIQUE") + r.getString("ASC_OR_DESC"));
        }
        check(index.equals(List.of("cpu_pkey1hostnamefalseA", "cpu_pkey2tsfalseA")), "getIndexInfo " + index);
        Map<String, Integer> types = new HashMap<>();
        try (ResultSet r = m.getTypeInfo()) {
            while (r.next()) types.put(r.getString("TYPE_NAME"), r.getInt("DATA_TYPE"));
        }
        check(types.getOrDefault("int8", 0) == Types.BIGINT && types.getOrDefault("_int8", 0) == Types.ARRAY
                && types.getOrDefault("text", 0) == Types.VARCHAR, "getTypeInfo " + types);
        check(rows("getFunctionColumns", m.getFunctionColumns(null, "pg_catalog", "abs", "%"), "COLUMN_NAME") >= 6, "getFunctionColumns abs");
        check(rows("getTableTypes", m.getTableTypes(), "TABLE_TYPE") > 0, "getTableTypes");
        check(rows("getCatalogs", m.getCatalogs(), "TABLE_CAT") > 0, "getCatalogs");
        check(rows("getClientInfoProperties", m.getClientInfoProperties(), "NAME", "MAX_LEN") > 0, "getClientInfoProperties");
        check(m.getMaxColumnsInIndex() == 32, "getMaxColumnsInIndex");
        check(m.getDefaultTransactionIsolation() == Connection.TRANSACTION_READ_COMMITTED, "isolation");
        check(m.getSQLKeywords().length() > 0 && m.getNumericFunctions().length() > 0, "words");
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
            metadata(m);
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
