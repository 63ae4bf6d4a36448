//! The signatures of the functions.

/// Signatures of the functions, for messages.
pub(super) const SIGNATURES: &[&str] = &[
    "has(event.field)",
    "text.startsWith(text)",
    "text.endsWith(text)",
    "text.contains(text)",
    "text.matches('regular expression')",
    "text.lowerAscii()",
    "text.upperAscii()",
    "text.trim()",
    "size(value)",
    "string(value)",
    "int(value)",
    "uint(value)",
    "double(value)",
    "bool(value)",
    "timestamp(text)",
    "cidr('10.0.0.0/8').containsIP(text)",
    "list.exists(x, condition)",
    "list.all(x, condition)",
    "list.exists_one(x, condition)",
    "list.map(x, value)",
    "list.filter(x, condition)",
];
