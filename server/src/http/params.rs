//! Statement parameters: JSON values for `$1`, `$2`, ….

use arrow_schema::{DataType, TimeUnit};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use datafusion::common::ScalarValue;
use serde_json::Value;

use super::error::ApiError;

/// Turns the JSON parameters of a request into values.
///
/// Plain JSON values get the type they look like: `null`, BOOLEAN, BIGINT, DOUBLE PRECISION,
/// TEXT. `{"type": "TIMESTAMP(3)", "value": "2026-01-01T00:00:00Z"}` names a type.
///
/// # Errors
/// 400 naming the parameter.
pub fn scalar_values(params: &[Value]) -> Result<Vec<ScalarValue>, ApiError> {
    params
        .iter()
        .enumerate()
        .map(|(i, value)| {
            scalar(value).map_err(|what| {
                ApiError::invalid("invalid_parameter", format!("parameter ${}: {what}", i + 1))
            })
        })
        .collect()
}

fn scalar(value: &Value) -> Result<ScalarValue, String> {
    Ok(match value {
        Value::Null => ScalarValue::Null,
        Value::Bool(flag) => ScalarValue::Boolean(Some(*flag)),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(n), _, _) => ScalarValue::Int64(Some(n)),
            (None, Some(n), _) => ScalarValue::UInt64(Some(n)),
            (None, None, Some(n)) => ScalarValue::Float64(Some(n)),
            (None, None, None) => return Err(format!("{number} is out of range")),
        },
        Value::String(text) => ScalarValue::Utf8(Some(text.clone())),
        Value::Object(typed) => {
            let name = typed.get("type").and_then(Value::as_str);
            let (Some(name), Some(value), 2) = (name, typed.get("value"), typed.len()) else {
                return Err(r#"a typed parameter is {"type": "…", "value": …}"#.into());
            };
            typed_scalar(name, value)?
        }
        Value::Array(_) => return Err("arrays are not supported as parameters".into()),
    })
}

fn typed_scalar(name: &str, value: &Value) -> Result<ScalarValue, String> {
    let data_type = type_named(name).ok_or_else(|| {
        format!(
            "unknown type {name:?}; known are BOOLEAN, SMALLINT, INTEGER, BIGINT, REAL, DOUBLE PRECISION, DECIMAL(p, s), TEXT, BYTEA, DATE, TIMESTAMP(p), TIMESTAMPTZ(p)"
        )
    })?;
    let text = match value {
        Value::Null => {
            return ScalarValue::try_from(&data_type).map_err(|e| e.to_string());
        }
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(_) | Value::Object(_) => {
            return Err("the value must be a text, a number, true, false or null".into());
        }
    };
    if data_type == DataType::Binary {
        return STANDARD
            .decode(&text)
            .map(|bytes| ScalarValue::Binary(Some(bytes)))
            .map_err(|e| format!("not base64: {e}"));
    }
    ScalarValue::try_from_string(text.clone(), &data_type)
        .map_err(|_| format!("{text:?} is no value of type {name}"))
}

/// The Arrow type (no views) of an SQL type name.
#[must_use]
pub fn type_named(name: &str) -> Option<DataType> {
    let name = name.trim().to_ascii_lowercase();
    let (base, arguments) = match name.split_once('(') {
        Some((base, rest)) => (base.trim().to_owned(), rest.strip_suffix(')')?),
        None => (name.clone(), ""),
    };
    let numbers = arguments
        .split(',')
        .map(str::trim)
        .filter(|a| !a.is_empty())
        .map(|a| a.parse::<u8>().ok())
        .collect::<Option<Vec<_>>>()?;
    Some(match (base.as_str(), numbers.as_slice()) {
        ("boolean" | "bool", []) => DataType::Boolean,
        ("smallint" | "int2", []) => DataType::Int16,
        ("integer" | "int" | "int4", []) => DataType::Int32,
        ("bigint" | "int8", []) => DataType::Int64,
        ("real" | "float4", []) => DataType::Float32,
        ("double precision" | "double" | "float8", []) => DataType::Float64,
        ("decimal" | "numeric", [p]) if (1..=38).contains(p) => DataType::Decimal128(*p, 0),
        ("decimal" | "numeric", [p, s]) if (1..=38).contains(p) && s <= p => {
            DataType::Decimal128(*p, i8::try_from(*s).ok()?)
        }
        ("text" | "varchar" | "string", _) => DataType::Utf8,
        ("bytea" | "binary", []) => DataType::Binary,
        ("date", []) => DataType::Date32,
        ("timestamp", digits) => DataType::Timestamp(unit(digits)?, None),
        ("timestamptz" | "timestamp with time zone", digits) => {
            DataType::Timestamp(unit(digits)?, Some("UTC".into()))
        }
        _ => return None,
    })
}

fn unit(digits: &[u8]) -> Option<TimeUnit> {
    Some(match digits {
        [0] => TimeUnit::Second,
        [3] => TimeUnit::Millisecond,
        [] | [6] => TimeUnit::Microsecond,
        [9] => TimeUnit::Nanosecond,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parameters_take_the_type_they_look_like_or_name() {
        let got = scalar_values(&[
            json!(null),
            json!(9_007_199_254_740_993_i64),
            json!(1.5),
            json!("x"),
            json!({"type": "TIMESTAMP(3)", "value": "2026-01-01T00:00:00Z"}),
            json!({"type": "DECIMAL(10, 2)", "value": "1.25"}),
            json!({"type": "bytea", "value": "/wA="}),
            json!({"type": "bigint", "value": null}),
        ])
        .expect("parameters");
        assert_eq!(got[0], ScalarValue::Null);
        assert_eq!(got[1], ScalarValue::Int64(Some(9_007_199_254_740_993)));
        assert_eq!(got[2], ScalarValue::Float64(Some(1.5)));
        assert_eq!(got[3], ScalarValue::Utf8(Some("x".into())));
        assert_eq!(
            got[4],
            ScalarValue::TimestampMillisecond(Some(1_767_225_600_000), None)
        );
        assert_eq!(got[5], ScalarValue::Decimal128(Some(125), 10, 2));
        assert_eq!(got[6], ScalarValue::Binary(Some(vec![255, 0])));
        assert_eq!(got[7], ScalarValue::Int64(None));
        for bad in [
            json!([1]),
            json!({"type": "uuid", "value": "x"}),
            json!({"type": "int", "value": "x"}),
            json!({"value": 1}),
        ] {
            let error = scalar_values(&[json!(1), bad]).expect_err("refused");
            assert!(
                error.message.starts_with("parameter $2: "),
                "{}",
                error.message
            );
        }
    }
}
