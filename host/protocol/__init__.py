"""What every process of modelhost agrees on: types, errors, frames, messages, codecs, the package format.

A leaf: it imports nothing else of modelhost. Only `tensors`, `v1` and `v2` need numpy, so a process that never
looks into a body (the front) never loads it.
"""
