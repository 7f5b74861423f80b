//! A node's id: made once, kept in its data folder.

use std::io::Write;
use std::path::Path;

use shoal_types::NodeId;

/// The file in the data folder.
const FILE: &str = "node.id";

/// The id in the folder, or a new one.
///
/// # Errors
/// What is wrong with the file, with a remedy.
pub(super) fn read_or_make(data_dir: &Path) -> Result<NodeId, String> {
    let path = data_dir.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|_| {
            format!(
                "{} does not hold a node's id; restore it, or remove it to join as another node",
                path.display()
            )
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = NodeId::generate();
            // Synced and renamed: half an id would keep the node from starting again.
            let aside = path.with_extension("new");
            let write = || {
                let mut file = std::fs::File::create(&aside)?;
                writeln!(file, "{id}")?;
                file.sync_all()?;
                std::fs::rename(&aside, &path)?;
                std::fs::File::open(data_dir)?.sync_all()
            };
            write().map_err(|e| format!("cannot write {}: {e}", path.display()))?;
            Ok(id)
        }
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}
