"""Memory of one user."""
