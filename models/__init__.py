"""The model worker: its loop, batching, runtimes, and the bundled example models."""
