"""The robustness frontier."""
