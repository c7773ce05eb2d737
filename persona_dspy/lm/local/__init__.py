"""Models that run in this process: llama.cpp, its schemas and threads, and the catalogue of small ones."""

__all__: list[str] = []
