"""Shipped test tools: the conformance suite, a faulty store, a crash simulator."""
