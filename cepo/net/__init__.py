"""How processes reach each other: settings, addresses, TLS, tokens, REST applications and child processes.

`settings` is the only module that reads environment variables. Nothing here knows what a group or a policy is.
"""
