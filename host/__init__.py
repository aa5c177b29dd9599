"""modelhost: the front, dispatch, control and command line of one host."""

__version__ = "0.1.0"
