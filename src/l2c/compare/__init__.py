"""Every way to be faster on equal terms: planned from a TOML file, one record per way, resumed after a crash."""
