"""The error tree. Catching at any level is meaningful.

CepoError
├── UserError         bad input: names the key, row or field and the fix; exit 2, HTTP 422, INVALID_ARGUMENT
├── Unreachable       another process does not answer: names the address and how to start it; exit 2
├── EngineDown        the engine of this process is gone: the process must end and be started again
├── PolicyError       adapter bytes or weights are not the ones the reference names; never retried into use
└── WireError         a message cannot be read or breaks an invariant

A new type is added only when somebody catches it; every type also inherits the standard type it replaces.
"""


class CepoError(Exception):
    """Base of everything this project raises on purpose."""


class UserError(CepoError, ValueError):
    """Something a user wrote is wrong; the message says what and how to mend it."""


class Unreachable(CepoError, ConnectionError):
    """A process that is needed does not answer."""


class EngineDown(CepoError, RuntimeError):
    """The engine of this process does not come back; only a new process does."""


class PolicyError(CepoError, RuntimeError):
    """The weights at hand are not the weights that were named."""


class WireError(CepoError, ValueError):
    """A message does not decode into a valid contract."""
