//! Limits the filters kept in memory per Trigger: of oversized filters, only enough to show that they are
//! oversized. Pure.

use std::collections::BTreeMap;

use crate::{api::Filter, filter::MAX_TEXT};

/// Truncates a Trigger's filters beyond [`MAX_TEXT`]. They are then still rejected as too large.
pub fn filters(filters: &mut Vec<Filter>) {
    list(filters, &mut (MAX_TEXT + 1));
}

/// Deducts what is kept from the remaining room, and removes what does not fit.
fn list(filters: &mut Vec<Filter>, room: &mut usize) {
    filters.retain_mut(|filter| {
        let keeps = *room > 0;
        if keeps {
            one(filter, room);
        }
        keeps
    });
    filters.shrink_to_fit();
}

fn one(filter: &mut Filter, room: &mut usize) {
    match filter {
        Filter::Exact(attributes) | Filter::Prefix(attributes) | Filter::Suffix(attributes) => {
            map(attributes, room);
        }
        Filter::All(children) | Filter::Any(children) => list(children, room),
        Filter::Not(child) => one(child, room),
        Filter::Sql(text) | Filter::Cel(text) => *room = room.saturating_sub(text.len()),
    }
}

fn map(attributes: &mut BTreeMap<String, String>, room: &mut usize) {
    attributes.retain(|name, value| {
        let keeps = *room > 0;
        *room = room.saturating_sub(name.len() + value.len());
        keeps
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(filters: &[Filter]) -> usize {
        let of = |filter: &Filter| match filter {
            Filter::Exact(map) | Filter::Prefix(map) | Filter::Suffix(map) => {
                map.iter().map(|(name, value)| name.len() + value.len()).sum()
            }
            Filter::All(list) | Filter::Any(list) => size(list),
            Filter::Not(child) => size(std::slice::from_ref(child)),
            Filter::Sql(text) | Filter::Cel(text) => text.len(),
        };
        filters.iter().map(of).sum()
    }

    fn filter() -> impl Strategy<Value = Filter> {
        let text = (0..8000_usize).prop_map(|length| "x".repeat(length));
        let map = proptest::collection::btree_map("[a-z]{1,3}", text.clone(), 0..8);
        let leaf = prop_oneof![map.prop_map(Filter::Exact), text.prop_map(Filter::Sql)];
        leaf.prop_recursive(3, 24, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Filter::Any),
                inner.prop_map(|child| Filter::Not(Box::new(child))),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn keeps_filters_that_fit_and_leaves_others_too_large(whole in proptest::collection::vec(filter(), 0..6)) {
            let mut cut = whole.clone();
            filters(&mut cut);
            if size(&whole) <= MAX_TEXT {
                prop_assert_eq!(cut, whole);
            } else {
                prop_assert!(size(&cut) > MAX_TEXT && size(&cut) <= MAX_TEXT + 8003);
            }
        }
    }
}
