"""One file a family of targets. A file that is here is found; it has a tuple ``TARGETS``."""
