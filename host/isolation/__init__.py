"""What keeps a model from everything that is not its own: cgroups, CPUs, a view of the file system, no network, a user.

`launch` runs between supervisord and every process of the host, with the standard library alone; so do `plan`,
`cgroups`, `kernel` and `sandbox`, which it imports.
"""
