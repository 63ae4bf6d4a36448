//! Recognises the macros that go through a list or a map by what the parser expands them to.

use cel::{
    IdedExpr,
    common::ast::{CallExpr, Expr, LiteralValue, operators},
};

/// A macro with its arguments other than the variable.
pub(super) enum CelMacro {
    Exists(IdedExpr),
    All(IdedExpr),
    ExistsOne(IdedExpr),
    /// `map`, or `filter`, whose value is the element.
    Collect {
        condition: Option<IdedExpr>,
        value: IdedExpr,
    },
}

impl CelMacro {
    /// Recognises a macro by its initial result and by the step that each element takes. `None` for an expansion of
    /// another version of the parser.
    pub(super) fn of(initial: &Expr, step: Expr) -> Option<Self> {
        let Expr::Call(CallExpr { func_name, args, .. }) = step else {
            return None;
        };
        match (&*func_name, <[IdedExpr; 2]>::try_from(args)) {
            (operators::LOGICAL_OR, Ok([_, condition])) => Some(Self::Exists(condition)),
            (operators::LOGICAL_AND, Ok([_, condition])) => Some(Self::All(condition)),
            (operators::ADD, Ok([_, added])) => Some(Self::Collect {
                condition: None,
                value: element(added)?,
            }),
            (operators::CONDITIONAL, Err(args)) => {
                let [condition, then, _] = <[IdedExpr; 3]>::try_from(args).ok()?;
                if matches!(initial, Expr::Literal(LiteralValue::Int(_))) {
                    return Some(Self::ExistsOne(condition));
                }
                let Expr::Call(CallExpr { args, .. }) = then.expr else {
                    return None;
                };
                let [_, added] = <[IdedExpr; 2]>::try_from(args).ok()?;
                Some(Self::Collect {
                    condition: Some(condition),
                    value: element(added)?,
                })
            }
            _ => None,
        }
    }
}

/// Returns the only element of a list.
fn element(list: IdedExpr) -> Option<IdedExpr> {
    match list.expr {
        Expr::List(mut list) => list.elements.pop(),
        _ => None,
    }
}
