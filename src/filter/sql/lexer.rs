//! Splits a text into tokens, one at a time.

use std::borrow::Cow;

use super::{ParseProblem, Span, SqlParseError};

/// A token and its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) kind: TokenKind<'a>,
    pub(super) span: Span,
}

/// Kind of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TokenKind<'a> {
    And,
    Or,
    Xor,
    Not,
    Like,
    In,
    Exists,
    True,
    False,
    /// Name of an attribute or a function, as written.
    Name(&'a str),
    /// Digits.
    Integer(&'a str),
    /// Value of a string literal.
    String(Cow<'a, str>),
    Open,
    Close,
    Comma,
    Plus,
    Minus,
    Star,
    Slash,
    Percent,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// End of the text.
    End,
}

const KEYWORDS: [(&str, TokenKind<'static>); 9] = [
    ("AND", TokenKind::And),
    ("OR", TokenKind::Or),
    ("XOR", TokenKind::Xor),
    ("NOT", TokenKind::Not),
    ("LIKE", TokenKind::Like),
    ("IN", TokenKind::In),
    ("EXISTS", TokenKind::Exists),
    ("TRUE", TokenKind::True),
    ("FALSE", TokenKind::False),
];

/// Symbols. Longer ones come before their prefixes.
const SYMBOLS: [(&str, TokenKind<'static>); 15] = [
    ("!=", TokenKind::NotEqual),
    ("<>", TokenKind::NotEqual),
    ("<=", TokenKind::LessOrEqual),
    (">=", TokenKind::GreaterOrEqual),
    ("<", TokenKind::Less),
    (">", TokenKind::Greater),
    ("=", TokenKind::Equal),
    ("(", TokenKind::Open),
    (")", TokenKind::Close),
    (",", TokenKind::Comma),
    ("+", TokenKind::Plus),
    ("-", TokenKind::Minus),
    ("*", TokenKind::Star),
    ("/", TokenKind::Slash),
    ("%", TokenKind::Percent),
];

pub(super) struct Lexer<'a> {
    text: &'a str,
    /// The unread text.
    rest: &'a str,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, rest: text }
    }

    /// Returns the next token, or [`TokenKind::End`] forever after the last.
    pub(super) fn next(&mut self) -> Result<Token<'a>, SqlParseError> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let start = self.position();
        let kind = match self.rest.chars().next() {
            None => TokenKind::End,
            Some(quote @ ('\'' | '"')) => self.string(quote)?,
            Some(first) if first.is_ascii_alphanumeric() => self.word(),
            Some(first) => self.symbol(first)?,
        };
        let end = self.position();
        Ok(Token {
            kind,
            span: Span { start, end },
        })
    }

    fn position(&self) -> usize {
        self.text.len() - self.rest.len()
    }

    fn error(&self, problem: ParseProblem) -> SqlParseError {
        let at = self.position();
        Span { start: at, end: at }.error(self.text, problem)
    }

    fn word(&mut self) -> TokenKind<'a> {
        let end = self
            .rest
            .find(|character: char| !character.is_ascii_alphanumeric() && character != '_')
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        if word.bytes().all(|byte| byte.is_ascii_digit()) {
            return TokenKind::Integer(word);
        }
        KEYWORDS
            .iter()
            .find(|(keyword, _)| keyword.eq_ignore_ascii_case(word))
            .map_or(TokenKind::Name(word), |(_, kind)| kind.clone())
    }

    fn symbol(&mut self, first: char) -> Result<TokenKind<'a>, SqlParseError> {
        for (symbol, kind) in &SYMBOLS {
            if let Some(rest) = self.rest.strip_prefix(symbol) {
                self.rest = rest;
                return Ok(kind.clone());
            }
        }
        Err(self.error(ParseProblem::Character(first)))
    }

    fn string(&mut self, quote: char) -> Result<TokenKind<'a>, SqlParseError> {
        let mut text = String::new();
        let mut characters = self.rest.chars();
        characters.next();
        loop {
            match characters.next() {
                Some(character) if character == quote => {
                    let after = characters.as_str();
                    let Some(doubled) = after.strip_prefix(quote) else {
                        self.rest = after;
                        return Ok(TokenKind::String(text.into()));
                    };
                    text.push(quote);
                    characters = doubled.chars();
                }
                Some('\\') => {
                    let escaped = characters.next();
                    if escaped != Some(quote) {
                        text.push('\\');
                    }
                    text.extend(escaped);
                }
                Some(character) => text.push(character),
                None => return Err(self.error(ParseProblem::UnclosedString(quote))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<TokenKind<'_>> {
        let mut lexer = Lexer::new(text);
        let mut kinds = Vec::new();
        loop {
            match lexer.next().unwrap().kind {
                TokenKind::End => return kinds,
                kind => kinds.push(kind),
            }
        }
    }

    #[test]
    fn splits_text_into_tokens() {
        let text = |text: &str| TokenKind::String(text.to_owned().into());
        #[rustfmt::skip]
        let table = [
            ("", vec![]),
            (" \t\r\n", vec![]),
            ("and OR xOr Not LIKE in EXISTS true FALSE", vec![
                TokenKind::And, TokenKind::Or, TokenKind::Xor, TokenKind::Not, TokenKind::Like, TokenKind::In, TokenKind::Exists, TokenKind::True, TokenKind::False,
            ]),
            ("Type ANDy CONCAT_WS 5g 05", vec![
                TokenKind::Name("Type"), TokenKind::Name("ANDy"), TokenKind::Name("CONCAT_WS"), TokenKind::Name("5g"), TokenKind::Integer("05"),
            ]),
            ("(,)+-*/%", vec![
                TokenKind::Open, TokenKind::Comma, TokenKind::Close, TokenKind::Plus, TokenKind::Minus, TokenKind::Star, TokenKind::Slash, TokenKind::Percent,
            ]),
            ("= != <> < <= > >=", vec![
                TokenKind::Equal, TokenKind::NotEqual, TokenKind::NotEqual, TokenKind::Less, TokenKind::LessOrEqual, TokenKind::Greater,
                TokenKind::GreaterOrEqual,
            ]),
            ("a<=-1", vec![TokenKind::Name("a"), TokenKind::LessOrEqual, TokenKind::Minus, TokenKind::Integer("1")]),
            ("'' \"\"", vec![text(""), text("")]),
            ("'aB c' \"d'e\"", vec![text("aB c"), text("d'e")]),
            (r#"'a"b\'c' "a'b\"c""#, vec![text("a\"b'c"), text("a'b\"c")]),
            ("'it''s' \"a\"\"b\"", vec![text("it's"), text("a\"b")]),
            (r#"'a\b' 'c\\' 'd\"'"#, vec![text(r"a\b"), text(r"c\\"), text("d\\\"")]),
            ("'Zürich\n😀'", vec![text("Zürich\n😀")]),
        ];
        for (source, expected) in table {
            assert_eq!(kinds(source), expected, "{source}");
        }
    }

    #[test]
    fn rejects_invalid_tokens() {
        for (source, column, message) in [
            ("a # b", 3, "unexpected character '#'"),
            ("a\u{a0}= 1", 2, "unexpected character '\\u{a0}'"),
            ("_a", 1, "unexpected character '_'"),
            ("!a", 1, "unexpected character '!'"),
            ("'ü' & 'b'", 5, "unexpected character '&'"),
            ("a = 'b", 5, "unterminated string: no closing '"),
            ("\"a\\\"", 1, "unterminated string: no closing \""),
            ("'a\\", 1, "unterminated string: no closing '"),
        ] {
            let mut lexer = Lexer::new(source);
            let error = loop {
                if let Err(error) = lexer.next() {
                    break error;
                }
            };
            assert_eq!(error.column, column, "{source}");
            assert!(error.problem.to_string().starts_with(message), "{error}");
        }
    }
}
