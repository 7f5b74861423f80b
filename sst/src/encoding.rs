//! How each column is encoded, decided once a file from a sample of its first rows.
//!

use ahash::AHashSet;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_buffer::ScalarBuffer;
use arrow_schema::{DataType, TimeUnit};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{
    EnabledStatistics, WriterProperties, WriterPropertiesBuilder, WriterVersion,
};
use parquet::schema::types::ColumnPath;
use shoal_types::TableSchema;

use crate::{HIDDEN_OP, HIDDEN_SET, SstWriteOptions};

/// Rows looked at per column.
const SAMPLE_ROWS: usize = 65_536;
/// Least distinct values for which a bloom filter says more than a dictionary does.
const BLOOM_DISTINCT_MIN: usize = 64;

/// What the sample says of a column.
struct Sample {
    rows: usize,
    distinct: usize,
    /// Estimated bits a value with a dictionary.
    dictionary_bits: f64,
    /// Estimated bits a value as packed differences; infinite where that cannot be.
    delta_bits: f64,
}

/// The writer's settings for batches like `sample`.
pub(crate) fn properties(
    schema: &TableSchema,
    sample: &RecordBatch,
    options: &SstWriteOptions,
) -> Result<WriterPropertiesBuilder, String> {
    let compression = match options.zstd_level {
        None => Compression::LZ4_RAW,
        Some(level) => Compression::ZSTD(ZstdLevel::try_new(level).map_err(|e| e.to_string())?),
    };
    let mut builder = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_created_by(format!("ShoalDB {}", env!("CARGO_PKG_VERSION")))
        .set_compression(compression)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_max_row_group_row_count(Some(options.row_group_rows))
        .set_max_row_group_bytes(Some(options.row_group_bytes))
        .set_data_page_row_count_limit(options.page_rows)
        .set_write_batch_size(options.page_rows.clamp(1, 1024))
        .set_dictionary_page_size_limit(256 << 10)
        .set_column_index_truncate_length(Some(32))
        .set_statistics_truncate_length(Some(64));
    for (field, values) in sample.schema().fields().iter().zip(sample.columns()) {
        let path = ColumnPath::from(vec![field.name().clone()]);
        if field.name() == HIDDEN_OP || field.name() == HIDDEN_SET {
            builder = builder.set_column_statistics_enabled(path, EnabledStatistics::Chunk);
            continue;
        }
        let column = schema.column(field.name());
        let is_key = column.is_some_and(|c| schema.is_key(c.id));
        let is_time = column.is_some_and(|c| schema.time_column == Some(c.id));
        let sample = look_at(values);
        match values.data_type() {
            // A dictionary pays for status-like values; anything else compresses far better
            // with equal bytes side by side.
            DataType::Float32 | DataType::Float64 if sample.distinct * 16 > sample.rows => {
                builder = builder
                    .set_column_dictionary_enabled(path.clone(), false)
                    .set_column_encoding(path, Encoding::BYTE_STREAM_SPLIT);
            }
            DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::Date32
            | DataType::Timestamp(..)
                if (is_time && is_key) || sample.delta_bits < sample.dictionary_bits =>
            {
                builder = builder
                    .set_column_dictionary_enabled(path.clone(), false)
                    .set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
            }
            DataType::Utf8View | DataType::BinaryView
                if !is_key
                    && sample.distinct > BLOOM_DISTINCT_MIN
                    && sample.distinct * 2 < sample.rows =>
            {
                builder = builder
                    .set_column_bloom_filter_enabled(path.clone(), true)
                    .set_column_bloom_filter_fpp(path.clone(), 0.01)
                    .set_column_bloom_filter_max_ndv(path, 100_000);
            }
            _ => {}
        }
    }
    Ok(builder)
}

fn look_at(values: &ArrayRef) -> Sample {
    let values = values.slice(0, values.len().min(SAMPLE_ROWS));
    match values.data_type() {
        DataType::Int16 => of_integers(
            values
                .as_primitive::<Int16Type>()
                .iter()
                .flatten()
                .map(i64::from),
        ),
        DataType::Int32 => of_integers(
            values
                .as_primitive::<Int32Type>()
                .iter()
                .flatten()
                .map(i64::from),
        ),
        DataType::Int64 => of_integers(values.as_primitive::<Int64Type>().iter().flatten()),
        DataType::Date32 => of_integers(
            values
                .as_primitive::<Date32Type>()
                .iter()
                .flatten()
                .map(i64::from),
        ),
        DataType::Timestamp(..) => match times_of(&values) {
            Some(times) => of_integers(times.iter().copied()),
            None => of_distinct(std::iter::empty()),
        },
        DataType::Float32 => of_distinct(
            values
                .as_primitive::<Float32Type>()
                .iter()
                .flatten()
                .map(|v| u64::from(v.to_bits())),
        ),
        DataType::Float64 => of_distinct(
            values
                .as_primitive::<Float64Type>()
                .iter()
                .flatten()
                .map(f64::to_bits),
        ),
        DataType::Utf8View => of_distinct(
            values
                .as_string_view()
                .iter()
                .flatten()
                .map(|v| hash(v.as_bytes())),
        ),
        DataType::BinaryView => of_distinct(values.as_binary_view().iter().flatten().map(hash)),
        _ => of_distinct(std::iter::empty()),
    }
}

/// The integers of a timestamp array, whatever its unit; `None` for other types. Where a value is
/// NULL the integer means nothing.
#[must_use]
pub fn times_of(values: &dyn Array) -> Option<&ScalarBuffer<i64>> {
    Some(match values.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => {
            values.as_primitive::<TimestampSecondType>().values()
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            values.as_primitive::<TimestampMillisecondType>().values()
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            values.as_primitive::<TimestampMicrosecondType>().values()
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            values.as_primitive::<TimestampNanosecondType>().values()
        }
        _ => return None,
    })
}

fn hash(bytes: &[u8]) -> u64 {
    // A fixed seed: the same rows give the same file.
    ahash::RandomState::with_seeds(1, 2, 3, 4).hash_one(bytes)
}

fn of_distinct(values: impl Iterator<Item = u64>) -> Sample {
    let mut rows = 0;
    let mut seen = AHashSet::new();
    for value in values {
        rows += 1;
        seen.insert(value);
    }
    Sample {
        rows,
        distinct: seen.len(),
        dictionary_bits: 0.0,
        delta_bits: f64::INFINITY,
    }
}

/// Estimates both encodings: a dictionary costs its values once and an index a row (little in
/// long runs), differences cost the widest of every 32 (a mini-block of DELTA_BINARY_PACKED).
fn of_integers(values: impl Iterator<Item = i64>) -> Sample {
    let mut seen = AHashSet::new();
    let (mut rows, mut runs, mut delta_bits_total) = (0_usize, 0_usize, 0_u64);
    let mut previous: Option<i64> = None;
    let mut block: Vec<i128> = Vec::with_capacity(128);
    let mut close = |block: &mut Vec<i128>| {
        let least = block.iter().min().copied().unwrap_or(0);
        for mini in block.chunks(32) {
            let widest = mini.iter().map(|d| d - least).max().unwrap_or(0);
            delta_bits_total += u64::from(128 - widest.leading_zeros()) * 32 + 8;
        }
        delta_bits_total += 32;
        block.clear();
    };
    for value in values {
        rows += 1;
        seen.insert(value);
        if let Some(before) = previous {
            runs += usize::from(before != value);
            block.push(i128::from(value) - i128::from(before));
            if block.len() == 128 {
                close(&mut block);
            }
        }
        previous = Some(value);
    }
    close(&mut block);
    let distinct = seen.len();
    let index_bits = f64::from(usize::BITS - distinct.saturating_sub(1).leading_zeros());
    let per_row = rows.max(1) as f64;
    let packed = index_bits.min((runs + 1) as f64 * 24.0 / per_row);
    Sample {
        rows,
        distinct,
        dictionary_bits: packed + distinct as f64 * 64.0 / per_row,
        delta_bits: delta_bits_total as f64 / per_row,
    }
}
