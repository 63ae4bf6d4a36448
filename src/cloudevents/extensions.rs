//! Sets extensions of an event.

use super::{
    Event, Invalid, checks,
    invalid::{Reason, excerpt},
    json,
    name::{self, Name},
    parts::{Attribute, Content},
    value::Value,
};

impl Event {
    /// Returns a copy of the event with these string extensions set or replaced. All other bytes stay the same; in
    /// structured mode the values are inserted into the JSON text.
    ///
    /// Use [`super::clean_text`] on a value that may contain forbidden characters.
    ///
    /// # Errors
    /// [`Invalid`] if a name or a value is invalid, a name is given twice or belongs to the core specification, or
    /// there are too many attributes.
    pub fn with_extensions<'a>(
        &self,
        extensions: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, Invalid> {
        let mut set = Vec::new();
        for (name, value) in extensions {
            let attribute = Attribute::new(checks::name(name)?, Value::from(value));
            if attribute.name.is_core() {
                return Err(Invalid::new(
                    Reason::Name,
                    format!(
                        "`{}` is a core attribute, which must stay as the producer set it",
                        excerpt(name)
                    ),
                )
                .about(name));
            }
            checks::value(&attribute.name, &attribute.value)?;
            set.push(attribute);
        }
        set.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(second) = set.windows(2).find_map(|pair| match pair {
            [first, second] if first.name == second.name => Some(second),
            _ => None,
        }) {
            return Err(name::duplicate(&second.name));
        }

        let is_set = |name: &Name| set.binary_search_by(|attribute| attribute.name.cmp(name)).is_ok();
        let kept = self
            .attribute_list()
            .iter()
            .filter(|attribute| !is_set(&attribute.name));
        let attributes = checks::attributes(kept.chain(&set).cloned().collect())?;
        let content = match self.content() {
            binary @ Content::Binary { .. } => binary.clone(),
            Content::Structured {
                content_type, text, ..
            } => {
                let (text, data) = json::splice(text, &set).unwrap_or_else(|| {
                    // The text can be re-read, unless the record is damaged.
                    let content = self.content().clone();
                    json::write(&Self::from_parts(attributes.clone(), content, None))
                });
                Content::Structured {
                    content_type: content_type.clone(),
                    text: text.into(),
                    data,
                }
            }
        };
        let event = Self::from_parts(attributes, content, None);
        Ok(event.read_with(self.stored_trace_context().cloned(), self.lineage()))
    }
}
