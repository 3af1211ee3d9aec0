"""Tests on real network namespaces, and the bed that builds them; all of it needs root."""
