//! Expressions and relations of PostgreSQL that DataFusion does not have, put into ones that it
//! does. This works on the parsed statement and on what a part of it *is*, never on the text of a
//! client's query:
//!
//! | PostgreSQL | here |
//! |---|---|
//! | `c.tableoid` of a catalog | the catalog's oid |
//! | a table that we add to `pg_catalog`, without its schema | with it; the crate knows its own only |
//! | `x::regclass`, `x::regproc`, … of what is no literal | the name, by `shoal_reg_name` |
//! | the same in a comparison or cast back to a number | `x` |
//! | a function's column compared with an oid | the oid of the name that it holds |
//! | arrays of catalogs, kept as text, in array functions, `ANY` and subscripts | real arrays |
//! | a query in an expression over catalogs | its `max`: at most one row, as DataFusion wants to know |
//! | functions that give sets, of which there are none | an empty relation of their columns |
//! | a query over such a function of the outer row's values | NULL |
//! | `pg_settings`, `current_setting` of a column | the session's settings, as values |
//! | `_pg_expandarray(a)`, `(…).x` | `unnest`, `(…)['x']` |
//!
//! What follows in the `datafusion-pg-catalog` crate sees the result.

use std::collections::HashMap;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    AccessExpr, BinaryOperator, DataType, Expr, Function, FunctionArg, FunctionArgExpr,
    FunctionArguments, GroupByExpr, Ident, ObjectName, ObjectNamePart, Query, Select, SelectItem,
    SetExpr, Statement, Subscript, TableAlias, TableFactor, Value, ValueWithSpan, VisitMut,
    VisitorMut, visit_expressions,
};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;

use super::{arrays, completion, reg};

/// Functions that give sets, with their columns. All are empty: there are no inherited tables, no
/// options of foreign tables, no rights but the owner's.
const EMPTY_SETS: &[(&str, &str)] = &[
    (
        "aclexplode",
        "grantor int, grantee int, privilege_type text, is_grantable boolean",
    ),
    (
        "pg_available_extension_versions",
        "name text, version text, superuser boolean, trusted boolean, relocatable boolean, schema text, requires text, comment text",
    ),
    (
        "pg_available_extensions",
        "name text, default_version text, comment text",
    ),
    (
        "pg_cursor",
        "name text, statement text, is_holdable boolean, is_binary boolean, is_scrollable boolean, creation_time timestamp",
    ),
    (
        "pg_event_trigger_ddl_commands",
        "classid int, objid int, objsubid int, command_tag text",
    ),
    (
        "pg_get_publication_tables",
        "pubid int, relid int, attrs text, qual text",
    ),
    ("pg_listening_channels", "pg_listening_channels text"),
    (
        "pg_lock_status",
        "locktype text, database int, relation int, pid int, mode text, granted boolean",
    ),
    ("pg_options_to_table", "option_name text, option_value text"),
    ("pg_partition_ancestors", "relid int"),
    (
        "pg_partition_tree",
        "relid int, parentrelid int, isleaf boolean, level int",
    ),
    (
        "pg_prepared_statement",
        "name text, statement text, prepare_time timestamp, parameter_types text",
    ),
    (
        "pg_prepared_xact",
        "transaction text, gid text, prepared timestamp, ownerid int, dbid int",
    ),
    (
        "pg_sequence_parameters",
        "start_value bigint, minimum_value bigint, maximum_value bigint, increment bigint, cycle_option boolean, cache_size bigint, data_type int",
    ),
    (
        "pg_stat_get_activity",
        "datid int, pid int, usesysid int, application_name text, state text, query text",
    ),
    ("pg_tablespace_databases", "pg_tablespace_databases int"),
    (
        "pg_timezone_abbrevs",
        "abbrev text, utc_offset text, is_dst boolean",
    ),
    (
        "pg_timezone_names",
        "name text, abbrev text, utc_offset text, is_dst boolean",
    ),
    ("ts_token_type", "tokid int, alias text, description text"),
];

/// Functions that make one value of many rows: a query with one gives at most one row.
const AGGREGATES: &[&str] = &[
    "array_agg",
    "avg",
    "bool_and",
    "bool_or",
    "count",
    "every",
    "first_value",
    "json_agg",
    "jsonb_agg",
    "last_value",
    "max",
    "min",
    "string_agg",
    "sum",
];

/// Types whose values are oids and whose text is a name.
fn reg_kind(data_type: &DataType) -> Option<String> {
    let name = data_type.to_string().to_lowercase();
    let name = name.strip_prefix("pg_catalog.").unwrap_or(&name);
    reg::KINDS.contains(&name).then(|| name.to_owned())
}

/// Whether values of a type are numbers, as an oid is.
fn is_number(data_type: &DataType) -> bool {
    let name = data_type.to_string().to_lowercase();
    matches!(
        name.strip_prefix("pg_catalog.").unwrap_or(&name),
        "oid" | "int" | "int4" | "integer" | "bigint" | "int8"
    )
}

/// Rewrites statements. `settings`: the session's, name and value.
pub struct Rewriter<'a> {
    /// What the session's settings are, asked for where a statement looks at them.
    pub settings: &'a dyn Fn() -> Vec<(String, String)>,
    /// The statement expands arrays: fields of what it makes are told by a dot.
    pub expands: bool,
}

impl Rewriter<'_> {
    /// The statement in words that DataFusion, after the crate's own rewriting, takes; as it was
    /// where it cannot be parsed.
    #[must_use]
    pub fn rewrite(&mut self, sql: &str) -> Option<String> {
        let mut parsed = Parser::parse_sql(&PostgreSqlDialect {}, sql).ok()?;
        let [statement] = parsed.as_mut_slice() else {
            return None;
        };
        let _ = VisitMut::visit(statement as &mut Statement, self);
        Some(statement.to_string())
    }

    fn settings_relation(&self) -> Option<Query> {
        let text = |value: &str| format!("'{}'", value.replace('\'', "''"));
        let rows: Vec<String> = (self.settings)()
            .iter()
            .map(|(name, value)| {
                format!(
                    "({}, {}, {}, {})",
                    text(name),
                    text(value),
                    text(category(name)),
                    text(kind_of(value))
                )
            })
            .collect();
        let values = rows.join(", ");
        query(&format!(
            "SELECT s.n AS name, s.v AS setting, CAST(NULL AS TEXT) AS unit, s.c AS category, \
             CAST('' AS TEXT) AS short_desc, CAST(NULL AS TEXT) AS extra_desc, \
             CAST('user' AS TEXT) AS context, s.t AS vartype, CAST('default' AS TEXT) AS source, \
             CAST(NULL AS TEXT) AS min_val, CAST(NULL AS TEXT) AS max_val, \
             CAST(NULL AS TEXT) AS enumvals, s.v AS boot_val, s.v AS reset_val, \
             CAST(NULL AS TEXT) AS sourcefile, CAST(NULL AS INT) AS sourceline, \
             false AS pending_restart FROM (VALUES {values}) AS s(n, v, c, t)"
        ))
    }

    /// `CASE name WHEN 'a' THEN 'its value' … END`
    fn setting_of(&self, name: &Expr) -> Option<Expr> {
        let text = |value: &str| format!("'{}'", value.replace('\'', "''"));
        let branches: String = (self.settings)()
            .iter()
            .map(|(name, value)| format!(" WHEN {} THEN {}", text(name), text(value)))
            .collect();
        expression(&format!("CASE lower({name}){branches} END"))
    }
}

/// `pg_settings.category`
fn category(name: &str) -> &'static str {
    match name {
        "server_version"
        | "server_version_num"
        | "server_encoding"
        | "block_size"
        | "max_index_keys"
        | "max_identifier_length"
        | "integer_datetimes"
        | "in_hot_standby" => "Preset Options",
        _ => "Client Connection Defaults",
    }
}

/// `pg_settings.vartype`
fn kind_of(value: &str) -> &'static str {
    match value {
        "on" | "off" => "bool",
        number if number.parse::<i64>().is_ok() => "integer",
        _ => "string",
    }
}

impl VisitorMut for Rewriter<'_> {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        let catalogs = catalogs(select);
        if !catalogs.is_empty() {
            for item in &mut select.projection {
                if let SelectItem::UnnamedExpr(expr) = item
                    && last(expr) == Some("tableoid")
                    && oid_of(expr, &catalogs).is_some()
                {
                    *item = SelectItem::ExprWithAlias {
                        expr: expr.clone(),
                        alias: Ident::new("tableoid"),
                    };
                }
            }
            let _ = VisitMut::visit(select, &mut TableOids(catalogs));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table {
            name, args: None, ..
        } = factor
            && let [ObjectNamePart::Identifier(table)] = name.0.as_slice()
            && completion::adds(&table.value)
        {
            *name = ObjectName::from(vec![Ident::new("pg_catalog"), table.clone()]);
        }
        let (name, alias, is_call) = match factor {
            TableFactor::Table {
                name, alias, args, ..
            } => (name, alias, args.is_some()),
            TableFactor::Function { name, alias, .. } => (name, alias, true),
            _ => return ControlFlow::Continue(()),
        };
        let last = last_part(name);
        let subquery = if is_call {
            let set = EMPTY_SETS.iter().find(|(set, _)| *set == last);
            set.and_then(|(_, columns)| query(&nothing(columns)))
        } else if last == "pg_settings" && is_catalog(name) {
            self.settings_relation()
        } else {
            None
        };
        if let Some(subquery) = subquery {
            let alias = alias.take().or_else(|| {
                Some(TableAlias {
                    explicit: true,
                    name: Ident::new(last),
                    columns: Vec::new(),
                    at: None,
                })
            });
            *factor = TableFactor::Derived {
                lateral: false,
                subquery: Box::new(subquery),
                alias,
                sample: None,
            };
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::BinaryOp { left, op, right } if is_comparison(op) => {
                strip(left);
                strip(right);
                let (is_left, is_right) = (is_proc(left), is_proc(right));
                if is_left && !is_right {
                    by_oid(left, right);
                } else if is_right && !is_left {
                    by_oid(right, left);
                }
            }
            Expr::InList { expr: of, .. }
            | Expr::InSubquery { expr: of, .. }
            | Expr::Between { expr: of, .. } => strip(of),
            Expr::AnyOp { left, right, .. } | Expr::AllOp { left, right, .. } => {
                strip(left);
                as_array(right);
            }
            Expr::Cast {
                expr: of,
                data_type,
                ..
            } => {
                if is_number(data_type) || reg_kind(data_type).is_some() {
                    strip(of);
                }
                if let Some(kind) = reg_kind(data_type) {
                    match literal(of) {
                        // The crate looks a name up by its last part.
                        Some(text) if kind == "regproc" || kind == "regtype" => {
                            if let Some(plain) = text.strip_prefix("pg_catalog.") {
                                let plain = Value::SingleQuotedString(plain.to_owned());
                                **of = Expr::Value(plain.with_empty_span());
                            }
                        }
                        Some(_) => {}
                        None if is_placeholder(of) => {}
                        None => {
                            if let Some(call) =
                                expression(&format!("shoal_reg_name('{kind}', {of})"))
                            {
                                *expr = call;
                            }
                        }
                    }
                }
            }
            Expr::Subquery(query) if expands_outer_values(query) => {
                *expr = Expr::Value(Value::Null.with_empty_span());
            }
            Expr::Subquery(query) => at_most_one_row(query),
            Expr::CompoundFieldAccess { root, access_chain } => subscript(root, access_chain),
            Expr::Function(call) if arrays::TAKERS.contains(&last_part(&call.name).as_str()) => {
                if let Some(array) = first_argument(call) {
                    as_array(array);
                }
            }
            Expr::Function(call) if last_part(&call.name) == "current_setting" => {
                if let Some(name) = first_argument(call)
                    && literal(name).is_none()
                    && !is_placeholder(name)
                    && let Some(value) = self.setting_of(name)
                {
                    *expr = value;
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if !self.expands {
            return ControlFlow::Continue(());
        }
        match expr {
            Expr::Function(call) if last_part(&call.name) == "_pg_expandarray" => {
                call.name = ObjectName::from(vec![Ident::new("_pg_expandarray")]);
                if let Some(rows) = expression(&format!("unnest({call})")) {
                    *expr = rows;
                }
            }
            Expr::CompoundFieldAccess { access_chain, .. } => {
                for access in access_chain {
                    if let AccessExpr::Dot(Expr::Identifier(field)) = access {
                        let name = Value::SingleQuotedString(field.value.to_lowercase());
                        *access = AccessExpr::Subscript(Subscript::Index {
                            index: Expr::Value(name.with_empty_span()),
                        });
                    }
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// Puts the oids of catalogs in for `tableoid`. By alias: `None` where the relation has none.
struct TableOids(HashMap<String, i32>);

impl VisitorMut for TableOids {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Some(oid) = oid_of(expr, &self.0) {
            *expr = Expr::Value(Value::Number(oid.to_string(), false).with_empty_span());
        }
        ControlFlow::Continue(())
    }
}

/// The oid that a `tableoid` stands for.
fn oid_of(expr: &Expr, catalogs: &HashMap<String, i32>) -> Option<i32> {
    match expr {
        Expr::CompoundIdentifier(parts) => match parts.as_slice() {
            [relation, column] if column.value.eq_ignore_ascii_case("tableoid") => {
                catalogs.get(&relation.value).copied()
            }
            _ => None,
        },
        Expr::Identifier(column) if column.value.eq_ignore_ascii_case("tableoid") => {
            match catalogs.values().collect::<Vec<_>>().as_slice() {
                [one] => Some(**one),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The catalogs that a query reads, by the names they have in it.
fn catalogs(select: &Select) -> HashMap<String, i32> {
    let relations = select.from.iter().flat_map(|from| {
        std::iter::once(&from.relation).chain(from.joins.iter().map(|join| &join.relation))
    });
    relations
        .filter_map(|relation| match relation {
            TableFactor::Table {
                name,
                alias,
                args: None,
                ..
            } if is_catalog(name) => {
                let table = last_part(name);
                let oid = reg::catalog_oid(&table)?;
                Some((alias.as_ref().map_or(table, |a| a.name.value.clone()), oid))
            }
            _ => None,
        })
        .collect()
}

/// Whether a relation is one of `pg_catalog`.
fn is_catalog(name: &ObjectName) -> bool {
    match name.0.as_slice() {
        [ObjectNamePart::Identifier(table)] => table.value.starts_with("pg_"),
        [.., ObjectNamePart::Identifier(schema), _] => schema.value == "pg_catalog",
        _ => false,
    }
}

/// Whether a query in an expression reads a function that gives a set of the outer row's values,
/// which DataFusion cannot. In catalogs these take lists of columns apart (of publications, of
/// foreign keys), and there are none.
fn expands_outer_values(query: &Query) -> bool {
    let SetExpr::Select(select) = query.body.as_ref() else {
        return false;
    };
    let mut relations = select.from.iter().map(|from| &from.relation);
    relations.any(|relation| {
        let names_columns = |args: &[FunctionArg]| {
            args.iter().any(|arg| {
                let found = visit_expressions(arg, |part| match part {
                    Expr::CompoundIdentifier(_) => ControlFlow::Break(()),
                    _ => ControlFlow::Continue(()),
                });
                found.is_break()
            })
        };
        match relation {
            TableFactor::Table {
                args: Some(args), ..
            } => names_columns(&args.args),
            TableFactor::Function { args, .. } => names_columns(args),
            _ => false,
        }
    })
}

/// Says with `max` that a query in an expression gives one value, where it reads catalogs only and
/// gives them by a key: PostgreSQL finds out when it runs, DataFusion wants to know before.
fn at_most_one_row(query: &mut Query) {
    let limited = query.limit_clause.is_some() || query.fetch.is_some();
    let SetExpr::Select(select) = query.body.as_mut() else {
        return;
    };
    let grouped = !matches!(&select.group_by, GroupByExpr::Expressions(by, _) if by.is_empty());
    let reads_catalogs = !select.from.is_empty()
        && select.from.iter().all(|from| {
            std::iter::once(&from.relation)
                .chain(from.joins.iter().map(|join| &join.relation))
                .all(|relation| {
                    matches!(relation, TableFactor::Table { name, .. } if is_catalog(name))
                })
        });
    if limited || grouped || select.distinct.is_some() || !reads_catalogs {
        return;
    }
    let [item] = select.projection.as_mut_slice() else {
        return;
    };
    let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = item else {
        return;
    };
    let aggregates = visit_expressions(expr, |part| match part {
        Expr::Function(call) if AGGREGATES.contains(&last_part(&call.name).as_str()) => {
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    });
    if aggregates.is_continue()
        && let Some(one) = expression(&format!("max({expr})"))
    {
        *expr = one;
        query.order_by = None;
    }
}

/// Makes an array of a column that is one as text, or of a literal.
fn as_array(expr: &mut Expr) {
    match expr {
        Expr::Nested(inner) => return as_array(inner),
        Expr::BinaryOp {
            left,
            op: BinaryOperator::StringConcat,
            right,
        } => {
            as_array(left);
            return as_array(right);
        }
        _ => {}
    }
    let function = match (last(expr).and_then(arrays::Kind::of), literal(expr)) {
        (Some(kind), _) => kind.function(),
        (None, Some(_)) => arrays::Kind::Texts.function(),
        (None, None) => return,
    };
    if let Some(array) = expression(&format!("{function}({expr})")) {
        *expr = array;
    }
}

/// `conkey[1]`, `proargtypes[0]`
fn subscript(root: &mut Expr, chain: &mut Vec<AccessExpr>) {
    if let (Expr::Identifier(relation), [AccessExpr::Dot(Expr::Identifier(column)), _]) =
        (&*root, chain.as_slice())
    {
        *root = Expr::CompoundIdentifier(vec![relation.clone(), column.clone()]);
        chain.remove(0);
    }
    let [AccessExpr::Subscript(Subscript::Index { index })] = chain.as_mut_slice() else {
        return;
    };
    let Some(kind) = last(root).and_then(arrays::Kind::of) else {
        return;
    };
    if kind == arrays::Kind::Vector
        && let Some(from_one) = expression(&format!("({index}) + 1"))
    {
        *index = from_one;
    }
    as_array(root);
}

/// Whether it is a column that holds functions, by name.
fn is_proc(expr: &Expr) -> bool {
    last(expr).is_some_and(reg::holds_procs)
}

/// Makes a function's column comparable with an oid; with a text it is compared by name.
fn by_oid(column: &mut Expr, other: &Expr) {
    if literal(other).is_none()
        && let Some(oid) = expression(&format!("shoal_proc_oid({column})"))
    {
        *column = oid;
    }
}

/// Takes a cast to a name's type off what is no literal: it is compared, or cast on, as a number.
fn strip(expr: &mut Expr) {
    while let Expr::Cast {
        expr: of,
        data_type,
        ..
    } = expr
    {
        if reg_kind(data_type).is_none() || literal(of).is_some() || is_placeholder(of) {
            return;
        }
        *expr = Expr::clone(of);
    }
}

fn is_comparison(op: &BinaryOperator) -> bool {
    matches!(
        op,
        BinaryOperator::Eq
            | BinaryOperator::NotEq
            | BinaryOperator::Lt
            | BinaryOperator::LtEq
            | BinaryOperator::Gt
            | BinaryOperator::GtEq
    )
}

fn literal(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Value(ValueWithSpan {
            value: Value::SingleQuotedString(text),
            ..
        }) => Some(text),
        _ => None,
    }
}

fn is_placeholder(expr: &Expr) -> bool {
    matches!(
        expr,
        Expr::Value(ValueWithSpan {
            value: Value::Placeholder(_),
            ..
        })
    )
}

fn last(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Identifier(name) => Some(&name.value),
        Expr::CompoundIdentifier(parts) => parts.last().map(|name| name.value.as_str()),
        _ => None,
    }
}

/// The last part of a name, in lower case.
fn last_part(name: &ObjectName) -> String {
    match name.0.last() {
        Some(ObjectNamePart::Identifier(part)) => part.value.to_lowercase(),
        _ => String::new(),
    }
}

fn first_argument(call: &mut Function) -> Option<&mut Expr> {
    let FunctionArguments::List(list) = &mut call.args else {
        return None;
    };
    match list.args.first_mut()? {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
        _ => None,
    }
}

/// A query of these columns and no rows.
fn nothing(columns: &str) -> String {
    let columns: Vec<String> = columns
        .split(", ")
        .filter_map(|column| column.split_once(' '))
        .map(|(name, kind)| format!("CAST(NULL AS {kind}) AS {name}"))
        .collect();
    format!("SELECT {} WHERE false", columns.join(", "))
}

fn query(sql: &str) -> Option<Query> {
    let dialect = PostgreSqlDialect {};
    let mut parser = Parser::new(&dialect).try_with_sql(sql).ok()?;
    parser.parse_query().ok().map(|query| *query)
}

fn expression(sql: &str) -> Option<Expr> {
    let dialect = PostgreSqlDialect {};
    let mut parser = Parser::new(&dialect).try_with_sql(sql).ok()?;
    parser.parse_expr().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(sql: &str) -> String {
        let settings = || vec![("a".to_owned(), "it's".to_owned())];
        let mut rewriter = Rewriter {
            settings: &settings,
            expands: sql.contains("_pg_expandarray"),
        };
        rewriter.rewrite(sql).expect("parses")
    }

    #[test]
    fn what_datafusion_lacks_is_put_into_what_it_has() {
        for (sql, wanted) in [
            (
                "SELECT c.tableoid FROM pg_catalog.pg_cast c LEFT JOIN pg_description d ON d.classoid = c.tableoid",
                "SELECT 2605 AS tableoid FROM pg_catalog.pg_cast c LEFT JOIN pg_description d ON d.classoid = 2605",
            ),
            (
                "SELECT tableoid, x.tableoid FROM pg_type, x",
                "SELECT 1247 AS tableoid, x.tableoid FROM pg_type, x",
            ),
            (
                "SELECT c.oid::regclass, c.oid::regclass::oid FROM pg_class c WHERE c.oid::regclass = 'pg_catalog.t'::regclass",
                "SELECT shoal_reg_name('regclass', c.oid), c.oid::oid FROM pg_class c WHERE c.oid = 'pg_catalog.t'::REGCLASS",
            ),
            (
                "SELECT typinput = 'pg_catalog.array_in'::regproc, f::pg_catalog.regprocedure::text FROM pg_type",
                "SELECT shoal_proc_oid(typinput) = 'array_in'::regproc, shoal_reg_name('regprocedure', f)::TEXT FROM pg_type",
            ),
            (
                "SELECT 1 FROM pg_type t WHERE (SELECT c.relkind = 'c' FROM pg_class c WHERE c.oid = t.typrelid)",
                "SELECT 1 FROM pg_type t WHERE (SELECT max(c.relkind = 'c') FROM pg_class c WHERE c.oid = t.typrelid)",
            ),
            (
                "SELECT (SELECT count(*) FROM pg_class), (SELECT v FROM mine)",
                "SELECT (SELECT count(*) FROM pg_class), (SELECT v FROM mine)",
            ),
            (
                "SELECT * FROM pg_class c, LATERAL pg_catalog.pg_partition_ancestors(c.oid) p",
                "SELECT * FROM pg_class c, (SELECT CAST(NULL AS INT) AS relid WHERE false) p",
            ),
            (
                "SELECT array_to_string(c.relacl, ','), 'x' = ANY (reloptions), p.proargtypes[0], conkey[n] FROM pg_class c",
                "SELECT array_to_string(shoal_texts(c.relacl), ','), 'x' = ANY(shoal_texts(reloptions)), shoal_numbers(p.proargtypes)[(0) + 1], shoal_numbers(conkey)[n] FROM pg_class c",
            ),
            (
                "SELECT array_to_string(c.reloptions || '{}', ','), (SELECT string_agg(a, ', ') FROM generate_series(0, array_upper(r.prattrs, 1)) s, pg_attribute) FROM pg_class c",
                "SELECT array_to_string(shoal_texts(c.reloptions) || shoal_texts('{}'), ','), NULL FROM pg_class c",
            ),
            (
                "SELECT 1 FROM pg_user u, pg_indexes, pg_class, pg_mine",
                "SELECT 1 FROM pg_catalog.pg_user u, pg_catalog.pg_indexes, pg_class, pg_mine",
            ),
            (
                "SELECT 1 FROM pg_amproc a JOIN pg_proc p ON a.amproc = p.oid AND s[i] = 1",
                "SELECT 1 FROM pg_amproc a JOIN pg_proc p ON shoal_proc_oid(a.amproc) = p.oid AND s[i] = 1",
            ),
            (
                "SELECT current_setting(n), current_setting('a') FROM t",
                "SELECT CASE lower(n) WHEN 'a' THEN 'it''s' END, current_setting('a') FROM t",
            ),
            (
                "SELECT (i.keys).x FROM (SELECT information_schema._pg_expandarray(k) AS keys, (information_schema._pg_expandarray(k)).n AS n FROM i) AS i",
                "SELECT (i.keys)['x'] FROM (SELECT unnest(_pg_expandarray(k)) AS keys, (unnest(_pg_expandarray(k)))['n'] AS n FROM i) AS i",
            ),
        ] {
            assert_eq!(rewritten(sql), wanted);
        }
        let settings = rewritten("SELECT name FROM pg_settings s");
        assert!(settings.contains("('a', 'it''s', "), "{settings}");
        assert!(settings.ends_with(") s"), "{settings}");
    }

    #[test]
    fn relations_that_give_nothing_are_queries() {
        for (name, columns) in EMPTY_SETS {
            assert!(query(&nothing(columns)).is_some(), "{name}");
        }
    }
}
