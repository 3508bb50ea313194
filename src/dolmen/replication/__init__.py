"""Replication: copying what is missing from one store to another."""
