//! What the parts of an expression gave for an event.

use super::{
    Expression, Failure, Scalar,
    call::Call,
    evaluate::boolean,
    tree::{Kind, Logic, Node},
};
use crate::{
    cloudevents::Event,
    filter::explanation::{Explanation, Outcome, Seen, one_line},
};

impl Expression {
    /// What the expression gave for an event and why, down to the operands of `AND`, `OR`, `XOR` and `NOT`.
    #[must_use]
    pub fn explain(&self, event: &Event) -> Explanation {
        let mut explanation = self.explain_node(&self.root, event);
        explanation.clause = format!("sql {}", one_line(self.text.trim()));
        // Operands are cast to Boolean, the whole is not.
        let evaluation = self.evaluate(event);
        if evaluation.error.is_none() && !matches!(evaluation.value, Scalar::Boolean(_)) {
            let r#type = evaluation.value.r#type();
            explanation.outcome = Outcome::Fails;
            explanation.error = Some(format!("{} is of type {type}, and no Boolean", evaluation.value));
        }
        explanation
    }

    fn explain_node(&self, node: &Node, event: &Event) -> Explanation {
        let result = boolean(node, event);
        let mut explanation = Explanation::new(one_line(node.span.of(&self.text)), result == Ok(true));
        explanation.error = result.as_ref().err().map(Failure::to_string);
        match &node.kind {
            Kind::Logic(operator, operands) => {
                explanation.clauses = self.explain_operands(*operator, operands, event);
            }
            Kind::Not(operand) => explanation.clauses = vec![self.explain_node(operand, event)],
            _ => {
                let mut names = Vec::new();
                collect_attributes(node, &mut names);
                explanation.saw = names.into_iter().map(|name| Seen::new(name, event)).collect();
            }
        }
        explanation
    }

    fn explain_operands(&self, operator: Logic, operands: &[Node], event: &Event) -> Vec<Explanation> {
        let mut decided = false;
        let explain = |operand| {
            let mut explanation = self.explain_node(operand, event);
            if decided {
                explanation = Explanation {
                    outcome: Outcome::NotReached,
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

/// The names of the attributes that a node looks at, each once, in the order of the text.
fn collect_attributes<'a>(node: &'a Node, names: &mut Vec<&'a str>) {
    let mut all = |nodes: &[&'a Node]| {
        for node in nodes {
            collect_attributes(node, names);
        }
    };
    match &node.kind {
        Kind::Literal(_) => {}
        Kind::Attribute(name) | Kind::Exists(name) => {
            if !names.contains(&&**name) {
                names.push(name);
            }
        }
        Kind::Not(operand) | Kind::Negate(operand) | Kind::Like { operand, .. } => all(&[operand]),
        Kind::Logic(_, operands) => operands.iter().for_each(|operand| all(&[operand])),
        Kind::Binary(_, left, right) => all(&[left, right]),
        Kind::In { operand, set, .. } => {
            all(&[operand]);
            set.iter().for_each(|element| all(&[element]));
        }
        Kind::Call(call) => match call {
            Call::Abs(x)
            | Call::Bool(x)
            | Call::Int(x)
            | Call::Length(x)
            | Call::Lower(x)
            | Call::String(x)
            | Call::Trim(x)
            | Call::Upper(x) => all(&[x]),
            Call::Concat(texts) => texts.iter().for_each(|text| all(&[text])),
            Call::ConcatWs { delimiter, texts } => {
                all(&[delimiter]);
                texts.iter().for_each(|text| all(&[text]));
            }
            Call::Left { text, count } | Call::Right { text, count } => all(&[text, count]),
            Call::Substring {
                text,
                position,
                length,
            } => {
                all(&[text, position]);
                length.iter().for_each(|length| all(&[length]));
            }
        },
    }
}
