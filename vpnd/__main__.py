"""`python -m vpnd`."""

import sys

from vpnd.main import main

sys.exit(main())
