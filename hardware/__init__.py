"""Hardware: targets, latency, measuring and emission. Never imports ``condensec.passes``."""
