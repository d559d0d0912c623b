"""Servers for WebSockets and streams: gunicorn's worker, gevent's pywsgi, and other servers."""
