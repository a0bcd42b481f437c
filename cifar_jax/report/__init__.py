"""The report of finished runs: runs (what they left) -> network (JAX) -> data (numpy) -> figures (PNG) -> page (HTML)."""
