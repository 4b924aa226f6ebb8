//! How many.
