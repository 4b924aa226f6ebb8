//! Linux calls that no library wraps for us.
