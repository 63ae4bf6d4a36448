//! The functions that an expression may call.

use std::{
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use cel::{
    DeclarationError, Env, ExecutionError,
    common::{
        types::{CelBool, CelString, DOUBLE_TYPE, INT_TYPE, STRING_TYPE, UINT_TYPE},
        value::CowVal,
    },
    extensions,
};

use super::{
    MAX_TEXT,
    constant::{Constant, NETWORK, PATTERN},
};

/// What `+` is turned into, which takes numbers, and strings up to a length.
pub(super) const ADD: &str = "@add";

/// The functions, as a person calls them.
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
    "cidr('10.0.0.0/8').containsIP(text)",
];

/// Whether there is a function of this name that takes so many arguments, and is called on a value or not.
pub(super) fn exists(name: &str, on_value: bool, arguments: usize) -> bool {
    match (on_value, arguments) {
        (true, 1) => matches!(
            name,
            "startsWith" | "endsWith" | "contains" | "matches" | "containsIP"
        ),
        (true, 0) => matches!(name, "lowerAscii" | "upperAscii" | "trim" | "size"),
        (false, 1) => matches!(
            name,
            "size" | "string" | "int" | "uint" | "double" | "bool" | "cidr"
        ),
        _ => false,
    }
}

/// The same for every expression.
pub(super) fn environment() -> Arc<Env> {
    static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(declare()));
    ENVIRONMENT.clone()
}

#[allow(
    clippy::expect_used,
    reason = "depends on nothing that comes in, and every test evaluates by it"
)]
fn declare() -> Env {
    let mut env = Env::default().with_optional_support(false).with_stdlib();
    extend(&mut env).expect("every function is declared once");
    env
}

fn extend(env: &mut Env) -> Result<(), DeclarationError> {
    env.add_extension(extensions::strings)?;
    env.add_member_overload("matches", "matches_pattern", STRING_TYPE, vec![PATTERN], matches)?;
    env.add_member_overload(
        "containsIP",
        "network_contains",
        NETWORK,
        vec![STRING_TYPE],
        contains,
    )?;
    env.add_overload(ADD, "add_int", vec![INT_TYPE, INT_TYPE], add)?;
    env.add_overload(ADD, "add_uint", vec![UINT_TYPE, UINT_TYPE], add)?;
    env.add_overload(ADD, "add_double", vec![DOUBLE_TYPE, DOUBLE_TYPE], add)?;
    env.add_overload(ADD, "add_string", vec![STRING_TYPE, STRING_TYPE], add)
}

fn matches<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let [text, pattern] = arguments.as_slice() else {
        return Err(ExecutionError::missing_argument_or_target());
    };
    match (
        text.downcast_ref::<CelString>(),
        pattern.downcast_ref::<Constant>(),
    ) {
        (Some(text), Some(Constant::Pattern(pattern))) => Ok(boolean(pattern.is_match(text.inner()))),
        _ => Err(ExecutionError::missing_argument_or_target()),
    }
}

fn contains<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let [network, address] = arguments.as_slice() else {
        return Err(ExecutionError::missing_argument_or_target());
    };
    match (
        network.downcast_ref::<Constant>(),
        address.downcast_ref::<CelString>(),
    ) {
        (Some(Constant::Network(network)), Some(address)) => {
            let address: IpAddr = address
                .inner()
                .parse()
                .map_err(|_| ExecutionError::InternalError("the text is no IP address".to_owned()))?;
            Ok(boolean(network.contains(&address)))
        }
        _ => Err(ExecutionError::missing_argument_or_target()),
    }
}

fn boolean<'b, 'v>(value: bool) -> CowVal<'b, 'v> {
    CowVal::owned(CelBool::from(value))
}

/// The crate's `+`, but for strings of any length and for lists.
fn add<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let [left, right] = arguments.as_slice() else {
        return Err(ExecutionError::missing_argument_or_target());
    };
    let length = |value: &CowVal| {
        value
            .downcast_ref::<CelString>()
            .map_or(0, |text| text.inner().len())
    };
    if length(left) + length(right) > MAX_TEXT {
        let message = format!("+ makes no strings of more than {MAX_TEXT} bytes");
        return Err(ExecutionError::InternalError(message));
    }
    let adder = left.as_adder().ok_or(ExecutionError::MissingArgumentOrTarget)?;
    Ok(CowVal::Owned(adder.add(right.as_ref())?.into_owned()))
}
