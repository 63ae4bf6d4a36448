//! Requirements by which a table indexes filters, so that it need not evaluate every filter on every event.

use std::borrow::Cow;

/// A condition that a table can look up in an event: one on the canonical string of an attribute.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IndexTerm<'a> {
    /// Name of the attribute.
    pub attribute: &'a str,
    /// Condition on its canonical string.
    pub text: Text<'a>,
}

/// A condition on a string.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Text<'a> {
    /// Equals this.
    Exact(Cow<'a, str>),
    /// Starts with this, which is not empty.
    Prefix(Cow<'a, str>),
}

/// A condition that every event matching a filter satisfies. It may be weaker than the filter, never stronger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement<'a> {
    /// The term holds.
    Term(IndexTerm<'a>),
    /// All of these hold. Empty if nothing is known.
    All(Vec<Requirement<'a>>),
    /// At least one of these holds.
    Any(Vec<Requirement<'a>>),
}

impl<'a> Requirement<'a> {
    /// Requirement of a filter about which nothing is known.
    pub(super) const UNKNOWN: Self = Self::All(Vec::new());

    /// Whether an event satisfies the requirement.
    #[cfg(test)]
    pub(super) fn allows(&self, event: &crate::cloudevents::Event) -> bool {
        match self {
            Self::Term(IndexTerm { attribute, text }) => {
                event.attribute(attribute).is_some_and(|value| match text {
                    Text::Exact(text) => value.canonical() == *text,
                    Text::Prefix(text) => value.canonical().starts_with(&**text),
                })
            }
            Self::All(parts) => parts.iter().all(|part| part.allows(event)),
            Self::Any(parts) => parts.iter().any(|part| part.allows(event)),
        }
    }

    pub(super) fn exact(attribute: &'a str, value: impl Into<Cow<'a, str>>) -> Self {
        let text = Text::Exact(value.into());
        Self::Term(IndexTerm { attribute, text })
    }

    /// An empty prefix imposes no condition.
    pub(super) fn prefix(attribute: &'a str, prefix: impl Into<Cow<'a, str>>) -> Self {
        match prefix.into() {
            prefix if prefix.is_empty() => Self::UNKNOWN,
            prefix => Self::Term(IndexTerm {
                attribute,
                text: Text::Prefix(prefix),
            }),
        }
    }

    /// Calls `see` with every term, including duplicates.
    pub fn for_each_term<'b>(&'b self, see: &mut impl FnMut(&'b IndexTerm<'a>)) {
        match self {
            Self::Term(term) => see(term),
            Self::All(parts) | Self::Any(parts) => {
                parts.iter().for_each(|part| part.for_each_term(see));
            }
        }
    }

    /// Returns terms of which every matching event satisfies at least one, with the minimum total cost. Returns
    /// `None` if there are no such terms, so that the filter must be evaluated on every event.
    pub fn cheapest_cover(&self, cost: &impl Fn(&IndexTerm) -> usize) -> Option<Cover<'_, 'a>> {
        match self {
            Self::Term(term) => Some(Cover {
                terms: vec![term],
                cost: cost(term),
            }),
            Self::All(parts) => parts
                .iter()
                .filter_map(|part| part.cheapest_cover(cost))
                .min_by_key(|cover| cover.cost),
            Self::Any(parts) => {
                let covers: Vec<_> = parts
                    .iter()
                    .map(|part| part.cheapest_cover(cost))
                    .collect::<Option<_>>()?;
                Some(Cover {
                    cost: covers.iter().map(|cover| cover.cost).sum(),
                    terms: covers.into_iter().flat_map(|cover| cover.terms).collect(),
                })
            }
        }
    }
}

/// Terms of which every event matching a filter satisfies at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cover<'b, 'a> {
    /// The terms.
    pub terms: Vec<&'b IndexTerm<'a>>,
    /// Total cost of the terms.
    pub cost: usize,
}
