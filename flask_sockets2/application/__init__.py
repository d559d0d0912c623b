"""What a Flask application gets: its extension, routes, settings and streams."""
