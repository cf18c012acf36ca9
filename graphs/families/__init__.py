"""Families: config keys and weight tables that several architectures share."""
