//! Syntax of label and field selectors, as `kubectl` takes them. Pure.
//!
//! The API server parses them again. This only finds mistakes before that.

/// Checks a label selector.
pub(super) fn check_labels(selector: &str) -> Result<(), String> {
    split(selector)?.into_iter().try_for_each(check_requirement)
}

/// Checks a field selector.
pub(super) fn check_fields(selector: &str) -> Result<(), String> {
    for requirement in split(selector)? {
        let operators = requirement
            .split_once("!=")
            .or_else(|| requirement.split_once("=="));
        let (path, _) = operators.or_else(|| requirement.split_once('=')).ok_or_else(|| {
            format!("{requirement:?} is not a requirement: write FIELD=VALUE or FIELD!=VALUE")
        })?;
        let is_path = |part: &str| !part.is_empty() && part.chars().all(char::is_alphanumeric);
        if !path.trim().split('.').all(is_path) {
            return Err(format!(
                "{path:?} is not the path of a field, such as metadata.name"
            ));
        }
    }
    Ok(())
}

/// Splits at the commas outside of parentheses.
fn split(selector: &str) -> Result<Vec<&str>, String> {
    let mut parts = Vec::new();
    let (mut begin, mut is_inside) = (0, false);
    for (at, character) in selector.char_indices() {
        match character {
            '(' if is_inside => return Err("parentheses cannot be nested".to_owned()),
            '(' => is_inside = true,
            ')' if !is_inside => return Err("a parenthesis is closed that was not opened".to_owned()),
            ')' => is_inside = false,
            ',' if !is_inside => {
                parts.push(selector[begin..at].trim());
                begin = at + 1;
            }
            _ => {}
        }
    }
    if is_inside {
        return Err("a parenthesis is not closed".to_owned());
    }
    parts.push(selector[begin..].trim());
    match parts.iter().any(|part| part.is_empty()) {
        true => Err("a requirement is empty: remove the comma".to_owned()),
        false => Ok(parts),
    }
}

fn check_requirement(requirement: &str) -> Result<(), String> {
    if let Some(key) = requirement.strip_prefix('!') {
        return check_key(key.trim());
    }
    if let Some((key, value)) = requirement
        .split_once("!=")
        .or_else(|| requirement.split_once("=="))
        .or_else(|| requirement.split_once('='))
    {
        check_key(key.trim())?;
        return check_value(value.trim());
    }
    let Some((head, values)) = requirement.split_once('(') else {
        return check_key(requirement);
    };
    let mut words = head.split_whitespace();
    let (Some(key), Some("in" | "notin"), None) = (words.next(), words.next(), words.next()) else {
        return Err(format!(
            "{requirement:?} is not a requirement: write KEY in (VALUE,VALUE) or KEY notin (VALUE,VALUE)"
        ));
    };
    check_key(key)?;
    let values = values
        .strip_suffix(')')
        .ok_or_else(|| format!("{requirement:?} has more after the parenthesis"))?;
    values.split(',').map(str::trim).try_for_each(check_value)
}

fn check_key(key: &str) -> Result<(), String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let is_prefix = |prefix: &str| {
        prefix.len() <= 253
            && is_framed(prefix)
            && prefix
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c))
    };
    match prefix.is_none_or(is_prefix) && is_name(name) {
        true => Ok(()),
        false => Err(format!(
            "{key:?} is not the key of a label, such as app or example.com/app"
        )),
    }
}

fn check_value(value: &str) -> Result<(), String> {
    match value.is_empty() || is_name(value) {
        true => Ok(()),
        false => Err(format!("{value:?} is not the value of a label")),
    }
}

fn is_name(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    text.len() <= 63 && is_framed(text) && text.chars().all(is_allowed)
}

/// Whether a text begins and ends with a letter or a digit.
fn is_framed(text: &str) -> bool {
    let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    is_end(text.chars().next()) && is_end(text.chars().next_back())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_those_of_kubectl() {
        for valid in [
            "app",
            "!app",
            "app=web",
            "app==web, tier!=db",
            "app=",
            "example.com/app in (web, api),!legacy",
            "tier notin (a)",
        ] {
            assert_eq!(check_labels(valid), Ok(()), "{valid}");
        }
        for (invalid, part) in [
            ("app=web,", "is empty"),
            ("app=we b", "not the value"),
            ("-app", "not the key"),
            ("App.example/_x=1", "not the key"),
            ("app in web", "not the key"),
            ("app within (web)", "KEY in"),
            ("app in (web", "not closed"),
            ("app in (web))", "not opened"),
            ("app in (web) x", "more after"),
        ] {
            let error = check_labels(invalid).unwrap_err();
            assert!(error.contains(part), "{invalid}: {error}");
        }
        assert_eq!(check_fields("type=Warning,involvedObject.kind!=Pod"), Ok(()));
        assert_eq!(check_fields("metadata.name==a"), Ok(()));
        assert!(check_fields("type").unwrap_err().contains("FIELD=VALUE"));
        assert!(check_fields("a..b=1").unwrap_err().contains("path of a field"));
    }
}
