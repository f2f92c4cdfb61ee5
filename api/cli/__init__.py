"""The command line, one file a verb. Text goes to stderr, data to stdout."""
