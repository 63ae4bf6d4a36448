//! Parses tokens to a tree, by recursive descent.
//!
//! ```text
//! expression = binary { AND binary } | binary { OR binary } | binary { XOR binary }
//! binary     = suffixed { operator suffixed }             by the levels of the operators
//! suffixed   = unary { [ NOT ] LIKE string | [ NOT ] IN "(" list ")" }
//! unary      = NOT unary | "-" unary | primary
//! primary    = literal | EXISTS name | name "(" [ list ] ")" | name | "(" expression ")"
//! list       = expression { "," expression }
//! ```

use super::{
    MAX_DEPTH, MAX_LENGTH, ParseProblem, Scalar, Span, SqlExpression, SqlParseError,
    lexer::{Lexer, Token, TokenKind},
    pattern::LikePattern,
    tree::{Binary, Call, Logic, SqlArithmetic, SqlComparison, SqlNode, SqlNodeKind},
};

const VALUE: &str = "a value, an attribute, a function, NOT, EXISTS, - or (";

impl SqlExpression {
    /// Compiles a text.
    ///
    /// # Errors
    /// The first error in the text, with its column.
    pub fn parse(text: &str) -> Result<Self, SqlParseError> {
        if text.chars().nth(MAX_LENGTH).is_some() {
            return Err(SqlParseError {
                column: MAX_LENGTH + 1,
                problem: ParseProblem::TooLong,
            });
        }
        let mut parser = Parser::new(text)?;
        let root = parser.expression()?;
        parser.expect(TokenKind::End, "an operator or the end")?;
        Ok(Self {
            text: text.into(),
            root,
        })
    }
}

struct Parser<'a> {
    text: &'a str,
    lexer: Lexer<'a>,
    /// The next token.
    next: Token<'a>,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self, SqlParseError> {
        let mut lexer = Lexer::new(text);
        Ok(Self {
            text,
            next: lexer.next()?,
            lexer,
            depth: 0,
        })
    }

    fn advance(&mut self) -> Result<Token<'a>, SqlParseError> {
        let next = self.lexer.next()?;
        Ok(std::mem::replace(&mut self.next, next))
    }

    /// Consumes the next token if it is this one.
    fn take(&mut self, kind: &TokenKind<'_>) -> Result<bool, SqlParseError> {
        let found = self.next.kind == *kind;
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn expect(&mut self, kind: TokenKind<'_>, expected: &'static str) -> Result<Span, SqlParseError> {
        if self.next.kind != kind {
            return Err(self.unexpected(expected));
        }
        self.advance().map(|token| token.span)
    }

    fn unexpected(&self, expected: &'static str) -> SqlParseError {
        let found = match self.next.kind {
            TokenKind::End => "the end".to_owned(),
            _ => excerpt(self.next.span.of(self.text)),
        };
        self.error(ParseProblem::Unexpected { expected, found })
    }

    /// Creates an error at the next token.
    fn error(&self, problem: ParseProblem) -> SqlParseError {
        self.next.span.error(self.text, problem)
    }

    /// Creates a node above children of the given height.
    fn node(&self, kind: SqlNodeKind, span: Span, below: usize) -> Result<SqlNode, SqlParseError> {
        if below == MAX_DEPTH {
            return Err(span.error(self.text, ParseProblem::TooDeep));
        }
        Ok(SqlNode {
            kind,
            span,
            height: below + 1,
        })
    }

    fn leaf(&self, kind: SqlNodeKind, span: Span) -> Result<SqlNode, SqlParseError> {
        self.node(kind, span, 0)
    }

    /// Parses one nesting level deeper.
    fn nested<T>(
        &mut self,
        parse: impl FnOnce(&mut Self) -> Result<T, SqlParseError>,
    ) -> Result<T, SqlParseError> {
        if self.depth == MAX_DEPTH {
            return Err(self.error(ParseProblem::TooDeep));
        }
        self.depth += 1;
        let parsed = parse(self)?;
        self.depth -= 1;
        Ok(parsed)
    }

    fn expression(&mut self) -> Result<SqlNode, SqlParseError> {
        let first = self.binary(0)?;
        let Some(operator) = logic(&self.next.kind) else {
            return Ok(first);
        };
        let mut operands = vec![first];
        while let Some(next) = logic(&self.next.kind) {
            if next != operator {
                return Err(self.error(ParseProblem::Mixed {
                    first: operator.name(),
                    second: next.name(),
                }));
            }
            self.advance()?;
            operands.push(self.binary(0)?);
        }
        let (span, height) = extent(&operands);
        self.node(SqlNodeKind::Logic(operator, operands), span, height)
    }

    fn binary(&mut self, level: u8) -> Result<SqlNode, SqlParseError> {
        let mut left = self.suffixed()?;
        while let Some(operator) = binary(&self.next.kind).filter(|operator| operator.level() >= level) {
            self.advance()?;
            let right = self.binary(operator.level() + 1)?;
            let (span, height) = (left.span.to(right.span), left.height.max(right.height));
            left = self.node(
                SqlNodeKind::Binary(operator, Box::new(left), Box::new(right)),
                span,
                height,
            )?;
        }
        Ok(left)
    }

    fn suffixed(&mut self) -> Result<SqlNode, SqlParseError> {
        let mut operand = self.unary()?;
        loop {
            let negated = self.take(&TokenKind::Not)?;
            operand = match self.next.kind {
                TokenKind::Like => self.like(operand, negated)?,
                TokenKind::In => self.r#in(operand, negated)?,
                _ if negated => return Err(self.unexpected("LIKE or IN after NOT")),
                _ => return Ok(operand),
            };
        }
    }

    fn like(&mut self, operand: SqlNode, negated: bool) -> Result<SqlNode, SqlParseError> {
        self.advance()?;
        let TokenKind::String(pattern) = &self.next.kind else {
            return Err(self.unexpected("a string literal, the pattern, after LIKE"));
        };
        let pattern = LikePattern::new(pattern);
        let (span, height) = (operand.span.to(self.advance()?.span), operand.height);
        let operand = Box::new(operand);
        self.node(
            SqlNodeKind::Like {
                operand,
                pattern,
                negated,
            },
            span,
            height,
        )
    }

    fn r#in(&mut self, operand: SqlNode, negated: bool) -> Result<SqlNode, SqlParseError> {
        self.advance()?;
        self.expect(TokenKind::Open, "( after IN")?;
        let (set, close) = self.list()?;
        let (_, height) = extent(&set);
        let (span, height) = (operand.span.to(close), height.max(operand.height));
        let operand = Box::new(operand);
        self.node(
            SqlNodeKind::In {
                operand,
                set,
                negated,
            },
            span,
            height,
        )
    }

    /// Parses one or more expressions and the closing parenthesis.
    fn list(&mut self) -> Result<(Vec<SqlNode>, Span), SqlParseError> {
        let mut list = Vec::new();
        loop {
            list.push(self.nested(Self::expression)?);
            if !self.take(&TokenKind::Comma)? {
                let close = self.expect(TokenKind::Close, "an operator, a comma or )")?;
                return Ok((list, close));
            }
        }
    }

    fn unary(&mut self) -> Result<SqlNode, SqlParseError> {
        let kind: fn(Box<SqlNode>) -> SqlNodeKind = match self.next.kind {
            TokenKind::Not => SqlNodeKind::Not,
            TokenKind::Minus => SqlNodeKind::Negate,
            _ => return self.primary(),
        };
        let operator = self.advance()?.span;
        if let TokenKind::Integer(_) = self.next.kind
            && self.text.get(operator.start..self.next.span.start) == Some("-")
        {
            return self.integer(operator);
        }
        let operand = self.nested(Self::unary)?;
        let (span, height) = (operator.to(operand.span), operand.height);
        self.node(kind(Box::new(operand)), span, height)
    }

    fn primary(&mut self) -> Result<SqlNode, SqlParseError> {
        let span = self.next.span;
        let kind = match &self.next.kind {
            TokenKind::True => SqlNodeKind::Literal(Scalar::Boolean(true)),
            TokenKind::False => SqlNodeKind::Literal(Scalar::Boolean(false)),
            TokenKind::String(text) => SqlNodeKind::Literal(Scalar::String(text.clone().into_owned().into())),
            TokenKind::Integer(_) => return self.integer(span),
            TokenKind::Plus => return self.positive(),
            TokenKind::Exists => return self.exists(),
            TokenKind::Name(name) => {
                let name = *name;
                return self.name(name);
            }
            TokenKind::Open => {
                self.advance()?;
                let inner = self.nested(Self::expression)?;
                let close = self.expect(TokenKind::Close, "an operator or )")?;
                return Ok(SqlNode {
                    span: span.to(close),
                    ..inner
                });
            }
            _ => return Err(self.unexpected(VALUE)),
        };
        self.advance()?;
        self.leaf(kind, span)
    }

    /// Parses the next digits. `start` is the position of the sign, if there is one.
    fn integer(&mut self, start: Span) -> Result<SqlNode, SqlParseError> {
        let span = start.to(self.advance()?.span);
        let text = span.of(self.text);
        match text.parse() {
            Ok(integer) => self.leaf(SqlNodeKind::Literal(Scalar::Integer(integer)), span),
            Err(_) => Err(span.error(self.text, ParseProblem::IntegerRange(excerpt(text)))),
        }
    }

    /// Parses a `+` before a literal, where an operand is expected.
    fn positive(&mut self) -> Result<SqlNode, SqlParseError> {
        let sign = self.advance()?.span;
        match self.next.kind {
            TokenKind::Integer(_) if self.next.span.start == sign.end => self.integer(sign),
            _ => Err(self.unexpected("digits after the sign +")),
        }
    }

    fn exists(&mut self) -> Result<SqlNode, SqlParseError> {
        let start = self.advance()?.span;
        let (TokenKind::Name(name) | TokenKind::Integer(name)) = self.next.kind else {
            return Err(self.unexpected("an attribute's name, without parentheses, after EXISTS"));
        };
        let name = self.attribute(name, self.next.span)?;
        let end = self.advance()?.span;
        self.leaf(SqlNodeKind::Exists(name), start.to(end))
    }

    /// Parses a function if a parenthesis follows, otherwise an attribute.
    fn name(&mut self, name: &str) -> Result<SqlNode, SqlParseError> {
        let start = self.advance()?.span;
        if self.next.kind != TokenKind::Open {
            let name = self.attribute(name, start)?;
            return self.leaf(SqlNodeKind::Attribute(name), start);
        }
        self.advance()?;
        let (arguments, close) = match self.next.kind {
            TokenKind::Close => (Vec::new(), self.advance()?.span),
            _ => self.list()?,
        };
        let (_, height) = extent(&arguments);
        let call = Call::new(name, arguments).map_err(|problem| start.error(self.text, problem))?;
        self.node(SqlNodeKind::Call(call), start.to(close), height)
    }

    fn attribute(&self, name: &str, span: Span) -> Result<Box<str>, SqlParseError> {
        let lower = name.to_ascii_lowercase();
        if lower == "data" || lower.contains('_') {
            return Err(span.error(self.text, ParseProblem::AttributeName(excerpt(name))));
        }
        Ok(lower.into())
    }
}

/// Returns the span from the first node to the last, and the maximum height.
fn extent(nodes: &[SqlNode]) -> (Span, usize) {
    let height = nodes.iter().map(|node| node.height).max().unwrap_or(0);
    match (nodes.first(), nodes.last()) {
        (Some(first), Some(last)) => (first.span.to(last.span), height),
        _ => (Span { start: 0, end: 0 }, height),
    }
}

fn logic(token: &TokenKind<'_>) -> Option<Logic> {
    match token {
        TokenKind::And => Some(Logic::And),
        TokenKind::Or => Some(Logic::Or),
        TokenKind::Xor => Some(Logic::Xor),
        _ => None,
    }
}

fn binary(token: &TokenKind<'_>) -> Option<Binary> {
    Some(match token {
        TokenKind::Equal => Binary::Equal,
        TokenKind::NotEqual => Binary::NotEqual,
        TokenKind::Less => Binary::Compare(SqlComparison::Less),
        TokenKind::LessOrEqual => Binary::Compare(SqlComparison::LessOrEqual),
        TokenKind::Greater => Binary::Compare(SqlComparison::Greater),
        TokenKind::GreaterOrEqual => Binary::Compare(SqlComparison::GreaterOrEqual),
        TokenKind::Plus => Binary::Calculate(SqlArithmetic::Add),
        TokenKind::Minus => Binary::Calculate(SqlArithmetic::Subtract),
        TokenKind::Star => Binary::Calculate(SqlArithmetic::Multiply),
        TokenKind::Slash => Binary::Calculate(SqlArithmetic::Divide),
        TokenKind::Percent => Binary::Calculate(SqlArithmetic::Remainder),
        _ => return None,
    })
}

/// Shortens a piece of the text to one line, for a message.
fn excerpt(text: &str) -> String {
    const LONGEST: usize = 40;
    let line = text
        .chars()
        .map(|character| if character.is_control() { ' ' } else { character });
    let mut excerpt: String = line.take(LONGEST).collect();
    if text.chars().nth(LONGEST).is_some() {
        excerpt.push_str("...");
    }
    excerpt
}
