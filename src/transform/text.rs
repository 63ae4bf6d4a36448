//! Finds the expressions in a text.

/// A piece of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TextPiece<'a> {
    /// Text as it is.
    Literal(String),
    /// The text between `${` and `}`, and where it begins, in bytes.
    Expression(&'a str, usize),
}

/// Splits a text. `$${` stands for `${`; any other `$` for itself.
///
/// # Errors
/// The position of a `${` that is not closed, in bytes.
pub(super) fn pieces(text: &str) -> Result<Vec<TextPiece<'_>>, usize> {
    let (mut pieces, mut literal, mut rest) = (Vec::new(), String::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        literal.push_str(before);
        if let Some(after) = after.strip_prefix("${") {
            literal.push_str("${");
            rest = after;
        } else if let Some(expression) = after.strip_prefix('{') {
            let start = text.len() - expression.len();
            let length = closing(expression.as_bytes()).ok_or(start - 2)?;
            if !literal.is_empty() {
                pieces.push(TextPiece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(TextPiece::Expression(&expression[..length], start));
            rest = &expression[length + 1..];
        } else {
            literal.push('$');
            rest = after;
        }
    }
    literal.push_str(rest);
    if !literal.is_empty() || pieces.is_empty() {
        pieces.push(TextPiece::Literal(literal));
    }
    Ok(pieces)
}

/// Returns the position of the brace that closes an expression: one outside of its strings and of its maps.
fn closing(text: &[u8]) -> Option<usize> {
    let (mut at, mut open) = (0, 0_usize);
    while let Some(byte) = text.get(at) {
        match byte {
            b'}' if open == 0 => return Some(at),
            b'}' => open -= 1,
            b'{' => open += 1,
            b'"' | b'\'' => {
                at = after_string(text, at)?;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// Returns the position after the string that begins at `at`, in one or three quotes, raw or with escapes.
fn after_string(text: &[u8], at: usize) -> Option<usize> {
    let quote = text[at];
    let prefix = text[..at].iter().rev().take(2);
    let is_raw = prefix
        .take_while(|byte| b"rRbB".contains(byte))
        .any(|byte| b"rR".contains(byte));
    let is_triple = text[at..].starts_with(&[quote; 3]);
    let delimiter = &[quote; 3][..if is_triple { 3 } else { 1 }];
    let mut at = at + delimiter.len();
    while at < text.len() {
        if text[at..].starts_with(delimiter) {
            return Some(at + delimiter.len());
        }
        at += if text[at] == b'\\' && !is_raw { 2 } else { 1 };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_expressions_outside_of_strings_and_maps() {
        let literal = |text: &str| TextPiece::Literal(text.to_owned());
        let table = [
            ("", vec![literal("")]),
            ("a $5 b}", vec![literal("a $5 b}")]),
            ("${a}", vec![TextPiece::Expression("a", 2)]),
            (
                "x ${a} y${b}",
                vec![
                    literal("x "),
                    TextPiece::Expression("a", 4),
                    literal(" y"),
                    TextPiece::Expression("b", 10),
                ],
            ),
            ("$${a} $$${b}", vec![literal("${a} $${b}")]),
            (
                "${{'}': {'a': 1}}}",
                vec![TextPiece::Expression("{'}': {'a': 1}}", 2)],
            ),
            (
                r#"${"\"}" + r'\' + '''}'}'''}"#,
                vec![TextPiece::Expression(r#""\"}" + r'\' + '''}'}'''"#, 2)],
            ),
            (
                "ä${'ö}'}ü",
                vec![literal("ä"), TextPiece::Expression("'ö}'", 4), literal("ü")],
            ),
        ];
        for (text, expected) in table {
            assert_eq!(pieces(text), Ok(expected), "{text}");
        }
        for (text, at) in [
            ("${", 0),
            ("a ${b", 2),
            ("${'}", 0),
            ("${a} ${{}", 5),
            (r"${'\}'", 0),
        ] {
            assert_eq!(pieces(text), Err(at), "{text}");
        }
    }
}
