//! Tables and columns of `pg_catalog` that the `datafusion-pg-catalog` crate leaves out. Clients
//! ask for them by name; here they hold nothing, since there is nothing of their kind.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::TableProvider;
use datafusion::catalog::view::ViewTable;
use datafusion::common::Column;
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, cast, lit};
use datafusion::scalar::ScalarValue;

/// The view of primary keys; `indexes` fills it.
pub const INDEXES: &str = "pg_indexes";

/// `pg_authid.oid` of the only role.
const OWNER: i32 = 10;

/// Tables and views of PostgreSQL 16, with their columns. All are empty but those of roles.
const TABLES: &[(&str, &str)] = &[
    // We have no extensions; the crate lists PL/pgSQL.
    (
        "pg_extension",
        "oid int, extname text, extowner int, extnamespace int, extrelocatable boolean, extversion text, extconfig text, extcondition text",
    ),
    (
        "pg_available_extension_versions",
        "name text, version text, installed boolean, superuser boolean, trusted boolean, relocatable boolean, schema text, requires text, comment text",
    ),
    (
        "pg_available_extensions",
        "name text, default_version text, installed_version text, comment text",
    ),
    (
        "pg_cursors",
        "name text, statement text, is_holdable boolean, is_binary boolean, is_scrollable boolean, creation_time timestamp",
    ),
    ("pg_group", "groname text, grosysid int, grolist text"),
    (
        "pg_locks",
        "locktype text, database int, relation int, page int, tuple smallint, virtualxid text, transactionid text, classid int, objid int, objsubid smallint, virtualtransaction text, pid int, mode text, granted boolean, fastpath boolean, waitstart timestamp",
    ),
    ("pg_parameter_acl", "oid int, parname text, paracl text"),
    (
        "pg_policies",
        "schemaname text, tablename text, policyname text, permissive text, roles text, cmd text, qual text, with_check text",
    ),
    (
        "pg_prepared_statements",
        "name text, statement text, prepare_time timestamp, parameter_types text, result_types text, from_sql boolean, generic_plans bigint, custom_plans bigint",
    ),
    (
        "pg_prepared_xacts",
        "transaction text, gid text, prepared timestamp, owner text, database text",
    ),
    (
        "pg_publication_tables",
        "pubname text, schemaname text, tablename text, attnames text, rowfilter text",
    ),
    (
        "pg_rules",
        "schemaname text, tablename text, rulename text, definition text",
    ),
    (
        "pg_seclabels",
        "objoid int, classoid int, objsubid int, objtype text, objnamespace int, objname text, provider text, label text",
    ),
    (
        "pg_sequences",
        "schemaname text, sequencename text, sequenceowner text, data_type text, start_value bigint, min_value bigint, max_value bigint, increment_by bigint, cycle boolean, cache_size bigint, last_value bigint",
    ),
    (
        "pg_stat_activity",
        "datid int, datname text, pid int, leader_pid int, usesysid int, usename text, application_name text, client_addr text, client_hostname text, client_port int, backend_start timestamp, xact_start timestamp, query_start timestamp, state_change timestamp, wait_event_type text, wait_event text, state text, backend_xid text, backend_xmin text, query_id bigint, query text, backend_type text",
    ),
    (
        "pg_stat_all_tables",
        "relid int, schemaname text, relname text, seq_scan bigint, seq_tup_read bigint, idx_scan bigint, idx_tup_fetch bigint, n_tup_ins bigint, n_tup_upd bigint, n_tup_del bigint, n_live_tup bigint, n_dead_tup bigint, last_vacuum timestamp, last_autovacuum timestamp, last_analyze timestamp, last_autoanalyze timestamp, vacuum_count bigint, autovacuum_count bigint, analyze_count bigint, autoanalyze_count bigint",
    ),
    (
        "pg_stat_database",
        "datid int, datname text, numbackends int, xact_commit bigint, xact_rollback bigint, blks_read bigint, blks_hit bigint, tup_returned bigint, tup_fetched bigint, tup_inserted bigint, tup_updated bigint, tup_deleted bigint, conflicts bigint, temp_files bigint, temp_bytes bigint, deadlocks bigint, blk_read_time double precision, blk_write_time double precision, stats_reset timestamp",
    ),
    (
        "pg_stat_replication",
        "pid int, usesysid int, usename text, application_name text, client_addr text, client_hostname text, client_port int, backend_start timestamp, backend_xmin text, state text, sent_lsn text, write_lsn text, flush_lsn text, replay_lsn text, write_lag text, flush_lag text, replay_lag text, sync_priority int, sync_state text, reply_time timestamp",
    ),
    (
        "pg_stat_ssl",
        "pid int, ssl boolean, version text, cipher text, bits int, client_dn text, client_serial text, issuer_dn text",
    ),
    (
        "pg_stat_user_indexes",
        "relid int, indexrelid int, schemaname text, relname text, indexrelname text, idx_scan bigint, last_idx_scan timestamp, idx_tup_read bigint, idx_tup_fetch bigint",
    ),
    (
        "pg_statio_user_tables",
        "relid int, schemaname text, relname text, heap_blks_read bigint, heap_blks_hit bigint, idx_blks_read bigint, idx_blks_hit bigint, toast_blks_read bigint, toast_blks_hit bigint, tidx_blks_read bigint, tidx_blks_hit bigint",
    ),
    (
        "pg_stats",
        "schemaname text, tablename text, attname text, inherited boolean, null_frac real, avg_width int, n_distinct real, most_common_vals text, most_common_freqs text, histogram_bounds text, correlation real, most_common_elems text, most_common_elem_freqs text, elem_count_histogram text",
    ),
    (
        "pg_stats_ext",
        "schemaname text, tablename text, statistics_schemaname text, statistics_name text, statistics_owner text, attnames text, exprs text, kinds text, inherited boolean, n_distinct text, dependencies text",
    ),
    (
        "pg_timezone_abbrevs",
        "abbrev text, utc_offset text, is_dst boolean",
    ),
    (
        "pg_timezone_names",
        "name text, abbrev text, utc_offset text, is_dst boolean",
    ),
    (
        "pg_transform",
        "oid int, trftype int, trflang int, trffromsql text, trftosql text",
    ),
    (
        "pg_ts_config_map",
        "mapcfg int, maptokentype int, mapseqno int, mapdict int",
    ),
    (
        "pg_user",
        "usename text, usesysid int, usecreatedb boolean, usesuper boolean, userepl boolean, usebypassrls boolean, passwd text, valuntil timestamp, useconfig text",
    ),
    (
        "pg_shadow",
        "usename text, usesysid int, usecreatedb boolean, usesuper boolean, userepl boolean, usebypassrls boolean, passwd text, valuntil timestamp, useconfig text",
    ),
    (
        "pg_roles",
        "rolname text, rolsuper boolean, rolinherit boolean, rolcreaterole boolean, rolcreatedb boolean, rolcanlogin boolean, rolreplication boolean, rolconnlimit int, rolpassword text, rolvaliduntil timestamp, rolbypassrls boolean, rolconfig text, oid int",
    ),
    (
        "pg_user_mappings",
        "umid int, srvid int, srvname text, umuser int, usename text, umoptions text",
    ),
];

/// Columns that tables of the crate lack, NULL in every row.
const COLUMNS: &[(&str, &str)] = &[
    ("pg_class", "relacl text, reloptions text"),
    ("pg_collation", "colliculocale text"),
    (
        "pg_database",
        "daticulocale text, daticurules text, datcollversion text, datacl text",
    ),
];

fn fields(columns: &str) -> impl Iterator<Item = Field> + '_ {
    columns.split(", ").filter_map(|column| {
        let (name, of) = column.split_once(' ')?;
        let of = match of {
            "bigint" => DataType::Int64,
            "boolean" => DataType::Boolean,
            "double precision" => DataType::Float64,
            "int" => DataType::Int32,
            "real" => DataType::Float32,
            "smallint" => DataType::Int16,
            "timestamp" => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            _ => DataType::Utf8,
        };
        Some(Field::new(name, of, true))
    })
}

/// The names of the tables that are added.
pub fn table_names() -> impl Iterator<Item = &'static str> {
    TABLES.iter().map(|(name, _)| *name)
}

/// Whether a table is in `pg_catalog` although the crate does not know it.
#[must_use]
pub fn adds(name: &str) -> bool {
    name == INDEXES || table_names().any(|added| added == name)
}

/// A table that is added, if it is one.
///
/// # Errors
/// None that can be: the columns are known.
pub fn table(name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
    let Some((_, columns)) = TABLES.iter().find(|(table, _)| *table == name) else {
        return Ok(None);
    };
    let schema: SchemaRef = Arc::new(Schema::new(fields(columns).collect::<Vec<_>>()));
    let rows = match name {
        "pg_roles" | "pg_user" | "pg_shadow" => owner(&schema)?,
        _ => RecordBatch::new_empty(Arc::clone(&schema)),
    };
    Ok(Some(Arc::new(MemTable::try_new(schema, vec![vec![rows]])?)))
}

/// The only role: whoever is let in may do everything, under whatever name.
fn owner(schema: &SchemaRef) -> Result<RecordBatch> {
    let values = schema.fields().iter().map(|field| {
        let value = match field.name().as_str() {
            "rolname" | "usename" => ScalarValue::from("postgres"),
            "oid" | "usesysid" => ScalarValue::from(OWNER),
            "rolconnlimit" => ScalarValue::from(-1_i32),
            "rolreplication" | "userepl" => ScalarValue::from(false),
            _ if field.data_type() == &DataType::Boolean => ScalarValue::from(true),
            _ => ScalarValue::try_from(field.data_type())?,
        };
        value.to_array()
    });
    let values = values.collect::<Result<Vec<_>>>()?;
    Ok(RecordBatch::try_new(Arc::clone(schema), values)?)
}

/// A table of the crate with the columns that it lacks.
///
/// # Errors
/// None that can be: the columns are known.
pub fn completed(name: &str, table: Arc<dyn TableProvider>) -> Result<Arc<dyn TableProvider>> {
    let schema = table.schema();
    let lacking = COLUMNS.iter().filter(|(of, _)| *of == name);
    let added: Vec<Expr> = lacking
        .flat_map(|(_, columns)| fields(columns))
        .filter(|field| schema.column_with_name(field.name()).is_none())
        .map(|field| cast(lit(ScalarValue::Null), field.data_type().clone()).alias(field.name()))
        .collect();
    let plpgsql = (name == "pg_language").then_some("plpgsql");
    if added.is_empty() && plpgsql.is_none() {
        return Ok(table);
    }
    let present = schema
        .fields()
        .iter()
        .map(|field| Expr::Column(Column::new(Some(name), field.name())));
    let mut plan = LogicalPlanBuilder::scan(name, provider_as_source(table), None)?;
    if let Some(language) = plpgsql {
        // Nobody could write a function in it.
        plan =
            plan.filter(Expr::Column(Column::new(Some(name), "lanname")).not_eq(lit(language)))?;
    }
    let plan = plan
        .project(present.chain(added).collect::<Vec<_>>())?
        .build()?;
    Ok(Arc::new(ViewTable::new(plan, None)))
}
