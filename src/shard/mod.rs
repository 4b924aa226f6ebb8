//! What.

pub(crate) mod placement;
