"""Detectors on a feature pyramid: what the methods that train one share. No method by itself."""
