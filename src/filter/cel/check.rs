//! From a text to an expression: the crate parses, and what a filter may not have is refused here.

use cel::{
    IdedExpr,
    common::ast::{CallExpr, Expr, LiteralValue, SelectExpr, operators},
    parser::PrattParser,
};

use super::{
    Expression, MAX_DEPTH, MAX_LENGTH, MAX_PARTS, ParseError, Problem, constant::Constant, functions,
};

/// The one variable.
pub(super) const EVENT: &str = "event";

/// The field of it that is no attribute.
pub(super) const DATA: &str = "data";

/// How many question marks a text may have, wherever.
pub(super) const MAX_CONDITIONS: usize = 64;

impl Expression {
    /// Compiles a text.
    ///
    /// # Errors
    /// What is wrong with it, and where if it is the syntax.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        // The parser's recursion is bounded by its own limit for what has brackets, not for conditions in conditions;
        // the nodes that it gives are bounded by the length, and looked at no deeper than `MAX_DEPTH`.
        if text.chars().count() > MAX_LENGTH {
            return Err(Problem::TooLong.into());
        }
        if text.matches('?').count() > MAX_CONDITIONS {
            return Err(Problem::TooManyConditions.into());
        }
        let parser = PrattParser::new().max_recursion_depth(MAX_DEPTH as u16);
        let mut root = parser.parse(text).map_err(|errors| syntax(&errors))?;
        let mut check = Check::default();
        check.node(&mut root, 0)?;
        if !may_be_boolean(&root.expr) {
            return Err(Problem::NotBoolean.into());
        }
        Ok(Self {
            text: text.into(),
            root,
            constants: check.constants,
        })
    }
}

/// The first error that has a place; the others follow from it.
fn syntax(errors: &cel::ParseErrors) -> ParseError {
    let placed = errors.errors.iter().find(|error| error.pos.0 > 0);
    let Some(error) = placed.or(errors.errors.first()) else {
        return Problem::TooDeep.into();
    };
    if errors
        .errors
        .iter()
        .any(|error| error.msg.contains("recursion limit"))
    {
        return Problem::TooDeep.into();
    }
    let position = |number: isize| usize::try_from(number).unwrap_or_default();
    ParseError::Syntax {
        line: position(error.pos.0),
        column: position(error.pos.1),
        message: error
            .msg
            .strip_prefix("Syntax error: ")
            .unwrap_or(&error.msg)
            .to_owned(),
    }
}

#[derive(Default)]
struct Check {
    parts: usize,
    constants: Vec<Constant>,
}

impl Check {
    /// Refuses what a filter may not have, and puts constants and the bounded `+` in.
    fn node(&mut self, node: &mut IdedExpr, depth: usize) -> Result<(), Problem> {
        self.parts += 1;
        if depth > MAX_DEPTH {
            return Err(Problem::TooDeep);
        }
        if self.parts > MAX_PARTS {
            return Err(Problem::TooLarge);
        }
        if let Some(field) = indexed_field(&node.expr) {
            node.expr = field;
        }
        match &mut node.expr {
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) if name == EVENT => Err(Problem::WholeEvent),
            Expr::Ident(name) => Err(Problem::Unknown(name.clone())),
            Expr::Select(select) if is_event(&select.operand.expr) => attribute(&select.field),
            Expr::Select(select) => self.node(&mut select.operand, depth + 1),
            Expr::List(list) if list.elements.iter().all(|element| is_constant(&element.expr)) => Ok(()),
            Expr::List(_) => Err(Problem::ListElement),
            Expr::Call(call) => match self.constant(call)? {
                Some(name) => {
                    node.expr = Expr::Ident(name);
                    Ok(())
                }
                None => self.call(call, depth),
            },
            Expr::Comprehension(_) => Err(Problem::Loop),
            Expr::Map(_) | Expr::Struct(_) => Err(Problem::Braces),
            Expr::Unspecified => Err(Problem::Unknown("value".to_owned())),
        }
    }

    /// `cidr('...')` becomes the name of a constant.
    fn constant(&mut self, call: &CallExpr) -> Result<Option<String>, Problem> {
        if call.func_name != "cidr" || call.target.is_some() {
            return Ok(None);
        }
        let text = text(&call.args).ok_or(Problem::NotConstant("cidr"))?;
        Constant::network(text).map(|network| Some(self.add(network)))
    }

    fn call(&mut self, call: &mut CallExpr, depth: usize) -> Result<(), Problem> {
        let CallExpr {
            func_name,
            target,
            args,
        } = call;
        if func_name == operators::ADD {
            functions::ADD.clone_into(func_name);
        } else if !is_operator(func_name) && !functions::exists(func_name, target.is_some(), args.len()) {
            let arguments = if args.is_empty() { "()" } else { "(...)" };
            let dot = if target.is_some() { "." } else { "" };
            let call = format!("{dot}{func_name}{arguments}");
            return Err(Problem::Function { call });
        }
        if func_name == "matches" {
            let pattern = Constant::pattern(text(args).ok_or(Problem::NotConstant("matches"))?)?;
            let name = self.add(pattern);
            args.iter_mut()
                .for_each(|argument| argument.expr = Expr::Ident(name.clone()));
        } else {
            for argument in args {
                self.node(argument, depth + 1)?;
            }
        }
        target
            .iter_mut()
            .try_for_each(|target| self.node(target, depth + 1))
    }

    /// Keeps a constant, and gives the name by which it is looked up, which no text can have.
    fn add(&mut self, constant: Constant) -> String {
        self.constants.push(constant);
        constant_name(self.constants.len() - 1)
    }
}

fn constant_name(position: usize) -> String {
    format!("@{position}")
}

/// The position that a name of [`Check::add`] stands for.
pub(super) fn constant_position(name: &str) -> Option<usize> {
    name.strip_prefix('@')?.parse().ok()
}

/// The one argument, if it is a string in quotes.
fn text(arguments: &[IdedExpr]) -> Option<&str> {
    match arguments {
        [only] => match &only.expr {
            Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
            _ => None,
        },
        _ => None,
    }
}

/// `event.type` for `event['type']`.
fn indexed_field(expression: &Expr) -> Option<Expr> {
    let Expr::Call(CallExpr { func_name, args, .. }) = expression else {
        return None;
    };
    match args.as_slice() {
        [event, field] if func_name == operators::INDEX && is_event(&event.expr) => {
            Some(Expr::Select(SelectExpr {
                operand: Box::new(event.clone()),
                field: text(std::slice::from_ref(field))?.to_owned(),
                test: false,
            }))
        }
        _ => None,
    }
}

fn is_event(expression: &Expr) -> bool {
    matches!(expression, Expr::Ident(name) if name == EVENT)
}

fn attribute(name: &str) -> Result<(), Problem> {
    let named = name
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if named {
        Ok(())
    } else {
        Err(Problem::AttributeName(name.to_owned()))
    }
}

fn is_constant(expression: &Expr) -> bool {
    match expression {
        Expr::Literal(_) => true,
        Expr::Call(call) if call.func_name == operators::NEGATE => call
            .args
            .iter()
            .all(|argument| matches!(argument.expr, Expr::Literal(_))),
        _ => false,
    }
}

fn is_operator(name: &str) -> bool {
    is_comparison(name) || is_calculation(name) || matches!(name, operators::CONDITIONAL | operators::INDEX)
}

fn is_comparison(name: &str) -> bool {
    matches!(
        name,
        operators::LOGICAL_AND
            | operators::LOGICAL_OR
            | operators::LOGICAL_NOT
            | operators::EQUALS
            | operators::NOT_EQUALS
            | operators::LESS
            | operators::LESS_EQUALS
            | operators::GREATER
            | operators::GREATER_EQUALS
            | operators::IN
    )
}

fn is_calculation(name: &str) -> bool {
    matches!(
        name,
        operators::SUBSTRACT
            | operators::MULTIPLY
            | operators::DIVIDE
            | operators::MODULO
            | operators::NEGATE
    )
}

/// Whether the value is a Boolean, or the event decides.
fn may_be_boolean(expression: &Expr) -> bool {
    match expression {
        Expr::Literal(literal) => matches!(literal, LiteralValue::Boolean(_)),
        Expr::Call(call) => {
            let name = call.func_name.as_str();
            let text = matches!(
                name,
                "lowerAscii" | "upperAscii" | "trim" | "size" | "string" | "int" | "uint" | "double"
            );
            !text && name != functions::ADD && !is_calculation(name)
        }
        Expr::Select(_) => true,
        _ => false,
    }
}
