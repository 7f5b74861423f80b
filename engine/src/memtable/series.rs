//! The distinct series of one memtable, numbered in the order in which they were first seen.

use std::sync::Arc;

use ahash::AHashMap;
use arrow_array::{Array, ArrayRef, UInt32Array, new_null_array};
use arrow_schema::DataType;
use arrow_select::{concat::concat, take::take};
use hashbrown::HashTable;
use parking_lot::{Mutex, RwLock};
use shoal_rows::Series;
use shoal_sst::SeriesEncoder;
use shoal_types::ColumnId;

use crate::EngineError;

/// A series' number in one memtable.
pub(super) type Sid = u32;

/// Grows only: a view that knows how many series it may see reads it beside the writer.
#[derive(Debug, Default)]
pub(super) struct SeriesDictionary {
    inner: RwLock<Inner>,
    /// Rank of each series by its encoded form, for the first so many series.
    ranks: Mutex<Arc<Vec<u32>>>,
    /// Key columns as arrays by series number; as many entries as there were series then.
    columns: Mutex<AHashMap<ColumnId, ArrayRef>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Encoded series, one after another.
    keys: Vec<u8>,
    ends: Vec<usize>,
    index: HashTable<Sid>,
    hasher: ahash::RandomState,
    /// Key values of the series that each block brought.
    added: Vec<Added>,
    bytes: usize,
}

#[derive(Debug)]
struct Added {
    len: usize,
    columns: Vec<(ColumnId, ArrayRef)>,
}

impl Inner {
    fn key(&self, sid: Sid) -> &[u8] {
        let at = sid as usize;
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.keys[start..self.ends[at]]
    }
}

impl SeriesDictionary {
    /// Numbers of a block's series, new ones added.
    pub(super) fn numbers_of(&self, series: &Series) -> Vec<Sid> {
        let encoder = SeriesEncoder::new(series);
        let mut guard = self.inner.write();
        let inner = &mut *guard;
        let mut numbers = Vec::with_capacity(series.len);
        let mut fresh: Vec<u32> = Vec::new();
        let mut key = Vec::new();
        for index in 0..series.len {
            key.clear();
            encoder.encode(index, &mut key);
            let hash = inner.hasher.hash_one(key.as_slice());
            let known = inner
                .index
                .find(hash, |sid| inner.key(*sid) == key.as_slice())
                .copied();
            numbers.push(known.unwrap_or_else(|| {
                let sid = inner.ends.len() as Sid;
                inner.keys.extend_from_slice(&key);
                inner.ends.push(inner.keys.len());
                let Inner {
                    index: by_key,
                    keys,
                    ends,
                    hasher,
                    ..
                } = &mut *inner;
                by_key.insert_unique(hash, sid, |sid| {
                    let at = *sid as usize;
                    let start = at.checked_sub(1).map_or(0, |before| ends[before]);
                    hasher.hash_one(&keys[start..ends[at]])
                });
                fresh.push(index as u32);
                sid
            }));
        }
        if !fresh.is_empty() {
            inner.add(series, fresh);
        }
        numbers
    }

    /// Number of series.
    pub(super) fn len(&self) -> usize {
        self.inner.read().ends.len()
    }

    /// Bytes held, caches included.
    pub(super) fn memory_bytes(&self) -> usize {
        let caches = self.ranks.lock().len() * 4
            + self
                .columns
                .lock()
                .values()
                .map(|c| c.get_array_memory_size())
                .sum::<usize>();
        let inner = self.inner.read();
        inner.keys.capacity()
            + inner.ends.capacity() * 8
            + inner.index.capacity() * 5
            + inner.bytes
            + caches
    }

    /// Sorts series numbers by their encoded form.
    pub(super) fn sort(&self, sids: &mut [Sid]) {
        let inner = self.inner.read();
        sids.sort_unstable_by(|a, b| inner.key(*a).cmp(inner.key(*b)));
    }

    /// Rank of each of the first `count` series (or more) by its encoded form. Ranks of one call
    /// compare with each other only.
    pub(super) fn ranks(&self, count: usize) -> Arc<Vec<u32>> {
        let mut cached = self.ranks.lock();
        if cached.len() < count {
            let mut order: Vec<Sid> = (0..self.len() as Sid).collect();
            self.sort(&mut order);
            let mut ranks = vec![0; order.len()];
            for (rank, sid) in order.into_iter().enumerate() {
                ranks[sid as usize] = rank as u32;
            }
            *cached = Arc::new(ranks);
        }
        Arc::clone(&cached)
    }

    /// The number of an encoded series.
    pub(super) fn find(&self, encoded: &[u8]) -> Option<Sid> {
        let inner = self.inner.read();
        let hash = inner.hasher.hash_one(encoded);
        inner
            .index
            .find(hash, |sid| inner.key(*sid) == encoded)
            .copied()
    }

    /// A key column's value for each of the first `count` series (or more); NULL for series from
    /// before the column was added.
    pub(super) fn column(
        &self,
        id: ColumnId,
        data_type: &DataType,
        count: usize,
    ) -> Result<ArrayRef, EngineError> {
        let mut columns = self.columns.lock();
        if let Some(column) = columns.get(&id)
            && column.len() >= count
        {
            return Ok(Arc::clone(column));
        }
        let inner = self.inner.read();
        let parts: Vec<ArrayRef> = inner
            .added
            .iter()
            .map(|added| {
                added.columns.iter().find(|(of, _)| *of == id).map_or_else(
                    || new_null_array(data_type, added.len),
                    |(_, v)| Arc::clone(v),
                )
            })
            .collect();
        let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
        let column = match parts[..] {
            [] => new_null_array(data_type, 0),
            _ => concat(&parts).map_err(super::defect)?,
        };
        columns.insert(id, Arc::clone(&column));
        Ok(column)
    }
}

impl Inner {
    fn add(&mut self, series: &Series, fresh: Vec<u32>) {
        let len = fresh.len();
        let indices = UInt32Array::from(fresh);
        let columns: Vec<(ColumnId, ArrayRef)> = series
            .columns
            .iter()
            .zip(&series.values)
            .map(|(id, values)| {
                let taken = take(values, &indices, None)
                    .expect("indices lie below the length of every series column");
                (*id, compact(&taken))
            })
            .collect();
        self.bytes += columns
            .iter()
            .map(|(_, v)| v.get_array_memory_size())
            .sum::<usize>()
            + 64;
        self.added.push(Added { len, columns });
        // One block a new series must not leave one small array a series.
        if self.added.len() >= 256 {
            self.unite();
        }
    }

    fn unite(&mut self) {
        let mut ids: Vec<(ColumnId, DataType)> = Vec::new();
        for (id, values) in self.added.iter().flat_map(|a| &a.columns) {
            if !ids.iter().any(|(known, _)| known == id) {
                ids.push((*id, values.data_type().clone()));
            }
        }
        let len = self.added.iter().map(|a| a.len).sum();
        let mut columns = Vec::with_capacity(ids.len());
        for (id, data_type) in ids {
            let parts: Vec<ArrayRef> = self
                .added
                .iter()
                .map(|added| {
                    added.columns.iter().find(|(of, _)| *of == id).map_or_else(
                        || new_null_array(&data_type, added.len),
                        |(_, v)| Arc::clone(v),
                    )
                })
                .collect();
            let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
            let Ok(column) = concat(&parts) else { return };
            columns.push((id, compact(&column)));
        }
        self.bytes = columns
            .iter()
            .map(|(_, v): &(ColumnId, ArrayRef)| v.get_array_memory_size())
            .sum();
        self.added = vec![Added { len, columns }];
    }
}

/// Lets go of the buffers of the block that a view array came from.
pub(super) fn compact(values: &ArrayRef) -> ArrayRef {
    use arrow_array::cast::AsArray;
    match values.data_type() {
        DataType::Utf8View => Arc::new(values.as_string_view().gc()),
        DataType::BinaryView => Arc::new(values.as_binary_view().gc()),
        _ => Arc::clone(values),
    }
}
