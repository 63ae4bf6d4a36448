//! Evaluating an expression on an event (sections 3.2 to 3.7).

use std::borrow::Cow;

use super::{
    Expression, Failure, Problem, Scalar, Span, Type,
    tree::{Arithmetic, Binary, Comparison, Kind, Logic, Node},
};
use crate::cloudevents::Event;

/// What an expression gives for an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluation<'a> {
    /// The value: after an error the zero value of the expression's type, if the function that failed says nothing
    /// else, and `false` where the type is an attribute's.
    pub value: Scalar<'a>,
    /// The error that ended the evaluation.
    pub error: Option<Failure<'a>>,
}

impl Expression {
    /// The value of the expression for an event, and the error if there was one.
    #[must_use]
    pub fn evaluate<'a>(&'a self, event: &'a Event) -> Evaluation<'a> {
        match evaluate(&self.root, event) {
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

    /// Whether the event passes: the value is `true`, and there was no error (section 1.2).
    #[must_use]
    pub fn holds(&self, event: &Event) -> bool {
        self.decide(event) == Ok(true)
    }

    /// Whether the event passes.
    ///
    /// # Errors
    /// Why the expression has no value, or one that is no Boolean.
    pub fn decide<'a>(&'a self, event: &'a Event) -> Result<bool, Failure<'a>> {
        match evaluate(&self.root, event)? {
            Scalar::Boolean(boolean) => Ok(boolean),
            value => Err(no_cast(self.root.span, Type::Boolean)(value)),
        }
    }
}

/// A node's value, cast to Boolean.
pub(super) fn boolean<'a>(node: &'a Node, event: &'a Event) -> Result<bool, Failure<'a>> {
    let value = evaluate(node, event)?;
    value.boolean().map_err(no_cast(node.span, Type::Boolean))
}

/// A node's value, cast to Integer.
pub(super) fn integer<'a>(node: &'a Node, event: &'a Event) -> Result<i32, Failure<'a>> {
    let value = evaluate(node, event)?;
    value.integer().map_err(no_cast(node.span, Type::Integer))
}

/// A node's value, cast to String.
pub(super) fn string<'a>(node: &'a Node, event: &'a Event) -> Result<Cow<'a, str>, Failure<'a>> {
    evaluate(node, event).map(Scalar::string)
}

fn no_cast<'a>(span: Span, to: Type) -> impl FnOnce(Scalar<'a>) -> Failure<'a> {
    move |value| Failure {
        span,
        problem: Problem::Cast { value, to },
    }
}

fn evaluate<'a>(node: &'a Node, event: &'a Event) -> Result<Scalar<'a>, Failure<'a>> {
    let failed = |problem| Failure {
        span: node.span,
        problem,
    };
    Ok(match &node.kind {
        Kind::Literal(value) => value.borrowed(),
        Kind::Attribute(name) => event
            .attribute(name)
            .map(Scalar::from)
            .ok_or_else(|| failed(Problem::MissingAttribute(name)))?,
        Kind::Exists(name) => Scalar::Boolean(event.attribute(name).is_some()),
        Kind::Not(operand) => Scalar::Boolean(!boolean(operand, event)?),
        Kind::Negate(operand) => Scalar::Integer(
            integer(operand, event)?
                .checked_neg()
                .ok_or_else(|| failed(Problem::Overflow))?,
        ),
        Kind::Logic(operator, operands) => Scalar::Boolean(logic(*operator, operands, event)?),
        Kind::Binary(operator, left, right) => match operator {
            Binary::Equal => Scalar::Boolean(equal(left, right, event)?),
            Binary::NotEqual => Scalar::Boolean(!equal(left, right, event)?),
            Binary::Compare(operator) => {
                Scalar::Boolean(compare(*operator, integer(left, event)?, integer(right, event)?))
            }
            Binary::Calculate(operator) => Scalar::Integer(
                calculate(*operator, integer(left, event)?, integer(right, event)?).map_err(failed)?,
            ),
        },
        Kind::Like {
            operand,
            pattern,
            negated,
        } => Scalar::Boolean(pattern.matches(&string(operand, event)?) != *negated),
        Kind::In {
            operand,
            set,
            negated,
        } => Scalar::Boolean(contains(set, operand, event)? != *negated),
        Kind::Call(call) => call.evaluate(node.span, event)?,
    })
}

/// Operands from left to right: the first `false` ends an AND, the first `true` an OR.
fn logic<'a>(operator: Logic, operands: &'a [Node], event: &'a Event) -> Result<bool, Failure<'a>> {
    let mut result = operator == Logic::And;
    for operand in operands {
        let value = boolean(operand, event)?;
        match operator {
            Logic::And if !value => return Ok(false),
            Logic::Or if value => return Ok(true),
            Logic::And | Logic::Or => {}
            Logic::Xor => result ^= value,
        }
    }
    Ok(result)
}

/// The left operand is cast to the type of the right one.
fn equal<'a>(left: &'a Node, right: &'a Node, event: &'a Event) -> Result<bool, Failure<'a>> {
    let value = evaluate(left, event)?;
    let target = evaluate(right, event)?;
    target.equals(value).map_err(no_cast(left.span, target.r#type()))
}

/// Each element is cast to the type of the operand.
fn contains<'a>(set: &'a [Node], operand: &'a Node, event: &'a Event) -> Result<bool, Failure<'a>> {
    let target = evaluate(operand, event)?;
    for element in set {
        let value = evaluate(element, event)?;
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

fn calculate<'a>(operator: Arithmetic, left: i32, right: i32) -> Result<i32, Problem<'a>> {
    let result = match operator {
        Arithmetic::Add => left.checked_add(right),
        Arithmetic::Subtract => left.checked_sub(right),
        Arithmetic::Multiply => left.checked_mul(right),
        Arithmetic::Divide | Arithmetic::Remainder if right == 0 => return Err(Problem::DivisionByZero),
        Arithmetic::Divide => left.checked_div(right),
        // The one remainder that overflows on the way is one by -1, and is 0.
        Arithmetic::Remainder => Some(left.wrapping_rem(right)),
    };
    result.ok_or(Problem::Overflow)
}
