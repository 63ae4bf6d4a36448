//! The path of a value in a transform, for messages.

use std::fmt;

/// A field, such as `data.items[0].sku`.
#[derive(Clone, Copy)]
pub(super) struct TemplatePath<'a> {
    outer: Option<&'a TemplatePath<'a>>,
    step: PathStep<'a>,
}

#[derive(Clone, Copy)]
enum PathStep<'a> {
    Member(&'a str),
    Item(usize),
}

/// The template of the new data.
pub(super) const DATA: TemplatePath<'static> = TemplatePath {
    outer: None,
    step: PathStep::Member("data"),
};

/// The attributes.
pub(super) const ATTRIBUTES: TemplatePath<'static> = TemplatePath {
    outer: None,
    step: PathStep::Member("attributes"),
};

/// The attributes that are set.
pub(super) const SET: TemplatePath<'static> = TemplatePath {
    outer: Some(&ATTRIBUTES),
    step: PathStep::Member("set"),
};

/// The attributes that are removed.
pub(super) const REMOVE: TemplatePath<'static> = TemplatePath {
    outer: Some(&ATTRIBUTES),
    step: PathStep::Member("remove"),
};

impl TemplatePath<'_> {
    pub(super) fn member<'b>(&'b self, name: &'b str) -> TemplatePath<'b> {
        TemplatePath {
            outer: Some(self),
            step: PathStep::Member(name),
        }
    }

    pub(super) fn item(&self, index: usize) -> TemplatePath<'_> {
        TemplatePath {
            outer: Some(self),
            step: PathStep::Item(index),
        }
    }
}

impl fmt::Display for TemplatePath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(outer) = self.outer {
            outer.fmt(f)?;
        }
        match self.step {
            PathStep::Member(name) if self.outer.is_none() => f.write_str(name),
            PathStep::Member(name) => write!(f, ".{name}"),
            PathStep::Item(index) => write!(f, "[{index}]"),
        }
    }
}
