//! Functions that PostgreSQL clients call and that neither DataFusion nor `datafusion-pg-catalog`
//! has. They tell what is true of this server: no comments, no indexes, everything visible;
//! NULL where it does not know (sizes).

use arrow_schema::DataType;
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature,
    Volatility,
};
use datafusion::scalar::ScalarValue;

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
        ("pg_size_pretty", no_text),
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
        ("txid_current", ScalarValue::Int64(Some(0))),
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
