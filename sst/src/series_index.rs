//! Which rows of a file belong to which series: a section before the footer, so that a reader
//! finds a series' rows, or every series' last row, without reading data.
//!
//! Bytes: `version = 1`, number of series, then for each series in file order: rows it has,
//! length of the prefix it shares with the series before, length of the rest, the rest. Numbers
//! are LEB128.

use std::ops::Range;

/// Format version of the section.
const VERSION: u64 = 1;
/// Series beyond which the index is left out: it would cost more to load than it saves.
pub(crate) const SERIES_MAX: usize = 1_000_000;
/// Bytes beyond which the index is left out.
pub(crate) const BYTES_MAX: usize = 16 << 20;

/// The series of one file and their rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeriesIndex {
    /// First row of each series, then the number of rows of the file.
    starts: Vec<u64>,
    /// Encoded series, one after another.
    keys: Vec<u8>,
    /// End of each in `keys`.
    ends: Vec<u32>,
}

impl SeriesIndex {
    /// Number of series.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The encoded form ([`crate::SeriesEncoder`]) of series `index`; series ascend by it.
    #[must_use]
    pub fn key(&self, index: usize) -> &[u8] {
        let start = index
            .checked_sub(1)
            .map_or(0, |before| self.ends[before] as usize);
        &self.keys[start..self.ends[index] as usize]
    }

    /// The rows of series `index`.
    #[must_use]
    pub fn range(&self, index: usize) -> Range<u64> {
        self.starts[index]..self.starts[index + 1]
    }

    /// The rows of an encoded series, if the file has any.
    #[must_use]
    pub fn range_of(&self, encoded_series: &[u8]) -> Option<Range<u64>> {
        let at = self.first_at_or_after(encoded_series);
        (at < self.len() && self.key(at) == encoded_series).then(|| self.range(at))
    }

    /// The first series whose encoded form is not below `encoded`, for ranges of series.
    #[must_use]
    pub fn first_at_or_after(&self, encoded: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.key(middle) < encoded {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Every series with its rows, in file order.
    pub fn ranges(&self) -> impl Iterator<Item = (&[u8], Range<u64>)> {
        (0..self.len()).map(|i| (self.key(i), self.range(i)))
    }

    /// Bytes held.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.starts.len() * 8 + self.keys.len() + self.ends.len() * 4 + 96
    }

    /// Reads the section.
    ///
    /// # Errors
    /// What is wrong with the bytes; never panics.
    pub(crate) fn decode(bytes: &[u8], rows: u64) -> Result<Self, String> {
        let mut input = bytes;
        let version = take_number(&mut input)?;
        if version != VERSION {
            return Err(format!("series index of version {version}"));
        }
        let count = usize::try_from(take_number(&mut input)?).map_err(|e| e.to_string())?;
        if count > SERIES_MAX {
            return Err(format!("series index claims {count} series"));
        }
        let mut index = Self {
            starts: Vec::with_capacity(count + 1),
            keys: Vec::with_capacity(bytes.len()),
            ends: Vec::with_capacity(count),
        };
        let (mut row, mut previous) = (0_u64, 0..0);
        for _ in 0..count {
            index.starts.push(row);
            row = row
                .checked_add(take_number(&mut input)?)
                .ok_or("row numbers overflow")?;
            let shared = usize::try_from(take_number(&mut input)?).map_err(|e| e.to_string())?;
            let rest = usize::try_from(take_number(&mut input)?).map_err(|e| e.to_string())?;
            if shared > previous.len() || rest > input.len() {
                return Err("series key beyond the section".into());
            }
            let start = index.keys.len();
            if start + shared + rest > 1 << 30 {
                return Err("series keys beyond 1 GiB".into());
            }
            index
                .keys
                .extend_from_within(previous.start..previous.start + shared);
            index.keys.extend_from_slice(&input[..rest]);
            input = &input[rest..];
            previous = start..index.keys.len();
            index.ends.push(index.keys.len() as u32);
        }
        index.starts.push(row);
        if !input.is_empty() || row != rows {
            return Err(format!("series index covers {row} of {rows} rows"));
        }
        Ok(index)
    }
}

/// Collects the section while a file is written.
#[derive(Debug, Default)]
pub(crate) struct SeriesIndexBuilder {
    entries: Vec<u8>,
    count: usize,
    rows_of_last: u64,
    /// The last series, whose row count is not known yet.
    last: Vec<u8>,
    before_last: Vec<u8>,
    /// Too large: nothing is kept any more.
    overflowed: bool,
}

impl SeriesIndexBuilder {
    /// `rows` more rows of `series`; equal to the last one or a new one.
    pub(crate) fn add(&mut self, series: &[u8], rows: u64) {
        if self.overflowed {
            if self.last != series {
                self.count += 1;
                series.clone_into(&mut self.last);
            }
            return;
        }
        if self.count > 0 && self.last == series {
            self.rows_of_last += rows;
            return;
        }
        self.close_last();
        std::mem::swap(&mut self.before_last, &mut self.last);
        series.clone_into(&mut self.last);
        self.rows_of_last = rows;
        self.count += 1;
        if self.count > SERIES_MAX || self.entries.len() > BYTES_MAX {
            self.overflowed = true;
            self.entries = Vec::new();
        }
    }

    /// Number of distinct series.
    pub(crate) fn series(&self) -> u64 {
        self.count as u64
    }

    /// The last series added.
    pub(crate) fn last(&self) -> &[u8] {
        &self.last
    }

    fn close_last(&mut self) {
        if self.count == 0 {
            return;
        }
        let shared = self
            .before_last
            .iter()
            .zip(&self.last)
            .take_while(|(a, b)| a == b)
            .count();
        put_number(&mut self.entries, self.rows_of_last);
        put_number(&mut self.entries, shared as u64);
        put_number(&mut self.entries, (self.last.len() - shared) as u64);
        self.entries.extend_from_slice(&self.last[shared..]);
    }

    /// The section, or `None` where it would not pay: more than one series every four rows.
    pub(crate) fn finish(mut self, rows: u64) -> Option<Vec<u8>> {
        if self.overflowed || self.count == 0 || self.count as u64 > rows / 4 {
            return None;
        }
        self.close_last();
        let mut out = Vec::with_capacity(self.entries.len() + 16);
        put_number(&mut out, VERSION);
        put_number(&mut out, self.count as u64);
        out.extend_from_slice(&self.entries);
        Some(out)
    }
}

fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_number(input: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = input.split_first().ok_or("number cut short")?;
        *input = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err("number too long".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_rows_of_each_series_and_refuses_every_cut() {
        let mut builder = SeriesIndexBuilder::default();
        for i in 0..100_u64 {
            let key = format!("host_{i:03}");
            builder.add(key.as_bytes(), 10);
            builder.add(key.as_bytes(), i);
        }
        let rows = 100 * 10 + 99 * 50;
        let bytes = builder.finish(rows).expect("pays");
        let index = SeriesIndex::decode(&bytes, rows).expect("ours");
        assert_eq!(index.len(), 100);
        assert_eq!(index.range_of(b"host_002"), Some(21..33));
        assert_eq!(index.range_of(b"host_0021"), None);
        assert_eq!(index.ranges().last().expect("some").1.end, rows);
        for cut in 0..bytes.len() {
            assert!(SeriesIndex::decode(&bytes[..cut], rows).is_err());
        }
    }

    #[test]
    fn bytes_are_those_of_version_1() {
        let mut builder = SeriesIndexBuilder::default();
        builder.add(b"\x01a", 4);
        builder.add(b"\x01ab", 300);
        let bytes = builder.finish(304).expect("pays");
        assert_eq!(bytes, b"\x01\x02\x04\x00\x02\x01a\xac\x02\x02\x01b");
    }

    #[test]
    fn is_left_out_where_nearly_every_row_is_its_own_series() {
        let mut builder = SeriesIndexBuilder::default();
        for i in 0..100_u64 {
            builder.add(&i.to_be_bytes(), 1);
        }
        assert_eq!(builder.finish(100), None);
    }
}
