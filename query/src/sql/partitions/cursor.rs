//! The tokens of a statement, read one after another with a word on what was expected.

use datafusion::sql::sqlparser::ast::{Ident, ObjectName, ObjectNamePart};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use crate::QueryError;
use crate::error::{Kind, Result};

/// Line and column, both from 1.
pub(super) type Position = Option<(u64, u64)>;

/// Tokens between two commas or parentheses, and where they end.
#[derive(Clone, Copy)]
pub(super) struct Item<'a> {
    pub(super) tokens: &'a [TokenWithSpan],
    pub(super) end: Position,
}

pub(super) fn syntax(message: impl Into<String>) -> QueryError {
    QueryError::new(Kind::SYNTAX, message)
}

pub(super) fn place(token: &TokenWithSpan) -> Position {
    let start = token.span.start;
    (start.line > 0).then_some((start.line, start.column))
}

/// Whether a token is a word without quotes; not all words of the clause are sqlparser's keywords.
pub(super) fn is_keyword(token: &TokenWithSpan, word: &str) -> bool {
    matches!(&token.token, Token::Word(w) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(word))
}

/// The tokens of a statement from some place on. Spaces and comments are passed over.
pub(super) struct Cursor<'a> {
    tokens: &'a [TokenWithSpan],
    /// Index of the next token, or of space before it.
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(tokens: &'a [TokenWithSpan]) -> Self {
        Self { tokens, at: 0 }
    }

    /// The next token, if there is one; the cursor stands at it then.
    pub(super) fn peek(&mut self) -> Option<&'a TokenWithSpan> {
        while let Some(token) = self.tokens.get(self.at) {
            if !matches!(token.token, Token::Whitespace(_)) {
                return Some(token);
            }
            self.at += 1;
        }
        None
    }

    /// Passes the next token.
    pub(super) fn advance(&mut self) {
        self.peek();
        self.at += 1;
    }

    /// The next token, unless the statement ends.
    pub(super) fn found(&self) -> Option<&'a TokenWithSpan> {
        let mut rest = self.tokens.get(self.at..).unwrap_or_default().iter();
        rest.find(|token| !matches!(token.token, Token::Whitespace(_)))
            .filter(|token| !matches!(token.token, Token::SemiColon | Token::EOF))
    }

    /// Where the next token stands, or where the last one ended.
    pub(super) fn position(&self) -> Position {
        match (self.found(), self.tokens.last()) {
            (Some(token), _) => place(token),
            (None, Some(last)) => {
                let end = last.span.end;
                (end.line > 0).then_some((end.line, end.column))
            }
            (None, None) => None,
        }
    }

    pub(super) fn expected(&self, what: &str) -> QueryError {
        let found = match self.found() {
            Some(token) => token.to_string(),
            None => "end of statement".to_owned(),
        };
        syntax(format!("Expected: {what}, found: {found}")).at(self.position())
    }

    pub(super) fn peeks(&self, word: &str) -> bool {
        self.found().is_some_and(|token| is_keyword(token, word))
    }

    pub(super) fn peeks_symbol(&self, symbol: &Token) -> bool {
        self.found().is_some_and(|token| token.token == *symbol)
    }

    /// Passes a word, if it is the next.
    pub(super) fn keyword(&mut self, word: &str) -> bool {
        let is_next = self.peek().is_some_and(|token| is_keyword(token, word));
        self.at += usize::from(is_next);
        is_next
    }

    /// Passes all of these words, or none.
    pub(super) fn keywords(&mut self, words: &[&str]) -> bool {
        let start = self.at;
        let all = words.iter().all(|word| self.keyword(word));
        if !all {
            self.at = start;
        }
        all
    }

    /// Passes a comma or parenthesis, if it is the next.
    pub(super) fn symbol(&mut self, symbol: &Token) -> bool {
        let is_next = self.peek().is_some_and(|token| token.token == *symbol);
        self.at += usize::from(is_next);
        is_next
    }

    pub(super) fn ident(&mut self, what: &str) -> Result<Ident> {
        let Some((Token::Word(word), span)) = self.peek().map(|t| (&t.token, t.span)) else {
            return Err(self.expected(what));
        };
        self.advance();
        Ok(word.to_ident(span))
    }

    pub(super) fn part_name(&mut self) -> Result<Ident> {
        let what = "the name of a partition";
        // The name was forgotten; one that is really so is quoted.
        match self.peeks("VALUES") {
            true => Err(self.expected(what)),
            false => self.ident(what),
        }
    }

    pub(super) fn table(&mut self) -> Result<ObjectName> {
        let mut parts = vec![ObjectNamePart::Identifier(self.ident("a table")?)];
        while self.symbol(&Token::Period) {
            parts.push(ObjectNamePart::Identifier(self.ident("a table")?));
        }
        Ok(ObjectName(parts))
    }

    /// Passes `(…, …)`: what stands between its commas.
    pub(super) fn items(&mut self) -> Result<Vec<Item<'a>>> {
        if !self.symbol(&Token::LParen) {
            return Err(self.expected("\"(\""));
        }
        let mut items = Vec::new();
        let mut depth = 0_usize;
        let mut start = self.at;
        loop {
            self.peek();
            let Some(token) = self.found() else {
                return Err(self.expected("\")\""));
            };
            let closes = matches!(token.token, Token::RParen) && depth == 0;
            if closes || (matches!(token.token, Token::Comma) && depth == 0) {
                items.push(Item {
                    tokens: &self.tokens[start..self.at],
                    end: place(token),
                });
                start = self.at + 1;
            }
            match token.token {
                Token::LParen | Token::LBracket | Token::LBrace => depth += 1,
                Token::RParen | Token::RBracket | Token::RBrace => depth = depth.saturating_sub(1),
                _ => {}
            }
            self.advance();
            if closes {
                return Ok(items);
            }
        }
    }
}
