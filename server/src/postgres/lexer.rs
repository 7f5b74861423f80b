//! A lexer for SQL scripts: where statements begin and end, and what a word is.
//!
//! It knows PostgreSQL's quoting (`'…'`, `E'…'`, `"…"`, `$tag$…$tag$`), comments (`--`, nested
//! `/* */`) and nothing else of the grammar, so it never fails: an unclosed quote runs to the end
//! and says so. The PostgreSQL protocol splits multi-statement queries with it; `shoal sql` uses
//! it to know when a statement is complete, what to complete and what to colour.

use std::ops::Range;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A bare word: keyword or identifier.
    Word,
    /// `"…"`
    Quoted,
    /// `'…'`, `E'…'` or `$tag$…$tag$`
    Text,
    /// `1`, `1.5e3`
    Number,
    /// `$1`
    Parameter,
    /// Any other single character.
    Symbol,
    /// `;`
    Semicolon,
    /// `-- …` or `/* … */`
    Comment,
    /// Blanks and line ends.
    Space,
}

/// One token, as a byte range of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: Kind,
    /// Where it is, in bytes.
    pub range: Range<usize>,
    /// Whether its closing quote or comment end was found.
    pub closed: bool,
}

impl Token {
    /// Whether the token carries meaning (is neither blank nor comment).
    #[must_use]
    pub fn is_significant(&self) -> bool {
        !matches!(self.kind, Kind::Space | Kind::Comment)
    }
}

/// The tokens of a text, in order, without gaps.
pub fn tokens(sql: &str) -> impl Iterator<Item = Token> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let first = sql[at..].chars().next()?;
        let (kind, len, closed) = scan(&sql[at..], first);
        let range = at..at + len;
        at += len;
        Some(Token {
            kind,
            range,
            closed,
        })
    })
}

/// The statements of a script as byte ranges: trimmed of blanks and comments around them, without
/// their semicolons; empty ones are left out.
#[must_use]
pub fn statements(sql: &str) -> Vec<Range<usize>> {
    let mut out = Vec::new();
    let mut current: Option<Range<usize>> = None;
    for token in tokens(sql) {
        if token.kind == Kind::Semicolon {
            out.extend(current.take());
        } else if token.is_significant() {
            current = Some(match current {
                Some(range) => range.start..token.range.end,
                None => token.range,
            });
        }
    }
    out.extend(current);
    out
}

/// Whether a typed text is ready to run: it holds a statement and its last one is closed by a
/// semicolon outside quotes and comments.
#[must_use]
pub fn is_complete(sql: &str) -> bool {
    let tokens: Vec<Token> = tokens(sql).collect();
    tokens.iter().all(|t| t.closed)
        && tokens
            .iter()
            .rev()
            .find(|t| t.is_significant())
            .is_some_and(|t| t.kind == Kind::Semicolon)
}

/// The significant tokens of a text as strings, words in lower case: what statements are told
/// apart by.
#[must_use]
pub fn words(sql: &str, most: usize) -> Vec<String> {
    tokens(sql)
        .filter(Token::is_significant)
        .take(most)
        .map(|t| {
            let text = &sql[t.range];
            if t.kind == Kind::Word {
                text.to_ascii_lowercase()
            } else {
                text.to_owned()
            }
        })
        .collect()
}

/// The value of a literal or identifier token: quotes removed, doubled quotes undone, bare words
/// folded to lower case.
#[must_use]
pub fn value_of(token: &str) -> String {
    let undouble = |inner: &str, quote: &str| inner.replace(&quote.repeat(2), quote);
    if let Some(inner) = token.strip_prefix('"') {
        undouble(inner.strip_suffix('"').unwrap_or(inner), "\"")
    } else if let Some(inner) = token.strip_prefix('\'') {
        undouble(inner.strip_suffix('\'').unwrap_or(inner), "'")
    } else {
        token.to_ascii_lowercase()
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

/// Kind, length in bytes (at least one character) and closedness of the token at the start.
fn scan(text: &str, first: char) -> (Kind, usize, bool) {
    let run = |test: fn(char) -> bool| text.find(|c| !test(c)).unwrap_or(text.len());
    match first {
        c if c.is_whitespace() => (Kind::Space, run(char::is_whitespace), true),
        ';' => (Kind::Semicolon, 1, true),
        '\'' => quoted(text, 0, '\'', false, Kind::Text),
        '"' => quoted(text, 0, '"', false, Kind::Quoted),
        'e' | 'E' if text[1..].starts_with('\'') => quoted(text, 1, '\'', true, Kind::Text),
        '-' if text.starts_with("--") => {
            (Kind::Comment, text.find('\n').unwrap_or(text.len()), true)
        }
        '/' if text.starts_with("/*") => block_comment(text),
        '$' => dollar(text),
        c if c.is_ascii_digit() => number(text),
        c if c.is_alphabetic() || c == '_' => (Kind::Word, run(is_word), true),
        c => (Kind::Symbol, c.len_utf8(), true),
    }
}

fn quoted(
    text: &str,
    prefix: usize,
    quote: char,
    escapes: bool,
    kind: Kind,
) -> (Kind, usize, bool) {
    let mut chars = text[prefix + 1..].char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if escapes && c == '\\' {
            chars.next();
        } else if c == quote {
            if chars.peek().is_some_and(|(_, next)| *next == quote) {
                chars.next();
            } else {
                return (kind, prefix + 1 + at + 1, true);
            }
        }
    }
    (kind, text.len(), false)
}

fn block_comment(text: &str) -> (Kind, usize, bool) {
    let bytes = text.as_bytes();
    let (mut depth, mut at) = (0_usize, 0);
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => {
                depth += 1;
                at += 2;
            }
            b"*/" => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return (Kind::Comment, at, true);
                }
            }
            _ => at += 1,
        }
    }
    (Kind::Comment, text.len(), false)
}

fn dollar(text: &str) -> (Kind, usize, bool) {
    let rest = &text[1..];
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    if digits > 0 {
        return (Kind::Parameter, 1 + digits, true);
    }
    let Some(tag_len) = rest.find('$') else {
        return (Kind::Symbol, 1, true);
    };
    if !rest[..tag_len]
        .chars()
        .all(|c| c.is_alphanumeric() || c == '_')
    {
        return (Kind::Symbol, 1, true);
    }
    let tag = &text[..tag_len + 2];
    match text[tag.len()..].find(tag) {
        Some(end) => (Kind::Text, tag.len() + end + tag.len(), true),
        None => (Kind::Text, text.len(), false),
    }
}

fn number(text: &str) -> (Kind, usize, bool) {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let signed_exponent =
            matches!(bytes[at], b'+' | b'-') && matches!(bytes[at - 1], b'e' | b'E');
        if bytes[at].is_ascii_alphanumeric() || matches!(bytes[at], b'.' | b'_') || signed_exponent
        {
            at += 1;
        } else {
            break;
        }
    }
    (Kind::Number, at, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(sql: &str) -> Vec<&str> {
        statements(sql).into_iter().map(|r| &sql[r]).collect()
    }

    #[test]
    fn semicolons_inside_quotes_and_comments_do_not_end_a_statement() {
        assert_eq!(
            split("SELECT ';', \"a;b\", E'\\';', $x$;$x$ -- ;\n/* ; /* ; */ */ FROM t; ;SELECT 2"),
            [
                "SELECT ';', \"a;b\", E'\\';', $x$;$x$ -- ;\n/* ; /* ; */ */ FROM t",
                "SELECT 2"
            ]
        );
        assert_eq!(split("  -- nothing\n;;"), Vec::<&str>::new());
        assert_eq!(split("select 'it''s;'"), ["select 'it''s;'"]);
    }

    #[test]
    fn a_text_is_complete_only_after_a_semicolon_outside_quotes() {
        assert!(is_complete("select 1; -- done"));
        assert!(!is_complete("select 1"));
        assert!(!is_complete("select ';"));
        assert!(!is_complete("select 1 /* ;"));
        assert!(!is_complete("   "));
    }

    #[test]
    fn tokens_cover_any_text_without_gaps() {
        for text in [
            "select 1e-5+2, $1, a$b, é'x', $",
            "'",
            "\"",
            "/*",
            "$$",
            "$a",
            "--",
            "1e+",
            "¿;?",
        ] {
            let mut at = 0;
            for token in tokens(text) {
                assert_eq!(token.range.start, at, "{text}");
                assert!(token.range.end > at, "{text}");
                at = token.range.end;
            }
            assert_eq!(at, text.len(), "{text}");
        }
    }

    #[test]
    fn words_fold_and_literals_lose_their_quotes() {
        assert_eq!(
            words("SET /* x */ TimeZone TO 'UTC'", 9),
            ["set", "timezone", "to", "'UTC'"]
        );
        assert_eq!(value_of("'it''s'"), "it's");
        assert_eq!(value_of("\"A\"\"b\""), "A\"b");
        assert_eq!(value_of("ON"), "on");
    }
}
