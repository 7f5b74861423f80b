//! Brokers that go and come back, and ones that ask who is there.

use std::collections::HashSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, Consumer};
use shoal_types::Offset;
use shoal_wal::log::{Log, LogError, LogReader, LogStore, receipt_outcome};

use crate::support::{PATIENCE, Stack, append, collect, in_time, make, open, texts};

/// Appends numbers in order, several at a time, each again until it is acknowledged, as a leader
/// does that has nothing else to settle what became of them.
struct Writer {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<(Vec<(Offset, String)>, usize)>,
}

impl Writer {
    fn start(log: Arc<dyn Log>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicUsize::new(0));
        let (ended, count) = (Arc::clone(&stop), Arc::clone(&done));
        let task = tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            let mut failures = 0;
            for group in 0.. {
                if ended.load(SeqCst) {
                    break;
                }
                let mut left: Vec<_> = (0..8).map(|i| format!("{group} {i}")).collect();
                while !left.is_empty() {
                    let sent: Vec<_> = left
                        .drain(..)
                        .map(|text| (log.append(text.clone().into()), text))
                        .collect();
                    for (receipt, text) in sent {
                        match in_time(receipt_outcome(receipt)).await {
                            Ok(offset) => acknowledged.push((offset, text)),
                            Err(_) => {
                                failures += 1;
                                left.push(text);
                            }
                        }
                    }
                }
                count.store(acknowledged.len(), SeqCst);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            (acknowledged, failures)
        });
        Self { stop, done, task }
    }

    /// Waits until it got on.
    async fn gets_on(&self) {
        let before = self.done.load(SeqCst);
        let wait = async {
            while self.done.load(SeqCst) < before + 100 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        in_time(wait).await;
    }

    async fn end(self) -> (Vec<(Offset, String)>, usize) {
        self.stop.store(true, SeqCst);
        self.task.await.expect("no panic")
    }
}

/// Collects what a reader returns until the record `last` has come.
fn follow(
    mut reader: Box<dyn LogReader>,
    last: &'static str,
) -> tokio::task::JoinHandle<Vec<(Offset, Bytes)>> {
    tokio::spawn(async move {
        let mut found: Vec<(Offset, Bytes)> = Vec::new();
        while found.last().is_none_or(|(_, b)| b != last.as_bytes()) {
            match tokio::time::timeout(PATIENCE * 2, reader.next()).await {
                Ok(Ok(records)) => found.extend(records),
                Ok(Err(LogError::Io(what))) => eprintln!("reader: {what}"),
                Ok(Err(other)) => panic!("{other}"),
                Err(_) => panic!("nothing came behind {:?}", found.last()),
            }
        }
        found
    })
}

/// Everything acknowledged stands where its receipt said, and one reader that saw the outages has
/// exactly what one has that came later.
async fn compare(log: &dyn Log, found: &[(Offset, Bytes)], acknowledged: &[(Offset, String)]) {
    assert!(found.windows(2).all(|w| w[0].0 < w[1].0), "offsets rise");
    for (offset, text) in acknowledged {
        let at = found.binary_search_by_key(offset, |(o, _)| *o);
        let at = at.unwrap_or_else(|_| panic!("{text} at {offset} was not read"));
        assert_eq!(found[at].1, text.as_bytes());
    }
    let mut fresh = log.read(found[0].0).await.expect("reads");
    let (again, error) = collect(&mut *fresh, found.len()).await;
    assert!(error.is_none(), "{error:?}");
    assert!(found == again, "two readers differ");
    let said: HashSet<_> = found.iter().map(|(_, b)| b).collect();
    eprintln!(
        "{} records, {} of them twice or more, {} acknowledged",
        found.len(),
        found.len() - said.len(),
        acknowledged.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_to_readers_while_a_broker_goes_and_comes_back() {
    let stack = Stack::up(1, &[]);
    let mut config = stack.config();
    config.commit_timeout_ms = 2_000;
    let store = open(&config);
    let (_, _, log) = make(&store).await;
    let reading = follow(log.read(Offset(1)).await.expect("reads"), "the end");
    let writer = Writer::start(Arc::clone(&log));
    writer.gets_on().await;

    stack.run(&["kill", "kafka1"]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let asked = store.list().await;
    assert!(matches!(asked, Err(LogError::Io(_))), "{asked:?}");
    stack.run(&["start", "kafka1"]);
    writer.gets_on().await;

    stack.run(&["pause", "kafka1"]);
    tokio::time::sleep(Duration::from_secs(4)).await;
    stack.run(&["resume", "kafka1"]);
    writer.gets_on().await;

    stack.run(&["stop", "kafka1"]);
    stack.run(&["start", "kafka1"]);
    writer.gets_on().await;

    let (acknowledged, failures) = writer.end().await;
    assert!(failures > 0, "the outages were felt");
    append(&*log, "the end").await.expect("taken");
    let found = reading.await.expect("no panic");
    compare(&*log, &found, &acknowledged).await;
    let stats = store.stats();
    assert!(stats.reconnects > 0 && stats.client_errors > 0, "{stats:?}");
    assert_eq!((stats.in_flight_records, stats.in_flight_bytes), (0, 0));
}

fn leader(stack: &Stack, topic: &str) -> Option<i32> {
    let client: BaseConsumer = stack.client().create().expect("a client");
    let found = client.fetch_metadata(Some(topic), PATIENCE).ok()?;
    let partition = found.topics().first()?.partitions().first()?;
    Some(partition.leader()).filter(|id| *id > 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_change_among_three_brokers_and_nothing_is_lost() {
    let stack = Stack::up(3, &[]);
    let mut config = stack.config();
    config.commit_timeout_ms = 5_000;
    let store = open(&config);
    let (shard, id, log) = make(&store).await;
    let topic = store.topic_name(shard, id);
    let reading = follow(log.read(Offset(1)).await.expect("reads"), "the end");
    let writer = Writer::start(Arc::clone(&log));
    writer.gets_on().await;
    for how in ["kill", "pause"] {
        let before = leader(&stack, &topic).expect("a leader");
        let broker = format!("kafka{before}");
        stack.run(&[how, &broker]);
        writer.gets_on().await;
        let after = leader(&stack, &topic).expect("a leader");
        assert_ne!(before, after, "after {how}");
        let (start, end) = log.bounds().await.expect("the new leader is found");
        assert!(start < end);
        log.trim(Offset(1)).await.expect("and asked");
        stack.run(&[if how == "kill" { "start" } else { "resume" }, &broker]);
        writer.gets_on().await;
    }
    let (acknowledged, _) = writer.end().await;

    // With two of three away nothing is confirmed, and that is said in time.
    let alone = leader(&stack, &topic).expect("a leader");
    let others: Vec<_> = (1..=3)
        .filter(|b| *b != alone)
        .map(|b| format!("kafka{b}"))
        .collect();
    for other in &others {
        stack.run(&["pause", other]);
    }
    let unconfirmed = append(&*log, "alone").await;
    assert!(
        matches!(unconfirmed, Err(LogError::CommitTimeout { .. })),
        "{unconfirmed:?}"
    );
    for other in &others {
        stack.run(&["resume", other]);
    }
    let last = async { while append(&*log, "the end").await.is_err() {} };
    in_time(last).await;
    let found = reading.await.expect("no panic");
    compare(&*log, &found, &acknowledged).await;
}

fn keytool(words: &[&str]) {
    let done = Command::new("keytool").args(words).output();
    let done = done.expect("keytool, of the Java that Kafka needs");
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stdout)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_sasl_settings_reach_the_broker() {
    let keys = tempfile::tempdir().expect("a folder");
    let place = |name: &str| keys.path().join(name).to_string_lossy().into_owned();
    let (store_file, certificate) = (place("broker.p12"), place("broker.pem"));
    let store_words = ["-keystore", &store_file, "-storepass", "storepass"];
    let make_key = [
        "-genkeypair",
        "-alias",
        "b",
        "-keyalg",
        "RSA",
        "-dname",
        "CN=broker",
    ];
    let names = ["-ext", "SAN=IP:127.0.0.1", "-storetype", "PKCS12"];
    keytool(&[&make_key[..], &names, &store_words].concat());
    let export = ["-exportcert", "-rfc", "-alias", "b", "-file", &certificate];
    keytool(&[&export[..], &store_words].concat());

    // Once without, to learn the ports.
    let stack = Stack::up(1, &[]);
    let spec = std::fs::read(stack.dir().join("stack.json")).expect("stack.json");
    let spec: serde_json::Value = serde_json::from_slice(&spec).expect("JSON");
    let (plain, controller) = (
        spec["brokers"][0]["port"].as_u64().expect("a port"),
        spec["brokers"][0]["controller_port"]
            .as_u64()
            .expect("a port"),
    );
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let secure = free.local_addr().expect("its address").port();
    drop(free);
    stack.run(&["down"]);
    let outside = format!("PLAINTEXT://127.0.0.1:{plain},SASL_SSL://127.0.0.1:{secure}");
    let settings = [
        format!("listeners={outside},CONTROLLER://127.0.0.1:{controller}"),
        format!("advertised.listeners={outside}"),
        "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL"
            .into(),
        format!("ssl.keystore.location={store_file}"),
        "ssl.keystore.password=storepass".into(),
        "ssl.keystore.type=PKCS12".into(),
        "sasl.enabled.mechanisms=PLAIN".into(),
        "listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_shoal=\"secret\";".into(),
    ];
    let mut words = vec!["up", "--json"];
    for setting in &settings {
        words.extend(["--kafka-set", setting]);
    }
    stack.run(&words);

    let mut config = stack.config();
    config.brokers = format!("127.0.0.1:{secure}");
    for (key, value) in [
        ("security.protocol", "sasl_ssl"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", "shoal"),
        ("sasl.password", "secret"),
        ("ssl.ca.location", &certificate),
    ] {
        config.options.insert(key.into(), value.into());
    }
    let store = open(&config);
    let (_, _, log) = make(&store).await;
    append(&*log, "behind closed doors").await.expect("taken");
    let mut reader = log.read(Offset(1)).await.expect("reads");
    let (found, _) = collect(&mut *reader, 1).await;
    assert_eq!(texts(&found), ["behind closed doors"]);
    log.trim(Offset(1)).await.expect("trims");

    config
        .options
        .insert("sasl.password".into(), "guessed".into());
    let stranger = open(&config);
    let listed = stranger.list().await;
    assert!(matches!(listed, Err(LogError::Io(_))), "{listed:?}");
    assert!(stranger.stats().client_errors > 0);
}

/// As the client was seen to do after its broker came back: it fetches nothing, and says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_fetching_is_begun_anew() {
    let stack = Stack::up(1, &[]);
    stops_fetching(&stack, false).await;
    // Pointing it at its position does not help: another client takes its place.
    stops_fetching(&stack, true).await;
}

async fn stops_fetching(stack: &Stack, for_good: bool) {
    let store = open(&stack.config());
    let (_, _, log) = make(&store).await;
    let reading = follow(log.read(Offset(1)).await.expect("reads"), "the end");
    append(&*log, "before").await.expect("taken");
    tokio::time::sleep(Duration::from_secs(1)).await;
    store.stop_fetching_for_test(for_good).expect("paused");
    append(&*log, "the end").await.expect("taken");
    let found = in_time(reading).await.expect("no panic");
    assert_eq!(found.len(), 2, "{found:?}");
    let resets = if for_good { 2 } else { 1 };
    assert_eq!(store.stats().reader_resets, resets);
}
