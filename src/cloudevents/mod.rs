//! An event on the wire.
