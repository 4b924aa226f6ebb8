//! Signal dispositions, saved and restored.
