//! What the `datafusion-pg-catalog` crate leaves out of `pg_catalog`: primary keys and defaults.
//!
//! The crate lists tables and columns. Here its schema is wrapped: `pg_class` gets an index for
//! each primary key, `pg_attribute` the index's columns, which columns have defaults and the type
//! modifiers; `pg_index`, `pg_constraint` and `pg_attrdef` are made from the tables' schemas. The
//! oid of an index is its table's with one bit set, that of the constraint has another, so neither
//! has to be remembered and both stay as long as the table's does.
//!
//! `pg_get_indexdef` and `pg_get_constraintdef` are given nothing but an oid. Oids come from these
//! tables only, so what is listed is remembered by oid ([`Known`]) for the functions to look up.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int16Type, Int32Type};
use arrow_array::{
    Array, ArrayRef, BooleanArray, Int16Array, Int32Array, RecordBatch, UInt64Array,
};
use arrow_schema::{ArrowError, DataType, Field, SchemaRef};
use async_trait::async_trait;
use datafusion::arrow::compute::{concat_batches, take_record_batch};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::catalog::{MemTable, SchemaProvider, TableProvider};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::scalar::ScalarValue;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::{
    ArrowTable, PgCatalogSchemaProvider, PgCatalogTable,
};
use futures::TryStreamExt;
use parking_lot::Mutex;
use shoal_query::QueryEngine;
use shoal_types::{Column, ColumnDefault, ColumnType, TableMode, TableSchema, TimePrecision};

use super::catalog::Tables;
use super::completion::INDEXES;
use super::functions::quoted;
use super::{arrays, completion, reg};

/// Set in the oid of a table's primary key index. The crate counts tables' oids up from 16,384.
const INDEX: i32 = 1 << 29;
/// Set in the oid of a table's primary key constraint.
const CONSTRAINT: i32 = 1 << 28;
/// `pg_am.oid` of `heap` and `btree`.
const HEAP: i32 = 2;
const BTREE: i32 = 403;
/// `pg_authid.oid` of the only owner.
const OWNER: i32 = 10;

/// `pg_namespace.oid` of `pg_catalog`.
const CATALOG_SCHEMA: i32 = 11;

type Crate = PgCatalogSchemaProvider<Tables, EmptyContextProvider>;

/// The tables that were listed, by oid: schema and name.
#[derive(Debug)]
pub struct Known {
    engine: Arc<QueryEngine>,
    names: Mutex<HashMap<i32, (String, String)>>,
    schemas: Mutex<HashMap<i32, String>>,
}

impl Known {
    /// Nothing was listed yet.
    pub fn new(engine: &Arc<QueryEngine>) -> Arc<Self> {
        Arc::new(Self {
            engine: Arc::clone(engine),
            names: Mutex::default(),
            schemas: Mutex::default(),
        })
    }

    /// A table or index as PostgreSQL prints it; without its schema if that is `public`.
    pub fn class_name(&self, oid: i32) -> Option<String> {
        let of = self.names.lock().get(&(oid & !INDEX)).cloned();
        let (schema, mut name) = of?;
        if oid & INDEX != 0 {
            name.push_str("_pkey");
        }
        let name = quoted(&name);
        Some(match schema.as_str() {
            "public" => name,
            schema => format!("{}.{name}", quoted(schema)),
        })
    }

    /// A schema as PostgreSQL prints it.
    pub fn schema_name(&self, oid: i32) -> Option<String> {
        self.schemas.lock().get(&oid).map(|name| quoted(name))
    }

    fn table(&self, oid: i32) -> Option<Table> {
        let (schema_name, name) = self.names.lock().get(&oid).cloned()?;
        self.find(oid, schema_name, name)
    }

    fn find(&self, oid: i32, schema_name: String, name: String) -> Option<Table> {
        let database = self.engine.database();
        let handle = database.table(&schema_name, &name)?;
        let schema = database.table_schema(&handle).ok()?;
        Some(Table {
            oid,
            schema_name,
            name,
            schema,
        })
    }

    /// The text of `pg_get_indexdef`; `column`, from 1: of that column alone.
    pub fn index_definition(&self, oid: i32, column: i32) -> Option<String> {
        let table = self.table(oid & !INDEX).filter(|_| oid & INDEX != 0)?;
        if column > 0 {
            let place = usize::try_from(column - 1).ok()?;
            return table.key().nth(place).map(|(_, c)| quoted(&c.name));
        }
        Some(table.index_definition())
    }

    /// A column's default as it was written; `column` from 1.
    pub fn column_default(&self, oid: i32, column: i32) -> Option<String> {
        let table = self.table(oid)?;
        let place = usize::try_from(column - 1).ok()?;
        let ColumnDefault::Sql(sql) = table.schema.columns.get(place)?.default.as_ref()?;
        Some(sql.clone())
    }

    /// The text of `pg_get_constraintdef`.
    pub fn constraint_definition(&self, oid: i32) -> Option<String> {
        let table = self
            .table(oid & !CONSTRAINT)
            .filter(|_| oid & CONSTRAINT != 0)?;
        Some(format!("PRIMARY KEY ({})", table.key_list()))
    }
}

/// A user's table with its oid.
struct Table {
    oid: i32,
    schema_name: String,
    name: String,
    schema: Arc<TableSchema>,
}

impl Table {
    fn index_name(&self) -> String {
        format!("{}_pkey", self.name)
    }

    fn index_definition(&self) -> String {
        let unique = match self.schema.mode {
            TableMode::Upsert => "UNIQUE ",
            TableMode::Append => "",
        };
        format!(
            "CREATE {unique}INDEX {} ON {}.{} USING btree ({})",
            quoted(&self.index_name()),
            quoted(&self.schema_name),
            quoted(&self.name),
            self.key_list()
        )
    }

    /// The key's columns with their numbers, from 1, in the table.
    fn key(&self) -> impl Iterator<Item = (usize, &Column)> {
        self.schema.key.iter().filter_map(|id| {
            let at = self.schema.position_of(*id)?;
            Some((at + 1, &self.schema.columns[at]))
        })
    }

    fn key_list(&self) -> String {
        let names: Vec<String> = self.key().map(|(_, c)| quoted(&c.name)).collect();
        names.join(", ")
    }

    fn key_numbers(&self, separator: &str) -> String {
        let numbers: Vec<String> = self.key().map(|(at, _)| at.to_string()).collect();
        numbers.join(separator)
    }

    /// One text for each column of the key, as the vectors of `pg_index` hold it.
    fn key_times(&self, text: &str) -> String {
        vec![text; self.schema.key.len()].join(" ")
    }
}

/// `pg_catalog`: the crate's, with keys and defaults.
#[derive(Debug)]
pub struct Schema {
    inner: Arc<Crate>,
    known: Arc<Known>,
    /// Tables of the crate that never change, made when they are asked for first.
    printed: Mutex<HashMap<String, Arc<MemTable>>>,
}

impl Schema {
    /// Wraps the crate's schema.
    pub fn new(inner: Crate, known: Arc<Known>) -> Self {
        Self {
            inner: Arc::new(inner),
            known,
            printed: Mutex::default(),
        }
    }

    fn printed(&self, name: &str, table: &ArrowTable) -> Result<Arc<dyn TableProvider>> {
        let mut made = self.printed.lock();
        if let Some(table) = made.get(name) {
            return Ok(Arc::clone(table) as _);
        }
        let batches = table.data().iter().map(arrays::as_printed);
        let batches = batches.collect::<Result<Vec<_>>>()?;
        let schema = batches.first().map_or(table.schema(), RecordBatch::schema);
        let table = Arc::new(MemTable::try_new(schema, vec![batches])?);
        made.insert(name.to_owned(), Arc::clone(&table));
        Ok(table)
    }
}

#[async_trait]
impl SchemaProvider for Schema {
    fn table_names(&self) -> Vec<String> {
        let mut names = self.inner.table_names();
        names.push(INDEXES.to_owned());
        let added = completion::table_names().map(str::to_owned);
        names.extend(added.filter(|name| !self.inner.table_exist(name)));
        names
    }

    fn table_exist(&self, name: &str) -> bool {
        completion::adds(name) || self.inner.table_exist(name)
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        if let Some(added) = completion::table(name)? {
            return Ok(Some(added));
        }
        let which = match name {
            "pg_class" => Which::Class,
            "pg_attribute" => Which::Attribute,
            "pg_index" => Which::Index,
            "pg_constraint" => Which::Constraint,
            "pg_attrdef" => Which::Default,
            INDEXES => Which::Indexes,
            _ => {
                let table = match self.inner.build_table_by_name(name)? {
                    Some(PgCatalogTable::Static(table)) => self.printed(name, &table)?,
                    Some(other) => other.try_into_table_provider()?,
                    None => return Ok(None),
                };
                return completion::completed(name, table).map(Some);
            }
        };
        let schema = match self.inner.build_table_by_name(name)? {
            Some(table) => table.schema(),
            None => indexes_schema(),
        };
        let table = Arc::new(Filled {
            which,
            schema: Arc::clone(&schema),
            inner: Arc::clone(&self.inner),
            known: Arc::clone(&self.known),
        });
        let table = Arc::new(StreamingTable::try_new(schema, vec![table])?);
        completion::completed(name, table).map(Some)
    }
}

#[derive(Clone, Copy, Debug)]
enum Which {
    Class,
    Attribute,
    Index,
    Constraint,
    Default,
    /// The view of this name, which the crate does not have.
    Indexes,
}

fn indexes_schema() -> SchemaRef {
    let names = [
        "schemaname",
        "tablename",
        "indexname",
        "tablespace",
        "indexdef",
    ];
    let fields = names.map(|name| Field::new(name, DataType::Utf8, true));
    Arc::new(arrow_schema::Schema::new(fields.to_vec()))
}

/// One of the tables that are filled here, made when a query reads it.
#[derive(Clone, Debug)]
struct Filled {
    which: Which,
    schema: SchemaRef,
    inner: Arc<Crate>,
    known: Arc<Known>,
}

impl PartitionStream for Filled {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let this = self.clone();
        Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&self.schema),
            futures::stream::once(async move { this.batch(&context).await }),
        ))
    }
}

impl Filled {
    async fn batch(&self, context: &Arc<TaskContext>) -> Result<RecordBatch> {
        let classes = self.base("pg_class", context).await?;
        let tables = self.tables(&classes, context).await?;
        let rows = |rows: Vec<Row>| rows_of(&self.schema, &rows);
        let keyed = || tables.iter().filter(|t| !t.schema.key.is_empty());
        match self.which {
            Which::Class => self.classes(&classes, &tables),
            Which::Attribute => {
                let base = self.base("pg_attribute", context).await?;
                self.attributes(&base, &tables)
            }
            Which::Index => rows(keyed().map(index_row).collect()),
            Which::Constraint => {
                let namespaces = namespaces_of(&classes)?;
                let row = |t: &Table| constraint_row(t, namespaces.get(&t.oid).copied());
                rows(keyed().map(row).collect())
            }
            Which::Default => rows(tables.iter().flat_map(default_rows).collect()),
            Which::Indexes => rows(keyed().map(view_row).collect()),
        }
    }

    /// A table of the crate.
    async fn base(&self, name: &str, context: &Arc<TaskContext>) -> Result<RecordBatch> {
        match self.inner.build_table_by_name(name)? {
            Some(PgCatalogTable::Dynamic(table)) => {
                let batches: Vec<_> = table.execute(Arc::clone(context)).try_collect().await?;
                let batch = concat_batches(table.schema(), &batches)?;
                match name {
                    "pg_class" => with_fixed_oids(&batch),
                    _ => Ok(batch),
                }
            }
            _ => Err(DataFusionError::Internal(format!(
                "{name} is not made from the catalog"
            ))),
        }
    }

    /// The users' tables among `pg_class`; remembers them by oid.
    async fn tables(
        &self,
        classes: &RecordBatch,
        context: &Arc<TaskContext>,
    ) -> Result<Vec<Table>> {
        let schemas = self.base("pg_namespace", context).await?;
        let schema_names: HashMap<i32, &str> = integers(&schemas, "oid")?
            .values()
            .iter()
            .copied()
            .zip(texts(&schemas, "nspname")?)
            .collect();
        *self.known.schemas.lock() = schema_names
            .iter()
            .map(|(oid, name)| (*oid, (*name).to_owned()))
            .collect();
        let oids = integers(classes, "oid")?.values();
        let namespaces = integers(classes, "relnamespace")?.values();
        let mut tables = Vec::new();
        for ((oid, namespace), name) in oids.iter().zip(namespaces).zip(texts(classes, "relname")?)
        {
            let Some(schema_name) = schema_names.get(namespace) else {
                continue;
            };
            tables.extend(
                self.known
                    .find(*oid, (*schema_name).to_owned(), name.to_owned()),
            );
        }
        *self.known.names.lock() = tables
            .iter()
            .map(|t| (t.oid, (t.schema_name.clone(), t.name.clone())))
            .collect();
        Ok(tables)
    }

    /// `pg_class` with the indexes.
    fn classes(&self, base: &RecordBatch, tables: &[Table]) -> Result<RecordBatch> {
        let by_oid: HashMap<i32, &Table> = tables.iter().map(|t| (t.oid, t)).collect();
        let namespaces = namespaces_of(base)?;
        let oids = integers(base, "oid")?.values();
        let has_key = |oid: &i32| by_oid.get(oid).map(|t| !t.schema.key.is_empty());
        let indexed: BooleanArray = oids
            .iter()
            .map(|o| Some(has_key(o) == Some(true)))
            .collect();
        let methods: Int32Array = oids
            .iter()
            .map(|o| if has_key(o).is_some() { HEAP } else { 0 })
            .collect();
        let owners = Int32Array::from(vec![OWNER; oids.len()]);
        let base = with_column(base, "relhasindex", Arc::new(indexed))?;
        let base = with_column(&base, "relam", Arc::new(methods))?;
        let base = with_column(&base, "relowner", Arc::new(owners))?;
        let rows: Vec<Row> = tables
            .iter()
            .filter(|t| !t.schema.key.is_empty())
            .map(|t| {
                Row::from([
                    ("oid", integer(t.oid | INDEX)),
                    ("relname", text(&t.index_name())),
                    (
                        "relnamespace",
                        integer(namespaces.get(&t.oid).copied().unwrap_or(0)),
                    ),
                    ("relowner", integer(OWNER)),
                    ("relam", integer(BTREE)),
                    ("relfilenode", integer(t.oid | INDEX)),
                    ("relpages", integer(1)),
                    ("relpersistence", text("p")),
                    ("relkind", text("i")),
                    ("relnatts", small(t.schema.key.len())),
                    ("relispopulated", yes()),
                    ("relreplident", text("n")),
                ])
            })
            .collect();
        let indexes = rows_of(&self.schema, &rows)?;
        Ok(concat_batches(&self.schema, &[base, indexes])?)
    }

    /// `pg_attribute` with defaults, modifiers and the indexes' columns.
    fn attributes(&self, base: &RecordBatch, tables: &[Table]) -> Result<RecordBatch> {
        let by_oid: HashMap<i32, &Table> = tables.iter().map(|t| (t.oid, t)).collect();
        let relations = integers(base, "attrelid")?.values();
        let numbers = column(base, "attnum")?.as_primitive::<Int16Type>().values();
        let mut places = HashMap::new();
        let mut defaults = Vec::with_capacity(base.num_rows());
        let mut modifiers = Vec::with_capacity(base.num_rows());
        for (at, (oid, number)) in relations.iter().zip(numbers).enumerate() {
            let column = by_oid.get(oid).and_then(|table| {
                let place = usize::try_from(number - 1).ok()?;
                table.schema.columns.get(place)
            });
            defaults.push(column.is_some_and(|c| c.default.is_some()));
            modifiers.push(column.map_or(-1, |c| modifier(c.column_type)));
            places.insert((*oid, *number), at as u64);
        }
        let base = with_column(base, "atthasdef", Arc::new(BooleanArray::from(defaults)))?;
        let base = with_column(&base, "atttypmod", Arc::new(Int32Array::from(modifiers)))?;
        let (mut rows, mut owners, mut order) = (Vec::new(), Vec::new(), Vec::new());
        for table in tables {
            for (i, (number, _)) in table.key().enumerate() {
                let number = i16::try_from(number).unwrap_or(i16::MAX);
                if let Some(place) = places.get(&(table.oid, number)) {
                    rows.push(*place);
                    owners.push(table.oid | INDEX);
                    order.push(i16::try_from(i + 1).unwrap_or(i16::MAX));
                }
            }
        }
        let none: ArrayRef = Arc::new(BooleanArray::from(vec![false; rows.len()]));
        let keys = take_record_batch(&base, &UInt64Array::from(rows))?;
        let keys = with_column(&keys, "attrelid", Arc::new(Int32Array::from(owners)))?;
        let keys = with_column(&keys, "attnum", Arc::new(Int16Array::from(order)))?;
        let keys = with_column(&keys, "attnotnull", Arc::clone(&none))?;
        let keys = with_column(&keys, "atthasdef", none)?;
        Ok(concat_batches(&self.schema, &[base, keys])?)
    }
}

fn index_row(table: &Table) -> Row {
    let columns = small(table.schema.key.len());
    Row::from([
        ("indexrelid", integer(table.oid | INDEX)),
        ("indrelid", integer(table.oid)),
        ("indnatts", columns.clone()),
        ("indnkeyatts", columns),
        (
            "indisunique",
            ScalarValue::from(table.schema.mode == TableMode::Upsert),
        ),
        ("indisprimary", yes()),
        ("indimmediate", yes()),
        ("indisvalid", yes()),
        ("indisready", yes()),
        ("indislive", yes()),
        ("indkey", text(&table.key_numbers(" "))),
        ("indcollation", text(&table.key_times("0"))),
        ("indclass", text(&table.key_times("0"))),
        ("indoption", text(&table.key_times("0"))),
    ])
}

fn view_row(table: &Table) -> Row {
    Row::from([
        ("schemaname", text(&table.schema_name)),
        ("tablename", text(&table.name)),
        ("indexname", text(&table.index_name())),
        ("indexdef", text(&table.index_definition())),
    ])
}

fn constraint_row(table: &Table, namespace: Option<i32>) -> Row {
    Row::from([
        ("oid", integer(table.oid | CONSTRAINT)),
        ("conname", text(&table.index_name())),
        ("connamespace", integer(namespace.unwrap_or(0))),
        ("contype", text("p")),
        ("convalidated", yes()),
        ("conrelid", integer(table.oid)),
        ("conindid", integer(table.oid | INDEX)),
        ("confupdtype", text(" ")),
        ("confdeltype", text(" ")),
        ("confmatchtype", text(" ")),
        ("conislocal", yes()),
        ("connoinherit", yes()),
        ("conkey", text(&format!("{{{}}}", table.key_numbers(",")))),
    ])
}

fn default_rows(table: &Table) -> Vec<Row> {
    let columns = table.schema.columns.iter().enumerate();
    columns
        .filter_map(|(at, column)| {
            let ColumnDefault::Sql(sql) = column.default.as_ref()?;
            Some(Row::from([
                // Told apart by table and column; nothing refers to it.
                ("oid", integer(table.oid)),
                ("adrelid", integer(table.oid)),
                ("adnum", small(at + 1)),
                ("adbin", text(sql)),
            ]))
        })
        .collect()
}

/// `pg_attribute.atttypmod`.
fn modifier(column_type: ColumnType) -> i32 {
    match column_type {
        ColumnType::Decimal { precision, scale } => {
            ((i32::from(precision) << 16) | i32::from(scale)) + 4
        }
        // Six digits are what a bare TIMESTAMP means.
        ColumnType::Timestamp { precision, .. } if precision != TimePrecision::Microsecond => {
            i32::from(precision.digits())
        }
        _ => -1,
    }
}

/// The values of a row that are something; the rest is 0, false, empty or NULL.
type Row = HashMap<&'static str, ScalarValue>;

fn rows_of(schema: &SchemaRef, rows: &[Row]) -> Result<RecordBatch> {
    let columns = schema
        .fields()
        .iter()
        .map(|field| {
            let nothing = match field.data_type() {
                _ if field.is_nullable() => ScalarValue::try_from(field.data_type())?,
                DataType::Utf8 => text(""),
                DataType::Boolean => ScalarValue::from(false),
                other => ScalarValue::new_zero(other)?,
            };
            if rows.is_empty() {
                return Ok(arrow_array::new_empty_array(field.data_type()));
            }
            let value = |row: &Row| row.get(field.name().as_str()).unwrap_or(&nothing).clone();
            ScalarValue::iter_to_array(rows.iter().map(value))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

fn text(value: &str) -> ScalarValue {
    ScalarValue::Utf8(Some(value.to_owned()))
}

fn integer(value: i32) -> ScalarValue {
    ScalarValue::Int32(Some(value))
}

fn small(value: usize) -> ScalarValue {
    ScalarValue::Int16(Some(i16::try_from(value).unwrap_or(i16::MAX)))
}

fn yes() -> ScalarValue {
    ScalarValue::Boolean(Some(true))
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch
        .column_by_name(name)
        .ok_or_else(|| DataFusionError::Internal(format!("pg_catalog has no column {name}")))
}

fn integers<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a Int32Array> {
    Ok(column(batch, name)?.as_primitive::<Int32Type>())
}

fn texts<'a>(batch: &'a RecordBatch, name: &str) -> Result<impl Iterator<Item = &'a str>> {
    let array = column(batch, name)?.as_string::<i32>();
    Ok((0..array.len()).map(|row| array.value(row)))
}

fn namespaces_of(classes: &RecordBatch) -> Result<HashMap<i32, i32>> {
    let oids = integers(classes, "oid")?.values();
    let namespaces = integers(classes, "relnamespace")?.values();
    Ok(oids
        .iter()
        .copied()
        .zip(namespaces.iter().copied())
        .collect())
}

/// `pg_class` with PostgreSQL's own oids for its catalogs: descriptions and dependencies name them.
fn with_fixed_oids(classes: &RecordBatch) -> Result<RecordBatch> {
    let oids = integers(classes, "oid")?.values();
    let namespaces = integers(classes, "relnamespace")?.values();
    let fixed: Int32Array = texts(classes, "relname")?
        .zip(oids.iter().zip(namespaces))
        .map(|(name, (oid, namespace))| match *namespace {
            CATALOG_SCHEMA => reg::catalog_oid(name).unwrap_or(*oid),
            _ => *oid,
        })
        .map(Some)
        .collect();
    with_column(classes, "oid", Arc::new(fixed))
}

fn with_column(batch: &RecordBatch, name: &str, array: ArrayRef) -> Result<RecordBatch> {
    let at = batch.schema_ref().index_of(name)?;
    let mut columns = batch.columns().to_vec();
    columns[at] = array;
    let made: Result<RecordBatch, ArrowError> = RecordBatch::try_new(batch.schema(), columns);
    Ok(made?)
}
