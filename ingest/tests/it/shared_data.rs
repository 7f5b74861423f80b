use std::collections::BTreeMap;
use std::path::Path;

use shoal_types::TableId;

use crate::support::parse;

#[test]
fn every_line_of_the_shared_data_is_stored() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    // A user of the project has no such folder.
    let Ok(entries) = std::fs::read_dir(&folder) else {
        return;
    };
    let mut rows: BTreeMap<String, usize> = BTreeMap::new();
    for entry in entries {
        let path = entry.expect("an entry").path();
        if !path.to_string_lossy().ends_with(".lp.zst") {
            continue;
        }
        let body = zstd::decode_all(std::fs::File::open(&path).expect("a file")).expect("zstd");
        let parsed = parse(&body);
        assert_eq!(parsed.errors.first, [], "{}", path.display());
        for table in &parsed.tables {
            let schema = table.new_schema(TableId::generate()).expect("a schema");
            let resolved = table.resolve(&schema);
            assert!(resolved.errors.is_empty());
            assert_eq!(resolved.block.check(), Ok(()));
            *rows.entry(table.name.clone()).or_default() += resolved.block.rows();
        }
    }
    assert_eq!(rows.len(), 9);
    assert_eq!(rows["cpu"], 223_200);
    assert_eq!(rows.values().sum::<usize>(), 280_800);
}
