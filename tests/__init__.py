"""Tests: a file a module of pipeline/, test_pipeline.py for the whole DAG, test_architecture.py for the rules."""
