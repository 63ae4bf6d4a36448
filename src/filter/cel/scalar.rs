//! Numbers, Booleans and timestamps as text.

use cel::common::{
    types::{CelBool, CelDouble, CelInt, CelUInt},
    value::Val,
};

use super::time::CelTime;

/// Writes a number, a Boolean or a timestamp; `None` for any other value.
pub(super) fn scalar_text(value: &dyn Val) -> Option<String> {
    if let Some(number) = value.downcast_ref::<CelInt>() {
        Some(number.inner().to_string())
    } else if let Some(number) = value.downcast_ref::<CelUInt>() {
        Some(number.inner().to_string())
    } else if let Some(number) = value.downcast_ref::<CelDouble>() {
        Some(number.inner().to_string())
    } else if let Some(boolean) = value.downcast_ref::<CelBool>() {
        Some(boolean.inner().to_string())
    } else {
        Some(value.downcast_ref::<CelTime>()?.to_string())
    }
}
