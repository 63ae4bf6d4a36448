//! From text to tokens, one at a time.

use std::borrow::Cow;

use super::{ParseError, ParseProblem, Span};

/// A piece of the text that belongs together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind<'a>,
    pub(super) span: Span,
}

/// What a token is.
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
    /// The name of an attribute or a function, as it was written.
    Name(&'a str),
    /// Digits.
    Integer(&'a str),
    /// What a string literal stands for.
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
    /// The end of the text.
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

/// Those of two characters before those that begin them.
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
    /// What has not been read yet.
    rest: &'a str,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, rest: text }
    }

    /// The next token; [`Kind::End`] for ever after the last.
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
    fn tokens() {
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
    fn what_is_no_token() {
        for (source, column, message) in [
            ("a # b", 3, "the character '#' means nothing"),
            ("a\u{a0}= 1", 2, "the character '\\u{a0}'"),
            ("_a", 1, "the character '_'"),
            ("!a", 1, "the character '!'"),
            ("'ü' & 'b'", 5, "the character '&'"),
            ("a = 'b", 5, "the string that begins here has no closing '"),
            ("\"a\\\"", 1, "the string that begins here has no closing \""),
            ("'a\\", 1, "the string that begins here has no closing '"),
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
