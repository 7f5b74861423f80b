//! Functions that PostgreSQL clients call and that neither DataFusion nor `datafusion-pg-catalog`
//! has. They tell what is true of this server: no comments, no indexes, everything visible;
//! NULL where it does not know (sizes).

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Int64Array, StringArray};
use arrow_schema::DataType;
use datafusion::common::types::{NativeType, logical_int64};
use datafusion::error::Result;
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
#[must_use]
pub fn setting(name: &str) -> Option<&'static str> {
    Some(match name {
        "server_version" => SERVER_VERSION,
        "server_version_num" => SERVER_VERSION_NUM,
        "is_superuser" | "integer_datetimes" => "on",
        "in_hot_standby" => "off",
        "max_index_keys" => "32",
        "block_size" => "8192",
        _ => return None,
    })
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
        ("obj_description", no_text.clone()),
        ("col_description", no_text.clone()),
        ("shobj_description", no_text.clone()),
        ("pg_get_viewdef", no_text.clone()),
        ("pg_get_indexdef", no_text.clone()),
        ("pg_get_function_arguments", no_text.clone()),
        ("pg_get_function_result", no_text.clone()),
        ("pg_get_function_identity_arguments", no_text.clone()),
        ("pg_get_serial_sequence", no_text.clone()),
        ("pg_get_triggerdef", no_text.clone()),
        ("pg_get_ruledef", no_text.clone()),
        ("pg_tablespace_location", no_text.clone()),
        ("pg_get_functiondef", no_text.clone()),
        ("inet_client_addr", no_text.clone()),
        ("inet_server_addr", no_text),
        ("pg_type_is_visible", yes.clone()),
        ("pg_function_is_visible", yes.clone()),
        ("pg_operator_is_visible", yes.clone()),
        ("pg_collation_is_visible", yes.clone()),
        ("pg_opclass_is_visible", yes.clone()),
        ("pg_has_role", yes.clone()),
        ("has_column_privilege", yes.clone()),
        ("has_sequence_privilege", yes.clone()),
        ("has_function_privilege", yes),
        ("pg_is_in_recovery", ScalarValue::Boolean(Some(false))),
        ("pg_is_other_temp_schema", ScalarValue::Boolean(Some(false))),
        ("pg_my_temp_schema", ScalarValue::Int32(Some(0))),
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
        let name = of.and_then(|of| rows::type_of(of).ok()).map(type_name);
        Ok(ColumnarValue::Scalar(ScalarValue::Utf8(name)))
    }
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
