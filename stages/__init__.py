"""One file a DVC stage: paths from the command line, numbers from params.yaml, a tracked run, one library call."""
