"""Spoiled input of every kind that lmcast opens, and whether it is handled right."""
