"""Connections between processes: settings, addresses, TLS, tokens, REST applications and child processes.

`settings` is the only module that reads environment variables. No module here depends on groups or policies.
"""
