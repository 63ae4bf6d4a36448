//! What produces events inside Weir.
