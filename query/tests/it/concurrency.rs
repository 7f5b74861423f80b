//! Statements that meet.

use std::sync::Arc;

use crate::support::{Fixture, run};
use shoal_query::SessionOptions;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_increment_of_a_counter_is_lost() {
    let db = Fixture::new().await;
    db.ok("CREATE TABLE c (k TEXT PRIMARY KEY, n BIGINT)").await;
    db.ok("INSERT INTO c VALUES ('a', 0)").await;
    let engine = Arc::clone(&db.engine);
    let tasks = (0..4).map(|_| {
        let session = engine.session(SessionOptions::default());
        tokio::spawn(async move {
            for _ in 0..15 {
                let rows = run(&session, "UPDATE c SET n = n + 1 WHERE k = 'a'")
                    .await
                    .expect("update");
                assert_eq!(rows, ["UPDATE 1"]);
            }
        })
    });
    // A writer of other rows makes the updates conflict.
    let other = engine.session(SessionOptions::default());
    let writer = tokio::spawn(async move {
        for i in 0..40 {
            run(&other, &format!("INSERT INTO c VALUES ('o{i}', 1)"))
                .await
                .expect("insert");
        }
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("task");
    }
    writer.await.expect("writer");
    assert_eq!(db.ok("SELECT n FROM c WHERE k = 'a'").await, ["60"]);
    assert_eq!(db.ok("SELECT count(*) FROM c").await, ["41"]);
}
