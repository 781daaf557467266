"""This library and its rivals, each behind `engine.Engine`, each imported in its own process."""
