//! A full disk: a small tmpfs is the data folder. Needs the right to mount; says so when it has
//! not, and is then skipped.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use shoal_tests::{Failure, Server};

const DISK: &str = "96m";
const BALLOON_BYTES: u64 = 40 << 20;
/// Rows of one request: 2,000 of some 1 KiB that do not compress.
const LINES: u64 = 2000;

/// Its unmount is the last thing that happens, also when the test fails.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Option<Self> {
        std::fs::create_dir_all(at).expect("a mount point");
        let size = format!("size={DISK}");
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "shoal-test"])
            .arg(at)
            .output()
            .ok()?;
        if output.status.success() {
            return Some(Self(at.to_path_buf()));
        }
        eprintln!(
            "SKIPPED disk full: cannot mount a tmpfs: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Text that no codec makes smaller, different in every request.
fn lines(request: u64) -> String {
    let mut state = request.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..LINES)
        .map(|row| {
            let noise: String = (0..60)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    format!("{state:016x}")
                })
                .collect();
            format!("filling,request=r{request} noise=\"{noise}\" {}\n", row + 1)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_clearly_answers_reads_and_recovers_without_a_restart() {
    // No flush: the log alone fills the disk.
    fill_and_recover(&[("SHOAL_WAL_SHARD_BYTES_MAX", "512MiB")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_while_flushes_run_is_no_different() {
    fill_and_recover(&[
        ("SHOAL_ENGINE_MEMTABLE_BYTES_MAX", "8MiB"),
        ("SHOAL_WAL_SHARD_BYTES_MAX", "8MiB"),
        ("SHOAL_COMPACTION_RUNS_MIN", "2"),
    ])
    .await;
}

async fn fill_and_recover(settings: &[(&str, &str)]) {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(disk) = SmallDisk::mount(&folder.path().join("disk")) else {
        return;
    };
    let mut server = Server::start(&disk.0.join("data"), settings).await;
    let client = server.client();
    client
        .write("steady,host=a v=1i 1\n".into())
        .await
        .expect("a first write");
    let balloon = disk.0.join("balloon");
    std::fs::write(&balloon, vec![0_u8; BALLOON_BYTES as usize]).expect("a balloon");

    let mut acknowledged = Vec::new();
    let mut unknown = Vec::new();
    let refusal: Failure = 'full: {
        for request in 0..200 {
            match client.write(lines(request)).await {
                Ok(()) => acknowledged.push(request),
                Err(failure) if failure.retry == "unknown" => unknown.push(request),
                Err(failure) => break 'full failure,
            }
        }
        panic!("200 MB went onto a disk of {DISK}");
    };
    println!("after {} requests: {refusal:?}", acknowledged.len());
    let said = refusal.text.to_lowercase();
    assert!(
        said.contains("space"),
        "the error does not say that space is missing: {refusal:?}"
    );
    assert_eq!(refusal.retry, "safe", "{refusal:?}");
    assert!(server.is_running());

    // Reads go on, several times, while writes are refused.
    for _ in 0..3 {
        assert_eq!(client.count("SELECT count(*) FROM steady").await, 1);
        let rows = client.count("SELECT count(*) FROM filling").await;
        let least = acknowledged.len() as u64 * LINES;
        assert!(rows >= least, "{rows} rows of {least} acknowledged ones");
    }

    std::fs::remove_file(&balloon).expect("let the air out");
    let mut tries = 0;
    while let Err(failure) = client.write("steady,host=b v=1i 2\n".into()).await {
        tries += 1;
        assert!(tries < 300, "there is space again, yet: {failure:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for round in 0..2 {
        // After the restart it listens elsewhere.
        let client = server.client();
        let rows = client
            .sql("SELECT request, count(*) FROM filling GROUP BY request")
            .await
            .expect("count by request");
        let whole = |request: &u64| {
            let name = format!("r{request}");
            rows.iter()
                .any(|r| r[0] == name.as_str() && r[1].as_u64() == Some(LINES))
        };
        for request in &acknowledged {
            assert!(
                whole(request),
                "round {round}: acknowledged request {request} is not whole"
            );
        }
        for row in &rows {
            assert_eq!(
                row[1].as_u64(),
                Some(LINES),
                "round {round}: a request in part: {row:?}"
            );
        }
        assert!(
            rows.len() <= acknowledged.len() + unknown.len(),
            "a refused request is stored"
        );
        assert_eq!(client.count("SELECT count(*) FROM steady").await, 2);
        if round == 0 {
            server.kill();
            server.restart().await;
        }
    }
    server.kill();
}
