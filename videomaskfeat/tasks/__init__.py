"""The only place where a config meets the parts."""
