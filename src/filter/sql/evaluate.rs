//! Evaluates expressions on an event (sections 3.2 to 3.7).

use std::borrow::Cow;

use super::{
    Expression, Failure, FailureCause, Scalar, Span, Type, text,
    tree::{Arithmetic, Binary, Call, Comparison, Kind, Logic, Node},
};
use crate::{
    cloudevents::Event,
    filter::fuel::{Fuel, Overrun, PART},
};

/// Cost per byte of a function's text.
const TEXT: u64 = 2;

/// The event and the remaining budget.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a, 'f> {
    pub(super) event: &'a Event,
    pub(super) fuel: &'f Fuel,
}

/// Result of evaluating an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluation<'a> {
    /// The value. After an error, it is what the failed function defines, else the zero value of the expression's
    /// type, or `false` if the type depends on an attribute.
    pub value: Scalar<'a>,
    /// The error that ended the evaluation.
    pub error: Option<Failure<'a>>,
}

impl Expression {
    /// Evaluates the expression on an event.
    #[must_use]
    pub fn evaluate<'a>(&'a self, event: &'a Event) -> Evaluation<'a> {
        let fuel = Fuel::new();
        match evaluate(&self.root, Scope { event, fuel: &fuel }) {
            Ok(value) => Evaluation { value, error: None },
            Err(failure) => {
                let own = failure
                    .problem
                    .result()
                    .filter(|_| failure.span == self.root.span);
                let zero = || self.root.r#type().unwrap_or(Type::Boolean).zero();
                Evaluation {
                    value: own.unwrap_or_else(zero),
                    error: Some(failure),
                }
            }
        }
    }

    /// Whether the event matches: the value is `true`, without an error (section 1.2).
    #[must_use]
    pub fn holds(&self, event: &Event) -> bool {
        self.decide(event, &Fuel::new()) == Ok(true)
    }

    /// Returns whether the event matches.
    ///
    /// # Errors
    /// If the evaluation fails or the value is not a Boolean.
    pub(in crate::filter) fn decide<'a>(
        &'a self,
        event: &'a Event,
        fuel: &Fuel,
    ) -> Result<bool, Failure<'a>> {
        match evaluate(&self.root, Scope { event, fuel })? {
            Scalar::Boolean(boolean) => Ok(boolean),
            value => Err(no_cast(self.root.span, Type::Boolean)(value)),
        }
    }
}

/// Evaluates a node, cast to Boolean.
pub(super) fn boolean<'a>(node: &'a Node, scope: Scope<'a, '_>) -> Result<bool, Failure<'a>> {
    let value = evaluate(node, scope)?;
    value.boolean().map_err(no_cast(node.span, Type::Boolean))
}

/// Evaluates a node, cast to Integer.
fn integer<'a>(node: &'a Node, scope: Scope<'a, '_>) -> Result<i32, Failure<'a>> {
    let value = evaluate(node, scope)?;
    if let Scalar::String(text) = &value {
        scope.fuel.pass(text.len()).map_err(too_expensive(node.span))?;
    }
    value.integer().map_err(no_cast(node.span, Type::Integer))
}

/// Evaluates a node, cast to String.
fn string<'a>(node: &'a Node, scope: Scope<'a, '_>) -> Result<Cow<'a, str>, Failure<'a>> {
    evaluate(node, scope).map(Scalar::string)
}

/// Charges for `target.equals(value)`.
fn compared<'a>(target: &Scalar, value: &Scalar, scope: Scope, span: Span) -> Result<(), Failure<'a>> {
    let bytes = match (target, value) {
        (Scalar::String(target), Scalar::String(value)) => target.len().min(value.len()),
        (_, Scalar::String(value)) => value.len(),
        _ => 0,
    };
    scope.fuel.pass(bytes).map_err(too_expensive(span))
}

fn too_expensive<'a>(span: Span) -> impl FnOnce(Overrun) -> Failure<'a> {
    move |Overrun| Failure {
        span,
        problem: FailureCause::TooExpensive,
    }
}

fn no_cast<'a>(span: Span, to: Type) -> impl FnOnce(Scalar<'a>) -> Failure<'a> {
    move |value| Failure {
        span,
        problem: FailureCause::Cast { value, to },
    }
}

pub(super) fn evaluate<'a>(node: &'a Node, scope: Scope<'a, '_>) -> Result<Scalar<'a>, Failure<'a>> {
    let failed = |problem| Failure {
        span: node.span,
        problem,
    };
    scope.fuel.spend(PART).map_err(too_expensive(node.span))?;
    Ok(match &node.kind {
        Kind::Literal(value) => value.borrowed(),
        Kind::Attribute(name) => scope
            .event
            .attribute(name)
            .map(Scalar::from)
            .ok_or_else(|| failed(FailureCause::MissingAttribute(name)))?,
        Kind::Exists(name) => Scalar::Boolean(scope.event.attribute(name).is_some()),
        Kind::Not(operand) => Scalar::Boolean(!boolean(operand, scope)?),
        Kind::Negate(operand) => Scalar::Integer(
            integer(operand, scope)?
                .checked_neg()
                .ok_or_else(|| failed(FailureCause::Overflow))?,
        ),
        Kind::Logic(operator, operands) => Scalar::Boolean(logic(*operator, operands, scope)?),
        Kind::Binary(operator, left, right) => match operator {
            Binary::Equal => Scalar::Boolean(equal(left, right, scope)?),
            Binary::NotEqual => Scalar::Boolean(!equal(left, right, scope)?),
            Binary::Compare(operator) => {
                Scalar::Boolean(compare(*operator, integer(left, scope)?, integer(right, scope)?))
            }
            Binary::Calculate(operator) => Scalar::Integer(
                calculate(*operator, integer(left, scope)?, integer(right, scope)?).map_err(failed)?,
            ),
        },
        Kind::Like {
            operand,
            pattern,
            negated,
        } => {
            let text = string(operand, scope)?;
            scope
                .fuel
                .spend(pattern.cost(&text))
                .map_err(too_expensive(node.span))?;
            Scalar::Boolean(pattern.matches(&text) != *negated)
        }
        Kind::In {
            operand,
            set,
            negated,
        } => Scalar::Boolean(contains(set, operand, scope)? != *negated),
        Kind::Call(call) => self::call(call, node.span, scope)?,
    })
}

/// Evaluates operands from left to right. The first `false` ends an AND, the first `true` an OR.
fn logic<'a>(operator: Logic, operands: &'a [Node], scope: Scope<'a, '_>) -> Result<bool, Failure<'a>> {
    let mut result = operator == Logic::And;
    for operand in operands {
        let value = boolean(operand, scope)?;
        match operator {
            Logic::And if !value => return Ok(false),
            Logic::Or if value => return Ok(true),
            Logic::And | Logic::Or => {}
            Logic::Xor => result ^= value,
        }
    }
    Ok(result)
}

/// Casts the left operand to the type of the right one.
fn equal<'a>(left: &'a Node, right: &'a Node, scope: Scope<'a, '_>) -> Result<bool, Failure<'a>> {
    let value = evaluate(left, scope)?;
    let target = evaluate(right, scope)?;
    compared(&target, &value, scope, left.span)?;
    target.equals(value).map_err(no_cast(left.span, target.r#type()))
}

/// Casts each element to the type of the operand.
fn contains<'a>(set: &'a [Node], operand: &'a Node, scope: Scope<'a, '_>) -> Result<bool, Failure<'a>> {
    let target = evaluate(operand, scope)?;
    for element in set {
        let value = evaluate(element, scope)?;
        compared(&target, &value, scope, element.span)?;
        let equal = target
            .equals(value)
            .map_err(no_cast(element.span, target.r#type()))?;
        if equal {
            return Ok(true);
        }
    }
    Ok(false)
}

fn compare(operator: Comparison, left: i32, right: i32) -> bool {
    match operator {
        Comparison::Less => left < right,
        Comparison::LessOrEqual => left <= right,
        Comparison::Greater => left > right,
        Comparison::GreaterOrEqual => left >= right,
    }
}

fn calculate<'a>(operator: Arithmetic, left: i32, right: i32) -> Result<i32, FailureCause<'a>> {
    let result = match operator {
        Arithmetic::Add => left.checked_add(right),
        Arithmetic::Subtract => left.checked_sub(right),
        Arithmetic::Multiply => left.checked_mul(right),
        Arithmetic::Divide | Arithmetic::Remainder if right == 0 => return Err(FailureCause::DivisionByZero),
        Arithmetic::Divide => left.checked_div(right),
        // Only the remainder by -1 can overflow internally; its result is 0.
        Arithmetic::Remainder => Some(left.wrapping_rem(right)),
    };
    result.ok_or(FailureCause::Overflow)
}

/// Evaluates the call on an event. `span` is that of the call.
fn call<'a>(call: &'a Call, span: Span, scope: Scope<'a, '_>) -> Result<Scalar<'a>, Failure<'a>> {
    let failed = |problem| Failure { span, problem };
    // Each of these traverses the text a few times, and may copy it.
    let text_of = |node: &'a Node| {
        let text = string(node, scope)?;
        scope.fuel.read(text.len(), TEXT).map_err(too_expensive(span))?;
        Ok(text)
    };
    Ok(match call {
        Call::Abs(x) => Scalar::Integer(
            integer(x, scope)?
                .checked_abs()
                .ok_or_else(|| failed(FailureCause::AbsoluteOverflow))?,
        ),
        Call::Bool(x) => Scalar::Boolean(boolean(x, scope)?),
        Call::Int(x) => Scalar::Integer(integer(x, scope)?),
        Call::Length(x) => {
            let text = string(x, scope)?;
            scope.fuel.pass(text.len()).map_err(too_expensive(span))?;
            Scalar::Integer(integer_of(text.chars().count()))
        }
        Call::Concat(texts) => Scalar::String(join("", texts, span, scope)?.into()),
        Call::ConcatWs { delimiter, texts } => {
            let delimiter = string(delimiter, scope)?;
            Scalar::String(join(&delimiter, texts, span, scope)?.into())
        }
        Call::Left { text, count } => {
            let (text, count) = (text_of(text)?, integer(count, scope)?);
            Scalar::String(text::left(text, count).map_err(failed)?)
        }
        Call::Right { text, count } => {
            let (text, count) = (text_of(text)?, integer(count, scope)?);
            Scalar::String(text::right(text, count).map_err(failed)?)
        }
        Call::Lower(x) => {
            let changes = |character: char| !character.is_ascii() || character.is_ascii_uppercase();
            Scalar::String(text::convert(text_of(x)?, changes, str::to_lowercase))
        }
        Call::Upper(x) => {
            let changes = |character: char| !character.is_ascii() || character.is_ascii_lowercase();
            Scalar::String(text::convert(text_of(x)?, changes, str::to_uppercase))
        }
        Call::String(x) => Scalar::String(string(x, scope)?),
        Call::Trim(x) => Scalar::String(text::part(text_of(x)?, str::trim)),
        Call::Substring {
            text,
            position,
            length,
        } => {
            let (text, position) = (text_of(text)?, integer(position, scope)?);
            let length = length.as_ref().map(|length| integer(length, scope)).transpose()?;
            Scalar::String(text::substring(text, position, length).map_err(failed)?)
        }
    })
}

fn join<'a>(
    delimiter: &str,
    texts: &'a [Node],
    span: Span,
    scope: Scope<'a, '_>,
) -> Result<String, Failure<'a>> {
    let mut joined = String::new();
    for (index, text) in texts.iter().enumerate() {
        let text = string(text, scope)?;
        let delimiter = if index > 0 { delimiter } else { "" };
        let added = delimiter.len() + text.len();
        scope.fuel.read(added, 1).map_err(too_expensive(span))?;
        joined.push_str(delimiter);
        joined.push_str(&text);
    }
    Ok(joined)
}

/// Converts a count. No event has enough characters to overflow it.
fn integer_of(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
