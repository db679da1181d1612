"""Frozen models behind one protocol, and the features they make."""
