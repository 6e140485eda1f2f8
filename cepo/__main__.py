"""`python -m cepo` is `cepo`."""

import sys

from cepo.cli import main

sys.exit(main())
