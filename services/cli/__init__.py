"""`understudy` and `kubectl-understudy`: what a person or a program at a terminal asks of the platform.

Reads the store and writes command rows into it; the controller alone acts. Nothing here changes a route, an engine or the registry.
"""
