"""Control: compares what should run on this host with what does, and says so."""
