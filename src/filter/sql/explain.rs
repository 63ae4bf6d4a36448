//! Explains the results of an expression's parts on an event.

use super::{
    Scalar, SqlExpression, SqlFailure,
    evaluate::{SqlScope, boolean, evaluate},
    tree::{Logic, SqlNode, SqlNodeKind},
};
use crate::{
    cloudevents::Event,
    filter::{
        explanation::{ClauseOutcome, Explanation, ReadAttribute, one_line},
        fuel::Fuel,
    },
};

impl SqlExpression {
    /// Explains the result of the expression, down to the operands of `AND`, `OR`, `XOR` and `NOT`.
    #[must_use]
    pub fn explain(&self, event: &Event) -> Explanation {
        self.explain_within(event, &Fuel::new())
    }

    /// Explains within the remaining budget.
    pub(in crate::filter) fn explain_within(&self, event: &Event, fuel: &Fuel) -> Explanation {
        let scope = SqlScope { event, fuel };
        let mut explanation = self.explain_node(&self.root, scope);
        explanation.clause = format!("sql {}", one_line(self.text.trim()));
        // Operands are cast to Boolean, the whole expression is not.
        if let Ok(value) = evaluate(&self.root, scope)
            && !matches!(value, Scalar::Boolean(_))
        {
            explanation.outcome = ClauseOutcome::Fails;
            explanation.error = Some(format!("expected Boolean, got {} {value}", value.r#type()));
        }
        explanation
    }

    fn explain_node(&self, node: &SqlNode, scope: SqlScope) -> Explanation {
        let result = boolean(node, scope);
        let mut explanation = Explanation::new(one_line(node.span.of(&self.text)), result == Ok(true));
        explanation.error = result.as_ref().err().map(SqlFailure::to_string);
        match &node.kind {
            SqlNodeKind::Logic(operator, operands) => {
                explanation.clauses = self.explain_operands(*operator, operands, scope);
            }
            SqlNodeKind::Not(operand) => explanation.clauses = vec![self.explain_node(operand, scope)],
            _ => {
                let mut names = Vec::new();
                collect_attributes(node, &mut names);
                explanation.saw = names
                    .into_iter()
                    .map(|name| ReadAttribute::new(name, scope.event))
                    .collect();
            }
        }
        explanation
    }

    fn explain_operands(&self, operator: Logic, operands: &[SqlNode], scope: SqlScope) -> Vec<Explanation> {
        let mut decided = false;
        let explain = |operand| {
            let mut explanation = self.explain_node(operand, scope);
            if decided {
                explanation = Explanation {
                    outcome: ClauseOutcome::NotReached,
                    ..Explanation::new(explanation.clause, false)
                };
            }
            decided |= explanation.error.is_some()
                || match operator {
                    Logic::And => !explanation.holds(),
                    Logic::Or => explanation.holds(),
                    Logic::Xor => false,
                };
            explanation
        };
        operands.iter().map(explain).collect()
    }
}

/// Collects the names of the attributes that a node reads, deduplicated, in source order.
fn collect_attributes<'a>(node: &'a SqlNode, names: &mut Vec<&'a str>) {
    node.for_each(&mut |node| {
        if let SqlNodeKind::Attribute(name) | SqlNodeKind::Exists(name) = &node.kind
            && !names.contains(&&**name)
        {
            names.push(name);
        }
    });
}
