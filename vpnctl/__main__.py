"""`python -m vpnctl`."""

import sys

from vpnctl.main import main

if __name__ == "__main__":
    sys.exit(main())
