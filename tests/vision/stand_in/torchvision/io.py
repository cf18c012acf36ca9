"""Imported by transformers, and not called here: nothing is decoded."""
