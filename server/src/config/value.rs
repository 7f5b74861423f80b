//! Kinds of configuration values: how each is read from text and written as TOML.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// A kind of value that a key may have. The same text form is used by flags, the environment and
/// the TOML file, so that one parser judges all three.
pub trait Setting: Sized {
    /// Reads the text.
    ///
    /// # Errors
    /// What is allowed instead, in words.
    fn parse(text: &str, range: Option<&RangeInclusive<u64>>) -> Result<Self, String>;
    /// The value as a TOML literal; parsing it back gives the same value.
    fn toml(&self) -> String;
}

/// A number of bytes. Written as `512MiB`, `64KiB`, `1GiB` or a plain number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// As a `usize`; saturates on 32-bit machines.
    #[must_use]
    pub fn usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// The address a listener binds; empty text: it does not listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddr(pub Option<SocketAddr>);

/// A text from a short list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line a record, for people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// A text that must not be printed: it shows as `""` and in `Debug` as `***`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "\"\"" } else { "***" })
    }
}

/// Whose confirmation a write waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acks {
    /// All replicas in sync.
    All,
    /// The partition's leader.
    Leader,
}

/// What keeps a cluster's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectsStore {
    /// S3 or what speaks like it.
    S3,
}

/// Settings of a library by its own names; values are not shown, there may be passwords.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Options(pub BTreeMap<String, String>);

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Quotes a text as a TOML basic string.
fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn in_range(value: u64, range: Option<&RangeInclusive<u64>>) -> Result<u64, String> {
    match range {
        Some(range) if !range.contains(&value) => Err(allowed(range)),
        _ => Ok(value),
    }
}

fn allowed(range: &RangeInclusive<u64>) -> String {
    if *range.end() == u64::MAX {
        format!("a whole number, at least {}", range.start())
    } else {
        format!("a whole number from {} to {}", range.start(), range.end())
    }
}

impl Setting for u64 {
    fn parse(text: &str, range: Option<&RangeInclusive<u64>>) -> Result<Self, String> {
        let value = text
            .replace('_', "")
            .parse()
            .map_err(|_| range.map_or_else(|| "a whole number, 0 or more".to_owned(), allowed))?;
        in_range(value, range)
    }
    fn toml(&self) -> String {
        self.to_string()
    }
}

impl Setting for bool {
    fn parse(text: &str, _: Option<&RangeInclusive<u64>>) -> Result<Self, String> {
        match text {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err("true or false".into()),
        }
    }
    fn toml(&self) -> String {
        self.to_string()
    }
}

impl Setting for String {
    fn parse(text: &str, _: Option<&RangeInclusive<u64>>) -> Result<Self, String> {
        Ok(text.to_owned())
    }
    fn toml(&self) -> String {
        quote(self)
    }
}

impl Setting for Secret {
    fn parse(text: &str, _: Option<&RangeInclusive<u64>>) -> Result<Self, String> {
        Ok(Self(text.to_owned()))
    }
    fn toml(&self) -> String {
        quote("")
    }
}

impl Setting for PathBuf {
    fn parse(text: &str, _: Option<&RangeInclusive<u64>>) -> Result<Self, String> {
        Ok(Self::from(text))
    }
    fn toml(&self) -> String {
        quote(&self.display().to_string())
    }
}

impl Setting for LogFormat {
    fn parse(text: &str, _: Option<&RangeInclusive<u64>>) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("text or json".into()),
        }
    }
    fn toml(&self) -> String {
        quote(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

impl Setting for Acks {
    fn parse(text: &str, _: Option<&RangeInclusive<u64>>) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            "leader" => Ok(Self::Leader),
            _ => Err("all or leader".into()),
        }
    }
    fn toml(&self) -> String {
        quote(match self {
            Self::All => "all",
            Self::Leader => "leader",
        })
    }
}

impl Setting for ObjectsStore {
    fn parse(text: &str, _: Option<&RangeInclusive<u64>>) -> Result<Self, String> {
        match text {
            "s3" => Ok(Self::S3),
            _ => Err("s3".into()),
        }
    }
    fn toml(&self) -> String {
        quote("s3")
    }
}

/// `{"name":"value",…}`, as the file's section comes, or `name=value,name=value`.
impl Setting for Options {
    fn parse(text: &str, _: Option<&RangeInclusive<u64>>) -> Result<Self, String> {
        let text = text.trim();
        if text.starts_with('{') {
            return serde_json::from_str(text)
                .map(Self)
                .map_err(|_| "a section of names and texts".to_owned());
        }
        let mut options = BTreeMap::new();
        for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| "name=value,name=value".to_owned())?;
            options.insert(name.trim().to_owned(), value.trim().to_owned());
        }
        Ok(Self(options))
    }
    fn toml(&self) -> String {
        "{}".to_owned()
    }
}

const UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl Setting for ByteSize {
    fn parse(text: &str, range: Option<&RangeInclusive<u64>>) -> Result<Self, String> {
        let allowed = || match range {
            Some(range) => format!(
                "a size from {} to {}, such as 64MiB (units B, KiB, MiB, GiB, TiB)",
                Self(*range.start()),
                Self(*range.end())
            ),
            None => "a size such as 64MiB (units B, KiB, MiB, GiB, TiB)".to_owned(),
        };
        let text = text.trim();
        let (digits, factor) = UNITS
            .iter()
            .find_map(|(unit, factor)| {
                let cut = text.len().checked_sub(unit.len())?;
                let (digits, tail) = text.split_at_checked(cut)?;
                tail.eq_ignore_ascii_case(unit).then_some((digits, *factor))
            })
            .unwrap_or((text, 1));
        let value = digits
            .trim()
            .replace('_', "")
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(factor))
            .ok_or_else(allowed)?;
        in_range(value, range).map_err(|_| allowed())?;
        Ok(Self(value))
    }
    fn toml(&self) -> String {
        quote(&self.to_string())
    }
}

impl std::fmt::Display for ByteSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == 0 {
            return f.write_str("0");
        }
        let (unit, factor) = UNITS
            .iter()
            .find(|(_, factor)| self.0.is_multiple_of(*factor))
            .expect("every number is a multiple of one byte");
        write!(f, "{}{unit}", self.0 / factor)
    }
}

impl Setting for ListenAddr {
    fn parse(text: &str, _: Option<&RangeInclusive<u64>>) -> Result<Self, String> {
        if text.is_empty() || text == "off" {
            return Ok(Self(None));
        }
        let allowed = || {
            "host:port such as 127.0.0.1:7420 or [::1]:7420 (port 0 picks a free one), or \"off\""
                .to_owned()
        };
        if let Ok(address) = text.parse() {
            return Ok(Self(Some(address)));
        }
        // A name such as localhost: the first address it resolves to.
        text.to_socket_addrs()
            .ok()
            .and_then(|mut found| found.next())
            .map(|address| Self(Some(address)))
            .ok_or_else(allowed)
    }
    fn toml(&self) -> String {
        quote(&self.0.map_or_else(|| "off".to_owned(), |a| a.to_string()))
    }
}
