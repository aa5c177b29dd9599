"""The feature service: feature views read from their stores, behind a cache, apart from inference.

It imports `host.protocol` and `host.config` and nothing else of modelhost; the fronts meet it on a socket.
"""
