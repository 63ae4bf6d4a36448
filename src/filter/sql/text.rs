//! The functions of texts (section 3.5), on values.

use std::borrow::Cow;

use super::FailureCause;

/// Converts a text, without copying it if no character changes.
pub(super) fn convert<'a>(
    text: Cow<'a, str>,
    may_change: fn(char) -> bool,
    convert: fn(&str) -> String,
) -> Cow<'a, str> {
    if text.contains(may_change) {
        Cow::Owned(convert(&text))
    } else {
        text
    }
}

/// Returns a part of a text, borrowed if the text is.
pub(super) fn part<'a>(text: Cow<'a, str>, of: impl Fn(&str) -> &str) -> Cow<'a, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(of(text)),
        Cow::Owned(text) => Cow::Owned(of(&text).to_owned()),
    }
}

/// Returns the byte offset of a character, counted from 0, or of the end of the text if it is shorter.
fn offset(text: &str, characters: usize) -> usize {
    text.char_indices()
        .nth(characters)
        .map_or(text.len(), |(offset, _)| offset)
}

/// Checks that a character count is not negative.
fn count_of<'a>(text: &Cow<'a, str>, count: i32) -> Result<usize, FailureCause<'a>> {
    usize::try_from(count).map_err(|_| FailureCause::NegativeCount {
        text: text.clone(),
        count,
    })
}

pub(super) fn left(text: Cow<'_, str>, count: i32) -> Result<Cow<'_, str>, FailureCause<'_>> {
    let count = count_of(&text, count)?;
    Ok(part(text, |text| text.split_at(offset(text, count)).0))
}

pub(super) fn right(text: Cow<'_, str>, count: i32) -> Result<Cow<'_, str>, FailureCause<'_>> {
    let count = count_of(&text, count)?;
    Ok(part(text, |text| {
        let skipped = text.chars().count().saturating_sub(count);
        text.split_at(offset(text, skipped)).1
    }))
}

pub(super) fn substring(
    text: Cow<'_, str>,
    position: i32,
    length: Option<i32>,
) -> Result<Cow<'_, str>, FailureCause<'_>> {
    let length = match length {
        None => usize::MAX,
        Some(length) => usize::try_from(length).map_err(|_| FailureCause::NegativeLength(length))?,
    };
    if position == 0 {
        return Ok(Cow::Borrowed(""));
    }
    let characters = text.chars().count();
    let distance = position.unsigned_abs() as usize;
    if distance > characters {
        return Err(FailureCause::Position {
            position,
            length: characters,
        });
    }
    let start = if position > 0 {
        distance - 1
    } else {
        characters - distance
    };
    Ok(part(text, |text| {
        let rest = text.split_at(offset(text, start)).1;
        rest.split_at(offset(rest, length)).0
    }))
}
