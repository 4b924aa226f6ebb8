//! Tests over every driver.
