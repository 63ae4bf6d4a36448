//! What an expression gave for an event, and what it looked at.

use cel::{
    IdedExpr, Value,
    common::{
        ast::{CallExpr, Expr, SelectExpr},
        value::Val,
    },
};

use super::{Expression, check::EVENT};
use crate::filter::{
    Subject,
    explanation::{Explanation, Seen, one_line},
};

/// How many characters of a text in the data are shown.
const MAX_SHOWN: usize = 256;

impl Expression {
    /// What the expression gave for an event and why: the fields that it names, those of the data too, and the error
    /// if it has no value.
    #[must_use]
    pub fn explain(&self, subject: &Subject) -> Explanation {
        let result = self.evaluate(subject);
        let clause = format!("cel {}", one_line(self.text.trim()));
        let mut explanation = Explanation::new(clause, result == Ok(true));
        explanation.error = result.err().map(|failure| failure.to_string());
        let mut fields = Vec::new();
        collect_fields(&self.root, &mut fields);
        for (path, field) in fields {
            if explanation.saw.iter().all(|seen| seen.attribute != path) {
                let value = self.value(&field, subject, shown).ok();
                explanation.saw.push(Seen {
                    attribute: path,
                    value,
                });
            }
        }
        explanation
    }
}

/// A scalar as it is written, of anything else the type.
fn shown(value: &dyn Val) -> String {
    match Value::try_from(value) {
        Ok(Value::String(text)) => text.chars().take(MAX_SHOWN).collect(),
        Ok(Value::Int(number)) => number.to_string(),
        Ok(Value::UInt(number)) => number.to_string(),
        Ok(Value::Float(number)) => number.to_string(),
        Ok(Value::Bool(boolean)) => boolean.to_string(),
        Ok(Value::Null) => "null".to_owned(),
        _ => format!("a {}", value.get_type().name()),
    }
}

/// The fields of the event that a part of an expression names, as far in as it names them.
fn collect_fields(node: &IdedExpr, fields: &mut Vec<(String, IdedExpr)>) {
    match &node.expr {
        Expr::Select(select) => match path(&node.expr) {
            Some(path) => {
                // Of `has(event.field)` the field is shown too.
                let select = SelectExpr {
                    test: false,
                    ..select.clone()
                };
                let expr = Expr::Select(select);
                fields.push((path, IdedExpr { expr, ..node.clone() }));
            }
            None => collect_fields(&select.operand, fields),
        },
        Expr::Call(CallExpr { target, args, .. }) => {
            target.iter().for_each(|target| collect_fields(target, fields));
            args.iter().for_each(|argument| collect_fields(argument, fields));
        }
        _ => {}
    }
}

/// `data.order.id` for `event.data.order.id`.
fn path(expression: &Expr) -> Option<String> {
    let Expr::Select(select) = expression else {
        return None;
    };
    match &select.operand.expr {
        Expr::Ident(name) if name == EVENT => Some(select.field.clone()),
        operand => Some(format!("{}.{}", path(operand)?, select.field)),
    }
}
