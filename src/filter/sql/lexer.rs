//! Splits a text into tokens, one at a time.

use std::borrow::Cow;

use super::{ParseError, ParseProblem, Span};

/// A token and its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind<'a>,
    pub(super) span: Span,
}

/// Kind of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind<'a> {
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

const KEYWORDS: [(&str, Kind<'static>); 9] = [
    ("AND", Kind::And),
    ("OR", Kind::Or),
    ("XOR", Kind::Xor),
    ("NOT", Kind::Not),
    ("LIKE", Kind::Like),
    ("IN", Kind::In),
    ("EXISTS", Kind::Exists),
    ("TRUE", Kind::True),
    ("FALSE", Kind::False),
];

/// Symbols. Longer ones come before their prefixes.
const SYMBOLS: [(&str, Kind<'static>); 15] = [
    ("!=", Kind::NotEqual),
    ("<>", Kind::NotEqual),
    ("<=", Kind::LessOrEqual),
    (">=", Kind::GreaterOrEqual),
    ("<", Kind::Less),
    (">", Kind::Greater),
    ("=", Kind::Equal),
    ("(", Kind::Open),
    (")", Kind::Close),
    (",", Kind::Comma),
    ("+", Kind::Plus),
    ("-", Kind::Minus),
    ("*", Kind::Star),
    ("/", Kind::Slash),
    ("%", Kind::Percent),
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

    /// Returns the next token, or [`Kind::End`] forever after the last.
    pub(super) fn next(&mut self) -> Result<Token<'a>, ParseError> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let start = self.position();
        let kind = match self.rest.chars().next() {
            None => Kind::End,
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

    fn error(&self, problem: ParseProblem) -> ParseError {
        let at = self.position();
        Span { start: at, end: at }.error(self.text, problem)
    }

    fn word(&mut self) -> Kind<'a> {
        let end = self
            .rest
            .find(|character: char| !character.is_ascii_alphanumeric() && character != '_')
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        if word.bytes().all(|byte| byte.is_ascii_digit()) {
            return Kind::Integer(word);
        }
        KEYWORDS
            .iter()
            .find(|(keyword, _)| keyword.eq_ignore_ascii_case(word))
            .map_or(Kind::Name(word), |(_, kind)| kind.clone())
    }

    fn symbol(&mut self, first: char) -> Result<Kind<'a>, ParseError> {
        for (symbol, kind) in &SYMBOLS {
            if let Some(rest) = self.rest.strip_prefix(symbol) {
                self.rest = rest;
                return Ok(kind.clone());
            }
        }
        Err(self.error(ParseProblem::Character(first)))
    }

    fn string(&mut self, quote: char) -> Result<Kind<'a>, ParseError> {
        let mut text = String::new();
        let mut characters = self.rest.chars();
        characters.next();
        loop {
            match characters.next() {
                Some(character) if character == quote => {
                    let after = characters.as_str();
                    let Some(doubled) = after.strip_prefix(quote) else {
                        self.rest = after;
                        return Ok(Kind::String(text.into()));
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

    fn kinds(text: &str) -> Vec<Kind<'_>> {
        let mut lexer = Lexer::new(text);
        let mut kinds = Vec::new();
        loop {
            match lexer.next().unwrap().kind {
                Kind::End => return kinds,
                kind => kinds.push(kind),
            }
        }
    }

    #[test]
    fn splits_text_into_tokens() {
        let text = |text: &str| Kind::String(text.to_owned().into());
        #[rustfmt::skip]
        let table = [
            ("", vec![]),
            (" \t\r\n", vec![]),
            ("and OR xOr Not LIKE in EXISTS true FALSE", vec![
                Kind::And, Kind::Or, Kind::Xor, Kind::Not, Kind::Like, Kind::In, Kind::Exists, Kind::True, Kind::False,
            ]),
            ("Type ANDy CONCAT_WS 5g 05", vec![
                Kind::Name("Type"), Kind::Name("ANDy"), Kind::Name("CONCAT_WS"), Kind::Name("5g"), Kind::Integer("05"),
            ]),
            ("(,)+-*/%", vec![
                Kind::Open, Kind::Comma, Kind::Close, Kind::Plus, Kind::Minus, Kind::Star, Kind::Slash, Kind::Percent,
            ]),
            ("= != <> < <= > >=", vec![
                Kind::Equal, Kind::NotEqual, Kind::NotEqual, Kind::Less, Kind::LessOrEqual, Kind::Greater,
                Kind::GreaterOrEqual,
            ]),
            ("a<=-1", vec![Kind::Name("a"), Kind::LessOrEqual, Kind::Minus, Kind::Integer("1")]),
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
