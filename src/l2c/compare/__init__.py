"""Variants on equal terms: planned from a TOML file, one record each, resumed after a crash."""
