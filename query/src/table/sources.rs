//! What a view's rows come from, and which sources may hold versions of the same key.
//!
//! Sources that cannot meet need no merge; those that can form a *set*, merged old to new. A
//! row's versions all lie in one set, so that sets are independent of each other.

use shoal_engine::ReadView;
use shoal_types::{TableMode, TableSchema};

use super::bounds::Bounds;

/// A place in a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// A file, by its place in [`ReadView::files`].
    File(usize),
    /// A memory run, by its place in [`ReadView::memory`].
    Memory(usize),
}

/// The sets of a view that can hold wanted rows; sources old to new in each.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    /// Files that stand alone, with neither tombstones nor partial rows: read as they are.
    pub plain: Vec<usize>,
    /// All others.
    pub merged: Vec<Vec<Source>>,
}

/// What grouping needs to know of a source.
struct Extent<'a> {
    source: Source,
    /// `None`: any time.
    time: Option<(i64, i64)>,
    /// `None`: any series.
    series: Option<(&'a [u8], &'a [u8])>,
}

impl Extent<'_> {
    fn meets(&self, other: &Self, time_is_key: bool) -> bool {
        let times = match (self.time, other.time) {
            (Some(a), Some(b)) if time_is_key => a.0 <= b.1 && b.0 <= a.1,
            _ => true,
        };
        let series = match (self.series, other.series) {
            (Some(a), Some(b)) => a.0 <= b.1 && b.0 <= a.1,
            _ => true,
        };
        times && series
    }
}

/// Groups a view's sources and leaves out what the bounds exclude.
pub(crate) fn sets(view: &ReadView, bounds: &Bounds) -> Sets {
    let schema = &view.schema;
    let mut extents: Vec<Extent<'_>> = view
        .files
        .iter()
        .enumerate()
        .filter(|(_, file)| bounds.meets_file(file))
        .map(|(i, file)| Extent {
            source: Source::File(i),
            time: file.time_range,
            series: Some((&file.key_min, &file.key_max)),
        })
        .collect();
    // Files are ordered old to new and all memory is newer, so that extents are in version order.
    extents.extend(
        view.memory
            .iter()
            .enumerate()
            .filter(|(_, memory)| memory.rows() > 0 && bounds.meets_times(memory.time_range()))
            .map(|(i, memory)| Extent {
                source: Source::Memory(i),
                time: memory.time_range(),
                series: None,
            }),
    );
    let mut sets = Sets::default();
    for group in groups(schema, &extents) {
        match group[..] {
            [Source::File(i)] if !view.files[i].has_deletes && !view.files[i].has_partial => {
                sets.plain.push(i);
            }
            _ => sets.merged.push(group),
        }
    }
    sets
}

fn groups(schema: &TableSchema, extents: &[Extent<'_>]) -> Vec<Vec<Source>> {
    if schema.mode == TableMode::Append {
        return extents.iter().map(|extent| vec![extent.source]).collect();
    }
    let time_is_key = schema.time_column.is_some_and(|id| schema.is_key(id));
    // Union-find over few sources: compaction keeps their number small.
    let mut parent: Vec<usize> = (0..extents.len()).collect();
    fn root(parent: &mut [usize], mut i: usize) -> usize {
        while parent[i] != i {
            parent[i] = parent[parent[i]];
            i = parent[i];
        }
        i
    }
    for a in 0..extents.len() {
        for b in a + 1..extents.len() {
            if extents[a].meets(&extents[b], time_is_key) {
                let (a, b) = (root(&mut parent, a), root(&mut parent, b));
                parent[a.max(b)] = a.min(b);
            }
        }
    }
    let mut groups: Vec<Vec<Source>> = vec![Vec::new(); extents.len()];
    for (i, extent) in extents.iter().enumerate() {
        let root = root(&mut parent, i);
        groups[root].push(extent.source);
    }
    groups.retain(|group| !group.is_empty());
    groups
}
