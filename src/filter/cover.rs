//! What a table can find a filter by, so that it need not try every filter on every event.

use std::borrow::Cow;

/// Something that a table looks up in an event: the canonical string of one of its attributes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IndexTerm<'a> {
    /// The attribute's name.
    pub attribute: &'a str,
    /// What is asked of its canonical string.
    pub text: Text<'a>,
}

/// What an [`IndexTerm`] asks of a string.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Text<'a> {
    /// It is this.
    Exact(Cow<'a, str>),
    /// It begins with this, which is not empty.
    Prefix(Cow<'a, str>),
}

/// What every event has that a filter lets pass. It may say less than the filter asks, never more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement<'a> {
    /// The term holds.
    Term(IndexTerm<'a>),
    /// Each of these; without any, nothing is known.
    All(Vec<Requirement<'a>>),
    /// At least one of these.
    Any(Vec<Requirement<'a>>),
}

impl<'a> Requirement<'a> {
    /// Of a filter of which nothing is known.
    pub(super) const UNKNOWN: Self = Self::All(Vec::new());

    /// Whether an event has what is required.
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

    /// Every string begins with an empty prefix.
    pub(super) fn prefix(attribute: &'a str, prefix: impl Into<Cow<'a, str>>) -> Self {
        match prefix.into() {
            prefix if prefix.is_empty() => Self::UNKNOWN,
            prefix => Self::Term(IndexTerm {
                attribute,
                text: Text::Prefix(prefix),
            }),
        }
    }

    /// Calls `see` with every term in it, one that is there twice twice.
    pub fn for_each_term<'b>(&'b self, see: &mut impl FnMut(&'b IndexTerm<'a>)) {
        match self {
            Self::Term(term) => see(term),
            Self::All(parts) | Self::Any(parts) => {
                parts.iter().for_each(|part| part.for_each_term(see));
            }
        }
    }

    /// Terms of which every event that passes has at least one, so that the sum of what they cost is least. `None`
    /// if there are no such terms, and the filter has to be tried on every event.
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

/// Terms of which every event that a filter lets pass has at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cover<'b, 'a> {
    /// The terms.
    pub terms: Vec<&'b IndexTerm<'a>>,
    /// The sum of what they cost.
    pub cost: usize,
}
