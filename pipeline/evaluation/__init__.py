"""Scores of generated pictures and the report that shows them."""
