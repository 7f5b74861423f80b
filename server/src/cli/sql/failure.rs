//! Why a statement failed, shown where it failed.

use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use crate::cli::CliError;

/// A statement that did not run to its end.
#[derive(Debug)]
pub enum Failure {
    /// The server said no.
    Refused(Refused),
    /// No answer, or a broken one.
    Other(CliError),
    /// Nobody reads the output any more.
    Output,
    /// Ctrl-C.
    Cancelled,
}

impl From<CliError> for Failure {
    fn from(error: CliError) -> Self {
        Self::Other(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Self::Output
        } else {
            Self::Other(error.into())
        }
    }
}

/// What the server said.
#[derive(Debug, Default)]
pub struct Refused {
    status: u16,
    code: String,
    message: String,
    hint: Option<String>,
    /// Line and column in the statement, from 1.
    position: Option<(usize, usize)>,
}

impl Refused {
    /// Reads an answer that is no success.
    #[must_use]
    pub fn read(status: u16, body: &str) -> Self {
        let json: Value = serde_json::from_str(body).unwrap_or(Value::Null);
        let error = &json["error"];
        let text = |name: &str| error[name].as_str().map(str::to_owned);
        let place = |name: &str| {
            let number = error["position"][name].as_u64()?;
            usize::try_from(number).ok().filter(|n| *n > 0)
        };
        let message = text("message").or_else(|| error.as_str().map(str::to_owned));
        let body = body.trim();
        Self {
            status,
            code: text("code").unwrap_or_default(),
            message: message.unwrap_or_else(|| match body {
                "" => format!("the server answered {status}"),
                body => format!("the server answered {status}: {body}"),
            }),
            hint: text("hint"),
            position: place("line").zip(place("column")),
        }
    }

    /// The message, the line of the statement with a caret under the place, the hint.
    #[must_use]
    pub fn show(&self, sql: &str) -> String {
        let mut out = format!("ERROR: {}", self.message);
        if !self.code.is_empty() {
            out.push_str(&format!(" ({})", self.code));
        }
        if let Some(place) = self
            .position
            .and_then(|(line, column)| caret(sql, line, column))
        {
            out.push('\n');
            out.push_str(&place);
        }
        if let Some(hint) = &self.hint {
            out.push_str(&format!("\nHINT: {hint}"));
        }
        if self.status == 401 {
            out.push_str("\nHINT: pass --token or set SHOAL_TOKEN");
        }
        out
    }
}

/// Characters of a long line shown before and after the place.
const AROUND: usize = 60;

/// A line of the statement with a caret under a column.
fn caret(sql: &str, line: usize, column: usize) -> Option<String> {
    let text: Vec<char> = sql.lines().nth(line - 1)?.chars().collect();
    let at = column - 1;
    if at > text.len() {
        return None;
    }
    let from = at.saturating_sub(AROUND);
    let to = text.len().min(at + AROUND);
    let before: String = text[from..at].iter().collect();
    let after: String = text[at..to].iter().collect();
    let lead = format!("LINE {line}: {}", if from > 0 { "…" } else { "" });
    let tail = if to < text.len() { "…" } else { "" };
    // Tabs stay tabs in the caret's line, so that it lands under its place.
    let pad: String = before
        .chars()
        .map(|c| {
            if c == '\t' {
                "\t".to_owned()
            } else {
                " ".repeat(c.to_string().width())
            }
        })
        .collect();
    Some(format!(
        "{lead}{before}{after}{tail}\n{}{pad}^",
        " ".repeat(lead.width())
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stands_under_the_place() {
        let body = r#"{"error":{"code":"undefined_column","message":"no \"usr\"","retry":"never","position":{"line":2,"column":7},"hint":"did you mean \"user\"?"}}"#;
        assert_eq!(
            Refused::read(400, body).show("SELECT 'é',\n  日本, usr FROM t"),
            "ERROR: no \"usr\" (undefined_column)\nLINE 2:   日本, usr FROM t\n                ^\nHINT: did you mean \"user\"?"
        );
    }

    #[test]
    fn a_place_outside_the_statement_is_left_out_and_long_lines_are_cut() {
        assert_eq!(caret("select 1", 3, 1), None);
        assert_eq!(caret("select 1", 1, 99), None);
        let long = format!("SELECT {} bad", "x, ".repeat(100));
        let shown = caret(&long, 1, long.len() - 2).unwrap();
        assert!(shown.lines().next().unwrap().ends_with("bad"));
        assert_eq!(shown.lines().nth(1).unwrap().find('^').unwrap(), 9 + AROUND);
        assert_eq!(
            Refused::read(502, "gone").show(""),
            "ERROR: the server answered 502: gone"
        );
    }
}
