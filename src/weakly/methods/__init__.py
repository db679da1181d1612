"""One folder per method, each with the same rooms; a folder that exposes ``METHOD`` is a method."""
