"""The extension of a Flask application, with its routes, settings and event streams."""
