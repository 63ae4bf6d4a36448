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
    Expression, MAX_DEPTH, MAX_LENGTH, ParseError, ParseProblem, Scalar, Span,
    lexer::{Kind as Token, Lexer, Token as Located},
    pattern::Pattern,
    tree::{Arithmetic, Binary, Call, Comparison, Kind, Logic, Node},
};

const VALUE: &str = "a value, an attribute, a function, NOT, EXISTS, - or (";

impl Expression {
    /// Compiles a text.
    ///
    /// # Errors
    /// The first error in the text, with its column.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        if text.chars().nth(MAX_LENGTH).is_some() {
            return Err(ParseError {
                column: MAX_LENGTH + 1,
                problem: ParseProblem::TooLong,
            });
        }
        let mut parser = Parser::new(text)?;
        let root = parser.expression()?;
        parser.expect(Token::End, "an operator or the end")?;
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
    next: Located<'a>,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self, ParseError> {
        let mut lexer = Lexer::new(text);
        Ok(Self {
            text,
            next: lexer.next()?,
            lexer,
            depth: 0,
        })
    }

    fn advance(&mut self) -> Result<Located<'a>, ParseError> {
        let next = self.lexer.next()?;
        Ok(std::mem::replace(&mut self.next, next))
    }

    /// Consumes the next token if it is this one.
    fn take(&mut self, kind: &Token<'_>) -> Result<bool, ParseError> {
        let found = self.next.kind == *kind;
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn expect(&mut self, kind: Token<'_>, expected: &'static str) -> Result<Span, ParseError> {
        if self.next.kind != kind {
            return Err(self.unexpected(expected));
        }
        self.advance().map(|token| token.span)
    }

    fn unexpected(&self, expected: &'static str) -> ParseError {
        let found = match self.next.kind {
            Token::End => "the end".to_owned(),
            _ => excerpt(self.next.span.of(self.text)),
        };
        self.error(ParseProblem::Unexpected { expected, found })
    }

    /// Creates an error at the next token.
    fn error(&self, problem: ParseProblem) -> ParseError {
        self.next.span.error(self.text, problem)
    }

    /// Creates a node above children of the given height.
    fn node(&self, kind: Kind, span: Span, below: usize) -> Result<Node, ParseError> {
        if below == MAX_DEPTH {
            return Err(span.error(self.text, ParseProblem::TooDeep));
        }
        Ok(Node {
            kind,
            span,
            height: below + 1,
        })
    }

    fn leaf(&self, kind: Kind, span: Span) -> Result<Node, ParseError> {
        self.node(kind, span, 0)
    }

    /// Parses one nesting level deeper.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, ParseError>) -> Result<T, ParseError> {
        if self.depth == MAX_DEPTH {
            return Err(self.error(ParseProblem::TooDeep));
        }
        self.depth += 1;
        let parsed = parse(self)?;
        self.depth -= 1;
        Ok(parsed)
    }

    fn expression(&mut self) -> Result<Node, ParseError> {
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
        self.node(Kind::Logic(operator, operands), span, height)
    }

    fn binary(&mut self, level: u8) -> Result<Node, ParseError> {
        let mut left = self.suffixed()?;
        while let Some(operator) = binary(&self.next.kind).filter(|operator| operator.level() >= level) {
            self.advance()?;
            let right = self.binary(operator.level() + 1)?;
            let (span, height) = (left.span.to(right.span), left.height.max(right.height));
            left = self.node(
                Kind::Binary(operator, Box::new(left), Box::new(right)),
                span,
                height,
            )?;
        }
        Ok(left)
    }

    fn suffixed(&mut self) -> Result<Node, ParseError> {
        let mut operand = self.unary()?;
        loop {
            let negated = self.take(&Token::Not)?;
            operand = match self.next.kind {
                Token::Like => self.like(operand, negated)?,
                Token::In => self.r#in(operand, negated)?,
                _ if negated => return Err(self.unexpected("LIKE or IN after NOT")),
                _ => return Ok(operand),
            };
        }
    }

    fn like(&mut self, operand: Node, negated: bool) -> Result<Node, ParseError> {
        self.advance()?;
        let Token::String(pattern) = &self.next.kind else {
            return Err(self.unexpected("a string literal, the pattern, after LIKE"));
        };
        let pattern = Pattern::new(pattern);
        let (span, height) = (operand.span.to(self.advance()?.span), operand.height);
        let operand = Box::new(operand);
        self.node(
            Kind::Like {
                operand,
                pattern,
                negated,
            },
            span,
            height,
        )
    }

    fn r#in(&mut self, operand: Node, negated: bool) -> Result<Node, ParseError> {
        self.advance()?;
        self.expect(Token::Open, "( after IN")?;
        let (set, close) = self.list()?;
        let (_, height) = extent(&set);
        let (span, height) = (operand.span.to(close), height.max(operand.height));
        let operand = Box::new(operand);
        self.node(
            Kind::In {
                operand,
                set,
                negated,
            },
            span,
            height,
        )
    }

    /// Parses one or more expressions and the closing parenthesis.
    fn list(&mut self) -> Result<(Vec<Node>, Span), ParseError> {
        let mut list = Vec::new();
        loop {
            list.push(self.nested(Self::expression)?);
            if !self.take(&Token::Comma)? {
                let close = self.expect(Token::Close, "an operator, a comma or )")?;
                return Ok((list, close));
            }
        }
    }

    fn unary(&mut self) -> Result<Node, ParseError> {
        let kind: fn(Box<Node>) -> Kind = match self.next.kind {
            Token::Not => Kind::Not,
            Token::Minus => Kind::Negate,
            _ => return self.primary(),
        };
        let operator = self.advance()?.span;
        if let Token::Integer(_) = self.next.kind
            && self.text.get(operator.start..self.next.span.start) == Some("-")
        {
            return self.integer(operator);
        }
        let operand = self.nested(Self::unary)?;
        let (span, height) = (operator.to(operand.span), operand.height);
        self.node(kind(Box::new(operand)), span, height)
    }

    fn primary(&mut self) -> Result<Node, ParseError> {
        let span = self.next.span;
        let kind = match &self.next.kind {
            Token::True => Kind::Literal(Scalar::Boolean(true)),
            Token::False => Kind::Literal(Scalar::Boolean(false)),
            Token::String(text) => Kind::Literal(Scalar::String(text.clone().into_owned().into())),
            Token::Integer(_) => return self.integer(span),
            Token::Plus => return self.positive(),
            Token::Exists => return self.exists(),
            Token::Name(name) => {
                let name = *name;
                return self.name(name);
            }
            Token::Open => {
                self.advance()?;
                let inner = self.nested(Self::expression)?;
                let close = self.expect(Token::Close, "an operator or )")?;
                return Ok(Node {
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
    fn integer(&mut self, start: Span) -> Result<Node, ParseError> {
        let span = start.to(self.advance()?.span);
        let text = span.of(self.text);
        match text.parse() {
            Ok(integer) => self.leaf(Kind::Literal(Scalar::Integer(integer)), span),
            Err(_) => Err(span.error(self.text, ParseProblem::IntegerRange(excerpt(text)))),
        }
    }

    /// Parses a `+` before a literal, where an operand is expected.
    fn positive(&mut self) -> Result<Node, ParseError> {
        let sign = self.advance()?.span;
        match self.next.kind {
            Token::Integer(_) if self.next.span.start == sign.end => self.integer(sign),
            _ => Err(self.unexpected("digits after the sign +")),
        }
    }

    fn exists(&mut self) -> Result<Node, ParseError> {
        let start = self.advance()?.span;
        let (Token::Name(name) | Token::Integer(name)) = self.next.kind else {
            return Err(self.unexpected("an attribute's name, without parentheses, after EXISTS"));
        };
        let name = self.attribute(name, self.next.span)?;
        let end = self.advance()?.span;
        self.leaf(Kind::Exists(name), start.to(end))
    }

    /// Parses a function if a parenthesis follows, otherwise an attribute.
    fn name(&mut self, name: &str) -> Result<Node, ParseError> {
        let start = self.advance()?.span;
        if self.next.kind != Token::Open {
            let name = self.attribute(name, start)?;
            return self.leaf(Kind::Attribute(name), start);
        }
        self.advance()?;
        let (arguments, close) = match self.next.kind {
            Token::Close => (Vec::new(), self.advance()?.span),
            _ => self.list()?,
        };
        let (_, height) = extent(&arguments);
        let call = Call::new(name, arguments).map_err(|problem| start.error(self.text, problem))?;
        self.node(Kind::Call(call), start.to(close), height)
    }

    fn attribute(&self, name: &str, span: Span) -> Result<Box<str>, ParseError> {
        let lower = name.to_ascii_lowercase();
        if lower == "data" || lower.contains('_') {
            return Err(span.error(self.text, ParseProblem::AttributeName(excerpt(name))));
        }
        Ok(lower.into())
    }
}

/// Returns the span from the first node to the last, and the maximum height.
fn extent(nodes: &[Node]) -> (Span, usize) {
    let height = nodes.iter().map(|node| node.height).max().unwrap_or(0);
    match (nodes.first(), nodes.last()) {
        (Some(first), Some(last)) => (first.span.to(last.span), height),
        _ => (Span { start: 0, end: 0 }, height),
    }
}

fn logic(token: &Token<'_>) -> Option<Logic> {
    match token {
        Token::And => Some(Logic::And),
        Token::Or => Some(Logic::Or),
        Token::Xor => Some(Logic::Xor),
        _ => None,
    }
}

fn binary(token: &Token<'_>) -> Option<Binary> {
    Some(match token {
        Token::Equal => Binary::Equal,
        Token::NotEqual => Binary::NotEqual,
        Token::Less => Binary::Compare(Comparison::Less),
        Token::LessOrEqual => Binary::Compare(Comparison::LessOrEqual),
        Token::Greater => Binary::Compare(Comparison::Greater),
        Token::GreaterOrEqual => Binary::Compare(Comparison::GreaterOrEqual),
        Token::Plus => Binary::Calculate(Arithmetic::Add),
        Token::Minus => Binary::Calculate(Arithmetic::Subtract),
        Token::Star => Binary::Calculate(Arithmetic::Multiply),
        Token::Slash => Binary::Calculate(Arithmetic::Divide),
        Token::Percent => Binary::Calculate(Arithmetic::Remainder),
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
