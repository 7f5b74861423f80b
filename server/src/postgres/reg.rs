//! Objects of PostgreSQL's own catalogs by their oids: names, descriptions, what functions take
//! and give. All of it comes from the tables that `datafusion-pg-catalog` carries; tables of users
//! are known by what was listed ([`Known`]).

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

use arrow_array::cast::AsArray;
use arrow_array::types::{Int16Type, Int32Type, Int64Type};
use arrow_array::{Array, ArrayRef, Int32Array, RecordBatch, StringArray};
use arrow_schema::DataType;
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::{ArrowTable, PgCatalogStaticTables};

use super::arrays;
use super::functions::quoted;
use super::indexes::Known;

/// Types whose values are oids and whose text is a name.
pub const KINDS: &[&str] = &[
    "regclass",
    "regcollation",
    "regconfig",
    "regdictionary",
    "regnamespace",
    "regoper",
    "regoperator",
    "regproc",
    "regprocedure",
    "regrole",
    "regtype",
];

/// Columns that hold functions by name.
const PROCS: &[&str] = &[
    "aggcombinefn",
    "aggdeserialfn",
    "aggfinalfn",
    "aggfnoid",
    "aggmfinalfn",
    "aggminvtransfn",
    "aggmtransfn",
    "aggserialfn",
    "aggtransfn",
    "amhandler",
    "amproc",
    "conproc",
    "oprcode",
    "oprjoin",
    "oprrest",
    "prosupport",
    "prsend",
    "prsheadline",
    "prslextype",
    "prsstart",
    "prstoken",
    "rngcanonical",
    "rngsubdiff",
    "tmplinit",
    "tmpllexize",
    "typanalyze",
    "typinput",
    "typmodin",
    "typmodout",
    "typoutput",
    "typreceive",
    "typsend",
    "typsubscript",
];

/// Whether a column of a catalog holds functions, which the crate keeps by their names.
#[must_use]
pub fn holds_procs(column: &str) -> bool {
    PROCS.contains(&column)
}

/// The catalogs' own oids, the same in every PostgreSQL.
const CATALOGS: &[(&str, i32)] = &[
    ("pg_aggregate", 2600),
    ("pg_am", 2601),
    ("pg_amop", 2602),
    ("pg_amproc", 2603),
    ("pg_attrdef", 2604),
    ("pg_attribute", 1249),
    ("pg_auth_members", 1261),
    ("pg_authid", 1260),
    ("pg_cast", 2605),
    ("pg_class", 1259),
    ("pg_collation", 3456),
    ("pg_constraint", 2606),
    ("pg_conversion", 2607),
    ("pg_database", 1262),
    ("pg_db_role_setting", 2964),
    ("pg_default_acl", 826),
    ("pg_depend", 2608),
    ("pg_description", 2609),
    ("pg_enum", 3501),
    ("pg_event_trigger", 3466),
    ("pg_extension", 3079),
    ("pg_foreign_data_wrapper", 2328),
    ("pg_foreign_server", 1417),
    ("pg_foreign_table", 3118),
    ("pg_index", 2610),
    ("pg_inherits", 2611),
    ("pg_init_privs", 3394),
    ("pg_language", 2612),
    ("pg_largeobject", 2613),
    ("pg_largeobject_metadata", 2995),
    ("pg_namespace", 2615),
    ("pg_opclass", 2616),
    ("pg_operator", 2617),
    ("pg_opfamily", 2753),
    ("pg_parameter_acl", 6243),
    ("pg_partitioned_table", 3350),
    ("pg_policy", 3256),
    ("pg_proc", 1255),
    ("pg_publication", 6104),
    ("pg_publication_namespace", 6237),
    ("pg_publication_rel", 6106),
    ("pg_range", 3541),
    ("pg_replication_origin", 6000),
    ("pg_rewrite", 2618),
    ("pg_seclabel", 3596),
    ("pg_sequence", 2224),
    ("pg_shdepend", 1214),
    ("pg_shdescription", 2396),
    ("pg_shseclabel", 3592),
    ("pg_statistic", 2619),
    ("pg_statistic_ext", 3381),
    ("pg_statistic_ext_data", 3429),
    ("pg_subscription", 6100),
    ("pg_subscription_rel", 6102),
    ("pg_tablespace", 1213),
    ("pg_transform", 3576),
    ("pg_trigger", 2620),
    ("pg_ts_config", 3602),
    ("pg_ts_config_map", 3603),
    ("pg_ts_dict", 3600),
    ("pg_ts_parser", 3601),
    ("pg_ts_template", 3764),
    ("pg_type", 1247),
    ("pg_user_mapping", 1418),
];

/// The oid of a catalog.
#[must_use]
pub fn catalog_oid(name: &str) -> Option<i32> {
    let found = CATALOGS.iter().find(|(catalog, _)| *catalog == name);
    found.map(|(_, oid)| *oid)
}

/// What is known of the objects of PostgreSQL.
#[derive(Debug)]
pub struct Objects {
    statics: Arc<PgCatalogStaticTables>,
    known: Arc<Known>,
    read: OnceLock<Read>,
}

/// The tables, by oid.
#[derive(Debug, Default)]
struct Read {
    /// By the kind of name, for the kinds that have one name each.
    names: HashMap<&'static str, HashMap<i32, String>>,
    types: HashMap<i32, String>,
    procs: HashMap<i32, Proc>,
    proc_oids: HashMap<String, i32>,
    /// By object and catalog.
    descriptions: HashMap<(i32, i32), String>,
}

#[derive(Debug)]
struct Proc {
    name: String,
    arguments: Vec<i32>,
    /// Of all parameters, those that are given back too; empty: the arguments are all.
    all: Vec<i32>,
    modes: Vec<String>,
    names: Vec<String>,
    defaults: usize,
    result: i32,
    gives_set: bool,
    is_procedure: bool,
}

impl Objects {
    /// Reads nothing until it is asked.
    pub fn new(statics: Arc<PgCatalogStaticTables>, known: Arc<Known>) -> Arc<Self> {
        Arc::new(Self {
            statics,
            known,
            read: OnceLock::new(),
        })
    }

    fn read(&self) -> &Read {
        self.read.get_or_init(|| Read::new(&self.statics))
    }

    /// The name of an object as PostgreSQL prints it; `-` for none, a number for one not known.
    fn name(&self, kind: &str, oid: i32) -> String {
        if oid == 0 {
            return "-".to_owned();
        }
        let read = self.read();
        let found = match kind {
            "regclass" => self.known.class_name(oid).or_else(|| {
                let catalog = CATALOGS.iter().find(|(_, known)| *known == oid);
                catalog.map(|(name, _)| (*name).to_owned())
            }),
            "regnamespace" => self.known.schema_name(oid),
            "regtype" => read.types.get(&oid).cloned(),
            "regproc" => read.procs.get(&oid).map(|proc| proc.name.clone()),
            "regprocedure" => read.procs.get(&oid).map(|proc| {
                let types = read.type_names(&proc.arguments);
                format!("{}({})", proc.name, types.join(","))
            }),
            other => read.names.get(other).and_then(|n| n.get(&oid).cloned()),
        };
        found.unwrap_or_else(|| oid.to_string())
    }

    fn describe(&self, class: i32, object: i32) -> Option<String> {
        let read = self.read();
        let (what, name) = match CATALOGS.iter().find(|(_, oid)| *oid == class)?.0 {
            "pg_class" => ("table", self.name("regclass", object)),
            "pg_proc" => ("function", self.name("regprocedure", object)),
            "pg_type" => ("type", self.name("regtype", object)),
            "pg_namespace" => ("schema", self.name("regnamespace", object)),
            "pg_operator" => ("operator", self.name("regoper", object)),
            "pg_collation" => ("collation", self.name("regcollation", object)),
            "pg_authid" => ("role", self.name("regrole", object)),
            "pg_language" => ("language", read.names["language"].get(&object)?.clone()),
            catalog => (catalog.trim_start_matches("pg_"), object.to_string()),
        };
        Some(format!("{what} {name}"))
    }
}

impl Read {
    fn new(tables: &PgCatalogStaticTables) -> Self {
        let mut read = Self::default();
        for (kind, table, column) in [
            ("regcollation", &tables.pg_collation, "collname"),
            ("regconfig", &tables.pg_ts_config, "cfgname"),
            ("regdictionary", &tables.pg_ts_dict, "dictname"),
            ("regoper", &tables.pg_operator, "oprname"),
            ("regoperator", &tables.pg_operator, "oprname"),
            ("regrole", &tables.pg_authid, "rolname"),
            ("language", &tables.pg_language, "lanname"),
        ] {
            let names = rows(table).map(|row| (row.number("oid"), row.text(column)));
            read.names.insert(kind, names.collect());
        }
        read.types = rows(&tables.pg_type)
            .map(|row| (row.number("oid"), type_name(&row.text("typname"))))
            .collect();
        for row in rows(&tables.pg_proc) {
            let (oid, name) = (row.number("oid"), row.text("proname"));
            read.proc_oids.entry(name.clone()).or_insert(oid);
            let numbers = |column: &str| arrays::numbers(&row.text(column));
            let texts = |column: &str| {
                let items = arrays::items(&row.text(column));
                items.into_iter().map(Option::unwrap_or_default).collect()
            };
            let proc = Proc {
                name,
                arguments: numbers("proargtypes"),
                all: numbers("proallargtypes"),
                modes: texts("proargmodes"),
                names: texts("proargnames"),
                defaults: usize::try_from(row.number("pronargdefaults")).unwrap_or(0),
                result: row.number("prorettype"),
                gives_set: row.flag("proretset"),
                is_procedure: row.text("prokind") == "p",
            };
            read.procs.insert(oid, proc);
        }
        for row in rows(&tables.pg_description).chain(rows(&tables.pg_shdescription)) {
            if row.number("objsubid") == 0 {
                let key = (row.number("objoid"), row.number("classoid"));
                read.descriptions.insert(key, row.text("description"));
            }
        }
        read
    }

    fn type_names(&self, oids: &[i32]) -> Vec<String> {
        let name = |oid: &i32| self.types.get(oid).cloned();
        oids.iter()
            .map(|oid| name(oid).unwrap_or_else(|| oid.to_string()))
            .collect()
    }

    /// `format_type`
    fn type_with(&self, of: i32, modifier: i32) -> String {
        let Some(name) = self.types.get(&of) else {
            return match of {
                0 => "-".to_owned(),
                _ => "???".to_owned(),
            };
        };
        if modifier < 0 {
            return name.clone();
        }
        match name.trim_end_matches("[]") {
            "character" | "character varying" if modifier > 4 => {
                format!("{name}({})", modifier - 4)
            }
            "numeric" if modifier > 4 => {
                let modifier = modifier - 4;
                format!("{name}({},{})", modifier >> 16, modifier & 0x7ff)
            }
            "bit" | "bit varying" => format!("{name}({modifier})"),
            base => match base.split_once(' ') {
                Some((word @ ("timestamp" | "time"), zone)) => format!("{word}({modifier}) {zone}"),
                _ => name.clone(),
            },
        }
    }

    /// `pg_get_function_result`; `None`: a procedure.
    fn result(&self, oid: i32) -> Option<String> {
        let proc = self.procs.get(&oid).filter(|proc| !proc.is_procedure)?;
        let columns: Vec<String> = proc
            .parameters(self)
            .filter(|(mode, ..)| *mode == "t")
            .map(|(_, name, of)| format!("{}{of}", spaced(name)))
            .collect();
        if !columns.is_empty() {
            return Some(format!("TABLE({})", columns.join(", ")));
        }
        let set = if proc.gives_set { "SETOF " } else { "" };
        Some(format!("{set}{}", self.type_names(&[proc.result])[0]))
    }

    /// `pg_get_function_arguments`
    fn arguments(&self, oid: i32, with_defaults: bool) -> Option<String> {
        let proc = self.procs.get(&oid)?;
        let given = proc
            .parameters(self)
            .filter(|(mode, ..)| matches!(*mode, "i" | "b" | "v"))
            .count();
        let mut at = 0;
        let texts: Vec<String> = proc
            .parameters(self)
            .filter(|(mode, ..)| *mode != "t" && (with_defaults || *mode != "o"))
            .map(|(mode, name, of)| {
                let word = match mode {
                    "o" => "OUT ",
                    "b" => "INOUT ",
                    "v" => "VARIADIC ",
                    _ => "",
                };
                if mode != "o" {
                    at += 1;
                }
                // What the default is was not carried over, only that there is one.
                let default =
                    if with_defaults && mode != "o" && at > given - proc.defaults.min(given) {
                        " DEFAULT ..."
                    } else {
                        ""
                    };
                format!("{word}{}{of}{default}", spaced(name))
            })
            .collect();
        Some(texts.join(", "))
    }
}

impl Proc {
    /// Mode, name and type of each parameter.
    fn parameters<'a>(
        &'a self,
        read: &'a Read,
    ) -> impl Iterator<Item = (&'a str, &'a str, String)> {
        let types = if self.all.is_empty() {
            &self.arguments
        } else {
            &self.all
        };
        types.iter().enumerate().map(move |(at, of)| {
            let mode = self.modes.get(at).map_or("i", String::as_str);
            let name = self.names.get(at).map_or("", String::as_str);
            (mode, name, read.type_names(&[*of]).remove(0))
        })
    }
}

fn spaced(name: &str) -> String {
    match name {
        "" => String::new(),
        name => format!("{} ", quoted(name)),
    }
}

/// A type as PostgreSQL prints it.
fn type_name(name: &str) -> String {
    let plain = match name.strip_prefix('_') {
        Some(element) => return format!("{}[]", type_name(element)),
        None => name,
    };
    match plain {
        "bool" => "boolean",
        "bpchar" => "character",
        "char" => "\"char\"",
        "float4" => "real",
        "float8" => "double precision",
        "int2" => "smallint",
        "int4" => "integer",
        "int8" => "bigint",
        "time" => "time without time zone",
        "timestamp" => "timestamp without time zone",
        "timestamptz" => "timestamp with time zone",
        "timetz" => "time with time zone",
        "varbit" => "bit varying",
        "varchar" => "character varying",
        other => other,
    }
    .to_owned()
}

/// A row of a table that the crate carries.
struct Row<'a> {
    batch: &'a RecordBatch,
    at: usize,
}

impl Row<'_> {
    fn column(&self, name: &str) -> Option<&ArrayRef> {
        let column = self.batch.column_by_name(name)?;
        column.is_valid(self.at).then_some(column)
    }

    /// 0: NULL, or no such column.
    fn number(&self, name: &str) -> i32 {
        self.column(name)
            .map_or(0, |column| match column.data_type() {
                DataType::Int16 => i32::from(column.as_primitive::<Int16Type>().value(self.at)),
                DataType::Int32 => column.as_primitive::<Int32Type>().value(self.at),
                _ => 0,
            })
    }

    fn text(&self, name: &str) -> String {
        let column = self.column(name).and_then(|c| c.as_string_opt::<i32>());
        column.map_or_else(String::new, |texts| texts.value(self.at).to_owned())
    }

    fn flag(&self, name: &str) -> bool {
        let column = self.column(name).and_then(|c| c.as_boolean_opt());
        column.is_some_and(|flags| flags.value(self.at))
    }
}

fn rows(table: &ArrowTable) -> impl Iterator<Item = Row<'_>> {
    table
        .data()
        .iter()
        .flat_map(|batch| (0..batch.num_rows()).map(move |at| Row { batch, at }))
}

/// All functions that look objects up.
pub fn functions(objects: &Arc<Objects>) -> impl Iterator<Item = ScalarUDF> {
    [
        ("shoal_reg_name", Of::Name),
        ("shoal_proc_oid", Of::ProcOid),
        ("obj_description", Of::Description),
        ("shobj_description", Of::Description),
        ("pg_describe_object", Of::Object),
        ("format_type", Of::Type),
        ("pg_get_function_result", Of::Result),
        ("pg_get_function_arguments", Of::Arguments),
        ("pg_get_function_identity_arguments", Of::Identity),
    ]
    .map(|(name, of)| {
        ScalarUDF::new_from_impl(Lookup {
            name,
            of,
            signature: Signature::variadic_any(Volatility::Stable),
            objects: Arc::clone(objects),
        })
    })
    .into_iter()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Of {
    /// `(kind, oid)`: the name.
    Name,
    /// `(name)`: the oid of a function.
    ProcOid,
    /// `(oid, catalog)`, `(oid)`
    Description,
    /// `(catalog's oid, oid, number)`
    Object,
    /// `(oid, modifier)`
    Type,
    Result,
    Arguments,
    Identity,
}

#[derive(Debug)]
struct Lookup {
    name: &'static str,
    of: Of,
    signature: Signature,
    objects: Arc<Objects>,
}

impl PartialEq for Lookup {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && Arc::ptr_eq(&self.objects, &other.objects)
    }
}

impl Eq for Lookup {}

impl Hash for Lookup {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// Oids of whatever integer type; `None`: NULL, or no oid.
fn oids(array: &ArrayRef) -> Result<Vec<Option<i32>>> {
    let cast = arrow_cast::cast(array, &DataType::Int64)?;
    let numbers = cast.as_primitive::<Int64Type>();
    let oid = |number: Option<i64>| number.and_then(|n| i32::try_from(n).ok());
    Ok(numbers.iter().map(oid).collect())
}

fn texts(array: &ArrayRef) -> Result<StringArray> {
    let cast = arrow_cast::cast(array, &DataType::Utf8)?;
    Ok(cast.as_string::<i32>().clone())
}

impl ScalarUDFImpl for Lookup {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.of {
            Of::ProcOid => DataType::Int32,
            _ => DataType::Utf8,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = args
            .args
            .iter()
            .map(|arg| arg.to_array(args.number_rows))
            .collect::<Result<Vec<_>>>()?;
        let read = self.objects.read();
        let Some(first) = arrays.first() else {
            return Err(datafusion::error::DataFusionError::Plan(format!(
                "{}() takes an oid",
                self.name
            )));
        };
        let found: StringArray = match (self.of, arrays.get(1)) {
            (Of::ProcOid, _) => {
                let named = texts(first)?;
                let oid = |name: &str| match name {
                    "-" => Some(0),
                    name => read.proc_oids.get(name).copied(),
                };
                let oids: Int32Array = named.iter().map(|name| name.and_then(oid)).collect();
                return Ok(ColumnarValue::Array(Arc::new(oids)));
            }
            (Of::Name, Some(second)) => {
                let kinds = texts(first)?;
                let named = |(kind, text): (Option<&str>, Option<&str>)| {
                    let (kind, text) = (kind?, text?);
                    // Functions are kept by name in some catalogs.
                    let oid: Option<i32> = text.parse().ok();
                    Some(oid.map_or_else(|| text.to_owned(), |oid| self.objects.name(kind, oid)))
                };
                kinds.iter().zip(texts(second)?.iter()).map(named).collect()
            }
            (Of::Description, second) => {
                let classes = second.map(texts).transpose()?;
                let described = |(at, oid): (usize, Option<i32>)| {
                    let class = match &classes {
                        Some(classes) if classes.is_valid(at) => catalog_oid(classes.value(at)),
                        _ => None,
                    };
                    read.descriptions.get(&(oid?, class?)).cloned()
                };
                let of = describable(first)?;
                of.into_iter().enumerate().map(described).collect()
            }
            (Of::Type, Some(second)) => {
                let pairs = oids(first)?.into_iter().zip(oids(second)?);
                pairs
                    .map(|(of, modifier)| Some(read.type_with(of?, modifier.unwrap_or(-1))))
                    .collect()
            }
            (Of::Object, Some(second)) => {
                let pairs = oids(first)?.into_iter().zip(oids(second)?);
                pairs
                    .map(|(class, object)| self.objects.describe(class?, object?))
                    .collect()
            }
            (of, _) => oids(first)?
                .into_iter()
                .map(|oid| match of {
                    Of::Result => read.result(oid?),
                    Of::Arguments => read.arguments(oid?, true),
                    _ => read.arguments(oid?, false),
                })
                .collect(),
        };
        Ok(ColumnarValue::Array(Arc::new(found)))
    }
}

/// Oids of what is described; functions that a catalog keeps by name have none.
fn describable(array: &ArrayRef) -> Result<Vec<Option<i32>>> {
    if array.data_type() == &DataType::Utf8 {
        let parsed = |text: Option<&str>| text.and_then(|t| t.parse().ok());
        return Ok(texts(array)?.iter().map(parsed).collect());
    }
    oids(array)
}
