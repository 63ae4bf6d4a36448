//! Finds the routes that could want an event by the terms that they are filed under.

use std::collections::{BTreeMap, HashMap};

use crate::{
    cloudevents::Event,
    filter::{IndexTerm, Text},
};

/// Routes, by their positions in a list, under exact values and prefixes of attributes.
///
/// A look-up takes one step for each attribute of the event, and in each a search that grows with the logarithm of
/// the number of prefixes.
#[derive(Debug, Default)]
pub(super) struct Index(HashMap<Box<str>, AttributeIndex>);

#[derive(Debug, Default)]
struct AttributeIndex {
    exact: HashMap<Box<str>, Vec<usize>>,
    prefixes: Prefixes,
}

/// Makes an [`Index`].
#[derive(Debug, Default)]
pub(super) struct IndexBuilder {
    exact: HashMap<Box<str>, HashMap<Box<str>, Vec<usize>>>,
    prefixes: HashMap<Box<str>, BTreeMap<Box<str>, Vec<usize>>>,
}

impl IndexBuilder {
    /// Files a route under a term.
    pub(super) fn add(&mut self, term: &IndexTerm, route: usize) {
        let attribute = term.attribute.into();
        let routes = match &term.text {
            Text::Exact(value) => {
                let values = self.exact.entry(attribute).or_default();
                values.entry(value.as_ref().into()).or_default()
            }
            Text::Prefix(prefix) => {
                let prefixes = self.prefixes.entry(attribute).or_default();
                prefixes.entry(prefix.as_ref().into()).or_default()
            }
        };
        routes.push(route);
    }

    pub(super) fn build(self) -> Index {
        let mut attributes: HashMap<Box<str>, AttributeIndex> = HashMap::new();
        for (attribute, exact) in self.exact {
            attributes.entry(attribute).or_default().exact = exact;
        }
        for (attribute, prefixes) in self.prefixes {
            attributes.entry(attribute).or_default().prefixes = Prefixes::new(prefixes);
        }
        Index(attributes)
    }
}

impl Index {
    /// The routes that are filed under a term that holds for the event: each once, in order.
    pub(super) fn candidates(&self, event: &Event) -> Vec<usize> {
        let mut routes = Vec::new();
        for (name, value) in event.attributes() {
            if let Some(AttributeIndex { exact, prefixes }) = self.0.get(name) {
                let value = value.canonical();
                if let Some(equal) = exact.get(&*value) {
                    routes.extend_from_slice(equal);
                }
                prefixes.collect(&value, &mut routes);
            }
        }
        routes.sort_unstable();
        routes.dedup();
        routes
    }
}

/// Prefixes in order, each with the next shorter one that it begins with.
#[derive(Debug, Default)]
struct Prefixes(Vec<Prefix>);

#[derive(Debug)]
struct Prefix {
    text: Box<str>,
    /// The position of the longest other prefix that this one begins with.
    shorter: Option<usize>,
    routes: Vec<usize>,
}

impl Prefixes {
    fn new(prefixes: BTreeMap<Box<str>, Vec<usize>>) -> Self {
        let mut list: Vec<Prefix> = Vec::with_capacity(prefixes.len());
        for (text, routes) in prefixes {
            let before = list.len().checked_sub(1);
            let shorter = Self::chain(&list, before)
                .find(|(_, prefix)| text.starts_with(&*prefix.text))
                .map(|(at, _)| at);
            list.push(Prefix {
                text,
                shorter,
                routes,
            });
        }
        Self(list)
    }

    /// Adds the routes of every prefix that the value begins with.
    ///
    /// A prefix of the value is a prefix of everything that stands between the two in order: so all of them are in
    /// the chain of the last one that stands before the value.
    fn collect(&self, value: &str, routes: &mut Vec<usize>) {
        let before = self
            .0
            .partition_point(|prefix| *prefix.text <= *value)
            .checked_sub(1);
        for (_, prefix) in Self::chain(&self.0, before) {
            if value.starts_with(&*prefix.text) {
                routes.extend_from_slice(&prefix.routes);
            }
        }
    }

    /// A prefix, and then always the next shorter one.
    fn chain(list: &[Prefix], from: Option<usize>) -> impl Iterator<Item = (usize, &Prefix)> {
        let at = move |position: usize| list.get(position).map(|prefix| (position, prefix));
        std::iter::successors(from.and_then(at), move |(_, prefix)| prefix.shorter.and_then(at))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn every_prefix_of_a_value_is_found_once(
            texts in collection::btree_set("[ab\u{e9}]{1,5}", 0..24),
            value in "[ab\u{e9}]{0,6}",
        ) {
            let texts: Vec<Box<str>> = texts.into_iter().map(Into::into).collect();
            let prefixes = Prefixes::new(texts.iter().cloned().enumerate().map(|(at, text)| (text, vec![at])).collect());
            let mut found = Vec::new();
            prefixes.collect(&value, &mut found);
            found.sort_unstable();
            let plain: Vec<_> = (0..texts.len()).filter(|&at| value.starts_with(&*texts[at])).collect();
            prop_assert_eq!(found, plain);
        }
    }
}
