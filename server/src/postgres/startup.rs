//! The beginning of a connection: password, session, and what the server says about itself.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use futures::{Sink, SinkExt};
use pgwire::api::auth::{
    StartupHandler, protocol_negotiation, save_startup_parameters_to_metadata,
};
use pgwire::api::{
    ClientInfo, METADATA_DATABASE, METADATA_USER, PgWireConnectionState, PidSecretKeyGenerator,
};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::response::{ReadyForQuery, TransactionStatus};
use pgwire::messages::startup::{Authentication, BackendKeyData, ParameterStatus};
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use shoal_query::SessionOptions;

use super::connection::{Connection, Opened};
use super::{errors, functions, statement};

/// Startup parameters that are no settings.
const NOT_SETTINGS: &[&str] = &["user", "database", "options", "replication"];

#[async_trait]
impl StartupHandler for Connection {
    async fn on_startup<C>(
        &self,
        client: &mut C,
        message: PgWireFrontendMessage,
    ) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        match message {
            PgWireFrontendMessage::Startup(startup) => {
                protocol_negotiation(client, &startup).await?;
                save_startup_parameters_to_metadata(client, &startup);
                client.set_state(PgWireConnectionState::AuthenticationInProgress);
                if self.shared.auth.required() {
                    let ask = Authentication::CleartextPassword;
                    client
                        .send(PgWireBackendMessage::Authentication(ask))
                        .await?;
                    return Ok(());
                }
                self.open(client).await
            }
            PgWireFrontendMessage::PasswordMessageFamily(password) => {
                let password = password.into_password()?;
                if !self.shared.auth.accepts(&password.password) {
                    let user = client
                        .metadata()
                        .get(METADATA_USER)
                        .cloned()
                        .unwrap_or_default();
                    let mut info = errors::info(
                        "FATAL",
                        "28P01",
                        format!("password authentication failed for user \"{user}\""),
                    );
                    info.hint =
                        Some("any user name will do; the password is the server's token".into());
                    return Err(PgWireError::UserError(Box::new(info)));
                }
                self.open(client).await
            }
            _ => Err(errors::fatal(
                "08P01",
                "expected a startup or password message",
            )),
        }
    }
}

impl Connection {
    /// Makes the session and tells the client what it needs to know.
    async fn open<C>(&self, client: &mut C) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let admitted = self
            .shared
            .admit()
            .ok_or_else(|| errors::fatal("53300", "sorry, too many clients already"))?;
        let metadata = client.metadata().clone();
        let user = metadata
            .get(METADATA_USER)
            .map_or("postgres", String::as_str);
        let database = metadata.get(METADATA_DATABASE).map_or(user, String::as_str);
        // There is one database; a name that is a schema picks that schema, so that what InfluxDB
        // clients call a database can be connected to.
        let engine = &self.shared.engine;
        let schemas = engine.database().schema_names();
        let schema = if schemas.iter().any(|s| s == database) {
            database
        } else {
            "public"
        };
        let session = engine.session(SessionOptions {
            schema: schema.to_owned(),
            user: user.to_owned(),
            timeout_ms: None,
            read_only: false,
        });
        let mut asked: BTreeMap<String, String> = metadata
            .iter()
            .filter(|(name, _)| !NOT_SETTINGS.contains(&name.as_str()) && !name.starts_with("_pq_"))
            .map(|(name, value)| (name.to_lowercase(), value.clone()))
            .collect();
        asked.extend(options(metadata.get("options").map_or("", String::as_str)));
        for (name, value) in &asked {
            if let Err(refused) = session.set(name, value) {
                // Of what is ours a typing error must not go unnoticed: it may weaken all reads.
                let ours = name.strip_prefix("shoal.").unwrap_or(name);
                if name != ours || ["consistency", "read_from", "commit_tokens"].contains(&ours) {
                    return Err(errors::fatal("22023", refused.message));
                }
                // Drivers send their machine's time zone and settings of later versions unasked;
                // a connection must not fail over them.
                tracing::debug!(setting = %name, error = %refused.message, "startup setting not taken");
            }
        }
        let (pid, key) = self.shared.keys.generate(client);
        client.set_pid_and_secret_key(pid, key.clone());
        let (handle, registered) = self.shared.connections.register(pid, key.clone());
        client
            .feed(PgWireBackendMessage::Authentication(Authentication::Ok))
            .await?;
        let mut parameters = vec![
            ("server_version", functions::SERVER_VERSION.to_owned()),
            ("server_encoding", "UTF8".to_owned()),
            ("integer_datetimes", "on".to_owned()),
            ("in_hot_standby", "off".to_owned()),
            ("is_superuser", "on".to_owned()),
            ("session_authorization", user.to_owned()),
        ];
        for name in statement::reported_settings() {
            if let Ok(value) = session.setting(name) {
                parameters.push((name, value));
            }
        }
        for (name, value) in parameters {
            let status = ParameterStatus::new(name.to_owned(), value);
            client
                .feed(PgWireBackendMessage::ParameterStatus(status))
                .await?;
        }
        client
            .feed(PgWireBackendMessage::BackendKeyData(BackendKeyData::new(
                pid, key,
            )))
            .await?;
        let opened = Opened {
            session,
            handle,
            pid,
            _registered: registered,
            _admitted: admitted,
        };
        if self.opened.set(opened).is_err() {
            return Err(errors::fatal(
                "08P01",
                "a second startup message on one connection",
            ));
        }
        client.set_state(PgWireConnectionState::ReadyForQuery);
        let ready = ReadyForQuery::new(TransactionStatus::Idle);
        client
            .send(PgWireBackendMessage::ReadyForQuery(ready))
            .await?;
        Ok(())
    }
}

/// Settings in the startup parameter `options`: `-c name=value --other-name=value`, blanks in
/// values escaped by a backslash.
fn options(text: &str) -> Vec<(String, String)> {
    let mut words = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let Some(word) = words.last_mut() else { break };
        match c {
            '\\' => word.extend(chars.next()),
            c if c.is_whitespace() => words.push(String::new()),
            c => word.push(c),
        }
    }
    words
        .iter()
        .map(|w| w.strip_prefix("-c").or(w.strip_prefix("--")).unwrap_or(w))
        .filter_map(|w| w.split_once('='))
        .map(|(name, value)| (name.replace('-', "_").to_lowercase(), value.to_owned()))
        .collect()
}

/// Cancel requests come on connections of their own.
pub(super) type Cancel = pgwire::api::cancel::DefaultCancelHandler;

/// Shared by `Arc` only to fit pgwire's signatures.
pub(super) fn cancel_handler(shared: &super::Shared) -> Arc<Cancel> {
    Arc::new(Cancel::new(Arc::clone(&shared.connections)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_in_all_their_spellings() {
        assert_eq!(
            options("-c search_path=a\\ b,c -cstatement_timeout=5s --application-name=x -x"),
            [
                ("search_path".to_owned(), "a b,c".to_owned()),
                ("statement_timeout".into(), "5s".into()),
                ("application_name".into(), "x".into()),
            ]
        );
        assert!(options("").is_empty());
    }
}
