//! Arrays of the catalogs. `datafusion-pg-catalog` keeps them as PostgreSQL prints them: arrays as
//! `{1,2}`, `int2vector` and `oidvector` as `1 2`. Where a query uses one as an array, the
//! rewriting (`rewrite`) puts one of these functions around it.

use std::sync::{Arc, LazyLock};

use arrow_array::builder::{Int32Builder, ListBuilder, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, Int32Array, ListArray, RecordBatch, StringArray, StructArray};
use arrow_buffer::{NullBuffer, OffsetBuffer};
use arrow_schema::{DataType, Field, Fields, Schema};
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

/// Columns that are arrays of numbers.
const NUMBERS: &[&str] = &[
    "confdelsetcols",
    "confkey",
    "conkey",
    "extconfig",
    "polroles",
    "proallargtypes",
    "protrftypes",
];

/// Columns that are vectors of numbers: subscripts begin with 0.
const VECTORS: &[&str] = &[
    "indclass",
    "indcollation",
    "indkey",
    "indoption",
    "partattrs",
    "partclass",
    "partcollation",
    "prattrs",
    "proargtypes",
    "stxkeys",
    "tgattr",
];

/// Columns that are arrays of texts.
const TEXTS: &[&str] = &[
    "attoptions",
    "datacl",
    "evttags",
    "extcondition",
    "fdwoptions",
    "ftoptions",
    "proargmodes",
    "proargnames",
    "proconfig",
    "reloptions",
    "setconfig",
    "spcoptions",
    "srvoptions",
    "stxkind",
    "subpublications",
    "umoptions",
];

/// Functions whose first argument is an array.
pub const TAKERS: &[&str] = &[
    "array_length",
    "array_lower",
    "array_position",
    "array_remove",
    "array_to_string",
    "array_upper",
    "cardinality",
    "unnest",
];

/// What a column of a catalog holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Numbers; subscripts begin with 1.
    Numbers,
    /// Numbers; subscripts begin with 0.
    Vector,
    /// Texts; subscripts begin with 1.
    Texts,
}

impl Kind {
    /// Of a column; queries within queries pass one on with something before its name.
    #[must_use]
    pub fn of(column: &str) -> Option<Self> {
        let column = column.to_lowercase();
        let is = |names: &[&str]| names.iter().any(|name| column.ends_with(name));
        if is(VECTORS) {
            Some(Self::Vector)
        } else if is(NUMBERS) {
            Some(Self::Numbers)
        } else if is(TEXTS) || column.ends_with("acl") {
            Some(Self::Texts)
        } else {
            None
        }
    }

    /// The function that makes an array of the text.
    #[must_use]
    pub fn function(self) -> &'static str {
        match self {
            Self::Numbers | Self::Vector => "shoal_numbers",
            Self::Texts => "shoal_texts",
        }
    }
}

/// The items of an array or vector as PostgreSQL prints it, or of an array as the crate's tables
/// have it; `None`: NULL.
pub fn items(text: &str) -> Vec<Option<String>> {
    let text = text.trim();
    if let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        return listed(inner);
    }
    let Some(inner) = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) else {
        let parts = text.split_ascii_whitespace();
        return parts.map(|part| Some(part.to_owned())).collect();
    };
    if inner.is_empty() {
        return Vec::new();
    }
    let mut items = Vec::new();
    let (mut item, mut quoted, mut was_quoted) = (String::new(), false, false);
    let mut chars = inner.chars();
    loop {
        match chars.next() {
            Some('\\') => item.extend(chars.next()),
            Some('"') => {
                quoted = !quoted;
                was_quoted = true;
            }
            Some(c) if quoted || c != ',' => item.push(c),
            end => {
                let is_null = !was_quoted && item.eq_ignore_ascii_case("null");
                let whole = std::mem::take(&mut item);
                items.push((!is_null).then_some(whole));
                was_quoted = false;
                if end.is_none() {
                    return items;
                }
            }
        }
    }
}

/// The items of `'a', "it's", 1, None`: what was exported is a list of another language.
fn listed(inner: &str) -> Vec<Option<String>> {
    let mut items = Vec::new();
    let mut rest = inner.trim_start();
    while let Some(first) = rest.chars().next() {
        let end = if matches!(first, '\'' | '"') {
            let close = rest[1..].find(first).map_or(rest.len(), |at| at + 1);
            items.push(Some(rest[1..close].to_owned()));
            (close + 1).min(rest.len())
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            let item = rest[..end].trim();
            items.push((item != "None").then(|| item.to_owned()));
            end
        };
        rest = rest[end..].trim_start_matches([',', ' ']);
    }
    items
}

/// An array as PostgreSQL prints it.
fn printed(items: &[Option<String>]) -> String {
    let item = |item: &Option<String>| match item {
        None => "NULL".to_owned(),
        Some(text) => {
            let special = |c: char| c.is_whitespace() || "{}\",\\".contains(c);
            if text.is_empty() || text.contains(special) || text.eq_ignore_ascii_case("null") {
                format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
            } else {
                text.clone()
            }
        }
    };
    let items: Vec<String> = items.iter().map(item).collect();
    format!("{{{}}}", items.join(","))
}

/// Columns of `pg_proc` that clients read as arrays: JDBC's driver takes them apart itself.
const REAL: &[&str] = &["proallargtypes", "proargmodes", "proargnames"];

/// A table of the crate with its arrays as PostgreSQL prints them; the few that clients take apart
/// as arrays.
///
/// # Errors
/// None that can be: the columns have one length.
pub fn as_printed(batch: &RecordBatch) -> Result<RecordBatch> {
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let column = match column.as_string_opt::<i32>() {
            Some(texts) if REAL.contains(&field.name().as_str()) => match Kind::of(field.name()) {
                Some(Kind::Texts) => text_lists(texts),
                _ => arrow_cast::cast(&number_lists(texts), &BIGINTS)?,
            },
            Some(texts) => printed_lists(texts).unwrap_or_else(|| Arc::clone(column)),
            None => Arc::clone(column),
        };
        let of = column.data_type().clone();
        fields.push(Field::clone(field).with_data_type(of));
        columns.push(column);
    }
    Ok(RecordBatch::try_new(
        Arc::new(Schema::new(fields)),
        columns,
    )?)
}

/// What JDBC's driver takes a list of oids for.
static BIGINTS: LazyLock<DataType> =
    LazyLock::new(|| DataType::List(Arc::new(Field::new_list_field(DataType::Int64, true))));

/// `None`: these are no lists.
fn printed_lists(texts: &StringArray) -> Option<ArrayRef> {
    let is_list = |text: &str| text.starts_with('[') && text.ends_with(']');
    if !texts.iter().flatten().next().is_some_and(is_list) {
        return None;
    }
    let lists = texts.iter().map(|text| text.map(|t| printed(&items(t))));
    Some(Arc::new(lists.collect::<StringArray>()))
}

fn text_lists(texts: &StringArray) -> ArrayRef {
    let mut lists = ListBuilder::new(StringBuilder::new());
    for text in texts {
        for item in text.map(items).unwrap_or_default() {
            lists.values().append_option(item);
        }
        lists.append(text.is_some());
    }
    Arc::new(lists.finish())
}

fn number_lists(texts: &StringArray) -> ArrayRef {
    let mut lists = ListBuilder::new(Int32Builder::new());
    for text in texts {
        let numbers = text.map(numbers).unwrap_or_default();
        lists.values().append_slice(&numbers);
        lists.append(text.is_some());
    }
    Arc::new(lists.finish())
}

/// The numbers of an array or vector.
pub fn numbers(text: &str) -> Vec<i32> {
    let number = |item: Option<String>| item.and_then(|i| i.parse().ok());
    items(text).into_iter().filter_map(number).collect()
}

/// All functions of arrays.
pub fn functions() -> impl Iterator<Item = ScalarUDF> {
    [
        ("shoal_numbers", Makes::Numbers),
        ("shoal_texts", Makes::Texts),
        ("_pg_expandarray", Makes::Places),
    ]
    .map(|(name, makes)| {
        ScalarUDF::new_from_impl(FromText {
            name,
            makes,
            signature: Signature::any(1, Volatility::Immutable),
        })
    })
    .into_iter()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Makes {
    Numbers,
    Texts,
    /// Each item, `x`, with its place, `n`, from 1.
    Places,
}

/// Makes an array of a text; what is an array already stays as it is.
#[derive(Debug, PartialEq, Eq, Hash)]
struct FromText {
    name: &'static str,
    makes: Makes,
    signature: Signature,
}

fn places() -> Fields {
    Fields::from(vec![
        Field::new("x", DataType::Int32, true),
        Field::new("n", DataType::Int32, true),
    ])
}

impl ScalarUDFImpl for FromText {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let of = match self.makes {
            Makes::Places => DataType::Struct(places()),
            _ if matches!(types.first(), Some(DataType::List(_))) => return Ok(types[0].clone()),
            Makes::Numbers => DataType::Int32,
            Makes::Texts => DataType::Utf8,
        };
        Ok(DataType::List(Arc::new(Field::new_list_field(of, true))))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let array = args.args[0].to_array(args.number_rows)?;
        if matches!(array.data_type(), DataType::List(_)) && self.makes != Makes::Places {
            return Ok(ColumnarValue::Array(array));
        }
        let texts = arrow_cast::cast(&array, &DataType::Utf8)?;
        let texts = texts.as_string::<i32>();
        let made: ArrayRef = match self.makes {
            Makes::Texts => text_lists(texts),
            Makes::Numbers => number_lists(texts),
            Makes::Places => {
                let lists: Vec<Vec<i32>> = texts
                    .iter()
                    .map(|text| text.map(numbers).unwrap_or_default())
                    .collect();
                let values: Int32Array = lists.iter().flatten().map(|x| Some(*x)).collect();
                let place = |list: &Vec<i32>| 1..=i32::try_from(list.len()).unwrap_or(i32::MAX);
                let numbers: Int32Array = lists.iter().flat_map(place).map(Some).collect();
                let columns: Vec<ArrayRef> = vec![Arc::new(values), Arc::new(numbers)];
                let rows = StructArray::try_new(places(), columns, None)?;
                let valid: NullBuffer = texts
                    .iter()
                    .map(|text| text.is_some())
                    .collect::<Vec<_>>()
                    .into();
                Arc::new(ListArray::try_new(
                    Arc::new(Field::new_list_field(DataType::Struct(places()), true)),
                    OffsetBuffer::from_lengths(lists.iter().map(Vec::len)),
                    Arc::new(rows),
                    Some(valid),
                )?)
            }
        };
        Ok(ColumnarValue::Array(made))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_and_vectors_are_read_as_they_are_printed() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(items("{}"), []);
        assert_eq!(items(""), []);
        assert_eq!(items("1 2"), [some("1"), some("2")]);
        assert_eq!(
            items(r#"{a,"b, \"c\"",NULL,"NULL",""}"#),
            [some("a"), some("b, \"c\""), None, some("NULL"), some("")]
        );
        assert_eq!(
            items(r#"['a', "it's", None, '', 1]"#),
            [some("a"), some("it's"), None, some(""), some("1")]
        );
        assert_eq!(
            printed(&items("['a b', 'c', None, '']")),
            r#"{"a b",c,NULL,""}"#
        );
        assert_eq!(numbers("[3, -1]"), [3, -1]);
        assert_eq!(numbers("{3,-1}"), [3, -1]);
        assert_eq!(Kind::of("i_indoption"), Some(Kind::Vector));
        assert_eq!(Kind::of("conkey"), Some(Kind::Numbers));
        assert_eq!(Kind::of("relacl"), Some(Kind::Texts));
        assert_eq!(Kind::of("hostname"), None);
    }
}
