"""A persona per user for any DSPy program."""
