//! Index of routes by the terms that an event must satisfy.

use std::collections::{BTreeMap, HashMap};

use crate::{
    cloudevents::Event,
    filter::{IndexTerm, Text},
};

/// Indexes routes, by their index in a list, under exact values and prefixes of attributes.
///
/// A look-up takes one step per attribute of the event, each with a search in logarithmic time over the prefixes.
#[derive(Debug, Default)]
pub(super) struct Index(HashMap<Box<str>, AttributeIndex>);

#[derive(Debug, Default)]
struct AttributeIndex {
    exact: HashMap<Box<str>, Vec<usize>>,
    prefixes: Prefixes,
}

/// Builds an [`Index`].
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
    /// Returns the routes filed under a term that the event satisfies, deduplicated and in order.
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

/// Sorted prefixes, each with a link to the next shorter one that it starts with.
#[derive(Debug, Default)]
struct Prefixes(Vec<Prefix>);

#[derive(Debug)]
struct Prefix {
    text: Box<str>,
    /// Index of the longest other prefix that this one starts with.
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

    /// Adds the routes of every prefix of the value.
    ///
    /// A prefix of the value is also a prefix of everything sorted between the two. So all of them are in the chain
    /// of the last entry that sorts before the value.
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

    /// Iterates over a prefix and its successively shorter ones.
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
        fn finds_every_prefix_of_a_value_once(
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
