//! `shoal admin`: looks at a running server and tells it to flush, compact or collect garbage.
//! A command answers when the work is done, not when it is queued.

use std::process::ExitCode;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Client, ClientArgs};
use super::partition::{self, PartitionOrder};
use super::split::SplitArgs;
use super::{CliError, CliResult, counted};

/// Tries to change settings that others change meanwhile, and the pause between them.
const SETTINGS_TRIES: usize = 10;
const SETTINGS_PAUSE: Duration = Duration::from_millis(50);

/// Look at a running server and maintain it.
#[derive(Debug, clap::Args)]
pub struct AdminArgs {
    #[command(subcommand)]
    what: What,
    /// Print the server's JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// The shards: who leads, where they are, what they hold. Exit code 1 if one is not served.
    Shards,
    /// The nodes of the cluster.
    Nodes,
    /// Empty a node, let it have replicas again, or forget one that is gone for good.
    Node {
        #[command(subcommand)]
        order: NodeOrder,
    },
    /// Show a node's labels, or change them: `zone=b` sets, `rack-` takes away. Replicas go where
    /// labels keep them apart.
    Label {
        /// The node.
        node: String,
        /// Labels, as in `zone=b rack-`.
        #[arg(value_name = "NAME=VALUE|NAME-")]
        change: Vec<String>,
        /// All others are as the node is configured again.
        #[arg(long)]
        reset: bool,
    },
    /// Changes of who serves what: those under way, and the newest that have ended.
    Procedures {
        #[command(subcommand)]
        what: Option<ProcedureOrder>,
    },
    /// Move load by itself, or only say what would be moved and why.
    Balance {
        #[command(subcommand)]
        what: BalanceOrder,
    },
    /// What the scheduler is to keep: show all, or change one (`groups.default.replication=3`).
    Settings {
        /// Keys and values, as in `balance.tolerance=0.2` or `groups.main.leaders=["zone=a"]`;
        /// `KEY=null` takes the default.
        #[arg(value_name = "KEY=VALUE")]
        change: Vec<String>,
    },
    /// Say who leads and follows a shard (no data is copied), or go on where its log is damaged.
    Shard {
        #[command(subcommand)]
        order: Order,
    },
    /// Cut a partition in two, or make one of two.
    Partition {
        #[command(subcommand)]
        order: PartitionOrder,
    },
    /// The tables.
    Tables {
        /// Of this schema only.
        #[arg(long)]
        schema: Option<String>,
    },
    /// Write rows in memory to files.
    Flush(Scope),
    /// Merge files.
    Compact(Scope),
    /// Compare copies: a checksum of the rows that a table or shard shows, however they are stored.
    Checksum {
        /// Only this table.
        #[arg(long, conflicts_with = "shard")]
        table: Option<String>,
        /// The table's schema.
        #[arg(long, default_value = "public", requires = "table")]
        schema: String,
        /// Only this shard.
        #[arg(long, value_name = "ID")]
        shard: Option<String>,
    },
    /// Delete what no manifest names any more.
    Gc {
        /// Only say what would be deleted.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Ids of shards and nodes may be cut to what is unique of their beginning.
#[derive(Debug, clap::Subcommand)]
enum Order {
    /// Make a follower the leader: the one named, or the one that is furthest.
    Promote {
        /// The shard.
        shard: String,
        /// The follower.
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Have a node follow the shard; answers when it has caught up.
    AddFollower(Target),
    /// Take a follower off the shard.
    RemoveFollower(Target),
    /// Move the lead and its replica to another node.
    Move(Target),
    /// Give tables or partitions of the shard to a new shard on the same nodes; about half of it
    /// otherwise. No file is copied.
    Split(SplitArgs),
    /// A checksum of the rows by each replica of the shard. Exit code 1 if they differ.
    Checksum {
        /// The shard.
        shard: String,
    },
    /// Go on behind damaged records of a shard's log. Nothing is lost where some replica read them
    /// before; else they are. Without --accept-loss it only says the price.
    SkipRecord {
        /// The shard.
        shard: String,
        /// The position of the damage, as `shoal admin shards` tells it.
        offset: u64,
        #[command(flatten)]
        loss: Loss,
    },
    /// Go on with a new log where a shard's was lost: it ends too early, is gone, or another stands
    /// in its place. Without --accept-loss it only says the price.
    AdoptLog {
        /// The shard.
        shard: String,
        #[command(flatten)]
        loss: Loss,
    },
}

#[derive(Debug, clap::Subcommand)]
enum NodeOrder {
    /// Give all that the node has to others; done when it has nothing and every shard has all its
    /// replicas elsewhere.
    Drain {
        /// The node.
        node: String,
        /// Only what it leads, as before a restart.
        #[arg(long)]
        leads_only: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Let the node have replicas again.
    Undrain {
        /// The node.
        node: String,
    },
    /// Forget a node that is gone for good and has nothing.
    Remove {
        /// The node.
        node: String,
    },
}

#[derive(Debug, clap::Subcommand)]
enum ProcedureOrder {
    /// One of them.
    Show {
        /// Its id.
        id: String,
    },
    /// Call one off; what it did is undone.
    Cancel {
        /// Its id.
        id: String,
    },
    /// Do again what one failed to do.
    Retry {
        /// Its id.
        id: String,
        #[command(flatten)]
        wait: Wait,
    },
}

#[derive(Clone, Copy, Debug, clap::Subcommand)]
enum BalanceOrder {
    /// Move load by itself.
    On,
    /// Leave load where it is; lost leaders are replaced all the same.
    Off,
    /// What would be done next, each step with why.
    Plan,
}

#[derive(Debug, clap::Args)]
struct Loss {
    /// Do it, whatever is lost.
    #[arg(long)]
    accept_loss: bool,
    /// Why, for the trace in the shard's manifest.
    #[arg(long, default_value = "")]
    reason: String,
}

#[derive(Debug, clap::Args)]
struct Target {
    /// The shard.
    shard: String,
    /// The node.
    #[arg(long, value_name = "NODE")]
    to: String,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, clap::Args)]
struct Wait {
    /// Answer when it is done; that is so unless --no-wait is given.
    #[arg(long, conflicts_with = "no_wait")]
    wait: bool,
    /// Answer with the procedure's id as soon as it is written down.
    #[arg(long)]
    no_wait: bool,
}

impl Target {
    fn body(&self) -> Value {
        json!({ "to": self.to, "wait": !self.wait.no_wait })
    }
}

impl Order {
    /// Path and body of the request.
    fn request(&self) -> (String, Value) {
        let path = |shard: &str, order: &str| format!("/v1/admin/shards/{shard}/{order}");
        match self {
            Self::Promote { shard, to, wait } => (
                path(shard, "promote"),
                json!({ "to": to, "wait": !wait.no_wait }),
            ),
            Self::AddFollower(t) => (path(&t.shard, "add-follower"), t.body()),
            Self::RemoveFollower(t) => (path(&t.shard, "remove-follower"), t.body()),
            Self::Move(t) => (path(&t.shard, "move"), t.body()),
            Self::Split(split) => split.as_it_is(),
            Self::SkipRecord {
                shard,
                offset,
                loss,
            } => (
                path(shard, "skip-record"),
                json!({ "offset": offset, "accept_loss": loss.accept_loss, "reason": loss.reason }),
            ),
            Self::AdoptLog { shard, loss } => (
                path(shard, "adopt-log"),
                json!({ "accept_loss": loss.accept_loss, "reason": loss.reason }),
            ),
            Self::Checksum { shard } => {
                ("/v1/admin/checksum".to_owned(), json!({ "shard": shard }))
            }
        }
    }
}

#[derive(Debug, clap::Args)]
struct Scope {
    /// Only this table's shard.
    #[arg(long)]
    table: Option<String>,
    /// The table's schema.
    #[arg(long, default_value = "public", requires = "table")]
    schema: String,
}

impl Scope {
    fn body(&self) -> Value {
        Self::of(self.table.as_ref(), &self.schema)
    }

    fn of(table: Option<&String>, schema: &str) -> Value {
        match table {
            Some(table) => json!({ "schema": schema, "table": table }),
            None => json!({}),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// The server refuses or cannot be reached.
pub async fn run(args: AdminArgs) -> CliResult {
    let client = Client::new(&args.client)?;
    let (answer, columns): (Value, &[&str]) = match &args.what {
        What::Shards => (
            client.get_json("/v1/admin/shards").await?,
            &[
                "id",
                "state",
                "leader",
                "followers",
                "epoch",
                "position",
                "partitions",
                "bytes",
                "memory_bytes",
                "log_bytes",
                "why",
            ],
        ),
        What::Nodes => (
            client.get_json("/v1/admin/nodes").await?,
            &[
                "id", "role", "state", "http", "pg", "leads", "follows", "shards",
            ],
        ),
        What::Node { order } => {
            let (node, word, body) = match order {
                NodeOrder::Drain {
                    node,
                    leads_only,
                    wait,
                } => {
                    let body = json!({ "leads_only": leads_only, "wait": !wait.no_wait });
                    (node, "drain", body)
                }
                NodeOrder::Undrain { node } => (node, "undrain", json!({})),
                NodeOrder::Remove { node } => (node, "remove", json!({})),
            };
            let path = format!("/v1/admin/nodes/{node}/{word}");
            (client.post_json(&path, &body).await?, &[])
        }
        What::Label {
            node,
            change,
            reset,
        } => {
            let labels = label_changes(change)?;
            let body = json!({ "labels": labels, "reset": reset });
            let path = format!("/v1/admin/nodes/{node}/label");
            (client.post_json(&path, &body).await?, &[])
        }
        What::Procedures { what } => match what {
            None => (
                client.get_json("/v1/admin/procedures").await?,
                &[
                    "procedure",
                    "order",
                    "state",
                    "shard",
                    "node",
                    "by",
                    "pause_ms",
                    "why",
                    "doing",
                    "error",
                ],
            ),
            Some(ProcedureOrder::Show { id }) => {
                let path = format!("/v1/admin/procedures/{id}");
                (client.get_json(&path).await?, &[])
            }
            Some(ProcedureOrder::Cancel { id }) => {
                let path = format!("/v1/admin/procedures/{id}/cancel");
                (client.post_json(&path, &json!({})).await?, &[])
            }
            Some(ProcedureOrder::Retry { id, wait }) => {
                let path = format!("/v1/admin/procedures/{id}/retry");
                let body = json!({ "wait": !wait.no_wait });
                (client.post_json(&path, &body).await?, &[])
            }
        },
        What::Balance { what } => match what {
            BalanceOrder::On => (
                client.post_json("/v1/admin/balance/on", &json!({})).await?,
                &[],
            ),
            BalanceOrder::Off => (
                client
                    .post_json("/v1/admin/balance/off", &json!({}))
                    .await?,
                &[],
            ),
            BalanceOrder::Plan => (
                client.get_json("/v1/admin/balance/plan").await?,
                &["rule", "shard", "action", "why"],
            ),
        },
        What::Settings { change } => (settings(&client, change).await?, &[]),
        What::Shard { order } => {
            let (path, body) = match order {
                Order::Split(split) => split.request(&client).await?,
                order => order.request(),
            };
            let answer = client.post_json(&path, &body).await?;
            let columns: &[&str] = match order {
                Order::Checksum { .. } => {
                    &["shard", "node", "role", "position", "rows", "checksum"]
                }
                _ => &[],
            };
            (answer, columns)
        }
        What::Partition { order } => (
            partition::run(&client, order).await?,
            &[
                "name",
                "owns",
                "shard",
                "rows",
                "files",
                "shared_files",
                "cut_from",
            ],
        ),
        What::Tables { schema } => {
            let mut request = client.request(Method::GET, "/v1/admin/tables");
            if let Some(schema) = schema {
                request = request.query(&[("schema", schema)]);
            }
            let text = client.text(request).await??;
            (
                serde_json::from_str(&text)?,
                &[
                    "schema", "name", "mode", "columns", "rows", "files", "bytes", "shard", "id",
                ],
            )
        }
        What::Flush(scope) => (
            client.post_json("/v1/admin/flush", &scope.body()).await?,
            &[],
        ),
        What::Compact(scope) => (
            client.post_json("/v1/admin/compact", &scope.body()).await?,
            &[],
        ),
        What::Checksum {
            table,
            schema,
            shard,
        } => {
            let mut body = Scope::of(table.as_ref(), schema);
            if let Some(shard) = shard {
                body["shard"] = shard.as_str().into();
            }
            let sums = client.post_json("/v1/admin/checksum", &body).await?;
            let sums = if args.json { sums } else { flat(&sums) };
            (
                sums,
                &["shard", "position", "schema", "table", "rows", "checksum"],
            )
        }
        What::Gc { dry_run } => {
            let body = json!({ "dry_run": dry_run });
            (client.post_json("/v1/admin/gc", &body).await?, &[])
        }
    };
    if args.json {
        println!("{answer}");
    } else if columns.is_empty() {
        println!("{}", serde_json::to_string_pretty(&answer)?);
    } else {
        print_table(&answer, columns);
    }
    if matches!(
        &args.what,
        What::Shard {
            order: Order::Checksum { .. }
        }
    ) {
        let mut sums = answer.as_array().into_iter().flatten();
        let first = sums.next().map(|sum| &sum["checksum"]);
        if sums.any(|sum| Some(&sum["checksum"]) != first) {
            return Err(CliError::failed(
                "the replicas differ; if writes go on, compare again when they rest",
            ));
        }
    }
    let unserved = answer
        .as_array()
        .into_iter()
        .flatten()
        .filter(|row| {
            let states = ["unavailable", "damaged"];
            row["state"].as_str().is_some_and(|s| states.contains(&s))
        })
        .count();
    if unserved > 0 {
        let are = if unserved == 1 { "is" } else { "are" };
        return Err(CliError::failed(format!(
            "{} {are} not served",
            counted(unserved as u64, "shard")
        )));
    }
    Ok(ExitCode::SUCCESS)
}

/// The settings, after these changes of them; what others change meanwhile is kept.
async fn settings(client: &Client, changes: &[String]) -> Result<Value, CliError> {
    const PATH: &str = "/v1/admin/settings";
    let mut tries = 0;
    loop {
        let mut settings = client.get_json(PATH).await?;
        if changes.is_empty() {
            return Ok(settings);
        }
        for pair in changes {
            set_member(&mut settings, pair)?;
        }
        let request = client.request(Method::PUT, PATH).json(&settings);
        tries += 1;
        match client.text(request).await? {
            Ok(text) => return Ok(serde_json::from_str(&text)?),
            Err(refusal) if refusal.code == "changed" && tries < SETTINGS_TRIES => {
                tokio::time::sleep(SETTINGS_PAUSE).await;
            }
            Err(refusal) => return Err(refusal.into()),
        }
    }
}

/// `zone=b` sets, `rack-` takes away.
fn label_changes(pairs: &[String]) -> Result<Value, CliError> {
    let mut labels = serde_json::Map::new();
    for pair in pairs {
        let (name, value) = match (pair.split_once('='), pair.strip_suffix('-')) {
            (Some((name, value)), _) => (name, Value::from(value)),
            (None, Some(name)) => (name, Value::Null),
            (None, None) => {
                return Err(CliError::usage(format!(
                    "{pair:?}: write NAME=VALUE, as in zone=b, or NAME- to take the label away"
                )));
            }
        };
        labels.insert(name.to_owned(), value);
    }
    Ok(labels.into())
}

/// Sets a member, as in `groups.default.replication=3`; what is no JSON is text.
fn set_member(settings: &mut Value, pair: &str) -> Result<(), CliError> {
    let Some((key, text)) = pair.split_once('=') else {
        return Err(CliError::usage(format!(
            "{pair:?}: write KEY=VALUE, as in balance.tolerance=0.2"
        )));
    };
    let value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
    let mut at = settings;
    let mut names = key.split('.').peekable();
    while let Some(name) = names.next() {
        if at.is_null() {
            *at = json!({});
        }
        let Some(members) = at.as_object_mut() else {
            return Err(CliError::usage(format!("{key:?}: there is nothing below")));
        };
        if names.peek().is_none() {
            if value.is_null() {
                members.remove(name);
            } else {
                members.insert(name.to_owned(), value);
            }
            return Ok(());
        }
        at = members.entry(name).or_insert(Value::Null);
    }
    Ok(())
}

/// Checksums as rows: each shard's own, then its tables'.
fn flat(sums: &Value) -> Value {
    let mut rows = Vec::new();
    for sum in sums.as_array().into_iter().flatten() {
        rows.push(sum.clone());
        for table in sum["tables"].as_array().into_iter().flatten() {
            let mut row = table.clone();
            row["shard"] = sum["shard"].clone();
            rows.push(row);
        }
    }
    rows.into()
}

/// Rows of objects, one column a member; columns that no row has are left out.
fn print_table(rows: &Value, columns: &[&str]) {
    let rows: Vec<&Value> = rows.as_array().into_iter().flatten().collect();
    let text = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.len().to_string(),
        other => other.to_string(),
    };
    let columns: Vec<&&str> = columns
        .iter()
        .filter(|c| rows.iter().any(|r| !r[**c].is_null()))
        .collect();
    let widths: Vec<usize> = columns
        .iter()
        .map(|c| {
            let cells = rows.iter().map(|r| text(&r[**c]).chars().count());
            cells.chain([c.len()]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: Vec<String>| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        println!("{}", padded.join("  ").trim_end());
    };
    line(columns.iter().map(|c| (**c).to_owned()).collect());
    for row in &rows {
        line(columns.iter().map(|c| text(&row[**c])).collect());
    }
}
