//! Evaluates expressions on an event (sections 3.2 to 3.7).

use std::borrow::Cow;

use super::{
    FailureCause, Scalar, Span, SqlExpression, SqlFailure, Type, text,
    tree::{Binary, Call, Logic, SqlArithmetic, SqlComparison, SqlNode, SqlNodeKind},
};
use crate::{
    cloudevents::Event,
    filter::fuel::{Fuel, Overrun, PART},
};

/// Cost per byte of a function's text.
const TEXT: u64 = 2;

/// The event and the remaining budget.
#[derive(Clone, Copy)]
pub(super) struct SqlScope<'a, 'f> {
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
    pub error: Option<SqlFailure<'a>>,
}

impl SqlExpression {
    /// Evaluates the expression on an event.
    #[must_use]
    pub fn evaluate<'a>(&'a self, event: &'a Event) -> Evaluation<'a> {
        let fuel = Fuel::new();
        match evaluate(&self.root, SqlScope { event, fuel: &fuel }) {
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
    ) -> Result<bool, SqlFailure<'a>> {
        match evaluate(&self.root, SqlScope { event, fuel })? {
            Scalar::Boolean(boolean) => Ok(boolean),
            value => Err(no_cast(self.root.span, Type::Boolean)(value)),
        }
    }
}

/// Evaluates a node, cast to Boolean.
pub(super) fn boolean<'a>(node: &'a SqlNode, scope: SqlScope<'a, '_>) -> Result<bool, SqlFailure<'a>> {
    let value = evaluate(node, scope)?;
    value.boolean().map_err(no_cast(node.span, Type::Boolean))
}

/// Evaluates a node, cast to Integer.
fn integer<'a>(node: &'a SqlNode, scope: SqlScope<'a, '_>) -> Result<i32, SqlFailure<'a>> {
    let value = evaluate(node, scope)?;
    if let Scalar::String(text) = &value {
        scope.fuel.pass(text.len()).map_err(too_expensive(node.span))?;
    }
    value.integer().map_err(no_cast(node.span, Type::Integer))
}

/// Evaluates a node, cast to String.
fn string<'a>(node: &'a SqlNode, scope: SqlScope<'a, '_>) -> Result<Cow<'a, str>, SqlFailure<'a>> {
    evaluate(node, scope).map(Scalar::string)
}

/// Charges for `target.equals(value)`.
fn compared<'a>(target: &Scalar, value: &Scalar, scope: SqlScope, span: Span) -> Result<(), SqlFailure<'a>> {
    let bytes = match (target, value) {
        (Scalar::String(target), Scalar::String(value)) => target.len().min(value.len()),
        (_, Scalar::String(value)) => value.len(),
        _ => 0,
    };
    scope.fuel.pass(bytes).map_err(too_expensive(span))
}

fn too_expensive<'a>(span: Span) -> impl FnOnce(Overrun) -> SqlFailure<'a> {
    move |Overrun| SqlFailure {
        span,
        problem: FailureCause::TooExpensive,
    }
}

fn no_cast<'a>(span: Span, to: Type) -> impl FnOnce(Scalar<'a>) -> SqlFailure<'a> {
    move |value| SqlFailure {
        span,
        problem: FailureCause::Cast { value, to },
    }
}

pub(super) fn evaluate<'a>(node: &'a SqlNode, scope: SqlScope<'a, '_>) -> Result<Scalar<'a>, SqlFailure<'a>> {
    let failed = |problem| SqlFailure {
        span: node.span,
        problem,
    };
    scope.fuel.spend(PART).map_err(too_expensive(node.span))?;
    Ok(match &node.kind {
        SqlNodeKind::Literal(value) => value.borrowed(),
        SqlNodeKind::Attribute(name) => scope
            .event
            .attribute(name)
            .map(Scalar::from)
            .ok_or_else(|| failed(FailureCause::MissingAttribute(name)))?,
        SqlNodeKind::Exists(name) => Scalar::Boolean(scope.event.attribute(name).is_some()),
        SqlNodeKind::Not(operand) => Scalar::Boolean(!boolean(operand, scope)?),
        SqlNodeKind::Negate(operand) => Scalar::Integer(
            integer(operand, scope)?
                .checked_neg()
                .ok_or_else(|| failed(FailureCause::Overflow))?,
        ),
        SqlNodeKind::Logic(operator, operands) => Scalar::Boolean(logic(*operator, operands, scope)?),
        SqlNodeKind::Binary(operator, left, right) => match operator {
            Binary::Equal => Scalar::Boolean(equal(left, right, scope)?),
            Binary::NotEqual => Scalar::Boolean(!equal(left, right, scope)?),
            Binary::Compare(operator) => {
                Scalar::Boolean(compare(*operator, integer(left, scope)?, integer(right, scope)?))
            }
            Binary::Calculate(operator) => Scalar::Integer(
                calculate(*operator, integer(left, scope)?, integer(right, scope)?).map_err(failed)?,
            ),
        },
        SqlNodeKind::Like {
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
        SqlNodeKind::In {
            operand,
            set,
            negated,
        } => Scalar::Boolean(contains(set, operand, scope)? != *negated),
        SqlNodeKind::Call(call) => self::call(call, node.span, scope)?,
    })
}

/// Evaluates operands from left to right. The first `false` ends an AND, the first `true` an OR.
fn logic<'a>(
    operator: Logic,
    operands: &'a [SqlNode],
    scope: SqlScope<'a, '_>,
) -> Result<bool, SqlFailure<'a>> {
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
fn equal<'a>(left: &'a SqlNode, right: &'a SqlNode, scope: SqlScope<'a, '_>) -> Result<bool, SqlFailure<'a>> {
    let value = evaluate(left, scope)?;
    let target = evaluate(right, scope)?;
    compared(&target, &value, scope, left.span)?;
    target.equals(value).map_err(no_cast(left.span, target.r#type()))
}

/// Casts each element to the type of the operand.
fn contains<'a>(
    set: &'a [SqlNode],
    operand: &'a SqlNode,
    scope: SqlScope<'a, '_>,
) -> Result<bool, SqlFailure<'a>> {
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

fn compare(operator: SqlComparison, left: i32, right: i32) -> bool {
    match operator {
        SqlComparison::Less => left < right,
        SqlComparison::LessOrEqual => left <= right,
        SqlComparison::Greater => left > right,
        SqlComparison::GreaterOrEqual => left >= right,
    }
}

fn calculate<'a>(operator: SqlArithmetic, left: i32, right: i32) -> Result<i32, FailureCause<'a>> {
    let result = match operator {
        SqlArithmetic::Add => left.checked_add(right),
        SqlArithmetic::Subtract => left.checked_sub(right),
        SqlArithmetic::Multiply => left.checked_mul(right),
        SqlArithmetic::Divide | SqlArithmetic::Remainder if right == 0 => {
            return Err(FailureCause::DivisionByZero);
        }
        SqlArithmetic::Divide => left.checked_div(right),
        // Only the remainder by -1 can overflow internally; its result is 0.
        SqlArithmetic::Remainder => Some(left.wrapping_rem(right)),
    };
    result.ok_or(FailureCause::Overflow)
}

/// Evaluates the call on an event. `span` is that of the call.
fn call<'a>(call: &'a Call, span: Span, scope: SqlScope<'a, '_>) -> Result<Scalar<'a>, SqlFailure<'a>> {
    let failed = |problem| SqlFailure { span, problem };
    // Each of these traverses the text a few times, and may copy it.
    let text_of = |node: &'a SqlNode| {
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
    texts: &'a [SqlNode],
    span: Span,
    scope: SqlScope<'a, '_>,
) -> Result<String, SqlFailure<'a>> {
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
