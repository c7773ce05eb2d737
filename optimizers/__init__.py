"""Optimizers over personas."""
