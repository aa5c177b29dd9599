"""The front: HTTP on one side, workers' sockets on the other, and no inference in between."""
