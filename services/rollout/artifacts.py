"""Brings a version's files to this machine's cache, verified against the digest that was registered. The controller's `Artifacts`; the work is
done by `services.serving.artifacts`, whose errors become reasons here.
"""
