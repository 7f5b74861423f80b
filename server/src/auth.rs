//! Who may come in: one token, shown in any of the ways that clients of the protocols know.

use std::hint::black_box;
use std::net::SocketAddr;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::config::Config;

/// Why a process must not start as configured.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// `auth.token_file` cannot be read.
    #[error("cannot read auth.token_file {path}: {source}")]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `auth.token_file` holds nothing.
    #[error("auth.token_file {0} is empty")]
    EmptyTokenFile(PathBuf),
    /// A listener would be open to the network.
    #[error(
        "{key} = {address} is not a loopback address and no token is set: anybody who reaches it could read and write everything. Set auth.token_file (or SHOAL_AUTH_TOKEN), or pass --insecure if that is meant"
    )]
    OpenToNetwork {
        /// The key of the address.
        key: &'static str,
        /// The address.
        address: SocketAddr,
    },
}

/// The token, if one is set. One check for HTTP and PostgreSQL alike.
#[derive(Clone)]
pub struct Auth {
    token: Option<String>,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth")
            .field("required", &self.required())
            .finish()
    }
}

impl Auth {
    /// No token: everything is open. Only for loopback listeners (see [`check_listener`]).
    #[must_use]
    pub fn open() -> Self {
        Self { token: None }
    }

    /// Asks for this token; an empty one is none.
    #[must_use]
    pub fn with_token(token: &str) -> Self {
        Self {
            token: (!token.is_empty()).then(|| token.to_owned()),
        }
    }

    /// Reads the token of a configuration.
    ///
    /// # Errors
    /// [`AuthError`] if the token file cannot be read or is empty.
    pub fn from_config(config: &Config) -> Result<Self, AuthError> {
        let path = &config.auth_token_file;
        if path.as_os_str().is_empty() {
            return Ok(Self::with_token(config.auth_token.0.trim()));
        }
        let text = std::fs::read_to_string(path).map_err(|source| AuthError::TokenFile {
            path: path.clone(),
            source,
        })?;
        match text.trim() {
            "" => Err(AuthError::EmptyTokenFile(path.clone())),
            token => Ok(Self::with_token(token)),
        }
    }

    /// The token, to be shown to other nodes.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Whether clients must show a token.
    #[must_use]
    pub fn required(&self) -> bool {
        self.token.is_some()
    }

    /// Whether what a client showed (a bearer token, a password) lets it in.
    #[must_use]
    pub fn accepts(&self, shown: &str) -> bool {
        self.token.as_deref().is_none_or(|token| same(token, shown))
    }

    /// Whether an HTTP request is let in: `Authorization: Bearer T`, `Token T` or `Basic` with T
    /// as password (or as user name with an empty password), else the query parameter `p`. A
    /// header that is there decides alone.
    #[must_use]
    pub fn accepts_http(&self, authorization: Option<&str>, query: Option<&str>) -> bool {
        if !self.required() {
            return true;
        }
        if let Some(header) = authorization {
            let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
            let rest = rest.trim();
            return match scheme.to_ascii_lowercase().as_str() {
                "bearer" => self.accepts(rest),
                // InfluxDB 1.8 clients send `Token user:password`.
                "token" => {
                    self.accepts(rest) || rest.split_once(':').is_some_and(|(_, p)| self.accepts(p))
                }
                "basic" => STANDARD
                    .decode(rest)
                    .ok()
                    .and_then(|bytes| String::from_utf8(bytes).ok())
                    .is_some_and(|pair| match pair.split_once(':') {
                        Some((user, "")) => self.accepts(user),
                        Some((_, password)) => self.accepts(password),
                        None => false,
                    }),
                _ => false,
            };
        }
        serde_urlencoded_value(query.unwrap_or(""), "p").is_some_and(|p| self.accepts(&p))
    }
}

/// The first value of a query parameter, percent-decoded.
pub(crate) fn serde_urlencoded_value(query: &str, name: &str) -> Option<String> {
    url_pairs(query).find(|(k, _)| k == name).map(|(_, v)| v)
}

/// The parameters of a query string, percent-decoded, in order.
pub(crate) fn url_pairs(query: &str) -> impl Iterator<Item = (String, String)> + '_ {
    query.split('&').filter(|p| !p.is_empty()).map(|pair| {
        let (k, v) = pair.split_once('=').unwrap_or((pair, ""));
        (url_decode(k), url_decode(v))
    })
}

/// The name of a query parameter that, percent-decoded, is no UTF-8, or whose value is not. What
/// [`url_pairs`] gives for it is not what the client meant.
pub(crate) fn not_utf8(query: &str) -> Option<String> {
    let is_text = |part: &str| String::from_utf8(url_bytes(part)).is_ok();
    query.split('&').find_map(|pair| {
        let (k, v) = pair.split_once('=').unwrap_or((pair, ""));
        (!is_text(k) || !is_text(v)).then(|| url_decode(k))
    })
}

/// Undoes percent-encoding and `+` for a space; a stray `%` stands for itself.
fn url_decode(text: &str) -> String {
    String::from_utf8_lossy(&url_bytes(text)).into_owned()
}

fn url_bytes(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| bytes.get(i).and_then(|b| (*b as char).to_digit(16));
        match bytes[at] {
            b'+' => out.push(b' '),
            b'%' => match (hex(at + 1), hex(at + 2)) {
                (Some(high), Some(low)) => {
                    out.push((high * 16 + low) as u8);
                    at += 2;
                }
                _ => out.push(b'%'),
            },
            other => out.push(other),
        }
        at += 1;
    }
    out
}

/// Compares in a time that depends on what was shown alone, not on how much of it is right.
fn same(token: &str, shown: &str) -> bool {
    let (token, shown) = (token.as_bytes(), shown.as_bytes());
    let mut difference = u8::from(token.len() != shown.len());
    for (i, byte) in shown.iter().enumerate() {
        difference |= byte ^ token[i % token.len()];
    }
    black_box(difference) == 0
}

/// Refuses a listener that the network could reach without a token.
///
/// # Errors
/// [`AuthError::OpenToNetwork`].
pub fn check_listener(
    key: &'static str,
    address: SocketAddr,
    auth: &Auth,
    insecure: bool,
) -> Result<(), AuthError> {
    if address.ip().is_loopback() || auth.required() || insecure {
        return Ok(());
    }
    Err(AuthError::OpenToNetwork { key, address })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_the_token_is_let_in_and_nothing_else() {
        let auth = Auth::with_token("s3cret");
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        for good in [
            "Bearer s3cret".to_owned(),
            "bearer s3cret".into(),
            "Token s3cret".into(),
            "Token telegraf:s3cret".into(),
            basic("anyone:s3cret"),
            basic("s3cret:"),
        ] {
            assert!(auth.accepts_http(Some(&good), None), "{good}");
        }
        for bad in [
            String::new(),
            "Bearer".into(),
            "Bearer s3cre".into(),
            "Bearer s3crets3cret".into(),
            "Bearer s3crex".into(),
            "Digest s3cret".into(),
            "Basic !!!".into(),
            basic("s3cret:wrong"),
            basic("s3cret"),
        ] {
            assert!(!auth.accepts_http(Some(&bad), Some("p=s3cret")), "{bad}");
        }
        assert!(auth.accepts_http(None, Some("db=x&u=me&p=s3%63ret")));
        assert!(!auth.accepts_http(None, Some("u=s3cret")));
        assert!(!auth.accepts_http(None, None));
        assert!(Auth::open().accepts_http(None, None));
    }

    #[test]
    fn parameters_that_are_no_text_are_found() {
        for (query, name) in [
            ("db=%ff", Some("db")),
            ("a=1&b=%c3", Some("b")),
            ("a=1&%fe=2", Some("\u{fffd}")),
            ("db=%c3%a9&x=%zz&y=100%", None),
            ("", None),
        ] {
            assert_eq!(not_utf8(query).as_deref(), name, "{query}");
        }
    }

    #[test]
    fn a_listener_open_to_the_network_needs_a_token_or_insecure() {
        let any = "0.0.0.0:7420".parse().expect("address");
        let local = "[::1]:7420".parse().expect("address");
        assert!(check_listener("http.addr", any, &Auth::open(), false).is_err());
        assert!(check_listener("http.addr", any, &Auth::open(), true).is_ok());
        assert!(check_listener("http.addr", any, &Auth::with_token("t"), false).is_ok());
        assert!(check_listener("http.addr", local, &Auth::open(), false).is_ok());
    }
}
