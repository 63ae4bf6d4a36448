//! What every event has for which an expression is true.

use cel::common::ast::{CallExpr, Expr, LiteralValue, operators};

use super::{
    Expression,
    check::{DATA, EVENT},
};
use crate::filter::Requirement;

impl Expression {
    /// What every event has that passes.
    #[must_use]
    pub fn requirement(&self) -> Requirement<'_> {
        requirement(&self.root.expr)
    }
}

/// A string equals no value of another type, so `event.x == 'text'` asks for one canonical string.
fn requirement(expression: &Expr) -> Requirement<'_> {
    let Expr::Call(CallExpr {
        func_name,
        target,
        args,
    }) = expression
    else {
        return Requirement::UNKNOWN;
    };
    let target = target.as_ref().map(|target| &target.expr);
    let operands: Vec<_> = target
        .into_iter()
        .chain(args.iter().map(|argument| &argument.expr))
        .collect();
    match (func_name.as_str(), operands.as_slice()) {
        (operators::LOGICAL_AND, operands) => {
            Requirement::All(operands.iter().map(|operand| requirement(operand)).collect())
        }
        (operators::LOGICAL_OR, operands) => {
            Requirement::Any(operands.iter().map(|operand| requirement(operand)).collect())
        }
        (operators::EQUALS, [left, right]) => {
            match (attribute(left), text(right), text(left), attribute(right)) {
                (Some(name), Some(text), ..) | (.., Some(text), Some(name)) => Requirement::exact(name, text),
                _ => Requirement::UNKNOWN,
            }
        }
        (operators::IN, [value, Expr::List(list)]) => {
            let one = |name| {
                let texts = list.elements.iter().map(|element| text(&element.expr));
                texts
                    .map(|text| Some(Requirement::exact(name, text?)))
                    .collect::<Option<_>>()
            };
            attribute(value)
                .and_then(one)
                .map_or(Requirement::UNKNOWN, Requirement::Any)
        }
        ("startsWith", [value, prefix]) => match (attribute(value), text(prefix)) {
            (Some(name), Some(prefix)) => Requirement::prefix(name, prefix),
            _ => Requirement::UNKNOWN,
        },
        _ => Requirement::UNKNOWN,
    }
}

fn attribute(expression: &Expr) -> Option<&str> {
    match expression {
        Expr::Select(select) if !select.test && select.field != DATA => match &select.operand.expr {
            Expr::Ident(name) if name == EVENT => Some(&select.field),
            _ => None,
        },
        _ => None,
    }
}

fn text(expression: &Expr) -> Option<&str> {
    match expression {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}
