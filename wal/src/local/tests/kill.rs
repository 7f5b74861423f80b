//! A process that appends is killed, again and again.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::*;

const DIR: &str = "SHOAL_WAL_KILL_TEST_DIR";

/// The process to be killed: appends to two shards and prints every acknowledgement.
#[test]
#[ignore = "run by the test below"]
fn victim() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(async {
        let store = Arc::new(open(Path::new(&dir)));
        let mut tasks = Vec::new();
        for number in 1..=2 {
            let shard = ShardId(ulid::Ulid(number));
            let log = make(&store, shard).await.expect("opens");
            for _ in 0..4 {
                let log = Arc::clone(&log);
                tasks.push(tokio::spawn(async move {
                    for i in 0.. {
                        let bytes = vec![i as u8; i * 37 % 4000];
                        let offset = append(&*log, bytes).await.expect("appends");
                        println!("ack {number} {offset} {}", i as u8);
                    }
                }));
            }
        }
        for task in tasks {
            task.await.expect("runs until it is killed");
        }
    });
}

#[tokio::test]
async fn a_killed_process_finds_every_acknowledged_record_again() {
    let dir = TempDir::new().expect("dir");
    let mut acknowledged: Vec<(u128, u64, u8)> = Vec::new();
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "local::tests::kill::victim"])
            .args(["--ignored", "--nocapture", "--test-threads=1"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut seen = 0;
        for line in lines {
            let line = line.expect("text");
            let Some(at) = line.find("ack ") else {
                continue;
            };
            let mut words = line[at + 4..].split(' ');
            let mut word = || words.next().and_then(|w| w.parse::<u64>().ok());
            let (Some(shard), Some(offset), Some(fill)) = (word(), word(), word()) else {
                continue;
            };
            acknowledged.push((u128::from(shard), offset, fill as u8));
            seen += 1;
            if seen == 40 + round * 25 {
                child.kill().expect("killed");
            }
        }
        child.wait().expect("gone");
        assert!(seen > 0, "the victim appended");
        let store = open(dir.path());
        for number in 1..=2_u128 {
            let shard = ShardId(ulid::Ulid(number));
            let log = LogStore::open(&store, shard, LogId::SOLE)
                .await
                .expect("opens");
            let (found, error) = read_all(&*log).await;
            assert!(error.is_none(), "{error:?}");
            for (_, offset, fill) in acknowledged.iter().filter(|a| a.0 == number) {
                let (at, bytes) = &found[*offset as usize];
                assert_eq!(at.0, *offset);
                assert!(
                    bytes.iter().all(|b| b == fill),
                    "offset {offset} holds another record"
                );
            }
        }
        kill(store, dir.path());
    }
}
