//! Compiles a text to an expression: the `cel` crate parses it, and this module rejects what is not allowed.

use cel::{
    IdedExpr,
    common::{
        ast::{
            CallExpr, ComprehensionExpr, EntryExpr, Expr, ListExpr, LiteralValue, MapExpr, SelectExpr,
            operators,
        },
        types::{CelNull, CelString},
        value::Val,
    },
    parser::PrattParser,
};

use super::{
    CelExpression, CelParseError, Disallowed, MAX_DEPTH, MAX_LENGTH, MAX_PARTS,
    limits::MAX_CONDITIONS,
    macros::CelMacro,
    network::Network,
    pattern::RegexPattern,
    time::CelTime,
    tree::{CelArithmetic, CelComparison, CelNode, Conversion, OfText, OfTexts, Quantifier},
};

/// The variable with the attributes and the data.
const EVENT: &str = "event";

/// The field of `event` that is not an attribute, and a variable that is short for it.
pub(super) const DATA: &str = "data";

/// The variables of an expression on a request.
const REQUEST: &str = "request";
const BODY: &str = "body";

/// The variables of an expression on the change of an object.
const CHANGE: &str = "change";
const OBJECT: &str = "object";
const OLD_OBJECT: &str = "oldObject";

/// What an expression is evaluated on.
#[derive(Clone, Copy, Default)]
enum ExpressionScope {
    #[default]
    Event,
    /// Also the request that the event is made of.
    Request,
    /// Also the change of an object that the event is made of.
    Change,
}

impl ExpressionScope {
    /// Resolves a variable that is neither of the event nor of a loop.
    fn variable(self, name: String) -> Result<CelNode, Disallowed> {
        match (self, &*name) {
            (Self::Request, REQUEST) => Ok(CelNode::Request),
            (Self::Request, BODY) => Ok(CelNode::Body),
            (Self::Change, CHANGE) => Ok(CelNode::Change),
            (Self::Change, OBJECT) => Ok(CelNode::Object),
            (Self::Change, OLD_OBJECT) => Ok(CelNode::OldObject),
            (Self::Event, _) => Err(Disallowed::Unknown(name)),
            (Self::Request, _) => Err(Disallowed::UnknownInRequest(name)),
            (Self::Change, _) => Err(Disallowed::UnknownInChange(name)),
        }
    }
}

impl CelExpression {
    /// Compiles a condition.
    ///
    /// # Errors
    /// What is wrong with it, with the position for syntax errors.
    pub fn parse(text: &str) -> Result<Self, CelParseError> {
        let expression = Self::parse_value(text)?;
        if !may_be_boolean(&expression.root) {
            return Err(Disallowed::NotBoolean.into());
        }
        Ok(expression)
    }

    /// Compiles an expression whose value may have any type.
    ///
    /// # Errors
    /// What is wrong with it, with the position for syntax errors.
    pub fn parse_value(text: &str) -> Result<Self, CelParseError> {
        Self::compile(text, ExpressionScope::Event)
    }

    /// Compiles an expression on a request and the event that is made of it, whose value may have any type.
    ///
    /// # Errors
    /// What is wrong with it, with the position for syntax errors.
    pub fn parse_request_value(text: &str) -> Result<Self, CelParseError> {
        Self::compile(text, ExpressionScope::Request)
    }

    /// Compiles an expression on the change of an object and the event that is made of it, whose value may have any type.
    ///
    /// # Errors
    /// What is wrong with it, with the position for syntax errors.
    pub fn parse_change_value(text: &str) -> Result<Self, CelParseError> {
        Self::compile(text, ExpressionScope::Change)
    }

    fn compile(text: &str, scope: ExpressionScope) -> Result<Self, CelParseError> {
        let mut check = Check {
            scope,
            ..Check::default()
        };
        // The parser's own limit bounds its recursion on brackets, but not on nested conditionals. The resulting
        // nodes are bounded by the length, and visited no deeper than `MAX_DEPTH`.
        if text.chars().count() > MAX_LENGTH {
            return Err(Disallowed::TooLong.into());
        }
        if text.matches('?').count() > MAX_CONDITIONS {
            return Err(Disallowed::TooManyConditions.into());
        }
        let parser = PrattParser::new().max_recursion_depth(MAX_DEPTH as u16);
        let root = parser.parse(text).map_err(|errors| syntax(&errors, text))?;
        let root = check.node(root, 0)?;
        Ok(Self {
            text: text.into(),
            root,
        })
    }
}

/// Returns the first error that has a position. The others are consequences of it.
fn syntax(errors: &cel::ParseErrors, text: &str) -> CelParseError {
    let placed = errors.errors.iter().find(|error| error.pos.0 > 0);
    let Some(error) = placed.or(errors.errors.first()) else {
        return Disallowed::TooDeep.into();
    };
    if errors
        .errors
        .iter()
        .any(|error| error.msg.contains("recursion limit"))
    {
        return Disallowed::TooDeep.into();
    }
    let position = |number: isize| usize::try_from(number).unwrap_or_default();
    let message = error.msg.strip_prefix("Syntax error: ").unwrap_or(&error.msg);
    CelParseError::Syntax {
        line: position(error.pos.0),
        column: position(error.pos.1),
        message: match meant(text) {
            Some(meant) => format!("{message}; {meant}"),
            None => message.to_owned(),
        },
    }
}

/// Suggests the CEL syntax for operators of other languages.
fn meant(text: &str) -> Option<&'static str> {
    let code = without_strings(text);
    let has_word = |word: &str| {
        code.split(|c: char| !c.is_alphanumeric())
            .any(|part| part.eq_ignore_ascii_case(word))
    };
    let assigns = code.match_indices('=').any(|(at, _)| {
        let (before, after) = (&code[..at], &code[at + 1..]);
        !before.ends_with(['=', '!', '<', '>']) && !after.starts_with('=')
    });
    match () {
        () if assigns => Some("to compare two values, use =="),
        () if code.contains("<>") => Some("to test for inequality, use !="),
        () if has_word("and") || has_word("or") || has_word("not") => {
            Some("use && for and, || for or, ! for not; or use sql instead of cel")
        }
        () => None,
    }
}

/// Removes the string literals from a text.
fn without_strings(text: &str) -> String {
    let (mut code, mut quote, mut escaped) = (String::new(), None, false);
    for character in text.chars() {
        match (quote, character) {
            (None, '"' | '\'') => quote = Some(character),
            (None, _) => code.push(character),
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), _) if open == character => quote = None,
            (Some(_), _) => {}
        }
    }
    code
}

#[derive(Default)]
struct Check {
    parts: usize,
    scope: ExpressionScope,
    /// Variables of the loops around, the innermost last.
    variables: Vec<String>,
}

impl Check {
    /// Converts a node: rejects what is not allowed, and resolves names and functions.
    fn node(&mut self, node: IdedExpr, depth: usize) -> Result<CelNode, Disallowed> {
        self.parts += 1;
        if depth > MAX_DEPTH {
            return Err(Disallowed::TooDeep);
        }
        if self.parts > MAX_PARTS {
            return Err(Disallowed::TooLarge);
        }
        match node.expr {
            Expr::Literal(literal) => Ok(CelNode::Literal(literal)),
            Expr::Ident(name) if name == EVENT => Err(Disallowed::WholeEvent),
            Expr::Ident(name) if name == DATA => Ok(CelNode::Data),
            Expr::Ident(name) => match self.variables.iter().rev().position(|variable| *variable == name) {
                Some(outward) => Ok(CelNode::Variable(outward)),
                None => self.scope.variable(name),
            },
            Expr::Select(SelectExpr { operand, field, test }) if is_event(&operand.expr) => {
                attribute(&field, test)
            }
            Expr::Select(SelectExpr { operand, field, test }) => {
                let operand = Box::new(self.node(*operand, depth + 1)?);
                Ok(match test {
                    true => CelNode::HasField(operand, field.into()),
                    false => CelNode::Field(operand, field.into()),
                })
            }
            Expr::List(list) => self.list(list, depth + 1),
            Expr::Map(map) => self.map(map, depth + 1),
            Expr::Call(call) => self.call(call, depth + 1),
            Expr::Comprehension(comprehension) => self.looped(*comprehension, depth + 1),
            Expr::Struct(_) => Err(Disallowed::Message),
            Expr::Unspecified => Err(Disallowed::Unknown("value".to_owned())),
        }
    }

    fn list(&mut self, list: ListExpr, depth: usize) -> Result<CelNode, Disallowed> {
        if !list.optional_indices.is_empty() {
            return Err(Disallowed::Optional);
        }
        let constants: Option<Vec<_>> = list
            .elements
            .iter()
            .map(|element| constant(&element.expr))
            .collect();
        if let Some(constants) = constants {
            return Ok(CelNode::List(constants.into()));
        }
        let nodes = list.elements.into_iter().map(|element| self.node(element, depth));
        Ok(CelNode::NewList(nodes.collect::<Result<_, _>>()?))
    }

    fn map(&mut self, map: MapExpr, depth: usize) -> Result<CelNode, Disallowed> {
        let (mut names, mut nodes) = (Vec::<CelString<'static>>::new(), Vec::new());
        for entry in map.entries {
            let EntryExpr::MapEntry(entry) = entry.expr else {
                return Err(Disallowed::Message);
            };
            if entry.optional {
                return Err(Disallowed::Optional);
            }
            let name = text(&entry.key.expr).ok_or(Disallowed::Key)?.to_owned();
            if names.iter().any(|other| other.inner() == name) {
                return Err(Disallowed::Key);
            }
            names.push(CelString::from(name));
            nodes.push(self.node(entry.value, depth)?);
        }
        Ok(CelNode::NewMap(names.into(), nodes.into()))
    }

    /// Converts a macro that goes through a list or map, which the parser has expanded.
    fn looped(&mut self, comprehension: ComprehensionExpr, depth: usize) -> Result<CelNode, Disallowed> {
        let ComprehensionExpr {
            iter_range,
            iter_var,
            accu_init,
            loop_step,
            ..
        } = comprehension;
        let expanded =
            CelMacro::of(&accu_init.expr, loop_step.expr).ok_or_else(|| unknown("macro", true, true))?;
        if [EVENT, DATA].contains(&iter_var.as_str()) {
            return Err(Disallowed::LoopVariable(iter_var));
        }
        let range = self.node(iter_range, depth)?;
        self.variables.push(iter_var);
        let node = self.body(range, expanded, depth);
        self.variables.pop();
        node
    }

    /// Converts the arguments of a macro, in which its variable is known.
    fn body(&mut self, range: CelNode, expanded: CelMacro, depth: usize) -> Result<CelNode, Disallowed> {
        let (quantifier, condition) = match expanded {
            CelMacro::Exists(condition) => (Quantifier::Exists, condition),
            CelMacro::All(condition) => (Quantifier::All, condition),
            CelMacro::ExistsOne(condition) => (Quantifier::ExistsOne, condition),
            CelMacro::Collect { condition, value } => {
                let condition = match condition {
                    Some(condition) => self.node(condition, depth)?,
                    None => CelNode::Literal(LiteralValue::Boolean(true.into())),
                };
                let nodes = [range, condition, self.node(value, depth)?];
                return Ok(CelNode::Collect(Box::new(nodes)));
            }
        };
        let nodes = [range, self.node(condition, depth)?];
        Ok(CelNode::Quantify(quantifier, Box::new(nodes)))
    }

    fn call(&mut self, call: CallExpr, depth: usize) -> Result<CelNode, Disallowed> {
        let CallExpr {
            func_name,
            target,
            args,
        } = call;
        match (&*func_name, target, <[IdedExpr; 2]>::try_from(args)) {
            (operators::INDEX, None, Ok([event, field])) if is_event(&event.expr) => {
                match text(&field.expr) {
                    Some(name) => attribute(name, false),
                    None => Err(Disallowed::WholeEvent),
                }
            }
            (name, None, Ok([left, right])) if let Some(operator) = binary(name) => Ok(operator(Box::new([
                self.node(left, depth)?,
                self.node(right, depth)?,
            ]))),
            (_, None, Ok(args)) => self.function(&func_name, args.into(), depth),
            (_, None, Err(args)) => self.function(&func_name, args, depth),
            (_, Some(target), Ok(args)) => self.method(&func_name, *target, args.into(), depth),
            (_, Some(target), Err(args)) => self.method(&func_name, *target, args, depth),
        }
    }

    /// Converts a call without a receiver: an operator with one or three operands, or a function.
    fn function(&mut self, name: &str, args: Vec<IdedExpr>, depth: usize) -> Result<CelNode, Disallowed> {
        if name == "cidr"
            && let [network] = args.as_slice()
        {
            let network = text(&network.expr).ok_or(Disallowed::NotConstant("cidr"))?;
            return Network::new(network).map(CelNode::Network);
        }
        if name == "timestamp"
            && let [time] = args.as_slice()
            && let Some(text) = text(&time.expr)
        {
            return CelTime::parse(text)
                .map(CelNode::Time)
                .ok_or_else(|| Disallowed::Time(text.to_owned()));
        }
        if name == operators::CONDITIONAL {
            let nodes: Result<Vec<_>, _> = args.into_iter().map(|arg| self.node(arg, depth)).collect();
            return match <[CelNode; 3]>::try_from(nodes?) {
                Ok(nodes) => Ok(CelNode::Conditional(Box::new(nodes))),
                Err(_) => Err(unknown(name, false, true)),
            };
        }
        let empty = args.is_empty();
        let mut args = args.into_iter();
        let (Some(arg), None) = (args.next(), args.next()) else {
            return Err(unknown(name, false, !empty));
        };
        if name == "size" {
            return Ok(CelNode::Size(Box::new(self.node(arg, depth)?)));
        }
        match (name, Conversion::of_name(name)) {
            (operators::LOGICAL_NOT, _) => Ok(CelNode::Not(Box::new(self.node(arg, depth)?))),
            (operators::NEGATE, _) => Ok(CelNode::Negate(Box::new(self.node(arg, depth)?))),
            ("timestamp", _) => Ok(CelNode::ToTime(Box::new(self.node(arg, depth)?))),
            (_, Some(conversion)) => Ok(CelNode::Convert(conversion, Box::new(self.node(arg, depth)?))),
            (_, None) => Err(unknown(name, false, true)),
        }
    }

    /// Converts a call with a receiver.
    fn method(
        &mut self,
        name: &str,
        target: IdedExpr,
        args: Vec<IdedExpr>,
        depth: usize,
    ) -> Result<CelNode, Disallowed> {
        let empty = args.is_empty();
        let mut args = args.into_iter();
        match (args.next(), args.next()) {
            (None, _) if name == "size" => Ok(CelNode::Size(Box::new(self.node(target, depth)?))),
            (None, _) if let Some(function) = OfText::of_name(name) => {
                Ok(CelNode::OfText(function, Box::new(self.node(target, depth)?)))
            }
            (Some(pattern), None) if name == "matches" => {
                let pattern = text(&pattern.expr).ok_or(Disallowed::NotConstant("matches"))?;
                let pattern = Box::new(RegexPattern::new(pattern)?);
                Ok(CelNode::Matches(Box::new(self.node(target, depth)?), pattern))
            }
            (Some(arg), None) if let Some(function) = OfTexts::of_name(name) => {
                let nodes = [self.node(target, depth)?, self.node(arg, depth)?];
                Ok(CelNode::OfTexts(function, Box::new(nodes)))
            }
            (Some(arg), None) if name == "containsIP" => {
                let nodes = [self.node(target, depth)?, self.node(arg, depth)?];
                Ok(CelNode::ContainsIp(Box::new(nodes)))
            }
            _ => Err(unknown(name, true, !empty)),
        }
    }
}

fn unknown(name: &str, on_value: bool, has_arguments: bool) -> Disallowed {
    let arguments = if has_arguments { "(...)" } else { "()" };
    let dot = if on_value { "." } else { "" };
    Disallowed::Function {
        call: format!("{dot}{name}{arguments}"),
    }
}

type Operands = Box<[CelNode; 2]>;

/// Returns the constructor of a binary operator.
fn binary(name: &str) -> Option<fn(Operands) -> CelNode> {
    Some(match name {
        operators::LOGICAL_AND => CelNode::And,
        operators::LOGICAL_OR => CelNode::Or,
        operators::EQUALS => CelNode::Equal,
        operators::NOT_EQUALS => CelNode::NotEqual,
        operators::LESS => |nodes| CelNode::Compare(CelComparison::Less, nodes),
        operators::LESS_EQUALS => |nodes| CelNode::Compare(CelComparison::LessOrEqual, nodes),
        operators::GREATER => |nodes| CelNode::Compare(CelComparison::Greater, nodes),
        operators::GREATER_EQUALS => |nodes| CelNode::Compare(CelComparison::GreaterOrEqual, nodes),
        operators::IN => CelNode::In,
        operators::INDEX => CelNode::Index,
        operators::ADD => |nodes| CelNode::Calculate(CelArithmetic::Add, nodes),
        operators::SUBSTRACT => |nodes| CelNode::Calculate(CelArithmetic::Subtract, nodes),
        operators::MULTIPLY => |nodes| CelNode::Calculate(CelArithmetic::Multiply, nodes),
        operators::DIVIDE => |nodes| CelNode::Calculate(CelArithmetic::Divide, nodes),
        operators::MODULO => |nodes| CelNode::Calculate(CelArithmetic::Remainder, nodes),
        _ => return None,
    })
}

/// Returns the text of a string literal.
fn text(expression: &Expr) -> Option<&str> {
    match expression {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

fn is_event(expression: &Expr) -> bool {
    matches!(expression, Expr::Ident(name) if name == EVENT)
}

fn attribute(name: &str, test: bool) -> Result<CelNode, Disallowed> {
    let named = name
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    match (named, name == DATA, test) {
        (false, ..) => Err(Disallowed::AttributeName(name.to_owned())),
        (_, true, true) => Ok(CelNode::HasData),
        (_, true, false) => Ok(CelNode::Data),
        (_, false, true) => Ok(CelNode::HasAttribute(name.into())),
        (_, false, false) => Ok(CelNode::Attribute(name.into())),
    }
}

/// Returns the value of a literal, including its sign.
fn constant(expression: &Expr) -> Option<Box<dyn Val>> {
    match expression {
        Expr::Literal(literal) => Some(value(literal)),
        Expr::Call(CallExpr { func_name, args, .. }) if func_name == operators::NEGATE => {
            match args.as_slice() {
                [
                    IdedExpr {
                        expr: Expr::Literal(literal),
                        ..
                    },
                ] => value(literal).as_negator()?.negate().ok(),
                _ => None,
            }
        }
        _ => None,
    }
}

fn value(literal: &LiteralValue) -> Box<dyn Val> {
    match literal {
        LiteralValue::Null => Box::new(CelNull),
        literal => literal.to_val().into_owned(),
    }
}

/// Whether the value is a Boolean, or depends on the event.
fn may_be_boolean(node: &CelNode) -> bool {
    match node {
        CelNode::Literal(literal) => matches!(literal, LiteralValue::Boolean(_)),
        CelNode::List(_)
        | CelNode::NewList(_)
        | CelNode::NewMap(..)
        | CelNode::Network(_)
        | CelNode::Time(_)
        | CelNode::ToTime(_)
        | CelNode::Collect(_)
        | CelNode::Negate(_)
        | CelNode::Calculate(..)
        | CelNode::OfText(..)
        | CelNode::Size(_) => false,
        CelNode::Convert(conversion, _) => *conversion == Conversion::Bool,
        _ => true,
    }
}
