"""The HTTP server: what lies before the routes, what operators ask, and the page."""
