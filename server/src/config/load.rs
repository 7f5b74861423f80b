//! Lays the sources over each other: defaults, file, environment, flags.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{Config, KEYS, Key};
use crate::nearest::nearest;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No such key.
    #[error("{place}: unknown key {key:?}{}", nearest.as_ref().map(|n| format!("; did you mean {n:?}?")).unwrap_or_default())]
    UnknownKey {
        /// The key as written.
        key: String,
        /// Where it stands.
        place: String,
        /// The closest key there is.
        nearest: Option<String>,
    },
    /// A value that the key cannot have.
    #[error("{place}: {key} = {value:?} is not allowed; expected {allowed}")]
    BadValue {
        /// The key.
        key: String,
        /// The value as written.
        value: String,
        /// Where it stands.
        place: String,
        /// What may stand there.
        allowed: String,
    },
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path} is not valid TOML: {what}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line and reason.
        what: String,
    },
    /// Keys that do not fit together.
    #[error("configuration: {0}")]
    Together(String),
}

/// The sources of one configuration.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// The TOML file.
    pub file: Option<PathBuf>,
    /// `(variable, value)` of the environment.
    pub environment: Vec<(String, String)>,
    /// `(key, value)` of the flags.
    pub flags: Vec<(String, String)>,
}

/// Variables that are not keys: they belong to the client commands and to our scripts.
const CLIENT_VARIABLES: &[&str] = &[
    "SHOAL_CONFIG",
    "SHOAL_URL",
    "SHOAL_TOKEN",
    "SHOAL_SCHEMA",
    "SHOAL_HISTORY",
    "SHOAL_BIN",
    "SHOAL_CACHE",
];

impl Layers {
    /// The configuration, and warnings about variables that look like keys but are none.
    ///
    /// # Errors
    /// [`ConfigError`]: unknown keys of the file and bad values of any source.
    pub fn load(&self) -> Result<(Config, Vec<String>), ConfigError> {
        let mut config = Config::default();
        let mut warnings = Vec::new();
        if let Some(path) = &self.file {
            let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                path: path.clone(),
                source,
            })?;
            apply_toml(&mut config, &text, path)?;
        }
        for (variable, value) in &self.environment {
            if CLIENT_VARIABLES.contains(&variable.as_str()) {
                continue;
            }
            match KEYS.iter().find(|k| k.variable() == *variable) {
                Some(key) => set(&mut config, key, value, &format!("environment, {variable}"))?,
                // Only a warning: Kubernetes puts SHOAL_SERVICE_HOST and the like into every pod
                // beside a service named shoal.
                None => warnings.push(match nearest_variable(variable) {
                    Some(near) => format!(
                        "environment variable {variable} is no key of ours and is ignored; did you mean {near}?"
                    ),
                    None => format!("environment variable {variable} is no key of ours and is ignored"),
                }),
            }
        }
        for (name, value) in &self.flags {
            let key = KEYS
                .iter()
                .find(|k| k.name == name)
                .expect("flags are made from the table of keys");
            set(&mut config, key, value, &format!("flag --{}", key.flag()))?;
        }
        config.check()?;
        Ok((config, warnings))
    }
}

fn nearest_variable(asked: &str) -> Option<String> {
    let variables: Vec<String> = KEYS.iter().map(Key::variable).collect();
    nearest(asked, variables.iter().map(String::as_str)).map(str::to_owned)
}

fn set(config: &mut Config, key: &Key, value: &str, place: &str) -> Result<(), ConfigError> {
    (key.set)(config, value).map_err(|allowed| ConfigError::BadValue {
        key: key.name.to_owned(),
        value: if key.secret {
            "***".into()
        } else {
            value.to_owned()
        },
        place: place.to_owned(),
        allowed,
    })
}

fn apply_toml(config: &mut Config, text: &str, path: &Path) -> Result<(), ConfigError> {
    let table: toml::Table = text
        .parse()
        .map_err(|e: toml::de::Error| ConfigError::Syntax {
            path: path.to_path_buf(),
            what: e.to_string().trim().to_owned(),
        })?;
    let place = path.display().to_string();
    for (name, value) in &table {
        match value {
            toml::Value::Table(section) => {
                for (inner, value) in section {
                    apply_value(config, &format!("{name}.{inner}"), value, &place)?;
                }
            }
            value => apply_value(config, name, value, &place)?,
        }
    }
    Ok(())
}

fn apply_value(
    config: &mut Config,
    name: &str,
    value: &toml::Value,
    place: &str,
) -> Result<(), ConfigError> {
    let Some(key) = KEYS.iter().find(|k| k.name == name) else {
        return Err(ConfigError::UnknownKey {
            key: name.to_owned(),
            place: place.to_owned(),
            nearest: nearest(name, KEYS.iter().map(|k| k.name)).map(str::to_owned),
        });
    };
    let text = match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Boolean(flag) => flag.to_string(),
        toml::Value::Table(inner) if key.unit == "table" => {
            let plain = |value: &toml::Value| match value {
                toml::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let inner: serde_json::Map<String, serde_json::Value> = inner
                .iter()
                .map(|(name, value)| (name.clone(), plain(value).into()))
                .collect();
            serde_json::Value::Object(inner).to_string()
        }
        other => {
            return Err(ConfigError::BadValue {
                key: name.to_owned(),
                value: other.to_string(),
                place: place.to_owned(),
                allowed: format!("a text or a whole number ({})", key.unit),
            });
        }
    };
    set(config, key, &text, place)
}

/// What a help page calls a value: `BYTES`, or the words to choose from, as in `text|json`.
fn value_name(unit: &str) -> String {
    let (unit, _more) = unit.split_once(',').unwrap_or((unit, ""));
    let words = unit.replace(" or ", "|").replace('"', "");
    match words.split(' ').next() {
        Some(choice) if choice.contains('|') => choice.to_owned(),
        Some(first) => first.to_uppercase(),
        None => "VALUE".to_owned(),
    }
}

/// Flag and value name of every key; clap wants them for the life of the process.
static SPELLINGS: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    KEYS.iter()
        .map(|key| (key.flag(), value_name(key.unit)))
        .collect()
});

/// `--config FILE` and one flag a key, for every command that runs a server.
#[derive(Clone, Debug, Default)]
pub struct ConfigArgs {
    /// The TOML file.
    pub file: Option<PathBuf>,
    /// `(key, value)` of the flags given.
    pub flags: Vec<(String, String)>,
}

impl ConfigArgs {
    /// The flags over the process's environment over the file.
    #[must_use]
    pub fn layers(&self) -> Layers {
        Layers {
            file: self
                .file
                .clone()
                .or_else(|| std::env::var_os("SHOAL_CONFIG").map(PathBuf::from)),
            // A variable that is not UTF-8 cannot be a value of ours.
            environment: std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
                .filter(|(k, _)| k.starts_with("SHOAL_"))
                .collect(),
            flags: self.flags.clone(),
        }
    }
}

impl clap::FromArgMatches for ConfigArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self {
            file: matches.get_one::<PathBuf>("config").cloned(),
            flags: Vec::new(),
        };
        for key in KEYS {
            if let Some(value) = matches.get_one::<String>(key.name) {
                args.flags.push((key.name.to_owned(), value.clone()));
            }
        }
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for ConfigArgs {
    fn augment_args(command: Command) -> Command {
        let command = command.arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .action(ArgAction::Set)
                .help("TOML file with any of the keys that `shoal config --defaults` prints"),
        );
        let defaults = Config::default();
        KEYS.iter()
            .zip(SPELLINGS.iter())
            .fold(command, |command, (key, (flag, unit))| {
                let arg = Arg::new(key.name)
                    .long(flag.as_str())
                    .value_name(unit.as_str())
                    .action(ArgAction::Set)
                    // The last one counts, so that a script's flags can be added to.
                    .overrides_with(key.name)
                    .help(format!(
                        "{} [default: {}]",
                        key.meaning,
                        (key.get)(&defaults)
                    ));
                // `--insecure` alone means yes.
                command.arg(if key.name == "insecure" {
                    arg.num_args(0..=1)
                        .default_missing_value("true")
                        .require_equals(true)
                } else {
                    arg
                })
            })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::defaults_toml;

    fn from_file(text: &str) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        apply_toml(&mut config, text, Path::new("shoal.toml"))?;
        config.check()?;
        Ok(config)
    }

    #[test]
    fn a_help_page_names_a_unit_or_the_words_to_choose_from() {
        let names = ["bytes a second", "host:port or \"off\"", "a|b, or `c,d=e`"].map(value_name);
        assert_eq!(names, ["BYTES", "host:port|off", "a|b"]);
    }

    #[test]
    fn the_printed_defaults_parse_back_to_the_defaults() {
        let text = defaults_toml();
        assert_eq!(from_file(&text).expect("parses"), Config::default());
        for key in KEYS {
            assert!(
                text.contains(&key.variable()),
                "{} is not printed",
                key.name
            );
        }
    }

    #[test]
    fn flags_win_over_the_environment_over_the_file_over_the_defaults() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("shoal.toml");
        std::fs::write(
            &file,
            "data_dir = 'f'\n[http]\naddr = '127.0.0.1:1'\nbody_bytes_max = '1MiB'\n",
        )
        .expect("write");
        let layers = Layers {
            file: Some(file),
            environment: vec![
                ("SHOAL_HTTP_ADDR".into(), "127.0.0.1:2".into()),
                ("SHOAL_DATA_DIR".into(), "e".into()),
                ("SHOAL_HTP_ADDR".into(), "x".into()),
            ],
            flags: vec![("http.addr".into(), "127.0.0.1:3".into())],
        };
        let (config, warnings) = layers.load().expect("loads");
        assert_eq!(config.http_addr.0.map(|a| a.port()), Some(3));
        assert_eq!(config.data_dir, PathBuf::from("e"));
        assert_eq!(config.http_body_bytes_max, crate::config::ByteSize(1 << 20));
        assert!(warnings[0].contains("SHOAL_HTTP_ADDR"), "{warnings:?}");
    }

    #[test]
    fn an_unknown_key_and_a_bad_value_name_key_value_place_and_remedy() {
        let error = from_file("[http]\nadr = '127.0.0.1:1'\n")
            .expect_err("unknown")
            .to_string();
        assert!(
            error.contains("\"http.adr\"") && error.contains("\"http.addr\""),
            "{error}"
        );
        let error = from_file("[wal]\nrecord_rows_max = 70000\n")
            .expect_err("range")
            .to_string();
        for part in [
            "wal.record_rows_max",
            "70000",
            "shoal.toml",
            "from 1 to 65536",
        ] {
            assert!(error.contains(part), "{error} lacks {part}");
        }
        let error = from_file("[http]\nbody_bytes_max = 'much'\n")
            .expect_err("size")
            .to_string();
        assert!(error.contains("1KiB to 1GiB"), "{error}");
        let error = from_file("[gc]\nretention_s = 5\n")
            .expect_err("together")
            .to_string();
        assert!(error.contains("query.statement_timeout_ms"), "{error}");
    }
}
