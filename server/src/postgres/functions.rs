//! Functions that PostgreSQL clients call and that neither DataFusion nor `datafusion-pg-catalog`
//! has. They tell what is true of this server: everything is visible; NULL where it does not know
//! (sizes). What looks an object up by its oid is in `reg` and `definitions`.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, Int64Array, StringArray};
use arrow_schema::DataType;
use datafusion::common::types::{NativeType, logical_int64};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    Coercion, ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    TypeSignature, TypeSignatureClass, Volatility,
};
use datafusion::scalar::ScalarValue;
use pgwire::api::Type;
use shoal_types::{Clock, SystemClock};

use super::rows;

/// The PostgreSQL version whose protocol and catalog are spoken.
pub const SERVER_VERSION: &str = "16.6";
/// The same as a number.
pub const SERVER_VERSION_NUM: &str = "160006";

/// Settings that clients read and sessions do not keep.
pub const SETTINGS: &[(&str, &str)] = &[
    ("block_size", "8192"),
    ("in_hot_standby", "off"),
    ("integer_datetimes", "on"),
    ("is_superuser", "on"),
    ("max_index_keys", "32"),
    ("server_version", SERVER_VERSION),
    ("server_version_num", SERVER_VERSION_NUM),
];

/// The value of one of them.
#[must_use]
pub fn setting(name: &str) -> Option<&'static str> {
    let found = SETTINGS.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| *value)
}

/// All of them.
pub fn all() -> impl Iterator<Item = ScalarUDF> {
    let text = |v: &str| ScalarValue::Utf8(Some(v.to_owned()));
    let no_text = ScalarValue::Utf8(None);
    let yes = ScalarValue::Boolean(Some(true));
    // They are made when the server starts.
    let now = i64::try_from(SystemClock.now_ms()).unwrap_or(i64::MAX);
    let started = ScalarValue::TimestampMillisecond(Some(now), Some("UTC".into()));
    let version = format!(
        "PostgreSQL {SERVER_VERSION} (ShoalDB {})",
        env!("CARGO_PKG_VERSION")
    );
    [
        ("version", text(&version)),
        ("col_description", no_text.clone()),
        ("pg_get_viewdef", no_text.clone()),
        ("pg_get_serial_sequence", no_text.clone()),
        ("pg_get_triggerdef", no_text.clone()),
        ("pg_get_ruledef", no_text.clone()),
        ("pg_tablespace_location", no_text.clone()),
        ("pg_get_functiondef", no_text.clone()),
        ("pg_get_function_sqlbody", no_text.clone()),
        ("getdatabaseencoding", text("UTF8")),
        ("pg_client_encoding", text("UTF8")),
        ("inet_client_addr", no_text.clone()),
        ("inet_server_addr", no_text),
        ("pg_type_is_visible", yes.clone()),
        ("pg_function_is_visible", yes.clone()),
        ("pg_operator_is_visible", yes.clone()),
        ("pg_collation_is_visible", yes.clone()),
        ("pg_opclass_is_visible", yes.clone()),
        ("pg_opfamily_is_visible", yes.clone()),
        ("pg_conversion_is_visible", yes.clone()),
        ("pg_statistics_obj_is_visible", yes.clone()),
        ("pg_ts_config_is_visible", yes.clone()),
        ("pg_ts_dict_is_visible", yes.clone()),
        ("pg_ts_parser_is_visible", yes.clone()),
        ("pg_ts_template_is_visible", yes.clone()),
        ("pg_has_role", yes.clone()),
        ("has_column_privilege", yes.clone()),
        ("has_sequence_privilege", yes.clone()),
        ("has_function_privilege", yes),
        (
            "pg_relation_is_publishable",
            ScalarValue::Boolean(Some(false)),
        ),
        ("pg_is_in_recovery", ScalarValue::Boolean(Some(false))),
        ("pg_is_other_temp_schema", ScalarValue::Boolean(Some(false))),
        ("pg_my_temp_schema", ScalarValue::Int32(Some(0))),
        // The number of UTF8, the only encoding.
        ("pg_char_to_encoding", ScalarValue::Int32(Some(6))),
        (
            "pg_advisory_unlock_all",
            ScalarValue::Utf8(Some(String::new())),
        ),
        ("pg_database_size", ScalarValue::Int64(None)),
        ("pg_table_size", ScalarValue::Int64(None)),
        ("pg_indexes_size", ScalarValue::Int64(None)),
        ("pg_tablespace_size", ScalarValue::Int64(None)),
        ("txid_current", ScalarValue::Int64(Some(0))),
        ("pg_postmaster_start_time", started.clone()),
        ("pg_conf_load_time", started),
    ]
    .into_iter()
    .map(|(name, value)| {
        ScalarUDF::new_from_impl(Constant {
            name,
            value,
            signature: Signature::one_of(
                vec![TypeSignature::Nullary, TypeSignature::VariadicAny],
                Volatility::Stable,
            ),
        })
    })
    .chain([
        ScalarUDF::new_from_impl(TypeOf(Signature::any(1, Volatility::Stable))),
        ScalarUDF::new_from_impl(Format(Signature::variadic_any(Volatility::Stable))),
        ScalarUDF::new_from_impl(SizePretty(Signature::coercible(
            vec![Coercion::new_implicit(
                TypeSignatureClass::Native(logical_int64()),
                vec![TypeSignatureClass::Integer],
                NativeType::Int64,
            )],
            Volatility::Immutable,
        ))),
    ])
}

/// `pg_typeof`: PostgreSQL's name of a value's type.
#[derive(Debug, PartialEq, Eq, Hash)]
struct TypeOf(Signature);

impl ScalarUDFImpl for TypeOf {
    fn name(&self) -> &str {
        "pg_typeof"
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let of = args.arg_fields.first().map(|field| field.data_type());
        let name = of.and_then(type_name_of);
        Ok(ColumnarValue::Scalar(ScalarValue::Utf8(name)))
    }
}

/// The type that an Arrow type travels as, as PostgreSQL prints it.
pub fn type_name_of(of: &DataType) -> Option<String> {
    rows::type_of(of).ok().map(type_name)
}

/// A type as PostgreSQL prints it.
fn type_name(of: Type) -> String {
    match of {
        Type::BOOL => "boolean",
        Type::INT2 => "smallint",
        Type::INT4 => "integer",
        Type::INT8 => "bigint",
        Type::FLOAT4 => "real",
        Type::FLOAT8 => "double precision",
        Type::VARCHAR => "character varying",
        Type::TIMESTAMP => "timestamp without time zone",
        Type::TIMESTAMPTZ => "timestamp with time zone",
        Type::TIME => "time without time zone",
        ref other => return other.name().to_owned(),
    }
    .to_owned()
}

/// `format`: `%s` a value, `%I` a name, `%L` a literal, `%%` a percent sign.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Format(Signature);

impl ScalarUDFImpl for Format {
    fn name(&self) -> &str {
        "format"
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = args
            .args
            .iter()
            .map(|arg| {
                let array = arg.to_array(args.number_rows)?;
                Ok(arrow_cast::cast(&array, &DataType::Utf8)?)
            })
            .collect::<Result<Vec<_>>>()?;
        let texts = (0..args.number_rows)
            .map(|row| {
                let mut values = columns.iter().map(|column| {
                    let column = column.as_string::<i32>();
                    column.is_valid(row).then(|| column.value(row))
                });
                match values.next().flatten() {
                    Some(pattern) => formatted(pattern, values).map(Some),
                    None => Ok(None),
                }
            })
            .collect::<Result<StringArray>>()?;
        Ok(ColumnarValue::Array(Arc::new(texts)))
    }
}

/// A pattern of `format` with its values put in.
fn formatted<'a>(
    pattern: &str,
    mut values: impl Iterator<Item = Option<&'a str>>,
) -> Result<String> {
    let wrong = |what: &str| Err(DataFusionError::Execution(format!("format(): {what}")));
    let mut out = String::with_capacity(pattern.len());
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let mut chars = after.chars();
        let kind = chars.next();
        rest = chars.as_str();
        if kind == Some('%') {
            out.push('%');
            continue;
        }
        let Some(value) = values.next() else {
            return wrong("too few arguments");
        };
        match (kind, value) {
            (Some('s'), value) => out.push_str(value.unwrap_or_default()),
            (Some('I'), Some(name)) => out.push_str(&quoted(name)),
            (Some('I'), None) => return wrong("a name cannot be NULL"),
            (Some('L'), None) => out.push_str("NULL"),
            (Some('L'), Some(text)) => {
                out.push('\'');
                out.push_str(&text.replace('\'', "''"));
                out.push('\'');
            }
            _ => return wrong("only %s, %I, %L and %% are known"),
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// A name as SQL text, quoted where it would be read as another.
pub fn quoted(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if name.chars().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit()) {
        return name.to_owned();
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `pg_size_pretty`.
#[derive(Debug, PartialEq, Eq, Hash)]
struct SizePretty(Signature);

impl ScalarUDFImpl for SizePretty {
    fn name(&self) -> &str {
        "pg_size_pretty"
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let sizes = args.args[0].to_array(args.number_rows)?;
        let sizes: &Int64Array = sizes.as_primitive();
        let texts: StringArray = sizes.iter().map(|size| size.map(pretty)).collect();
        Ok(ColumnarValue::Array(Arc::new(texts)))
    }
}

/// A number of bytes in the largest unit of which there are at least ten.
fn pretty(bytes: i64) -> String {
    let (mut size, mut unit) = (bytes as f64, "bytes");
    for next in ["kB", "MB", "GB", "TB", "PB"] {
        if size.abs() < 10_240.0 {
            break;
        }
        size /= 1_024.0;
        unit = next;
    }
    format!("{} {unit}", size.round())
}

/// A function that gives one value, whatever it is called with.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Constant {
    name: &'static str,
    value: ScalarValue,
    signature: Signature,
}

impl ScalarUDFImpl for Constant {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.value.data_type())
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Scalar(self.value.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_take_values_names_and_literals() {
        let values = [Some("it's"), Some("My t"), None, Some("a_1")];
        let text = formatted("%s: %I %L 100%% %I.", values.into_iter());
        assert_eq!(text.unwrap(), "it's: \"My t\" NULL 100% a_1.");
        assert_eq!(
            formatted("%L", [Some("it's")].into_iter()).unwrap(),
            "'it''s'"
        );
        for (pattern, values) in [
            ("%s %s", vec![Some("x")]),
            ("%I", vec![None]),
            ("%q", vec![Some("x")]),
        ] {
            assert!(formatted(pattern, values.into_iter()).is_err(), "{pattern}");
        }
    }

    #[test]
    fn sizes_are_printed_in_the_unit_that_fits() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (10_239, "10239 bytes"),
            (10_240, "10 kB"),
            (123_456_789, "118 MB"),
            (-20_480, "-20 kB"),
        ] {
            assert_eq!(pretty(bytes), text);
        }
    }
}
