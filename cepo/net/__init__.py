"""Connections between processes: settings, addresses, TLS, tokens, REST applications and child processes.

`environment` is the only module that reads environment variables, and `settings` describes them. No module here depends
on groups or policies.
"""
