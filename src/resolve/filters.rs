//! Filters of manifests as expressions. Pure.

use crate::{api, filter::Expression};

/// Converts a filter.
pub(super) fn expression(filter: &api::Filter) -> Expression {
    let list = |filters: &Vec<api::Filter>| filters.iter().map(expression).collect();
    match filter {
        api::Filter::Exact(map) => Expression::Exact(map.clone()),
        api::Filter::Prefix(map) => Expression::Prefix(map.clone()),
        api::Filter::Suffix(map) => Expression::Suffix(map.clone()),
        api::Filter::All(filters) => Expression::All(list(filters)),
        api::Filter::Any(filters) => Expression::Any(list(filters)),
        api::Filter::Not(filter) => Expression::Not(Box::new(expression(filter))),
        api::Filter::Sql(text) => Expression::Sql(text.clone()),
        api::Filter::Cel(text) => Expression::Cel(text.clone()),
    }
}
